//! Who is behind, and who takes care of it.

use std::time::Duration;

use sqlx::FromRow;
use uuid::Uuid;

use super::outbox::{duration, millis};
use super::sql::{self, hex, json};
use super::{Sqlite, commit, error};
use crate::clock::Timestamp;
use crate::ids::{ConversationId, Seq, UserId};
use crate::store::Result;
use crate::store::types::Laggard;

#[derive(FromRow)]
struct ClaimedRow {
    user_id: Uuid,
    conversation_id: Uuid,
    due_at: i64,
    tries: i32,
}

/// What a claimed laggard lacks; nulls for who is no member any more.
#[derive(FromRow)]
struct LackRow {
    settled_seq: Option<Seq>,
    muted_until: Option<i64>,
    behind: i64,
    last_seq: Option<Seq>,
    age: Option<i64>,
}

impl Sqlite {
    pub async fn claim_laggards(&self, limit: u32, lease: Duration) -> Result<Vec<Laggard>> {
        let mut tx = self.begin().await?;
        let mut claimed: Vec<ClaimedRow> = sqlx::query_as(sql::LAGGARDS_CLAIM)
            .bind(limit)
            .bind(millis(lease))
            .fetch_all(&mut *tx)
            .await
            .map_err(error::of)?;
        if claimed.is_empty() {
            return Ok(Vec::new());
        }
        // `returning` has no order.
        claimed.sort_unstable_by_key(|row| row.due_at);
        let lacks: Vec<LackRow> = sqlx::query_as(sql::LAGGARDS_LACK)
            .bind(json(claimed.iter().map(|row| (hex(row.user_id), hex(row.conversation_id)))))
            .fetch_all(&mut *tx)
            .await
            .map_err(error::of)?;
        error::affected(lacks.len() as u64, claimed.len(), "reading what laggards lack")?;

        let mut laggards = Vec::with_capacity(claimed.len());
        let mut idle = Vec::new();
        for (row, lack) in claimed.into_iter().zip(lacks) {
            let (Some(settled_seq), Some(last_seq)) = (lack.settled_seq, lack.last_seq) else {
                idle.push((hex(row.user_id), hex(row.conversation_id)));
                continue;
            };
            laggards.push(Laggard {
                user_id: UserId(row.user_id),
                conversation_id: ConversationId(row.conversation_id),
                tries: row.tries,
                settled_seq,
                last_seq,
                age: duration(lack.age.unwrap_or(0)),
                behind: lack.behind,
                muted_until: lack.muted_until.map(Timestamp::from_millis),
            });
        }
        if !idle.is_empty() {
            sqlx::query(sql::LAGGARDS_DELETE)
                .bind(json(idle))
                .execute(&mut *tx)
                .await
                .map_err(error::of)?;
        }
        commit(tx).await?;
        Ok(laggards)
    }

    pub async fn postpone_laggards(
        &self,
        laggards: &[(UserId, ConversationId, Duration)],
    ) -> Result<()> {
        let rows = laggards
            .iter()
            .map(|(user, conversation, delay)| (hex(user.0), hex(conversation.0), millis(*delay)));
        self.write(sql::LAGGARDS_POSTPONE, json(rows)).await
    }

    pub async fn hasten_laggards(&self, users: &[UserId]) -> Result<()> {
        self.write(sql::LAGGARDS_HASTEN, json(users.iter().map(|user| hex(user.0)))).await
    }

    pub async fn laggards_state(&self) -> Result<(i64, Duration)> {
        let (rows, overdue): (i64, i64) = sqlx::query_as(sql::LAGGARDS_STATE)
            .fetch_one(&self.readers)
            .await
            .map_err(error::of)?;
        Ok((rows, duration(overdue)))
    }

    /// One statement as one transaction.
    async fn write(&self, statement: &'static str, rows: String) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query(statement).bind(rows).execute(&mut *tx).await.map_err(error::of)?;
        commit(tx).await
    }
}
