//! The users this node wants events for: the truth, which the connections are made to match.
//!
//! They are divided into groups, each of which lies on one master: in a cluster a group for each
//! partition, since one command may name channels of one slot only; elsewhere one for all.
//!
//! Callers change the table under a lock and never wait for it; the subscriber takes what differs
//! from the server, in bulk. So nothing is queued per call: the table is bounded by the users that
//! are held, however they come and go while Redis is away.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use crate::bus::Partitions;
use crate::config::RedisConfig;
use crate::ids::UserId;

/// All groups there are.
pub(super) struct Groups {
    groups: Vec<Subscriptions>,
}

impl Groups {
    pub fn new(is_cluster: bool) -> Self {
        let number = if is_cluster { RedisConfig::PARTITIONS } else { 1 };
        Self { groups: (0..number).map(|_| Subscriptions::default()).collect() }
    }

    pub fn len(&self) -> usize {
        self.groups.len()
    }

    pub fn get(&self, at: usize) -> &Subscriptions {
        &self.groups[at]
    }

    pub fn of(&self, user: UserId) -> usize {
        if self.groups.len() == 1 { 0 } else { RedisConfig::partition(user) }
    }

    pub fn hold(&self, user: UserId) -> Option<Held> {
        self.groups[self.of(user)].hold(user)
    }

    pub fn release(&self, user: UserId) {
        self.groups[self.of(user)].release(user);
    }

    /// Whose events come by this group.
    pub fn partitions(&self, at: usize) -> Partitions {
        if self.groups.len() == 1 { Partitions::ALL } else { Partitions::one(at) }
    }

    pub fn held(&self) -> usize {
        self.groups.iter().map(Subscriptions::held).sum()
    }

    pub fn are_whole(&self) -> bool {
        self.groups.iter().all(|group| group.table().whole)
    }

    pub fn close(&self) {
        self.groups.iter().for_each(Subscriptions::close);
    }
}

#[derive(Default)]
pub(super) struct Subscriptions {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Those held, and those the server still has to be told about.
    users: HashMap<UserId, Entry>,
    /// In stage `Wanted`.
    wanted: HashSet<UserId>,
    /// In stage `Live` with nobody holding them.
    unwanted: HashSet<UserId>,
    /// Users with a count above zero.
    held: usize,
    closed: bool,
    /// Rung when there may be something to take: of whoever takes now.
    bell: Arc<Notify>,
    /// Higher after each loss: what was taken before it is void.
    term: u64,
    /// The server has had all that was held, and nothing was lost since.
    whole: bool,
    /// Events may have been lost, and it was not told yet.
    gap: bool,
}

struct Entry {
    count: u32,
    stage: Stage,
    /// Told at the confirmation.
    waiting: Vec<oneshot::Sender<()>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Wanted,
    /// Sent, not confirmed yet; judged anew at the confirmation.
    Asked,
    Live,
}

/// What a new hold has to wait for.
pub(super) enum Held {
    Live,
    /// An error in it: the bus was stopped.
    Waiting(oneshot::Receiver<()>),
}

/// What differs from the server.
pub(super) struct Difference {
    term: u64,
    pub subscribe: Vec<UserId>,
    /// To be sent after `subscribe` was confirmed; no user is in both.
    pub unsubscribe: Vec<UserId>,
}

impl Subscriptions {
    /// None: the bus was stopped.
    pub fn hold(&self, user: UserId) -> Option<Held> {
        let mut table = self.table();
        let Table { users, wanted, unwanted, held, closed, bell, .. } = &mut *table;
        if *closed {
            return None;
        }
        let entry = users.entry(user).or_insert_with(|| {
            wanted.insert(user);
            bell.notify_one();
            Entry { count: 0, stage: Stage::Wanted, waiting: Vec::new() }
        });
        if entry.count == 0 {
            *held += 1;
            unwanted.remove(&user);
        }
        entry.count += 1;
        if entry.stage == Stage::Live {
            return Some(Held::Live);
        }
        let (confirm, confirmed) = oneshot::channel();
        // Callers who gave up must not pile up while Redis is away.
        entry.waiting.retain(|waiting| !waiting.is_closed());
        entry.waiting.push(confirm);
        Some(Held::Waiting(confirmed))
    }

