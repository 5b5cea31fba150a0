//! The only reader of the environment: every setting's name, default and limit.
//!
//! No address given means embedded, so that a bare start works: no Postgres is SQLite, no Redis the
//! in-process bus and presence, no Kafka a file. Read once, by `main`; tests give their own lookup.
//! The result is plain data whose `Debug` shows no secrets, and is logged once.

mod jwt;
mod kafka;
mod postgres;
mod read;
mod redis;
#[cfg(test)]
mod tests;
mod values;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use sqlx::postgres::PgConnectOptions;

pub use self::redis::{Addr, Kind, Place, RedisConfig};
pub use jwt::{JwksUrl, JwtConfig, JwtKey, JwtKeys};
pub use kafka::{KafkaSasl, KafkaSecurity, KafkaTls};
#[cfg(feature = "sabotage")]
pub use read::sabotage;
pub use read::{SPARE_FDS, raise_open_files};
pub use values::{ConfigFaults, Fault, IpNet, Setting};

const fn open(name: &'static str) -> Setting {
    Setting { name, secret: false }
}

const fn secret(name: &'static str) -> Setting {
    Setting { name, secret: true }
}

/// Every setting there is. Reading one that is not here, or none of these, fails the tests, and so
/// does an `.env.example` that does not list them all.
pub const SETTINGS: &[Setting] = &[
    open("SERVER_HOST"),
    open("SERVER_PORT"),
    open("ADMIN_ADDR"),
    open("TLS_CERT_FILE"),
    open("TLS_KEY_FILE"),
    open("DATA_DIR"),
    secret("DATABASE_URL"),
    open("DB_HOST"),
    open("DB_PORT"),
    open("DB_USER"),
    secret("DB_PASSWORD"),
    open("DB_NAME"),
    open("DB_SSLMODE"),
    open("DB_SSLROOTCERT"),
    secret("DATABASE_POOL_URL"),
    secret("DATABASE_REPLICA_URL"),
    open("DB_WRITE_LANES"),
    open("DB_POOL_SIZE"),
    open("MIGRATE_ON_START"),
    open("RECENT_CACHE_BYTES"),
    secret("REDIS_URL"),
    open("REDIS_PREFIX"),
    open("REDIS_CA_FILE"),
    open("KAFKA_BROKERS"),
    open("KAFKA_OFFLINE_TOPIC"),
    open("KAFKA_TOPIC_PARTITIONS"),
    open("KAFKA_SECURITY_PROTOCOL"),
    open("KAFKA_CA_FILE"),
    open("KAFKA_CERT_FILE"),
    open("KAFKA_KEY_FILE"),
    open("KAFKA_SASL_MECHANISM"),
    open("KAFKA_SASL_USERNAME"),
    secret("KAFKA_SASL_PASSWORD"),
    open("AUTH_MODE"),
    open("TRUSTED_PROXIES"),
    secret("JWT_KEY"),
    secret("JWT_JWKS_URL"),
    open("JWT_ISSUER"),
    open("JWT_AUDIENCE"),
    open("ALLOWED_ORIGINS"),
    open("WS_CLIENT_BUFFER_SIZE"),
    open("WS_CLIENT_BUFFER_BYTES"),
    open("HEARTBEAT_INTERVAL"),
    open("HEARTBEAT_TIMEOUT"),
    open("MAX_CONNECTIONS"),
    open("MAX_CONNECTIONS_PER_IP"),
    open("MAX_DEVICES_PER_USER"),
    open("RATE_SENDS_PER_USER"),
    open("RATE_TYPING_PER_USER"),
    open("RATE_SYNCS_PER_USER"),
    open("RATE_HANDSHAKES_PER_IP"),
    open("MAX_FRAME_BYTES"),
    open("MAX_CONTENT_BYTES"),
    open("MAX_METADATA_BYTES"),
    open("MAX_GROUP_SIZE"),
    open("RECEIPTS_MAX_MEMBERS"),
    open("RECEIPTS_RETENTION"),
    open("OFFLINE_AFTER"),
    open("SETTLE_GRACE"),
    open("NODE_LEASE"),
    open("DRAIN_GRACE"),
    open("DRAIN_TIME"),
    open("LOG_LEVEL"),
    open("LOG_FORMAT"),
    secret("OTEL_EXPORTER_OTLP_ENDPOINT"),
    open("OTEL_SERVICE_NAME"),
    open("OTEL_TRACES_SAMPLER_ARG"),
];

#[derive(Clone, Debug)]
pub struct Config {
    pub http: HttpConfig,
    /// Holds the SQLite file and `offline.jsonl`; need not exist yet.
    pub data_dir: PathBuf,
    pub store: StoreConfig,
    /// Lanes in which messages are committed; a store may be able to use fewer.
    pub write_lanes: usize,
    pub migrate_on_start: bool,
    /// Of recent messages in memory; 0 holds none.
    pub recent_cache_bytes: u64,
    /// None: bus, presence and tickets are in this process.
    pub redis: Option<RedisConfig>,
    pub presence: PresenceConfig,
    pub offline: OfflineConfig,
    pub auth: AuthConfig,
    pub ws: WsConfig,
    pub limits: LimitsConfig,
    pub rates: RatesConfig,
    pub delivery: DeliveryConfig,
    pub drain: DrainConfig,
    pub log: LogConfig,
    /// None: nothing is traced.
    pub traces: Option<TracesConfig>,
}

