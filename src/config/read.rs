//! The defaults, the limits, and the rules between settings.

use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::jwt::read_jwt;
use super::kafka::read_offline;
use super::postgres::read_store;
use super::values::{ConfigFaults, Reader, read_certificates, read_file};
use super::{
    AuthConfig, AuthMode, Config, DeliveryConfig, DrainConfig, HttpConfig, LimitsConfig, LogConfig,
    LogFormat, Place, PresenceConfig, RatesConfig, RedisConfig, SETTINGS, StoreConfig, TlsConfig,
    TracesConfig, WsConfig,
};

/// Nobody but this machine, until someone says otherwise.
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// The port of the service whose clients work here unchanged, as are the two buffer sizes below.
const PORT: u16 = 8083;
const BUFFER_MESSAGES: usize = 256;
/// A thousand messages of a usual size; the bound of a slow consumer's memory.
const BUFFER_BYTES: usize = 1 << 20;
/// Some twenty thousand messages.
const RECENT_BYTES: usize = 16 << 20;
/// Below the 30 s and more after which proxies and phones' networks drop a silent connection.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(25);
/// More than a phone needs to wake its radio.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(10);
/// File descriptors kept for databases, brokers, files and connections being refused.
pub const SPARE_FDS: u64 = 512;
/// Sockets if the system sets no limit to file descriptors; memory is the limit then.
const UNLIMITED_CONNECTIONS: u64 = 1_000_000;
const MAX_DEVICES: usize = 10;
/// An office behind one address, and still no way to take all sockets of a node.
const CONNECTIONS_PER_IP: u32 = 1_000;
/// More than people and most bots write; a loop that went wild is slowed down.
const SENDS_PER_USER: u32 = 100;
const TYPING_PER_USER: u32 = 10;
/// A device that comes back syncs once, page by page.
const SYNCS_PER_USER: u32 = 5;
const HANDSHAKES_PER_IP: u32 = 100;
const MAX_RATE: u32 = 1_000_000;
/// A content, a metadata and a hundred mentions at their limits, escaped.
const FRAME_BYTES: usize = 64 << 10;
const CONTENT_BYTES: usize = 16 << 10;
const METADATA_BYTES: usize = 8 << 10;
/// A message to a larger group costs so many deliveries that it needs another design.
const GROUP_SIZE: usize = 1_000;
/// A phone that changes its network is back within this time and needs no push.
const OFFLINE_AFTER: Duration = Duration::from_secs(30);
/// More than a healthy delivery with its proof takes, so that then nobody becomes a laggard.
const SETTLE_GRACE: Duration = Duration::from_secs(5);
/// Each message of a larger group would make more rows and events than it has readers who care.
const RECEIPTS_MAX_MEMBERS: u32 = 256;
const RECEIPTS_RETENTION: Duration = Duration::from_secs(90 * 24 * 3_600);
/// Three heartbeats: one may be lost, and a crash shows soon.
const NODE_LEASE: Duration = Duration::from_secs(15);
/// The heartbeat is a third of the lease and needs time for a round trip.
const MIN_NODE_LEASE: Duration = Duration::from_millis(300);
/// A cluster's load balancer needs time to see that the node is not ready, and its clients are
/// spread over time; a single node has nobody to hand them to. (grace, time)
const CLUSTER_DRAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(25));
const SINGLE_DRAIN: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(1));

const HOUR: Duration = Duration::from_secs(3_600);
/// Shorter times than this are within the noise of a busy machine.
const SHORTEST: Duration = Duration::from_millis(50);

impl Config {
    #[expect(clippy::disallowed_methods, reason = "this is the one reader of the environment")]
    pub fn from_env() -> Result<Self, ConfigFaults> {
        // What is not UTF-8 fails as a value, not by silently counting as unset.
        Self::from_lookup(|name| Some(std::env::var_os(name)?.to_string_lossy().into_owned()))
    }

