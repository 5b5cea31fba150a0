//! The composition root: builds each part once, starts its tasks, decides their order of death.
//! Only this module sees everything; nothing imports it but `main` and the tests.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::sync::{OnceCell, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Authenticator;
use crate::bus::Bus;
use crate::config::{Config, OfflineConfig, PostgresConfig, StoreConfig};
use crate::http::tls::Tls;
use crate::http::{self, Door, Server};
use crate::offline::Offline;
use crate::presence::Presence;
use crate::protocol::code::CloseCode;
use crate::protocol::event::Limits;
use crate::rates::Rates;
use crate::resume::Syncs;
use crate::shards::Shards;
use crate::shutdown::Stage;
use crate::store::{Schema, Store, Way};
use crate::telemetry::{self, Metrics};
use crate::typing;
use crate::write_path::dispatcher::Dispatcher;
use crate::write_path::lane::Lane;
use crate::write_path::members::MembersCache;
use crate::write_path::proofs::Proofs;
use crate::write_path::receipts::Receipts;
use crate::write_path::{LANE_QUEUE, WritePath, janitor, outbox, receive, reconcile};
use crate::ws::hub::Hub;
use crate::ws::watch::{Watch, Watcher};
use crate::ws::{Node, PRESENCE_TURNS, heartbeat};

/// Committed batches that may wait for their dispatch; beyond, the lane waits.
const DISPATCH_QUEUE: usize = 64;
/// On top of the grace: how long an outbox row is this node's alone.
const OUTBOX_LEASE_SPARE: Duration = Duration::from_secs(10);
/// How long each stage may take to end.
const STAGE_LIMIT: Duration = Duration::from_secs(10);
/// And the last requests of operators.
const ADMIN_LIMIT: Duration = Duration::from_secs(2);
/// Sockets are closed in steps of this length.
const DRAIN_STEP: Duration = Duration::from_millis(50);
/// How often a node without Redis makes sure that it is alone.
const LOCK_CHECK: Duration = Duration::from_secs(10);
/// Behind the open sockets' `accept`: a storm of reconnects waits in the kernel.
const BACKLOG: u32 = 4_096;

pub struct App {
    node: Arc<Node>,
    scheme: &'static str,
    addr: SocketAddr,
    admin_addr: Option<SocketAddr>,
    stages: Stages,
    /// Set by a task that ended unasked.
    fault: CancellationToken,
}

/// In the order in which they end.
struct Stages {
    listeners: Stage,
    resume: Stage,
    lanes: Stage,
    dispatch: Stage,
    proofs: Stage,
    outbox: Stage,
    presence: Stage,
    bus: Stage,
    offline: Stage,
    admin: Stage,
}

impl Stages {
    fn new(fault: &CancellationToken) -> Self {
        let stage = |name| Stage::new(name, fault.clone());
        Self {
            listeners: stage("listeners"),
            resume: stage("resume"),
            lanes: stage("lanes"),
            dispatch: stage("dispatch"),
            proofs: stage("proofs"),
            outbox: stage("outbox"),
            presence: stage("presence"),
            bus: stage("bus"),
            offline: stage("offline"),
            admin: stage("admin"),
        }
    }
}

impl App {
    /// Connects, migrates where the settings say so, binds. An error names the setting at fault.
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        let fault = CancellationToken::new();
        let stages = Stages::new(&fault);
        let (metrics, exporter) = Metrics::new();
        metrics.sockets.limit.set(config.ws.max_connections as f64);
        let tls = match &config.http.tls {
            Some(files) => Some(Arc::new(Tls::open(files).await?)),
            None => None,
        };
        let shards = match &config.redis {
            Some(redis) => {
                Some(Shards::connect(redis, metrics.clone()).await.context("REDIS_URL")?)
            }
            None => None,
        };
        let shards = shards.as_ref();
        let auth = Authenticator::connect(config.auth.clone(), shards).await?;
        let store = open_store(&config, &metrics).await?;
        let store_epoch = store.epoch().await.context("the store's epoch")?;

        let hub = Arc::new(Hub::new(metrics.clone()));
        let bus_stage = &stages.bus;
        if let Some(shards) = shards {
            bus_stage.spawn("shards", shards.clone().watch(bus_stage.stop.clone()));
        }
        let bus = Bus::connect(shards, hub.clone(), bus_stage).await.context("REDIS_URL")?;
        let presence_stage = &stages.presence;
        let presence = Presence::connect(&config.presence, shards, presence_stage)
            .await
            .context("REDIS_URL")?;
        let offline = Offline::connect(&config.offline, &metrics, &stages.offline).await.context(
            match config.offline {
                OfflineConfig::Kafka { .. } => "KAFKA_BROKERS",
                OfflineConfig::File { .. } => "DATA_DIR",
            },
        )?;

