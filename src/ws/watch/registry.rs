//! Who watches whom on this node. A session that watches nobody is not in here.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::super::handle::Session;
use super::super::outbound::{Class, Item};
use crate::ids::{SessionId, UserId};
use crate::protocol::event::Event;
use crate::protocol::model::UserPresence;

#[derive(Default)]
pub struct Registry {
    state: Mutex<State>,
    /// Somebody is to be looked at.
    pub(super) due: Notify,
    turns: AtomicU64,
}

#[derive(Default)]
struct State {
    users: HashMap<UserId, Watched>,
    lists: HashMap<SessionId, List>,
    due: HashSet<UserId>,
}

/// A user whom somebody here watches.
struct Watched {
    /// What all who watch him hold for true; None until he was looked at once.
    told: Option<bool>,
    /// At least one.
    watchers: Vec<Arc<Session>>,
}

/// Whom a session watches.
struct List {
    turn: u64,
    users: Box<[UserId]>,
}

impl State {
    fn unwatch(&mut self, user: UserId, session: SessionId) {
        if let Some(watched) = self.users.get_mut(&user) {
            watched.watchers.retain(|watcher| watcher.id != session);
            if watched.watchers.is_empty() {
                self.users.remove(&user);
            }
        }
    }
}

impl Registry {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for each list, in the order in which they came.
    pub(super) fn turn(&self) -> u64 {
        self.turns.fetch_add(1, Ordering::Relaxed)
    }

    /// Replaces whom the session watches, unless a later list has come before.
    pub(super) fn replace(&self, session: &Arc<Session>, turn: u64, users: &[UserId]) {
        let mut state = self.state();
        if state.lists.get(&session.id).is_some_and(|list| list.turn > turn) {
            return;
        }
        let before = state.lists.insert(session.id, List { turn, users: users.into() });
        for user in before.iter().flat_map(|list| &list.users) {
            if !users.contains(user) {
                state.unwatch(*user, session.id);
            }
        }
        for user in users {
            let nobody = || Watched { told: None, watchers: Vec::with_capacity(1) };
            let watched = state.users.entry(*user).or_insert_with(nobody);
            if watched.watchers.iter().all(|watcher| watcher.id != session.id) {
                watched.watchers.push(session.clone());
            }
        }
    }

    pub fn forget(&self, session: SessionId) {
        let mut state = self.state();
        let Some(list) = state.lists.remove(&session) else { return };
        for user in &list.users {
            state.unwatch(*user, session);
        }
    }

    /// A user came or went, perhaps: looked at soon, if he is watched.
    pub fn hint(&self, user: UserId) {
        let mut state = self.state();
        if state.users.contains_key(&user) && state.due.insert(user) {
            drop(state);
            self.due.notify_one();
        }
    }

    pub(super) fn take_due(&self, most: usize) -> Vec<UserId> {
        let mut state = self.state();
        let due: Vec<UserId> = state.due.iter().copied().take(most).collect();
        for user in &due {
            state.due.remove(user);
        }
        due
    }

    pub(super) fn watched(&self) -> Vec<UserId> {
        self.state().users.keys().copied().collect()
    }

    /// What a session that begins to watch is answered: the same as the others were told. If that
    /// is not true any more, all are told so soon.
    pub(super) fn settle(&self, found: UserPresence, is_known: bool) -> UserPresence {
        let mut state = self.state();
        let Some(watched) = state.users.get_mut(&found.user_id) else { return found };
        let told = *watched.told.get_or_insert(found.online);
        if told == found.online {
            return found;
        }
        if is_known {
            state.due.insert(found.user_id);
            drop(state);
            self.due.notify_one();
        }
        UserPresence { online: told, devices: Vec::new(), last_seen: None, ..found }
    }

    /// The users who watch `user` and were told something else than this; empty if there is nothing
    /// to tell.
    pub(super) fn to_be_told(&self, user: UserId, online: bool) -> Vec<UserId> {
        let mut state = self.state();
        let Some(watched) = state.users.get_mut(&user) else { return Vec::new() };
        // Where nobody was told anything yet, the answer that is under way says this.
        if *watched.told.get_or_insert(online) == online {
            return Vec::new();
        }
        let mut watchers: Vec<UserId> =
            watched.watchers.iter().map(|session| session.user_id).collect();
        watchers.sort_unstable();
        watchers.dedup();
        watchers
    }

