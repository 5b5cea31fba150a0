//! `tidings check`: what it says of sound parts, and that it sees what is broken, all at once.

use std::net::TcpListener;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::Value;

use crate::harness::cluster::{Cluster, Kind, Settings, on_ground};
use crate::harness::process::Process;
use crate::harness::scenarios;
use crate::own_redis::OwnRedis;
use crate::redises::acl;

/// Longer than any part may take, on a busy machine.
const SOON: Duration = Duration::from_secs(40);

scenarios! {
    what_runs_is_sound,
}

/// What `check` found.
pub struct Told {
    code: Option<i32>,
    findings: Vec<Value>,
}

impl Told {
    /// All findings of this name: one for each server of several.
    pub fn all(&self, part: &str, check: &str) -> Vec<&Value> {
        self.findings.iter().filter(|one| one["part"] == part && one["check"] == check).collect()
    }

    /// The one finding of this name.
    fn of(&self, part: &str, check: &str) -> &Value {
        let [found] = self.all(part, check)[..] else {
            panic!("not one {part}, {check}: {self:?}")
        };
        found
    }

    pub fn expect(&self, part: &str, check: &str, grade: &str, says: &str) {
        let found = self.of(part, check);
        assert_eq!(found["grade"], grade, "{found}");
        assert!(found.to_string().contains(says), "{says:?} is not in {found}");
        assert_eq!(found["fix"].is_string(), grade != "ok", "{found}");
    }

    pub fn problems(&self) -> usize {
        self.findings.iter().filter(|one| one["grade"] == "problem").count()
    }
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.findings.iter().try_for_each(|one| writeln!(f, "{one}"))
    }
}

pub async fn check(settings: &Settings) -> Told {
    told(Process::start(&["check", "--json"], settings)).await
}

async fn told(mut process: Process) -> Told {
    let code = process.exit_within(SOON).await.code();
    assert_eq!(process.errors(), "");
    let output = process.output();
    for secret in ["hunter2", "geheim", "tidings:tidings", "code="] {
        assert!(!output.contains(secret), "a secret is shown: {output}");
    }
    let report: Value = serde_json::from_str(&output).unwrap();
    let told = Told { code, findings: report["findings"].as_array().unwrap().clone() };
    assert_eq!(report["problems"], told.problems(), "{output}");
    assert_eq!(code, Some(i32::from(told.problems() > 0)), "{output}");
    told
}

async fn what_runs_is_sound(cluster: &Cluster) {
    let settings = cluster.ground.settings("0");
    let told = check(&settings).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    told.expect("host", "open files", "ok", "MAX_CONNECTIONS");
    told.expect("identity", "mode", "warning", "dev");
    if cluster.is_embedded() {
        told.expect("sqlite", "schema", "ok", "of this release");
        told.expect("sqlite", "alone", "warning", "a node works on it");
        told.expect("sqlite", "folder", "ok", "can be written");
        told.expect("offline", "file", "ok", "offline.jsonl");
    } else {
        told.expect("postgres", "schema", "ok", "of this release");
        told.expect("postgres", "rights", "ok", "statements");
        told.expect("postgres", "durability", "ok", "disk");
        told.expect("postgres", "standby", "warning", "synchronous_standby_names");
        told.expect("postgres", "connections", "ok", "a node takes 6");
        told.expect("postgres", "clock", "ok", "ms");
        told.expect("redis", "version", "ok", "Redis 7");
        told.expect("redis", "commands", "ok", cluster.ground.setting("REDIS_PREFIX"));
        told.expect("redis", "channels", "ok", "arrives");
        told.expect("redis", "buffers", "ok", "32 MiB");
        told.expect("redis", "clock", "ok", "ms");
        told.expect("kafka", "topic", "ok", "2 partitions");
        told.expect("kafka", "replicas", "warning", "one replica");
        told.expect("kafka", "write", "ok", "may write");
        let kafka = Kafka::of(&settings);
        assert_eq!(kafka.records(), 0, "nothing is left in the topic");
    }
    // And for people.
    let mut process = Process::start(&["check"], &settings);
    assert_eq!(process.exit_within(SOON).await.code(), Some(0));
    let output = process.output();
    assert!(output.contains("WARNING  identity"), "{output}");
    assert!(output.contains("-> "), "{output}");
    assert!(output.lines().last().unwrap().contains(": 0 problems, "), "{output}");
}

#[tokio::test]
async fn a_place_where_no_node_was_yet_stays_untouched() {
    on_ground(Kind::Embedded, &[], async |ground| {
        let told = check(&ground.settings("new")).await;
        assert_eq!(told.code, Some(0), "{told:?}");
        told.expect("sqlite", "folder", "ok", "is made at the first start");
        assert!(!ground.data_dir("new").exists());
        let nowhere = ground.settings_with("new", &[("DATA_DIR", "/proc/tidings")]);
        check(&nowhere).await.expect("sqlite", "folder", "problem", "/proc/tidings");
        let garbage = ground.data_dir("garbage");
        std::fs::create_dir(&garbage).unwrap();
        std::fs::write(garbage.join("tidings.db"), "no database".repeat(999)).unwrap();
        let told = check(&ground.settings("garbage")).await;
        told.expect("sqlite", "open", "problem", "not a database");
    })
    .await;
}

