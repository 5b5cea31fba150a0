//! Edits and deletions of a message: each one transaction, under its conversation's lock from the
//! first statement on, and one seq.

use serde::Serialize;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection, FromRow, PgConnection, Postgres as Database, Transaction};
use uuid::Uuid;

use super::error::failed;
use super::messages::MessageRow;
use super::{Postgres, millis, sql};
use crate::clock::Timestamp;
use crate::ids::{MessageId, Seq, UserId};
use crate::protocol::command::EditMessage;
use crate::protocol::model::{Mention, Message, Version};
use crate::store::types::{AmendOutcome, Amendment, OutboxLease};
use crate::store::{Result, StoreError};

/// A message as the asking member finds it.
#[derive(FromRow)]
struct FoundRow {
    #[sqlx(flatten)]
    message: MessageRow,
    can_send_messages: bool,
    mentions_stranger: bool,
}

/// Until the commit is sent, a lost connection means that nothing was done.
fn undone(error: sqlx::Error) -> StoreError {
    failed(error, false)
}

pub async fn make(
    connection: &mut PgConnection,
    amendment: &Amendment,
    outbox: OutboxLease,
) -> Result<AmendOutcome> {
    let mut tx = connection.begin().await.map_err(undone)?;
    let locked: Option<(i64,)> = sqlx::query_as(sql::AMEND_LOCK)
        .bind(amendment.message_id.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(undone)?;
    let Some((members_version,)) = locked else {
        tx.rollback().await.map_err(undone)?;
        return Ok(AmendOutcome::NotFound);
    };
    let judged = match find(&mut tx, amendment).await? {
        Some((message, can_send, stranger)) => amendment.judge(message, can_send, stranger),
        None => Err(AmendOutcome::NotFound),
    };
    let message = match judged {
        Ok(message) => message,
        Err(outcome) => {
            tx.rollback().await.map_err(undone)?;
            return Ok(outcome);
        }
    };
    let message = match &amendment.edit {
        Some(edit) => apply(&mut tx, message, edit, outbox).await?,
        None => delete(&mut tx, message, outbox).await?,
    };
    tx.commit().await.map_err(|error| failed(error, true))?;
    Ok(AmendOutcome::Amended { message: Box::new(message), members_version })
}

async fn find(
    tx: &mut Transaction<'_, Database>,
    amendment: &Amendment,
) -> Result<Option<(Message, bool, bool)>> {
    let mentions = amendment.edit.iter().flat_map(|edit| edit.mentions.iter().flatten());
    let mentioned: Vec<Uuid> = mentions.map(|mention| mention.user_id.0).collect();
    let found: Option<FoundRow> = sqlx::query_as(sql::AMEND_JUDGE)
        .bind(amendment.message_id.0)
        .bind(amendment.by.0)
        .bind(mentioned)
        .fetch_optional(&mut **tx)
        .await
        .map_err(undone)?;
    let Some(found) = found else { return Ok(None) };
    let message = Message::try_from(found.message)?;
    Ok(Some((message, found.can_send_messages, found.mentions_stranger)))
}

async fn apply(
    tx: &mut Transaction<'_, Database>,
    message: Message,
    edit: &EditMessage,
    outbox: OutboxLease,
) -> Result<Message> {
    let message = edit.applied_to(message);
    let (seq, at): (Seq, OffsetDateTime) = sqlx::query_as(sql::AMEND_EDIT)
        .bind(message.id.0)
        .bind(&message.content)
        .bind(json(message.mentions.as_ref())?)
        .bind(json(message.metadata.as_ref())?)
        .bind(outbox.id.0)
        .bind(millis(outbox.lease))
        .fetch_one(&mut **tx)
        .await
        .map_err(undone)?;
    Ok(Message { change_seq: seq, edited_at: Some(at.into()), ..message })
}

async fn delete(
    tx: &mut Transaction<'_, Database>,
    message: Message,
    outbox: OutboxLease,
) -> Result<Message> {
    let (seq, at): (Seq, OffsetDateTime) = sqlx::query_as(sql::AMEND_DELETE)
        .bind(message.id.0)
        .bind(outbox.id.0)
        .bind(millis(outbox.lease))
        .fetch_one(&mut **tx)
        .await
        .map_err(undone)?;
    Ok(message.deleted(seq, at.into()))
}

fn json<T: Serialize>(value: Option<&T>) -> Result<Option<String>> {
    let text = value.map(serde_json::to_string).transpose();
    text.map_err(|error| undone(sqlx::Error::Encode(error.into())))
}

/// All null if the message has no earlier version.
#[derive(FromRow)]
struct VersionRow {
    seq: Option<Seq>,
    content: Option<String>,
    mentions: Option<Json<Vec<Mention>>>,
    metadata: Option<Value>,
    edited_at: Option<OffsetDateTime>,
}

impl VersionRow {
    fn shown(self) -> Option<Version> {
        Some(Version {
            seq: self.seq?,
            content: self.content,
            mentions: self.mentions.map(|mentions| mentions.0),
            metadata: self.metadata,
            edited_at: Timestamp::from(self.edited_at?),
        })
    }
}

impl Postgres {
    pub async fn message(&self, user: UserId, id: MessageId) -> Result<Option<Message>> {
        let query = sqlx::query_as::<_, MessageRow>(sql::MESSAGE).bind(user.0).bind(id.0);
        self.optional(query).await?.map(Message::try_from).transpose()
    }

    pub async fn edits(
        &self,
        user: UserId,
        id: MessageId,
        limit: u32,
        after: Seq,
    ) -> Result<Option<Vec<Version>>> {
        let query = sqlx::query_as::<_, VersionRow>(sql::EDITS)
            .bind(user.0)
            .bind(id.0)
            .bind(after)
            .bind(i64::from(limit));
        let rows = self.rows(query).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        Ok(Some(rows.into_iter().filter_map(VersionRow::shown).collect()))
    }
}
