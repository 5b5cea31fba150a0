//! Messages: the batch that stores them, and the reads that return them.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;
use uuid::fmt::Simple;

use super::sql::{self, hex, json};
use super::{Sqlite, SqliteWriter, commit, error};
use crate::clock::Timestamp;
use crate::ids::{ConversationId, MessageId, Seq, UserId};
use crate::protocol::model::ChangeKind;
use crate::protocol::model::{Mention, Message, MessageType};
use crate::store::types::{
    Anchor, History, HistoryPage, NewMessage, OutboxEntry, OutboxLease, SendOutcome, Standing,
    Stored,
};
use crate::store::{Result, StoreError};

/// What `send_judge.sql` says of one message.
#[derive(FromRow)]
struct Verdict {
    verdict: i64,
    first_id: Option<Uuid>,
    last_seq: Seq,
    members_version: i64,
    /// The database's clock.
    now: i64,
}

/// The parameter rows of `send_judge.sql` and `send_store.sql`; tuples stand as JSON arrays.
type Question<'a> = (Simple, Simple, Option<&'a str>, String, Option<Simple>, Vec<Simple>);

#[derive(Serialize)]
struct StoredRow<'a>(
    Simple,
    Simple,
    Seq,
    Simple,
    Option<&'a str>,
    String,
    i16,
    &'a str,
    Option<Simple>,
    Option<&'a [Mention]>,
    Option<&'a serde_json::Value>,
);

impl SqliteWriter {
    /// Four statements, however large the batch: judge, store, bump the conversations, outbox. The
    /// write lock is held from the first, so the seqs are counted here, without gaps.
    pub async fn send(
        &mut self,
        batch: &[NewMessage],
        outbox: OutboxLease,
    ) -> Result<Vec<SendOutcome>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let mut tx = self.store.begin().await?;
        let verdicts: Vec<Verdict> = sqlx::query_as(sql::SEND_JUDGE)
            .bind(json(batch.iter().map(question)))
            .fetch_all(&mut *tx)
            .await
            .map_err(error::of)?;
        error::affected(verdicts.len() as u64, batch.len(), "judging a batch")?;
        let firsts = first_messages(&mut tx, &verdicts).await?;

        let now = verdicts[0].now;
        let mut heads: BTreeMap<ConversationId, (Seq, Simple)> = BTreeMap::new();
        let mut rows = Vec::with_capacity(batch.len());
        let mut entries = Vec::with_capacity(batch.len());
        let mut outcomes = Vec::with_capacity(batch.len());
        for (message, verdict) in batch.iter().zip(&verdicts) {
            outcomes.push(match verdict.verdict {
                0 => {
                    let id = hex(message.id.0);
                    let head =
                        heads.entry(message.conversation_id).or_insert((verdict.last_seq, id));
                    let seq = head.0 + 1;
                    *head = (seq, id);
                    rows.push(stored_row(message, seq));
                    entries.push(OutboxEntry {
                        conversation_id: message.conversation_id,
                        message_id: Some(message.id),
                        seq,
                        kind: ChangeKind::MessageCreated,
                    });
                    SendOutcome::Stored(Stored {
                        seq,
                        created_at: Timestamp::from_millis(now),
                        members_version: verdict.members_version,
                    })
                }
                1 => first_of(verdict, &firsts)?,
                2 => SendOutcome::DifferentBody,
                3 => SendOutcome::NotFound,
                4 => SendOutcome::Forbidden,
                5 => SendOutcome::ParentNotFound,
                6 => SendOutcome::ParentDeleted,
                7 => SendOutcome::MentionNotMember,
                other => unreachable!("send_judge.sql has no verdict {other}"),
            });
        }
        if entries.is_empty() {
            return Ok(outcomes);
        }
        let stored = sqlx::query(sql::SEND_STORE)
            .bind(json(rows))
            .bind(now)
            .execute(&mut *tx)
            .await
            .map_err(error::of)?;
        error::affected(stored.rows_affected(), entries.len(), "storing messages")?;
        let bumped = sqlx::query(sql::SEND_BUMP)
            .bind(json(heads.iter().map(|(id, (seq, last))| (hex(id.0), seq, last))))
            .bind(now)
            .execute(&mut *tx)
            .await
            .map_err(error::of)?;
        error::affected(bumped.rows_affected(), heads.len(), "moving conversations on")?;
        super::outbox::insert(&mut tx, outbox, now, &entries).await?;
        commit(tx).await?;
        Ok(outcomes)
    }
}