    /// Tells all who watch him, but those of the `judged` who are not acquainted with him: they watch
    /// him no more. Who came since was judged when he came. Returns how many were told.
    pub(super) fn tell(
        &self,
        found: &UserPresence,
        judged: &[UserId],
        acquainted: &[UserId],
    ) -> usize {
        let UserPresence { user_id, online, last_seen, .. } = *found;
        let frame = Event::Presence { user_id, online, last_seen }.encode();
        let mut state = self.state();
        let Some(watched) = state.users.get_mut(&user_id) else { return 0 };
        watched.told = Some(online);
        let is_stranger = |user: &UserId| judged.contains(user) && !acquainted.contains(user);
        watched.watchers.retain(|session| !is_stranger(&session.user_id));
        for session in &watched.watchers {
            session.push(Item::text(frame.clone(), Class::Ephemeral));
        }
        let told = watched.watchers.len();
        if told == 0 {
            state.users.remove(&user_id);
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hyper::header::{HeaderMap, HeaderName, HeaderValue};

    use super::*;
    use crate::auth::{Authenticator, Handshake};
    use crate::config::{AuthConfig, AuthMode};
    use crate::telemetry::Metrics;
    use crate::ws::handle::Opening;
    use crate::ws::outbound::Bounds;

    fn user(n: u128) -> UserId {
        UserId(uuid::Uuid::from_u128(n))
    }

    async fn session(user: UserId) -> Arc<Session> {
        let (mode, allowed_origins) = (AuthMode::Dev, Vec::new());
        let auth = AuthConfig { mode, allowed_origins };
        let auth = Authenticator::connect(auth, None).await.unwrap();
        let named = HeaderValue::from_str(&user.to_string()).unwrap();
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-user-id"), named)]);
        let peer = Ipv4Addr::LOCALHOST.into();
        let identity = auth.identify(&headers, peer, Handshake::default()).await.unwrap();
        let opening = Opening {
            identity,
            device_id: None,
            platform: None,
            app_version: None,
            classic: false,
            acks: false,
        };
        let bounds = Bounds { frames: 16, bytes: 4_096 };
        Arc::new(Session::new(opening, bounds, Metrics::new().0))
    }

    fn found(user_id: UserId, online: bool) -> UserPresence {
        UserPresence { user_id, online, devices: Vec::new(), last_seen: None }
    }

    async fn events(session: &Session) -> usize {
        session.queue.push_first(Item::text("{}".into(), Class::Answer));
        let taken = session.queue.take().await.items;
        session.queue.written(&taken);
        taken.len() - 1
    }

    /// Whom he shares a conversation with is asked without a lock, and others come meanwhile.
    #[tokio::test]
    async fn one_who_comes_while_others_are_judged_is_told() {
        let registry = Registry::default();
        let him = user(1);
        let (ann, eve) = (session(user(2)).await, session(user(3)).await);
        let ben = session(user(4)).await;
        for watcher in [&ann, &eve] {
            registry.replace(watcher, registry.turn(), &[him]);
            assert!(!registry.settle(found(him, false), true).online);
        }
        let judged = registry.to_be_told(him, true);
        assert_eq!(judged, [user(2), user(3)]);
        registry.replace(&ben, registry.turn(), &[him]);
        // As the others were told, for that is what the next event will change.
        assert!(!registry.settle(found(him, true), true).online);
        assert_eq!(registry.tell(&found(him, true), &judged, &[user(2)]), 2);
        assert_eq!((events(&ann).await, events(&eve).await, events(&ben).await), (1, 0, 1));
        assert_eq!(registry.to_be_told(him, true), [], "all who watch him know");
        assert_eq!(registry.to_be_told(him, false), [user(2), user(4)]);
    }

    /// Seen on a slow machine: one who came just before he was watched was told of by an event beside
    /// the answer that said the same.
    #[tokio::test]
    async fn what_the_answer_will_say_is_not_told_beside_it() {
        let registry = Registry::default();
        let him = user(1);
        let ann = session(user(2)).await;
        registry.replace(&ann, registry.turn(), &[him]);
        assert_eq!(registry.to_be_told(him, true), []);
        assert!(registry.settle(found(him, true), true).online);
        assert_eq!((events(&ann).await, registry.take_due(10)), (0, vec![]));
        // An answer that was read before that is put right.
        let ben = session(user(3)).await;
        registry.replace(&ben, registry.turn(), &[him]);
        assert!(registry.settle(found(him, false), true).online);
        assert_eq!(registry.take_due(10), [him]);
    }

    #[tokio::test]
    async fn of_two_lists_the_later_stands_whenever_it_is_read() {
        let registry = Registry::default();
        let ann = session(user(2)).await;
        let (earlier, later) = (registry.turn(), registry.turn());
        registry.replace(&ann, later, &[user(7)]);
        registry.replace(&ann, earlier, &[user(8)]);
        assert_eq!(registry.watched(), [user(7)]);
        registry.replace(&ann, registry.turn(), &[user(8), user(9)]);
        let mut watched = registry.watched();
        watched.sort();
        assert_eq!(watched, [user(8), user(9)]);
    }

    #[tokio::test]
    async fn of_a_session_that_is_gone_nothing_is_left() {
        let registry = Registry::default();
        let ann = session(user(2)).await;
        registry.replace(&ann, registry.turn(), &[user(7), user(8)]);
        registry.forget(ann.id);
        let state = registry.state();
        assert!(state.users.is_empty() && state.lists.is_empty());
        drop(state);
        registry.hint(user(7));
        assert_eq!(registry.take_due(10), []);
        assert_eq!(Arc::strong_count(&ann), 1);
    }
}
