//! A relay between a journal and its server that loses what it is told to lose.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// In the payload of an append that a [`Plan`] is for, unless another mark is given.
pub(super) const MARK: &str = "cut here";

const CHUNK_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Plan {
    Pass,
    /// The request never arrives.
    LoseRequest,
    /// It arrives, is done, and the answer is lost.
    LoseAnswer,
    /// The caller loses its connection, and the request arrives when it is let go.
    Hold,
}

pub(super) struct Cutter {
    pub(super) port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    mark: &'static str,
    plan: Mutex<Plan>,
    held: Mutex<Vec<(TcpStream, Vec<u8>)>>,
}

impl Cutter {
    pub(super) async fn start(server_port: u16) -> Cutter {
        Cutter::marking(server_port, MARK).await
    }

    /// For requests with another mark.
    pub(super) async fn marking(server_port: u16, mark: &'static str) -> Cutter {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared { mark, plan: Mutex::new(Plan::Pass), held: Mutex::default() });
        let of_all = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", server_port)).await.unwrap();
                tokio::spawn(relay(client, server, Arc::clone(&of_all)));
            }
        });
        Cutter { port, shared }
    }

    /// For the next marked request, and none after it.
    pub(super) fn plan(&self, plan: Plan) {
        *self.shared.plan.lock() = plan;
    }

    /// Lets held requests go, and returns when the server has answered them.
    pub(super) async fn let_go(&self) {
        let held = std::mem::take(&mut *self.shared.held.lock());
        for (mut server, request) in held {
            server.write_all(&request).await.unwrap();
            let answered = server.read(&mut [0; 1024]).await.unwrap();
            assert!(answered > 0, "the server closed instead of answering");
        }
    }
}

async fn relay(mut client: TcpStream, mut server: TcpStream, shared: Arc<Shared>) {
    let (mut asked, mut answered) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let request = match read {
                    Ok(length) if length > 0 => &asked[..length],
                    _ => return,
                };
                let marked = request.windows(shared.mark.len()).any(|window| window == shared.mark.as_bytes());
                let plan = if marked { std::mem::replace(&mut *shared.plan.lock(), Plan::Pass) } else { Plan::Pass };
                match plan {
                    Plan::LoseRequest => return,
                    Plan::Hold => return shared.held.lock().push((server, request.to_vec())),
                    Plan::Pass | Plan::LoseAnswer => {
                        if server.write_all(request).await.is_err() {
                            return;
                        }
                    }
                }
                if plan == Plan::LoseAnswer {
                    let _ = server.read(&mut answered).await;
                    return;
                }
            }
            read = server.read(&mut answered) => match read {
                Ok(length) if length > 0 => {
                    if client.write_all(&answered[..length]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}
