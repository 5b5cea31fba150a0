//! Presence of a cluster, in Redis.
//!
//! | key | value |
//! |---|---|
//! | `<prefix>:{pNN}:presence:<user>` | hash: device -> entry as JSON, and the last-seen time |
//! | `<prefix>:node:<node>` | the node's lease; gone when it ran out |
//!
//! An entry is valid while its node's lease lives, so a crash needs no clean-up to be seen. In a
//! cluster all that is the user's lies in one slot, and each lease in one of its own.

mod gather;
mod lease;
mod orphans;
mod stored;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::gather::Gather;
use self::lease::{Lease, Loss};
pub(in crate::presence) use self::orphans::count as count_orphans;
use self::stored::{Found, Stored};
use super::{Entry, KEPT, PresenceError, Registered, Result, Status};
use crate::clock::Timestamp;
use crate::config::PresenceConfig;
use crate::ids::{DeviceId, NodeId, SessionId, UserId};
use crate::shards::{Call, Failed, Failure, Pools, Script, Shards, ShardsError, Work, of_connect};
use crate::shutdown::Stage;

/// Connections to one master.
const POOL_SIZE: usize = 16;
/// Users in one pipeline.
const CHUNK: usize = 1_000;

#[derive(Clone)]
pub struct RedisPresence {
    inner: Arc<Inner>,
    gather: Arc<Gather>,
}

struct Inner {
    max_devices: usize,
    pools: Arc<Pools>,
    lease: Arc<Lease>,
    register: Script,
    remove: Script,
    /// Ends the renewal of the lease.
    closing: CancellationToken,
}

impl RedisPresence {
    pub(super) async fn connect(
        config: &PresenceConfig,
        shards: &Shards,
        stage: &Stage,
    ) -> Result<Self> {
        let lease = Arc::new(Lease::new(&shards.config().prefix, config.lease));
        let pools = Arc::new(Pools::new(shards.clone(), POOL_SIZE, {
            let lease = lease.clone();
            move |addr, run| lease.on_connection(addr, run)
        }));
        lease.begin(&pools).await.map_err(of_begin)?;
        let closing = stage.stop.child_token();
        stage.spawn_until("lease", closing.clone(), {
            let (lease, pools, closing) = (lease.clone(), pools.clone(), closing.clone());
            async move {
                closing.run_until_cancelled(lease.keep(&pools)).await;
            }
        });
        let inner = Arc::new(Inner {
            max_devices: config.max_devices,
            pools,
            lease,
            register: Script::new(include_str!("register.lua")),
            remove: Script::new(include_str!("remove.lua")),
            closing,
        });
        let (gather, changes) = Gather::new();
        stage.spawn_until("gather", inner.closing.clone(), {
            let inner = inner.clone();
            async move {
                inner.closing.run_until_cancelled(gather::run(&inner, changes)).await;
            }
        });
        Ok(Self { inner, gather: Arc::new(gather) })
    }

    pub(super) fn node_id(&self) -> NodeId {
        self.inner.lease.node()
    }

    pub(super) fn lease_changes(&self) -> watch::Receiver<NodeId> {
        self.inner.lease.changes()
    }

    pub(super) fn lease_losses(&self) -> u64 {
        self.inner.lease.losses()
    }

    pub(super) fn absence_is_certain(&self) -> bool {
        self.inner.lease.absence_is_certain(&self.inner.pools.shards().layout())
    }

    pub(super) async fn register(&self, user: UserId, entry: Entry) -> Result<Registered> {
        self.gather.join(user, entry).await
    }

    pub(super) async fn register_again(
        &self,
        mut entries: Vec<(UserId, Entry)>,
    ) -> Result<Vec<Registered>> {
        let mut registered = Vec::with_capacity(entries.len());
        for chunk in entries.chunks_mut(CHUNK) {
            for outcome in self.inner.register(chunk, false).await {
                registered.push(outcome?);
            }
        }
        Ok(registered)
    }

    pub(super) async fn remove(&self, user: UserId, device: DeviceId, session: SessionId) {
        self.gather.leave(user, device, session).await;
    }

    pub(super) async fn remove_many(&self, sessions: Vec<(UserId, DeviceId, SessionId)>) {
        for chunk in sessions.chunks(CHUNK) {
            self.inner.remove_all(chunk).await;
        }
    }

    pub(super) async fn status(&self, users: &[UserId]) -> Vec<Status> {
        let mut statuses = Vec::with_capacity(users.len());
        for chunk in users.chunks(CHUNK) {
            statuses.extend(self.inner.status(chunk).await);
        }
        statuses
    }

