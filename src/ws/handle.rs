//! What the rest of the node holds of a socket: who it is, its queue, when it was last heard of.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fastwebsockets::OpCode;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::barrier::Barrier;
use super::outbound::{Bounds, Class, Item, Outbound, Pushed};
use crate::auth::{self, Identity};
use crate::clock::Timestamp;
use crate::ids::{DeviceId, NodeId, SessionId, UserId};
use crate::presence::Entry;
use crate::protocol::code::CloseCode;
use crate::protocol::command::Ack;
use crate::protocol::event::Event;
use crate::store::types::{Proof, Run};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Stage;
use crate::write_path::proofs::Proofs;

/// Answers to commands may take this part of the queue's bounds; beyond, the socket is not read
/// until some are written. So a client that sends many at once is slowed down, not closed.
const ANSWERS_PART: u32 = 2;
/// What an answer may have on top of its command.
const ANSWER_SPARE: u32 = 1_024;

/// Who opens a socket, with what.
#[derive(Clone, Debug)]
pub struct Opening {
    pub identity: Identity,
    pub device_id: Option<DeviceId>,
    pub platform: Option<Box<str>>,
    pub app_version: Option<Box<str>>,
    /// Did not offer `tidings.v1.json`.
    pub classic: bool,
    /// Promises to acknowledge what it holds, so that nothing else proves it.
    pub acks: bool,
}

pub struct Session {
    pub id: SessionId,
    pub user_id: UserId,
    pub device_id: DeviceId,
    pub classic: bool,
    /// Only its own `ack` proves what it holds.
    pub acks: bool,
    pub queue: Outbound,
    pub barrier: Barrier,
    /// Room for answers that are still to come or to be written, in units; see [`Self::reserve`].
    in_flight: Semaphore,
    units: u32,
    unit_bytes: u32,
    platform: Option<Box<str>>,
    app_version: Option<Box<str>>,
    since: Timestamp,
    /// When the client asked for it.
    pub opened: Instant,
    /// Milliseconds from `opened` until something was last read.
    heard: AtomicU64,
    /// A ping is under way.
    asked: AtomicBool,
    /// When the token ends, in milliseconds since the Unix epoch; [`NEVER`] without one.
    expires: AtomicI64,
    /// A page of a resume is being read.
    syncing: AtomicBool,
    metrics: Metrics,
}

const NEVER: i64 = i64::MAX;

impl Session {
    pub fn new(opening: Opening, bounds: Bounds, metrics: Metrics) -> Self {
        let id = SessionId::random();
        let device_id = opening
            .device_id
            .unwrap_or_else(|| id.to_string().parse().expect("a UUID's text is a valid device id"));
        let units = (bounds.frames / ANSWERS_PART).max(1);
        Self {
            id,
            user_id: opening.identity.user_id(),
            device_id,
            classic: opening.classic,
            acks: opening.acks,
            barrier: Barrier::default(),
            queue: Outbound::new(bounds, opening.classic),
            in_flight: Semaphore::new(units as usize),
            units,
            unit_bytes: (bounds.bytes / ANSWERS_PART / units).max(1),
            platform: opening.platform,
            app_version: opening.app_version,
            since: Timestamp::now(),
            opened: Instant::now(),
            heard: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            expires: AtomicI64::new(opening.identity.expires_at().map_or(NEVER, Timestamp::millis)),
            syncing: AtomicBool::new(false),
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

    /// Whether the token that this session lives by has ended.
    pub fn is_past(&self, now: Timestamp) -> bool {
        match self.expires.load(Ordering::Relaxed) {
            NEVER => false,
            millis => auth::is_past(Timestamp::from_millis(millis), now),
        }
    }

    /// The user showed another token: the session lives until the later end, which is returned.
    pub fn extend(&self, expires_at: Timestamp) -> Timestamp {
        let before = self.expires.fetch_max(expires_at.millis(), Ordering::Relaxed);
        Timestamp::from_millis(before.max(expires_at.millis()))
    }

    /// Waits for room for the answer to a command of so many bytes, and takes it. It is given back
    /// by the writer, or by [`Self::release`] if there is no answer.
    pub async fn reserve(&self, command_bytes: usize) -> u32 {
        let units = self.units_of(command_bytes);
        let room = self.in_flight.acquire_many(units).await;
        room.expect("the semaphore is never closed").forget();
        units
    }

    fn units_of(&self, bytes: usize) -> u32 {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).saturating_add(ANSWER_SPARE);
        bytes.div_ceil(self.unit_bytes).clamp(1, self.units)
    }

    /// Gives back what an answer of so many bytes does not need of its room; returns what it keeps.
    pub fn reserve_less(&self, reserved: u32, bytes: usize) -> u32 {
        let needed = self.units_of(bytes).min(reserved);
        self.release(reserved - needed);
        needed
    }

    /// False if a page of a resume is being read already.
    pub fn begin_sync(&self) -> bool {
        !self.syncing.swap(true, Ordering::Relaxed)
    }

    pub fn end_sync(&self) {
        self.syncing.store(false, Ordering::Relaxed);
    }

    pub fn release(&self, reserved: u32) {
        self.in_flight.add_permits(reserved as usize);
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

    /// Ends it because the node stops: the client is to come back elsewhere after this time.
    pub fn send_away(&self, after: Duration) {
        if !self.classic {
            let after_ms = after.as_millis() as u64;
            self.answer(Event::Reconnect { after_ms }.encode());
        }
        self.queue.end(CloseCode::Restart);
    }

    /// Puts a ping behind these frames, which asks whether the client has them. Not if there is
    /// nothing to prove, one is under way, or the client proves by `ack`.
    pub fn ask_for_proof(&self, items: &mut VecDeque<Item>) -> bool {
        if self.acks {
            return false;
        }
        let number = self.barrier.enter(items.iter().flat_map(Item::places).copied());
        items.extend(number.map(ping));
        number.is_some()
    }

    /// A pong arrived: what it proves goes to the proofs.
    pub fn on_pong(&self, payload: &[u8], proofs: &Proofs) {
        // Others answer the heartbeat's empty ping, or none at all.
        let Ok(number) = payload.try_into().map(u32::from_be_bytes) else { return };
        let proven = self.barrier.pong(number);
        if let Some(asked_at) = proven.asked_at {
            let stage = self.metrics.stages.stage.of(Stage::WrittenProven);
            stage.record(asked_at.elapsed());
        }
        for place in proven.places {
            proofs.add(Run {
                conversation_id: place.conversation_id,
                user_id: self.user_id,
                lo: place.lo,
                hi: place.hi,
                proof: Proof::Device,
            });
        }
        if let Some(number) = proven.next {
            self.push(ping(number));
        }
    }

    /// The client holds all up to these seqs. What is above a log's head, or of no conversation of
    /// this user, the store refuses.
    pub fn on_ack(&self, ack: &Ack, proofs: &Proofs) {
        for (conversation_id, seq) in &ack.conversations {
            proofs.add(Run {
                conversation_id: *conversation_id,
                user_id: self.user_id,
                lo: 1,
                hi: *seq,
                proof: Proof::Ack,
            });
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

/// A ping whose pong proves what was written before it.
fn ping(number: u32) -> Item {
    Item::control(OpCode::Ping, Bytes::copy_from_slice(&number.to_be_bytes()))
}
