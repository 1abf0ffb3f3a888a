//! Other nodes, asked on behalf of a client for what they own: always as a batch, with the nodes' token.

use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method, Request, StatusCode, Uri};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::{Deserialize, Serialize};

use super::desk::lost;
use super::error::{Kind, Problem, ProblemBody};
use super::gate::{PEER, Token};
use super::json::{ItemBody, Order, PageBody, ResultsBody};
use crate::billing::domain::Account;

/// Nodes are near each other; one that is gone must not hold up who could be told to come again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longer than the other node waits for its journal, shorter than the front waits for this node: whoever knows, tells.
const TIMEOUT: Duration = Duration::from_secs(12);
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const IDLE_CONNECTIONS_MAX: usize = 64;
/// Of the answer to the largest batch.
const ANSWER_BYTES_MAX: usize = 4 << 20;

#[derive(Clone)]
pub struct Peers {
    client: Client<HttpConnector, Full<Bytes>>,
    /// As the field has it. None: this node forwards nothing.
    token: Option<HeaderValue>,
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
        Peers { client, token: sensitive }
    }

    /// As many results as orders, in their order.
    pub async fn batch(&self, advertise: &str, orders: &[Order]) -> Vec<Result<Account, Problem>> {
        let items: Vec<ItemBody> = orders.iter().map(ItemBody::of).collect();
        // Texts and numbers always serialise.
        let body = serde_json::to_vec(&BatchBody { operations: &items }).unwrap_or_default();
        let asked = self.ask(advertise, Method::POST, "/billing/v1/batch", body.into()).await;
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

    pub async fn list(
        &self,
        advertise: &str,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Account>, Problem> {
        let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
        let path = format!("/billing/v1/accounts?limit={limit}{after}");
        match self.ask(advertise, Method::GET, &path, Bytes::new()).await {
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

    async fn ask(&self, advertise: &str, method: Method, path: &str, body: Bytes) -> Asked {
        let Some(token) = &self.token else {
            tracing::error!(
                peer = advertise,
                "another node owns the account, and without node.peer_token_file it cannot be asked"
            );
            return Asked::Unsent;
        };
        let uri = Uri::builder().scheme("http").authority(advertise).path_and_query(path).build();
        let request = uri.and_then(|uri| {
            let json = HeaderValue::from_static("application/json");
            let request = Request::builder().method(method).uri(uri);
            request.header(CONTENT_TYPE, json).header(PEER, token).body(Full::new(body))
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
            Ok(Ok((status, body))) => Asked::Answer(status, body),
            Ok(Err((unsent, error))) => {
                tracing::warn!(peer = advertise, %error, unsent, "another node could not be asked");
                if unsent { Asked::Unsent } else { Asked::Lost }
            }
            Err(_) => {
                tracing::warn!(peer = advertise, timeout = ?TIMEOUT, "another node did not answer");
                Asked::Lost
            }
        }
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
