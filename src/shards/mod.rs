//! Where Redis is: one server, the master that sentinels name, or the masters of a cluster.
//!
//! [`Shards`] knows which master holds what, and keeps knowing it: sentinels, or the cluster's nodes,
//! are asked every second and whenever something hints at a change. All of them are asked, and the
//! highest epoch is believed, which is their own rule; so a node that was cut off convinces nobody
//! once its successor has answered.
//! Who works with Redis (`bus`, `presence`, tickets) reaches it through here, and learns of changes.

mod layout;
mod work;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ErrorKind, ProtocolVersion, RedisError, RedisResult, ServerErrorKind,
};
use thiserror::Error;
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

pub use self::layout::Layout;
use self::layout::{Claim, read_nodes};
pub use self::work::{Call, Failed, Failure, Pools, STEP_TIMEOUT, Script, Work};
use crate::config::{Addr, Kind, Place, RedisConfig};
use crate::telemetry::Metrics;

/// Between two looks without a reason.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two looks with a reason.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// For one sentinel or node to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Error)]
pub enum ShardsError {
    /// Retry later.
    #[error("{0}")]
    Unavailable(String),
    /// The settings are wrong: tell the operator.
    #[error("{0}")]
    Rejected(String),
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Shards(Arc<Inner>);

struct Inner {
    config: RedisConfig,
    place: Place,
    ca: Option<Vec<u8>>,
    layout: watch::Sender<Arc<Layout>>,
    /// Something hints at a change.
    hint: Notify,
    /// Looks that came to their end.
    looks: watch::Sender<u64>,
    advisers: Mutex<Advisers>,
    metrics: Metrics,
}

/// Who is asked: sentinels, or nodes of the cluster.
#[derive(Default)]
struct Advisers {
    /// Besides those that the setting names.
    known: HashSet<Addr>,
    connections: HashMap<Addr, MultiplexedConnection>,
}

/// What one of them says.
enum Advice {
    /// With its epoch.
    Master(u64, Addr),
    /// A node's claim if it is a master, and the nodes it knows.
    Nodes(Option<Claim>, Vec<Addr>),
}

impl Shards {
    /// Sentinels, or one of the cluster's nodes, have to answer once; one server is not asked.
    pub async fn connect(config: &RedisConfig, metrics: Metrics) -> Result<Self, ShardsError> {
        let place = Place::parse(&config.url)
            .map_err(|expected| ShardsError::Rejected(format!("expected {expected}")))?;
        let ca = config.ca_file.as_ref().map(std::fs::read).transpose();
        let ca = ca.map_err(|error| ShardsError::Rejected(format!("REDIS_CA_FILE: {error}")))?;
        // Until the first look is done, which follows.
        let unknown = match place.kind {
            Kind::One | Kind::Sentinel { .. } => Layout::one(place.hosts[0].clone()),
            Kind::Cluster => Layout::of(&[], None),
        };
        let this = Self(Arc::new(Inner {
            config: config.clone(),
            ca,
            layout: watch::Sender::new(Arc::new(unknown)),
            hint: Notify::new(),
            looks: watch::Sender::new(0),
            advisers: Mutex::default(),
            metrics,
            place,
        }));
        // Who is named tells only who else there is, and may himself hold nothing.
        if this.is_cluster() {
            let _ = this.look(true).await;
        }
        this.look(true).await.map_err(of_connect)?;
        Ok(this)
    }

    pub fn config(&self) -> &RedisConfig {
        &self.0.config
    }

    pub fn is_cluster(&self) -> bool {
        self.0.place.is_cluster()
    }

    pub fn layout(&self) -> Arc<Layout> {
        self.0.layout.borrow().clone()
    }

    pub fn changes(&self) -> watch::Receiver<Arc<Layout>> {
        self.0.layout.subscribe()
    }

    /// Something was lost or refused: look soon whether the layout changed.
    pub fn hint(&self) {
        self.0.hint.notify_one();
    }

    /// As above, and waits until it was looked, for a moment at most: one who does not answer holds a
    /// look up for longer, and the caller has others to serve.
    pub async fn look_again(&self) {
        let mut looks = self.0.looks.subscribe();
        let seen = *looks.borrow_and_update();
        self.hint();
        // One may be under way that began before.
        let looked = looks.wait_for(|looks| *looks >= seen + 2);
        let _ = timeout(2 * LOOK_PAUSE, looked).await;
    }

    /// Keeps the layout fresh until `stop`.
    pub async fn watch(self, stop: CancellationToken) {
        if let Kind::One = self.0.place.kind {
            return stop.cancelled().await;
        }
        let watching = async {
            loop {
                let _ = timeout(LOOK_EVERY, self.0.hint.notified()).await;
                if let Err(error) = self.look(false).await {
                    debug!(%error, "nobody tells where Redis is");
                }
                self.0.looks.send_modify(|looks| *looks += 1);
                sleep(LOOK_PAUSE).await;
            }
        };
        stop.run_until_cancelled(watching).await;
    }

    async fn look(&self, first: bool) -> RedisResult<()> {
        if let Kind::One = self.0.place.kind {
            return Ok(());
        }
        let advice = self.ask_all().await?;
        let before = self.layout();
        let masters = advice.iter().filter_map(|advice| match advice {
            Advice::Master(epoch, addr) => Some((epoch, addr)),
            Advice::Nodes(..) => None,
        });
        let found = match masters.max_by_key(|(epoch, _)| **epoch) {
            Some((_, addr)) => Layout::one(addr.clone()),
            None => {
                let claims: Vec<Claim> = advice.into_iter().filter_map(Advice::claim).collect();
                Layout::of(&claims, Some(&before))
            }
        };
        if found.masters().is_empty() {
            let kind = ErrorKind::Server(ServerErrorKind::ClusterDown);
            return Err((kind, "nobody holds a slot").into());
        }
        if *before != found {
            if !first {
                info!(masters = ?found.masters(), "Redis has changed its layout");
            }
            self.0.layout.send_replace(Arc::new(found));
        }
        Ok(())
    }

