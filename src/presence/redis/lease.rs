//! This node's lease, by which all that it registered is valid, and what it may conclude from
//! somebody's absence.
//!
//! A lease is a key that expires. It is lost when the server says so (the key is gone), when this
//! node's own clock does, or when what it covers is in doubt (a failed write, another run of a
//! server). A lost lease is never revived, for others may have acted on its end: the node takes a
//! new id, and its sessions are registered again. Of a cluster each master is watched for itself:
//! while one is away, those that it holds nothing of are known about.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::Value;
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::config::Addr;
use crate::ids::NodeId;
use crate::shards::{Call, Failed, Layout, Pools, Run, Work};

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

/// What this node has seen of the servers.
struct Sight {
    /// By this node's clock, counted from before the request was sent.
    held_until: Instant,
    masters: HashMap<Addr, Seen>,
    /// The first lease was taken: whoever is met from now on is new.
    begun: bool,
}

/// Of one master.
#[derive(Default)]
struct Seen {
    /// Since when every command succeeded, on one run of the server.
    whole_since: Option<Instant>,
    run_id: Option<Box<str>>,
}

#[derive(Debug, Error)]
pub(super) enum Loss {
    #[error("{0}")]
    Failed(#[from] Failed),
    #[error("the new lease's key exists")]
    Taken,
    #[error("{0} of the masters do not answer")]
    Partly(usize),
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
                masters: HashMap::new(),
                begun: false,
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

    /// Takes the first lease. Masters that do not answer may come later.
    pub async fn begin(&self, pools: &Pools) -> Result<(), Loss> {
        let mut work = pools.work();
        self.greet(&mut work, &pools.shards().layout()).await;
        self.take(&mut work, self.node()).await?;
        self.sight().begun = true;
        Ok(())
    }

    /// Keeps a lease, for ever.
    pub async fn keep(&self, pools: &Pools) {
        let (beat, retry) = (self.length / 3, RETRY.min(self.length / 10));
        loop {
            tokio::select! {
                () = sleep(beat) => {}
                () = self.wake.notified() => {}
            }
            // Not woken between attempts: while Redis is away, every failed write would.
            while let Err(loss) = self.renew_or_replace(pools).await {
                debug!(%loss, "could not renew the lease of this node");
                sleep(retry).await;
            }
        }
    }

    async fn renew_or_replace(&self, pools: &Pools) -> Result<(), Loss> {
        let mut work = pools.work();
        let sent = Instant::now();
        // First, for a new connection may reach another run of a server.
        let away = self.greet(&mut work, &pools.shards().layout()).await;
        let doubtful = self.doubtful.load(Ordering::Acquire);
        let held = sent < self.sight().held_until;
        // What is in doubt is registered anew once all masters answer: until then most is right.
        if held && (!doubtful || away > 0) && self.set(&mut work, self.node(), "XX").await? {
            self.on_held(sent);
            return if away == 0 { Ok(()) } else { Err(Loss::Partly(away)) };
        }
        // Before the new lease is taken: a write that fails from now on puts that one in doubt. If
        // the take is given up on the way, the doubt must stand.
        self.doubtful.store(false, Ordering::Release);
        self.forget_whole();
        let node = NodeId::random();
        if let Err(loss) = self.take(&mut work, node).await {
            self.doubtful.store(true, Ordering::Release);
            return Err(loss);
        }
        warn!(%node, "the lease of this node was lost, it has a new one");
        self.node.send_modify(|current| {
            *current = node;
            self.losses.fetch_add(1, Ordering::Relaxed);
        });
        Ok(())
    }

    /// Sees whether each master answers; how many do not.
    async fn greet(&self, work: &mut Work<'_>, layout: &Layout) -> usize {
        let answers = work.ping().await;
        let mut sight = self.sight();
        // One that comes back later begins anew, even if it is the same process.
        sight.masters.retain(|addr, _| layout.masters().contains(addr));
        let mut away = 0;
        for (addr, answer) in answers {
            let seen = sight.masters.entry(addr.clone()).or_default();
            match answer {
                Ok(()) => {
                    seen.whole_since.get_or_insert_with(Instant::now);
                }
                Err(failure) => {
                    debug!(?addr, %failure, "a master does not answer");
                    seen.whole_since = None;
                    away += 1;
                }
            }
        }
        away
    }

    async fn take(&self, work: &mut Work<'_>, node: NodeId) -> Result<(), Loss> {
        let sent = Instant::now();
        if !self.set(work, node, "NX").await? {
            return Err(Loss::Taken);
        }
        self.on_held(sent);
        Ok(())
    }

    /// False: not under that condition.
    async fn set(&self, work: &mut Work<'_>, node: NodeId, only: &str) -> Result<bool, Failed> {
        let life = self.length.as_millis().to_string();
        let arguments = vec!["1".into(), only.into(), "PX".into(), life];
        let reply = work.one::<Value>(Call::command("SET", self.key(node), arguments)).await;
        Ok(reply.inspect_err(|failed| self.on_failure(failed))? != Value::Nil)
    }

    /// Gives the lease back. `keep` must have been told to end.
    pub async fn end(&self, pools: &Pools) {
        self.forget_whole();
        let delete = Call::command("DEL", self.key(self.node()), Vec::new());
        if let Err(failure) = pools.work().one::<Value>(delete).await {
            info!(%failure, "could not give the lease of this node back, it will run out");
        }
    }

    fn on_held(&self, sent: Instant) {
        let mut sight = self.sight();
        sight.held_until = sent + self.length;
        let now = Instant::now();
        for seen in sight.masters.values_mut() {
            seen.whole_since.get_or_insert(now);
        }
    }

    /// What was concluded holds no more.
    fn forget_whole(&self) {
        self.sight().masters.values_mut().for_each(|seen| seen.whole_since = None);
    }

    /// A command failed.
    pub fn on_failure(&self, failed: &Failed) {
        match &failed.addr {
            Some(addr) => {
                if let Some(seen) = self.sight().masters.get_mut(addr) {
                    seen.whole_since = None;
                }
            }
            None => self.forget_whole(),
        }
    }

    /// A write failed, done or not.
    pub fn on_failed_write(&self, failed: &Failed) {
        self.on_failure(failed);
        self.doubt();
    }

    fn doubt(&self) {
        self.doubtful.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// The server does not know this node's lease any more.
    pub fn on_missing(&self) {
        self.forget_whole();
        self.wake.notify_one();
    }

    /// A new connection to the master reached this run of it. Another run may have lost what was
    /// registered, even where it still has the lease: restored from disk, or a replica.
    pub fn on_connection(&self, addr: &Addr, run: Run) {
        let mut sight = self.sight();
        let begun = sight.begun;
        let seen = sight.masters.entry(addr.clone()).or_default();
        if seen.run_id.as_ref() == Some(&run.0) {
            return;
        }
        seen.run_id = Some(run.0);
        seen.whole_since = None;
        drop(sight);
        // Also one that took another's place: a replica may lack the last of what was registered.
        if begun {
            info!(?addr, "Redis was restarted or replaced");
            self.doubt();
        }
    }

    /// Whether who is not found on this master is not there: others whose lease was lost by the same
    /// event have registered again by now.
    pub fn absence_is_certain_on(&self, addr: &Addr) -> bool {
        let sight = self.sight();
        let now = Instant::now();
        let whole = sight.masters.get(addr).and_then(|seen| seen.whole_since);
        now < sight.held_until
            && whole.is_some_and(|since| now - since >= self.length + self.length / 3)
    }

    pub fn absence_is_certain(&self, layout: &Layout) -> bool {
        layout.masters().iter().all(|addr| self.absence_is_certain_on(addr))
    }

    fn sight(&self) -> MutexGuard<'_, Sight> {
        self.sight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
