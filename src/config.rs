//! The only reader of the environment: every setting's name, default and limit.
use std::path::PathBuf;
use std::time::Duration;

/// Where conversations and messages are kept.
#[derive(Clone, Debug)]
pub enum StoreConfig {
    Sqlite(SqliteConfig),
    Postgres(PostgresConfig),
}

#[derive(Clone, Debug)]
pub struct SqliteConfig {
    /// The database file; its folder exists.
    pub path: PathBuf,
}

#[derive(Clone)]
pub struct PostgresConfig {
    pub options: sqlx::postgres::PgConnectOptions,
    /// Connections of the pool, apart from one per lane.
    pub pool_size: u32,
    /// How long a caller waits for a connection of the pool.
    pub acquire_timeout: Duration,
}

impl std::fmt::Debug for PostgresConfig {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("host", &self.options.get_host())
            .field("port", &self.options.get_port())
            .field("database", &self.options.get_database())
            .field("pool_size", &self.pool_size)
            .finish_non_exhaustive()
    }
}