    /// An error if nobody answers.
    async fn ask_all(&self) -> RedisResult<Vec<Advice>> {
        let mut advisers = self.0.advisers.lock().await;
        let Advisers { known, connections } = &mut *advisers;
        let all: HashSet<Addr> = known.iter().chain(&self.0.place.hosts).cloned().collect();
        connections.retain(|addr, _| all.contains(addr));
        let asked = all.into_iter().map(|addr| {
            let connection = connections.remove(&addr);
            async move {
                let answer = timeout(ANSWER_TIMEOUT, self.ask(&addr, connection)).await;
                let late = |_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
                (addr, answer.unwrap_or_else(late))
            }
        });
        let (mut found, mut failed) = (Vec::new(), None);
        let mut seen = HashSet::new();
        for (addr, answer) in join_all(asked).await {
            match answer {
                Ok((connection, advice)) => {
                    connections.insert(addr, connection);
                    if let Advice::Nodes(_, nodes) = &advice {
                        seen.extend(nodes.iter().cloned());
                    }
                    found.push(advice);
                }
                Err(error) => {
                    debug!(?addr, %error, "asked in vain where Redis is");
                    failed = Some(error);
                }
            }
        }
        // As long as nobody answers, those known before may come back.
        if !found.is_empty() {
            *known = seen;
            return Ok(found);
        }
        Err(failed.expect("the setting names at least one"))
    }

    async fn ask(
        &self,
        addr: &Addr,
        connection: Option<MultiplexedConnection>,
    ) -> RedisResult<(MultiplexedConnection, Advice)> {
        let Inner { place, ca, .. } = &*self.0;
        let mut connection = match connection {
            Some(connection) => connection,
            None => {
                let client = place.adviser(addr, ca.as_deref())?;
                let timeouts = timeouts(ANSWER_TIMEOUT);
                client.get_multiplexed_async_connection_with_config(&timeouts).await?
            }
        };
        let advice = match &place.kind {
            Kind::Sentinel { service, .. } => {
                let mut ask = redis::cmd("SENTINEL");
                ask.arg("MASTER").arg(service);
                let said: HashMap<String, String> = ask.query_async(&mut connection).await?;
                let number = |name| said.get(name).and_then(|text| text.parse().ok());
                let host = said.get("ip").map(|ip| ip.as_str().into());
                let addr = host.zip(said.get("port").and_then(|port| port.parse().ok()));
                let (host, port) = addr.ok_or((ErrorKind::Parse, "no address of a master"))?;
                Advice::Master(number("config-epoch").unwrap_or(0), Addr { host, port })
            }
            Kind::One | Kind::Cluster => {
                let mut ask = redis::cmd("CLUSTER");
                let text: String = ask.arg("NODES").query_async(&mut connection).await?;
                let (claim, nodes) = read_nodes(&text, addr, place.tls);
                Advice::Nodes(claim, nodes)
            }
        };
        Ok((connection, advice))
    }

    /// A connection to a master. Fails, and looks again where the master is, if it is none.
    pub async fn open(
        &self,
        addr: &Addr,
        protocol: ProtocolVersion,
        config: AsyncConnectionConfig,
    ) -> RedisResult<MultiplexedConnection> {
        let opened = async {
            let client = self.0.place.server(addr, protocol, self.0.ca.as_deref())?;
            let mut connection =
                client.get_multiplexed_async_connection_with_config(&config).await?;
            Run::of(&mut connection).await?;
            RedisResult::Ok(connection)
        };
        opened.await.inspect_err(|_| self.hint())
    }
}

impl Advice {
    fn claim(self) -> Option<Claim> {
        match self {
            Self::Nodes(claim, _) => claim,
            Self::Master(..) => None,
        }
    }
}

fn timeouts(each: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(each)).set_response_timeout(Some(each))
}

/// A life of a server's process: another one may have lost what the last one knew.
pub struct Run(pub Box<str>);

impl Run {
    /// An error if the server is a replica, whom nobody may take for the master: sentinels may have
    /// told of him too early, or he was the master until now.
    async fn of(connection: &mut MultiplexedConnection) -> RedisResult<Self> {
        let mut info = redis::cmd("INFO");
        info.arg("server").arg("replication");
        let info: String = info.query_async(connection).await?;
        let value = |name| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if value("role:") != Some("master") {
            let kind = ErrorKind::Server(ServerErrorKind::ReadOnly);
            return Err((kind, "the server is not a master").into());
        }
        let run = value("run_id:").ok_or((ErrorKind::Parse, "INFO names no run_id"))?;
        Ok(Self(run.into()))
    }
}

/// The error's text names no address and no password.
pub fn of_connect(error: RedisError) -> ShardsError {
    use ErrorKind as K;
    match error.kind() {
        K::InvalidClientConfig | K::AuthenticationFailed | K::Server(ServerErrorKind::NoPerm) => {
            ShardsError::Rejected(error.to_string())
        }
        _ if matches!(error.code(), Some("WRONGPASS" | "NOAUTH")) => {
            ShardsError::Rejected(error.to_string())
        }
        _ => ShardsError::Unavailable(error.to_string()),
    }
}