        let proofs = Proofs::new(metrics.clone());
        let receipts =
            Arc::new(Receipts { store: store.clone(), bus: bus.clone(), metrics: metrics.clone() });
        let (attempted, attempts) = mpsc::channel(outbox::ATTEMPTED_QUEUE);
        let members = MembersCache::new(store.clone());
        let dispatcher = Arc::new(Dispatcher {
            store: store.clone(),
            members: members.clone(),
            bus: bus.clone(),
            presence: presence.clone(),
            offline: offline.clone(),
            proofs: proofs.clone(),
            metrics: metrics.clone(),
            attempted,
            tasks: stages.dispatch.tasks.clone(),
            stop: stages.dispatch.stop.clone(),
            hand_overs: Dispatcher::hand_over_bound(),
        });
        let lease = config.delivery.settle_grace + OUTBOX_LEASE_SPARE;
        let mut lanes = Vec::new();
        for _ in 0..config.write_lanes.min(store.max_lanes()) {
            let (sender, requests) = mpsc::channel(LANE_QUEUE);
            let (to_dispatcher, committed) = mpsc::channel(DISPATCH_QUEUE);
            let lane = Lane {
                store: store.clone(),
                writer: store.writer(),
                requests,
                dispatcher: to_dispatcher,
                lease,
                max_group_size: config.limits.group_size,
                metrics: metrics.clone(),
            };
            stages.lanes.spawn("lane", lane.run(stages.lanes.stop.clone()));
            let stop = stages.dispatch.stop.clone();
            stages.dispatch.spawn("dispatcher", dispatcher.clone().run(committed, stop));
            lanes.push(sender);
        }
        let grace = config.delivery.settle_grace;
        let (to_receive, received) = mpsc::channel(receive::RECEIVE_QUEUE);
        let receiving = receive::run(
            receipts.clone(),
            proofs.clone(),
            config.delivery.receipts_max_members,
            received,
            stages.dispatch.stop.clone(),
        );
        stages.dispatch.spawn("receive", receiving);
        let stop = stages.proofs.stop.clone();
        stages.proofs.spawn("proofs", proofs.clone().run(receipts, config.delivery.clone(), stop));
        let stop = || stages.outbox.stop.clone();
        stages
            .outbox
            .spawn("settle", outbox::settle_attempted(dispatcher.clone(), attempts, grace, stop()));
        stages.outbox.spawn("sweep", outbox::sweep(dispatcher.clone(), lease, stop()));
        let retention = config.delivery.receipts_retention;
        stages.outbox.spawn("janitor", janitor::run(store.clone(), retention, stop()));
        let (hasten, hastened) = mpsc::channel(reconcile::HASTEN_QUEUE);
        let reconciling = reconcile::run(dispatcher, config.delivery.clone(), hastened, stop());
        stages.outbox.spawn("reconcile", reconciling);

        let write_path = WritePath::new(lanes, proofs, to_receive, hasten, metrics.clone());
        let (typing, teller) =
            typing::new(members, bus.clone(), write_path.clone(), metrics.clone());
        stages.dispatch.spawn("typing", teller.run(stages.dispatch.stop.clone()));
        let (watch, watch_queues) = Watch::new(hub.watched.clone(), metrics.clone());
        let watcher = Watcher {
            registry: hub.watched.clone(),
            store: store.clone(),
            bus: bus.clone(),
            presence: presence.clone(),
            write_path: write_path.clone(),
            metrics: metrics.clone(),
            topics: std::array::from_fn(|_| OnceCell::new()),
            round: config.presence.lease,
        };
        // After the sessions, so that others are told of their end, and before presence.
        stages.outbox.spawn("watch", watcher.run(watch_queues, stages.outbox.stop.clone()));
        let (syncs, worker) = Syncs::new(store.clone(), store_epoch, metrics.clone());
        for _ in 0..store.max_syncs() {
            stages.resume.spawn("syncs", worker.clone().run(stages.resume.stop.clone()));
        }
        drop(worker);

