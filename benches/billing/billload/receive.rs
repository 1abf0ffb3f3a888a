//! The receiver of orders: says when each came, by the machine's clock.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
/// A longer head is no order.
const HEAD_BYTES_MAX: usize = 8 << 10;
const CONNECTIONS_MAX: usize = 1024;
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

struct Client {
    stream: TcpStream,
    incoming: Vec<u8>,
}

/// Until it is ended by a signal.
pub fn run(address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    listener.set_nonblocking(true)?;
    let mut clients: Vec<Client> = Vec::new();
    let mut out = std::io::stdout().lock();
    loop {
        let mut sockets = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        sockets.extend(clients.iter().map(|client| PollFd::new(client.stream.as_fd(), PollFlags::POLLIN)));
        poll(&mut sockets, PollTimeout::NONE).context("cannot wait for orders")?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_micros();
        let ready: Vec<bool> = sockets.iter().map(|socket| socket.any().unwrap_or(true)).collect();
        let mut arrived = Vec::new();
        let mut place = 0;
        clients.retain_mut(|client| {
            place += 1;
            !ready[place] || client.read(&mut arrived)
        });
        for id in arrived {
            writeln!(out, "{id} {now}")?;
        }
        out.flush()?;
        if ready[0] && clients.len() < CONNECTIONS_MAX {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(Duration::from_millis(1)))?;
                    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
                    clients.push(Client { stream, incoming: Vec::new() });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("cannot accept a connection"),
            }
        }
    }
}

impl Client {
    /// Answers the orders that are there. False when the connection is over.
    fn read(&mut self, arrived: &mut Vec<u64>) -> bool {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(1..) if self.incoming.len() > HEAD_BYTES_MAX => return false,
            Ok(read @ 1..) => self.incoming.extend_from_slice(&bytes[..read]),
            Ok(0) => return false,
            Err(error) => return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
        while let Some(end) = self.incoming.windows(4).position(|window| window == b"\r\n\r\n") {
            arrived.extend(user_of(&self.incoming[..end]));
            self.incoming.drain(..end + 4);
            if self.stream.write_all(ANSWER).is_err() {
                return false;
            }
        }
        true
    }
}

/// The digits behind `userID=`.
fn user_of(head: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"userID=";
    let at = head.windows(NAME.len()).position(|window| window == NAME)?;
    let digits = head[at + NAME.len()..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0_u64, |id, digit| id.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'))))
}
