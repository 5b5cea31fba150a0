//! The laggards: members with something unproven, until it is proven or handed on.

use std::time::Duration;

use sqlx::FromRow;
use sqlx::types::time::OffsetDateTime;
use uuid::Uuid;

use super::{Postgres, from_millis, millis, sql, uuids};
use crate::ids::{ConversationId, UserId};
use crate::store::Result;
use crate::store::types::Laggard;

#[derive(FromRow)]
struct LaggardRow {
    user_id: Uuid,
    conversation_id: Uuid,
    tries: i32,
    settled_seq: i64,
    last_seq: i64,
    age_ms: i64,
    behind: i64,
    muted_until: Option<OffsetDateTime>,
}

impl From<LaggardRow> for Laggard {
    fn from(row: LaggardRow) -> Self {
        Self {
            user_id: UserId(row.user_id),
            conversation_id: ConversationId(row.conversation_id),
            tries: row.tries,
            settled_seq: row.settled_seq,
            last_seq: row.last_seq,
            age: from_millis(row.age_ms),
            behind: row.behind,
            muted_until: row.muted_until.map(Into::into),
        }
    }
}

impl Postgres {
    pub async fn claim_laggards(&self, limit: u32, lease: Duration) -> Result<Vec<Laggard>> {
        let query = sqlx::query_as::<_, LaggardRow>(sql::CLAIM_LAGGARDS)
            .bind(i64::from(limit))
            .bind(millis(lease));
        Ok(self.rows(query).await?.into_iter().map(Laggard::from).collect())
    }

    pub async fn postpone_laggards(
        &self,
        laggards: &[(UserId, ConversationId, Duration)],
    ) -> Result<()> {
        if laggards.is_empty() {
            return Ok(());
        }
        let query = sqlx::query(sql::POSTPONE_LAGGARDS)
            .bind(uuids(laggards, |(user, _, _)| user.0))
            .bind(uuids(laggards, |(_, conversation, _)| conversation.0))
            .bind(laggards.iter().map(|(_, _, delay)| millis(*delay)).collect::<Vec<_>>());
        self.execute(query).await
    }

    pub async fn hasten_laggards(&self, users: &[UserId]) -> Result<()> {
        if users.is_empty() {
            return Ok(());
        }
        self.execute(sqlx::query(sql::HASTEN_LAGGARDS).bind(uuids(users, |id| id.0)))
            .await
            .map(drop)
    }

    pub async fn laggards_state(&self) -> Result<(i64, Duration)> {
        let (rows, oldest_ms) = self.row(sqlx::query_as(sql::LAGGARDS_STATE)).await?;
        Ok((rows, from_millis(oldest_ms)))
    }
}