        let node = Arc::new(Node {
            limits: Limits {
                max_frame_bytes: config.limits.frame_bytes,
                max_content_bytes: config.limits.content_bytes,
                max_metadata_bytes: config.limits.metadata_bytes,
                max_group_size: config.limits.group_size,
            },
            auth: auth.clone(),
            hub: hub.clone(),
            bus,
            presence,
            store,
            store_epoch,
            offline,
            write_path,
            typing,
            watch,
            rates: Rates::new(config.rates.clone(), metrics.clone()),
            syncs,
            metrics,
            sessions: TaskTracker::new(),
            stopping: CancellationToken::new(),
            presence_turns: Semaphore::new(PRESENCE_TURNS),
            sockets: AtomicUsize::new(0),
            config: config.clone(),
        });
        stages.listeners.spawn(
            "heartbeat",
            heartbeat::run(
                hub.clone(),
                config.ws.heartbeat_interval,
                config.ws.heartbeat_timeout,
                stages.listeners.stop.clone(),
            ),
        );
        stages.listeners.spawn("keys", auth.keep_keys(stages.listeners.stop.clone()));
        stages.bus.spawn("gaps", hub.clone().spread_gaps(stages.bus.stop.clone()));
        if config.redis.is_none() {
            let keep = keep_single_node_lock(node.store.clone(), stages.outbox.stop.clone());
            stages.outbox.spawn("single-node lock", keep);
        }
        let upkeep = telemetry::run_upkeep(node.metrics.clone(), exporter.clone());
        let stop = stages.admin.stop.clone();
        stages.admin.spawn("upkeep", async move {
            tokio::select! {
                () = upkeep => {}
                () = stop.cancelled() => {}
            }
        });
        stages
            .presence
            .spawn("re-register", re_register(node.clone(), presence_stage.stop.clone()));

        if let Some(tls) = &tls {
            stages.listeners.spawn("tls", tls.clone().keep(stages.listeners.stop.clone()));
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        let server = Arc::new(Server::new(node.clone(), exporter, tls));
        let (listener, addr) = bind(config.http.addr).context("SERVER_HOST, SERVER_PORT")?;
        let stop = stages.listeners.stop.clone();
        let serving =
            http::serve(server.clone(), listener, Door::Main, node.sessions.clone(), stop);
        stages.listeners.spawn("listener", serving);
        let mut admin_addr = None;
        if let Some(addr) = config.http.admin_addr {
            let (listener, addr) = bind(addr).context("ADMIN_ADDR")?;
            admin_addr = Some(addr);
            // To the end, so that a drain can be watched.
            let stop = stages.admin.stop.clone();
            stages.admin.spawn("admin listener", async move {
                let connections = TaskTracker::new();
                http::serve(server, listener, Door::Admin, connections.clone(), stop).await;
                connections.close();
                // Nobody waits for a request that was not asked to its end.
                let _ = timeout(ADMIN_LIMIT, connections.wait()).await;
            });
        }
        Ok(Self { node, scheme, addr, admin_addr, stages, fault })
    }

    /// Where it listens; the port is known even if the settings left it open.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How it is spoken to there: `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        self.scheme
    }

    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin_addr
    }

    /// For tests, which look at what is left over.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Serves until `stop` resolves, then drains. False if a task ended unasked or not in time.
    pub async fn run(self, stop: impl Future<Output = ()>) -> bool {
        let faulty = tokio::select! {
            () = stop => false,
            () = self.fault.cancelled() => true,
        };
        tracing::info!(faulty, "stopping");
        let drained = self.drain().await;
        tracing::info!(drained, "stopped");
        drained && !faulty
    }

    /// Listeners, sessions, resume, write path, dispatcher, proofs, outbox, presence, bus, offline,
    /// store, and last who tells of it.
    async fn drain(self) -> bool {
        let Self { node, stages, .. } = self;
        node.stopping.cancel();
        tokio::time::sleep(node.config.drain.grace).await;
        let mut ended = stages.listeners.end(STAGE_LIMIT).await;
        close_sockets(&node).await;
        node.sessions.close();
        ended &= timeout(STAGE_LIMIT, node.sessions.wait()).await.is_ok();
        for stage in [stages.resume, stages.lanes, stages.dispatch, stages.proofs, stages.outbox] {
            ended &= stage.end(STAGE_LIMIT).await;
        }
        // Told before they close, so that their tasks do not end unasked.
        stages.presence.stop.cancel();
        node.presence.close().await;
        ended &= stages.presence.end(STAGE_LIMIT).await;
        ended &= stages.bus.end(STAGE_LIMIT).await;
        stages.offline.stop.cancel();
        node.offline.close().await;
        ended &= stages.offline.end(STAGE_LIMIT).await;
        ended &= timeout(STAGE_LIMIT, node.store.close()).await.is_ok();
        ended &= stages.admin.end(STAGE_LIMIT).await;
        ended
    }
}

/// Spread over `DRAIN_TIME`, so that those who come back come at a bounded rate.
async fn close_sockets(node: &Node) {
    let sessions = node.hub.sessions();
    let steps = (node.config.drain.time.as_millis() / DRAIN_STEP.as_millis()).max(1) as usize;
    for part in sessions.chunks(sessions.len().div_ceil(steps).max(1)) {
        for (at, session) in part.iter().enumerate() {
            // Evenly over the time until the next ones are told.
            let after = DRAIN_STEP * at as u32 / part.len() as u32;
            session.send_away(after);
        }
        tokio::time::sleep(DRAIN_STEP).await;
    }
    // Those that joined while the others were closed.
    node.hub.for_each(|session| session.send_away(DRAIN_STEP));
}