    /// Reads all settings, and reports all that is wrong with them at once.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigFaults> {
        let mut reader = Reader::new(SETTINGS, &lookup);
        let read = &mut reader;
        let data_dir = PathBuf::from(read.text("DATA_DIR").unwrap_or_else(|| "./data".into()));
        let redis = read_redis(read);
        let store = read_store(read, &data_dir);
        let sqlite = matches!(store, StoreConfig::Sqlite(_));
        if sqlite && redis.is_some() {
            let expected = "a Postgres that all nodes share, because REDIS_URL is set: a SQLite \
                            file belongs to one node";
            read.fault("DATABASE_URL", expected);
        }
        let limits = read_limits(read);
        let (drain_grace, drain_time) = if redis.is_some() { CLUSTER_DRAIN } else { SINGLE_DRAIN };
        let config = Self {
            write_lanes: read.number("DB_WRITE_LANES", cores().min(64), 1..=64),
            // Several nodes would wait for each other, and an operator wants to choose the moment.
            migrate_on_start: read.flag("MIGRATE_ON_START", sqlite),
            recent_cache_bytes: read.size("RECENT_CACHE_BYTES", RECENT_BYTES, 0..=1 << 40) as u64,
            offline: read_offline(read, &data_dir),
            auth: read_auth(read),
            http: HttpConfig {
                addr: SocketAddr::new(
                    read.parse("SERVER_HOST", parse_host).unwrap_or(HOST),
                    read.number("SERVER_PORT", PORT, 0..=u16::MAX),
                ),
                admin_addr: read.parse("ADMIN_ADDR", parse_addr),
                tls: read_tls(read),
            },
            presence: PresenceConfig {
                last_seen: redis.is_none().then(|| data_dir.join("last_seen")),
                lease: read.duration("NODE_LEASE", NODE_LEASE, MIN_NODE_LEASE..=HOUR),
                max_devices: read.number("MAX_DEVICES_PER_USER", MAX_DEVICES, 1..=1_000),
            },
            redis,
            ws: read_ws(read, &limits),
            rates: read_rates(read),
            delivery: DeliveryConfig {
                offline_after: read.duration("OFFLINE_AFTER", OFFLINE_AFTER, SHORTEST..=24 * HOUR),
                settle_grace: read.duration("SETTLE_GRACE", SETTLE_GRACE, SHORTEST..=HOUR),
                receipts_max_members: read.number(
                    "RECEIPTS_MAX_MEMBERS",
                    RECEIPTS_MAX_MEMBERS,
                    0..=100_000,
                ),
                receipts_retention: read.duration(
                    "RECEIPTS_RETENTION",
                    RECEIPTS_RETENTION,
                    SHORTEST..=24 * 3_650 * HOUR,
                ),
            },
            drain: DrainConfig {
                grace: read.duration("DRAIN_GRACE", drain_grace, Duration::ZERO..=HOUR),
                time: read.duration("DRAIN_TIME", drain_time, Duration::ZERO..=HOUR),
            },
            log: read_log(read),
            traces: read_traces(read),
            data_dir,
            store,
            limits,
        };
        check_loopback(read, &config);
        reader.finish(config)
    }
}

/// What a build made for it is told to do wrong. No setting: a release does not know of it.
#[cfg(feature = "sabotage")]
#[expect(clippy::disallowed_methods, reason = "this is the one reader of the environment")]
pub fn sabotage() -> Result<Option<crate::sabotage::Mutation>, ConfigFaults> {
    let setting = "SABOTAGE";
    let Ok(value) = std::env::var(setting) else { return Ok(None) };
    value.parse().map(Some).map_err(|expected| {
        ConfigFaults(vec![super::Fault { setting, value: Some(value), expected }])
    })
}

fn read_redis(read: &mut Reader) -> Option<RedisConfig> {
    let place = read.parse("REDIS_URL", |text| Ok((text.to_owned(), Place::parse(text)?)));
    let prefix = read.parse("REDIS_PREFIX", |text| {
        // Braces would make a hash tag of their own, and all keys would land on one shard.
        let fine =
            text.len() <= 64 && text.chars().all(|c| c.is_ascii_graphic() && !"{}".contains(c));
        fine.then(|| text.to_owned())
            .ok_or_else(|| "at most 64 visible ASCII characters, no braces".into())
    });
    let ca_file = read.parse("REDIS_CA_FILE", |path| read_certificates(path).map(|_| path.into()));
    if ca_file.is_some() && place.as_ref().is_some_and(|(_, place)| !place.tls) {
        read.fault("REDIS_CA_FILE", "a REDIS_URL with TLS, whose scheme begins with rediss");
    }
    let prefix = prefix.unwrap_or_else(|| "tidings".into());
    place.map(|(url, _)| RedisConfig { url, prefix, ca_file })
}

