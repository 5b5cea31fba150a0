//! A lane takes all that waits (batches grow by themselves under load; while many write, they begin
//! a few milliseconds apart), commits it in one statement, answers each caller with his own outcome, then hands what was stored to the
//! dispatcher. Nobody is answered before the commit.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dispatcher::{Dispatch, Event};
use super::{
    PendingAmend, PendingChange, PendingSend, Request, Sent, amended, refused, store_problem,
};
use crate::clock::Timestamp;
use crate::ids::OutboxId;
use crate::protocol::code::Code;
use crate::protocol::model::{ChangeKind, Message};
use crate::protocol::problem::Problem;
use crate::sabotage::{self, Mutation};
use crate::store::types::{
    AmendOutcome, Change, ChangeOutcome, NewMessage, OutboxLease, SendOutcome, Stored,
};
use crate::store::{Store, StoreError, Writer};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Stage;
use crate::telemetry::traces;

/// Between the beginnings of two batches while many write: a statement costs as much as fifteen of
/// its messages, so that those of a few milliseconds are cheaper together.
const PACE: Duration = Duration::from_millis(5);
/// Messages in the batch before, from which on many write.
const MANY: usize = 4;
/// How long a batch is retried before its callers hear that the store is away.
const RETRY_FOR: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_millis(20);

pub struct Lane {
    pub store: Store,
    pub writer: Writer,
    pub requests: mpsc::Receiver<Request>,
    pub dispatcher: mpsc::Sender<Dispatch>,
    /// How long this node dispatches a batch alone.
    pub lease: Duration,
    pub max_group_size: usize,
    pub metrics: Metrics,
}

