//! The connections that reads, settling and the outbox share.
//!
//! Behind a pooler in transaction mode (pgbouncer) nothing lasts longer than a transaction: not what
//! a session is set to, and not a statement that was prepared, be it without a name. The driver
//! parses a statement in one round trip and runs it in the next, so there each statement is a
//! transaction of its own, which begins with the settings, and has no name: a name would stay in the
//! pooler's session and be in another client's way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::Histogram;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::query::{Query, QueryAs};
use sqlx::{AssertSqlSafe, Connection, FromRow, PgTransaction};

use super::error::{failed, timed_out};
use super::{SETTINGS, session};
use crate::store::Result;

/// A pooled connection that was idle for longer is asked whether it still lives before it is used.
const TRUSTED_IDLE: Duration = Duration::from_secs(5);

/// Poolers refuse a connection that asks for more at its start than they know of.
pub fn to_pooler(options: PgConnectOptions) -> PgConnectOptions {
    options.application_name("tidings").extra_float_digits(None).statement_cache_capacity(0)
}

#[derive(Clone)]
pub struct Pool {
    connections: PgPool,
    /// As each connection is made.
    options: Arc<PgConnectOptions>,
    /// What begins a transaction behind a pooler; None: the sessions are ours.
    begin: Option<Arc<str>>,
    /// After this an answer is not waited for any more.
    patience: Duration,
    /// How long each statement waited for its connection.
    waits: Histogram,
}

impl Pool {
    /// Each connection is a session of its own.
    pub fn of_sessions(
        options: PgConnectOptions,
        size: u32,
        acquire_timeout: Duration,
        patience: Duration,
        waits: Histogram,
    ) -> Self {
        Self::new(session(options), None, size, acquire_timeout, patience, waits)
    }

    /// Each connection leads to a pooler, which gives it a session for each transaction.
    pub fn of_transactions(
        options: PgConnectOptions,
        size: u32,
        acquire_timeout: Duration,
        patience: Duration,
        waits: Histogram,
    ) -> Self {
        let settings = SETTINGS.map(|(name, value)| format!("; set local {name} = '{value}'"));
        let begin = format!("begin{}", settings.concat());
        Self::new(to_pooler(options), Some(begin.into()), size, acquire_timeout, patience, waits)
    }

    fn new(
        options: PgConnectOptions,
        begin: Option<Arc<str>>,
        size: u32,
        acquire_timeout: Duration,
        patience: Duration,
        waits: Histogram,
    ) -> Self {
        let connections = PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(acquire_timeout)
            .test_before_acquire(false)
            .before_acquire(|connection, idle| {
                Box::pin(async move {
                    if idle.idle_for > TRUSTED_IDLE {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(options.clone());
        Self { connections, options: Arc::new(options), begin, patience, waits }
    }

    /// For a connection beside the pool, which tells why there is none.
    pub fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    pub fn size(&self) -> usize {
        self.connections.options().get_max_connections() as usize
    }

    /// In use, and idle.
    pub fn use_of(&self) -> (usize, usize) {
        let idle = self.connections.num_idle();
        ((self.connections.size() as usize).saturating_sub(idle), idle)
    }

    pub async fn close(&self) {
        self.connections.close().await;
    }

    async fn acquire(&self) -> Result<PoolConnection<sqlx::Postgres>> {
        let began = Instant::now();
        let acquired = self.connections.acquire().await;
        self.waits.record(began.elapsed());
        acquired.map_err(|error| failed(error, false))
    }

    /// What runs in it behind a pooler must not be `persistent`.
    pub async fn begin(&self) -> sqlx::Result<PgTransaction<'static>> {
        match &self.begin {
            None => self.connections.begin().await,
            Some(begin) => self.connections.begin_with(AssertSqlSafe(begin.clone())).await,
        }
    }

    pub async fn rows<O>(
        &self,
        query: QueryAs<'_, sqlx::Postgres, O, PgArguments>,
    ) -> Result<Vec<O>>
    where
        O: Send + Unpin + for<'r> FromRow<'r, PgRow>,
    {
        let mut connection = self.acquire().await?;
        let work = async {
            let Some(begin) = &self.begin else {
                return query.fetch_all(&mut *connection).await;
            };
            let mut tx = (*connection).begin_with(AssertSqlSafe(begin.clone())).await?;
            let rows = query.persistent(false).fetch_all(&mut *tx).await?;
            tx.commit().await?;
            Ok(rows)
        };
        match tokio::time::timeout(self.patience, work).await {
            Ok(rows) => rows.map_err(|error| failed(error, true)),
            Err(_) => {
                // Not back into the pool: nobody knows what it would still answer.
                drop(connection.detach());
                Err(timed_out(true))
            }
        }
    }

    /// Two statements one after the other, by the same session; not behind a pooler.
    pub async fn pair<A, B>(
        &self,
        first: QueryAs<'_, sqlx::Postgres, A, PgArguments>,
        second: QueryAs<'_, sqlx::Postgres, B, PgArguments>,
    ) -> Result<(Vec<A>, Vec<B>)>
    where
        A: Send + Unpin + for<'r> FromRow<'r, PgRow>,
        B: Send + Unpin + for<'r> FromRow<'r, PgRow>,
    {
        let mut connection = self.acquire().await?;
        let work = async {
            let first = first.fetch_all(&mut *connection).await?;
            let second = second.fetch_all(&mut *connection).await?;
            Ok((first, second))
        };
        match tokio::time::timeout(self.patience, work).await {
            Ok(rows) => rows.map_err(|error| failed(error, true)),
            Err(_) => {
                drop(connection.detach());
                Err(timed_out(true))
            }
        }
    }

    /// As [`Self::rows`], for a statement that has at most one row.
    pub async fn optional<O>(
        &self,
        query: QueryAs<'_, sqlx::Postgres, O, PgArguments>,
    ) -> Result<Option<O>>
    where
        O: Send + Unpin + for<'r> FromRow<'r, PgRow>,
    {
        Ok(self.rows(query).await?.pop())
    }

    /// As [`Self::rows`], for a statement without rows.
    pub async fn execute(&self, query: Query<'_, sqlx::Postgres, PgArguments>) -> Result<()> {
        let mut connection = self.acquire().await?;
        let work = async {
            let Some(begin) = &self.begin else {
                return query.execute(&mut *connection).await.map(drop);
            };
            let mut tx = (*connection).begin_with(AssertSqlSafe(begin.clone())).await?;
            query.persistent(false).execute(&mut *tx).await?;
            tx.commit().await
        };
        match tokio::time::timeout(self.patience, work).await {
            Ok(done) => done.map_err(|error| failed(error, true)),
            Err(_) => {
                drop(connection.detach());
                Err(timed_out(true))
            }
        }
    }
}
