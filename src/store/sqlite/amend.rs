//! Edits and deletions of a message: each one transaction and one seq.

use serde::Serialize;
use sqlx::{FromRow, SqliteConnection};

use super::changes::{Advance, advance};
use super::messages::MessageRow;
use super::sql::{self, hex, json};
use super::{Sqlite, SqliteWriter, commit, error, outbox};
use crate::clock::Timestamp;
use crate::ids::{MessageId, Seq, UserId};
use crate::protocol::model::{ChangeKind, Message, Version};
use crate::store::types::{AmendOutcome, Amendment, OutboxEntry, OutboxLease};
use crate::store::{Result, StoreError};

/// A message as the asking member finds it.
#[derive(FromRow)]
struct FoundRow {
    #[sqlx(flatten)]
    message: MessageRow,
    can_send_messages: bool,
    mentions_stranger: bool,
}

impl SqliteWriter {
    pub async fn amend(
        &mut self,
        amendment: &Amendment,
        outbox: OutboxLease,
    ) -> Result<AmendOutcome> {
        let mut tx = self.store.begin().await?;
        let mentions = amendment.edit.iter().flat_map(|edit| edit.mentions.iter().flatten());
        let found: Option<FoundRow> = sqlx::query_as(sql::AMEND_JUDGE)
            .bind(amendment.message_id.0)
            .bind(amendment.by.0)
            .bind(json(mentions.map(|mention| hex(mention.user_id.0))))
            .fetch_optional(&mut *tx)
            .await
            .map_err(error::of)?;
        let Some(found) = found else { return Ok(AmendOutcome::NotFound) };
        let message = Message::try_from(found.message)?;
        let judged = amendment.judge(message, found.can_send_messages, found.mentions_stranger);
        let message = match judged {
            Ok(message) => message,
            Err(outcome) => return Ok(outcome),
        };
        let place = advance(&mut tx, message.conversation_id, 0, false).await?;
        let (message, kind) = match &amendment.edit {
            Some(edit) => {
                let message = edit.applied_to(message);
                (apply(&mut tx, message, &place).await?, ChangeKind::MessageEdited)
            }
            None => (delete(&mut tx, message, &place).await?, ChangeKind::MessageDeleted),
        };
        let entry = OutboxEntry {
            conversation_id: message.conversation_id,
            message_id: Some(message.id),
            seq: place.last_seq,
            kind,
        };
        outbox::insert(&mut tx, outbox, place.now, &[entry]).await?;
        commit(tx).await?;
        let members_version = place.members_version;
        Ok(AmendOutcome::Amended { message: Box::new(message), members_version })
    }
}

async fn apply(tx: &mut SqliteConnection, message: Message, place: &Advance) -> Result<Message> {
    let kept = sqlx::query(sql::AMEND_KEEP)
        .bind(message.id.0)
        .execute(&mut *tx)
        .await
        .map_err(error::of)?;
    error::affected(kept.rows_affected(), 1, "keeping a version")?;
    let edited = sqlx::query(sql::AMEND_EDIT)
        .bind(message.id.0)
        .bind(&message.content)
        .bind(text(message.mentions.as_ref())?)
        .bind(text(message.metadata.as_ref())?)
        .bind(place.last_seq)
        .bind(place.now)
        .execute(&mut *tx)
        .await
        .map_err(error::of)?;
    error::affected(edited.rows_affected(), 1, "editing a message")?;
    let edited_at = Some(Timestamp::from_millis(place.now));
    Ok(Message { change_seq: place.last_seq, edited_at, ..message })
}

async fn delete(tx: &mut SqliteConnection, message: Message, place: &Advance) -> Result<Message> {
    sqlx::query(sql::AMEND_FORGET).bind(message.id.0).execute(&mut *tx).await.map_err(error::of)?;
    let deleted = sqlx::query(sql::AMEND_DELETE)
        .bind(message.id.0)
        .bind(place.last_seq)
        .bind(place.now)
        .execute(&mut *tx)
        .await
        .map_err(error::of)?;
    error::affected(deleted.rows_affected(), 1, "deleting a message")?;
    Ok(message.deleted(place.last_seq, Timestamp::from_millis(place.now)))
}

fn text<T: Serialize>(value: Option<&T>) -> Result<Option<String>> {
    let text = value.map(serde_json::to_string).transpose();
    text.map_err(|error| error::of(sqlx::Error::Encode(error.into())))
}

/// All null if the message has no earlier version.
#[derive(FromRow)]
struct VersionRow {
    seq: Option<Seq>,
    content: Option<String>,
    mentions: Option<String>,
    metadata: Option<String>,
    edited_at: Option<i64>,
}

impl VersionRow {
    fn shown(self, id: MessageId) -> Result<Option<Version>> {
        let corrupt =
            |column| StoreError::Corrupt { table: "message_edits", column, id: id.to_string() };
        let (Some(seq), Some(edited_at)) = (self.seq, self.edited_at) else { return Ok(None) };
        let mentions = self.mentions.map(|text| serde_json::from_str(&text)).transpose();
        let metadata = self.metadata.map(|text| serde_json::from_str(&text)).transpose();
        Ok(Some(Version {
            seq,
            content: self.content,
            mentions: mentions.map_err(|_| corrupt("mentions"))?,
            metadata: metadata.map_err(|_| corrupt("metadata"))?,
            edited_at: Timestamp::from_millis(edited_at),
        }))
    }
}

impl Sqlite {
    pub async fn message(&self, user: UserId, id: MessageId) -> Result<Option<Message>> {
        let row: Option<MessageRow> = sqlx::query_as(sql::MESSAGE)
            .bind(user.0)
            .bind(id.0)
            .fetch_optional(&self.readers)
            .await
            .map_err(error::of)?;
        row.map(Message::try_from).transpose()
    }

    pub async fn edits(
        &self,
        user: UserId,
        id: MessageId,
        limit: u32,
        after: Seq,
    ) -> Result<Option<Vec<Version>>> {
        let rows: Vec<VersionRow> = sqlx::query_as(sql::EDITS)
            .bind(user.0)
            .bind(id.0)
            .bind(after)
            .bind(limit)
            .fetch_all(&self.readers)
            .await
            .map_err(error::of)?;
        if rows.is_empty() {
            return Ok(None);
        }
        let versions = rows.into_iter().filter_map(|row| row.shown(id).transpose());
        versions.collect::<Result<_>>().map(Some)
    }
}
