use std::collections::{BTreeMap, BTreeSet};

use super::*;

type Settings<'a> = &'a [(&'a str, &'a str)];

fn read(settings: Settings) -> Result<Config, ConfigFaults> {
    Config::from_lookup(|name| {
        settings.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    })
}

/// The settings that are reported as faults, and the whole text.
fn faults(settings: Settings) -> (Vec<&'static str>, String) {
    let faults = read(settings).expect_err("should be refused");
    (faults.0.iter().map(|fault| fault.setting).collect(), faults.to_string())
}

#[test]
fn nothing_set_is_a_single_node_on_loopback() {
    let config = read(&[]).unwrap();
    assert_eq!(config.http.addr.to_string(), "127.0.0.1:8083");
    assert!(config.http.admin_addr.is_none());
    assert!(matches!(&config.store, StoreConfig::Sqlite(sqlite)
        if sqlite.path == *"./data/tidings.db"));
    assert!(config.migrate_on_start);
    assert!(config.redis.is_none());
    assert!(matches!(&config.offline, OfflineConfig::File { path }
        if *path == *"./data/offline.jsonl"));
    assert!(matches!(config.auth.mode, AuthMode::Dev));
    assert_eq!(config.drain.grace, Duration::ZERO);
    assert_eq!(config.drain.time, Duration::from_secs(1));
    assert!(config.ws.max_connections > 0);
    assert!(config.write_lanes > 0);
}

#[test]
fn a_cluster_has_each_part_outside() {
    let config = read(&[
        ("SERVER_HOST", "0.0.0.0"),
        ("SERVER_PORT", "0"),
        ("ADMIN_ADDR", "[::]:9090"),
        ("DATABASE_URL", "postgres://tidings:geheim@db:5433/chat?sslmode=require"),
        ("REDIS_URL", "redis://:geheim@cache:6380/1"),
        ("REDIS_PREFIX", "blue"),
        ("KAFKA_BROKERS", "k1:9092, k2:9092"),
        ("KAFKA_OFFLINE_TOPIC", "pushes"),
        ("KAFKA_TOPIC_PARTITIONS", "3"),
        ("AUTH_MODE", "gateway"),
        ("TRUSTED_PROXIES", "10.0.0.0/8, ::1"),
        ("ALLOWED_ORIGINS", "https://Chat.example.com,http://localhost:3000"),
        ("NODE_LEASE", "300ms"),
        ("LOG_FORMAT", "json"),
        ("LOG_LEVEL", "warn,tidings::offline=debug"),
    ])
    .unwrap();
    let StoreConfig::Postgres(postgres) = &config.store else { panic!("{config:?}") };
    assert_eq!(postgres.options.get_host(), "db");
    assert_eq!(postgres.options.get_port(), 5433);
    assert_eq!(postgres.options.get_database(), Some("chat"));
    assert!(!config.migrate_on_start);
    let Some(redis) = &config.redis else { panic!("{config:?}") };
    assert_eq!(
        (redis.url.as_str(), redis.prefix.as_str()),
        ("redis://:geheim@cache:6380/1", "blue")
    );
    let OfflineConfig::Kafka { brokers, topic, partitions, security } = &config.offline else {
        panic!()
    };
    assert_eq!(security.protocol(), "plaintext");
    assert_eq!((brokers.as_str(), topic.as_str(), *partitions), ("k1:9092,k2:9092", "pushes", 3));
    let AuthMode::Gateway { trusted } = &config.auth.mode else { panic!("{config:?}") };
    assert!(trusted.iter().any(|net| net.contains("10.1.2.3".parse().unwrap())));
    assert_eq!(config.auth.allowed_origins, ["https://chat.example.com", "http://localhost:3000"]);
    assert_eq!(config.drain.grace, Duration::from_secs(5));
    assert_eq!(config.drain.time, Duration::from_secs(25));

    let shown = format!("{config:?}");
    assert!(!shown.contains("geheim"), "{shown}");
    assert!(shown.contains("cache:6380") && shown.contains("10.0.0.0/8"), "{shown}");
}

