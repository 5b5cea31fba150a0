//! Presence of a cluster, in Redis.
//!
//! | key | value |
//! |---|---|
//! | `<prefix>:{pNN}:presence:<user>` | hash: device -> entry as JSON, and the last-seen time |
//! | `<prefix>:node:<node>` | the node's lease; gone when it ran out |
//!
//! An entry is valid while its node's lease lives, so a crash needs no clean-up to be seen.

mod gather;
mod lease;
mod orphans;
mod pool;
mod stored;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use deadpool_redis::{Connection, Pool};
use redis::Pipeline;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use self::gather::Gather;
use self::lease::Lease;
pub(in crate::presence) use self::orphans::count as count_orphans;
use self::pool::{Outcome, Step, bounded, pool};
use self::stored::{Found, Stored};
use super::{Entry, KEPT, Registered, Result, Status};
use crate::clock::Timestamp;
use crate::config::{PresenceConfig, RedisConfig};
use crate::ids::{DeviceId, NodeId, SessionId, UserId};

/// Users in one pipeline.
const CHUNK: usize = 1_000;

#[derive(Clone)]
pub struct RedisPresence {
    inner: Arc<Inner>,
    gather: Arc<Gather>,
}

struct Inner {
    config: RedisConfig,
    max_devices: usize,
    pool: Pool,
    lease: Arc<Lease>,
    register: Step,
    remove: Step,
    /// Ends the renewal of the lease.
    closing: CancellationToken,
}

