//! Reading conversations and their members.

use serde::Deserialize;
use sqlx::FromRow;
use sqlx::types::Json;
use sqlx::types::time::OffsetDateTime;
use uuid::Uuid;

use super::{Postgres, sql, uuids};
use crate::clock::Timestamp;
use crate::ids::{ConversationId, MessageId, UserId};
use crate::protocol::model::{Conversation, Kind, Me, Member, Message, Role};
use crate::store::types::{ConversationCursor, MemberState, Members};
use crate::store::{MEMBERS_SHOWN, Result, StoreError};

fn corrupt(table: &'static str, column: &'static str, id: Uuid) -> StoreError {
    StoreError::Corrupt { table, column, id: id.to_string() }
}

/// A member as a row, or as an element of a conversation's `members`.
#[derive(FromRow, Deserialize)]
struct MemberRow {
    user_id: Uuid,
    role: i16,
    can_send_messages: bool,
    joined_at_ms: i64,
    delivered_seq: i64,
    read_seq: i64,
}

impl TryFrom<MemberRow> for Member {
    type Error = StoreError;

    fn try_from(row: MemberRow) -> Result<Self> {
        Ok(Self {
            user_id: UserId(row.user_id),
            role: Role::from_code(row.role)
                .ok_or_else(|| corrupt("participants", "role", row.user_id))?,
            can_send_messages: row.can_send_messages,
            joined_at: Timestamp::from_millis(row.joined_at_ms),
            delivered_seq: row.delivered_seq,
            read_seq: row.read_seq,
        })
    }
}

/// A conversation without anyone's own state.
#[derive(FromRow)]
struct ConversationRow {
    id: Uuid,
    kind: i16,
    title: Option<String>,
    created_by: Uuid,
    created_at: OffsetDateTime,
    last_seq: i64,
    /// None in groups too large to show them, and in lists of groups.
    members: Option<Json<Vec<MemberRow>>>,
}

impl TryFrom<ConversationRow> for Conversation {
    type Error = StoreError;

    fn try_from(row: ConversationRow) -> Result<Self> {
        let members = row
            .members
            .map(|members| members.0.into_iter().map(Member::try_from).collect::<Result<Vec<_>>>());
        Ok(Self {
            id: ConversationId(row.id),
            kind: Kind::from_code(row.kind)
                .ok_or_else(|| corrupt("conversations", "kind", row.id))?,
            title: row.title,
            created_by: UserId(row.created_by),
            created_at: row.created_at.into(),
            last_seq: row.last_seq,
            last_message: None,
            unread_count: None,
            me: None,
            members: members.transpose()?,
        })
    }
}

/// A conversation as one of its members is shown it.
#[derive(FromRow)]
pub(super) struct MineRow {
    #[sqlx(flatten)]
    conversation: ConversationRow,
    last_activity_at: OffsetDateTime,
    role: i16,
    can_send_messages: bool,
    delivered_seq: i64,
    read_seq: i64,
    muted_until: Option<OffsetDateTime>,
    last_message_id: Option<Uuid>,
    unread_count: i64,
}

impl MineRow {
    /// `last_messages`: those of all rows; each row takes its own out of them.
    fn shown(self, last_messages: &mut Vec<Message>) -> Result<Conversation> {
        let last = last_messages.iter().position(|m| Some(m.id.0) == self.last_message_id);
        let me = Me {
            role: Role::from_code(self.role)
                .ok_or_else(|| corrupt("participants", "role", self.conversation.id))?,
            can_send_messages: self.can_send_messages,
            delivered_seq: self.delivered_seq,
            read_seq: self.read_seq,
            muted_until: self.muted_until.map(Into::into),
        };
        Ok(Conversation {
            last_message: last.map(|place| last_messages.swap_remove(place)),
            unread_count: Some(self.unread_count),
            me: Some(me),
            ..Conversation::try_from(self.conversation)?
        })
    }
}

#[derive(FromRow)]
struct MembersRow {
    members_version: i64,
    /// These are null in the one row of a conversation without anyone.
    user_id: Option<Uuid>,
    joined_seq: Option<i64>,
    history_from_seq: Option<i64>,
    left_seq: Option<i64>,
    can_send_messages: Option<bool>,
    muted_until: Option<OffsetDateTime>,
}

