//! What was committed goes to the bus for members who are online and to the offline sink for those
//! who are not. How many received a publish decides how soon a push goes out, never whether a
//! message is safe: that is judged by `settled_seq`, a grace after this one attempt.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::members::MembersCache;
use super::proofs::Proofs;
use crate::bus::{Bus, Class, Classic, Envelope, Head, Receivers};
use crate::clock::Timestamp;
use crate::ids::{ConversationId, OutboxId, Seq, SessionId, UserId};
use crate::offline::{Offline, Reason, Recipient, Record};
use crate::presence::{Presence, Status};
use crate::protocol::event;
use crate::protocol::model::{ChangeKind, Conversation, Message};
use crate::sabotage::{self, Mutation};
use crate::store::types::{Changed, MemberState, Members, Proof, Run};
use crate::store::{Store, StoreError};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Stage;
use crate::telemetry::traces::{Trace, Way};

/// Batches taken together, so that their publishes share round trips.
const BATCHES: usize = 16;
/// Conversations whose members are read at a time.
const MEMBER_READS: usize = 8;
/// Hand-overs to the offline sink at a time, each of one dispatch; beyond, Reconcile does it.
const HAND_OVERS: usize = 64;

/// How long hand-overs may go on when the node stops.
const HAND_OVER_SPARE: Duration = Duration::from_secs(3);

/// A committed batch.
pub struct Dispatch {
    pub outbox: OutboxId,
    pub committed: Instant,
    pub events: Vec<Event>,
}

/// One committed change.
pub enum Event {
    Message {
        /// Created, edited or deleted.
        kind: ChangeKind,
        message: Arc<Message>,
        /// The session that gets no event of it, for it has the answer.
        origin: Option<SessionId>,
        members_version: i64,
        received: Instant,
        way: Way,
    },
    Conversation(Changed),
}

impl Event {
    fn conversation_id(&self) -> ConversationId {
        match self {
            Self::Message { message, .. } => message.conversation_id,
            Self::Conversation(changed) => changed.conversation_id,
        }
    }

    fn seq(&self) -> Seq {
        match self {
            Self::Message { kind, message, .. } => message.told(*kind).1,
            Self::Conversation(changed) => changed.seq,
        }
    }

    fn is_seen_by(&self, member: &MemberState) -> bool {
        if sabotage::is_on(Mutation::TellLeavers) {
            return true;
        }
        match self {
            Self::Message { message, .. } => member.sees_change_of(message.seq, self.seq()),
            Self::Conversation(changed) => member.sees(changed.seq),
        }
    }

    fn members_version(&self) -> i64 {
        match self {
            Self::Message { members_version, .. } => *members_version,
            Self::Conversation(changed) => changed.members_version,
        }
    }
}

/// An event as it is published.
struct Encoded {
    for_members: Bytes,
    /// Where it differs for those who left.
    for_leavers: Option<Bytes>,
}

/// A change of a message and those who had no device to receive it.
struct Absent {
    kind: ChangeKind,
    message: Arc<Message>,
    trace: Trace,
    members: Arc<Members>,
    users: Vec<UserId>,
}

pub struct Dispatcher {
    pub store: Store,
    pub members: MembersCache,
    pub bus: Bus,
    pub presence: Presence,
    pub offline: Offline,
    pub proofs: Proofs,
    pub metrics: Metrics,
    /// Rows whose one attempt was made, for `outbox` to let go after the grace.
    pub attempted: mpsc::Sender<(Instant, OutboxId)>,
    /// Hand-overs under way; the stop waits for them, a moment.
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
    pub hand_overs: Arc<Semaphore>,
}

