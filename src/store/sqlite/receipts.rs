//! The watermarks that proven runs and devices move, and the receipts they leave.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use sqlx::FromRow;
use uuid::Uuid;

use super::outbox::millis;
use super::sql::{self, hex, json};
use super::{Sqlite, commit, error};
use crate::clock::Timestamp;
use crate::ids::{ConversationId, MessageId, Seq, UserId};
use crate::protocol::model::{MessageReceipt, ReceiptKind};
use crate::store::types::{Moved, Proof, Receipt, Received, ReceivedPlace, Run, Settled, Told};
use crate::store::{Result, TOLD};

/// A member's watermarks while the runs are applied to them.
#[derive(Clone, Copy)]
struct Marks {
    settled: Seq,
    delivered: Seq,
    /// Not in a group that is too large for receipts.
    is_told: bool,
    moved: bool,
    /// An undeleted message of others lies above `settled` and below the run that was looked at:
    /// nothing later can move either.
    stuck: bool,
}

#[derive(FromRow)]
struct StateRow {
    settled_seq: Option<Seq>,
    delivered_seq: Option<Seq>,
    last_seq: Option<Seq>,
    member_count: Option<i64>,
}

/// A receipt's message and its member; nulls for what the user cannot see.
#[derive(FromRow)]
struct ReceiveRow {
    conversation_id: Option<Uuid>,
    seq: Option<Seq>,
    settled_seq: Option<Seq>,
    delivered_seq: Option<Seq>,
    read_seq: Option<Seq>,
    member_count: Option<i64>,
}

#[derive(FromRow)]
struct ShownRow {
    user_id: Uuid,
    delivered: bool,
    delivered_at: Option<i64>,
    read: bool,
    read_at: Option<i64>,
}

/// A member's watermarks as they were and as they are wanted.
struct Wanted {
    was: [Seq; 2],
    up_to: [Seq; 2],
    is_told: bool,
}

/// A stretch between what is settled and a run, or between two runs of one member.
struct Gap {
    run: usize,
    after: Seq,
}

impl Sqlite {
    /// Five statements at most: the members' states, a look into the gaps if there are any, the
    /// receipts, the move, the laggards who lack nothing now.
    pub async fn settle(&self, runs: &[Run], max_members: u32) -> Result<Vec<Settled>> {
        if runs.is_empty() {
            return Ok(Vec::new());
        }
        let mut tx = self.begin().await?;
        let states: Vec<StateRow> = sqlx::query_as(sql::SETTLE_STATES)
            .bind(json(runs.iter().map(|run| (hex(run.conversation_id.0), hex(run.user_id.0)))))
            .fetch_all(&mut *tx)
            .await
            .map_err(error::of)?;
        error::affected(states.len() as u64, runs.len(), "reading members' states")?;

        // The runs of one member in order of place, so that one may continue the other.
        let mut order: Vec<usize> = (0..runs.len()).collect();
        order.sort_unstable_by_key(|&i| (runs[i].conversation_id, runs[i].user_id, runs[i].lo));
        let mut marks: HashMap<(ConversationId, UserId), Marks> = HashMap::new();
        let mut reach: HashMap<(ConversationId, UserId), Seq> = HashMap::new();
        let mut gaps: Vec<Gap> = Vec::new();
        let mut outcomes = vec![Settled::Refused; runs.len()];
        order.retain(|&i| {
            let (run, state) = (&runs[i], &states[i]);
            let (Some(settled), Some(delivered), Some(head)) =
                (state.settled_seq, state.delivered_seq, state.last_seq)
            else {
                return false;
            };
            if run.hi > head || run.lo > run.hi {
                return false;
            }
            let is_told = state.member_count.is_some_and(|count| count <= i64::from(max_members));
            let untouched = Marks { settled, delivered, is_told, moved: false, stuck: false };
            marks.insert(member(run), untouched);
            let reach = reach.entry(member(run)).or_insert(settled);
            if run.lo > *reach + 1 {
                gaps.push(Gap { run: i, after: *reach });
            }
            *reach = run.hi.max(*reach);
            true
        });

        let blocked: HashMap<usize, bool> = if gaps.is_empty() {
            HashMap::new()
        } else {
            let looks: Vec<bool> = sqlx::query_scalar(sql::SETTLE_GAPS)
                .bind(json(gaps.iter().map(|gap| {
                    let run = &runs[gap.run];
                    (hex(run.conversation_id.0), hex(run.user_id.0), gap.after, run.lo)
                })))
                .fetch_all(&mut *tx)
                .await
                .map_err(error::of)?;
            gaps.iter().map(|gap| gap.run).zip(looks).collect()
        };
        for &i in &order {
            let run = &runs[i];
            let marks = marks.get_mut(&member(run)).expect("put there for each run of `order`");
            outcomes[i] = marks.apply(run, blocked.get(&i).copied().unwrap_or(false));
        }

        let moved: Vec<_> = marks
            .iter()
            .filter(|(_, marks)| marks.moved)
            .map(|((conversation, user), marks)| {
                (hex(conversation.0), hex(user.0), marks.settled, marks.delivered)
            })
            .collect();
        if moved.is_empty() {
            return Ok(outcomes);
        }
        let delivered: Vec<_> = runs
            .iter()
            .zip(&outcomes)
            .filter_map(|(run, outcome)| match outcome {
                Settled::Moved { delivered_from: Some(from) } => {
                    let kind = ReceiptKind::Delivered.code();
                    Some((hex(run.conversation_id.0), hex(run.user_id.0), kind, *from, run.hi))
                }
                _ => None,
            })
            .collect();
        if !delivered.is_empty() {
            sqlx::query(sql::RECEIPTS_NOTE)
                .bind(json(delivered))
                .execute(&mut *tx)
                .await
                .map_err(error::of)?;
        }
        let count = moved.len();
        let moved = json(moved);
        let done = sqlx::query(sql::SETTLE_MOVE)
            .bind(&moved)
            .execute(&mut *tx)
            .await
            .map_err(error::of)?;
        error::affected(done.rows_affected(), count, "moving watermarks")?;
        sqlx::query(sql::LAGGARDS_SETTLED)
            .bind(&moved)
            .execute(&mut *tx)
            .await
            .map_err(error::of)?;
        commit(tx).await?;
        Ok(outcomes)
    }