fn read_auth(read: &mut Reader) -> AuthConfig {
    let trusted = read.list("TRUSTED_PROXIES", str::parse);
    let mode = read.text("AUTH_MODE");
    let jwt = read_jwt(read, mode.as_deref() == Some("jwt"));
    let mode = match mode.as_deref() {
        None | Some("dev") => AuthMode::Dev,
        Some("gateway") => {
            if trusted.is_empty() {
                let expected = "the addresses of the gateway, from which alone X-User-ID is \
                                believed with AUTH_MODE=gateway, such as 10.0.0.0/8";
                read.fault("TRUSTED_PROXIES", expected);
            }
            AuthMode::Gateway { trusted }
        }
        // Without keys there is a fault, and nobody is believed.
        Some("jwt") => jwt.map_or(AuthMode::Gateway { trusted: Vec::new() }, AuthMode::Jwt),
        Some(_) => {
            read.fault("AUTH_MODE", "dev, gateway or jwt");
            AuthMode::Dev
        }
    };
    AuthConfig { mode, allowed_origins: read.list("ALLOWED_ORIGINS", parse_origin) }
}

/// The certificate's chain and its key, which have to go together.
fn read_tls(read: &mut Reader) -> Option<TlsConfig> {
    let cert = read.parse("TLS_CERT_FILE", |path| read_certificates(path).map(|_| path.into()));
    let key = read.parse("TLS_KEY_FILE", |path| read_file(path).map(|_| path.into()));
    let given = |read: &mut Reader, name| read.text(name).is_some();
    match (given(read, "TLS_CERT_FILE"), given(read, "TLS_KEY_FILE")) {
        (true, false) => read.fault("TLS_KEY_FILE", "the key of TLS_CERT_FILE"),
        (false, true) => read.fault("TLS_CERT_FILE", "the certificate of TLS_KEY_FILE"),
        _ => {}
    }
    Some(TlsConfig { cert: cert?, key: key? })
}

/// A node that believes everyone must not be within reach of others.
fn check_loopback(read: &mut Reader, config: &Config) {
    if !matches!(config.auth.mode, AuthMode::Dev) {
        return;
    }
    let expected = "a loopback address, because with AUTH_MODE=dev everyone can act as any user; \
                    to listen elsewhere set AUTH_MODE=gateway and TRUSTED_PROXIES, or AUTH_MODE=jwt";
    if !config.http.addr.ip().is_loopback() {
        read.fault("SERVER_HOST", expected);
    }
    if config.http.admin_addr.is_some_and(|addr| !addr.ip().is_loopback()) {
        read.fault("ADMIN_ADDR", expected);
    }
}

fn read_limits(read: &mut Reader) -> LimitsConfig {
    let frame_bytes = read.size("MAX_FRAME_BYTES", FRAME_BYTES, 1 << 10..=16 << 20);
    let content_bytes = read.size("MAX_CONTENT_BYTES", CONTENT_BYTES, 1..=16 << 20);
    let metadata_bytes = read.size("MAX_METADATA_BYTES", METADATA_BYTES, 2..=16 << 20);
    for (name, bytes) in
        [("MAX_CONTENT_BYTES", content_bytes), ("MAX_METADATA_BYTES", metadata_bytes)]
    {
        if bytes > frame_bytes {
            read.fault(name, format!("at most MAX_FRAME_BYTES ({frame_bytes} bytes)"));
        }
    }
    LimitsConfig {
        frame_bytes,
        content_bytes,
        metadata_bytes,
        group_size: read.number("MAX_GROUP_SIZE", GROUP_SIZE, 2..=100_000),
    }
}

fn read_ws(read: &mut Reader, limits: &LimitsConfig) -> WsConfig {
    let buffer_bytes = read.size("WS_CLIENT_BUFFER_BYTES", BUFFER_BYTES, 1 << 10..=1 << 30);
    if buffer_bytes < limits.frame_bytes {
        let frame_bytes = limits.frame_bytes;
        read.fault(
            "WS_CLIENT_BUFFER_BYTES",
            format!("at least MAX_FRAME_BYTES ({frame_bytes} bytes), so that any one event fits"),
        );
    }
    WsConfig {
        buffer_messages: read.number("WS_CLIENT_BUFFER_SIZE", BUFFER_MESSAGES, 1..=1 << 20),
        buffer_bytes,
        heartbeat_interval: read.duration(
            "HEARTBEAT_INTERVAL",
            HEARTBEAT_INTERVAL,
            SHORTEST..=HOUR,
        ),
        heartbeat_timeout: read.duration("HEARTBEAT_TIMEOUT", HEARTBEAT_TIMEOUT, SHORTEST..=HOUR),
        max_connections: read.number("MAX_CONNECTIONS", max_connections(), 1..=100_000_000),
    }
}

