//! What operators ask of the cluster, and what nodes ask of each other in the same matters.

use std::collections::BTreeSet;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{Answer, Shared, answer, caller, collect, read, within};
use crate::billing::api::Shards;
use crate::billing::api::error::{Kind, Problem};
use crate::billing::api::gate::Caller;
use crate::billing::api::json::given;
use crate::billing::api::whole::{Whole, given_whole, of_text, whole};
use crate::billing::domain::{Assignment, BUCKETS};

/// One bucket, or several.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::billing::api) struct MoveBody {
    #[serde(default, deserialize_with = "given_whole")]
    bucket: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    buckets: Option<Vec<Whole<u32>>>,
    #[serde(deserialize_with = "whole")]
    to_shard: u32,
}

/// To another node, or what one told.
#[derive(Serialize, Deserialize)]
pub(in crate::billing::api) struct BucketsBody {
    pub buckets: Vec<u16>,
    pub to_shard: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::billing::api) struct HandOverBody {
    #[serde(deserialize_with = "whole")]
    pub shard: u32,
    pub to: String,
}

#[derive(Serialize)]
struct AdoptedBody {
    shard: u32,
    generation: u64,
}

impl MoveBody {
    /// Each once, ascending.
    pub fn buckets(self) -> Result<(Vec<u16>, u32), Problem> {
        let MoveBody { bucket, buckets, to_shard } = self;
        let buckets = match (bucket, buckets) {
            (Some(bucket), None) => vec![Whole(bucket)],
            (None, Some(buckets)) => buckets,
            _ => return Err(Problem::malformed("a move takes to_shard, and either bucket or buckets")),
        };
        if buckets.is_empty() || buckets.len() > usize::from(BUCKETS) {
            return Err(Problem::malformed(format!("a move is of 1 to {BUCKETS} buckets")));
        }
        let known = |Whole(bucket): Whole<u32>| {
            let known = u16::try_from(bucket).ok().filter(|bucket| *bucket < BUCKETS);
            let last = BUCKETS - 1;
            known.ok_or_else(|| {
                Problem::malformed(format!("there is no bucket {bucket}, they are 0 to {last}"))
            })
        };
        let once = buckets.into_iter().map(known).collect::<Result<BTreeSet<u16>, Problem>>()?;
        Ok((once.into_iter().collect(), to_shard))
    }
}

impl HandOverBody {
    pub fn checked(self) -> Result<HandOverBody, Problem> {
        let long = !(1..=Assignment::NODE_BYTES_MAX).contains(&self.to.len());
        if long || !self.to.bytes().all(|byte| byte.is_ascii_graphic()) {
            let most = Assignment::NODE_BYTES_MAX;
            return Err(Problem::malformed(format!("a node's name is 1 to {most} visible ASCII characters")));
        }
        Ok(self)
    }
}

pub(super) async fn move_buckets<S: Shards>(State(api): Shared<S>, request: Request) -> Answer {
    let caller = caller(&request);
    let body: MoveBody = read(&api, request).await?;
    let (buckets, to_shard) = body.buckets()?;
    within(&api, api.desk.move_buckets(caller, &buckets, to_shard), Kind::Unknown.into()).await??;
    Ok(answer(StatusCode::OK, &BucketsBody { buckets, to_shard }))
}

pub(super) async fn hand_over<S: Shards>(State(api): Shared<S>, request: Request) -> Answer {
    let caller = caller(&request);
    let body: HandOverBody = read(&api, request).await?;
    let body = body.checked()?;
    within(&api, api.desk.hand_over(caller, body.shard, &body.to), Kind::Unknown.into()).await??;
    Ok(answer(StatusCode::OK, &body))
}

/// Another node has a bucket for a shard of this one.
pub(super) async fn adopt<S: Shards>(State(api): Shared<S>, request: Request) -> Answer {
    peers_only(&request)?;
    let (shard, generation) = way(request.uri().query().unwrap_or_default())?;
    // Before it is read: images are large.
    let _place = api.desk.place_for_image()?;
    let image = collect(&api, request, api.limits.image_bytes).await?;
    within(&api, api.desk.adopt(shard, generation, image), Kind::Unknown.into()).await??;
    Ok(answer(StatusCode::OK, &AdoptedBody { shard, generation }))
}

/// Another node has fewer shards than this one, and asks for one.
pub(super) async fn give<S: Shards>(State(api): Shared<S>, request: Request) -> Answer {
    peers_only(&request)?;
    let body = read::<S, HandOverBody>(&api, request).await?.checked()?;
    within(&api, api.desk.give(body.shard, &body.to), Kind::Unknown.into()).await??;
    Ok(answer(StatusCode::OK, &body))
}

fn peers_only(request: &Request) -> Result<(), Problem> {
    if caller(request) == Caller::Node { Ok(()) } else { Err(Kind::NotAPeer.into()) }
}

/// `shard` and `generation`, each once.
fn way(query: &str) -> Result<(u32, u64), Problem> {
    let refused = || Problem::malformed("it takes shard and generation, whole numbers");
    let (mut shard, mut generation) = (None, None);
    for pair in query.split('&') {
        let twice = match pair.split_once('=').ok_or_else(refused)? {
            ("shard", value) => shard.replace(of_text(value).ok_or_else(refused)?).is_some(),
            ("generation", value) => generation.replace(of_text(value).ok_or_else(refused)?).is_some(),
            _ => true,
        };
        if twice {
            return Err(refused());
        }
    }
    shard.zip(generation).ok_or_else(refused)
}
