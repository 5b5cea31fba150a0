//! Proven runs and what devices tell become watermarks and receipts.

use std::time::Duration;

use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::error::{failed, timed_out};
use super::{ANSWER_LIMIT, Postgres, millis, sql, uuids};
use crate::ids::{ConversationId, MessageId, Seq, UserId};
use crate::protocol::model::{MessageReceipt, ReceiptKind};
use crate::store::types::{Moved, Proof, Receipt, Received, ReceivedPlace, Run, Settled, Told};
use crate::store::{Result, TOLD};

#[derive(FromRow)]
struct JudgedRow {
    /// The run's place among those given, from 1.
    ord: i64,
    moves: bool,
    delivered_from: Option<i64>,
}

/// A receipt's message, and its member's watermarks before and as they are wanted.
#[derive(FromRow)]
struct ReceivedRow {
    ord: i64,
    conversation_id: Uuid,
    user_id: Uuid,
    seq: Seq,
    settled_seq: Seq,
    delivered_seq: Seq,
    delivered: Seq,
    read_seq: Seq,
    read: Seq,
    is_told: bool,
}

#[derive(FromRow)]
struct ShownRow {
    /// None in the row that says only that the message can be seen.
    user_id: Option<Uuid>,
    delivered: bool,
    delivered_at: Option<OffsetDateTime>,
    read: bool,
    read_at: Option<OffsetDateTime>,
}

impl Postgres {
    pub async fn settle(&self, runs: &[Run], max_members: u32) -> Result<Vec<Settled>> {
        if runs.is_empty() {
            return Ok(Vec::new());
        }
        let query = sqlx::query_as(sql::SETTLE)
            .bind(uuids(runs, |run| run.conversation_id.0))
            .bind(uuids(runs, |run| run.user_id.0))
            .bind(runs.iter().map(|run| run.lo).collect::<Vec<_>>())
            .bind(runs.iter().map(|run| run.hi).collect::<Vec<_>>())
            .bind(runs.iter().map(|run| run.proof != Proof::Offline).collect::<Vec<_>>())
            .bind(max_members.cast_signed());
        let mut outcomes = vec![Settled::Refused; runs.len()];
        for JudgedRow { ord, moves, delivered_from } in self.rows(query).await? {
            if let Some(outcome) = usize::try_from(ord - 1).ok().and_then(|i| outcomes.get_mut(i)) {
                *outcome = if moves { Settled::Moved { delivered_from } } else { Settled::Waits };
            }
        }
        Ok(outcomes)
    }

    pub async fn receive(&self, receipts: &[Receipt], max_members: u32) -> Result<Received> {
        if receipts.is_empty() {
            return Ok(Received::default());
        }
        let query = sqlx::query_as(sql::RECEIVE)
            .bind(uuids(receipts, |receipt| receipt.user_id.0))
            .bind(uuids(receipts, |receipt| receipt.message_id.0))
            .bind(receipts.iter().map(|r| r.kind == ReceiptKind::Read).collect::<Vec<_>>())
            .bind(max_members.cast_signed());
        let mut received = Received { places: vec![None; receipts.len()], moved: Vec::new() };
        for row in self.rows::<ReceivedRow>(query).await? {
            let place = usize::try_from(row.ord - 1).ok();
            if let Some(place) = place.and_then(|i| received.places.get_mut(i)) {
                *place = Some(ReceivedPlace {
                    conversation_id: ConversationId(row.conversation_id),
                    seq: row.seq,
                    is_settled: row.seq <= row.settled_seq,
                });
            }
            for moved in row.moved() {
                // Each receipt of a member tells the same.
                if !received.moved.contains(&moved) {
                    received.moved.push(moved);
                }
            }
        }
        Ok(received)
    }

    pub async fn told(
        &self,
        stretches: &[(ConversationId, UserId, Seq, Seq)],
    ) -> Result<Vec<Told>> {
        if stretches.is_empty() {
            return Ok(Vec::new());
        }
        let query = sqlx::query_as(sql::TOLD)
            .bind(uuids(stretches, |stretch| stretch.0.0))
            .bind(uuids(stretches, |stretch| stretch.1.0))
            .bind(stretches.iter().map(|stretch| stretch.2).collect::<Vec<_>>())
            .bind(stretches.iter().map(|stretch| stretch.3).collect::<Vec<_>>())
            .bind(i64::from(TOLD));
        let rows: Vec<(i64, Uuid, Uuid, Seq)> = self.rows(query).await?;
        let rows = rows.into_iter().map(|(ord, sender, message, seq)| Told {
            stretch: ord as usize - 1,
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
        let query = sqlx::query_as(sql::RECEIPTS)
            .bind(user.0)
            .bind(id.0)
            .bind(i64::from(limit))
            .bind(after.map(|user| user.0));
        let rows: Vec<ShownRow> = self.rows(query).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        Ok(Some(rows.into_iter().filter_map(ShownRow::receipt).collect()))
    }

    pub async fn expire_receipts(&self, age: Duration, limit: u32) -> Result<u64> {
        let work = async {
            let mut tx = self.pool.begin().await?;
            // What the index by age needs, and no other statement should use.
            sqlx::raw_sql("set local enable_bitmapscan = on").execute(&mut *tx).await?;
            let done = sqlx::query(sql::EXPIRE_RECEIPTS)
                .persistent(false)
                .bind(millis(age) as f64)
                .bind(i64::from(limit))
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
            Ok(done.rows_affected())
        };
        match tokio::time::timeout(ANSWER_LIMIT, work).await {
            Ok(done) => done.map_err(|error| failed(error, true)),
            Err(_) => Err(timed_out(true)),
        }
    }
}

impl ReceivedRow {
    /// The watermarks that are higher than they were.
    fn moved(&self) -> impl Iterator<Item = Moved> {
        let moved = |kind, was: Seq, up_to: Seq| Moved {
            conversation_id: ConversationId(self.conversation_id),
            user_id: UserId(self.user_id),
            kind,
            from: was + 1,
            up_to,
            is_told: self.is_told,
        };
        let both = [
            moved(ReceiptKind::Delivered, self.delivered_seq, self.delivered),
            moved(ReceiptKind::Read, self.read_seq, self.read),
        ];
        both.into_iter().filter(|moved| moved.from <= moved.up_to)
    }
}

impl ShownRow {
    fn receipt(self) -> Option<MessageReceipt> {
        let read_at = self.read_at.map(Into::into);
        Some(MessageReceipt {
            user_id: UserId(self.user_id?),
            delivered: self.delivered,
            delivered_at: self.delivered_at.map(Into::into),
            read: self.read,
            read_at,
        })
    }
}