fn read_rates(read: &mut Reader) -> RatesConfig {
    let mut rate = |name, default| read.number(name, default, 0..=MAX_RATE);
    RatesConfig {
        sends_per_user: rate("RATE_SENDS_PER_USER", SENDS_PER_USER),
        typing_per_user: rate("RATE_TYPING_PER_USER", TYPING_PER_USER),
        syncs_per_user: rate("RATE_SYNCS_PER_USER", SYNCS_PER_USER),
        handshakes_per_ip: rate("RATE_HANDSHAKES_PER_IP", HANDSHAKES_PER_IP),
        connections_per_ip: rate("MAX_CONNECTIONS_PER_IP", CONNECTIONS_PER_IP),
        trusted_proxies: read.list("TRUSTED_PROXIES", str::parse),
    }
}

/// Containers and systemd start a process with a soft limit of 1,024 for programs of old, and let it
/// have what their hard limit says.
pub fn raise_open_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // One that is refused stays as it is, and `tidings check` tells of it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// What the limit of file descriptors leaves; half of it if it is tiny.
fn max_connections() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).min(UNLIMITED_CONNECTIONS);
    limit.saturating_sub(SPARE_FDS).max(limit / 2).max(1) as usize
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn read_log(read: &mut Reader) -> LogConfig {
    let level = read.parse("LOG_LEVEL", |text| {
        // A single word that is no level would pass as the name of a module.
        let fine = match text.contains(['=', ',']) {
            true => EnvFilter::try_new(text).is_ok(),
            false => text.parse::<LevelFilter>().is_ok(),
        };
        fine.then(|| text.to_owned()).ok_or_else(|| {
            "error, warn, info, debug, trace or directives such as info,tidings::offline=debug"
                .into()
        })
    });
    let format = read.parse("LOG_FORMAT", |text| match text {
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        _ => Err("json or text".into()),
    });
    LogConfig {
        level: level.unwrap_or_else(|| "info".into()),
        format: format.unwrap_or_else(|| {
            if std::io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json }
        }),
    }
}

/// By the names that OpenTelemetry gives them.
fn read_traces(read: &mut Reader) -> Option<TracesConfig> {
    let endpoint = read.parse("OTEL_EXPORTER_OTLP_ENDPOINT", |text| {
        // The protocol's own path for traces, behind the address for all of them.
        let url = format!("{}/v1/traces", text.trim_end_matches('/')).parse::<Uri>();
        let url = url.ok().filter(|url| {
            matches!(url.scheme_str(), Some("http" | "https"))
                && url.query().is_none()
                && url.host().is_some_and(|host| !host.is_empty())
                && url.authority().is_some_and(|at| !at.as_str().contains('@'))
        });
        url.ok_or_else(|| "an address such as http://collector:4318".into())
    });
    let service = read.text("OTEL_SERVICE_NAME").unwrap_or_else(|| "tidings".into());
    let ratio = read.parse("OTEL_TRACES_SAMPLER_ARG", |text| {
        let ratio = text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.ok_or_else(|| "a number from 0 to 1".into())
    });
    endpoint.map(|endpoint| TracesConfig { endpoint, ratio: ratio.unwrap_or(1.0), service })
}

fn parse_host(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => text.parse().map_err(|_| "an IP address, such as 127.0.0.1 or 0.0.0.0".into()),
    }
}

fn parse_addr(text: &str) -> Result<SocketAddr, String> {
    let expected = || "an IP address and a port, such as 127.0.0.1:9090".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
    let host = parse_host(host.trim_matches(['[', ']'])).map_err(|_| expected())?;
    Ok(SocketAddr::new(host, port.parse().map_err(|_| expected())?))
}

/// `scheme://host[:port]`, exactly as a browser puts it into `Origin`.
fn parse_origin(text: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    let fine = ["https://", "http://"].iter().any(|scheme| {
        text.strip_prefix(scheme).is_some_and(|host| {
            !host.is_empty() && !host.contains(['/', '*', '?', '#', '@']) && host.is_ascii()
        })
    });
    fine.then_some(text)
        .ok_or_else(|| "origins such as https://chat.example.com, separated by commas".into())
}