async fn open_store(config: &Config, metrics: &Metrics) -> anyhow::Result<Store> {
    let setting = match config.store {
        StoreConfig::Postgres(_) => "DATABASE_URL",
        StoreConfig::Sqlite(_) => "DATA_DIR",
    };
    let store = Store::connect(&config.store, metrics.clone()).await.context(setting)?;
    let store = store.with_recent(config.recent_cache_bytes);
    if config.redis.is_none() && !store.lock_single_node().await.context(setting)? {
        bail!(
            "{setting}: another node works on this store, and nodes without REDIS_URL \
             do not hear each other; set REDIS_URL on all of them"
        );
    }
    if config.migrate_on_start {
        store.migrate().await.context("the tables could not be laid")?;
    }
    if let StoreConfig::Postgres(config) = &config.store {
        check_ways(&store, config).await?;
    }
    match store.schema().await.context("the tables' version")? {
        Schema::Behind { missing } => bail!(
            "{setting}: the tables are {missing} migrations behind this release; \
             run `tidings migrate`, or set MIGRATE_ON_START=true"
        ),
        Schema::Ahead => tracing::warn!("the tables are of a later release, which is fine"),
        Schema::Current => {}
    }
    if !store.ping().await.context(setting)? && matches!(config.store, StoreConfig::Postgres(_)) {
        tracing::warn!(
            "no synchronous standby (synchronous_standby_names): what is acknowledged is lost if \
             this database's machine is"
        );
    }
    Ok(store)
}

/// A pool or a replica of other data would show one conversation's messages for another's.
async fn check_ways(store: &Store, config: &PostgresConfig) -> anyhow::Result<()> {
    let setting = "DATABASE_POOL_URL";
    if config.pooler.is_some() && !store.same_data(Way::Pool).await.context(setting)? {
        bail!("{setting}: it leads to other data than DATABASE_URL");
    }
    let setting = "DATABASE_REPLICA_URL";
    match store.same_data(Way::Replica).await {
        Ok(true) => {}
        Ok(false) => bail!("{setting}: it leads to other data than DATABASE_URL"),
        Err(error) if error.is_transient() => {
            tracing::warn!(%error, "the replica does not answer; the primary reads instead");
        }
        Err(error) => return Err(error).context(setting),
    }
    Ok(())
}

/// Connects and lays the tables; for `tidings migrate`.
pub async fn migrate(config: &Config) -> anyhow::Result<()> {
    let store = Store::connect(&config.store, Metrics::new().0).await.context("DATABASE_URL")?;
    store.migrate().await.context("the tables could not be laid")?;
    store.close().await;
    Ok(())
}

fn bind(addr: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let socket = match addr {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    // A node that is started again at once takes its own port back.
    socket.set_reuseaddr(true)?;
    socket.bind(addr).with_context(|| format!("{addr} cannot be listened on"))?;
    let listener = socket.listen(BACKLOG)?;
    let addr = listener.local_addr()?;
    Ok((listener, addr))
}

/// Ends, which stops the node, when another node has taken the store for itself: the lock is lost
/// with its connection, and taken anew if nobody else has it.
async fn keep_single_node_lock(store: Store, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOCK_CHECK) => {}
        }
        // A store that is away keeps everyone from writing.
        if let Ok(false) = store.lock_single_node().await {
            tracing::error!("another node works on this store; set REDIS_URL on both");
            return;
        }
    }
}

/// A lease that ran out is never revived: the node has a new id, and all its sessions are
/// registered again under it.
async fn re_register(node: Arc<Node>, stop: CancellationToken) {
    let mut leases = node.presence.lease_changes();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leases.changed() => if changed.is_err() {
                // A lease that never changes: there is nothing to do until the stop.
                return stop.cancelled().await;
            },
        }
        let node_id = *leases.borrow_and_update();
        let sessions = node.hub.sessions();
        let entries = sessions.iter().map(|session| (session.user_id, session.entry(node_id)));
        let entries = entries.collect();
        match node.presence.register_again(entries).await {
            Ok(registered) => {
                for (session, registered) in sessions.iter().zip(registered) {
                    if registered.younger {
                        session.queue.end(CloseCode::Replaced);
                    } else if registered.devices > node.config.presence.max_devices {
                        session.queue.end(CloseCode::TooManyDevices);
                    }
                }
                // Those that left meanwhile may have been taken out before they were put back.
                let ended = sessions.iter().filter(|session| session.queue.ended().is_some());
                let ended = ended.map(|s| (s.user_id, s.device_id.clone(), s.id)).collect();
                node.presence.remove_many(ended).await;
                tracing::warn!(%node_id, sessions = sessions.len(), "a new lease, registered anew");
            }
            Err(error) => tracing::error!(%error, "sessions were not registered anew"),
        }
    }
}