impl RedisPresence {
    pub(super) async fn connect(
        config: &PresenceConfig,
        redis: &RedisConfig,
        stop: CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<Self> {
        let lease = Arc::new(Lease::new(&redis.prefix, config.lease));
        let pool = pool(redis, lease.clone())?;
        lease.begin(&pool).await?;
        let closing = stop.child_token();
        tasks.spawn({
            let (lease, pool, closing) = (lease.clone(), pool.clone(), closing.clone());
            async move {
                closing.run_until_cancelled(lease.keep(&pool)).await;
            }
        });
        let inner = Arc::new(Inner {
            config: redis.clone(),
            max_devices: config.max_devices,
            pool,
            lease,
            register: Step::new(include_str!("register.lua")),
            remove: Step::new(include_str!("remove.lua")),
            closing,
        });
        let (gather, changes) = Gather::new();
        tasks.spawn({
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
        self.inner.lease.absence_is_certain()
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
            registered.extend(self.inner.register(chunk, false).await?);
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
            match bounded(self.inner.status(chunk)).await {
                Ok(found) => statuses.extend(found),
                Err(failure) => {
                    self.inner.lease.on_failure();
                    warn!(%failure, users = users.len(), "could not ask for presence");
                    break;
                }
            }
        }
        statuses.resize(users.len(), Status::Unknown { last_seen: None });
        statuses
    }

    pub(super) async fn ping(&self) -> Result<()> {
        let ping = async {
            let mut connection = self.inner.pool.get().await?;
            Ok(redis::cmd("PING").exec_async(&mut connection).await?)
        };
        Ok(bounded(ping).await?)
    }

    pub(super) async fn close(&self) {
        self.inner.closing.cancel();
        self.inner.lease.end(&self.inner.pool).await;
    }
}

impl Inner {
    /// Under the lease that is current when all is done: if it was lost meanwhile, the bulk
    /// registration for the new one may have come before ours, which then would stay under the
    /// dead one.
    async fn register(
        &self,
        chunk: &mut [(UserId, Entry)],
        joins: bool,
    ) -> Result<Vec<Registered>> {
        let mut first: Option<Vec<Registered>> = None;
        loop {
            let (node, term) = self.lease.current();
            for (_, entry) in chunk.iter_mut() {
                entry.node = node;
            }
            let mut registered = match bounded(self.register_once(chunk, joins, term)).await {
                Ok(registered) => registered,
                Err(failure) => {
                    self.lease.on_failed_write();
                    return Err(failure.into());
                }
            };
            // Who was replaced shows only the first time.
            if let Some(first) = first {
                for (now, first) in registered.iter_mut().zip(first) {
                    now.replaced = now.replaced.take().or(first.replaced);
                }
            }
            if self.lease.node() == node {
                return Ok(registered);
            }
            first = Some(registered);
        }
    }

    async fn register_once(
        &self,
        chunk: &[(UserId, Entry)],
        joins: bool,
        term: u64,
    ) -> Outcome<Vec<Registered>> {
        let mut connection = self.pool.get().await?;
        let all: Vec<_> = chunk.iter().collect();
        let found = self.register_step(&mut connection, &all, joins, term, &[]).await?;
        // Most users have one device, and it was nowhere else: then that was all.
        let nodes: HashSet<_> = found.iter().flat_map(|(_, others)| others).copied().collect();
        let alive = self.alive(&mut connection, nodes).await?;
        let is_dead = |node: &NodeId| alive.get(node) == Some(&false);
        let (mut registered, others): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        let again: Vec<usize> =
            (0..chunk.len()).filter(|at| others[*at].iter().any(is_dead)).collect();
        if again.is_empty() {
            return Ok(registered);
        }
        let dead: Vec<_> = alive.keys().copied().filter(is_dead).collect();
        let some: Vec<_> = again.iter().map(|at| &chunk[*at]).collect();
        let found = self.register_step(&mut connection, &some, joins, term, &dead).await?;
        for (at, (now, _)) in again.into_iter().zip(found) {
            // What it replaced in the first step is not there any more to be replaced.
            let replaced = registered[at].replaced.take().filter(|old| !is_dead(&old.node));
            registered[at] = Registered { replaced: now.replaced.or(replaced), ..now };
        }
        Ok(registered)
    }

    /// And for each the other nodes on which its user has, or had, a device.
    async fn register_step(
        &self,
        connection: &mut Connection,
        entries: &[&(UserId, Entry)],
        joins: bool,
        term: u64,
        dead: &[NodeId],
    ) -> Outcome<Vec<(Registered, Vec<NodeId>)>> {
        let calls = entries.iter().map(|(user, entry)| {
            let mut arguments = vec![
                entry.device.to_string(),
                Stored::write(entry, term),
                self.max_devices.to_string(),
                KEPT.as_secs().to_string(),
                u8::from(joins).to_string(),
            ];
            arguments.extend(dead.iter().map(NodeId::to_string));
            (self.key(*user), arguments)
        });
        let replies: Vec<(bool, usize, String, Vec<String>)> =
            self.register.pipeline(calls).query_async(connection).await?;
        let read = |((_, entry), (younger, devices, replaced, others)): (&&(_, Entry), _)| {
            let (replaced, others): (String, Vec<String>) = (replaced, others);
            let replaced = Stored::read(entry.device.as_str(), &replaced);
            let others = others.iter().filter_map(|node| node.parse().ok()).collect();
            (Registered { replaced, younger, devices }, others)
        };
        Ok(entries.iter().zip(replies).map(read).collect())
    }

    async fn remove_all(&self, chunk: &[(UserId, DeviceId, SessionId)]) {
        if let Err(failure) = bounded(self.remove(chunk)).await {
            self.lease.on_failed_write();
            warn!(%failure, sessions = chunk.len(), "could not remove sessions from presence");
        }
    }

    async fn remove(&self, chunk: &[(UserId, DeviceId, SessionId)]) -> Outcome<()> {
        let mut connection = self.pool.get().await?;
        let now = Timestamp::now().millis().to_string();
        let calls = chunk.iter().map(|(user, device, session)| {
            let kept = KEPT.as_secs().to_string();
            (self.key(*user), vec![device.to_string(), session.to_string(), now.clone(), kept])
        });
        Ok(self.remove.pipeline(calls).exec_async(&mut connection).await?)
    }

    async fn status(&self, chunk: &[UserId]) -> Outcome<Vec<Status>> {
        let mut connection = self.pool.get().await?;
        let mut pipeline = Pipeline::with_capacity(chunk.len());
        for user in chunk {
            pipeline.cmd("HGETALL").arg(self.key(*user));
        }
        let hashes: Vec<Vec<(String, String)>> = pipeline.query_async(&mut connection).await?;
        let found: Vec<Found> = hashes.into_iter().map(Found::read).collect();

        let own = self.lease.node();
        let mut nodes: HashSet<_> =
            found.iter().flat_map(|found| &found.entries).map(|entry| entry.node).collect();
        nodes.insert(own);
        let alive = self.alive(&mut connection, nodes).await?;
        // A server that has lost our lease has lost what others registered, too.
        if !alive[&own] {
            self.lease.on_missing();
        }
        // Asked last: a restart of the server has put it to an end by now.
        let certain = self.lease.absence_is_certain();
        Ok(found.into_iter().map(|found| found.judge(&alive, certain)).collect())
    }

    /// Which of the nodes' leases live.
    async fn alive(
        &self,
        connection: &mut Connection,
        nodes: HashSet<NodeId>,
    ) -> Outcome<HashMap<NodeId, bool>> {
        if nodes.is_empty() {
            return Ok(HashMap::new());
        }
        let mut pipeline = Pipeline::with_capacity(nodes.len());
        for node in &nodes {
            pipeline.cmd("EXISTS").arg(self.lease.key(*node));
        }
        let alive: Vec<bool> = pipeline.query_async(connection).await?;
        Ok(nodes.into_iter().zip(alive).collect())
    }

    fn key(&self, user: UserId) -> String {
        self.config.user_key("presence", user)
    }
}
