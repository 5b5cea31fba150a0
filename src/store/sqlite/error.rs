//! What SQLite's result codes mean for the caller. The texts are for the operator of the file.

use sqlx::Error;
use sqlx::migrate::MigrateError;

use crate::store::StoreError;

// Primary result codes: the low byte of what SQLite reports.
const PERM: i32 = 3;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const NOMEM: i32 = 7;
const READONLY: i32 = 8;
const INTERRUPT: i32 = 9;
const IOERR: i32 = 10;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const NOTADB: i32 = 26;

/// The meaning of an error before the commit: whatever was done is rolled back.
pub(super) fn of(error: Error) -> StoreError {
    let Some(code) = primary_code(&error) else {
        return match error {
            // A value that cannot be decoded, or a statement that does not fit its tables.
            Error::ColumnDecode { .. }
            | Error::ColumnNotFound(_)
            | Error::Decode(_)
            | Error::Encode(_)
            | Error::TypeNotFound { .. }
            | Error::RowNotFound
            | Error::Protocol(_)
            | Error::Configuration(_) => StoreError::Refused(error),
            _ => StoreError::Unavailable { source: error, maybe_done: false },
        };
    };
    match code {
        BUSY | LOCKED => StoreError::Conflict(error),
        NOMEM | INTERRUPT => StoreError::Unavailable { source: error, maybe_done: false },
        IOERR => unavailable(error, "the disk of the database failed"),
        FULL => unavailable(error, "the disk of the database is full: free some room"),
        PERM | READONLY => {
            refused(error, "the database file or its folder cannot be written by this user")
        }
        CANTOPEN => refused(error, "the database file cannot be opened"),
        CORRUPT => refused(
            error,
            "the database file is damaged: stop the node, keep a copy of the file, restore a backup",
        ),
        NOTADB => refused(error, "the file at the database's place is not a database"),
        _ => StoreError::Refused(error),
    }
}

/// The meaning of an error of the commit itself: only a lock held by others proves that nothing was
/// done. A failed write or sync may have left the whole transaction in the log.
pub(super) fn of_commit(error: Error) -> StoreError {
    match primary_code(&error) {
        Some(BUSY | LOCKED) => StoreError::Conflict(error),
        _ => StoreError::Unavailable { source: error, maybe_done: true },
    }
}

pub(super) fn of_migration(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => of(error),
        error => StoreError::Refused(Error::Migrate(Box::new(error))),
    }
}

/// A write that touched other rows than it must have, while the write lock was held: never commit it.
pub(super) fn affected(done: u64, expected: usize, what: &str) -> Result<(), StoreError> {
    if done == expected as u64 {
        return Ok(());
    }
    Err(StoreError::Refused(Error::Protocol(format!("{what}: {done} rows instead of {expected}"))))
}

fn primary_code(error: &Error) -> Option<i32> {
    let Error::Database(error) = error else {
        return None;
    };
    error.code()?.parse::<i32>().ok().map(|code| code & 0xff)
}

fn unavailable(error: Error, says: &str) -> StoreError {
    let source = Error::Io(std::io::Error::other(format!("{says} ({error})")));
    StoreError::Unavailable { source, maybe_done: false }
}

fn refused(error: Error, says: &str) -> StoreError {
    StoreError::Refused(Error::Protocol(format!("{says} ({error})")))
}