#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Port 0 takes a free one.
    pub addr: SocketAddr,
    /// Where `/metrics` is; None: on `addr`, in dev mode only.
    pub admin_addr: Option<SocketAddr>,
    /// None: `addr` is in the clear.
    pub tls: Option<TlsConfig>,
}

/// PEM files, read again when they change.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// The certificate, and those between it and the authority.
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Where conversations and messages are kept.
#[derive(Clone, Debug)]
pub enum StoreConfig {
    Sqlite(SqliteConfig),
    Postgres(Box<PostgresConfig>),
}

#[derive(Clone, Debug)]
pub struct SqliteConfig {
    /// The database file; its folder exists.
    pub path: PathBuf,
}

#[derive(Clone)]
pub struct PostgresConfig {
    /// What the settings leave open comes from the `PG…` variables and `.pgpass`, as with psql.
    pub options: PgConnectOptions,
    /// The same database by way of a pooler that gives a connection for a transaction only; None:
    /// the pool has sessions of its own.
    pub pooler: Option<PgConnectOptions>,
    /// A streaming replica, for old history.
    pub replica: Option<PgConnectOptions>,
    /// Connections of the pool, apart from one per lane.
    pub pool_size: u32,
    /// How long a caller waits for a connection of the pool.
    pub acquire_timeout: Duration,
}

impl fmt::Debug for PostgresConfig {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |options: &PgConnectOptions| (options.get_host().to_owned(), options.get_port());
        f.debug_struct("PostgresConfig")
            .field("host", &self.options.get_host())
            .field("port", &self.options.get_port())
            .field("database", &self.options.get_database())
            .field("sslmode", &self.options.get_ssl_mode())
            .field("pooler", &self.pooler.as_ref().map(at))
            .field("replica", &self.replica.as_ref().map(at))
            .field("pool_size", &self.pool_size)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
pub struct PresenceConfig {
    /// Where in-process presence keeps when users were last seen; None: nowhere.
    pub last_seen: Option<PathBuf>,
    /// How long a node that is silent counts as alive.
    pub lease: Duration,
    pub max_devices: usize,
}

/// Where messages for users without a socket go.
#[derive(Clone, Debug)]
pub enum OfflineConfig {
    File {
        path: PathBuf,
    },
    Kafka {
        /// `host:port,host:port`
        brokers: String,
        topic: String,
        /// If the topic has to be created.
        partitions: i32,
        security: KafkaSecurity,
    },
}

#[derive(Clone, Debug)]
pub struct AuthConfig {
    pub mode: AuthMode,
    /// In lower case, as browsers send them; empty: the same origin only.
    pub allowed_origins: Vec<String>,
}

#[derive(Clone, Debug)]
pub enum AuthMode {
    /// Everyone is who he says he is; binds loopback addresses only.
    Dev,
    /// `X-User-ID` is believed from these addresses; never empty.
    Gateway { trusted: Vec<IpNet> },
    /// A signed token names the user.
    Jwt(JwtConfig),
}

#[derive(Clone, Debug)]
pub struct WsConfig {
    /// Bounds of a session's queue.
    pub buffer_messages: usize,
    pub buffer_bytes: usize,
    /// Silence after which the client is pinged, and how long it may then stay silent.
    pub heartbeat_interval: Duration,
    pub heartbeat_timeout: Duration,
    pub max_connections: usize,
}

#[derive(Clone, Debug)]
pub struct LimitsConfig {
    /// Of a frame and of a request's body.
    pub frame_bytes: usize,
    pub content_bytes: usize,
    pub metadata_bytes: usize,
    pub group_size: usize,
}

/// How fast one user or one address may be on this node; 0 is without a limit.
#[derive(Clone, Debug)]
pub struct RatesConfig {
    /// These in a second, and five times as many after silence.
    pub sends_per_user: u32,
    pub typing_per_user: u32,
    pub syncs_per_user: u32,
    pub handshakes_per_ip: u32,
    /// Sockets at a time.
    pub connections_per_ip: u32,
    /// Whose `X-Forwarded-For` tells the client's address.
    pub trusted_proxies: Vec<IpNet>,
}

#[derive(Clone, Debug)]
pub struct DeliveryConfig {
    /// Unproven for so long, a message goes to the offline sink in any case.
    pub offline_after: Duration,
    /// How long a dispatched message may stay unproven before its recipient is a laggard.
    pub settle_grace: Duration,
    /// In larger groups receipts leave no rows and are not told: only watermarks move.
    pub receipts_max_members: u32,
    /// How long it is known when receipts were given.
    pub receipts_retention: Duration,
}

#[derive(Clone, Debug)]
pub struct DrainConfig {
    /// From "not ready" to the first closed socket.
    pub grace: Duration,
    /// Over which the sockets are closed.
    pub time: Duration,
}

#[derive(Clone, Debug)]
pub struct LogConfig {
    /// `info`, or directives such as `info,tidings::offline=debug`.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

#[derive(Clone)]
pub struct TracesConfig {
    /// Of traces, of an OTLP collector; `http` or `https`.
    pub endpoint: Uri,
    /// Of the traces that begin here, from 0 to 1.
    pub ratio: f64,
    /// What this service is called in traces.
    pub service: String,
}

impl fmt::Debug for TracesConfig {
    /// Without path and query, which may hold a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TracesConfig")
            .field("host", &self.endpoint.host())
            .field("ratio", &self.ratio)
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}
