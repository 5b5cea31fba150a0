//! Presence of a single node: what is not here is nowhere.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::{Entry, KEPT, Registered, Result, Status, last_seen};
use crate::clock::Timestamp;
use crate::config::PresenceConfig;
use crate::ids::{DeviceId, NodeId, SessionId, UserId};
use crate::shutdown::Stage;

const SHARDS: usize = 64;
/// Users whose last-seen time is remembered; a few ten bytes each.
const LAST_SEEN_USERS: u64 = 100_000;
/// Between two writes of the file, if something has changed.
const SAVE_EVERY: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct LocalPresence(Arc<Inner>);

struct Inner {
    node: watch::Sender<NodeId>,
    /// At least one.
    max_devices: usize,
    /// By hash of the user. No list is empty.
    shards: [Mutex<HashMap<UserId, Vec<Entry>>>; SHARDS],
    last_seen: Cache<UserId, Timestamp>,
    file: Option<PathBuf>,
    /// Something is not in the file yet.
    unsaved: AtomicBool,
}

impl LocalPresence {
    /// A file that cannot be read costs what it held, and nothing else.
    pub(super) async fn open(config: &PresenceConfig, stage: &Stage) -> Self {
        let last_seen = Cache::builder().max_capacity(LAST_SEEN_USERS).time_to_live(KEPT).build();
        let this = Self(Arc::new(Inner {
            node: watch::Sender::new(NodeId::random()),
            max_devices: config.max_devices.max(1),
            shards: std::array::from_fn(|_| Mutex::default()),
            last_seen,
            file: config.last_seen.clone(),
            unsaved: AtomicBool::new(false),
        }));
        if this.0.file.is_some() {
            this.load().await;
            let (saved, stop) = (this.clone(), stage.stop.clone());
            stage.spawn("last seen", async move { saved.keep_saving(stop).await });
        }
        this
    }

    async fn load(&self) {
        let Some(file) = self.0.file.clone() else { return };
        match spawn_blocking(move || last_seen::read(&file)).await {
            Ok(Ok(seen)) => {
                let now = Timestamp::now();
                for (user, at) in seen.into_iter().filter(|(_, at)| now.since(*at) < KEPT) {
                    self.0.last_seen.insert(user, at);
                }
            }
            Ok(Err(error)) => tracing::warn!(%error, "when users were last seen cannot be read"),
            Err(error) => tracing::warn!(%error, "when users were last seen was not read"),
        }
    }

    async fn keep_saving(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SAVE_EVERY) => self.save().await,
            }
        }
    }

    async fn save(&self) {
        let Some(file) = self.0.file.clone() else { return };
        let online: Vec<UserId> = self.0.shards.iter().flat_map(online).collect();
        // While someone is online, when he was seen changes by itself.
        if !self.0.unsaved.swap(false, Ordering::Relaxed) && online.is_empty() {
            return;
        }
        let now = Timestamp::now();
        let mut seen: HashMap<UserId, Timestamp> =
            self.0.last_seen.iter().map(|(user, at)| (*user, at)).collect();
        seen.extend(online.into_iter().map(|user| (user, now)));
        let seen: Vec<_> = seen.into_iter().collect();
        let written = spawn_blocking(move || last_seen::write(&file, &seen)).await;
        if let Err(error) = written.unwrap_or_else(|error| Err(error.into())) {
            self.0.unsaved.store(true, Ordering::Relaxed);
            tracing::warn!(%error, "when users were last seen was not saved");
        }
    }

    pub(super) async fn close(&self) {
        self.save().await;
    }

    pub(super) fn node_id(&self) -> NodeId {
        *self.0.node.borrow()
    }

    pub(super) fn lease_changes(&self) -> watch::Receiver<NodeId> {
        self.0.node.subscribe()
    }

    pub(super) fn register(&self, user: UserId, entry: Entry) -> Result<Registered> {
        Ok(self.put(user, entry, true))
    }

    pub(super) fn register_again(&self, entries: Vec<(UserId, Entry)>) -> Result<Vec<Registered>> {
        Ok(entries.into_iter().map(|(user, entry)| self.put(user, entry, false)).collect())
    }

    fn put(&self, user: UserId, mut entry: Entry, joins: bool) -> Registered {
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
            self.remove(user, device, session);
        }
    }

    pub(super) fn remove(&self, user: UserId, device: DeviceId, session: SessionId) {
        let mut shard = self.shard(user);
        let Some(entries) = shard.get_mut(&user) else {
            return;
        };
        let before = entries.len();
        entries.retain(|held| held.device != device || held.session != session);
        if entries.len() == before {
            return;
        }
        if entries.is_empty() {
            shard.remove(&user);
        }
        self.0.last_seen.insert(user, Timestamp::now());
        self.0.unsaved.store(true, Ordering::Relaxed);
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

fn online(shard: &Mutex<HashMap<UserId, Vec<Entry>>>) -> Vec<UserId> {
    shard.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
}