    pub fn release(&self, user: UserId) {
        let mut table = self.table();
        let Table { users, wanted, unwanted, held, bell, .. } = &mut *table;
        let Some(entry) = users.get_mut(&user).filter(|entry| entry.count > 0) else {
            return;
        };
        entry.count -= 1;
        if entry.count > 0 {
            return;
        }
        *held -= 1;
        match entry.stage {
            Stage::Wanted => {
                wanted.remove(&user);
                users.remove(&user);
            }
            Stage::Asked => {}
            Stage::Live => {
                unwanted.insert(user);
                bell.notify_one();
            }
        }
    }

    /// Up to `max` of each; None if the server has it all, or if it is not the caller, who has this
    /// bell, that takes. The caller takes again only after the server confirmed, or after `lost`.
    pub fn take(&self, max: usize, by: &Arc<Notify>) -> Option<Difference> {
        let mut table = self.table();
        if !Arc::ptr_eq(&table.bell, by) {
            return None;
        }
        let Table { users, wanted, unwanted, term, .. } = &mut *table;
        let subscribe: Vec<_> = wanted.extract_if(|_| true).take(max).collect();
        for user in &subscribe {
            users.get_mut(user).expect("a wanted user has an entry").stage = Stage::Asked;
        }
        // Forgotten before the server is told: who wants them again in the meantime waits for a
        // new confirmation, which comes after.
        let unsubscribe: Vec<_> = unwanted.extract_if(|_| true).take(max).collect();
        for user in &unsubscribe {
            users.remove(user);
        }
        let nothing = subscribe.is_empty() && unsubscribe.is_empty();
        (!nothing).then_some(Difference { term: *term, subscribe, unsubscribe })
    }

    /// The server has confirmed what was to be subscribed to.
    pub fn confirm(&self, taken: &Difference) {
        let mut table = self.table();
        let Table { users, unwanted, term, .. } = &mut *table;
        if taken.term != *term {
            return;
        }
        for user in &taken.subscribe {
            let entry = users.get_mut(user).expect("only `lost` and `close` drop what was asked");
            entry.stage = Stage::Live;
            // Taken whole: most users are confirmed once, and then held for hours.
            for waiting in std::mem::take(&mut entry.waiting) {
                // Gone if its caller gave up.
                let _ = waiting.send(());
            }
            if entry.count == 0 {
                unwanted.insert(*user);
            }
        }
    }

    /// The server has none of them any more; who takes rings with this from now on.
    pub fn moved(&self, bell: Arc<Notify>) {
        self.table().bell = bell;
        self.lost();
    }

    /// The server has none of them any more.
    pub fn lost(&self) {
        let mut table = self.table();
        let Table { users, wanted, unwanted, bell, term, whole, gap, .. } = &mut *table;
        unwanted.clear();
        *term += 1;
        // Before it was whole for the first time nobody can have missed anything.
        *gap |= std::mem::take(whole);
        bell.notify_one();
        users.retain(|user, entry| {
            entry.stage = Stage::Wanted;
            entry.count > 0 && {
                wanted.insert(*user);
                true
            }
        });
    }

    /// If nothing is left to take, and nothing that was taken waits, all is restored. True if a gap
    /// is to be told now.
    pub fn settle(&self) -> bool {
        let mut table = self.table();
        let settled = table.wanted.is_empty()
            && (table.whole || table.users.values().all(|entry| entry.stage == Stage::Live));
        table.whole |= settled && !table.closed;
        table.whole && std::mem::take(&mut table.gap)
    }

