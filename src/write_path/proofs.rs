//! What was proven delivered, gathered over the whole node and written a few times a second: one
//! statement for all.
//!
//! A run that cannot move yet, because something before it is not proven, waits here for the grace
//! and is offered again with each flush. What is lost from here by a crash is found by Reconcile.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ids::{ConversationId, UserId};
use crate::store::Store;
use crate::store::types::{Run, Settled};
use crate::telemetry::Metrics;

const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// Runs in one statement.
const RUNS: usize = 1_000;
/// Members with unsettled runs held at most; beyond, new ones are left to Reconcile.
const MAX_MEMBERS: usize = 200_000;

type Key = (ConversationId, UserId);

#[derive(Clone)]
pub struct Proofs {
    pending: Arc<Mutex<HashMap<Key, Vec<Pending>>>>,
    metrics: Metrics,
}

/// A proven run and when it came.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pending {
    run: Run,
    since: Instant,
}

impl Proofs {
    pub fn new(metrics: Metrics) -> Self {
        Self { pending: Arc::default(), metrics }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Vec<Pending>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never waits.
    pub fn add(&self, run: Run) {
        let mut pending = self.lock();
        let full = pending.len() >= MAX_MEMBERS;
        match pending.entry((run.conversation_id, run.user_id)) {
            Entry::Vacant(_) if full => self.metrics.dispatch.proofs_dropped.increment(1),
            Entry::Vacant(entry) => {
                entry.insert(vec![Pending { run, since: Instant::now() }]);
            }
            Entry::Occupied(mut entry) => merge(entry.get_mut(), run),
        }
    }

    /// Members with runs that are not settled.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Until `stop`, and then until nothing more can be settled.
    pub async fn run(self, store: Store, grace: Duration, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(FLUSH_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                _ = ticks.tick() => {}
            }
            self.flush(&store, grace).await;
        }
        while self.flush(&store, grace).await > 0 {}
    }

    /// One round: the lowest run of each member. Returns how many moved.
    async fn flush(&self, store: &Store, grace: Duration) -> usize {
        let mut taken = std::mem::take(&mut *self.lock());
        let mut lowest: Vec<Pending> = taken
            .values_mut()
            .filter_map(|runs| {
                let at = (0..runs.len()).min_by_key(|at| runs[*at].run.lo)?;
                Some(runs.swap_remove(at))
            })
            .collect();
        // The order in which rows are locked, here and on every other node.
        lowest.sort_unstable_by_key(|pending| (pending.run.conversation_id, pending.run.user_id));
        let mut moved = 0;
        let mut back: Vec<Pending> = taken.into_values().flatten().collect();
        for chunk in lowest.chunks(RUNS) {
            let runs: Vec<Run> = chunk.iter().map(|pending| pending.run).collect();
            match store.settle(&runs).await {
                Ok(outcomes) => {
                    for (pending, outcome) in chunk.iter().zip(outcomes) {
                        match outcome {
                            Settled::Moved { .. } => moved += 1,
                            Settled::Waits => back.push(*pending),
                            Settled::Refused => {}
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, runs = runs.len(), "proofs could not be stored");
                    self.metrics.store.failures.of(error.failure()).increment(1);
                    back.extend_from_slice(chunk);
                }
            }
        }
        self.metrics.dispatch.settled.increment(moved as u64);
        self.put_back(back, grace);
        moved
    }

    fn put_back(&self, back: Vec<Pending>, grace: Duration) {
        let mut pending = self.lock();
        for waiting in back.into_iter().filter(|waiting| waiting.since.elapsed() < grace) {
            let key = (waiting.run.conversation_id, waiting.run.user_id);
            pending.entry(key).or_default().push(waiting);
        }
    }
}

/// Joins a run to a neighbour of the same proof, or keeps it beside.
fn merge(runs: &mut Vec<Pending>, run: Run) {
    for held in runs.iter_mut().filter(|held| held.run.proof == run.proof) {
        let held = &mut held.run;
        if run.lo <= held.hi + 1 && held.lo <= run.hi + 1 {
            held.lo = held.lo.min(run.lo);
            held.hi = held.hi.max(run.hi);
            return;
        }
    }
    runs.push(Pending { run, since: Instant::now() });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::types::Proof;

    fn run(lo: i64, hi: i64) -> Run {
        Run {
            conversation_id: ConversationId(uuid::Uuid::from_u128(1)),
            user_id: UserId(uuid::Uuid::from_u128(2)),
            lo,
            hi,
            proof: Proof::Device,
        }
    }

    #[tokio::test]
    async fn neighbours_become_one_run_and_gaps_stay() {
        let proofs = Proofs::new(Metrics::new().0);
        for (lo, hi) in [(1, 1), (2, 2), (5, 6), (3, 3), (6, 7)] {
            proofs.add(run(lo, hi));
        }
        let pending = proofs.lock();
        let runs: Vec<_> = pending.values().flatten().map(|p| (p.run.lo, p.run.hi)).collect();
        assert_eq!(runs, [(1, 3), (5, 7)]);
    }
}
