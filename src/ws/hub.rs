//! The sockets of this node: user -> sessions, sharded.
//!
//! A session is here from before its bus subscription until it leaves. `deliver` is called by the
//! bus, in its own task: it never waits, and locks are held only to look up and to queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::bus::{Classic, Envelope, Inbox, Order, Partitions};
use crate::ids::{DeviceId, SessionId, UserId};
use crate::protocol::code::CloseCode;
use crate::protocol::event::Event;
use crate::sabotage::{self, Mutation};
use crate::telemetry::Metrics;

use super::handle::Session;
use super::outbound::{Class, Item, Place};
use super::watch::Registry;

/// Enough that two cores seldom meet, few enough to walk at each tick of the heartbeat.
const SHARDS: usize = 64;
/// Over which the sockets of a node are told of a gap.
const GAP_SPREAD: Duration = Duration::from_secs(3);

type Shard = HashMap<UserId, Vec<Arc<Session>>>;

pub struct Hub {
    shards: Vec<Mutex<Shard>>,
    pub watched: Arc<Registry>,
    /// Set by the bus when events may have been lost: for whom.
    gap: watch::Sender<Partitions>,
    metrics: Metrics,
}

impl Hub {
    pub fn new(metrics: Metrics) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, watched: Arc::default(), gap: watch::Sender::new(Partitions::NONE), metrics }
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Shard> {
        // Nothing in here panics half-way through a change.
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, user: UserId) -> MutexGuard<'_, Shard> {
        self.lock((user.hash() >> 32) as usize % SHARDS)
    }

    /// Adds the session and takes out an older one of the same device, which is to be closed.
    pub fn insert(&self, session: Arc<Session>) -> Option<Arc<Session>> {
        let mut shard = self.of(session.user_id);
        let sessions = shard.entry(session.user_id).or_insert_with(|| Vec::with_capacity(1));
        let older = sessions.iter().position(|other| other.device_id == session.device_id);
        let older = older.map(|at| sessions.swap_remove(at));
        sessions.push(session);
        older
    }

    /// Compares the session's own id: a session that was replaced removes nothing.
    pub fn remove(&self, session: &Session) {
        let mut shard = self.of(session.user_id);
        if let Some(sessions) = shard.get_mut(&session.user_id) {
            sessions.retain(|other| other.id != session.id);
            if sessions.is_empty() {
                shard.remove(&session.user_id);
            }
        }
    }

    pub fn has_any_of(&self, user: UserId) -> bool {
        self.of(user).contains_key(&user)
    }

    /// Ends one session of a user, if it is here.
    pub fn end(&self, user: UserId, session: SessionId, code: CloseCode) {
        if let Some(sessions) = self.of(user).get(&user) {
            sessions.iter().filter(|s| s.id == session).for_each(|s| s.queue.end(code));
        }
    }

    /// Ends all sessions of a user that are here, or the one of a device.
    pub fn end_all(&self, user: UserId, device: Option<&DeviceId>, code: CloseCode) {
        let shard = self.of(user);
        let sessions = shard.get(&user).into_iter().flatten();
        sessions
            .filter(|session| device.is_none_or(|device| session.device_id == *device))
            .for_each(|session| session.queue.end(code));
    }

    /// Walks all sessions, one shard at a time.
    pub fn for_each(&self, mut visit: impl FnMut(&Arc<Session>)) {
        for shard in 0..SHARDS {
            for sessions in self.lock(shard).values() {
                sessions.iter().for_each(&mut visit);
            }
        }
    }

    /// All sessions of this moment.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        let mut all = Vec::new();
        self.for_each(|session| all.push(session.clone()));
        all
    }

    /// The session that holds a device now, if it is here.
    pub fn of_device(&self, user: UserId, device: &DeviceId) -> Option<Arc<Session>> {
        let shard = self.of(user);
        shard.get(&user)?.iter().find(|session| session.device_id == *device).cloned()
    }

    /// Until `stop`: after each gap everyone it may concern is told to read again, a part of them at a time, so
    /// that they do not all come at once.
    pub async fn spread_gaps(self: Arc<Self>, stop: CancellationToken) {
        let resync = Event::Resync { conversations: None }.encode();
        let mut gaps = self.gap.subscribe();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = gaps.wait_for(|gap| *gap != Partitions::NONE) => {}
            }
            let gap = self.gap.send_replace(Partitions::NONE);
            self.metrics.sockets.gaps.increment(1);
            for shard in 0..SHARDS {
                for session in self.lock(shard).values().flatten() {
                    if !gap.contain(session.user_id) {
                        continue;
                    }
                    if session.classic {
                        session.queue.end(CloseCode::Resync);
                    } else {
                        session.answer(resync.clone());
                    }
                }
                tokio::time::sleep(GAP_SPREAD / SHARDS as u32).await;
            }
        }
    }
}

impl Inbox for Hub {
    fn deliver(&self, user: UserId, envelope: Envelope) {
        let head = &envelope.head;
        if let crate::bus::Class::Control = head.class {
            match envelope.as_order() {
                Some(Order::Replace(session)) => self.end(user, session, CloseCode::Replaced),
                Some(Order::ComeAgain(session)) => self.end(user, session, CloseCode::Resync),
                Some(Order::Disconnect(device)) => {
                    self.end_all(user, device.as_ref(), CloseCode::Forbidden);
                }
                Some(Order::Look) => self.watched.hint(head.sender_id),
                None => {}
            }
            return;
        }
        let class = match head.class {
            crate::bus::Class::Ephemeral => Class::Ephemeral,
            // One's own messages extend a run without proof; a receipt has no place in the log.
            _ if head.sender_id == user || head.hi == 0 => Class::Stored(None),
            _ => Class::Stored(Some(Place {
                conversation_id: head.conversation_id,
                lo: head.lo,
                hi: head.hi,
                sent_at: head.sent_at,
            })),
        };
        let shard = self.of(user);
        for session in shard.get(&user).into_iter().flatten() {
            if Some(session.id) == head.origin {
                continue;
            }
            match &envelope.classic {
                Classic::Own(frames) if session.classic => {
                    for frame in frames {
                        session.push(Item::text(frame.clone(), class.clone()));
                    }
                }
                Classic::None if session.classic => {}
                // For classic sessions only.
                _ if envelope.full.is_empty() => {}
                _ => session.push(Item::text(envelope.full.clone(), class.clone())),
            }
        }
    }

    /// Events may have been lost: everyone reads again what they missed.
    fn on_gap(&self, partitions: Partitions) {
        if sabotage::is_on(Mutation::DropResync) {
            return;
        }
        self.gap.send_modify(|gap| *gap |= partitions);
    }
}
