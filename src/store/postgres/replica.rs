//! Old history from a streaming replica, exactly as the primary would show it.
//!
//! The replica says how far it is with the conversation, and gives the page. Then the primary is
//! asked, by one look at what changed since, whether the page is still what it would show: whatever
//! changes a message, a right or a count of replies takes the next seq of its conversation. If it
//! is not, or the replica is away or far behind, the primary reads the page itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::Histogram;
use sqlx::postgres::PgConnectOptions;
use uuid::Uuid;

use super::messages::{all, page_query};
use super::pool::Pool;
use super::{Postgres, sql, uuids};
use crate::ids::{ConversationId, UserId};
use crate::store::Result;
use crate::store::types::{Anchor, History, HistoryPage};
use crate::telemetry::metrics::ReplicaRead;

/// Who waits for longer is better served by the primary.
const ACQUIRE_LIMIT: Duration = Duration::from_secs(1);
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long it is left alone after it failed.
const PAUSE: Duration = Duration::from_secs(5);
/// Changes of a conversation that the primary looks through at most.
const MAX_LAG: i64 = 1_000;

#[derive(Clone)]
pub struct Replica {
    pub pool: Pool,
    failed_at: Arc<Mutex<Option<Instant>>>,
}

/// Where a member and his conversation stand on the replica.
#[derive(sqlx::FromRow)]
struct Head {
    change_seq: i64,
    last_seq: i64,
    store_epoch: Uuid,
}

impl Replica {
    pub fn new(options: PgConnectOptions, size: u32) -> Self {
        let pool = Pool::of_sessions(options, size, ACQUIRE_LIMIT, ANSWER_LIMIT, Histogram::noop());
        Self { pool, failed_at: Arc::default() }
    }

    fn is_left_alone(&self) -> bool {
        let failed_at = *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
        failed_at.is_some_and(|at| at.elapsed() < PAUSE)
    }

    fn note_failure(&self) {
        *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

impl Postgres {
    /// None: the primary has to read it.
    pub(super) async fn history_from_replica(
        &self,
        user: UserId,
        id: ConversationId,
        page: &HistoryPage,
    ) -> Option<History> {
        let replica = self.replica.as_ref()?;
        // The newest messages are where most changes, and in the primary's memory.
        if matches!(page.anchor, Anchor::Newest) && page.thread.is_none() {
            return None;
        }
        let (outcome, history) = if replica.is_left_alone() {
            (ReplicaRead::Failed, None)
        } else {
            self.ask_replica(replica, user, id, page).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "the replica does not answer; the primary reads instead");
                replica.note_failure();
                (ReplicaRead::Failed, None)
            })
        };
        self.metrics.store.replica.of(outcome).increment(1);
        history
    }

    async fn ask_replica(
        &self,
        replica: &Replica,
        user: UserId,
        id: ConversationId,
        page: &HistoryPage,
    ) -> Result<(ReplicaRead, Option<History>)> {
        let head = sqlx::query_as(sql::REPLICA_HEAD).bind(user.0).bind(id.0);
        // The head first: what is not known to have changed since then has not since the page.
        let (heads, rows) = replica.pool.pair(head, page_query(user, id, page)).await?;
        let Some(head): Option<Head> = heads.into_iter().next() else {
            return Ok((ReplicaRead::Absent, None));
        };
        let rows = all(rows)?;
        let seqs = rows.iter().map(|message| message.seq);
        let (Some(oldest), Some(newest)) = (seqs.clone().min(), seqs.max()) else {
            return Ok((ReplicaRead::Absent, None));
        };
        // At the head any new message would belong to it.
        let reaches_head = match page.anchor {
            Anchor::Newest => true,
            Anchor::Before(_) => false,
            Anchor::After(_) => rows.len() <= page.limit as usize,
        };
        let query = sqlx::query_as(sql::REPLICA_JUDGE)
            .bind(user.0)
            .bind(id.0)
            .bind(head.change_seq)
            .bind(head.last_seq)
            .bind(head.store_epoch)
            .bind(MAX_LAG)
            .bind(oldest)
            .bind(if reaches_head { i64::MAX } else { newest })
            .bind(uuids(&rows, |message| message.id.0));
        Ok(match self.pool.optional::<(i16,)>(query).await? {
            Some((0,)) => (ReplicaRead::Served, Some(page.of(rows))),
            Some((1,)) => (ReplicaRead::Lagging, None),
            Some(_) => (ReplicaRead::Changed, None),
            None => (ReplicaRead::Absent, None),
        })
    }
}
