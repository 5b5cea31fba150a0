//! The bus of several nodes: a Redis channel per user, `<prefix>:{pNN}:user:<id>`.
//!
//! Two connections per node and master, however many sockets: one only listens (`subscriber`), on the
//! other publishes are pipelined (`link`). Each has a task that makes it again when it is lost; `fleet`
//! has them follow the masters.

mod check;
mod connection;
mod fleet;
mod gauges;
mod link;
mod subscriber;
mod subscriptions;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use redis::Pipeline;
use tokio::time::timeout;

pub use self::check::check;
use self::fleet::Fleet;
use self::gauges::Gauges;
use self::link::Published;
use self::subscriber::channel;
use self::subscriptions::{Groups, Held};
use super::{BusError, Inbox, Receivers};
use crate::config::Addr;
use crate::ids::UserId;
use crate::shards::{Shards, ShardsError, of_connect};
use crate::shutdown::Stage;

/// For the confirmation of a subscription, also while the connection is being made again.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Of one pipeline: what follows it on the connection waits for it.
const CHUNK_ITEMS: usize = 512;
const CHUNK_BYTES: usize = 512 * 1024;
/// How often what a master refuses, for its slot has moved, is published where it went.
const ATTEMPTS: usize = 4;

#[derive(Clone)]
pub struct RedisBus(Arc<Inner>);

struct Inner {
    fleet: Arc<Fleet>,
    groups: Arc<Groups>,
    gauges: Arc<Gauges>,
}

impl RedisBus {
    pub(super) async fn connect(
        shards: &Shards,
        inbox: Arc<dyn Inbox>,
        stage: &Stage,
    ) -> Result<Self, BusError> {
        let groups = Arc::new(Groups::new(shards.is_cluster()));
        let gauges = Arc::new(Gauges::default());
        let fleet = Arc::new(Fleet {
            shards: shards.clone(),
            inbox,
            groups: groups.clone(),
            gauges: gauges.clone(),
            stage: stage.clone(),
            links: Default::default(),
        });
        let sailing = fleet.begin().await.map_err(|error| match of_connect(error) {
            ShardsError::Unavailable(text) => BusError::Unavailable(text),
            ShardsError::Rejected(text) => BusError::Rejected(text),
        })?;
        stage.spawn("fleet", fleet.clone().keep(sailing));
        Ok(Self(Arc::new(Inner { fleet, groups, gauges })))
    }

