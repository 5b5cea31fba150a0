//! Sending and reading messages.

use serde_json::Value;
use sqlx::types::Json;
use sqlx::types::time::OffsetDateTime;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::error::failed;
use super::{Postgres, millis, sql, uuids};
use crate::ids::{ConversationId, MessageId, Seq, UserId};
use crate::protocol::model::{Mention, Message, MessageType};
use crate::sabotage::{self, Mutation};
use crate::store::types::{
    Anchor, History, HistoryPage, NewMessage, OutboxLease, SendOutcome, Standing, Stored,
};
use crate::store::{Result, StoreError};

#[derive(FromRow)]
pub(super) struct MessageRow {
    id: Uuid,
    conversation_id: Uuid,
    seq: i64,
    change_seq: i64,
    sender_id: Uuid,
    client_message_id: Option<String>,
    message_type: i16,
    content: Option<String>,
    parent_message_id: Option<Uuid>,
    reply_count: i64,
    mentions: Option<Json<Vec<Mention>>>,
    metadata: Option<Value>,
    created_at: OffsetDateTime,
    edited_at: Option<OffsetDateTime>,
    deleted_at: Option<OffsetDateTime>,
}

impl TryFrom<MessageRow> for Message {
    type Error = StoreError;

    fn try_from(row: MessageRow) -> Result<Self> {
        let message_type = MessageType::from_code(row.message_type).ok_or_else(|| {
            let (table, column) = ("messages", "message_type");
            StoreError::Corrupt { table, column, id: row.id.to_string() }
        })?;
        Ok(Self {
            id: MessageId(row.id),
            conversation_id: ConversationId(row.conversation_id),
            seq: row.seq,
            change_seq: row.change_seq,
            sender_id: UserId(row.sender_id),
            client_message_id: row.client_message_id,
            message_type,
            content: row.content,
            parent_message_id: row.parent_message_id.map(MessageId),
            reply_count: row.reply_count,
            mentions: row.mentions.map(|mentions| mentions.0),
            metadata: row.metadata,
            created_at: row.created_at.into(),
            edited_at: row.edited_at.map(Into::into),
            deleted_at: row.deleted_at.map(Into::into),
        })
    }
}

fn all(rows: Vec<MessageRow>) -> Result<Vec<Message>> {
    rows.into_iter().map(Message::try_from).collect()
}

/// A message of the newest page, and where the log stands.
#[derive(FromRow)]
struct NewestRow {
    last_seq: i64,
    history_from_seq: i64,
    #[sqlx(flatten)]
    message: MessageRow,
}

/// What the statement says of one message of the batch.
#[derive(FromRow)]
struct Judged {
    /// Its place in the batch, from 1.
    ord: i64,
    verdict: i16,
    /// These three of a stored one only.
    seq: Option<i64>,
    at: Option<OffsetDateTime>,
    members_version: Option<i64>,
    /// The message that was sent before, if any.
    first_id: Option<Uuid>,
}

/// Commits a batch that is not empty; see `send.sql`.
pub async fn send(
    connection: &mut PgConnection,
    batch: &[NewMessage],
    outbox: OutboxLease,
) -> Result<Vec<SendOutcome>> {
    let json = |text: serde_json::Result<String>| {
        text.map_err(|error| failed(sqlx::Error::Encode(error.into()), false))
    };
    let mut mentions = Vec::with_capacity(batch.len());
    let mut metadatas = Vec::with_capacity(batch.len());
    for message in batch {
        mentions.push(message.mentions.as_ref().map(serde_json::to_string).map(json).transpose()?);
        metadatas.push(message.metadata.as_ref().map(serde_json::to_string).map(json).transpose()?);
    }
    let of = |part: fn(&NewMessage) -> &str| batch.iter().map(part).collect::<Vec<_>>();
    let client_ids: Vec<_> = batch.iter().map(|m| m.client_message_id.as_deref()).collect();
    let parents: Vec<_> = batch.iter().map(|m| m.parent_message_id.map(|id| id.0)).collect();
    let judged: Vec<Judged> = sqlx::query_as(sql::SEND)
        .bind(uuids(batch, |m| m.id.0))
        .bind(uuids(batch, |m| m.conversation_id.0))
        .bind(uuids(batch, |m| m.sender_id.0))
        .bind(client_ids)
        .bind(batch.iter().map(|m| m.body_hash.as_slice()).collect::<Vec<_>>())
        .bind(batch.iter().map(|m| m.message_type.code()).collect::<Vec<_>>())
        .bind(of(|m| &m.content))
        .bind(parents)
        .bind(mentions)
        .bind(metadatas)
        .bind(outbox.id.0)
        .bind(millis(outbox.lease))
        .fetch_all(&mut *connection)
        .await
        .map_err(|error| failed(error, true))?;
    if sabotage::is_on(Mutation::ForgetOutbox) {
        let forget = sqlx::query("delete from outbox where id = $1").bind(outbox.id.0);
        let _ = forget.execute(&mut *connection).await;
    }

    let first_ids: Vec<Uuid> =
        judged.iter().filter(|j| j.verdict == 1).filter_map(|j| j.first_id).collect();
    let firsts = if first_ids.is_empty() {
        Vec::new()
    } else {
        let rows = sqlx::query_as(sql::MESSAGES).bind(first_ids).fetch_all(connection).await;
        all(rows.map_err(|error| failed(error, true))?)?
    };
    // Of those whose conversation moved on there is no row.
    let mut outcomes = vec![SendOutcome::Again; batch.len()];
    for judged in judged {
        let place = usize::try_from(judged.ord - 1).ok().and_then(|i| outcomes.get_mut(i));
        if let Some(place) = place {
            *place = outcome(&judged, &firsts).ok_or_else(|| {
                failed(sqlx::Error::Protocol(format!("verdict {}", judged.verdict)), true)
            })?;
        }
    }
    Ok(outcomes)
}

