//! The outbox: what was committed and may not have been dispatched yet.

use std::time::Duration;

use sqlx::FromRow;
use uuid::Uuid;

use super::{Postgres, from_millis, millis, sql, uuids};
use crate::ids::{ConversationId, MessageId, OutboxId};
use crate::protocol::model::ChangeKind;
use crate::store::types::{OutboxEntry, OutboxRow};
use crate::store::{Result, StoreError, readable};

/// From so many places of the log on, a member's line is moved over what holds no messages of others:
/// it bounds how far each look above his line reads, and how often his row is written for nothing
/// else. A write costs as much as some thirty messages that are read, and of a stretch half is read,
/// in the mean, by each look.
const OWN_STRETCH: i64 = 16;

#[derive(FromRow)]
struct ClaimedRow {
    id: Uuid,
    // Parallel arrays, one element per entry.
    conversation_ids: Vec<Uuid>,
    message_ids: Vec<Option<Uuid>>,
    seqs: Vec<i64>,
    kinds: Vec<i16>,
}

impl TryFrom<ClaimedRow> for OutboxRow {
    type Error = StoreError;

    fn try_from(row: ClaimedRow) -> Result<Self> {
        let corrupt =
            |column| StoreError::Corrupt { table: "outbox", column, id: row.id.to_string() };
        let length = row.conversation_ids.len();
        if row.message_ids.len() != length || row.seqs.len() != length {
            return Err(corrupt("seqs"));
        }
        let mut entries = Vec::with_capacity(length);
        for (i, conversation) in row.conversation_ids.iter().enumerate() {
            entries.push(OutboxEntry {
                conversation_id: ConversationId(*conversation),
                message_id: row.message_ids[i].map(MessageId),
                seq: row.seqs[i],
                kind: row
                    .kinds
                    .get(i)
                    .and_then(|kind| ChangeKind::from_code(*kind))
                    .ok_or_else(|| corrupt("kinds"))?,
            });
        }
        Ok(Self { id: OutboxId(row.id), entries })
    }
}

impl Postgres {
    pub async fn settle_outbox(&self, rows: &[OutboxId], due_in: Duration) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let ids = uuids(rows, |id| id.0);
        let query = sqlx::query(sql::SETTLE_OUTBOX).bind(ids).bind(OWN_STRETCH);
        self.execute(query.bind(millis(due_in) as f64)).await
    }

    pub async fn claim_outbox(&self, limit: u32, lease: Duration) -> Result<Vec<OutboxRow>> {
        let query = sqlx::query_as::<_, ClaimedRow>(sql::CLAIM_OUTBOX)
            .bind(i64::from(limit))
            .bind(millis(lease));
        let rows = self.rows(query).await?.into_iter();
        Ok(readable(rows.map(OutboxRow::try_from)))
    }

    pub async fn outbox_state(&self) -> Result<(i64, Duration)> {
        let (rows, oldest_ms) = self.row(sqlx::query_as(sql::OUTBOX_STATE)).await?;
        Ok((rows, from_millis(oldest_ms)))
    }
}
