//! Presence of a single node: what is not here is nowhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moka::sync::Cache;
use tokio::sync::watch;

use super::{Entry, KEPT, Registered, Result, Status};
use crate::clock::Timestamp;
use crate::ids::{DeviceId, NodeId, SessionId, UserId};

const SHARDS: usize = 64;
/// Users whose last-seen time is remembered; a few ten bytes each.
const LAST_SEEN_USERS: u64 = 100_000;

#[derive(Clone)]
pub struct LocalPresence(Arc<Inner>);

struct Inner {
    node: watch::Sender<NodeId>,
    /// At least one.
    max_devices: usize,
    /// By hash of the user. No list is empty.
    shards: [Mutex<HashMap<UserId, Vec<Entry>>>; SHARDS],
    last_seen: Cache<UserId, Timestamp>,
}

impl LocalPresence {
    pub(super) fn new(max_devices: usize) -> Self {
        let last_seen = Cache::builder().max_capacity(LAST_SEEN_USERS).time_to_live(KEPT).build();
        Self(Arc::new(Inner {
            node: watch::Sender::new(NodeId::random()),
            max_devices: max_devices.max(1),
            shards: std::array::from_fn(|_| Mutex::default()),
            last_seen,
        }))
    }

    pub(super) fn node_id(&self) -> NodeId {
        *self.0.node.borrow()
    }

    pub(super) fn lease_changes(&self) -> watch::Receiver<NodeId> {
        self.0.node.subscribe()
    }

    pub(super) fn register_many(
        &self,
        entries: Vec<(UserId, Entry)>,
        joins: bool,
    ) -> Result<Vec<Registered>> {
        Ok(entries.into_iter().map(|(user, entry)| self.register(user, entry, joins)).collect())
    }

    fn register(&self, user: UserId, mut entry: Entry, joins: bool) -> Registered {
        entry.node = self.node_id();
        let mut shard = self.shard(user);
        let entries = shard.entry(user).or_insert_with(|| Vec::with_capacity(1));
        let mut registered = Registered { replaced: None, younger: false, devices: 0 };
        match entries.iter().position(|held| held.device == entry.device) {
            Some(at) => {
                registered.devices = entries.len();
                let held = &mut entries[at];
                let foreign = held.session != entry.session;
                if foreign && !joins && held.since > entry.since {
                    registered.younger = true;
                } else {
                    if foreign {
                        // Who joins is the younger, whatever the clock says.
                        let after = Timestamp::from_millis(held.since.millis() + 1);
                        entry.since = entry.since.max(after);
                    }
                    let old = std::mem::replace(held, entry);
                    registered.replaced = foreign.then_some(old);
                }
            }
            None => {
                registered.devices = entries.len() + 1;
                if registered.devices <= self.0.max_devices {
                    entries.push(entry);
                }
            }
        }
        registered
    }

    pub(super) fn remove_many(&self, sessions: Vec<(UserId, DeviceId, SessionId)>) {
        for (user, device, session) in sessions {
            let mut shard = self.shard(user);
            let Some(entries) = shard.get_mut(&user) else {
                continue;
            };
            let before = entries.len();
            entries.retain(|held| held.device != device || held.session != session);
            if entries.len() == before {
                continue;
            }
            if entries.is_empty() {
                shard.remove(&user);
            }
            self.0.last_seen.insert(user, Timestamp::now());
        }
    }

    pub(super) fn status(&self, users: &[UserId]) -> Vec<Status> {
        let status = |user: &UserId| match self.shard(*user).get(user) {
            Some(entries) => Status::Online(entries.clone()),
            None => Status::Offline { last_seen: self.0.last_seen.get(user) },
        };
        users.iter().map(status).collect()
    }

    fn shard(&self, user: UserId) -> MutexGuard<'_, HashMap<UserId, Vec<Entry>>> {
        let shard = &self.0.shards[user.hash() as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
