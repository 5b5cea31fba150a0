//! All that must be durable before it is acknowledged, and what follows from it until every
//! recipient has it proven.
//!
//! `lane` batches and commits; `dispatcher` publishes to the bus and hands on for absent users;
//! `outbox` lets rows go after a grace and takes over what a dead node left; `proofs` settles what
//! was proven; `receive` stores what devices tell, `receipts` tells the senders; `reconcile` works off
//! who is behind; `janitor` forgets. Called by `http` and `ws` through
//! [`WritePath`]; knows store, bus, presence and offline, which do not know each other.

pub mod dispatcher;
pub mod janitor;
pub mod lane;
pub mod members;
pub mod outbox;
pub mod proofs;
pub mod receipts;
pub mod receive;
pub mod reconcile;

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::clock::Timestamp;
use crate::ids::{ConversationId, MessageId, SessionId, UserId};
use crate::protocol::code::Code;
use crate::protocol::command::SendMessage;
use crate::protocol::model::Message;
use crate::protocol::problem::Problem;
use crate::store::StoreError;
use crate::store::types::{
    AmendOutcome, Amendment, Change, ChangeOutcome, NewMessage, Receipt, SendOutcome,
};
use crate::telemetry::Metrics;
use proofs::Proofs;
use receive::{PendingReceipt, ReceiptReply};

/// Requests that may wait in a lane. Beyond, a send is refused at once: nothing was done.
pub const LANE_QUEUE: usize = 4_096;

/// What gives way when writes pile up, in this order; sends are refused last, when a lane is full.
/// What was accepted is always finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Yields {
    /// Typing and presence: dropped.
    Ephemeral,
    Sync,
    /// New sockets.
    Socket,
}

impl Yields {
    /// Requests in a lane from which on it gives way.
    fn bound(self) -> usize {
        match self {
            Self::Ephemeral => LANE_QUEUE / 4,
            Self::Sync => LANE_QUEUE / 2,
            Self::Socket => LANE_QUEUE / 4 * 3,
        }
    }
}

/// An accepted send.
#[derive(Clone, Debug)]
pub enum Sent {
    Created(Arc<Message>),
    /// Sent before with the same `client_message_id` and body: the first message.
    Repeated(Arc<Message>),
}

impl Sent {
    pub fn message(&self) -> &Message {
        match self {
            Self::Created(message) | Self::Repeated(message) => message,
        }
    }
}

/// Called once, with what became of a send; must not wait.
pub type Reply = Box<dyn FnOnce(Result<Sent, Problem>) + Send>;

/// Called once, with what became of an edit or a deletion: the message as it is now; must not wait.
pub type AmendReply = Box<dyn FnOnce(Result<Arc<Message>, Problem>) + Send>;

/// What waits in a lane.
pub enum Request {
    Send(PendingSend),
    Change(PendingChange),
    Amend(PendingAmend),
}

pub struct PendingSend {
    pub message: NewMessage,
    /// The session it came by, which gets no event of it.
    pub origin: Option<SessionId>,
    pub received: Instant,
    pub reply: Reply,
}

pub struct PendingChange {
    pub conversation_id: ConversationId,
    pub change: Change,
    pub received: Instant,
    pub reply: oneshot::Sender<Result<ChangeOutcome, Problem>>,
}

pub struct PendingAmend {
    pub amendment: Amendment,
    /// The session it came by, which gets no event of it.
    pub origin: Option<SessionId>,
    pub received: Instant,
    pub reply: AmendReply,
}

/// The way in.
#[derive(Clone)]
pub struct WritePath {
    lanes: Arc<[mpsc::Sender<Request>]>,
    pub proofs: Proofs,
    receipts: mpsc::Sender<PendingReceipt>,
    hasten: mpsc::Sender<UserId>,
    metrics: Metrics,
}

impl WritePath {
    pub fn new(
        lanes: Vec<mpsc::Sender<Request>>,
        proofs: Proofs,
        receipts: mpsc::Sender<PendingReceipt>,
        hasten: mpsc::Sender<UserId>,
        metrics: Metrics,
    ) -> Self {
        Self { lanes: lanes.into(), proofs, receipts, hasten, metrics }
    }

    /// A socket of this user ended badly: what he is known to lack is looked at now, if there is
    /// room to remember it, and else when it is due.
    pub fn hasten(&self, user: UserId) {
        let _ = self.hasten.try_send(user);
    }

