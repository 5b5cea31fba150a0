//! The outbox: what was committed and is not yet known to have been told to everyone.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::sql::{self, hex, json};
use super::{Sqlite, commit, error};
use crate::ids::{ConversationId, MessageId, OutboxId, Seq};
use crate::protocol::model::ChangeKind;
use crate::store::types::{OutboxEntry, OutboxLease, OutboxRow};
use crate::store::{Result, StoreError, readable};

/// Beyond so many places of the log a sender's line is moved over what holds no messages of others. Here
/// only the two highest are looked at, however far the line is behind, so it is moved seldom.
const OWN_STRETCH: i64 = 100;

impl Sqlite {
    /// Five statements at most, whatever the number of rows. It looks at the told messages and at
    /// the members' watermarks, never through a conversation's history.
    pub async fn settle_outbox(&self, rows: &[OutboxId], due_in: Duration) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        let deleted: Vec<EntriesRow> = sqlx::query_as(sql::OUTBOX_DELETE)
            .bind(json(rows.iter().map(|id| hex(id.0))))
            .fetch_all(&mut *tx)
            .await
            .map_err(error::of)?;
        let mut told = Vec::new();
        for row in deleted {
            told.extend(row.entries()?.into_iter().filter_map(|entry| {
                entry.message_id.filter(|_| entry.kind == ChangeKind::MessageCreated)
            }));
        }
        if !told.is_empty() {
            let sent: Vec<(Uuid, Uuid, Seq)> = sqlx::query_as(sql::OUTBOX_SENT)
                .bind(json(told.iter().map(|id| hex(id.0))))
                .fetch_all(&mut *tx)
                .await
                .map_err(error::of)?;
            sqlx::query(sql::OUTBOX_LAGGARDS)
                .bind(json(two_highest(&sent).map(as_parameter)))
                .bind(millis(due_in))
                .execute(&mut *tx)
                .await
                .map_err(error::of)?;
            sqlx::query(sql::OUTBOX_MONOLOGUES)
                .bind(json(sent.iter().copied().map(as_parameter)))
                .bind(OWN_STRETCH)
                .execute(&mut *tx)
                .await
                .map_err(error::of)?;
        }
        commit(tx).await
    }

    pub async fn claim_outbox(&self, limit: u32, lease: Duration) -> Result<Vec<OutboxRow>> {
        let mut tx = self.begin().await?;
        let mut claimed: Vec<ClaimedRow> = sqlx::query_as(sql::OUTBOX_CLAIM)
            .bind(limit)
            .bind(millis(lease))
            .fetch_all(&mut *tx)
            .await
            .map_err(error::of)?;
        commit(tx).await?;
        // `returning` has no order.
        claimed.sort_unstable_by_key(|row| (row.created_at, row.row.id));
        let rows = claimed.into_iter().map(|row| row.row);
        let rows = rows.map(|row| Ok(OutboxRow { id: OutboxId(row.id), entries: row.entries()? }));
        Ok(readable(rows))
    }

    pub async fn outbox_state(&self) -> Result<(i64, Duration)> {
        let (rows, age): (i64, i64) =
            sqlx::query_as(sql::OUTBOX_STATE).fetch_one(&self.readers).await.map_err(error::of)?;
        Ok((rows, duration(age)))
    }
}

/// Adds a batch's row, in its transaction; `now` is the database's.
pub(super) async fn insert(
    tx: &mut SqliteConnection,
    outbox: OutboxLease,
    now: i64,
    entries: &[OutboxEntry],
) -> Result<()> {
    sqlx::query(sql::OUTBOX_INSERT)
        .bind(outbox.id.0)
        .bind(now)
        .bind(millis(outbox.lease))
        .bind(json(entries.iter().map(|entry| hex(entry.conversation_id.0))))
        .bind(json(entries.iter().map(|entry| entry.message_id.map(|id| hex(id.0)))))
        .bind(json(entries.iter().map(|entry| entry.seq)))
        .bind(json(entries.iter().map(|entry| entry.kind.code())))
        .execute(tx)
        .await
        .map_err(error::of)?;
    Ok(())
}

pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2)
}

pub(super) fn duration(millis: i64) -> Duration {
    Duration::from_millis(millis.max(0) as u64)
}

/// Of each conversation the two senders who wrote last.
fn two_highest(sent: &[(Uuid, Uuid, Seq)]) -> impl Iterator<Item = (Uuid, Uuid, Seq)> {
    let mut latest_first: Vec<(Uuid, Uuid, Seq)> = sent.to_vec();
    latest_first.sort_unstable_by_key(|(_, _, seq)| std::cmp::Reverse(*seq));
    let mut taken: HashMap<Uuid, u8> = HashMap::new();
    latest_first.into_iter().filter(move |(conversation, _, _)| {
        let taken = taken.entry(*conversation).or_default();
        *taken += 1;
        *taken <= 2
    })
}

fn as_parameter((conversation, sender, seq): (Uuid, Uuid, Seq)) -> impl serde::Serialize {
    (hex(conversation), hex(sender), seq)
}

/// The arrays of an outbox row, as JSON.
#[derive(FromRow)]
struct EntriesRow {
    id: Uuid,
    conversation_ids: String,
    message_ids: String,
    seqs: String,
    kinds: String,
}

#[derive(FromRow)]
struct ClaimedRow {
    created_at: i64,
    #[sqlx(flatten)]
    row: EntriesRow,
}

impl EntriesRow {
    fn entries(&self) -> Result<Vec<OutboxEntry>> {
        let corrupt =
            |column| StoreError::Corrupt { table: "outbox", column, id: self.id.to_string() };
        let conversations: Vec<Uuid> = serde_json::from_str(&self.conversation_ids)
            .map_err(|_| corrupt("conversation_ids"))?;
        let messages: Vec<Option<Uuid>> =
            serde_json::from_str(&self.message_ids).map_err(|_| corrupt("message_ids"))?;
        let seqs: Vec<Seq> = serde_json::from_str(&self.seqs).map_err(|_| corrupt("seqs"))?;
        let kinds: Vec<i16> = serde_json::from_str(&self.kinds).map_err(|_| corrupt("kinds"))?;
        if [messages.len(), seqs.len(), kinds.len()] != [conversations.len(); 3] {
            return Err(corrupt("conversation_ids"));
        }
        conversations
            .into_iter()
            .zip(messages)
            .zip(seqs.into_iter().zip(kinds))
            .map(|((conversation, message), (seq, kind))| {
                Ok(OutboxEntry {
                    conversation_id: ConversationId(conversation),
                    message_id: message.map(MessageId),
                    seq,
                    kind: ChangeKind::from_code(kind).ok_or_else(|| corrupt("kinds"))?,
                })
            })
            .collect()
    }
}
