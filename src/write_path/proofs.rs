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

use super::receipts::Receipts;
use crate::config::DeliveryConfig;
use crate::ids::{ConversationId, UserId};
use crate::protocol::model::ReceiptKind;
use crate::sabotage::{self, Mutation};
use crate::store::types::{Moved, Proof, Run, Settled};
use crate::telemetry::Metrics;

const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// Runs in one statement.
const RUNS: usize = 1_000;
/// Members with unsettled runs held at most; beyond, new ones are left to Reconcile.
const MAX_MEMBERS: usize = 200_000;
/// And runs of one of them.
const MAX_RUNS: usize = 1_000;
/// And acknowledgements.
const MAX_ACKS: usize = 8;

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
    pub fn add(&self, mut run: Run) {
        if sabotage::is_on(Mutation::SettlePastGap) {
            run.lo = 1;
        }
        let mut pending = self.lock();
        let full = pending.len() >= MAX_MEMBERS;
        match pending.entry((run.conversation_id, run.user_id)) {
            Entry::Vacant(_) if full => self.metrics.dispatch.proofs_dropped.increment(1),
            Entry::Vacant(entry) => {
                entry.insert(vec![Pending { run, since: Instant::now() }]);
            }
            Entry::Occupied(mut entry) => {
                if !merge(entry.get_mut(), Pending { run, since: Instant::now() }) {
                    self.metrics.dispatch.proofs_dropped.increment(1);
                }
            }
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
    pub async fn run(
        self,
        receipts: Arc<Receipts>,
        config: DeliveryConfig,
        stop: CancellationToken,
    ) {
        let mut ticks = tokio::time::interval(FLUSH_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                _ = ticks.tick() => {}
            }
            self.flush(&receipts, &config).await;
        }
        while self.flush(&receipts, &config).await > 0 {}
    }

    /// Offers all that is pending once. Returns how many runs moved.
    async fn flush(&self, receipts: &Receipts, config: &DeliveryConfig) -> usize {
        let mut members: Vec<_> = std::mem::take(&mut *self.lock()).into_iter().collect();
        // The order in which rows are locked, here and on every other node.
        members.sort_unstable_by_key(|(key, _)| *key);
        let mut moved = 0;
        let mut back = Vec::new();
        let mut members = members.into_iter().peekable();
        while members.peek().is_some() {
            let mut offered = Vec::new();
            // A member's runs stay together: each reaches down to the one before it.
            while offered.len() < RUNS
                && let Some((_, runs)) = members.next()
            {
                split(runs, &mut offered, &mut back);
            }
            let runs: Vec<Run> = offered.iter().map(|pending| pending.run).collect();
            let mut told = Vec::new();
            match receipts.store.settle(&runs, config.receipts_max_members).await {
                Ok(outcomes) => {
                    for (pending, outcome) in offered.into_iter().zip(outcomes) {
                        match outcome {
                            Settled::Moved { delivered_from } => {
                                moved += 1;
                                let run = pending.run;
                                told.extend(delivered_from.map(|from| Moved {
                                    conversation_id: run.conversation_id,
                                    user_id: run.user_id,
                                    kind: ReceiptKind::Delivered,
                                    from,
                                    up_to: run.hi,
                                    is_told: true,
                                }));
                            }
                            Settled::Waits => back.push(pending),
                            Settled::Refused => {}
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, runs = runs.len(), "proofs could not be stored");
                    back.extend(offered);
                }
            }
            receipts.tell(&told).await;
        }
        self.metrics.dispatch.settled.increment(moved as u64);
        self.put_back(back, config.settle_grace);
        moved
    }

    /// What waited for longer than the grace is left to Reconcile, which finds it by itself.
    fn put_back(&self, back: Vec<Pending>, grace: Duration) {
        let mut pending = self.lock();
        for waiting in back {
            let key = (waiting.run.conversation_id, waiting.run.user_id);
            if waiting.since.elapsed() >= grace || !merge(pending.entry(key).or_default(), waiting)
            {
                self.metrics.dispatch.proofs_dropped.increment(1);
            }
        }
        pending.retain(|_, runs| !runs.is_empty());
    }
}

/// Takes what does not overlap, in order; the rest, runs of another proof, has its turn later. Of an
/// acknowledgement what the one before it does not say.
fn split(mut runs: Vec<Pending>, offered: &mut Vec<Pending>, back: &mut Vec<Pending>) {
    runs.sort_unstable_by_key(|pending| (pending.run.lo, pending.run.hi));
    let mut end = i64::MIN;
    for mut pending in runs {
        if pending.run.proof == Proof::Ack {
            pending.run.lo = pending.run.lo.max(end.saturating_add(1));
        }
        if pending.run.lo > end {
            end = pending.run.hi;
            offered.push(pending);
        } else {
            back.push(pending);
        }
    }
}

/// Joins a run to all that it touches of the same proof, or keeps it beside; false if there are
/// too many already.
///
/// Acknowledgements stay apart while they are few: one that says too much is refused, and is not to
/// take the others with it.
fn merge(runs: &mut Vec<Pending>, mut new: Pending) -> bool {
    let acks = runs.iter().filter(|held| held.run.proof == Proof::Ack).count();
    let is_apart = new.run.proof == Proof::Ack && acks < MAX_ACKS;
    runs.retain(|held| {
        let (old, run) = (&held.run, &mut new.run);
        let reach = run.lo <= old.hi + 1 && old.lo <= run.hi + 1;
        let touches = old.proof == run.proof && if is_apart { old == run } else { reach };
        if touches {
            run.lo = run.lo.min(old.lo);
            run.hi = run.hi.max(old.hi);
        }
        !touches
    });
    let room = runs.len() < MAX_RUNS;
    if room {
        runs.push(new);
    }
    room
}

#[cfg(test)]
mod tests {
    use super::*;

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
    async fn what_overlaps_under_another_proof_is_offered_later() {
        let now = Instant::now();
        let offline = Run { proof: Proof::Offline, ..run(2, 4) };
        let pending = [run(1, 2), run(4, 4), offline, run(6, 6)];
        let pending = pending.map(|run| Pending { run, since: now }).to_vec();
        let (mut offered, mut back) = (Vec::new(), Vec::new());
        split(pending, &mut offered, &mut back);
        let seqs = |runs: &[Pending]| runs.iter().map(|p| p.run.lo).collect::<Vec<_>>();
        assert_eq!((seqs(&offered), seqs(&back)), (vec![1, 4, 6], vec![2]));
    }

    #[tokio::test]
    async fn an_acknowledgement_that_says_too_much_takes_no_other_with_it() {
        let proofs = Proofs::new(Metrics::new().0);
        for hi in [4, 99, 3, 4] {
            proofs.add(Run { proof: Proof::Ack, ..run(1, hi) });
        }
        proofs.add(run(3, 6));
        let (mut offered, mut back) = (Vec::new(), Vec::new());
        let runs = proofs.lock().drain().next().unwrap().1;
        split(runs, &mut offered, &mut back);
        let seqs = |runs: &[Pending]| runs.iter().map(|p| (p.run.lo, p.run.hi)).collect::<Vec<_>>();
        assert_eq!((seqs(&offered), seqs(&back)), (vec![(1, 3), (4, 4), (5, 99)], vec![(3, 6)]));
        for hi in 1..10_000 {
            proofs.add(Run { proof: Proof::Ack, ..run(1, hi) });
        }
        assert!(proofs.lock().values().all(|runs| runs.len() <= MAX_ACKS));
    }

    #[tokio::test]
    async fn neighbours_become_one_run_and_gaps_stay() {
        let proofs = Proofs::new(Metrics::new().0);
        for (lo, hi) in [(1, 1), (3, 3), (6, 6), (2, 2), (5, 7)] {
            proofs.add(run(lo, hi));
        }
        let pending = proofs.lock();
        let runs: Vec<_> = pending.values().flatten().map(|p| (p.run.lo, p.run.hi)).collect();
        assert_eq!(runs, [(1, 3), (5, 7)]);
    }
}