impl Sqlite {
    pub async fn messages(&self, ids: &[MessageId]) -> Result<Vec<Message>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut reader = self.readers.acquire().await.map_err(error::of)?;
        by_id(&mut reader, ids).await
    }

    pub async fn history(
        &self,
        user: UserId,
        id: ConversationId,
        page: HistoryPage,
    ) -> Result<History> {
        let mut tx = self.snapshot().await?;
        let (anchor, thread) = (page.anchor.message_id(), page.thread);
        let found: Option<(Option<Seq>, Option<Seq>)> = sqlx::query_as(sql::HISTORY_FROM)
            .bind(user.0)
            .bind(id.0)
            .bind(anchor.map(|anchor| anchor.0))
            .bind(thread.map(|thread| thread.0))
            .fetch_optional(&mut *tx)
            .await
            .map_err(error::of)?;
        let seq = match found {
            None => return Ok(History::NotFound),
            Some((None, _)) if anchor.is_some() => return Ok(History::MessageNotFound),
            Some((_, None)) if thread.is_some() => return Ok(History::ThreadNotFound),
            Some((seq, _)) => seq.unwrap_or(Seq::MAX),
        };
        let after = matches!(page.anchor, Anchor::After(_));
        let statement = match (after, thread) {
            (false, None) => sql::HISTORY,
            (true, None) => sql::HISTORY_AFTER,
            (false, Some(_)) => sql::THREAD,
            (true, Some(_)) => sql::THREAD_AFTER,
        };
        let query = sqlx::query_as(statement)
            .bind(user.0)
            .bind(id.0)
            .bind(seq)
            .bind(i64::from(page.limit) + 1);
        let query = if let Some(thread) = thread { query.bind(thread.0) } else { query };
        let rows: Vec<MessageRow> = query.fetch_all(&mut *tx).await.map_err(error::of)?;
        let limit = page.limit as usize;
        let has_more = rows.len() > limit;
        let messages = rows.into_iter().take(limit).map(Message::try_from);
        let mut messages = messages.collect::<Result<Vec<_>>>()?;
        if after {
            messages.reverse();
        }
        Ok(History::Page { messages, has_more })
    }

    /// The newest page, and where the log stands in the same snapshot.
    pub async fn newest(
        &self,
        user: UserId,
        id: ConversationId,
        limit: u32,
    ) -> Result<(History, Option<Standing>)> {
        let mut tx = self.snapshot().await?;
        let Some(at) = standing(&mut tx, user, id).await? else {
            return Ok((History::NotFound, None));
        };
        let rows: Vec<MessageRow> = sqlx::query_as(sql::HISTORY)
            .bind(user.0)
            .bind(id.0)
            .bind(Seq::MAX)
            .bind(i64::from(limit) + 1)
            .fetch_all(&mut *tx)
            .await
            .map_err(error::of)?;
        let has_more = rows.len() > limit as usize;
        let messages = rows.into_iter().take(limit as usize).map(Message::try_from);
        Ok((History::Page { messages: messages.collect::<Result<_>>()?, has_more }, Some(at)))
    }

    pub async fn standing(&self, user: UserId, id: ConversationId) -> Result<Option<Standing>> {
        let mut reader = self.readers.acquire().await.map_err(error::of)?;
        standing(&mut reader, user, id).await
    }

    pub async fn lacking(
        &self,
        user: UserId,
        id: ConversationId,
        after: Seq,
        limit: u32,
    ) -> Result<Vec<Message>> {
        let rows: Vec<MessageRow> = sqlx::query_as(sql::LACKING)
            .bind(user.0)
            .bind(id.0)
            .bind(after)
            .bind(limit)
            .fetch_all(&self.readers)
            .await
            .map_err(error::of)?;
        rows.into_iter().map(Message::try_from).collect()
    }
}

async fn standing(
    connection: &mut SqliteConnection,
    user: UserId,
    id: ConversationId,
) -> Result<Option<Standing>> {
    let query = sqlx::query_as(sql::STANDING).bind(user.0).bind(id.0);
    let found = query.fetch_optional(connection).await.map_err(error::of)?;
    Ok(found.map(|(last_seq, history_from_seq)| Standing { last_seq, history_from_seq }))
}