    /// All of a conversation's writes of this node go through one lane, in order. A message's id
    /// tells the slot of its conversation.
    fn lane(&self, slot: u16) -> &mpsc::Sender<Request> {
        &self.lanes[slot as usize % self.lanes.len()]
    }

    /// Whether so many writes wait that this is to be refused: they are finished sooner without it.
    pub fn is_pressed(&self, yields: Yields) -> bool {
        let waiting = |lane: &mpsc::Sender<Request>| lane.max_capacity() - lane.capacity();
        self.lanes.iter().any(|lane| waiting(lane) >= yields.bound())
    }

    /// Whether a send to this conversation would be refused now.
    pub fn is_full(&self, conversation_id: ConversationId) -> bool {
        self.lane(conversation_id.slot()).capacity() == 0
    }

    /// Submits a checked send and returns at once; `reply` is called after the commit, or now if
    /// the lane is full.
    pub fn send(&self, by: UserId, origin: Option<SessionId>, send: SendMessage, reply: Reply) {
        let message = NewMessage {
            id: MessageId::new(send.conversation_id, Timestamp::now()),
            body_hash: send.body_hash(),
            conversation_id: send.conversation_id,
            sender_id: by,
            client_message_id: send.client_message_id,
            message_type: send.message_type,
            content: send.content.unwrap_or_default(),
            parent_message_id: send.parent_message_id,
            mentions: send.mentions,
            metadata: send.metadata,
        };
        let lane = self.lane(message.conversation_id.slot());
        let pending = PendingSend { message, origin, received: Instant::now(), reply };
        if let Err(refused) = lane.try_send(Request::Send(pending)) {
            let (Request::Send(pending), problem) = refusal(refused) else {
                unreachable!("what comes back is what was sent")
            };
            self.metrics.sends.refused.of(problem.code).increment(1);
            (pending.reply)(Err(problem));
        }
    }

    /// Makes a change and waits for its outcome; returns which conversation it is about, for a direct
    /// one that is to be created may exist already.
    pub async fn change(
        &self,
        conversation_id: ConversationId,
        change: Change,
    ) -> Result<ConversationId, Problem> {
        let (reply, outcome) = oneshot::channel();
        let pending = PendingChange { conversation_id, change, received: Instant::now(), reply };
        let lane = self.lane(conversation_id.slot());
        lane.try_send(Request::Change(pending)).map_err(|refused| refusal(refused).1)?;
        let outcome = outcome.await.map_err(|_| Problem::outcome_unknown())??;
        changed(outcome)
    }

    /// Submits a checked edit, or a deletion, and returns at once; `reply` is called after the
    /// commit, or now if the lane is full.
    pub fn amend(&self, amendment: Amendment, origin: Option<SessionId>, reply: AmendReply) {
        let lane = self.lane(amendment.message_id.slot());
        let pending = PendingAmend { amendment, origin, received: Instant::now(), reply };
        if let Err(refused) = lane.try_send(Request::Amend(pending)) {
            let (Request::Amend(pending), problem) = refusal(refused) else {
                unreachable!("what comes back is what was sent")
            };
            (pending.reply)(Err(problem));
        }
    }

    /// Submits what a device tells and returns at once; `reply` is called once it is stored, or now
    /// if too much waits already.
    pub fn receive(&self, receipt: Receipt, origin: Option<SessionId>, reply: ReceiptReply) {
        let pending = PendingReceipt { receipt, origin, reply };
        if let Err(refused) = self.receipts.try_send(pending) {
            let (pending, problem) = refusal(refused);
            (pending.reply)(Err(problem));
        }
    }
}

/// What a caller hears of a lane that is full.
pub fn busy() -> Problem {
    Problem::new(Code::Busy, "too many writes wait already; try again shortly")
}

fn refusal<T>(error: mpsc::error::TrySendError<T>) -> (T, Problem) {
    match error {
        mpsc::error::TrySendError::Full(request) => (request, busy()),
        mpsc::error::TrySendError::Closed(request) => {
            (request, Problem::new(Code::Unavailable, "this node is stopping; use another"))
        }
    }
}

/// What a caller hears of a failure of the store; the details are in the log.
pub fn store_problem(error: &StoreError) -> Problem {
    match error {
        StoreError::Unavailable { .. } | StoreError::Conflict(_) => Problem::new(
            Code::Unavailable,
            "the store cannot be reached; try again, with the same client_message_id",
        ),
        StoreError::Corrupt { .. } | StoreError::Login(_) | StoreError::Refused(_) => {
            Problem::new(Code::Internal, "the store refused; the log of the node tells why")
        }
    }
}