#[test]
fn a_database_in_parts() {
    let config = read(&[("DB_HOST", "db"), ("DB_PASSWORD", "geheim")]).unwrap();
    let StoreConfig::Postgres(postgres) = &config.store else { panic!("{config:?}") };
    assert_eq!(postgres.options.get_host(), "db");
    assert_eq!(postgres.options.get_port(), 5432);
    assert_eq!(postgres.options.get_username(), "postgres");
    assert_eq!(postgres.options.get_database(), Some("tidings"));
    assert!(!format!("{config:?}").contains("geheim"));

    // Never a file in place of the database that someone meant.
    assert_eq!(faults(&[("DB_PASSWORD", "geheim")]).0, ["DB_HOST"]);
    let both = [("DB_HOST", "db"), ("DATABASE_URL", "postgres://db/x")];
    assert_eq!(faults(&both).0, ["DB_HOST"]);
}

#[test]
fn a_pooler_and_a_replica_belong_to_a_database() {
    let ways = [
        ("DATABASE_POOL_URL", "postgres://u:geheim@pgbouncer:6432/chat"),
        ("DATABASE_REPLICA_URL", "postgres://u:geheim@replica/chat"),
    ];
    assert_eq!(faults(&ways).0, ["DATABASE_POOL_URL", "DATABASE_REPLICA_URL"]);
    let config =
        read(&[ways[0], ways[1], ("DATABASE_URL", "postgres://u:geheim@db/chat")]).unwrap();
    let StoreConfig::Postgres(postgres) = &config.store else { panic!("{config:?}") };
    assert_eq!(postgres.pooler.as_ref().unwrap().get_port(), 6432);
    assert_eq!(postgres.replica.as_ref().unwrap().get_host(), "replica");
    assert!(!format!("{config:?}").contains("geheim"));
    let (settings, text) = faults(&[("DATABASE_URL", "mysql://db"), ways[0]]);
    assert_eq!(settings, ["DATABASE_URL"], "{text}");
}

/// Nobody is to believe that a certificate or a password is asked for when it is not.
#[test]
fn what_secures_the_way_to_kafka_must_be_whole() {
    let brokers = ("KAFKA_BROKERS", "k1:9092");
    let sasl = [
        ("KAFKA_SASL_MECHANISM", "SCRAM-SHA-512"),
        ("KAFKA_SASL_USERNAME", "tidings"),
        ("KAFKA_SASL_PASSWORD", "geheim"),
    ];
    let protocol = |name| ("KAFKA_SECURITY_PROTOCOL", name);
    let [mechanism, username, password] = sasl;
    let config = read(&[brokers, protocol("sasl_ssl"), mechanism, username, password]).unwrap();
    let OfflineConfig::Kafka { security, .. } = &config.offline else { panic!("{config:?}") };
    assert_eq!(security.protocol(), "sasl_ssl");
    assert!(!format!("{config:?}").contains("geheim"));

    let all = sasl.map(|(name, _)| name);
    assert_eq!(faults(&[brokers, protocol("sasl_ssl")]).0, all);
    assert_eq!(faults(&[brokers, mechanism, username, password]).0, all);
    assert_eq!(faults(&[brokers, protocol("ssl"), password]).0, ["KAFKA_SASL_PASSWORD"]);
    assert_eq!(faults(&[brokers, protocol("tls")]).0, ["KAFKA_SECURITY_PROTOCOL"]);
    assert_eq!(faults(&[protocol("ssl")]).0, ["KAFKA_BROKERS"]);
    let plain = ("KAFKA_SASL_MECHANISM", "PLAIN");
    let (settings, text) =
        faults(&[brokers, protocol("sasl_plaintext"), plain, username, password]);
    assert_eq!(settings, ["KAFKA_SASL_MECHANISM"]);
    assert!(text.contains("sasl_ssl") && !text.contains("geheim"), "{text}");
    let files = ["KAFKA_CA_FILE", "KAFKA_CERT_FILE", "KAFKA_KEY_FILE"];
    for name in files {
        let (settings, text) = faults(&[brokers, protocol("ssl"), (name, "/no/such/file")]);
        assert!(settings.contains(&name), "{text}");
        let unused = faults(&[brokers, (name, "/proc/self/status")]).0;
        assert!(unused.contains(&name));
    }
}

