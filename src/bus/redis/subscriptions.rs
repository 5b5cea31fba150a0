//! The users this node wants events for: the truth, which the connection is made to match.
//!
//! Callers change the table under a lock and never wait for it; the subscriber takes what differs
//! from the server, in bulk. So nothing is queued per call: the table is bounded by the users that
//! are held, however they come and go while Redis is away.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, futures::Notified, oneshot};

use crate::ids::UserId;

#[derive(Default)]
pub(super) struct Subscriptions {
    table: Mutex<Table>,
    changed: Notify,
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
    pub subscribe: Vec<UserId>,
    /// To be sent after `subscribe` was confirmed; no user is in both.
    pub unsubscribe: Vec<UserId>,
}

impl Subscriptions {
    /// None: the bus was stopped.
    pub fn hold(&self, user: UserId) -> Option<Held> {
        let mut table = self.table();
        let Table { users, wanted, unwanted, held, closed } = &mut *table;
        if *closed {
            return None;
        }
        let entry = users.entry(user).or_insert_with(|| {
            wanted.insert(user);
            self.changed.notify_one();
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
        let Table { users, wanted, unwanted, held, .. } = &mut *table;
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
                self.changed.notify_one();
            }
        }
    }

    /// Up to `max` of each; None if the server has it all. The caller takes again only after the
    /// server confirmed, or after `lost`.
    pub fn take(&self, max: usize) -> Option<Difference> {
        let mut table = self.table();
        let Table { users, wanted, unwanted, .. } = &mut *table;
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
        (!nothing).then_some(Difference { subscribe, unsubscribe })
    }

    /// The server has confirmed these, as they were taken.
    pub fn confirm(&self, subscribed: &[UserId]) {
        let mut table = self.table();
        let Table { users, unwanted, .. } = &mut *table;
        for user in subscribed {
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

    /// The server has none of them any more.
    pub fn lost(&self) {
        let mut table = self.table();
        let Table { users, wanted, unwanted, .. } = &mut *table;
        unwanted.clear();
        users.retain(|user, entry| {
            entry.stage = Stage::Wanted;
            entry.count > 0 && {
                wanted.insert(*user);
                true
            }
        });
    }

    /// Nothing is confirmed any more: who waits hears it, and who comes later.
    pub fn close(&self) {
        *self.table() = Table { closed: true, ..Table::default() };
    }

    /// Ready when there may be something to take. Cancel-safe.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
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

    /// The server's side: applies what is taken until nothing is left.
    fn settle(subscriptions: &Subscriptions, server: &mut HashSet<UserId>) {
        while let Some(Difference { subscribe, unsubscribe }) = subscriptions.take(3) {
            server.extend(&subscribe);
            subscriptions.confirm(&subscribe);
            for user in &unsubscribe {
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
        let taken = subscriptions.take(10).unwrap();
        assert_eq!((taken.subscribe.len(), taken.unsubscribe.len()), (1, 0));
        assert!(waiting.try_recv().is_err());
        subscriptions.confirm(&taken.subscribe);
        assert!(waiting.try_recv().is_ok());
        assert!(matches!(subscriptions.hold(user(1)), Some(Held::Live)));
        assert_eq!(subscriptions.held(), 1);
        assert!(subscriptions.take(10).is_none());
    }

    #[test]
    fn released_while_asked_is_unsubscribed_after_the_confirmation() {
        let subscriptions = Subscriptions::default();
        subscriptions.hold(user(1));
        let taken = subscriptions.take(10).unwrap();
        subscriptions.release(user(1));
        assert_eq!(subscriptions.held(), 0);
        assert!(subscriptions.take(10).is_none());
        subscriptions.confirm(&taken.subscribe);
        assert_eq!(subscriptions.take(10).unwrap().unsubscribe, [user(1)]);
    }

    /// The race: UNSUBSCRIBE is on its way when the user comes back. The hold must not take the
    /// old subscription for a live one.
    #[test]
    fn held_again_while_unsubscribing_waits_for_a_new_confirmation() {
        let subscriptions = Subscriptions::default();
        subscriptions.hold(user(1));
        subscriptions.confirm(&subscriptions.take(10).unwrap().subscribe);
        subscriptions.release(user(1));
        assert_eq!(subscriptions.take(10).unwrap().unsubscribe, [user(1)]);
        assert!(!confirmed(subscriptions.hold(user(1))));
        assert_eq!(subscriptions.take(10).unwrap().subscribe, [user(1)]);
    }

    #[test]
    fn held_again_before_it_was_taken_stays_live() {
        let subscriptions = Subscriptions::default();
        subscriptions.hold(user(1));
        subscriptions.confirm(&subscriptions.take(10).unwrap().subscribe);
        subscriptions.release(user(1));
        assert!(confirmed(subscriptions.hold(user(1))));
        assert!(subscriptions.take(10).is_none());
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
        assert!(subscriptions.take(1).is_some());
        subscriptions.lost();
        let mut server = HashSet::new();
        settle(&subscriptions, &mut server);
        assert_eq!(server, (2..=5).map(user).collect());
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
                        None => asked = subscriptions.take(2),
                        Some(Difference { subscribe, unsubscribe }) => {
                            server.extend(&subscribe);
                            subscriptions.confirm(&subscribe);
                            server.retain(|user| !unsubscribe.contains(user));
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
            if let Some(Difference { subscribe, unsubscribe }) = asked {
                server.extend(&subscribe);
                subscriptions.confirm(&subscribe);
                server.retain(|user| !unsubscribe.contains(user));
            }
            settle(&subscriptions, &mut server);
            counts.retain(|_, count| *count > 0);
            assert_eq!(server, counts.into_keys().collect());
            let table = subscriptions.table();
            assert_eq!(table.users.len(), table.held, "an entry nobody holds was left behind");
        }
    }
}