/// What a caller hears of a send that was judged and not stored; None for those that were.
fn refused(outcome: &SendOutcome) -> Option<Problem> {
    Some(match outcome {
        SendOutcome::Stored(_) | SendOutcome::Duplicate(_) => return None,
        SendOutcome::DifferentBody => Problem {
            field: Some("client_message_id".into()),
            ..Problem::new(
                Code::IdempotencyMismatch,
                "this client_message_id was sent before with another body; use a new one",
            )
        },
        SendOutcome::NotFound => Problem::conversation_not_found(),
        SendOutcome::Forbidden => {
            Problem::new(Code::Forbidden, "you may read this conversation but not write to it")
        }
        SendOutcome::ParentNotFound => Problem::invalid(
            "parent_message_id",
            "the parent is no message of this conversation that you can see",
        ),
        SendOutcome::ParentDeleted => {
            Problem::invalid("parent_message_id", "the parent was deleted")
        }
        SendOutcome::MentionNotMember => {
            Problem::invalid("mentions", "someone mentioned is not a member of this conversation")
        }
        SendOutcome::Again => Problem::new(
            Code::Busy,
            "the conversation's members keep changing; try again with the same client_message_id",
        ),
    })
}

/// What a caller hears of an edit or a deletion that was judged.
fn amended(outcome: AmendOutcome) -> Result<Arc<Message>, Problem> {
    Err(match outcome {
        AmendOutcome::Amended { message, .. } | AmendOutcome::Unchanged(message) => {
            return Ok(Arc::from(message));
        }
        AmendOutcome::NotFound => Problem::message_not_found(),
        AmendOutcome::NotSender => {
            Problem::new(Code::Forbidden, "only its sender can edit or delete a message")
        }
        AmendOutcome::Forbidden => {
            Problem::new(Code::Forbidden, "you may read this conversation but not write to it")
        }
        AmendOutcome::Deleted => Problem::new(Code::Conflict, "the message was deleted"),
        AmendOutcome::Unsuitable(problem) => problem,
        AmendOutcome::MentionNotMember => {
            Problem::invalid("mentions", "someone mentioned is not a member of this conversation")
        }
    })
}

fn changed(outcome: ChangeOutcome) -> Result<ConversationId, Problem> {
    Err(match outcome {
        ChangeOutcome::Changed(changed) => return Ok(changed.conversation_id),
        ChangeOutcome::Unchanged(conversation_id) => return Ok(conversation_id),
        ChangeOutcome::NotFound => Problem::conversation_not_found(),
        ChangeOutcome::Forbidden => {
            Problem::new(Code::Forbidden, "your role in this conversation does not allow it")
        }
        ChangeOutcome::MemberNotFound => {
            Problem::new(Code::NotFound, "this user is not a member of the conversation")
        }
        ChangeOutcome::TooLarge => {
            Problem::invalid("user_ids", "the group would have more members than allowed")
        }
        ChangeOutcome::Direct => Problem::new(
            Code::Conflict,
            "a direct conversation keeps its two members, and no title",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_matters_less_gives_way_first() {
        let (lane, _requests) = mpsc::channel(LANE_QUEUE);
        let (receipts, _) = mpsc::channel(1);
        let (hasten, _) = mpsc::channel(1);
        let metrics = Metrics::new().0;
        let proofs = Proofs::new(metrics.clone());
        let write_path = WritePath::new(vec![lane], proofs, receipts, hasten, metrics);
        let amendment = Amendment {
            by: UserId(uuid::Uuid::nil()),
            message_id: MessageId(uuid::Uuid::nil()),
            edit: None,
        };
        let mut given_way = Vec::new();
        for waiting in 0.. {
            for yields in [Yields::Ephemeral, Yields::Sync, Yields::Socket] {
                if write_path.is_pressed(yields) && !given_way.contains(&yields) {
                    assert!(waiting > 0, "not while nothing waits");
                    given_way.push(yields);
                }
            }
            let (reply, mut refused) = oneshot::channel();
            let reply = Box::new(move |outcome: Result<_, Problem>| {
                let _ = reply.send(outcome.err().map(|problem| problem.code));
            });
            write_path.amend(amendment.clone(), None, reply);
            // The lane holds those that are accepted; a refusal is told at once.
            if let Ok(refused) = refused.try_recv() {
                assert_eq!((refused, waiting), (Some(Code::Busy), LANE_QUEUE));
                break;
            }
        }
        assert_eq!(given_way, [Yields::Ephemeral, Yields::Sync, Yields::Socket]);
    }
}
