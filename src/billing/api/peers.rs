//! Other nodes, asked with the nodes' token: on behalf of a client for what they own, always as a batch, and in the name of
//! this node's shards.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method, Request, StatusCode, Uri};
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::desk::lost;
use super::error::{Kind, Problem, ProblemBody};
use super::gate::{PEER, Token};
use super::history::{HistoryBody, Page};
use super::json::{ItemBody, Order, PageBody, ResultsBody};
use super::routes::operators::{BucketsBody, HandOverBody};
use super::strangers::Strangers;
use crate::billing::domain::{Account, Refusal};
use crate::billing::shard::{Failure, Neighbours};

/// Nodes are near each other; one that is gone must not hold up who could be told to come again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longer than the other node waits for its journal, shorter than the front waits for this node: whoever knows, tells.
const TIMEOUT: Duration = Duration::from_secs(12);
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const IDLE_CONNECTIONS_MAX: usize = 64;
/// More addresses than any cluster has; where they change all the time, an outage is told again.
const SILENT_MAX: usize = 256;
/// Of the answer to the largest batch.
const ANSWER_BYTES_MAX: usize = 4 << 20;
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

#[derive(Clone)]
pub struct Peers {
    client: Client<HttpConnector, Full<Bytes>>,
    /// As the field has it. None: this node forwards nothing.
    token: Option<HeaderValue>,
    strangers: Strangers,
    /// Nodes that did not answer when they were asked last.
    silent: Arc<Mutex<BTreeSet<String>>>,
}

#[derive(Serialize)]
struct BatchBody<'a> {
    operations: &'a [ItemBody],
}

/// What may become of a request to a peer.
enum Asked {
    Answer(StatusCode, Bytes),
    /// It surely did not get there.
    Unsent,
    Lost,
}

impl Peers {
    pub fn new(token: Option<&Token>) -> Peers {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        // A token is visible ASCII, which a field can hold.
        let token = token.and_then(|token| HeaderValue::from_str(token.reveal()).ok());
        let sensitive = token.map(|mut token| {
            token.set_sensitive(true);
            token
        });
        Peers { client, token: sensitive, strangers: Strangers::none(), silent: Arc::default() }
    }

    /// Asks none of these as long as they are strangers.
    pub fn wary_of(self, strangers: Strangers) -> Peers {
        Peers { strangers, ..self }
    }

    /// As many results as orders, in their order.
    pub async fn batch(&self, advertise: &str, orders: &[Order]) -> Vec<Result<Account, Problem>> {
        let items: Vec<ItemBody> = orders.iter().map(ItemBody::of).collect();
        // Texts and numbers always serialise.
        let body = serde_json::to_vec(&BatchBody { operations: &items }).unwrap_or_default();
        let asked = self.ask(advertise, Method::POST, "/billing/v1/batch", (JSON, body.into())).await;
        let results = match asked {
            Asked::Answer(StatusCode::OK, body) => read::<ResultsBody>(&body).map(|body| body.results),
            Asked::Answer(status, body) => {
                let problem = refused(advertise, status, &body);
                return orders
                    .iter()
                    .map(|order| Err(problem.clone().unwrap_or_else(|| lost(order))))
                    .collect();
            }
            Asked::Unsent => return orders.iter().map(|_| Err(Kind::Busy.into())).collect(),
            Asked::Lost => None,
        };
        let mut results = results.unwrap_or_default().into_iter();
        let told = |order| {
            results.next().and_then(|result| result.into_result()).unwrap_or_else(|| Err(lost(order)))
        };
        orders.iter().map(told).collect()
    }

