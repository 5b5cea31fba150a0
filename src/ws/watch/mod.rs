//! Sessions that want to be told when others come online or go.
//!
//! A node on which a user's first device came or a device went publishes a hint, which says no more
//! than "look": nodes where he is watched ask presence, and tell those who watch him if he is not as
//! they were told. So hints may come twice, late, or not at all: each node also looks at all whom
//! its sessions watch once in a lease's time, a part at a time. That is how the end of a node that
//! died shows, and the end of a lost hint.
//!
//! Told is only who shares a conversation with him: judged when the list is given, and again for
//! each event.

mod registry;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OnceCell, mpsc};
use tokio_util::sync::CancellationToken;

pub use self::registry::Registry;
use super::handle::Session;
use crate::bus::{Bus, Envelope, Order, PRESENCE_TOPICS, presence_topic};
use crate::ids::UserId;
use crate::presence::Presence;
use crate::protocol::code::Code;
use crate::protocol::model::UserPresence;
use crate::protocol::problem::Problem;
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::write_path::{WritePath, Yields, store_problem};

/// Lists that wait to be read; beyond, a client hears that the node is busy.
const LISTS: usize = 1_024;
/// Lists that are read at a time.
const READS: usize = 16;
/// Users who came or went and of whom others are still to be told; beyond, they find out themselves.
const HINTS: usize = 4_096;
/// Users looked at together.
const LOOKS: usize = 1_000;
/// Users of whom it is found out at a time who may be told.
const JUDGED: usize = 4;
/// In so many parts all who are watched are looked at, within a lease's time.
const PARTS: u32 = 10;
/// Of one part: with more than ten times as many watched users a round takes longer.
const PART: usize = 4_000;
const SHORTEST_STEP: Duration = Duration::from_millis(50);

/// Called once, with what is known of those who were named; must not wait.
pub type Reply = Box<dyn FnOnce(Result<Vec<UserPresence>, Problem>) + Send>;

struct Request {
    session: Arc<Session>,
    turn: u64,
    user_ids: Vec<UserId>,
    reply: Reply,
}

/// The way in.
pub struct Watch {
    registry: Arc<Registry>,
    lists: mpsc::Sender<Request>,
    hints: mpsc::Sender<UserId>,
    metrics: Metrics,
}

/// What waits for the tasks.
pub struct Queues {
    lists: mpsc::Receiver<Request>,
    hints: mpsc::Receiver<UserId>,
}

impl Watch {
    pub fn new(registry: Arc<Registry>, metrics: Metrics) -> (Self, Queues) {
        let (lists, lists_in) = mpsc::channel(LISTS);
        let (hints, hints_in) = mpsc::channel(HINTS);
        (Self { registry, lists, hints, metrics }, Queues { lists: lists_in, hints: hints_in })
    }

    /// Replaces whom a session watches. Submits and returns at once; of two lists the later stands.
    pub fn replace(&self, session: &Arc<Session>, user_ids: Vec<UserId>, reply: Reply) {
        let turn = self.registry.turn();
        let request = Request { session: session.clone(), turn, user_ids, reply };
        if let Err(refused) = self.lists.try_send(request) {
            let problem = Problem::new(Code::Busy, "too many lists wait already; try again");
            (refused.into_inner().reply)(Err(problem));
        }
    }

    /// The first device of a user came here, or a device of his went.
    pub fn came_or_went(&self, user: UserId) {
        if self.hints.try_send(user).is_err() {
            self.metrics.signals.hints_dropped.increment(1);
        }
    }

    /// A session is gone.
    pub fn forget(&self, session: &Session) {
        self.registry.forget(session.id);
    }
}

/// The tasks' own.
pub struct Watcher {
    pub registry: Arc<Registry>,
    pub store: Store,
    pub bus: Bus,
    pub presence: Presence,
    pub write_path: WritePath,
    pub metrics: Metrics,
    /// Those of the presence topics that are subscribed to.
    pub topics: [OnceCell<()>; PRESENCE_TOPICS],
    /// In which all who are watched are looked at once.
    pub round: Duration,
}

impl Watcher {
    /// All three tasks, until `stop`.
    pub async fn run(self, queues: Queues, stop: CancellationToken) {
        let Queues { lists, hints } = queues;
        tokio::join!(
            self.answer(lists, &stop),
            self.publish(hints, &stop),
            self.look_when_due(&stop),
            self.look_in_turn(&stop),
        );
    }

