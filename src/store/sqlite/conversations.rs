//! Conversations and their members, read: for a member, for the dispatcher, for events.

use std::collections::HashMap;

use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::sql::{self, hex, json};
use super::{Sqlite, error, messages};
use crate::clock::Timestamp;
use crate::ids::{ConversationId, MessageId, Seq, UserId};
use crate::protocol::model::{Conversation, Kind, Me, Member, Message, Role};
use crate::store::types::{ConversationCursor, MemberState, Members};
use crate::store::{MEMBERS_SHOWN, Result, StoreError};

impl Sqlite {
    pub async fn conversation(
        &self,
        user: UserId,
        id: ConversationId,
    ) -> Result<Option<Conversation>> {
        let mut tx = self.snapshot().await?;
        of_member(&mut tx, user, id).await
    }

    pub async fn conversations(
        &self,
        user: UserId,
        limit: u32,
        after: Option<ConversationCursor>,
    ) -> Result<(Vec<Conversation>, Option<ConversationCursor>)> {
        let mut tx = self.snapshot().await?;
        let mut rows: Vec<MyConversationRow> = sqlx::query_as(sql::CONVERSATIONS)
            .bind(user.0)
            .bind(after.map(|cursor| cursor.last_activity_at.millis()))
            .bind(after.map(|cursor| cursor.id.0))
            .bind(i64::from(limit) + 1)
            .fetch_all(&mut *tx)
            .await
            .map_err(error::of)?;
        let limit = limit as usize;
        let goes_on = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| goes_on).map(|last| ConversationCursor {
            last_activity_at: Timestamp::from_millis(last.last_activity_at),
            id: ConversationId(last.conversation.id),
        });
        let mut page = shown_to_member(&mut tx, rows).await?;
        name_pairs(&mut tx, &mut page).await?;
        Ok((page, next))
    }

    pub async fn participants(
        &self,
        user: UserId,
        id: ConversationId,
        limit: u32,
        after: Option<UserId>,
    ) -> Result<Option<Vec<Member>>> {
        let mut tx = self.snapshot().await?;
        let member: bool = sqlx::query_scalar(sql::IS_MEMBER)
            .bind(user.0)
            .bind(id.0)
            .fetch_one(&mut *tx)
            .await
            .map_err(error::of)?;
        if !member {
            return Ok(None);
        }
        members_after(&mut tx, id, after, i64::from(limit)).await.map(Some)
    }

    pub async fn acquainted(&self, user: UserId, others: &[UserId]) -> Result<Vec<UserId>> {
        let users: Vec<Uuid> = sqlx::query_scalar(sql::ACQUAINTED)
            .bind(user.0)
            .bind(json(others.iter().map(|other| hex(other.0))))
            .fetch_all(&self.readers)
            .await
            .map_err(error::of)?;
        Ok(users.into_iter().map(UserId).collect())
    }

    pub async fn members(&self, id: ConversationId) -> Result<Option<Members>> {
        // One statement is one snapshot.
        let rows: Vec<MemberStateRow> = sqlx::query_as(sql::MEMBERS)
            .bind(id.0)
            .fetch_all(&self.readers)
            .await
            .map_err(error::of)?;
        let Some(first) = rows.first() else {
            return Ok(None);
        };
        let version = first.members_version;
        let members = rows
            .into_iter()
            // A conversation that everyone left a while ago is one row without a user.
            .filter_map(|row| {
                Some(MemberState {
                    user_id: UserId(row.user_id?),
                    joined_seq: row.joined_seq?,
                    history_from_seq: row.history_from_seq?,
                    left_seq: row.left_seq,
                    can_send_messages: row.can_send_messages?,
                    muted_until: row.muted_until.map(Timestamp::from_millis),
                })
            })
            .collect();
        Ok(Some(Members { version, members }))
    }

    pub async fn members_version(&self, id: ConversationId) -> Result<Option<i64>> {
        sqlx::query_scalar(sql::MEMBERS_VERSION)
            .bind(id.0)
            .fetch_optional(&self.readers)
            .await
            .map_err(error::of)
    }

    pub async fn conversation_for_event(&self, id: ConversationId) -> Result<Option<Conversation>> {
        let mut tx = self.snapshot().await?;
        let row: Option<ConversationRow> = sqlx::query_as(sql::CONVERSATION_FOR_EVENT)
            .bind(id.0)
            .fetch_optional(&mut *tx)
            .await
            .map_err(error::of)?;
        let Some(row) = row else { return Ok(None) };
        let members = members_if_few(&mut tx, id).await?;
        // No last message: not all who get the event may see it.
        Ok(Some(Conversation { members, ..row.shown(None)? }))
    }
}

/// The conversation as its member sees it; None if he is none.
pub(super) async fn of_member(
    connection: &mut SqliteConnection,
    user: UserId,
    id: ConversationId,
) -> Result<Option<Conversation>> {
    let row: Option<MyConversationRow> = sqlx::query_as(sql::CONVERSATION)
        .bind(user.0)
        .bind(id.0)
        .fetch_optional(&mut *connection)
        .await
        .map_err(error::of)?;
    let Some(row) = row else { return Ok(None) };
    let mut conversation = shown_to_member(connection, vec![row]).await?.remove(0);
    conversation.members = members_if_few(connection, id).await?;
    Ok(Some(conversation))
}

