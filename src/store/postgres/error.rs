//! What an error of sqlx means to the caller.

use std::io;

use super::super::StoreError;

/// `sent`: the statement (for a transaction: the commit) may have reached the server, so that a
/// lost connection leaves open whether it was done.
pub fn failed(error: sqlx::Error, sent: bool) -> StoreError {
    let unavailable = |maybe_done| move |source| StoreError::Unavailable { source, maybe_done };
    match &error {
        sqlx::Error::Database(database) => match database.code().as_deref().unwrap_or_default() {
            // Serialization failure, deadlock, unique key: rolled back as a whole.
            "40001" | "40P01" | "23505" => StoreError::Conflict(error),
            // Cancelled by our limits, waited for a lock for too long, too many connections, no
            // room left, read-only since a fail-over: refused before anything was done.
            "57014" | "55P03" | "25006" => unavailable(false)(error),
            code if code.starts_with("53") => unavailable(false)(error),
            // The server stops or starts, or the connection broke: as if it had been lost.
            code if code.starts_with("57P") || code.starts_with("08") => unavailable(sent)(error),
            _ => StoreError::Refused(error),
        },
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed => unavailable(sent)(error),
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => unavailable(false)(error),
        _ => StoreError::Refused(error),
    }
}

/// Why there is no connection: nobody answers, or one does who does not let us in, or who cannot
/// prove that he is the one.
pub fn not_connected(error: sqlx::Error) -> StoreError {
    let of_tls = match &error {
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(error) => error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()),
        _ => false,
    };
    if of_tls {
        return StoreError::Untrusted(error);
    }
    let code = error.as_database_error().and_then(|database| database.code());
    match code.as_deref() {
        // Password, host-based rules; unknown database, no right to it.
        Some("28P01" | "28000" | "3D000" | "42501") => StoreError::Login(error),
        _ => failed(error, false),
    }
}

pub fn timed_out(maybe_done: bool) -> StoreError {
    let source = io::Error::new(io::ErrorKind::TimedOut, "the database did not answer in time");
    StoreError::Unavailable { source: source.into(), maybe_done }
}

pub fn is_missing_table(error: &StoreError) -> bool {
    let StoreError::Refused(error) = error else {
        return false;
    };
    error.as_database_error().and_then(|database| database.code()).as_deref() == Some("42P01")
}