    async fn answer(&self, mut lists: mpsc::Receiver<Request>, stop: &CancellationToken) {
        let mut answers = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(request) = lists.recv(), if answers.len() < READS => {
                    let Request { session, turn, user_ids, reply } = request;
                    answers.push(async move {
                        reply(self.replace(&session, turn, &user_ids).await);
                    });
                }
                Some(()) = answers.next() => {}
            }
        }
    }

    async fn replace(
        &self,
        session: &Arc<Session>,
        turn: u64,
        user_ids: &[UserId],
    ) -> Result<Vec<UserPresence>, Problem> {
        let known = match user_ids {
            [] => Vec::new(),
            named => {
                let known = self.store.acquainted(session.user_id, named).await;
                known.map_err(|error| store_problem(&error))?
            }
        };
        // Before anything is read, or a hint falls between.
        for user in &known {
            let (at, topic) = presence_topic(*user);
            let subscribed = self.topics[at].get_or_try_init(|| self.bus.subscribe(topic)).await;
            subscribed.map_err(|error| {
                tracing::warn!(%error, "nobody can be watched");
                Problem::new(Code::Unavailable, "other nodes cannot be heard now; try again")
            })?;
        }
        self.registry.replace(session, turn, &known);
        if session.queue.ended().is_some() {
            // It left meanwhile, and may have been forgotten before this.
            self.registry.forget(session.id);
        }
        let status = self.presence.status(&known).await;
        let shown = known.into_iter().zip(status).map(|(user, status)| {
            let is_known = status.is_known();
            self.registry.settle(status.shown(user), is_known)
        });
        Ok(shown.collect())
    }

    async fn publish(&self, mut hints: mpsc::Receiver<UserId>, stop: &CancellationToken) {
        let mut users = Vec::new();
        loop {
            tokio::select! {
                () = stop.cancelled(), if !hints.is_closed() => hints.close(),
                received = hints.recv_many(&mut users, LOOKS) => if received == 0 { return },
            }
            users.sort_unstable();
            users.dedup();
            let envelopes = users.drain(..).map(|user| {
                let hint = Envelope::order(user, Order::Look).encode();
                (presence_topic(user).1, hint)
            });
            let envelopes: Vec<_> = envelopes.collect();
            // What does not arrive is found by those who look in turn.
            self.bus.publish(&envelopes).await;
        }
    }

    async fn look_when_due(&self, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.registry.due.notified() => {}
            }
            loop {
                let due = self.registry.take_due(LOOKS);
                if due.is_empty() || stop.run_until_cancelled(self.look(due)).await.is_none() {
                    break;
                }
            }
        }
    }

    /// Makes all who are watched due, once in a round.
    async fn look_in_turn(&self, stop: &CancellationToken) {
        let step = (self.round / PARTS).max(SHORTEST_STEP);
        let mut round = Vec::new();
        let mut part = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(step) => {}
            }
            if round.is_empty() {
                round = self.registry.watched();
                self.metrics.signals.watched.set(round.len() as f64);
                part = round.len().div_ceil(PARTS as usize).min(PART);
            }
            for user in round.drain(round.len().saturating_sub(part)..) {
                self.registry.hint(user);
            }
        }
    }

    async fn look(&self, users: Vec<UserId>) {
        if self.write_path.is_pressed(Yields::Ephemeral) {
            // Found by the next round.
            return;
        }
        let status = self.presence.status(&users).await;
        let known = users.into_iter().zip(status).filter(|(_, status)| status.is_known());
        let changed = known.filter_map(|(user, status)| {
            let found = status.shown(user);
            let watchers = self.registry.to_be_told(user, found.online);
            (!watchers.is_empty()).then_some((found, watchers))
        });
        let changed: Vec<_> = changed.collect();
        let told = changed.into_iter().map(async |(found, watchers)| {
            match self.store.acquainted(found.user_id, &watchers).await {
                Ok(acquainted) => self.registry.tell(&found, &watchers, &acquainted) as u64,
                // Nobody is told who may not be; the next round finds it.
                Err(error) => {
                    tracing::warn!(%error, "those who watch were not told");
                    0
                }
            }
        });
        let told = futures_util::stream::iter(told).buffer_unordered(JUDGED);
        let told = told.fold(0, async |sum, told| sum + told).await;
        self.metrics.signals.presence.increment(told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_beyond_the_bound_are_dropped_and_counted() {
        let (metrics, exporter) = Metrics::new();
        let (watch, _queues) = Watch::new(Arc::default(), metrics);
        for n in 0..=HINTS {
            watch.came_or_went(UserId(uuid::Uuid::from_u128(n as u128)));
        }
        assert!(exporter.render().contains("tidings_presence_hints_dropped_total 1\n"));
    }
}