    pub(super) async fn ping(&self) -> Result<()> {
        for (_, answer) in self.inner.pools.work().ping().await {
            answer.map_err(|failure| PresenceError::Unavailable(failure.to_string()))?;
        }
        Ok(())
    }

    pub(super) async fn close(&self) {
        self.inner.closing.cancel();
        self.inner.lease.end(&self.inner.pools).await;
    }
}

/// Of a step: what became of each.
type Outcomes<T> = Vec<std::result::Result<T, Failed>>;

impl Inner {
    /// Under the lease that is current when all is done: if it was lost meanwhile, the bulk
    /// registration for the new one may have come before ours, which then would stay under the
    /// dead one. One answer each, at the same place.
    async fn register(
        &self,
        chunk: &mut [(UserId, Entry)],
        joins: bool,
    ) -> Vec<Result<Registered>> {
        let mut first: Option<Outcomes<Registered>> = None;
        loop {
            let (node, term) = self.lease.current();
            for (_, entry) in chunk.iter_mut() {
                entry.node = node;
            }
            let mut registered = self.register_once(chunk, joins, term).await;
            // Who was replaced shows only the first time.
            for (now, first) in registered.iter_mut().zip(first.into_iter().flatten()) {
                if let (Ok(now), Ok(first)) = (now, first) {
                    now.replaced = now.replaced.take().or(first.replaced);
                }
            }
            let failed = registered.iter().find_map(|outcome| outcome.as_ref().err());
            if let Some(failed) = failed {
                self.lease.on_failed_write(failed);
            }
            if failed.is_some() || self.lease.node() == node {
                let outcome = |outcome: std::result::Result<_, Failed>| Ok(outcome?);
                return registered.into_iter().map(outcome).collect();
            }
            first = Some(registered);
        }
    }

    async fn register_once(
        &self,
        chunk: &[(UserId, Entry)],
        joins: bool,
        term: u64,
    ) -> Outcomes<Registered> {
        let mut work = self.pools.work();
        let all: Vec<_> = chunk.iter().collect();
        let found = self.register_step(&mut work, &all, joins, term, &[]).await;
        // Most users have one device, and it was nowhere else: then that was all.
        let others = found.iter().flatten().flat_map(|(_, others)| others);
        let alive = self.alive(&mut work, others.copied().collect()).await;
        let is_dead = |node: &NodeId| alive.get(node) == Some(&Some(false));
        let again: Vec<usize> = (0..chunk.len())
            .filter(|at| matches!(&found[*at], Ok((_, others)) if others.iter().any(is_dead)))
            .collect();
        let mut registered: Outcomes<_> =
            found.into_iter().map(|found| found.map(|(registered, _)| registered)).collect();
        if again.is_empty() {
            return registered;
        }
        let dead: Vec<_> = alive.keys().copied().filter(is_dead).collect();
        let some: Vec<_> = again.iter().map(|at| &chunk[*at]).collect();
        let found = self.register_step(&mut work, &some, joins, term, &dead).await;
        for (at, now) in again.into_iter().zip(found) {
            registered[at] = now.map(|(now, _)| {
                // What it replaced in the first step is not there any more to be replaced.
                let replaced = registered[at].as_mut().ok().and_then(|first| first.replaced.take());
                let replaced = replaced.filter(|old| !is_dead(&old.node));
                Registered { replaced: now.replaced.or(replaced), ..now }
            });
        }
        registered
    }

    /// And for each the other nodes on which its user has, or had, a device.
    async fn register_step(
        &self,
        work: &mut Work<'_>,
        entries: &[&(UserId, Entry)],
        joins: bool,
        term: u64,
        dead: &[NodeId],
    ) -> Outcomes<(Registered, Vec<NodeId>)> {
        let calls = entries.iter().map(|(user, entry)| {
            let mut arguments = vec![
                entry.device.to_string(),
                Stored::write(entry, term),
                self.max_devices.to_string(),
                KEPT.as_secs().to_string(),
                u8::from(joins).to_string(),
            ];
            arguments.extend(dead.iter().map(NodeId::to_string));
            Call::script(&self.register, self.key(*user), arguments)
        });
        let replies: Outcomes<(bool, usize, String, Vec<String>)> =
            work.run(&calls.collect::<Vec<_>>()).await;
        let read = |((_, entry), reply): (&&(_, Entry), std::result::Result<_, Failed>)| {
            let (younger, devices, replaced, others): (_, _, String, Vec<String>) = reply?;
            let replaced = Stored::read(entry.device.as_str(), &replaced);
            let others = others.iter().filter_map(|node| node.parse().ok()).collect();
            Ok((Registered { replaced, younger, devices }, others))
        };
        entries.iter().zip(replies).map(read).collect()
    }