pub(super) async fn by_id(
    connection: &mut SqliteConnection,
    ids: &[MessageId],
) -> Result<Vec<Message>> {
    let rows: Vec<MessageRow> = sqlx::query_as(sql::MESSAGES_BY_ID)
        .bind(json(ids.iter().map(|id| hex(id.0))))
        .fetch_all(connection)
        .await
        .map_err(error::of)?;
    rows.into_iter().map(Message::try_from).collect()
}

/// The messages that a batch repeats, as they are now.
async fn first_messages(
    connection: &mut SqliteConnection,
    verdicts: &[Verdict],
) -> Result<HashMap<Uuid, Message>> {
    let ids: Vec<MessageId> = verdicts
        .iter()
        .filter(|v| v.verdict == 1)
        .filter_map(|v| v.first_id)
        .map(MessageId)
        .collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let messages = by_id(connection, &ids).await?;
    Ok(messages.into_iter().map(|message| (message.id.0, message)).collect())
}

fn first_of(verdict: &Verdict, firsts: &HashMap<Uuid, Message>) -> Result<SendOutcome> {
    let first = verdict.first_id.and_then(|id| firsts.get(&id)).ok_or_else(|| {
        let id = verdict.first_id.unwrap_or_default().to_string();
        StoreError::Corrupt { table: "messages", column: "id", id }
    })?;
    Ok(SendOutcome::Duplicate(Box::new(first.clone())))
}

fn question(message: &NewMessage) -> Question<'_> {
    (
        hex(message.conversation_id.0),
        hex(message.sender_id.0),
        message.client_message_id.as_deref(),
        hash_hex(&message.body_hash),
        message.parent_message_id.map(|parent| hex(parent.0)),
        message.mentions.iter().flatten().map(|mention| hex(mention.user_id.0)).collect(),
    )
}

fn stored_row(message: &NewMessage, seq: Seq) -> StoredRow<'_> {
    StoredRow(
        hex(message.id.0),
        hex(message.conversation_id.0),
        seq,
        hex(message.sender_id.0),
        message.client_message_id.as_deref(),
        hash_hex(&message.body_hash),
        message.message_type.code(),
        &message.content,
        message.parent_message_id.map(|parent| hex(parent.0)),
        message.mentions.as_deref(),
        message.metadata.as_ref(),
    )
}

fn hash_hex(hash: &[u8; 32]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    hash.iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

/// A message as the statements return it.
#[derive(FromRow)]
pub(super) struct MessageRow {
    id: Uuid,
    conversation_id: Uuid,
    seq: Seq,
    change_seq: Seq,
    sender_id: Uuid,
    client_message_id: Option<String>,
    message_type: i16,
    content: Option<String>,
    parent_message_id: Option<Uuid>,
    reply_count: i64,
    mentions: Option<String>,
    metadata: Option<String>,
    created_at: i64,
    edited_at: Option<i64>,
    deleted_at: Option<i64>,
}

impl TryFrom<MessageRow> for Message {
    type Error = StoreError;

    fn try_from(row: MessageRow) -> Result<Self> {
        let corrupt =
            |column| StoreError::Corrupt { table: "messages", column, id: row.id.to_string() };
        // A deleted message keeps its place, not its words.
        let kept = |text: Option<String>| text.filter(|_| row.deleted_at.is_none());
        let mentions = kept(row.mentions).map(|text| serde_json::from_str(&text)).transpose();
        let metadata = kept(row.metadata).map(|text| serde_json::from_str(&text)).transpose();
        Ok(Self {
            message_type: MessageType::from_code(row.message_type)
                .ok_or_else(|| corrupt("message_type"))?,
            mentions: mentions.map_err(|_| corrupt("mentions"))?,
            metadata: metadata.map_err(|_| corrupt("metadata"))?,
            content: kept(row.content),
            id: MessageId(row.id),
            conversation_id: ConversationId(row.conversation_id),
            seq: row.seq,
            change_seq: row.change_seq,
            sender_id: UserId(row.sender_id),
            client_message_id: row.client_message_id,
            parent_message_id: row.parent_message_id.map(MessageId),
            reply_count: row.reply_count,
            created_at: Timestamp::from_millis(row.created_at),
            edited_at: row.edited_at.map(Timestamp::from_millis),
            deleted_at: row.deleted_at.map(Timestamp::from_millis),
        })
    }
}