#[test]
fn all_faults_are_reported_at_once_and_say_what_is_right() {
    let (settings, text) = faults(&[
        ("SERVER_PORT", "65536"),
        ("HEARTBEAT_INTERVAL", "25"),
        ("MAX_FRAME_BYTES", "64KB"),
        ("MIGRATE_ON_START", "yes"),
        ("AUTH_MODE", "oauth"),
        ("LOG_LEVEL", "inof"),
        ("LOG_FORMAT", "xml"),
        ("KAFKA_BROKERS", "kafka"),
        ("KAFKA_OFFLINE_TOPIC", "a b"),
        ("REDIS_PREFIX", "a{b}"),
        ("ALLOWED_ORIGINS", "*"),
        ("TRUSTED_PROXIES", "gateway"),
        ("NODE_LEASE", "299ms"),
        ("DB_WRITE_LANES", "0"),
        ("ADMIN_ADDR", "9090"),
    ]);
    let settings: BTreeSet<_> = settings.into_iter().collect();
    assert_eq!(settings.len(), 15, "{text}");
    assert!(
        text.contains("SERVER_PORT=\"65536\": expected a whole number from 0 to 65535"),
        "{text}"
    );
    assert!(text.contains("NODE_LEASE=\"299ms\": expected a time with its unit"), "{text}");
    assert!(text.contains("from 300ms to 1h"), "{text}");
}