impl Postgres {
    pub async fn conversation(
        &self,
        user: UserId,
        id: ConversationId,
    ) -> Result<Option<Conversation>> {
        let query =
            sqlx::query_as(sql::CONVERSATION).bind(user.0).bind(id.0).bind(MEMBERS_SHOWN as i32);
        let rows = self.rows(query).await?;
        Ok(self.shown(rows).await?.pop())
    }

    pub async fn conversations(
        &self,
        user: UserId,
        limit: u32,
        after: Option<ConversationCursor>,
    ) -> Result<(Vec<Conversation>, Option<ConversationCursor>)> {
        let limit = limit as usize;
        // One more than asked for tells whether the list goes on.
        let query = sqlx::query_as(sql::CONVERSATIONS)
            .bind(user.0)
            .bind(after.map(|after| after.last_activity_at.to_datetime()))
            .bind(after.map(|after| after.id.0))
            .bind(limit as i64 + 1);
        let mut rows: Vec<MineRow> = self.rows(query).await?;
        let goes_on = rows.len() > limit;
        rows.truncate(limit);
        let cursor = rows.last().filter(|_| goes_on).map(|last| ConversationCursor {
            last_activity_at: last.last_activity_at.into(),
            id: ConversationId(last.conversation.id),
        });
        Ok((self.shown(rows).await?, cursor))
    }

    pub(super) async fn shown(&self, rows: Vec<MineRow>) -> Result<Vec<Conversation>> {
        let ids: Vec<_> =
            rows.iter().filter_map(|row| row.last_message_id.map(MessageId)).collect();
        let mut last_messages = self.messages(&ids).await?;
        rows.into_iter().map(|row| row.shown(&mut last_messages)).collect()
    }

    pub async fn participants(
        &self,
        user: UserId,
        id: ConversationId,
        limit: u32,
        after: Option<UserId>,
    ) -> Result<Option<Vec<Member>>> {
        let query = sqlx::query_as::<_, MemberRow>(sql::PARTICIPANTS)
            .bind(user.0)
            .bind(id.0)
            .bind(i64::from(limit))
            .bind(after.map(|after| after.0));
        let rows = self.rows(query).await?;
        if rows.is_empty() {
            let query = sqlx::query_as(sql::IS_MEMBER).bind(user.0).bind(id.0);
            let (is_member,): (bool,) = self.row(query).await?;
            return Ok(is_member.then(Vec::new));
        }
        rows.into_iter().map(Member::try_from).collect::<Result<_>>().map(Some)
    }

    pub async fn acquainted(&self, user: UserId, others: &[UserId]) -> Result<Vec<UserId>> {
        let query = sqlx::query_as(sql::ACQUAINTED).bind(user.0).bind(uuids(others, |id| id.0));
        Ok(self.rows(query).await?.into_iter().map(|(id,)| UserId(id)).collect())
    }

    pub async fn conversation_for_event(&self, id: ConversationId) -> Result<Option<Conversation>> {
        let query = sqlx::query_as::<_, ConversationRow>(sql::CONVERSATION_EVENT)
            .bind(id.0)
            .bind(MEMBERS_SHOWN as i32);
        self.optional(query).await?.map(Conversation::try_from).transpose()
    }

    pub async fn members(&self, id: ConversationId) -> Result<Option<Members>> {
        let rows: Vec<MembersRow> = self.rows(sqlx::query_as(sql::MEMBERS).bind(id.0)).await?;
        let Some(version) = rows.first().map(|row| row.members_version) else {
            return Ok(None);
        };
        let members = rows.into_iter().filter_map(|row| {
            Some(MemberState {
                user_id: UserId(row.user_id?),
                joined_seq: row.joined_seq?,
                history_from_seq: row.history_from_seq?,
                left_seq: row.left_seq,
                can_send_messages: row.can_send_messages?,
                muted_until: row.muted_until.map(Into::into),
            })
        });
        Ok(Some(Members { version, members: members.collect() }))
    }

    pub async fn members_version(&self, id: ConversationId) -> Result<Option<i64>> {
        let version = self.optional(sqlx::query_as(sql::MEMBERS_VERSION).bind(id.0)).await?;
        Ok(version.map(|(version,)| version))
    }
}