    /// Three statements: what the receipts are of, the notes of when, the move.
    pub async fn receive(&self, receipts: &[Receipt], max_members: u32) -> Result<Received> {
        if receipts.is_empty() {
            return Ok(Received::default());
        }
        let mut tx = self.begin().await?;
        let rows: Vec<ReceiveRow> = sqlx::query_as(sql::RECEIVE_STATES)
            .bind(json(receipts.iter().map(|r| (hex(r.user_id.0), hex(r.message_id.0)))))
            .fetch_all(&mut *tx)
            .await
            .map_err(error::of)?;
        error::affected(rows.len() as u64, receipts.len(), "reading what receipts are of")?;
        let mut received = Received::default();
        let mut wanted: HashMap<(ConversationId, UserId), Wanted> = HashMap::new();
        for (receipt, row) in receipts.iter().zip(rows) {
            let (Some(id), Some(seq), Some(settled), Some(delivered), Some(read)) =
                (row.conversation_id, row.seq, row.settled_seq, row.delivered_seq, row.read_seq)
            else {
                received.places.push(None);
                continue;
            };
            let conversation_id = ConversationId(id);
            let is_settled = seq <= settled;
            received.places.push(Some(ReceivedPlace { conversation_id, seq, is_settled }));
            let is_told = row.member_count.is_some_and(|count| count <= i64::from(max_members));
            let wanted = match wanted.entry((conversation_id, receipt.user_id)) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let was = [delivered, read];
                    entry.insert(Wanted { was, up_to: was, is_told })
                }
            };
            let read = if receipt.kind == ReceiptKind::Read { seq } else { 0 };
            wanted.up_to = [wanted.up_to[0].max(seq), wanted.up_to[1].max(read)];
        }
        received.moved = wanted.iter().flat_map(|(member, wanted)| wanted.moved(*member)).collect();
        if received.moved.is_empty() {
            return Ok(received);
        }
        let notes = received.moved.iter().filter(|moved| moved.is_told);
        let notes = notes
            .map(|m| (hex(m.conversation_id.0), hex(m.user_id.0), m.kind.code(), m.from, m.up_to));
        sqlx::query(sql::RECEIPTS_NOTE)
            .bind(json(notes))
            .execute(&mut *tx)
            .await
            .map_err(error::of)?;
        let marks = wanted.iter().map(|((conversation, user), wanted)| {
            (hex(conversation.0), hex(user.0), wanted.up_to[0], wanted.up_to[1])
        });
        let done = sqlx::query(sql::RECEIVE_MOVE)
            .bind(json(marks))
            .execute(&mut *tx)
            .await
            .map_err(error::of)?;
        error::affected(done.rows_affected(), wanted.len(), "moving watermarks")?;
        commit(tx).await?;
        Ok(received)
    }

    pub async fn told(
        &self,
        stretches: &[(ConversationId, UserId, Seq, Seq)],
    ) -> Result<Vec<Told>> {
        if stretches.is_empty() {
            return Ok(Vec::new());
        }
        let stretches = stretches.iter().map(|(conversation, user, from, up_to)| {
            (hex(conversation.0), hex(user.0), from, up_to)
        });
        let rows: Vec<(i64, Uuid, Uuid, Seq)> = sqlx::query_as(sql::TOLD)
            .bind(json(stretches))
            .bind(TOLD)
            .fetch_all(&self.readers)
            .await
            .map_err(error::of)?;
        let rows = rows.into_iter().map(|(stretch, sender, message, seq)| Told {
            stretch: stretch as usize,
            sender_id: UserId(sender),
            message_id: MessageId(message),
            seq,
        });
        Ok(rows.collect())
    }

    pub async fn receipts(
        &self,
        user: UserId,
        id: MessageId,
        limit: u32,
        after: Option<UserId>,
    ) -> Result<Option<Vec<MessageReceipt>>> {
        if self.message(user, id).await?.is_none() {
            return Ok(None);
        }
        let rows: Vec<ShownRow> = sqlx::query_as(sql::RECEIPTS)
            .bind(id.0)
            .bind(after.map(|user| user.0))
            .bind(limit)
            .fetch_all(&self.readers)
            .await
            .map_err(error::of)?;
        Ok(Some(rows.into_iter().map(ShownRow::receipt).collect()))
    }

    pub async fn expire_receipts(&self, age: Duration, limit: u32) -> Result<u64> {
        let mut tx = self.begin().await?;
        let done = sqlx::query(sql::RECEIPTS_EXPIRE)
            .bind(millis(age))
            .bind(limit)
            .execute(&mut *tx)
            .await
            .map_err(error::of)?;
        commit(tx).await?;
        Ok(done.rows_affected())
    }
}