#[tokio::test]
async fn settings_and_the_machine_are_judged() {
    on_ground(Kind::Embedded, &[], async |ground| {
        let faulty = ground.settings_with(
            "0",
            &[("SERVER_PORT", "eighty"), ("DATABASE_URL", "mysql://root:hunter2@db/x")],
        );
        let told = check(&faulty).await;
        told.expect("settings", "SERVER_PORT", "problem", "eighty");
        told.expect("settings", "DATABASE_URL", "problem", "mysql://***");
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        let jwks = "http://127.0.0.1:1/keys?code=hunter2";
        let open = ground.settings_with(
            "0",
            &[
                ("SERVER_PORT", &port),
                ("AUTH_MODE", "jwt"),
                ("JWT_JWKS_URL", jwks),
                ("TRUSTED_PROXIES", "10.0.0.0/8,0.0.0.0/0"),
            ],
        );
        let told = check(&open).await;
        told.expect("host", "SERVER_PORT", "warning", "is taken");
        told.expect("host", "ADMIN_ADDR", "warning", "no metrics");
        told.expect("host", "TRUSTED_PROXIES", "warning", "0.0.0.0/0");
        told.expect("identity", "keys", "problem", "127.0.0.1");
        let gateway =
            ground.settings_with("0", &[("AUTH_MODE", "gateway"), ("TRUSTED_PROXIES", "::/0")]);
        check(&gateway).await.expect("host", "TRUSTED_PROXIES", "problem", "::/0");
        let many = ground.settings_with("0", &[("MAX_CONNECTIONS", "1000")]);
        told_with_open_files(256, &many).await.expect("host", "open files", "problem", "of 256");
        told_with_open_files(1_200, &many).await.expect("host", "open files", "warning", "1200");
    })
    .await;
}

async fn told_with_open_files(limit: u32, settings: &Settings) -> Told {
    let command = format!("ulimit -n {limit}; exec \"$0\" check --json");
    told(Process::start_by_shell(&command, settings)).await
}