/// None if the statement and this function do not agree.
fn outcome(judged: &Judged, firsts: &[Message]) -> Option<SendOutcome> {
    Some(match judged.verdict {
        0 => SendOutcome::Stored(Stored {
            seq: judged.seq?,
            created_at: judged.at?.into(),
            members_version: judged.members_version?,
        }),
        1 => {
            let first = firsts.iter().find(|message| Some(message.id.0) == judged.first_id)?;
            SendOutcome::Duplicate(Box::new(first.clone()))
        }
        2 => SendOutcome::DifferentBody,
        3 => SendOutcome::NotFound,
        4 => SendOutcome::Forbidden,
        5 => SendOutcome::ParentNotFound,
        6 => SendOutcome::ParentDeleted,
        7 => SendOutcome::MentionNotMember,
        _ => return None,
    })
}

impl Postgres {
    pub async fn messages(&self, ids: &[MessageId]) -> Result<Vec<Message>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        all(self.rows(sqlx::query_as(sql::MESSAGES).bind(uuids(ids, |id| id.0))).await?)
    }

    pub async fn history(
        &self,
        user: UserId,
        id: ConversationId,
        page: HistoryPage,
    ) -> Result<History> {
        let limit = page.limit as usize;
        let anchor = page.anchor.message_id().map(|id| id.0);
        let thread = page.thread.map(|id| id.0);
        let after = matches!(page.anchor, Anchor::After(_));
        let statement = match (after, thread) {
            (false, None) => sql::HISTORY,
            (true, None) => sql::HISTORY_AFTER,
            (false, Some(_)) => sql::THREAD,
            (true, Some(_)) => sql::THREAD_AFTER,
        };
        // One more than asked for tells whether there is more.
        let query = sqlx::query_as(statement)
            .bind(user.0)
            .bind(id.0)
            .bind(anchor)
            .bind(i64::from(page.limit) + 1);
        let query = if thread.is_some() { query.bind(thread) } else { query };
        let mut messages = all(self.rows(query).await?)?;
        if messages.is_empty() {
            let query = sqlx::query_as(sql::HISTORY_JUDGE)
                .bind(user.0)
                .bind(id.0)
                .bind(anchor)
                .bind(thread);
            match self.optional(query).await? {
                None => return Ok(History::NotFound),
                Some((false, _)) if anchor.is_some() => return Ok(History::MessageNotFound),
                Some((_, false)) if thread.is_some() => return Ok(History::ThreadNotFound),
                Some(_) => {}
            }
        }
        let has_more = messages.len() > limit;
        messages.truncate(limit);
        if after {
            messages.reverse();
        }
        Ok(History::Page { messages, has_more })
    }

    /// The newest page, and where the log stands in the same snapshot; None if nothing is shown.
    pub async fn newest(
        &self,
        user: UserId,
        id: ConversationId,
        limit: u32,
    ) -> Result<(History, Option<Standing>)> {
        // One more than asked for tells whether there is more.
        let query = sqlx::query_as(sql::HISTORY)
            .bind(user.0)
            .bind(id.0)
            .bind(None::<Uuid>)
            .bind(i64::from(limit) + 1);
        let mut rows: Vec<NewestRow> = self.rows(query).await?;
        let Some(NewestRow { last_seq, history_from_seq, .. }) = rows.first() else {
            let empty = History::Page { messages: Vec::new(), has_more: false };
            let standing = self.standing(user, id).await?;
            return Ok((standing.map_or(History::NotFound, |_| empty), None));
        };
        let at = Standing { last_seq: *last_seq, history_from_seq: *history_from_seq };
        let has_more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let messages = all(rows.into_iter().map(|row| row.message).collect())?;
        Ok((History::Page { messages, has_more }, Some(at)))
    }

    pub async fn standing(&self, user: UserId, id: ConversationId) -> Result<Option<Standing>> {
        let query = sqlx::query_as(sql::STANDING).bind(user.0).bind(id.0);
        let found = self.optional(query).await?;
        Ok(found.map(|(last_seq, history_from_seq)| Standing { last_seq, history_from_seq }))
    }

    pub async fn lacking(
        &self,
        user: UserId,
        id: ConversationId,
        after: Seq,
        limit: u32,
    ) -> Result<Vec<Message>> {
        let query =
            sqlx::query_as(sql::LACKING).bind(user.0).bind(id.0).bind(after).bind(i64::from(limit));
        all(self.rows(query).await?)
    }
}