impl Wanted {
    /// The watermarks that are higher than they were.
    fn moved(
        &self,
        (conversation_id, user_id): (ConversationId, UserId),
    ) -> impl Iterator<Item = Moved> {
        let kinds = [ReceiptKind::Delivered, ReceiptKind::Read].into_iter();
        let is_told = self.is_told;
        kinds.zip(self.was).zip(self.up_to).filter(|((_, was), up_to)| was < up_to).map(
            move |((kind, was), up_to)| Moved {
                conversation_id,
                user_id,
                kind,
                from: was + 1,
                up_to,
                is_told,
            },
        )
    }
}

impl ShownRow {
    fn receipt(self) -> MessageReceipt {
        MessageReceipt {
            user_id: UserId(self.user_id),
            delivered: self.delivered,
            delivered_at: self.delivered_at.map(Timestamp::from_millis),
            read: self.read,
            read_at: self.read_at.map(Timestamp::from_millis),
        }
    }
}

impl Marks {
    fn apply(&mut self, run: &Run, gap_blocked: bool) -> Settled {
        self.stuck |= gap_blocked;
        // Below `settled` nothing can be in the way any more.
        if self.stuck && run.hi > self.settled {
            return Settled::Waits;
        }
        let mut delivered_from = None;
        if run.proof != Proof::Offline && run.hi > self.delivered {
            delivered_from = self.is_told.then_some(run.lo.max(self.delivered + 1));
            self.delivered = run.hi;
            self.moved = true;
        }
        if run.hi > self.settled {
            self.settled = run.hi;
            self.moved = true;
        }
        Settled::Moved { delivered_from }
    }
}

fn member(run: &Run) -> (ConversationId, UserId) {
    (run.conversation_id, run.user_id)
}
