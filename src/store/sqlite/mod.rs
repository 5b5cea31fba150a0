//! The store in one SQLite file: a single node's, durable by itself.
//!
//! Owns the file, its one writing connection and a few reading ones. Whatever writes takes the
//! writing connection and `begin immediate`, so what it reads there cannot move before its commit;
//! hence no batch ever comes back as "again". Reads run beside it on snapshots (WAL).
//!
//! A commit is on the disk when it returns (`synchronous=FULL`).

mod amend;
mod changes;
mod check;
mod conversations;
mod error;
mod laggards;
mod messages;
mod outbox;
mod receipts;
mod sql;
mod sync;
#[cfg(test)]
mod tests;
mod verify;

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::pool::PoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection, Transaction};
use uuid::Uuid;

pub use self::check::check;
use super::{Result, Schema, StoreError};
use crate::config::SqliteConfig;

static MIGRATOR: Migrator = sqlx::migrate!("migrations/sqlite");

const READERS: u32 = 4;
/// How long a statement waits for the lock of another process (a migration, a backup).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a caller waits for a connection: longer than one that holds it can be busy.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Sqlite {
    path: Arc<Path>,
    /// One connection, shared by the lane and by all else that writes, in order of arrival.
    writer: SqlitePool,
    readers: SqlitePool,
    /// Held from [`Sqlite::lock_single_node`] on.
    lock: Arc<Mutex<Option<File>>>,
}

/// The one lane's way to write.
pub struct SqliteWriter {
    store: Sqlite,
}

impl Sqlite {
    /// Opens the file, or makes an empty one that only this user can read.
    pub async fn connect(config: &SqliteConfig) -> Result<Self> {
        create_private(&config.path).map_err(|error| {
            let text = format!("{}: {error}", config.path.display());
            StoreError::Refused(sqlx::Error::Io(io::Error::new(error.kind(), text)))
        })?;
        let options = SqliteConnectOptions::new()
            .filename(&config.path)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true)
            // A batch's rows fit in, so that SQLite's thread need not wait while they are taken.
            .row_buffer_size(1024)
            .disable_statement_logging();
        let writing = options
            .clone()
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            // Pages in KiB: the upper levels of the indexes stay in memory.
            .pragma("cache_size", "-32768")
            // Pages of the log before they are folded into the file: a page that many batches
            // touch is then written there once.
            .pragma("wal_autocheckpoint", "4000")
            // In bytes; the log is cut back to this after a burst.
            .pragma("journal_size_limit", "67108864")
            // A statement keeps the pages it changes, to be able to undo itself: in memory, where
            // they would else go to a file of their own beyond 64 KiB, as with each batch.
            .pragma("temp_store", "memory");
        // Opened once by itself: while another process makes the file a WAL one, SQLite answers
        // "busy" without having waited.
        let mut tries = 0;
        loop {
            match writing.connect().await.map_err(error::of) {
                Ok(connection) => {
                    connection.close().await.map_err(error::of)?;
                    break;
                }
                Err(StoreError::Conflict(_)) if tries < 100 => tries += 1,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(BUSY_TIMEOUT / 100).await;
        }
        let writer = pool(1).connect_with(writing).await.map_err(error::of)?;
        let reading = options.read_only(true).pragma("cache_size", "-8192");
        let readers = pool(READERS).connect_with(reading).await.map_err(error::of)?;
        let store =
            Self { path: config.path.as_path().into(), writer, readers, lock: Arc::default() };
        store.ping().await?;
        Ok(store)
    }

    /// All migrations in one transaction, so that of two processes one waits and finds them done.
    pub async fn migrate(&self) -> Result<()> {
        let mut tx = self.begin().await?;
        let mut migrator =
            Migrator { migrations: MIGRATOR.migrations.clone(), ..Migrator::DEFAULT };
        // A newer release has been here: its tables suit this one too.
        migrator.set_ignore_missing(true);
        // Not `run`, whose future cannot be sent between threads.
        migrator.run_direct(None, &mut *tx, false).await.map_err(error::of_migration)?;
        commit(tx).await
    }

    pub async fn schema(&self) -> Result<Schema> {
        let laid: bool = sqlx::query_scalar(
            "select exists (select 1 from sqlite_schema where name = '_sqlx_migrations')",
        )
        .fetch_one(&self.readers)
        .await
        .map_err(error::of)?;
        let applied: Vec<i64> = if laid {
            sqlx::query_scalar("select version from _sqlx_migrations where success")
                .fetch_all(&self.readers)
                .await
                .map_err(error::of)?
        } else {
            Vec::new()
        };
        let missing = MIGRATOR.iter().filter(|m| !applied.contains(&m.version)).count();
        if missing > 0 {
            return Ok(Schema::Behind { missing });
        }
        if applied.iter().any(|version| !MIGRATOR.version_exists(*version)) {
            return Ok(Schema::Ahead);
        }
        Ok(Schema::Current)
    }

    pub async fn ping(&self) -> Result<bool> {
        sqlx::query("select count(*) from sqlite_schema")
            .execute(&self.readers)
            .await
            .map_err(error::of)?;
        Ok(false)
    }

    pub async fn epoch(&self) -> Result<Uuid> {
        sqlx::query_scalar(sql::STORE_EPOCH).fetch_one(&self.readers).await.map_err(error::of)
    }

    /// The lock is on a file beside the database: one on the database itself would be in SQLite's
    /// way, and closing any handle of that file here would drop SQLite's own locks.
    pub async fn lock_single_node(&self) -> Result<bool> {
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_some() {
            return Ok(true);
        }
        let mut path = self.path.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let failed = |error: io::Error| {
            let text = format!("{}: {error}", path.display());
            StoreError::Refused(sqlx::Error::Io(io::Error::new(error.kind(), text)))
        };
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {
                *held = Some(file);
                Ok(true)
            }
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    pub fn pool_use(&self) -> (usize, usize) {
        let idle = self.readers.num_idle();
        ((self.readers.size() as usize).saturating_sub(idle), idle)
    }

    pub fn pool_size(&self) -> usize {
        self.readers.options().get_max_connections() as usize
    }

    pub fn writer(&self) -> SqliteWriter {
        SqliteWriter { store: self.clone() }
    }

    /// The readers go first, so that the writer, being last, folds the log into the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The write lock: what is read from now on stays so until the commit.
    async fn begin(&self) -> Result<Transaction<'static, sqlx::Sqlite>> {
        self.writer.begin_with("begin immediate").await.map_err(error::of)
    }

    /// One state of the data for several reads.
    async fn snapshot(&self) -> Result<Transaction<'static, sqlx::Sqlite>> {
        self.readers.begin().await.map_err(error::of)
    }
}

async fn commit(tx: Transaction<'static, sqlx::Sqlite>) -> Result<()> {
    tx.commit().await.map_err(error::of_commit)
}

/// Connections live as long as the pool. One that an error left inside a transaction is replaced:
/// SQLite rolls back by itself when the disk fails, and sqlx then waits for a rollback that cannot
/// succeed and would refuse every later `begin`.
fn pool(connections: u32) -> PoolOptions<sqlx::Sqlite> {
    PoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .max_lifetime(None)
        .idle_timeout(None)
        .test_before_acquire(false)
        .before_acquire(|connection: &mut SqliteConnection, _| {
            Box::pin(std::future::ready(Ok(!connection.is_in_transaction())))
        })
}

/// Makes the file, and its folder if need be, for this user alone; SQLite gives its log the same
/// mode. A file that is there is not even opened: closing it again would drop the locks that this
/// process holds on it through SQLite.
fn create_private(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