impl Dispatcher {
    pub fn hand_over_bound() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(HAND_OVERS))
    }

    /// One per lane, so that a lane's publishes stay in order. Until the lane is gone and `stop`.
    pub async fn run(
        self: Arc<Self>,
        mut committed: mpsc::Receiver<Dispatch>,
        stop: CancellationToken,
    ) {
        let mut batches = Vec::new();
        while committed.recv_many(&mut batches, BATCHES).await > 0 {
            let oldest = batches.iter().map(|batch| batch.committed).min();
            let (mut rows, mut events) = (Vec::new(), Vec::new());
            for batch in batches.drain(..) {
                let of = batch.events.iter().map(Event::conversation_id).collect::<Vec<_>>();
                rows.push((batch.outbox, of));
                events.extend(batch.events);
            }
            let missed = self.dispatch(&events).await;
            if let Some(oldest) = oldest {
                let stage = self.metrics.stages.stage.of(Stage::CommittedPublished);
                stage.record(oldest.elapsed());
            }
            let now = Instant::now();
            for (row, of) in rows {
                // A row of a conversation that was missed stays until its lease runs out, and the
                // sweeper tries again.
                if of.iter().any(|id| missed.contains(id)) {
                    continue;
                }
                // Gone only when the node is stopping: another takes the row over.
                let _ = self.attempted.send((now, row)).await;
            }
        }
        stop.cancelled().await;
    }

    /// Publishes events to all who may see them, and starts to hand over for those who are absent.
    /// Returns the conversations whose members, or whose state, could not be read.
    pub async fn dispatch(self: &Arc<Self>, events: &[Event]) -> HashSet<ConversationId> {
        let (members_of, mut missed) = self.members_of(events).await;
        // For whom, of which event, what.
        let mut publishes: Vec<(UserId, usize, Bytes)> = Vec::new();
        for (at, event) in events.iter().enumerate() {
            let Some(members) = members_of.get(&event.conversation_id()) else { continue };
            let encoded = match self.encode(event).await {
                Ok(Some(encoded)) => encoded,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(%error, "a change of a conversation was not dispatched");
                    missed.insert(event.conversation_id());
                    continue;
                }
            };
            for member in members.members.iter().filter(|member| event.is_seen_by(member)) {
                let bytes = match member.left_seq {
                    Some(_) => encoded.for_leavers.as_ref().unwrap_or(&encoded.for_members),
                    None => &encoded.for_members,
                };
                publishes.push((member.user_id, at, bytes.clone()));
            }
        }
        // What one user is to get stands together, in its order: his sockets then write it at once.
        publishes.sort_unstable_by_key(|(user, at, _)| (*user, *at));
        let (publishes, of): (Vec<_>, Vec<_>) =
            publishes.into_iter().map(|(user, at, bytes)| ((user, bytes), at)).unzip();
        let started = Instant::now();
        let receivers = self.bus.publish(&publishes).await;
        self.metrics.dispatch.publish.record(started.elapsed());
        self.metrics.dispatch.published.increment(publishes.len() as u64);
        // In the order of the events, for that is the order of their records.
        let mut absent: BTreeMap<usize, Absent> = BTreeMap::new();
        for (((user, _), at), count) in publishes.iter().zip(of).zip(receivers) {
            let Event::Message { kind, message, way, .. } = &events[at] else { continue };
            let Some(members) = members_of.get(&message.conversation_id) else { continue };
            if *user == message.sender_id || !matches!(count, Receivers::Count(0)) {
                continue;
            }
            let entry = absent.entry(at).or_insert_with(|| Absent {
                kind: *kind,
                message: message.clone(),
                trace: way.trace(),
                members: members.clone(),
                users: Vec::new(),
            });
            entry.users.push(*user);
        }
        if !absent.is_empty() {
            self.start_hand_over(absent.into_values().collect());
        }
        missed
    }

    /// The members of each conversation at the version its events ask for, or later.
    async fn members_of(
        &self,
        events: &[Event],
    ) -> (HashMap<ConversationId, Arc<Members>>, HashSet<ConversationId>) {
        let mut versions: HashMap<ConversationId, i64> = HashMap::new();
        for event in events {
            let version = versions.entry(event.conversation_id()).or_insert(0);
            *version = event.members_version().max(*version);
        }
        let reads = versions
            .into_iter()
            .map(async |(id, version)| (id, self.members.get(id, version).await));
        let mut reads = futures_util::stream::iter(reads).buffer_unordered(MEMBER_READS);
        let (mut found, mut missed) = (HashMap::new(), HashSet::new());
        while let Some((id, members)) = reads.next().await {
            match members {
                Ok(Some(members)) => {
                    found.insert(id, members);
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, conversation_id = %id, "the members could not be read");
                    missed.insert(id);
                }
            }
        }
        (found, missed)
    }

    async fn encode(&self, event: &Event) -> Result<Option<Encoded>, StoreError> {
        match event {
            Event::Message { kind, message, origin, received, .. } => {
                let age = received.elapsed().as_millis() as i64;
                let sent_at = Timestamp::from_millis(Timestamp::now().millis() - age);
                let envelope = message_envelope(*kind, message, *origin, sent_at);
                Ok(Some(Encoded { for_members: envelope.encode(), for_leavers: None }))
            }
            Event::Conversation(changed) => {
                let id = changed.conversation_id;
                let Some(conversation) = self.store.conversation_for_event(id).await? else {
                    return Ok(None);
                };
                // What happened after he left is not a leaver's to see, and this may be late. The
                // empty list says that he is out.
                let left = Conversation {
                    title: None,
                    members: Some(Vec::new()),
                    last_seq: changed.seq,
                    ..conversation.clone()
                };
                Ok(Some(Encoded {
                    for_members: conversation_envelope(&conversation, changed).encode(),
                    for_leavers: Some(conversation_envelope(&left, changed).encode()),
                }))
            }
        }
    }

    /// In a task of its own, for the bus is not to wait for Kafka.
    fn start_hand_over(self: &Arc<Self>, absent: Vec<Absent>) {
        let Ok(permit) = self.hand_overs.clone().try_acquire_owned() else { return };
        let this = self.clone();
        self.tasks.spawn(async move {
            let _permit = permit;
            let stopping = async {
                this.stop.cancelled().await;
                tokio::time::sleep(HAND_OVER_SPARE).await;
            };
            // What is not confirmed by then is a laggard of another node.
            tokio::select! {
                () = this.hand_over_absent(absent) => {}
                () = stopping => {}
            }
        });
    }

    async fn hand_over_absent(&self, absent: Vec<Absent>) {
        let mut users: Vec<UserId> = absent.iter().flat_map(|a| a.users.clone()).collect();
        users.sort_unstable();
        users.dedup();
        let status = self.presence.status(&users).await;
        let gone: HashMap<UserId, bool> = users
            .into_iter()
            .zip(status)
            .map(|(user, status)| (user, matches!(status, Status::Offline { .. })))
            .collect();
        let hand_overs = absent.into_iter().map(|absent| {
            let recipients = absent.users.iter().filter(|user| gone.get(user) == Some(&true));
            let recipients = recipients
                .map(|user| recipient(&absent.message, *user, muted(&absent.members, *user)))
                .collect();
            let message = absent.message.clone();
            self.hand_over(absent.kind, message, recipients, Reason::Absent, absent.trace)
        });
        for runs in futures_util::future::join_all(hand_overs).await {
            runs.into_iter().for_each(|run| self.proofs.add(run));
        }
    }

    /// Gives a change of a message to the offline sink and waits for its confirmation; returns what
    /// is proven by it. A message that was not confirmed is left to Reconcile. Later changes prove
    /// nothing, for they hold nobody's line up: whoever misses one reads it again.
    pub async fn hand_over(
        &self,
        kind: ChangeKind,
        message: Arc<Message>,
        recipients: Vec<Recipient>,
        reason: Reason,
        trace: Trace,
    ) -> Vec<Run> {
        let mut runs = Vec::with_capacity(recipients.len());
        for record in Record::split(kind, &message, recipients, reason) {
            let users: Vec<UserId> = record.recipients().iter().map(|r| r.user_id).collect();
            match self.offline.hand_over(record.traced(&trace)).await {
                Ok(()) => {}
                // That the sink is away, it tells itself.
                Err(error) if error.is_transient() => {
                    tracing::debug!(%error, message_id = %message.id, "not handed over");
                    continue;
                }
                // It would be refused for ever: said once, and done with.
                Err(error) => {
                    tracing::error!(%error, message_id = %message.id, "an offline record was refused");
                }
            }
            if kind != ChangeKind::MessageCreated {
                continue;
            }
            runs.extend(users.into_iter().map(|user_id| Run {
                conversation_id: message.conversation_id,
                user_id,
                lo: message.seq,
                hi: message.seq,
                proof: Proof::Offline,
            }));
        }
        runs
    }
}

