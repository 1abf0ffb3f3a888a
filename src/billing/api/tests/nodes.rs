//! Two whole nodes on one journal, which know each other over real sockets only.

use std::path::Path;
use std::sync::Arc;

use prometheus::Registry;

use super::*;
use crate::billing::domain::bucket_of;
use crate::billing::journal::{self, Engine, Journal, Node, Timeouts};
use crate::billing::notifier;
use crate::billing::shard::{Config, Router, WallClock};

const SHARDS: u32 = 3;
const ACCOUNTS: u64 = 12;

struct Both {
    addresses: [SocketAddr; 2],
    client: reqwest::Client,
}

async fn journal(path: &Path) -> Journal {
    let engine = Engine::Embedded { path: path.to_owned() };
    Journal::open(&journal::Config { engine, shards: SHARDS, timeouts: Timeouts::default() }).await.unwrap()
}

/// Serves until the test ends.
async fn node(name: &str, journal: Journal) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let node = Node { name: name.to_owned(), advertise: address.to_string() };
    let config = Config {
        poll: Duration::from_millis(20),
        spread: Duration::from_millis(100),
        ..Config::new(node, SHARDS)
    };
    let (peer, closing) = (Token::new(PEER), CancellationToken::new());
    let peers = Peers::new(peer.as_ref());
    let (wall, none) = (WallClock::system(), notifier::Config::default());
    let neighbours = Some(Arc::new(peers.clone()) as _);
    let registry = Registry::new();
    let router = Router::start(config, journal, wall, &registry, none, neighbours, closing.clone());
    let desk = Desk::new(router.await.unwrap(), peers);
    let gate = Gate { client: None, peer };
    let api = Api::new(desk, gate, Limits::default(), Drain::new(), registry).unwrap();
    tokio::spawn(api.serve(vec![listener], closing));
    address
}

impl Both {
    /// Asked of this node or the other, until it is done: what is told as not done, or not known, is asked again.
    async fn insist(&self, at: usize, path: &str, key: &str, body: &Value) -> Value {
        let asked = async {
            for at in at.. {
                let url = format!("http://{}/billing/v1/{path}", self.addresses[at % 2]);
                let request = self.client.post(url).header("idempotency-key", key).json(body);
                let answer = request.send().await.unwrap();
                let (status, text) = (answer.status().as_u16(), answer.text().await.unwrap());
                match status {
                    200 | 201 => return serde_json::from_str(&text).unwrap(),
                    503 | 504 | 508 => tokio::time::sleep(Duration::from_millis(5)).await,
                    _ => panic!("{path}: {status} {text}"),
                }
            }
            unreachable!("there is always one more")
        };
        tokio::time::timeout(Duration::from_secs(60), asked).await.expect("it was never done")
    }

    async fn get(&self, at: usize, path: &str) -> Value {
        let url = format!("http://{}/billing/v1/{path}", self.addresses[at]);
        self.client.get(url).send().await.unwrap().json().await.unwrap()
    }

    async fn owners(&self) -> Vec<Value> {
        let cluster = self.get(0, "cluster").await;
        cluster["shards"].as_array().unwrap().iter().map(|shard| shard["node"].clone()).collect()
    }

    /// Until this many shards are the node's, as the journal has it.
    async fn has(&self, node: &str, shards: usize) {
        let had = async {
            loop {
                let owners = self.owners().await;
                let own = owners.iter().filter(|owner| *owner == node).count();
                if own == shards && owners.iter().all(|owner| !owner.is_null()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), had).await.expect("shards lie otherwise");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_spread_shards_and_move_buckets_under_load() {
    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path()).await;
    let first = node("a", journal.clone()).await;
    let client = reqwest::Client::new();
    Both { addresses: [first, first], client: client.clone() }.has("a", 3).await;
    let both = Arc::new(Both { addresses: [first, node("b", journal).await], client });
    both.has("b", 1).await;
    let buckets: Vec<u16> = (0..ACCOUNTS).map(bucket_of).collect();
    let mut clients = tokio::task::JoinSet::new();
    for id in 0..ACCOUNTS {
        let both = Arc::clone(&both);
        clients.spawn(async move {
            both.insist(
                id as usize,
                "accounts",
                "create",
                &json!({ "id": id, "balance": 100, "velocity": 0 }),
            )
            .await;
            for n in 1..=40 {
                let path = format!("accounts/{id}/add_money");
                let account = both.insist(n, &path, &format!("{n}"), &json!({ "amount": 1 })).await;
                assert_eq!(account["balance"], 100 + n, "account {id}");
            }
        });
    }
    let mut moves = 0;
    while !clients.is_empty() {
        for to in (0..SHARDS).cycle().skip(moves).take(2) {
            let body = json!({ "buckets": buckets, "to_shard": to });
            let moved = both.insist(moves, "cluster/move", "k", &body).await;
            assert_eq!(moved["to_shard"], to);
        }
        moves += 1;
        while let Some(ended) = clients.try_join_next() {
            ended.unwrap();
        }
    }
    // By hand, whoever is asked; and all is there, whoever is asked.
    for shard in 0..SHARDS {
        both.insist(shard as usize, "cluster/hand_over", "k", &json!({ "shard": shard, "to": "b" })).await;
    }
    both.has("b", 3).await;
    both.insist(0, "cluster/move", "k", &json!({ "buckets": buckets, "to_shard": 2 })).await;
    for at in 0..2 {
        for id in 0..ACCOUNTS {
            let account =
                both.insist(at, &format!("accounts/{id}/add_money"), "40", &json!({ "amount": 1 })).await;
            assert_eq!(account["balance"], 140, "account {id}");
        }
    }
    println!("{} buckets were moved {} times under load", buckets.len(), 2 * moves);
}

/// Whoever is asked while shards change hands tells of all accounts, or that it cannot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_leaves_no_shard_out_while_shards_change_hands() {
    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path()).await;
    let first = node("a", journal.clone()).await;
    let client = reqwest::Client::new();
    Both { addresses: [first, first], client: client.clone() }.has("a", 3).await;
    let both = Arc::new(Both { addresses: [first, node("b", journal).await], client });
    both.has("b", 1).await;
    for id in 0..ACCOUNTS {
        both.insist(0, "accounts", "create", &json!({ "id": id, "balance": 1, "velocity": 0 })).await;
    }
    // The last goes to b and the first to a, so that neither is unknown; the other one to and fro.
    for (shard, to) in [(2, "b"), (0, "a")] {
        both.insist(0, "cluster/hand_over", "k", &json!({ "shard": shard, "to": to })).await;
    }
    let (done, mut whole) = (CancellationToken::new(), 0);
    let handing = tokio::spawn({
        let (both, done) = (Arc::clone(&both), done.clone());
        async move {
            for to in ["a", "b"].into_iter().cycle().take_while(|_| !done.is_cancelled()) {
                both.insist(0, "cluster/hand_over", "k", &json!({ "shard": 1, "to": to })).await;
            }
        }
    });
    let listed = async {
        while whole < 200 {
            for address in both.addresses {
                let url = format!("http://{address}/billing/v1/accounts");
                let answer = both.client.get(url).send().await.unwrap();
                match answer.status().as_u16() {
                    200 => {
                        let page: Value = answer.json().await.unwrap();
                        assert_eq!(page["accounts"].as_array().unwrap().len() as u64, ACCOUNTS, "{page}");
                        whole += 1;
                    }
                    status => assert_eq!(status, 503),
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(120), listed).await.expect("nothing is told any more");
    done.cancel();
    handing.await.unwrap();
}
