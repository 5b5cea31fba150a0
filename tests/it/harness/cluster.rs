//! Nodes to be tested, in this process: one with nothing but a folder, or two on real services with
//! a database, a prefix and a topic of their own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tempfile::TempDir;
use tidings::app::App;
use tidings::config::Config;
use tidings::store::Store;
use tidings::telemetry::Metrics;
use tidings::ws::Node;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::client::{Client, Opening};
use super::http::Rest;
use super::metrics::{Series, series, value};
use super::{PATIENCE, services, until, until_within, within};

/// A scenario that hangs in spite of all deadlines ends here.
const SCENARIO: Duration = Duration::from_secs(120);
/// Longer than the stages of a stop may take one by one.
const STOP: Duration = Duration::from_secs(30);

pub type Settings = BTreeMap<String, String>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Embedded,
    Cluster,
}

/// A database, a prefix, a topic and a folder that one test has to itself.
pub struct Ground {
    pub kind: Kind,
    folder: TempDir,
    settings: Settings,
    database: Option<String>,
}

impl Ground {
    /// None if the run is embedded only and the services are not there.
    pub async fn new(kind: Kind) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let mut ground = Self { kind, folder, settings: Settings::new(), database: None };
        // Short clocks, so that what happens after them is seen soon; no sooner than a busy machine
        // does its work.
        ground.set(&[
            ("SERVER_PORT", "0"),
            ("SETTLE_GRACE", "1s"),
            ("OFFLINE_AFTER", "3s"),
            ("NODE_LEASE", "1500ms"),
            ("DRAIN_GRACE", "0s"),
            ("DRAIN_TIME", "100ms"),
            // Scenarios send as fast as they can; those about rates set their own.
            ("RATE_SENDS_PER_USER", "0"),
            ("RATE_TYPING_PER_USER", "0"),
        ]);
        if kind == Kind::Embedded {
            return Some(ground);
        }
        let (postgres, redis) = (services::postgres()?, services::redis()?);
        let brokers = services::kafka()?;
        let name = format!("t_{}", Uuid::new_v4().simple());
        execute(&postgres, &format!("create database {name}")).await;
        let (server, _) = postgres.rsplit_once('/').expect("the address names a database");
        ground.set(&[
            ("DATABASE_URL", &format!("{server}/{name}")),
            // All tests together stay below what the server allows.
            ("DB_POOL_SIZE", "3"),
            ("DB_WRITE_LANES", "2"),
            ("MIGRATE_ON_START", "true"),
            ("REDIS_URL", &redis),
            ("REDIS_PREFIX", &name),
            ("KAFKA_BROKERS", &brokers),
            ("KAFKA_OFFLINE_TOPIC", &name),
            ("KAFKA_TOPIC_PARTITIONS", "2"),
        ]);
        ground.database = Some(postgres);
        Some(ground)
    }

    pub fn set(&mut self, settings: &[(&str, &str)]) {
        let settings = settings.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        self.settings.extend(settings);
    }

    pub fn setting(&self, name: &str) -> &str {
        &self.settings[name]
    }

    /// The settings of one node. An embedded one is the same when it is started again.
    pub fn settings(&self, node: &str) -> Settings {
        let mut settings = self.settings.clone();
        let folder = self.data_dir(node).to_string_lossy().into_owned();
        settings.entry("DATA_DIR".into()).or_insert(folder);
        settings
    }

    /// The settings of one node with some of them changed; an empty value is as good as none.
    pub fn settings_with(&self, node: &str, changed: &[(&str, &str)]) -> Settings {
        let mut settings = self.settings(node);
        let changed = changed.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        settings.extend(changed);
        settings
    }

    pub fn data_dir(&self, node: &str) -> PathBuf {
        self.folder.path().join(node)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn config(&self, node: &str) -> Config {
        let settings = self.settings(node);
        Config::from_lookup(|name| settings.get(name).cloned()).expect("the settings are good")
    }

    /// The store itself, beside the nodes.
    pub async fn store(&self) -> Store {
        let (metrics, _) = Metrics::new();
        Store::connect(&self.config("0").store, metrics).await.expect("the store opens")
    }

    /// Changes what no command can, in either database.
    pub async fn sql(&self, statement: &str) {
        match self.kind {
            Kind::Cluster => execute(self.setting("DATABASE_URL"), statement).await,
            Kind::Embedded => {
                let file = self.data_dir("0").join("tidings.db");
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
                let mut connection = options.connect().await.unwrap();
                let statement = AssertSqlSafe(statement.to_owned());
                sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    /// Takes away what the services hold of it.
    pub async fn remove(self) {
        let Some(postgres) = &self.database else { return };
        // Of the database, too.
        let name = self.setting("KAFKA_OFFLINE_TOPIC").to_owned();
        let drop = format!("drop database {name} with (force)");
        // The server may be vacuuming it, which is not for us to end.
        let dropped = async || try_execute(postgres, &drop).await.ok();
        until("the database is dropped", dropped).await;
        let mut config = rdkafka::ClientConfig::new();
        config.set("bootstrap.servers", self.setting("KAFKA_BROKERS"));
        type Admin = rdkafka::admin::AdminClient<rdkafka::client::DefaultClientContext>;
        let admin: Admin = config.create().unwrap();
        // What could not be removed costs some room only.
        let _ = admin.delete_topics(&[&name], &rdkafka::admin::AdminOptions::new()).await;
    }
}

async fn execute(postgres: &str, statement: &str) {
    try_execute(postgres, statement).await.unwrap();
}

async fn try_execute(postgres: &str, statement: &str) -> sqlx::Result<()> {
    let options: sqlx::postgres::PgConnectOptions = postgres.parse()?;
    let mut connection = options.connect().await?;
    let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await;
    connection.close().await?;
    done.map(drop)
}

/// Runs a scenario and looks at what is left over.
pub async fn run(kind: Kind, settings: &[(&str, &str)], scenario: impl AsyncFnOnce(&Cluster)) {
    let whole = async |ground: &Arc<Ground>| {
        let cluster = Cluster::start(ground.clone()).await;
        scenario(&cluster).await;
        cluster.finish().await;
    };
    on_ground(kind, settings, whole).await;
}

/// Runs what starts its nodes by itself, and removes what the services hold, also when it fails.
pub async fn on_ground(
    kind: Kind,
    settings: &[(&str, &str)],
    scenario: impl AsyncFnOnce(&Arc<Ground>),
) {
    show_logs();
    let Some(mut ground) = Ground::new(kind).await else { return };
    ground.set(settings);
    let ground = Arc::new(ground);
    let whole = within(SCENARIO, "the whole scenario", scenario(&ground));
    let outcome = AssertUnwindSafe(whole).catch_unwind().await;
    if let Some(ground) = Arc::into_inner(ground) {
        ground.remove().await;
    }
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}

pub struct Cluster {
    pub ground: Arc<Ground>,
    nodes: Vec<Running>,
}

/// A node in this process.
struct Running {
    addr: SocketAddr,
    admin_addr: Option<SocketAddr>,
    node: Arc<Node>,
    stop: CancellationToken,
    run: Mutex<Option<JoinHandle<bool>>>,
}

impl Running {
    async fn start(ground: &Ground, name: &str) -> Self {
        let app = App::build(ground.config(name)).await.expect("the node starts");
        let (addr, admin_addr, node) = (app.addr(), app.admin_addr(), app.node().clone());
        let stop = CancellationToken::new();
        let run = TaskTracker::new().spawn(app.run(stop.clone().cancelled_owned()));
        Self { addr, admin_addr, node, stop, run: Mutex::new(Some(run)) }
    }

    async fn stop(&self) {
        let Some(run) = self.run.lock().unwrap().take() else { return };
        self.stop.cancel();
        let drained = within(STOP, "the node stops", run).await.expect("it does not panic");
        assert!(drained, "a task ended unasked, or not in time");
        assert_eq!(self.node.sockets.load(Ordering::SeqCst), 0, "sockets are left");
        assert!(self.node.sessions.is_empty(), "sessions are left");
    }
}

impl Cluster {
    async fn start(ground: Arc<Ground>) -> Self {
        let count = if ground.kind == Kind::Cluster { 2 } else { 1 };
        let mut nodes = Vec::new();
        for at in 0..count {
            nodes.push(Running::start(&ground, &at.to_string()).await);
        }
        Self { ground, nodes }
    }

    pub fn is_embedded(&self) -> bool {
        self.ground.kind == Kind::Embedded
    }

    fn running(&self, at: usize) -> &Running {
        &self.nodes[at % self.nodes.len()]
    }

    /// Where a node listens; a single node is all of them.
    pub fn addr(&self, at: usize) -> SocketAddr {
        self.running(at).addr
    }

    pub fn admin_addr(&self, at: usize) -> Option<SocketAddr> {
        self.running(at).admin_addr
    }

    pub fn node(&self, at: usize) -> &Arc<Node> {
        &self.running(at).node
    }

    /// What all nodes show, added up.
    pub async fn metrics(&self) -> Series {
        let mut all = Series::new();
        for node in &self.nodes {
            for (name, value) in series(node.addr).await {
                *all.entry(name).or_default() += value;
            }
        }
        all
    }

    pub async fn metric(&self, name: &str) -> f64 {
        value(&self.metrics().await, name)
    }

    pub fn rest(&self, at: usize, user: Uuid) -> Rest {
        Rest::new(self.addr(at), Some(user))
    }

    /// A new device of the user, which understands all events.
    pub async fn connect(&self, at: usize, user: Uuid) -> Client {
        Client::open(self.addr(at), Opening::new(user)).await.expect("the socket opens")
    }

    /// A new device of the user, of the kind that there was before this service.
    pub async fn connect_classic(&self, at: usize, user: Uuid) -> Client {
        let opening = Opening { classic: true, ..Opening::new(user) };
        Client::open(self.addr(at), opening).await.expect("the socket opens")
    }

    /// A new group; returns its id.
    pub async fn group(&self, at: usize, owner: Uuid, members: &[Uuid]) -> Uuid {
        let body = json!({ "kind": "group", "title": "Friends", "participants": members });
        let group = self.rest(at, owner).post("/api/v1/conversations", body).await.body(201);
        id(&group["id"])
    }

    /// Sends a text by REST; returns the message.
    pub async fn send(&self, at: usize, user: Uuid, conversation: Uuid, content: &str) -> Value {
        let body = text(conversation, content);
        self.rest(at, user).post("/api/v1/messages", body).await.body(201)
    }

    /// Waits until this node believes that who is not registered is offline.
    pub async fn absence_is_certain(&self) {
        for node in &self.nodes {
            let presence = &node.node.presence;
            until("absence is certain", async || presence.absence_is_certain().then_some(())).await;
        }
    }

    /// Waits until each message is proven to each member, by a device or the offline sink.
    pub async fn settled(&self) {
        self.settled_within(PATIENCE).await;
    }

    pub async fn settled_within(&self, limit: Duration) {
        let running = self.nodes.iter().find(|node| node.run.lock().unwrap().is_some());
        let store = &running.expect("a node runs").node.store;
        let mut left = None;
        let wait = until_within(limit, "outbox and laggards are empty", async || {
            let (outbox, _) = store.outbox_state().await.ok()?;
            let (laggards, _) = store.laggards_state().await.ok()?;
            left = Some((outbox, laggards));
            (outbox == 0 && laggards == 0).then_some(())
        });
        if AssertUnwindSafe(wait).catch_unwind().await.is_err() {
            panic!("not settled, (outbox, laggards) = {left:?}");
        }
    }

    /// All is settled, all nodes end in time, and leave nothing behind.
    async fn finish(&self) {
        if self.nodes.iter().any(|node| node.run.lock().unwrap().is_some()) {
            self.settled().await;
        }
        for node in &self.nodes {
            node.stop().await;
        }
        let store = self.ground.store().await;
        let (outbox, _) = store.outbox_state().await.unwrap();
        let (laggards, _) = store.laggards_state().await.unwrap();
        let verdicts = store.verify(Duration::ZERO).await.unwrap();
        let broken: Vec<_> = verdicts.iter().filter(|verdict| !verdict.broken.is_empty()).collect();
        assert!(broken.is_empty(), "the store is not sound: {broken:?}");
        store.close().await;
        assert_eq!((outbox, laggards), (0, 0), "outbox and laggards are empty after the stop");
    }
}

/// The body of a send.
pub fn text(conversation: Uuid, content: &str) -> Value {
    json!({ "conversation_id": conversation, "content": content, "message_type": "text" })
}

pub fn id(value: &Value) -> Uuid {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no id: {value}"))
}

pub fn user() -> Uuid {
    Uuid::new_v4()
}

/// `TIDINGS_TEST_LOG=debug` shows what the nodes of this process do.
pub fn show_logs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Some(level) = services::log_level() else { return };
        let log = tidings::config::LogConfig { level, format: tidings::config::LogFormat::Text };
        tidings::telemetry::init_logs(&log).unwrap();
    });
}
