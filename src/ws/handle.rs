//! What the rest of the node holds of a socket: who it is, its queue, when it was last heard of.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::outbound::{Bounds, Class, Item, Outbound, Pushed};
use crate::clock::Timestamp;
use crate::ids::{DeviceId, NodeId, SessionId, UserId};
use crate::presence::Entry;
use crate::telemetry::Metrics;

/// Commands of one session that wait for their answer; beyond, its socket is not read.
const MAX_IN_FLIGHT: usize = 128;
/// Who opens a socket, with what.
#[derive(Clone, Debug)]
pub struct Opening {
    pub user_id: UserId,
    pub device_id: Option<DeviceId>,
    pub platform: Option<Box<str>>,
    pub app_version: Option<Box<str>>,
    /// Did not offer `tidings.v1.json`.
    pub classic: bool,
}

pub struct Session {
    pub id: SessionId,
    pub user_id: UserId,
    pub device_id: DeviceId,
    pub classic: bool,
    pub queue: Outbound,
    /// Room for commands whose answer is still to come.
    pub in_flight: Semaphore,
    platform: Option<Box<str>>,
    app_version: Option<Box<str>>,
    since: Timestamp,
    pub opened: Instant,
    /// Milliseconds from `opened` until something was last read.
    heard: AtomicU64,
    /// A ping is under way.
    asked: AtomicBool,
    metrics: Metrics,
}

impl Session {
    pub fn new(opening: Opening, bounds: Bounds, metrics: Metrics) -> Self {
        let id = SessionId::random();
        let device_id = opening
            .device_id
            .unwrap_or_else(|| id.to_string().parse().expect("a UUID's text is a valid device id"));
        Self {
            id,
            user_id: opening.user_id,
            device_id,
            classic: opening.classic,
            queue: Outbound::new(bounds, opening.classic),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            platform: opening.platform,
            app_version: opening.app_version,
            since: Timestamp::now(),
            opened: Instant::now(),
            heard: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            metrics,
        }
    }

    /// Something was read from the client.
    pub fn hear(&self) {
        self.heard.store(self.opened.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.asked.store(false, Ordering::Relaxed);
    }

    /// How long nothing was read.
    pub fn silence(&self) -> Duration {
        let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
        self.opened.elapsed().saturating_sub(heard)
    }

    /// True once per silence.
    pub fn ask_for_life(&self) -> bool {
        !self.asked.swap(true, Ordering::Relaxed)
    }

    /// Queues an answer; a session without room for it ends as a slow consumer.
    pub fn answer(&self, bytes: Bytes) {
        self.push(Item::text(bytes, Class::Answer));
    }

    /// Queues a frame, and counts what had to give way.
    pub fn push(&self, item: Item) {
        match self.queue.push(item) {
            Pushed::Queued | Pushed::Covered | Pushed::Ended => {}
            Pushed::Dropped => self.metrics.sockets.queue_dropped.increment(1),
            Pushed::Resync | Pushed::Overflow => self.metrics.sockets.slow_consumers.increment(1),
        }
    }

    /// How presence shows this session while `node` holds it.
    pub fn entry(&self, node: NodeId) -> Entry {
        Entry {
            node,
            session: self.id,
            device: self.device_id.clone(),
            platform: self.platform.clone(),
            app_version: self.app_version.clone(),
            since: self.since,
        }
    }
}