/// Adds to each row its last message.
async fn shown_to_member(
    connection: &mut SqliteConnection,
    rows: Vec<MyConversationRow>,
) -> Result<Vec<Conversation>> {
    let ids: Vec<MessageId> =
        rows.iter().filter_map(|row| row.conversation.last_message_id).map(MessageId).collect();
    let mut last = messages::by_id(connection, &ids).await?;
    rows.into_iter()
        .map(|row| {
            let id = row.conversation.last_message_id.map(MessageId);
            let at = last.iter().position(|message| Some(message.id) == id);
            row.shown(at.map(|at| last.swap_remove(at)))
        })
        .collect()
}

/// Gives the direct ones of a list their members: it is how they are told apart.
async fn name_pairs(connection: &mut SqliteConnection, page: &mut [Conversation]) -> Result<()> {
    let direct = |conversation: &&Conversation| conversation.kind == Kind::Direct;
    let rows: Vec<PairRow> = sqlx::query_as(sql::PARTICIPANTS_OF)
        .bind(json(page.iter().filter(direct).map(|conversation| hex(conversation.id.0))))
        .fetch_all(connection)
        .await
        .map_err(error::of)?;
    let mut pairs: HashMap<Uuid, Vec<Member>> = HashMap::new();
    for row in rows {
        pairs.entry(row.conversation_id).or_default().push(row.member.shown(row.conversation_id)?);
    }
    for conversation in page {
        conversation.members = pairs.remove(&conversation.id.0);
    }
    Ok(())
}

/// The members in order of user id, or none at all if they are too many to show.
async fn members_if_few(
    connection: &mut SqliteConnection,
    id: ConversationId,
) -> Result<Option<Vec<Member>>> {
    let members = members_after(connection, id, None, MEMBERS_SHOWN as i64 + 1).await?;
    Ok((members.len() <= MEMBERS_SHOWN).then_some(members))
}

async fn members_after(
    connection: &mut SqliteConnection,
    id: ConversationId,
    after: Option<UserId>,
    limit: i64,
) -> Result<Vec<Member>> {
    let rows: Vec<MemberRow> = sqlx::query_as(sql::PARTICIPANTS)
        .bind(id.0)
        .bind(after.map(|user| user.0))
        .bind(limit)
        .fetch_all(connection)
        .await
        .map_err(error::of)?;
    rows.into_iter().map(|row| row.shown(id.0)).collect()
}

pub(super) fn role(code: i16, conversation: Uuid) -> Result<Role> {
    Role::from_code(code).ok_or_else(|| StoreError::Corrupt {
        table: "participants",
        column: "role",
        id: conversation.to_string(),
    })
}

pub(super) fn kind(code: i16, conversation: Uuid) -> Result<Kind> {
    Kind::from_code(code).ok_or_else(|| StoreError::Corrupt {
        table: "conversations",
        column: "kind",
        id: conversation.to_string(),
    })
}

#[derive(FromRow)]
struct ConversationRow {
    id: Uuid,
    kind: i16,
    title: Option<String>,
    created_by: Uuid,
    created_at: i64,
    last_seq: Seq,
    last_message_id: Option<Uuid>,
}

impl ConversationRow {
    fn shown(self, last_message: Option<Message>) -> Result<Conversation> {
        Ok(Conversation {
            id: ConversationId(self.id),
            kind: kind(self.kind, self.id)?,
            title: self.title,
            created_by: UserId(self.created_by),
            created_at: Timestamp::from_millis(self.created_at),
            last_seq: self.last_seq,
            last_message,
            unread_count: None,
            me: None,
            members: None,
        })
    }
}

/// A conversation with the asking member's own state.
#[derive(FromRow)]
struct MyConversationRow {
    #[sqlx(flatten)]
    conversation: ConversationRow,
    last_activity_at: i64,
    role: i16,
    can_send_messages: bool,
    delivered_seq: Seq,
    read_seq: Seq,
    muted_until: Option<i64>,
    unread_count: i64,
}

impl MyConversationRow {
    fn shown(self, last_message: Option<Message>) -> Result<Conversation> {
        let me = Me {
            role: role(self.role, self.conversation.id)?,
            can_send_messages: self.can_send_messages,
            delivered_seq: self.delivered_seq,
            read_seq: self.read_seq,
            muted_until: self.muted_until.map(Timestamp::from_millis),
        };
        let unread_count = Some(self.unread_count);
        let shown = self.conversation.shown(last_message)?;
        Ok(Conversation { unread_count, me: Some(me), ..shown })
    }
}

#[derive(FromRow)]
struct MemberRow {
    user_id: Uuid,
    role: i16,
    can_send_messages: bool,
    joined_at: i64,
    delivered_seq: Seq,
    read_seq: Seq,
}

impl MemberRow {
    fn shown(self, conversation: Uuid) -> Result<Member> {
        Ok(Member {
            user_id: UserId(self.user_id),
            role: role(self.role, conversation)?,
            can_send_messages: self.can_send_messages,
            joined_at: Timestamp::from_millis(self.joined_at),
            delivered_seq: self.delivered_seq,
            read_seq: self.read_seq,
        })
    }
}

#[derive(FromRow)]
struct PairRow {
    conversation_id: Uuid,
    #[sqlx(flatten)]
    member: MemberRow,
}

#[derive(FromRow)]
struct MemberStateRow {
    members_version: i64,
    user_id: Option<Uuid>,
    joined_seq: Option<Seq>,
    history_from_seq: Option<Seq>,
    left_seq: Option<Seq>,
    can_send_messages: Option<bool>,
    muted_until: Option<i64>,
}