    pub(super) async fn subscribe(&self, user: UserId) -> Result<(), BusError> {
        let stopped = || BusError::Unavailable("it was stopped".into());
        let held = self.0.groups.hold(user).ok_or_else(stopped)?;
        let hold = Hold { groups: &self.0.groups, user };
        if let Held::Waiting(confirmed) = held {
            match timeout(SUBSCRIBE_TIMEOUT, confirmed).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(stopped()),
                Err(_) => {
                    let text = format!("no confirmation within {SUBSCRIBE_TIMEOUT:?}");
                    return Err(BusError::Unavailable(text));
                }
            }
        }
        std::mem::forget(hold);
        Ok(())
    }

    pub(super) fn unsubscribe(&self, user: UserId) {
        self.0.groups.release(user);
    }

    pub(super) async fn publish(&self, batch: &[(UserId, Bytes)]) -> Vec<Receivers> {
        let mut receivers = Vec::with_capacity(batch.len());
        let layout = self.0.fleet.shards.layout();
        for chunk in chunks(batch) {
            if layout.is_cluster() {
                receivers.extend(self.publish_to_slots(chunk).await);
                continue;
            }
            let link = layout.masters().first().and_then(|addr| self.0.fleet.link(addr));
            let replies = match link {
                Some(link) => {
                    let mut pipeline = Pipeline::with_capacity(chunk.len());
                    for (user, bytes) in chunk {
                        self.add(&mut pipeline, &self.channel(*user), bytes);
                    }
                    link.publish(pipeline).await
                }
                None => None,
            };
            // The rest would only wait as long once more.
            let Some(replies) = replies else { break };
            receivers.extend(replies.into_iter().map(Published::receivers));
        }
        receivers.resize(batch.len(), Receivers::Unknown);
        receivers
    }

    fn add(&self, pipeline: &mut Pipeline, channel: &str, bytes: &Bytes) {
        let command = if self.0.fleet.shards.is_cluster() { "SPUBLISH" } else { "PUBLISH" };
        pipeline.cmd(command).arg(channel).arg(bytes.as_ref());
    }

    fn channel(&self, user: UserId) -> String {
        channel(self.0.fleet.shards.config(), user)
    }

    /// Each master's part in one pipeline, side by side. What was refused, and so reached nobody, goes
    /// where its slot went; what follows for that user was refused, too, and stays behind it.
    async fn publish_to_slots(&self, chunk: &[(UserId, Bytes)]) -> Vec<Receivers> {
        let fleet = &self.0.fleet;
        let mut receivers = vec![Receivers::Unknown; chunk.len()];
        let mut left: Vec<usize> = (0..chunk.len()).collect();
        for attempt in 1..=ATTEMPTS {
            let layout = fleet.shards.layout();
            let mut parts: HashMap<&Addr, (Vec<usize>, Pipeline)> = HashMap::new();
            let mut moved = Vec::new();
            for at in left {
                let (user, bytes) = &chunk[at];
                let channel = self.channel(*user);
                let Some(addr) = layout.owner(&channel) else {
                    moved.push(at);
                    continue;
                };
                let (places, pipeline) = parts.entry(addr).or_default();
                places.push(at);
                self.add(pipeline, &channel, bytes);
            }
            let publishing = parts.into_iter().map(|(addr, (places, pipeline))| {
                let link = fleet.link(addr);
                async move {
                    let published = match link {
                        Some(link) => link.publish(pipeline).await,
                        // The fleet is about to launch it.
                        None => Some(vec![Published::Moved; places.len()]),
                    };
                    (places, published)
                }
            });
            for (places, published) in join_all(publishing).await {
                for (at, published) in places.into_iter().zip(published.into_iter().flatten()) {
                    match published {
                        Published::Done(got) => receivers[at] = got,
                        Published::Moved => moved.push(at),
                    }
                }
            }
            if moved.is_empty() || attempt == ATTEMPTS {
                break;
            }
            moved.sort_unstable();
            left = moved;
            fleet.shards.look_again().await;
        }
        receivers
    }

    pub(super) async fn ping(&self) -> Result<(), BusError> {
        let links: Vec<_> = self.0.fleet.links().values().cloned().collect();
        join_all(links.iter().map(|link| link.ping())).await.into_iter().collect()
    }

    pub(super) fn is_whole(&self) -> bool {
        self.0.groups.are_whole()
    }

    pub(super) fn subscriptions(&self) -> usize {
        self.0.groups.held()
    }

    pub(super) fn reconnects(&self) -> u64 {
        self.0.gauges.reconnects.load(Ordering::Relaxed)
    }

    /// The slowest master's.
    pub(super) fn probe_lag(&self) -> Option<Duration> {
        self.0.fleet.links().values().filter_map(|link| link.probe_lag()).max()
    }

    pub(super) fn undecodable(&self) -> u64 {
        self.0.gauges.undecodable.load(Ordering::Relaxed)
    }
}

/// Gives a hold back, unless it is forgotten: also when the caller drops the call.
struct Hold<'a> {
    groups: &'a Groups,
    user: UserId,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.groups.release(self.user);
    }
}

/// In order, each bounded in items and bytes; at least one item.
fn chunks(mut batch: &[(UserId, Bytes)]) -> impl Iterator<Item = &[(UserId, Bytes)]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = batch.iter().take(CHUNK_ITEMS).take_while(|(_, item)| {
            let first = bytes == 0;
            bytes += item.len();
            first || bytes <= CHUNK_BYTES
        });
        let (chunk, rest) = batch.split_at(fits.count());
        batch = rest;
        (!chunk.is_empty()).then_some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_bounded_in_items_and_bytes() {
        let user = UserId(uuid::Uuid::nil());
        let lengths = |sizes: &[usize]| {
            let batch: Vec<_> = sizes.iter().map(|n| (user, Bytes::from(vec![0; *n]))).collect();
            chunks(&batch).map(<[_]>::len).collect::<Vec<_>>()
        };
        assert!(lengths(&[]).is_empty());
        assert_eq!(lengths(&[100; 1030]), [512, 512, 6]);
        assert_eq!(lengths(&[CHUNK_BYTES + 1, 1, CHUNK_BYTES, 300_000, 200_000]), [1, 1, 1, 2]);
    }
}
