//! The store on Postgres 15 or newer.
//!
//! Reads, settling and the outbox go through a small pool, which may lead to a pooler; each write lane
//! has a connection of its own ([`PostgresWriter`]), and so has what needs a session: the lock of a
//! single node, migrations, checks. Old history may come from a replica. No wait is without an end: the server stops a statement that takes too
//! long, and this side gives up on a server that does not even do that.

mod amend;
mod changes;
mod check;
mod conversations;
mod error;
mod laggards;
mod messages;
mod outbox;
mod pool;
mod receipts;
mod replica;
pub mod sql;
mod sync;
mod verify;
mod writer;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::query::{Query, QueryAs};
use sqlx::{Connection, Executor, FromRow, PgConnection, Row, SqlSafeStr};
use tokio::sync::Mutex;
use uuid::Uuid;

pub use self::check::{Demand, check};
use self::error::{failed, timed_out};
use self::pool::Pool;
use self::replica::Replica;
pub use self::writer::PostgresWriter;
use super::{Result, Schema};
use crate::config::PostgresConfig;
use crate::telemetry::Metrics;

/// `ignore_missing`: an older release meets newer tables, and they suit it.
static MIGRATOR: Migrator =
    Migrator { ignore_missing: true, ..sqlx::migrate!("migrations/postgres") };

/// Until a new connection must be ready.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// After this the server stops a statement.
const STATEMENT_LIMIT: &str = "10s";
/// After this the server stops a statement that waits for a lock.
const LOCK_LIMIT: &str = "5s";
/// After this an answer is not waited for any more: above the server's own limit, so it is passed
/// only by a server (or a way to it) that is stuck.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Says "this database's only node". Advisory locks are per database.
const SINGLE_NODE_LOCK: i64 = 0x7469_6469_6e67_7301;

/// How the data is reached beside the lanes' own connections.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    Pool,
    Replica,
}

#[derive(Clone)]
pub struct Postgres {
    pool: Pool,
    replica: Option<Replica>,
    metrics: Metrics,
    /// For connections outside the pool.
    options: Arc<PgConnectOptions>,
    /// The session that holds the single node lock; the server frees the lock when it ends.
    single_node: Arc<Mutex<Option<PgConnection>>>,
}

impl Postgres {
    /// Errors: `Unavailable` if nobody answers, `Login` if the server does not let us in (password,
    /// unknown database), `Untrusted` if it cannot prove who it is.
    pub async fn connect(config: &PostgresConfig, metrics: Metrics) -> Result<Self> {
        let options = session(config.options.clone());
        // The pool would hide why it cannot connect behind a time-out.
        let first = connect(&options).await?;
        let (size, wait) = (config.pool_size, config.acquire_timeout);
        let waits = metrics.store.pool_wait.clone();
        let store = Self {
            pool: match &config.pooler {
                None => Pool::of_sessions(config.options.clone(), size, wait, ANSWER_LIMIT, waits),
                Some(pooler) => {
                    Pool::of_transactions(pooler.clone(), size, wait, ANSWER_LIMIT, waits)
                }
            },
            replica: config.replica.clone().map(|options| Replica::new(options, size)),
            metrics,
            options: Arc::new(options),
            single_node: Arc::new(Mutex::new(None)),
        };
        drop(first.close().await);
        Ok(store)
    }

    /// Whether the pool, or the replica, leads to the same data as the lanes.
    pub async fn same_data(&self, way: Way) -> Result<bool> {
        let pool = match way {
            Way::Pool => &self.pool,
            Way::Replica => match &self.replica {
                Some(replica) => &replica.pool,
                None => return Ok(true),
            },
        };
        Ok(epoch_of(&self.options).await? == epoch_of(pool.options()).await?)
    }