impl Lane {
    /// Until `stop`, and then until all that waits is committed.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut requests = Vec::new();
        let most = self.writer.max_batch();
        let (mut began, mut last) = (Instant::now(), 0);
        loop {
            if last >= MANY && self.requests.len() < most {
                tokio::time::sleep_until(began + PACE).await;
            }
            tokio::select! {
                received = self.requests.recv_many(&mut requests, most) => {
                    if received == 0 {
                        return;
                    }
                }
                () = stop.cancelled(), if !self.requests.is_closed() => {
                    self.requests.close();
                    continue;
                }
            }
            (began, last) = (Instant::now(), requests.len());
            let mut sends = Vec::new();
            let mut others = Vec::new();
            for request in requests.drain(..) {
                match request {
                    Request::Send(send) => sends.push(send),
                    other => others.push(other),
                }
            }
            // What else was asked for while sends waited is concurrent with them.
            self.commit_sends(sends).await;
            for other in others {
                match other {
                    Request::Change(change) => self.commit_change(change).await,
                    Request::Amend(amend) => self.commit_amend(amend).await,
                    Request::Send(send) => self.commit_sends(vec![send]).await,
                }
            }
        }
    }

    async fn commit_sends(&mut self, mut waiting: Vec<PendingSend>) {
        let deadline = Instant::now() + RETRY_FOR;
        while !waiting.is_empty() {
            let (batch, later) = without_repeats(waiting);
            waiting = later;
            let again = self.commit_batch(batch, deadline).await;
            waiting.splice(..0, again);
        }
    }

    /// Commits, answers, dispatches; returns those to be judged again.
    async fn commit_batch(
        &mut self,
        mut batch: Vec<PendingSend>,
        deadline: Instant,
    ) -> Vec<PendingSend> {
        let started = Instant::now();
        if traces::is_on() {
            batch.iter_mut().for_each(|send| send.way.stage("commit"));
        }
        let outbox = OutboxLease { id: OutboxId::random(), lease: self.lease };
        let messages: Vec<NewMessage> = batch.iter().map(|send| send.message.clone()).collect();
        let outcomes = match self.commit(&messages, outbox, deadline).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                tracing::warn!(%error, batch = batch.len(), "a batch of messages was not stored");
                for mut send in batch {
                    let problem = store_problem(&error);
                    send.way.failed(problem.code.name());
                    self.metrics.sends.refused.of(problem.code).increment(1);
                    (send.reply)(Err(problem));
                }
                return Vec::new();
            }
        };
        self.metrics.sends.batch.record(batch.len() as f64);
        self.metrics.sends.commit.record(started.elapsed());
        let committed = Instant::now();
        let received_committed = self.metrics.stages.stage.of(Stage::ReceivedCommitted);
        let mut events = Vec::with_capacity(batch.len());
        let mut again = Vec::new();
        for (send, outcome) in batch.into_iter().zip(outcomes) {
            if outcome == SendOutcome::Again && Instant::now() < deadline {
                again.push(send);
                continue;
            }
            let PendingSend { message, origin, received, mut way, reply } = send;
            let (message, members_version) = match outcome {
                SendOutcome::Stored(stored) => {
                    let message = Arc::new(as_stored(message, stored));
                    self.store.note_committed(&message);
                    (message, stored.members_version)
                }
                // This very message, stored by an attempt whose answer was lost: the members are
                // read anew.
                SendOutcome::Duplicate(first) if first.id == message.id => {
                    (Arc::from(first), i64::MAX)
                }
                SendOutcome::Duplicate(_) if sabotage::is_on(Mutation::RefuseRepeats) => {
                    reply(Err(Problem::new(Code::Conflict, "sent before")));
                    continue;
                }
                SendOutcome::Duplicate(first) => {
                    self.metrics.sends.repeated.increment(1);
                    reply(Ok(Sent::Repeated(Arc::from(first))));
                    continue;
                }
                outcome => {
                    let problem = refused(&outcome).unwrap_or_else(|| {
                        Problem::new(Code::Internal, "an outcome without an answer")
                    });
                    self.metrics.sends.refused.of(problem.code).increment(1);
                    way.failed(problem.code.name());
                    reply(Err(problem));
                    continue;
                }
            };
            received_committed.record(committed - received);
            self.metrics.sends.accepted.increment(1);
            reply(Ok(Sent::Created(message.clone())));
            let kind = ChangeKind::MessageCreated;
            way.stage("dispatch");
            events.push(Event::Message { kind, message, origin, members_version, received, way });
        }
        self.dispatch(outbox.id, committed, events).await;
        again
    }

    /// One batch, retried whole while that may help. A commit whose outcome is unknown is looked
    /// up by its message ids before anything is answered or tried again.
    async fn commit(
        &mut self,
        messages: &[NewMessage],
        outbox: OutboxLease,
        deadline: Instant,
    ) -> Result<Vec<SendOutcome>, StoreError> {
        let mut maybe_done = false;
        loop {
            let error = match self.writer.send(messages, outbox).await {
                Ok(outcomes) => return Ok(outcomes),
                Err(_) if sabotage::is_on(Mutation::AckUncommitted) => {
                    let created_at = Timestamp::now();
                    let stored = Stored { seq: 1, created_at, members_version: 0 };
                    return Ok(vec![SendOutcome::Stored(stored); messages.len()]);
                }
                Err(error) => error,
            };
            match &error {
                StoreError::Conflict(_) => {}
                StoreError::Unavailable { maybe_done: true, .. } => maybe_done = true,
                _ => return Err(error),
            }
            // After each conflict, too: the statement that was cut off may have gone on, and have
            // committed just before this attempt.
            if maybe_done && let Some(outcomes) = self.look_up(messages, deadline).await? {
                return Ok(outcomes);
            }
            if Instant::now() >= deadline {
                return Err(error);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Whether a batch was committed although its answer was lost. The statement is one whole: if
    /// one of its messages is there, those that are not were refused and are judged again.
    async fn look_up(
        &mut self,
        messages: &[NewMessage],
        deadline: Instant,
    ) -> Result<Option<Vec<SendOutcome>>, StoreError> {
        let ids: Vec<_> = messages.iter().map(|message| message.id).collect();
        let found = loop {
            match self.store.messages(&ids).await {
                Ok(found) => break found,
                Err(error) if error.is_transient() && Instant::now() < deadline => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        };
        if found.is_empty() {
            return Ok(None);
        }
        let outcome = |message: &NewMessage| {
            let stored = found.iter().find(|stored| stored.id == message.id);
            stored.map_or(SendOutcome::Again, |stored| {
                SendOutcome::Stored(Stored {
                    seq: stored.seq,
                    created_at: stored.created_at,
                    // Unknown: the members are read anew.
                    members_version: i64::MAX,
                })
            })
        };
        Ok(Some(messages.iter().map(outcome).collect()))
    }

    async fn commit_change(&mut self, pending: PendingChange) {
        let PendingChange { conversation_id, change, reply, .. } = pending;
        let deadline = Instant::now() + RETRY_FOR;
        let outbox = OutboxLease { id: OutboxId::random(), lease: self.lease };
        let mut repeated = false;
        let outcome = loop {
            let max = self.max_group_size;
            match self.writer.change(conversation_id, &change, max, outbox).await {
                // A change that was made already is none the second time: all may be repeated.
                Err(StoreError::Conflict(_) | StoreError::Unavailable { maybe_done: true, .. })
                    if Instant::now() < deadline =>
                {
                    repeated = true;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                // Left or removed by the attempt whose answer was lost.
                Ok(ChangeOutcome::MemberNotFound | ChangeOutcome::NotFound)
                    if repeated && matches!(change, Change::RemoveMember { .. }) =>
                {
                    break Ok(ChangeOutcome::Unchanged(conversation_id));
                }
                other => break other,
            }
        };
        match outcome {
            Ok(outcome) => {
                let event = match &outcome {
                    ChangeOutcome::Changed(changed) => vec![Event::Conversation(*changed)],
                    _ => Vec::new(),
                };
                // The caller may have gone; the change stands.
                let _ = reply.send(Ok(outcome));
                self.dispatch(outbox.id, Instant::now(), event).await;
            }
            Err(error) => {
                tracing::warn!(%error, "a change of a conversation was not stored");
                let _ = reply.send(Err(store_problem(&error)));
            }
        }
    }

    /// One edit or deletion. To repeat it does no harm, so it is, also when it may be done already.
    async fn commit_amend(&mut self, pending: PendingAmend) {
        let PendingAmend { amendment, origin, received, mut way, reply } = pending;
        way.stage("commit");
        let deadline = Instant::now() + RETRY_FOR;
        let mut maybe_done = false;
        let (outcome, outbox) = loop {
            // A new one for each try: the row of a try that was done after all is the sweeper's.
            let outbox = OutboxLease { id: OutboxId::random(), lease: self.lease };
            let error = match self.writer.amend(&amendment, outbox).await {
                Ok(outcome) => break (outcome, outbox),
                Err(error) => error,
            };
            maybe_done |= matches!(error, StoreError::Unavailable { maybe_done: true, .. });
            let again = maybe_done || matches!(error, StoreError::Conflict(_));
            if !(again && error.is_transient() && Instant::now() < deadline) {
                tracing::warn!(%error, "a change of a message was not stored");
                reply(Err(store_problem(&error)));
                return;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        };
        let told = match &outcome {
            AmendOutcome::Amended { message, members_version } => {
                Some((message.clone(), *members_version))
            }
            // Made by a try whose answer was lost, and the members are not known.
            AmendOutcome::Unchanged(message) if maybe_done => Some((message.clone(), i64::MAX)),
            _ => None,
        };
        let kind = match amendment.edit {
            Some(_) => ChangeKind::MessageEdited,
            None => ChangeKind::MessageDeleted,
        };
        reply(amended(outcome));
        way.stage("dispatch");
        let event = told.map(|(message, members_version)| Event::Message {
            kind,
            message: Arc::from(message),
            origin,
            members_version,
            received,
            way,
        });
        self.dispatch(outbox.id, Instant::now(), event.into_iter().collect()).await;
    }

    async fn dispatch(&self, outbox: OutboxId, committed: Instant, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        // A full dispatcher slows the lane, and the lane's own bound refuses: nothing is dropped
        // after it was acknowledged. A dispatcher that is gone leaves the outbox row to others.
        let _ = self.dispatcher.send(Dispatch { outbox, committed, events }).await;
    }
}

/// Splits off what repeats a (`sender_id`, `client_message_id`) of the same batch: the statement
/// tells duplicates only of what was committed before it.
fn without_repeats(sends: Vec<PendingSend>) -> (Vec<PendingSend>, Vec<PendingSend>) {
    let mut seen = HashSet::new();
    sends.into_iter().partition(|send| {
        let message = &send.message;
        message
            .client_message_id
            .as_ref()
            .is_none_or(|id| seen.insert((message.sender_id, id.clone())))
    })
}

fn as_stored(message: NewMessage, stored: Stored) -> Message {
    let created_at: Timestamp = stored.created_at;
    Message {
        id: message.id,
        conversation_id: message.conversation_id,
        seq: stored.seq,
        change_seq: stored.seq,
        sender_id: message.sender_id,
        client_message_id: message.client_message_id,
        message_type: message.message_type,
        content: Some(message.content),
        parent_message_id: message.parent_message_id,
        reply_count: 0,
        mentions: message.mentions,
        metadata: message.metadata,
        created_at,
        edited_at: None,
        deleted_at: None,
    }
}