    /// The accounts of these shards, which that node has.
    pub async fn list(
        &self,
        advertise: &str,
        shards: &[u32],
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Account>, Problem> {
        let shards = shards.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
        let path = format!("/billing/v1/accounts?limit={limit}&shards={shards}{after}");
        match self.ask(advertise, Method::GET, &path, (JSON, Bytes::new())).await {
            Asked::Answer(StatusCode::OK, body) => {
                let page = read::<PageBody>(&body).ok_or(Kind::Busy)?;
                Ok(page.accounts.into_iter().map(Account::from).collect())
            }
            Asked::Answer(status, body) => {
                Err(refused(advertise, status, &body).unwrap_or_else(|| Kind::Busy.into()))
            }
            Asked::Unsent | Asked::Lost => Err(Kind::Busy.into()),
        }
    }

    pub async fn history(&self, advertise: &str, account: u64, page: &Page) -> Result<HistoryBody, Problem> {
        let path = format!("/billing/v1/accounts/{account}/history?{}", page.query());
        match self.ask(advertise, Method::GET, &path, (JSON, Bytes::new())).await {
            Asked::Answer(StatusCode::OK, body) => Ok(read::<HistoryBody>(&body).ok_or(Kind::Busy)?),
            Asked::Answer(status, body) => {
                let told = read::<ProblemBody>(&body).and_then(Problem::from_body);
                let told = told.filter(|told| matches!(told.kind, Kind::UnknownAccount | Kind::Loop));
                Err(told.or_else(|| refused(advertise, status, &body)).unwrap_or_else(|| Kind::Busy.into()))
            }
            Asked::Unsent | Asked::Lost => Err(Kind::Busy.into()),
        }
    }

    /// Buckets of which that node has the shards.
    pub async fn move_buckets(
        &self,
        advertise: &str,
        buckets: Vec<u16>,
        to_shard: u32,
    ) -> Result<(), Problem> {
        self.tell(advertise, "/billing/v1/cluster/move", &BucketsBody { buckets, to_shard }).await
    }

    /// A shard that the node has goes to another one, by hand.
    pub async fn hand_over(&self, advertise: &str, shard: u32, to: &str) -> Result<(), Problem> {
        let body = HandOverBody { shard, to: to.to_owned() };
        self.tell(advertise, "/billing/v1/cluster/hand_over", &body).await
    }

    async fn tell(&self, advertise: &str, path: &str, body: &impl Serialize) -> Result<(), Problem> {
        let body = serde_json::to_vec(body).unwrap_or_default();
        self.done(advertise, path, (JSON, body.into())).await
    }

    async fn done(&self, advertise: &str, path: &str, content: (HeaderValue, Bytes)) -> Result<(), Problem> {
        match self.ask(advertise, Method::POST, path, content).await {
            Asked::Answer(StatusCode::OK, _) => Ok(()),
            Asked::Answer(status, body) => {
                let told = read::<ProblemBody>(&body).and_then(Problem::from_body);
                let told = told.filter(|told| !matches!(told.kind, Kind::NotAPeer | Kind::Unauthorized));
                Err(told.or_else(|| refused(advertise, status, &body)).unwrap_or(Kind::Unknown.into()))
            }
            Asked::Unsent => Err(Kind::Busy.into()),
            Asked::Lost => Err(Kind::Unknown.into()),
        }
    }

    async fn ask(
        &self,
        advertise: &str,
        method: Method,
        path: &str,
        (media, body): (HeaderValue, Bytes),
    ) -> Asked {
        let Some(token) = &self.token else {
            tracing::error!(
                peer = advertise,
                "another node has to be asked, and without node.peer_token_file it cannot be"
            );
            return Asked::Unsent;
        };
        if !self.strangers.is_known(advertise).await {
            let why = "it stands in a lease that has not moved yet; is this journal a copy?";
            self.failed(advertise, &why);
            return Asked::Unsent;
        }
        let uri = Uri::builder().scheme("http").authority(advertise).path_and_query(path).build();
        let request = uri.and_then(|uri| {
            let request = Request::builder().method(method).uri(uri);
            request.header(CONTENT_TYPE, media).header(PEER, token).body(Full::new(body))
        });
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(peer = advertise, %error, "another node's address cannot be used; mend its node.advertise");
                return Asked::Unsent;
            }
        };
        let exchange = async {
            let answer =
                self.client.request(request).await.map_err(|error| (error.is_connect(), Box::from(error)))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            body.map(|body| (status, body.to_bytes())).map_err(|error| (false, error))
        };
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(Ok((status, body))) => {
                if self.silent.lock().remove(advertise) {
                    tracing::info!(peer = advertise, "another node answers again");
                }
                Asked::Answer(status, body)
            }
            Ok(Err((unsent, error))) => {
                self.failed(advertise, &error);
                if unsent { Asked::Unsent } else { Asked::Lost }
            }
            Err(late) => {
                self.failed(advertise, &late);
                Asked::Lost
            }
        }
    }

    /// Told once for each outage.
    fn failed(&self, advertise: &str, error: &dyn std::fmt::Display) {
        let mut silent = self.silent.lock();
        if silent.len() >= SILENT_MAX {
            silent.clear();
        }
        if silent.insert(advertise.to_owned()) {
            tracing::warn!(peer = advertise, %error, "another node could not be asked, or did not answer");
        } else {
            tracing::debug!(peer = advertise, %error, "another node could not be asked yet");
        }
    }
}

impl Neighbours for Peers {
    fn adopt(
        &self,
        advertise: &str,
        shard: u32,
        generation: u64,
        image: Bytes,
    ) -> BoxFuture<'static, Result<(), Failure>> {
        let (peers, advertise) = (self.clone(), advertise.to_owned());
        let path = format!("/billing/v1/cluster/adopt?shard={shard}&generation={generation}");
        Box::pin(async move { peers.done(&advertise, &path, (OCTETS, image)).await.map_err(failure) })
    }

    fn give(&self, advertise: &str, shard: u32, to: &str) -> BoxFuture<'static, Result<(), Failure>> {
        let (peers, advertise) = (self.clone(), advertise.to_owned());
        let body = HandOverBody { shard, to: to.to_owned() };
        Box::pin(
            async move { peers.tell(&advertise, "/billing/v1/cluster/give", &body).await.map_err(failure) },
        )
    }
}

/// What another node's answer means to a shard, which asks again whatever it was.
fn failure(problem: Problem) -> Failure {
    match problem {
        Problem { kind: Kind::Busy | Kind::Loop, retry_after, .. } => {
            Failure::Busy { retry_after: retry_after.unwrap_or_default() }
        }
        Problem { kind: Kind::Malformed | Kind::BodyTooLarge, .. } => Refusal::BadBucket.into(),
        _ => Failure::Unknown,
    }
}

/// The whole request was refused; None if nobody knows what became of it.
fn refused(advertise: &str, status: StatusCode, body: &[u8]) -> Option<Problem> {
    let problem = read::<ProblemBody>(body).and_then(Problem::from_body);
    match problem {
        Some(problem) if problem.kind == Kind::Busy => Some(problem),
        Some(problem) if matches!(problem.kind, Kind::NotAPeer | Kind::Unauthorized) => {
            tracing::error!(
                peer = advertise,
                "another node does not know this one; node.peer_token_file must be the same"
            );
            Some(Kind::Busy.into())
        }
        _ => {
            tracing::warn!(peer = advertise, %status, "another node answered what was not expected");
            None
        }
    }
}

fn read<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Option<T> {
    serde_json::from_slice(body).ok()
}