    /// Several nodes may do so at once: an advisory lock lets one after the other.
    pub async fn migrate(&self) -> Result<()> {
        // On a connection without limits: a change of a large table takes its time.
        let options = PgConnectOptions::clone(&self.options)
            .application_name("tidings migrate")
            .options([("statement_timeout", "0"), ("lock_timeout", "0")]);
        let mut connection = connect(&options).await?;
        let outcome = MIGRATOR.run_direct(None, &mut connection, false).await;
        drop(connection.close().await);
        outcome.map_err(|error| match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
                failed(error, true)
            }
            other => failed(sqlx::Error::Migrate(Box::new(other)), true),
        })
    }

    pub async fn schema(&self) -> Result<Schema> {
        let applied = match self.rows::<(i64,)>(sqlx::query_as(sql::MIGRATIONS_APPLIED)).await {
            Err(error) if error::is_missing_table(&error) => Vec::new(),
            applied => applied?,
        };
        let applied: HashSet<i64> = applied.into_iter().map(|(version,)| version).collect();
        let known: HashSet<i64> = MIGRATOR.iter().map(|migration| migration.version).collect();
        Ok(match known.difference(&applied).count() {
            0 if applied.is_subset(&known) => Schema::Current,
            0 => Schema::Ahead,
            missing => Schema::Behind { missing },
        })
    }

    /// Who really follows is shown to superusers only; where a name is set, a commit waits.
    pub async fn ping(&self) -> Result<bool> {
        let standbys = "select current_setting('synchronous_standby_names') <> ''";
        self.row(sqlx::query_as(standbys)).await.map(|(set,)| set)
    }

    pub async fn epoch(&self) -> Result<Uuid> {
        let (epoch,) = self.row(sqlx::query_as(sql::EPOCH)).await?;
        Ok(epoch)
    }

    /// Called again, it sees whether the lock is still held, and takes it anew if its session was
    /// lost.
    pub async fn lock_single_node(&self) -> Result<bool> {
        let mut held = self.single_node.lock().await;
        if let Some(mut connection) = held.take()
            && let Ok(Ok(())) = tokio::time::timeout(CONNECT_LIMIT, connection.ping()).await
        {
            *held = Some(connection);
            return Ok(true);
        }
        let options =
            PgConnectOptions::clone(&self.options).application_name("tidings single node");
        let mut connection = connect(&options).await?;
        let (locked,): (bool,) = sqlx::query_as("select pg_try_advisory_lock($1)")
            .bind(SINGLE_NODE_LOCK)
            .fetch_one(&mut connection)
            .await
            .map_err(|error| failed(error, true))?;
        if locked {
            *held = Some(connection);
        }
        Ok(locked)
    }

    pub fn pool_use(&self) -> (usize, usize) {
        self.pool.use_of()
    }

    pub fn pool_size(&self) -> usize {
        self.pool.size()
    }

    pub fn writer(&self) -> PostgresWriter {
        PostgresWriter::new(self.options.clone())
    }

    pub async fn close(&self) {
        if let Some(connection) = self.single_node.lock().await.take() {
            drop(connection.close().await);
        }
        self.pool.close().await;
        if let Some(replica) = &self.replica {
            replica.pool.close().await;
        }
    }

    /// Prepares every statement on the server and runs none: proves that the tables have the shape
    /// this release was made for. An error names the statement.
    pub async fn check_statements(&self) -> Result<()> {
        let mut connection = connect(&self.options).await?;
        for (name, statement) in sql::ALL {
            let prepared = (&mut connection).prepare(statement.into_sql_str()).await;
            if let Err(error) = prepared {
                let error = sqlx::Error::Configuration(format!("{name}.sql: {error}").into());
                return Err(failed(error, false));
            }
        }
        drop(connection.close().await);
        Ok(())
    }

    /// Runs a statement on a connection of the pool.
    async fn rows<O>(&self, query: QueryAs<'_, sqlx::Postgres, O, PgArguments>) -> Result<Vec<O>>
    where
        O: Send + Unpin + for<'r> FromRow<'r, PgRow>,
    {
        self.pool.rows(query).await
    }

    /// As [`Self::rows`], for a statement that always has a row.
    async fn row<O>(&self, query: QueryAs<'_, sqlx::Postgres, O, PgArguments>) -> Result<O>
    where
        O: Send + Unpin + for<'r> FromRow<'r, PgRow>,
    {
        self.optional(query).await?.ok_or_else(|| failed(sqlx::Error::RowNotFound, true))
    }

    /// As [`Self::rows`], for a statement that has at most one row.
    async fn optional<O>(
        &self,
        query: QueryAs<'_, sqlx::Postgres, O, PgArguments>,
    ) -> Result<Option<O>>
    where
        O: Send + Unpin + for<'r> FromRow<'r, PgRow>,
    {
        self.pool.optional(query).await
    }

    /// As [`Self::rows`], for a statement without rows.
    async fn execute(&self, query: Query<'_, sqlx::Postgres, PgArguments>) -> Result<()> {
        self.pool.execute(query).await
    }
}

/// What each of our connections is set to.
///
/// The statements are written as chains of index look-ups. A generic plan made while the tables are
/// tiny would scan `messages` for ever, so scans and the joins that need them are out of question;
/// and planning anew each time costs more than running.
const SETTINGS: [(&str, &str); 10] = [
    ("jit", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    // A bitmap is made whole before its first row is looked at, and nearly all looks stop at the
    // first row.
    ("enable_bitmapscan", "off"),
    // Acknowledged is durable, whatever the server's default.
    ("synchronous_commit", "on"),
    ("statement_timeout", STATEMENT_LIMIT),
    ("lock_timeout", LOCK_LIMIT),
    // Should this side be gone in the middle of a transaction, its locks go, too.
    ("idle_in_transaction_session_timeout", STATEMENT_LIMIT),
];

/// A session that has these for its whole life.
fn session(options: PgConnectOptions) -> PgConnectOptions {
    options.application_name("tidings").options(SETTINGS).options([
        // So that the server notices within half a minute when this machine is gone without a word,
        // and frees what its sessions hold: the single node lock, too.
        ("tcp_keepalives_idle", "15"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
    ])
}

/// Which data is behind these options; None if the tables are not laid.
async fn epoch_of(options: &PgConnectOptions) -> Result<Option<Uuid>> {
    let mut connection = connect(options).await?;
    // Not prepared, which behind a pooler would need a transaction.
    let query = sqlx::raw_sql(sql::EPOCH).fetch_one(&mut connection);
    let epoch = match tokio::time::timeout(CONNECT_LIMIT, query).await {
        Ok(row) => row.and_then(|row| row.try_get(0)).map(Some),
        Err(_) => return Err(timed_out(false)),
    };
    let epoch = epoch.map_err(|error| failed(error, false));
    drop(connection.close().await);
    match epoch {
        Err(error) if error::is_missing_table(&error) => Ok(None),
        epoch => epoch,
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection> {
    match tokio::time::timeout(CONNECT_LIMIT, PgConnection::connect_with(options)).await {
        Ok(connection) => connection.map_err(error::not_connected),
        Err(_) => Err(timed_out(false)),
    }
}

/// For parallel arrays of ids.
fn uuids<T>(items: &[T], id: impl Fn(&T) -> Uuid) -> Vec<Uuid> {
    items.iter().map(id).collect()
}

/// Durations travel as whole milliseconds.
fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn from_millis(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or_default())
}