#[tokio::test]
async fn parts_that_are_away_are_told_of_at_once() {
    on_ground(Kind::Cluster, &[], async |ground| {
        let hung = TcpListener::bind("127.0.0.1:0").unwrap();
        let hung = hung.local_addr().unwrap();
        for place in ["127.0.0.1:1".to_owned(), hung.to_string()] {
            let away = ground.settings_with(
                "0",
                &[
                    ("DATABASE_URL", &format!("postgres://tidings:hunter2@{place}/x")),
                    ("REDIS_URL", &format!("redis://:hunter2@{place}")),
                    ("KAFKA_BROKERS", &place),
                ],
            );
            let told = check(&away).await;
            for part in ["postgres", "redis", "kafka"] {
                told.expect(part, "reachable", "problem", &place);
            }
            assert_eq!(told.problems(), 3, "{told:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_database_that_lacks_something_is_told_of() {
    on_ground(Kind::Cluster, &[], async |ground| {
        let by_hand = ground.settings_with("0", &[("MIGRATE_ON_START", "false")]);
        check(&by_hand).await.expect("postgres", "schema", "problem", "tidings migrate");
        check(&ground.settings("0")).await.expect("postgres", "schema", "ok", "the node lays them");
        let mut migrate = Process::start(&["migrate"], &by_hand);
        assert!(migrate.exit().await.success());
        check(&by_hand).await.expect("postgres", "rights", "ok", "statements");
        ground.sql("revoke update on messages from current_user").await;
        let told = check(&by_hand).await;
        told.expect("postgres", "rights", "problem", "permission denied for table messages");
        told.expect("postgres", "rights", "problem", "amend_edit");
        ground.sql("grant update on messages to current_user").await;
        ground.sql("alter table receipts drop column at").await;
        let told = check(&by_hand).await;
        let lacking = |one: &&Value| one["check"] == "rights" && one["grade"] == "problem";
        let lacking: Vec<_> = told.findings.iter().filter(lacking).collect();
        assert!(!lacking.is_empty(), "{told:?}");
        assert!(lacking.iter().all(|one| one.to_string().contains("\\\"at\\\" ")), "{lacking:?}");
        ground.sql("revoke select on _sqlx_migrations from current_user").await;
        let told = check(&by_hand).await;
        told.expect("postgres", "schema", "problem", "permission denied");
        let host = ground.setting("DATABASE_URL").split_once('@').unwrap().1;
        let many = format!("postgres://tidings:tidings@{host}");
        let many = ground.settings_with("0", &[("DATABASE_URL", &many), ("DB_POOL_SIZE", "1000")]);
        check(&many).await.expect("postgres", "connections", "problem", "max_connections");
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_lacks_something_is_told_of() {
    let Some(mut redis) = OwnRedis::start().await else { return };
    on_ground(Kind::Cluster, &[], async |ground| {
        let url = redis.config().url;
        let own = ground.settings_with("0", &[("REDIS_URL", &url)]);
        let told = check(&own).await;
        assert_eq!(told.code, Some(0), "{told:?}");
        assert_eq!(redis.command::<u64>(&["DBSIZE"]).await, 0, "nothing is left");
        // The rights that the document gives are enough.
        let few = format!("redis://tidings:hunter2@{}", url.trim_start_matches("redis://"));
        let few = ground.settings_with("0", &[("REDIS_URL", &few)]);
        let prefix = ground.setting("REDIS_PREFIX");
        let rights = acl("hunter2").replace("tidings:*", &format!("{prefix}:*"));
        let words = ["ACL", "SETUSER"].into_iter().chain(rights.split_whitespace().skip(1));
        redis.command::<()>(&words.collect::<Vec<_>>()).await;
        let told = check(&few).await;
        assert_eq!(told.code, Some(0), "{told:?}");
        redis.command::<()>(&["ACL", "SETUSER", "tidings", "-eval", "-publish", "-unwatch"]).await;
        let told = check(&few).await;
        told.expect("redis", "commands", "problem", "UNWATCH: ");
        told.expect("redis", "commands", "problem", "EVAL: ");
        told.expect("redis", "channels", "problem", "PUBLISH: ");
        let other = ["ACL", "SETUSER", "tidings", "+@all", "resetkeys", "~other:*"];
        redis.command::<()>(&other).await;
        let told = check(&few).await;
        told.expect("redis", "commands", "problem", &format!("~{prefix}:*"));
        told.expect("redis", "channels", "ok", "arrives");
        for (name, value) in [
            ("maxmemory", "100mb"),
            ("maxmemory-policy", "volatile-lru"),
            ("client-output-buffer-limit", "pubsub 1mb 1mb 10"),
        ] {
            redis.command::<()>(&["CONFIG", "SET", name, value]).await;
        }
        let told = check(&own).await;
        told.expect("redis", "memory", "warning", "volatile-lru");
        told.expect("redis", "buffers", "warning", "1 MiB");
        redis.command::<()>(&["CONFIG", "SET", "maxclients", "20"]).await;
        check(&own).await.expect("redis", "connections", "problem", "maxclients");
        redis.pause();
        check(&own).await.expect("redis", "reachable", "problem", "127.0.0.1");
        redis.resume();
        redis.kill();
        let told = check(&own).await;
        told.expect("redis", "reachable", "problem", "127.0.0.1");
        told.expect("kafka", "reachable", "ok", "brokers");
    })
    .await;
}

#[tokio::test]
async fn a_topic_that_lacks_something_is_told_of() {
    on_ground(Kind::Cluster, &[], async |ground| {
        let settings = ground.settings("0");
        let kafka = Kafka::of(&settings);
        check(&settings).await.expect("kafka", "topic", "ok", "the node makes it");
        assert!(!kafka.exists(), "the check made it");
        // On one broker, this topic never takes a record.
        kafka.create(&[("min.insync.replicas", "2"), ("max.message.bytes", "100000")]).await;
        let told = check(&settings).await;
        told.expect("kafka", "acks", "problem", "min.insync.replicas is 2");
        told.expect("kafka", "size", "warning", "MAX_FRAME_BYTES");
        told.expect("kafka", "topic", "ok", "KAFKA_TOPIC_PARTITIONS=2");
        assert_eq!(kafka.records(), 0);
        let none = ground.settings_with("0", &[("KAFKA_BROKERS", "")]);
        check(&none).await.expect("offline", "file", "warning", "KAFKA_BROKERS");
    })
    .await;
}

/// The topic, looked at beside the nodes.
struct Kafka {
    config: ClientConfig,
    topic: String,
}

impl Kafka {
    fn of(settings: &Settings) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &settings["KAFKA_BROKERS"]);
        Self { config, topic: settings["KAFKA_OFFLINE_TOPIC"].clone() }
    }

    fn consumer(&self) -> BaseConsumer {
        self.config.create().unwrap()
    }

    /// Its partitions; asks for all topics, since asking for one may make it.
    fn partitions(&self) -> Vec<i32> {
        let metadata = self.consumer().fetch_metadata(None, SOON).unwrap();
        let topic = metadata.topics().iter().find(|topic| topic.name() == self.topic);
        topic.map_or(Vec::new(), |topic| topic.partitions().iter().map(|one| one.id()).collect())
    }

    fn exists(&self) -> bool {
        !self.partitions().is_empty()
    }

    fn records(&self) -> i64 {
        let consumer = self.consumer();
        let count = |partition| {
            let (low, high) = consumer.fetch_watermarks(&self.topic, partition, SOON).unwrap();
            high - low
        };
        self.partitions().into_iter().map(count).sum()
    }

    async fn create(&self, settings: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.config.create().unwrap();
        let topic = NewTopic::new(&self.topic, 3, TopicReplication::Fixed(1));
        let topic = settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value));
        let made = admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
        assert!(made.iter().all(Result::is_ok), "{made:?}");
        crate::harness::until("the topic is there", async || self.exists().then_some(())).await;
    }
}