#[test]
fn secrets_do_not_show_in_faults() {
    let (settings, text) = faults(&[
        ("DATABASE_URL", "mysql://u:geheim@db/x"),
        ("REDIS_URL", "redis-sentinel://:geheim@cache:6379"),
    ]);
    assert_eq!(settings, ["REDIS_URL", "DATABASE_URL"]);
    assert!(!text.contains("geheim"), "{text}");
    assert!(text.contains("host:port,host:port/service"), "{text}");
    for (url, expected) in [
        ("redis-cluster://", "some of the cluster's nodes"),
        ("redis-cluster://a,,b", "some of the cluster's nodes"),
        ("redis-sentinel:///main", "the sentinels' addresses"),
        ("redis://a,b", "rediss:// for TLS"),
    ] {
        let (settings, text) = faults(&[("REDIS_URL", url), ("DATABASE_URL", "postgres://db/x")]);
        assert_eq!(settings, ["REDIS_URL"]);
        assert!(text.contains(expected), "{url}: {text}");
    }
    let database = ("DATABASE_URL", "postgres://db/x");
    for (ca, expected) in [("/nowhere/ca.pem", "No such file"), ("Cargo.toml", "(PEM)")] {
        let settings = [("REDIS_URL", "rediss://a"), ("REDIS_CA_FILE", ca), database];
        let (settings, text) = faults(&settings);
        assert_eq!(settings, ["REDIS_CA_FILE"]);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn dev_mode_is_for_loopback_only() {
    for host in ["0.0.0.0", "192.0.2.1", "::"] {
        let (settings, text) = faults(&[("SERVER_HOST", host)]);
        assert_eq!(settings, ["SERVER_HOST"]);
        assert!(text.contains("AUTH_MODE=gateway and TRUSTED_PROXIES"), "{text}");
    }
    assert_eq!(faults(&[("ADMIN_ADDR", "0.0.0.0:9090")]).0, ["ADMIN_ADDR"]);
    assert!(read(&[("SERVER_HOST", "localhost"), ("ADMIN_ADDR", "localhost:0")]).is_ok());
    assert!(read(&[("SERVER_HOST", "::1")]).is_ok());
}

#[test]
fn a_gateway_needs_to_be_named() {
    let (settings, text) = faults(&[("AUTH_MODE", "gateway")]);
    assert_eq!(settings, ["TRUSTED_PROXIES"]);
    assert!(text.contains("TRUSTED_PROXIES is not set: expected"), "{text}");
}

const JWT: (&str, &str) = ("AUTH_MODE", "jwt");
const RSA: &str = include_str!("../../tests/keys/rsa.pub.pem");

fn key_of(config: &Config) -> &JwtKey {
    match &config.auth.mode {
        AuthMode::Jwt(JwtConfig { keys: JwtKeys::Fixed(key), .. }) => key,
        mode => panic!("no key: {mode:?}"),
    }
}

#[test]
fn tokens_need_a_key_that_is_named_by_its_form() {
    use jsonwebtoken::Algorithm;
    let secret = "geheim geheim geheim geheim 1234";
    for (key, algorithm) in [
        (secret, Algorithm::HS256),
        (RSA, Algorithm::RS256),
        (&RSA.replace('\n', "\\n"), Algorithm::RS256),
        (include_str!("../../tests/keys/ec.pub.pem"), Algorithm::ES256),
        (include_str!("../../tests/keys/ed.pub.pem"), Algorithm::EdDSA),
    ] {
        // Tokens are checked, so others may reach the node.
        let config = read(&[JWT, ("JWT_KEY", key), ("SERVER_HOST", "0.0.0.0")]).unwrap();
        assert_eq!(key_of(&config).algorithm, algorithm);
        let shown = format!("{config:?}");
        assert!(!shown.contains("geheim") && !shown.contains(&format!("{:?}", secret.as_bytes())));
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let setting = format!("file:{}", file.display());
    for (content, good) in
        [(format!("{secret}\n"), true), (RSA.into(), true), (secret[1..].into(), false)]
    {
        std::fs::write(&file, content).unwrap();
        assert_eq!(read(&[JWT, ("JWT_KEY", &setting)]).is_ok(), good);
    }
    for wrong in [
        &secret[1..],
        "file:/no/such/geheim",
        include_str!("../../tests/keys/rsa.pem"),
        include_str!("../../tests/keys/ec.pem"),
        include_str!("../../tests/keys/short-rsa.pub.pem"),
        include_str!("../../tests/keys/p384.pub.pem"),
        "-----BEGIN PUBLIC KEY-----\ngeheim\n-----END PUBLIC KEY-----",
        "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----",
    ] {
        let (settings, text) = faults(&[JWT, ("JWT_KEY", wrong)]);
        assert_eq!(settings, ["JWT_KEY"], "{wrong}");
        assert!(!text.contains("geheim") && !text.contains("BEGIN"), "{text}");
    }
}

#[test]
fn keys_come_from_one_place_and_are_for_tokens_only() {
    let url = ("JWT_JWKS_URL", "https://issuer.example/keys?code=geheim");
    let config =
        read(&[JWT, url, ("JWT_ISSUER", "https://issuer.example"), ("JWT_AUDIENCE", "chat")])
            .unwrap();
    let AuthMode::Jwt(jwt) = &config.auth.mode else { panic!("{config:?}") };
    assert_eq!(jwt.issuer.as_deref(), Some("https://issuer.example"));
    assert_eq!(jwt.audience.as_deref(), Some("chat"));
    let shown = format!("{config:?}");
    assert!(shown.contains("https://issuer.example") && !shown.contains("geheim"), "{shown}");

    let (settings, text) = faults(&[JWT]);
    assert_eq!(settings, ["JWT_KEY"]);
    assert!(text.contains("JWT_JWKS_URL"), "{text}");
    assert_eq!(faults(&[JWT, url, ("JWT_KEY", RSA)]).0, ["JWT_KEY"]);
    for wrong in ["ftp://issuer/keys", "issuer/keys", "https://", "https://user:geheim@issuer/"] {
        let (settings, text) = faults(&[JWT, ("JWT_JWKS_URL", wrong)]);
        assert_eq!(settings, ["JWT_JWKS_URL"], "{wrong}");
        assert!(!text.contains("geheim"), "{text}");
    }
    // Nobody is to believe that tokens are checked when they are not.
    for name in ["JWT_KEY", "JWT_JWKS_URL", "JWT_ISSUER", "JWT_AUDIENCE"] {
        let value = if name == "JWT_KEY" { RSA } else { url.1 };
        let (settings, text) = faults(&[(name, value)]);
        assert_eq!(settings, [name]);
        assert!(text.contains("AUTH_MODE=jwt"), "{text}");
    }
}

#[test]
fn a_file_is_not_shared_between_nodes() {
    let (settings, text) = faults(&[("REDIS_URL", "redis://cache")]);
    assert_eq!(settings, ["DATABASE_URL"]);
    assert!(text.contains("REDIS_URL"), "{text}");
    assert!(read(&[("REDIS_URL", "redis://cache"), ("DB_HOST", "db")]).is_ok());
}

#[test]
fn limits_fit_into_each_other() {
    assert_eq!(faults(&[("WS_CLIENT_BUFFER_BYTES", "32KiB")]).0, ["WS_CLIENT_BUFFER_BYTES"]);
    assert_eq!(faults(&[("MAX_CONTENT_BYTES", "65KiB")]).0, ["MAX_CONTENT_BYTES"]);
    let small = [("MAX_FRAME_BYTES", "4KiB")];
    assert_eq!(faults(&small).0, ["MAX_CONTENT_BYTES", "MAX_METADATA_BYTES"]);
    let larger = [("MAX_FRAME_BYTES", "2MiB"), ("WS_CLIENT_BUFFER_BYTES", "2MiB")];
    assert!(read(&larger).is_ok());
}

#[test]
fn an_empty_value_is_as_good_as_none() {
    assert!(read(&[("REDIS_URL", " "), ("SERVER_PORT", "")]).is_ok());
    assert_eq!(
        faults(&[("AUTH_MODE", "gateway"), ("TRUSTED_PROXIES", " ")]).0,
        ["TRUSTED_PROXIES"]
    );
    assert_eq!(
        faults(&[("AUTH_MODE", "gateway"), ("TRUSTED_PROXIES", ",")]).0,
        ["TRUSTED_PROXIES"]
    );
}

/// The settings of `.env.example` with their values, and which of them are live.
fn env_example() -> (BTreeMap<&'static str, &'static str>, Vec<&'static str>) {
    let (mut all, mut live) = (BTreeMap::new(), Vec::new());
    for line in include_str!("../../.env.example").lines() {
        let setting = line.strip_prefix("# ").unwrap_or(line);
        let Some((name, value)) = setting.split_once('=') else {
            continue;
        };
        if !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_') {
            assert!(all.insert(name, value).is_none(), "{name} stands there twice");
            if setting == line {
                live.push(name);
            }
        }
    }
    (all, live)
}

#[test]
fn the_example_lists_exactly_the_settings_there_are() {
    let (all, _) = env_example();
    let names: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.name).collect();
    assert_eq!(all.keys().copied().collect::<BTreeSet<_>>(), names);
    assert_eq!(names.len(), SETTINGS.len(), "a setting stands in the table twice");
}

#[test]
fn the_example_shows_the_defaults() {
    let (all, live) = env_example();
    let show = |keep: &dyn Fn(&str) -> bool| {
        let lookup = |name: &str| all.get(name).filter(|_| keep(name)).map(|v| (*v).to_owned());
        format!("{:?}", Config::from_lookup(lookup).unwrap())
    };
    let defaults = show(&|_| false);
    assert_eq!(show(&|name| live.contains(&name)), defaults);
    // The parts of a database count only together with its host.
    assert_eq!(show(&|name| !name.starts_with("DB_")), defaults);
}

/// The rows of `docs/settings.md` whose first cell is a setting: its name and the default shown.
fn documented() -> Vec<(&'static str, &'static str)> {
    let rows = include_str!("../../docs/settings.md").lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let (name, default) = (cells.next()?.strip_suffix('`')?, cells.next()?);
        assert_eq!(cells.count(), 2, "four cells: {line}");
        Some((name, default.trim_matches('`')))
    });
    rows.collect()
}

#[test]
fn the_document_tells_of_exactly_the_settings_there_are() {
    let documented = documented();
    let names: BTreeSet<_> = documented.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, SETTINGS.iter().map(|setting| setting.name).collect());
    assert_eq!(documented.len(), names.len(), "a setting stands there twice");
}

#[test]
fn the_document_shows_the_defaults_of_the_example() {
    let (all, _) = env_example();
    for (name, shown) in documented() {
        // Where the example has no value, the default is said in words.
        match all[name] {
            "" => assert!(!shown.is_empty(), "{name}"),
            value => assert_eq!(shown, value, "{name}"),
        }
    }
}