    /// Whether the server was told to send this user's events, and not to stop.
    pub fn expects(&self, user: UserId) -> bool {
        self.table().users.get(&user).is_some_and(|entry| entry.stage != Stage::Wanted)
    }

    /// Nothing is confirmed any more: who waits hears it, and who comes later.
    pub fn close(&self) {
        let mut table = self.table();
        let term = table.term + 1;
        *table = Table { closed: true, term, ..Table::default() };
    }

    pub fn held(&self) -> usize {
        self.table().held
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(n: u128) -> UserId {
        UserId(uuid::Uuid::from_u128(n))
    }

    fn take(subscriptions: &Subscriptions, max: usize) -> Option<Difference> {
        let bell = subscriptions.table().bell.clone();
        subscriptions.take(max, &bell)
    }

    /// The server's side: applies what is taken until nothing is left.
    fn settle(subscriptions: &Subscriptions, server: &mut HashSet<UserId>) {
        while let Some(taken) = take(subscriptions, 3) {
            server.extend(&taken.subscribe);
            subscriptions.confirm(&taken);
            for user in &taken.unsubscribe {
                assert!(server.remove(user), "unsubscribed from what the server does not have");
            }
        }
    }

    fn confirmed(held: Option<Held>) -> bool {
        match held.unwrap() {
            Held::Live => true,
            Held::Waiting(mut waiting) => waiting.try_recv().is_ok(),
        }
    }

    #[test]
    fn a_hold_waits_for_its_confirmation() {
        let subscriptions = Subscriptions::default();
        let Some(Held::Waiting(mut waiting)) = subscriptions.hold(user(1)) else { panic!() };
        let taken = take(&subscriptions, 10).unwrap();
        assert_eq!((taken.subscribe.len(), taken.unsubscribe.len()), (1, 0));
        assert!(waiting.try_recv().is_err());
        subscriptions.confirm(&taken);
        assert!(waiting.try_recv().is_ok());
        assert!(matches!(subscriptions.hold(user(1)), Some(Held::Live)));
        assert_eq!(subscriptions.held(), 1);
        assert!(take(&subscriptions, 10).is_none());
    }

    #[test]
    fn released_while_asked_is_unsubscribed_after_the_confirmation() {
        let subscriptions = Subscriptions::default();
        subscriptions.hold(user(1));
        let taken = take(&subscriptions, 10).unwrap();
        subscriptions.release(user(1));
        assert_eq!(subscriptions.held(), 0);
        assert!(take(&subscriptions, 10).is_none());
        subscriptions.confirm(&taken);
        assert_eq!(take(&subscriptions, 10).unwrap().unsubscribe, [user(1)]);
    }

    /// The race: UNSUBSCRIBE is on its way when the user comes back. The hold must not take the
    /// old subscription for a live one.
    #[test]
    fn held_again_while_unsubscribing_waits_for_a_new_confirmation() {
        let subscriptions = Subscriptions::default();
        subscriptions.hold(user(1));
        subscriptions.confirm(&take(&subscriptions, 10).unwrap());
        subscriptions.release(user(1));
        assert_eq!(take(&subscriptions, 10).unwrap().unsubscribe, [user(1)]);
        assert!(!confirmed(subscriptions.hold(user(1))));
        assert_eq!(take(&subscriptions, 10).unwrap().subscribe, [user(1)]);
    }

    #[test]
    fn held_again_before_it_was_taken_stays_live() {
        let subscriptions = Subscriptions::default();
        subscriptions.hold(user(1));
        subscriptions.confirm(&take(&subscriptions, 10).unwrap());
        subscriptions.release(user(1));
        assert!(confirmed(subscriptions.hold(user(1))));
        assert!(take(&subscriptions, 10).is_none());
    }

    #[test]
    fn a_lost_connection_makes_all_that_is_held_wanted_again() {
        let subscriptions = Subscriptions::default();
        for n in 1..=4 {
            subscriptions.hold(user(n));
        }
        settle(&subscriptions, &mut HashSet::new());
        subscriptions.release(user(1)); // unwanted
        subscriptions.hold(user(5)); // asked
        assert!(take(&subscriptions, 1).is_some());
        subscriptions.lost();
        let mut server = HashSet::new();
        settle(&subscriptions, &mut server);
        assert_eq!(server, (2..=5).map(user).collect());
    }

    /// A slot moved while its command was under way: the late confirmation is of another master.
    #[test]
    fn a_confirmation_from_before_a_loss_is_void_and_a_gap_is_told_once() {
        let subscriptions = Subscriptions::default();
        subscriptions.lost();
        let Some(Held::Waiting(mut waiting)) = subscriptions.hold(user(1)) else { panic!() };
        assert!(!subscriptions.settle());
        let (before, old) = (take(&subscriptions, 10).unwrap(), subscriptions.table().bell.clone());
        assert!(subscriptions.expects(user(1)) && !subscriptions.expects(user(2)));
        subscriptions.moved(Arc::default());
        assert!(!subscriptions.expects(user(1)));
        subscriptions.confirm(&before);
        assert!(waiting.try_recv().is_err());
        assert!(subscriptions.take(10, &old).is_none(), "by whom it was taken from");
        subscriptions.confirm(&take(&subscriptions, 10).unwrap());
        assert!(waiting.try_recv().is_ok());
        // Nobody had anything before; from now on a loss is one.
        assert!(!subscriptions.settle());
        subscriptions.lost();
        assert!(!subscriptions.settle(), "not while it is wanted");
        let taken = take(&subscriptions, 10).unwrap();
        assert!(!subscriptions.settle(), "not while it is asked for");
        subscriptions.confirm(&taken);
        assert!(subscriptions.settle());
        assert!(!subscriptions.settle(), "twice");
    }

    #[test]
    fn a_close_ends_all_waiting() {
        let subscriptions = Subscriptions::default();
        let Some(Held::Waiting(mut waiting)) = subscriptions.hold(user(1)) else { panic!() };
        subscriptions.close();
        assert_eq!(waiting.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert!(subscriptions.hold(user(1)).is_none());
        subscriptions.release(user(1));
        assert_eq!(subscriptions.held(), 0);
    }

    /// Whatever the order of events, once all is settled the server has exactly what is held.
    #[test]
    fn any_history_ends_with_what_is_held() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for _ in 0..300 {
            let subscriptions = Subscriptions::default();
            let mut server = HashSet::new();
            let mut counts = HashMap::<UserId, u32>::new();
            let mut asked: Option<Difference> = None;
            for _ in 0..200 {
                let who = user(random(6).into());
                match random(8) {
                    0..=2 => {
                        subscriptions.hold(who);
                        *counts.entry(who).or_default() += 1;
                    }
                    3..=5 => {
                        subscriptions.release(who);
                        let count = counts.entry(who).or_default();
                        *count = count.saturating_sub(1);
                    }
                    6 => match asked.take() {
                        None => asked = take(&subscriptions, 2),
                        Some(taken) => {
                            server.extend(&taken.subscribe);
                            subscriptions.confirm(&taken);
                            server.retain(|user| !taken.unsubscribe.contains(user));
                        }
                    },
                    _ if random(10) == 0 => {
                        asked = None;
                        server.clear();
                        subscriptions.lost();
                    }
                    _ => {}
                }
                let held = counts.values().filter(|count| **count > 0).count();
                assert_eq!(subscriptions.held(), held);
            }
            if let Some(taken) = asked {
                server.extend(&taken.subscribe);
                subscriptions.confirm(&taken);
                server.retain(|user| !taken.unsubscribe.contains(user));
            }
            settle(&subscriptions, &mut server);
            counts.retain(|_, count| *count > 0);
            assert_eq!(server, counts.into_keys().collect());
            let table = subscriptions.table();
            assert_eq!(table.users.len(), table.held, "an entry nobody holds was left behind");
        }
    }
}
