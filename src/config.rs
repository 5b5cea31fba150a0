//! The only reader of the environment: every setting's name, default and limit.
use std::path::PathBuf;
use std::time::Duration;

use crate::ids::UserId;

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

/// How events travel between nodes.
#[derive(Clone, Debug)]
pub enum BusConfig {
    /// One node: in process.
    Local,
    Redis(RedisConfig),
}

/// A Redis and the part of its names that is ours.
#[derive(Clone)]
pub struct RedisConfig {
    /// May hold a password.
    pub url: String,
    /// First part of every key and channel; without braces, which Redis reads as a hash tag.
    pub prefix: String,
}

impl RedisConfig {
    const PARTITIONS: u64 = 128;

    /// `<prefix>:{pNN}:<kind>:<user>`. The hash tag keeps all that belongs to a user in one slot,
    /// and the number of tags small, so that on a Cluster one command subscribes to many channels.
    pub fn user_key(&self, kind: &str, user: UserId) -> String {
        let partition = user.hash() % Self::PARTITIONS;
        format!("{}:{{p{partition:02}}}:{kind}:{user}", self.prefix)
    }

    /// The address as the client wants it, for small requests that wait for nobody.
    pub fn connection_info(&self) -> redis::RedisResult<redis::ConnectionInfo> {
        let info = redis::IntoConnectionInfo::into_connection_info(self.url.as_str())?;
        Ok(info.set_tcp_settings(redis::io::tcp::TcpSettings::default().set_nodelay(true)))
    }
}

impl std::fmt::Debug for RedisConfig {
    /// Without the URL.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisConfig")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Who is online where.
#[derive(Clone, Debug)]
pub struct PresenceConfig {
    /// None: one node, in process.
    pub redis: Option<RedisConfig>,
    /// A node that has not renewed its lease for so long is dead; renewed three times as often.
    pub lease: Duration,
    /// Devices of one user that may be online at once.
    pub max_devices: usize,
}