/// How a message stands in an offline record for one user.
pub fn recipient(message: &Message, user_id: UserId, muted: bool) -> Recipient {
    let mentions = message.mentions.iter().flatten();
    let mentioned = mentions.clone().any(|mention| mention.user_id == user_id);
    Recipient { user_id, mentioned, muted }
}

fn muted(members: &Members, user: UserId) -> bool {
    let member = members.members.iter().find(|member| member.user_id == user);
    member.and_then(|m| m.muted_until).is_some_and(|until| until > Timestamp::now())
}

fn conversation_envelope(conversation: &Conversation, changed: &Changed) -> Envelope {
    let event =
        event::Event::ConversationUpdated { conversation, seq: changed.seq, timestamp: changed.at };
    Envelope {
        head: Head {
            class: Class::Stored,
            conversation_id: changed.conversation_id,
            // Nobody's own: everyone's proof counts.
            sender_id: UserId(uuid::Uuid::nil()),
            origin: None,
            lo: changed.seq,
            hi: changed.seq,
            sent_at: changed.at,
        },
        full: event.encode(),
        classic: Classic::None,
    }
}

pub fn message_envelope(
    kind: ChangeKind,
    message: &Message,
    origin: Option<SessionId>,
    sent_at: Timestamp,
) -> Envelope {
    let (_, seq) = message.told(kind);
    Envelope {
        head: Head {
            class: Class::Stored,
            conversation_id: message.conversation_id,
            sender_id: message.sender_id,
            origin,
            lo: seq,
            hi: seq,
            sent_at,
        },
        full: event::Event::message(kind, message, Timestamp::now()).encode(),
        classic: Classic::Same,
    }
}
