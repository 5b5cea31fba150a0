//! The outbox's rows: let go a grace after their one attempt, and taken over from nodes that died
//! between the commit and the dispatch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dispatcher::{Dispatcher, Event};
use crate::clock::Timestamp;
use crate::ids::{MessageId, OutboxId};
use crate::protocol::model::ChangeKind;
use crate::sabotage::{self, Mutation};
use crate::store::StoreError;
use crate::store::types::{Changed, OutboxRow};
use crate::telemetry::traces::Way;

/// Rows let go by one statement.
const ROWS: usize = 512;
/// A statement waits for rows so long after the one before, unless that was full: it looks at each
/// conversation of its rows once, however many messages they hold, and nobody waits for it.
const SETTLE_EVERY: Duration = Duration::from_secs(1);
/// Rows taken over at a time.
const CLAIM: u32 = 32;
const SWEEP_EVERY: Duration = Duration::from_secs(2);
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Attempts that may wait for their grace; beyond, dispatch waits.
pub const ATTEMPTED_QUEUE: usize = 65_536;

/// Lets attempted rows go once their grace is over: whoever lacks a message by then is a laggard.
/// Until `stop`; what is still in its grace then is let go at once, so that a node that stops
/// leaves nothing behind to wait for.
pub async fn settle_attempted(
    dispatcher: Arc<Dispatcher>,
    mut attempted: mpsc::Receiver<(Instant, OutboxId)>,
    grace: Duration,
    stop: CancellationToken,
) {
    let due = |at: Instant| stop.is_cancelled() || at + grace <= Instant::now();
    let mut next = None;
    let mut not_before = Instant::now();
    loop {
        if next.is_none() {
            next = tokio::select! {
                next = attempted.recv() => next,
                () = stop.cancelled(), if !attempted.is_closed() => {
                    attempted.close();
                    continue;
                }
            };
        }
        let Some((at, row)) = next.take() else { return };
        tokio::select! {
            () = tokio::time::sleep_until(not_before.max(at + grace)) => {}
            () = stop.cancelled() => {}
        }
        let mut rows = vec![row];
        // Rows come in the order of their attempts: the first that is not due ends the batch.
        while rows.len() < ROWS {
            match attempted.try_recv() {
                Ok((at, row)) if due(at) => rows.push(row),
                Ok(later) => {
                    next = Some(later);
                    break;
                }
                Err(_) => break,
            }
        }
        if rows.len() < ROWS {
            not_before = Instant::now() + SETTLE_EVERY;
        }
        // Those whose sockets this stop has closed are on their way to another node.
        let due_in = if stop.is_cancelled() { grace } else { Duration::ZERO };
        let mut settled = dispatcher.store.settle_outbox(&rows, due_in).await;
        if let Err(StoreError::Conflict(_)) = settled {
            settled = dispatcher.store.settle_outbox(&rows, due_in).await;
        }
        if let Err(error) = settled {
            // Their leases run out, and the sweeper takes them.
            tracing::warn!(%error, rows = rows.len(), "outbox rows were not let go");
        }
    }
}

/// Takes over rows whose lease ran out. New messages go on as laggards, due at once; other changes,
/// which nobody proves, are dispatched once more. Until `stop`.
pub async fn sweep(dispatcher: Arc<Dispatcher>, lease: Duration, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut sampled = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match take_over(&dispatcher, lease).await {
            Ok(0) => {}
            Ok(rows) => {
                tracing::info!(rows, "took over outbox rows of a node that left them");
                ticks.reset_immediately();
            }
            Err(error) => tracing::warn!(%error, "the outbox could not be swept"),
        }
        if sampled.is_none_or(|at: Instant| at.elapsed() >= SAMPLE_EVERY) {
            sample(&dispatcher).await;
            sampled = Some(Instant::now());
        }
    }
}

/// Counts what waits; not often, for a long outage makes many rows.
async fn sample(dispatcher: &Dispatcher) {
    let metrics = &dispatcher.metrics.dispatch;
    if let Ok((rows, age)) = dispatcher.store.outbox_state().await {
        metrics.outbox_rows.set(rows as f64);
        metrics.outbox_oldest.set(age.as_secs_f64());
    }
    if let Ok((rows, overdue)) = dispatcher.store.laggards_state().await {
        metrics.laggards_rows.set(rows as f64);
        metrics.laggards_overdue.set(overdue.as_secs_f64());
    }
}

async fn take_over(dispatcher: &Arc<Dispatcher>, lease: Duration) -> Result<usize, StoreError> {
    if sabotage::is_on(Mutation::LeaveOutbox) {
        return Ok(0);
    }
    let rows = dispatcher.store.claim_outbox(CLAIM, lease).await?;
    if rows.is_empty() {
        return Ok(0);
    }
    let missed = dispatcher.dispatch(&changes(dispatcher, &rows).await?).await;
    let ids = rows
        .iter()
        .filter(|row| !row.entries.iter().any(|entry| missed.contains(&entry.conversation_id)));
    let ids: Vec<OutboxId> = ids.map(|row| row.id).collect();
    dispatcher.store.settle_outbox(&ids, Duration::ZERO).await?;
    Ok(rows.len())
}

/// What is not a new message. A message changed several times is told once, as it is now: who
/// waits for a place in between finds it by reading.
async fn changes(dispatcher: &Dispatcher, rows: &[OutboxRow]) -> Result<Vec<Event>, StoreError> {
    // Unknown: the members are read anew.
    let members_version = i64::MAX;
    let mut events = Vec::new();
    let mut amended = BTreeMap::new();
    for entry in rows.iter().flat_map(|row| &row.entries) {
        match (entry.kind, entry.message_id) {
            (ChangeKind::ConversationUpdated, _) => events.push(Event::Conversation(Changed {
                conversation_id: entry.conversation_id,
                seq: entry.seq,
                at: Timestamp::now(),
                members_version,
            })),
            (ChangeKind::MessageEdited | ChangeKind::MessageDeleted, Some(id)) => {
                amended.insert(id, entry.kind);
            }
            _ => {}
        }
    }
    let ids: Vec<MessageId> = amended.keys().copied().collect();
    let messages = dispatcher.store.messages(&ids).await?;
    events.extend(messages.into_iter().map(|message| Event::Message {
        kind: amended[&message.id],
        message: Arc::new(message),
        origin: None,
        members_version,
        received: Instant::now(),
        way: Way::default(),
    }));
    Ok(events)
}
