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
/// While so many members wait, each flush is for a part of them only: what is proven of a member one
/// after the other is then one run, one row and one event.
const MANY: usize = 256;
const PARTS: u64 = 4;
/// In groups so large that nobody is told of receipts.
const FLUSH_LARGE_EVERY: Duration = Duration::from_secs(1);
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
        let most = config.receipts_max_members as usize;
        // Well within the grace, after which they would be taken for laggards.
        let in_parts = FLUSH_EVERY * PARTS as u32 <= config.settle_grace / 4;
        let mut large = Large::new(most, FLUSH_LARGE_EVERY.min(config.settle_grace / 4));
        let mut turn = 0;
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                _ = ticks.tick() => {}
            }
            turn += 1;
            let part = (in_parts && self.len() >= MANY).then_some(turn % PARTS);
            let (members, back) = large.part(part, self.take(part), Instant::now());
            self.flush(members, back, &receipts, &config).await;
        }
        while self.flush(self.take(None), Vec::new(), &receipts, &config).await > 0 {}
    }

    /// All that is pending, or what is of one part of the users; in the order in which rows are
    /// locked, here and on every other node.
    fn take(&self, part: Option<u64>) -> Vec<(Key, Vec<Pending>)> {
        let mut pending = self.lock();
        let mut members: Vec<_> = match part {
            // With its memory.
            None => std::mem::take(&mut *pending).into_iter().collect(),
            Some(part) => pending.extract_if(|(_, user), _| user.hash() % PARTS == part).collect(),
        };
        drop(pending);
        members.sort_unstable_by_key(|(key, _)| *key);
        members
    }

    /// Offers these once, and puts back what waits. Returns how many runs moved.
    async fn flush(
        &self,
        members: Vec<(Key, Vec<Pending>)>,
        mut back: Vec<Pending>,
        receipts: &Receipts,
        config: &DeliveryConfig,
    ) -> usize {
        let mut moved = 0;
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
    }
}

/// The groups of which more members are proven at a time than are told of receipts, and when they were
/// written last: what is written seldom costs a row for each member as seldom.
struct Large {
    most: usize,
    every: Duration,
    written: HashMap<(ConversationId, Option<u64>), Instant>,
}

impl Large {
    fn new(most: usize, every: Duration) -> Self {
        Self { most, every, written: HashMap::new() }
    }

    /// Leaves out what is not due yet. The members, of one part of the users or of all, are in order
    /// of their conversations.
    fn part(
        &mut self,
        part: Option<u64>,
        members: Vec<(Key, Vec<Pending>)>,
        now: Instant,
    ) -> (Vec<(Key, Vec<Pending>)>, Vec<Pending>) {
        self.written.retain(|_, written| now - *written < self.every);
        let (mut due, mut back) = (Vec::with_capacity(members.len()), Vec::new());
        let mut members = members.into_iter().peekable();
        while let Some(((id, _), _)) = members.peek() {
            let id = *id;
            let first = due.len();
            let of_this = std::iter::from_fn(|| members.next_if(|((other, _), _)| *other == id));
            if self.written.contains_key(&(id, part)) {
                back.extend(of_this.flat_map(|(_, runs)| runs));
                continue;
            }
            due.extend(of_this);
            if due.len() - first > self.most {
                self.written.insert((id, part), now);
            }
        }
        (due, back)
    }
}

/// Takes what does not overlap, in order; the rest, runs of another proof, has its turn later. Of an
/// acknowledgement what the one before it does not say.
fn split(mut runs: Vec<Pending>, offered: &mut Vec<Pending>, back: &mut Vec<Pending>) {
    runs.sort_unstable_by_key(|pending| (pending.run.lo, pending.run.hi));
    let mut end = i64::MIN;
    for pending in runs {
        let mut run = pending.run;
        if run.proof == Proof::Ack {
            run.lo = run.lo.max(end.saturating_add(1));
        }
        if run.lo > end && run.lo <= run.hi {
            end = run.hi;
            offered.push(Pending { run, ..pending });
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

    fn ranges(runs: &[Pending]) -> Vec<(i64, i64)> {
        runs.iter().map(|pending| (pending.run.lo, pending.run.hi)).collect()
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
    async fn an_acknowledgement_of_what_another_says_waits_as_it_is() {
        let ack = |lo, hi| {
            let run = Run { proof: Proof::Ack, ..run(lo, hi) };
            Pending { run, since: Instant::now() }
        };
        let (mut offered, mut back) = (Vec::new(), Vec::new());
        split(vec![ack(5, 9), ack(1, 20), ack(18, 21)], &mut offered, &mut back);
        assert_eq!((ranges(&offered), ranges(&back)), (vec![(1, 20), (21, 21)], vec![(5, 9)]));
    }

    #[tokio::test]
    async fn what_waits_for_longer_than_the_grace_is_dropped_and_counted() {
        let (metrics, exporter) = Metrics::new();
        let proofs = Proofs::new(metrics);
        let pending = Pending { run: run(2, 3), since: Instant::now() };
        proofs.put_back(vec![pending], Duration::from_secs(60));
        assert_eq!(proofs.len(), 1);
        proofs.put_back(vec![pending], Duration::ZERO);
        assert_eq!(proofs.len(), 1);
        assert!(exporter.render().contains("tidings_proofs_dropped_total 1\n"));
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
        assert_eq!(
            (ranges(&offered), ranges(&back)),
            (vec![(1, 3), (4, 4), (5, 99)], vec![(3, 6)])
        );
        for hi in 1..10_000 {
            proofs.add(Run { proof: Proof::Ack, ..run(1, hi) });
        }
        assert!(proofs.lock().values().all(|runs| runs.len() <= MAX_ACKS));
    }

    #[test]
    fn what_many_of_one_group_proved_is_written_seldom() {
        let mut large = Large::new(2, Duration::from_secs(1));
        let of = |conversation: u128, members: u128| {
            let conversation_id = ConversationId(uuid::Uuid::from_u128(conversation));
            let pending = || vec![Pending { run: run(1, 1), since: Instant::now() }];
            let user = |user| UserId(uuid::Uuid::from_u128(user));
            (0..members).map(|n| ((conversation_id, user(n)), pending())).collect::<Vec<_>>()
        };
        let start = Instant::now();
        let mut parted = |after, part| {
            let members = [of(1, 3), of(2, 2)].concat();
            let (due, back) = large.part(part, members, start + Duration::from_millis(after));
            (due.len(), back.len())
        };
        assert_eq!(parted(0, None), (5, 0), "the first time at once");
        assert_eq!(parted(999, None), (2, 3), "the small one goes on");
        assert_eq!(parted(999, Some(1)), (5, 0), "others of it");
        assert_eq!(parted(1_000, None), (5, 0));
    }

    #[tokio::test]
    async fn parts_of_the_users_are_taken_in_turn_and_none_is_left_out() {
        let proofs = Proofs::new(Metrics::new().0);
        for user in 0..1_000 {
            let user_id = UserId(uuid::Uuid::from_u128(user));
            proofs.add(Run { user_id, ..run(1, 1) });
        }
        let taken: Vec<usize> = (0..PARTS).map(|part| proofs.take(Some(part)).len()).collect();
        assert!(taken.iter().all(|taken| *taken > 100), "{taken:?}");
        assert_eq!((taken.iter().sum(), proofs.len()), (1_000, 0));
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
