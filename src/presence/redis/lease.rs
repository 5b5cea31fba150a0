//! This node's lease, by which all that it registered is valid, and what it may conclude from
//! somebody's absence.
//!
//! A lease is a key that expires. It is lost when the server says so (the key is gone), when this
//! node's own clock does, or when what it covers is in doubt (a failed write, another run of the
//! server). A lost lease is never revived, for others may have acted on its end: the node takes a
//! new id, and its sessions are registered again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_redis::{Connection, Pool};
use redis::Value;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::pool::{Failure, Outcome, bounded};
use crate::ids::NodeId;

/// Between attempts while Redis does not answer; at most a tenth of the lease.
const RETRY: Duration = Duration::from_secs(1);

pub(super) struct Lease {
    prefix: String,
    length: Duration,
    node: watch::Sender<NodeId>,
    /// Leases lost. Changes together with `node`, under its lock.
    losses: AtomicU64,
    sight: Mutex<Sight>,
    /// A write failed: what is registered under this lease may differ from the node's sessions.
    doubtful: AtomicBool,
    wake: Notify,
}

/// What this node has seen of the server.
struct Sight {
    /// By this node's clock, counted from before the request was sent.
    held_until: Instant,
    /// Since when every command succeeded, on one run of the server.
    whole_since: Option<Instant>,
    run_id: Option<Box<str>>,
}

/// Exists while the node's lease lives.
pub(super) fn key(prefix: &str, node: NodeId) -> String {
    format!("{prefix}:node:{node}")
}

impl Lease {
    pub fn new(prefix: &str, length: Duration) -> Self {
        Self {
            prefix: prefix.into(),
            length,
            node: watch::Sender::new(NodeId::random()),
            losses: AtomicU64::new(0),
            sight: Mutex::new(Sight {
                held_until: Instant::now(),
                whole_since: None,
                run_id: None,
            }),
            doubtful: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    pub fn node(&self) -> NodeId {
        *self.node.borrow()
    }

    /// The node id, and a number that is higher for each later one of this process.
    pub fn current(&self) -> (NodeId, u64) {
        let node = self.node.borrow();
        (*node, self.losses())
    }

    pub fn changes(&self) -> watch::Receiver<NodeId> {
        self.node.subscribe()
    }

    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    pub fn key(&self, node: NodeId) -> String {
        key(&self.prefix, node)
    }

    /// Takes the first lease.
    pub async fn begin(&self, pool: &Pool) -> Outcome<()> {
        bounded(async { self.take(&mut pool.get().await?, self.node()).await }).await
    }

    /// Keeps a lease, for ever.
    pub async fn keep(&self, pool: &Pool) {
        let (beat, retry) = (self.length / 3, RETRY.min(self.length / 10));
        loop {
            tokio::select! {
                () = sleep(beat) => {}
                () = self.wake.notified() => {}
            }
            // Not woken between attempts: while Redis is away, every failed write would.
            while let Err(failure) = bounded(self.renew_or_replace(pool)).await {
                self.on_failure();
                debug!(%failure, "could not renew the lease of this node");
                sleep(retry).await;
            }
        }
    }

    async fn renew_or_replace(&self, pool: &Pool) -> Outcome<()> {
        // First, for a new connection may reach another run of the server.
        let mut connection = pool.get().await?;
        let sent = Instant::now();
        let good = !self.doubtful.load(Ordering::Acquire) && sent < self.sight().held_until;
        if good && self.set(&mut connection, self.node(), "XX").await? {
            self.on_held(sent);
            return Ok(());
        }
        // Before the new lease is taken: a write that fails from now on puts that one in doubt. If
        // the take is given up on the way, the doubt must stand.
        self.doubtful.store(false, Ordering::Release);
        self.sight().whole_since = None;
        let node = NodeId::random();
        if let Err(failure) = self.take(&mut connection, node).await {
            self.doubtful.store(true, Ordering::Release);
            return Err(failure);
        }
        warn!(%node, "the lease of this node was lost, it has a new one");
        self.node.send_modify(|current| {
            *current = node;
            self.losses.fetch_add(1, Ordering::Relaxed);
        });
        Ok(())
    }

    async fn take(&self, connection: &mut Connection, node: NodeId) -> Outcome<()> {
        let sent = Instant::now();
        if !self.set(connection, node, "NX").await? {
            return Err(Failure::Other("the new lease's key exists"));
        }
        self.on_held(sent);
        Ok(())
    }

    /// False: not under that condition.
    async fn set(&self, connection: &mut Connection, node: NodeId, only: &str) -> Outcome<bool> {
        let mut set = redis::cmd("SET");
        set.arg(self.key(node)).arg(1).arg(only);
        set.arg("PX").arg(self.length.as_millis() as u64);
        let reply: Value = set.query_async(connection).await?;
        Ok(reply != Value::Nil)
    }

    /// Gives the lease back. `keep` must have been told to end.
    pub async fn end(&self, pool: &Pool) {
        self.on_failure();
        let mut delete = redis::cmd("DEL");
        delete.arg(self.key(self.node()));
        let deleted = async { Ok(delete.exec_async(&mut pool.get().await?).await?) };
        if let Err(failure) = bounded(deleted).await {
            info!(%failure, "could not give the lease of this node back, it will run out");
        }
    }

    fn on_held(&self, sent: Instant) {
        let mut sight = self.sight();
        sight.held_until = sent + self.length;
        sight.whole_since.get_or_insert_with(Instant::now);
    }

    /// A command failed.
    pub fn on_failure(&self) {
        self.sight().whole_since = None;
    }

    /// A write failed, done or not.
    pub fn on_failed_write(&self) {
        self.on_failure();
        self.doubtful.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// The server does not know this node's lease any more.
    pub fn on_missing(&self) {
        self.on_failure();
        self.wake.notify_one();
    }

    /// A new connection reached this run of the server. Another run may have lost what was
    /// registered, even where it still has the lease: restored from disk, or a replica.
    pub fn on_connection(&self, run_id: &str) {
        let mut sight = self.sight();
        let known = sight.run_id.replace(run_id.into());
        if known.is_some_and(|known| &*known != run_id) {
            drop(sight);
            info!("Redis was restarted or replaced");
            self.on_failed_write();
        }
    }

    /// Others whose lease was lost by the same event have registered again by now.
    pub fn absence_is_certain(&self) -> bool {
        let sight = self.sight();
        let now = Instant::now();
        now < sight.held_until
            && sight.whole_since.is_some_and(|since| now - since >= self.length + self.length / 3)
    }

    fn sight(&self) -> MutexGuard<'_, Sight> {
        self.sight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