    async fn remove_all(&self, chunk: &[(UserId, DeviceId, SessionId)]) {
        let now = Timestamp::now().millis().to_string();
        let calls = chunk.iter().map(|(user, device, session)| {
            let kept = KEPT.as_secs().to_string();
            let arguments = vec![device.to_string(), session.to_string(), now.clone(), kept];
            Call::script(&self.remove, self.key(*user), arguments)
        });
        let removed: Outcomes<bool> = self.pools.work().run(&calls.collect::<Vec<_>>()).await;
        let failed: Vec<_> = removed.into_iter().filter_map(std::result::Result::err).collect();
        if let Some(failure) = failed.first() {
            self.lease.on_failed_write(failure);
            warn!(%failure, sessions = failed.len(), "could not remove sessions from presence");
        }
    }

    async fn status(&self, chunk: &[UserId]) -> Vec<Status> {
        let mut work = self.pools.work();
        let keys: Vec<String> = chunk.iter().map(|user| self.key(*user)).collect();
        let calls: Vec<_> =
            keys.iter().map(|key| Call::command("HGETALL", key.clone(), Vec::new())).collect();
        let hashes: Outcomes<Vec<(String, String)>> = work.run(&calls).await;
        let failed: Vec<_> = hashes.iter().filter_map(|hash| hash.as_ref().err()).collect();
        if let Some(failure) = failed.first() {
            warn!(%failure, users = failed.len(), "could not ask for presence");
            failed.iter().for_each(|failed| self.lease.on_failure(failed));
            if failed.len() == chunk.len() {
                return vec![Status::Unknown { last_seen: None }; chunk.len()];
            }
        }
        let found: Vec<Option<Found>> =
            hashes.into_iter().map(|hash| Some(Found::read(hash.ok()?))).collect();

        let own = self.lease.node();
        let entries = found.iter().flatten().flat_map(|found| &found.entries);
        let mut nodes: HashSet<_> = entries.map(|entry| entry.node).collect();
        nodes.insert(own);
        let alive = self.alive(&mut work, nodes).await;
        // A server that has lost our lease has lost what others registered, too.
        if alive[&own] == Some(false) {
            self.lease.on_missing();
        }
        // Asked last: a restart of a server has put it to an end by now.
        let layout = self.pools.shards().layout();
        let certain = |key: &str| {
            layout.owner(key).is_some_and(|addr| self.lease.absence_is_certain_on(addr))
        };
        // A lease that is not there may be lost like what else its master held.
        let judge = |(found, key): (Option<Found>, &String)| match found {
            None => Status::Unknown { last_seen: None },
            Some(found) => {
                let leases = found.entries.iter().map(|entry| entry.node);
                let known = leases
                    .filter(|node| alive[node] == Some(false))
                    .all(|node| certain(&self.lease.key(node)));
                found.judge(&alive, known && certain(key))
            }
        };
        found.into_iter().zip(&keys).map(judge).collect()
    }

    /// Which of the nodes' leases live; None: not known.
    async fn alive(
        &self,
        work: &mut Work<'_>,
        nodes: HashSet<NodeId>,
    ) -> HashMap<NodeId, Option<bool>> {
        if nodes.is_empty() {
            return HashMap::new();
        }
        let calls =
            nodes.iter().map(|node| Call::command("EXISTS", self.lease.key(*node), Vec::new()));
        let alive: Outcomes<bool> = work.run(&calls.collect::<Vec<_>>()).await;
        let known = |alive: std::result::Result<bool, Failed>| {
            alive.inspect_err(|failed| self.lease.on_failure(failed)).ok()
        };
        nodes.into_iter().zip(alive.into_iter().map(known)).collect()
    }

    fn key(&self, user: UserId) -> String {
        self.pools.shards().config().user_key("presence", user)
    }
}

impl From<Failed> for PresenceError {
    fn from(failed: Failed) -> Self {
        Self::Unavailable(failed.to_string())
    }
}

fn of_begin(loss: Loss) -> PresenceError {
    match loss {
        Loss::Failed(Failed { why: Failure::Redis(error), .. }) => match of_connect(error) {
            ShardsError::Unavailable(text) => PresenceError::Unavailable(text),
            ShardsError::Rejected(text) => PresenceError::Rejected(text),
        },
        loss => PresenceError::Unavailable(loss.to_string()),
    }
}
