//! What can go wrong in a store, named by what the caller does next.

use thiserror::Error;

use crate::telemetry::metrics::StoreFailure;

#[derive(Debug, Error)]
pub enum StoreError {
    /// Could not be reached, or was lost on the way: retry later. `maybe_done` if the statement
    /// had been sent, so that a commit may have happened.
    #[error("the store cannot be reached: {source}")]
    Unavailable { source: sqlx::Error, maybe_done: bool },
    /// Another transaction was in the way (deadlock, serialization, a race for a unique key):
    /// nothing was done, retry the whole at once.
    #[error("another transaction was in the way: {0}")]
    Conflict(sqlx::Error),
    /// A row that does not convert: page someone.
    #[error("the store holds a value that cannot be read: {table}.{column} of {id}")]
    Corrupt { table: &'static str, column: &'static str, id: String },
    /// The server is there but does not let us in (password, unknown database): tell the operator.
    #[error("the database does not let us in: {0}")]
    Login(sqlx::Error),
    /// The server is there, but not with TLS as the settings want it: tell the operator.
    #[error(
        "no trusted connection to the database: {0}; its certificate has to name the host, and to be \
         signed by an authority of sslrootcert (DB_SSLROOTCERT) or a public one"
    )]
    Untrusted(sqlx::Error),
    /// The statement itself is refused (missing table, missing right): page someone.
    #[error("the store refused a statement: {0}")]
    Refused(sqlx::Error),
}

impl StoreError {
    /// A retry may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Conflict(_))
    }

    /// How metrics call it.
    pub fn failure(&self) -> StoreFailure {
        match self {
            Self::Unavailable { .. } => StoreFailure::Unavailable,
            Self::Conflict(_) => StoreFailure::Conflict,
            Self::Corrupt { .. } => StoreFailure::Corrupt,
            Self::Login(_) | Self::Untrusted(_) => StoreFailure::Login,
            Self::Refused(_) => StoreFailure::Refused,
        }
    }
}
