//! The bus of a cluster: a Redis channel per user, `<prefix>:{pNN}:user:<id>`.
//!
//! Two connections per node, however many sockets: one only listens (`subscriber`), on the other
//! publishes are pipelined (`link`). Each has a task that makes it again when it is lost.

mod check;
mod connection;
mod link;
mod subscriber;
mod subscriptions;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use redis::RedisError;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::check::check;
use self::link::Link;
use self::subscriber::{Gauges, Subscriber, channel};
use self::subscriptions::{Held, Subscriptions};
use super::{BusError, Inbox, Receivers};
use crate::config::RedisConfig;
use crate::ids::UserId;

/// For the confirmation of a subscription, also while the connection is being made again.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Of one pipeline: what follows it on the connection waits for it.
const CHUNK_ITEMS: usize = 512;
const CHUNK_BYTES: usize = 512 * 1024;

#[derive(Clone)]
pub struct RedisBus(Arc<Inner>);

struct Inner {
    config: RedisConfig,
    subscriptions: Arc<Subscriptions>,
    link: Arc<Link>,
    gauges: Arc<Gauges>,
}

impl RedisBus {
    pub(super) async fn connect(
        config: &RedisConfig,
        inbox: Arc<dyn Inbox>,
        stop: CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<Self, BusError> {
        let link = Arc::new(Link::connect(config).await.map_err(of_connect)?);
        let subscriptions = Arc::new(Subscriptions::default());
        let gauges = Arc::new(Gauges::default());
        let subscriber =
            Subscriber::new(config, inbox, subscriptions.clone(), link.clone(), gauges.clone())
                .map_err(of_connect)?;
        let live = subscriber.open().await.map_err(of_connect)?;
        tasks.spawn(subscriber.run(live, stop.clone()));
        tasks.spawn({
            let link = link.clone();
            async move { link.run(stop).await }
        });
        Ok(Self(Arc::new(Inner { config: config.clone(), subscriptions, link, gauges })))
    }

    pub(super) async fn subscribe(&self, user: UserId) -> Result<(), BusError> {
        let stopped = || BusError::Unavailable("it was stopped".into());
        let held = self.0.subscriptions.hold(user).ok_or_else(stopped)?;
        let hold = Hold { subscriptions: &self.0.subscriptions, user };
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
        self.0.subscriptions.release(user);
    }

    pub(super) async fn publish(&self, batch: &[(UserId, Bytes)]) -> Vec<Receivers> {
        let mut receivers = Vec::with_capacity(batch.len());
        for chunk in chunks(batch) {
            let items = chunk.iter().map(|(user, bytes)| (channel(&self.0.config, *user), bytes));
            match self.0.link.publish(items).await {
                Some(replies) => receivers.extend(replies),
                // The rest would only wait as long once more.
                None => break,
            }
        }
        receivers.resize(batch.len(), Receivers::Unknown);
        receivers
    }

    pub(super) async fn ping(&self) -> Result<(), BusError> {
        self.0.link.ping().await
    }

    pub(super) fn is_whole(&self) -> bool {
        self.0.gauges.whole.load(Ordering::Relaxed)
    }

    pub(super) fn subscriptions(&self) -> usize {
        self.0.subscriptions.held()
    }

    pub(super) fn reconnects(&self) -> u64 {
        self.0.gauges.reconnects.load(Ordering::Relaxed) + self.0.link.reconnects()
    }

    pub(super) fn probe_lag(&self) -> Option<Duration> {
        let micros = self.0.gauges.probe_lag.load(Ordering::Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros))
    }

    pub(super) fn undecodable(&self) -> u64 {
        self.0.gauges.undecodable.load(Ordering::Relaxed)
    }
}

/// Gives a hold back, unless it is forgotten: also when the caller drops the call.
struct Hold<'a> {
    subscriptions: &'a Subscriptions,
    user: UserId,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.subscriptions.release(self.user);
    }
}

/// The error's text names no address and no password.
fn of_connect(error: RedisError) -> BusError {
    match error.kind() {
        redis::ErrorKind::InvalidClientConfig | redis::ErrorKind::AuthenticationFailed => {
            BusError::Rejected(error.to_string())
        }
        _ => BusError::Unavailable(error.to_string()),
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
