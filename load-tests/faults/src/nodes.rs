//! Three nodes of the real binary, each with its own way to every part.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tidings_client::dice::Dice;
use tidings_client::rest::Rest;
use tidings_client::target::Target;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::proxy::Proxy;
use crate::services::{Service, Services};

/// From the start of the process to "ready".
const START_LIMIT: Duration = Duration::from_secs(120);
/// From SIGTERM to the end; more than what the node allows each of its stages.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(120);

pub const DRAIN_TIME: Duration = Duration::from_secs(2);

/// The settings of each node, besides addresses: the clocks run fast.
const SETTINGS: [(&str, &str); 13] = [
    ("AUTH_MODE", "dev"),
    ("LOG_FORMAT", "json"),
    ("LOG_LEVEL", "info"),
    ("DB_WRITE_LANES", "2"),
    ("DB_POOL_SIZE", "6"),
    ("KAFKA_TOPIC_PARTITIONS", "3"),
    ("SETTLE_GRACE", "1s"),
    ("OFFLINE_AFTER", "3s"),
    ("NODE_LEASE", "1500ms"),
    ("HEARTBEAT_INTERVAL", "2s"),
    ("HEARTBEAT_TIMEOUT", "2s"),
    ("DRAIN_GRACE", "200ms"),
    ("WS_CLIENT_BUFFER_BYTES", "128KiB"),
];

pub struct Node {
    pub name: String,
    /// What clients connect to.
    pub door: Proxy,
    /// Before the node's parts, in the order of [`Service::ALL`]; Kafka's is shared by all nodes.
    postgres: Proxy,
    redis: Proxy,
    addr: SocketAddr,
    settings: Vec<(String, String)>,
    binary: PathBuf,
    /// Of the release before, in a run with two.
    older: Option<PathBuf>,
    runs_older: AtomicBool,
    log: PathBuf,
    process: Mutex<Option<Child>>,
}

/// What all nodes of a run have in common.
pub struct Common<'a> {
    pub binary: PathBuf,
    /// The release that nodes start with, if it is another.
    pub older: Option<PathBuf>,
    pub folder: PathBuf,
    pub services: &'a Services,
    /// Names the database; and, with dots and dashes, what else is the run's own.
    pub run: &'a str,
    pub topic: &'a str,
    pub kafka: SocketAddr,
    pub extra: &'a [(&'a str, &'a str)],
}

impl Node {
    pub async fn prepare(
        common: &Common<'_>,
        number: usize,
        dice: &mut Dice,
    ) -> anyhow::Result<Self> {
        let services = common.services;
        let postgres = Proxy::start(free_port(dice)?, services.addr(Service::Postgres)?).await?;
        let redis = Proxy::start(free_port(dice)?, services.addr(Service::Redis)?).await?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(dice)?));
        let door = Proxy::start(free_port(dice)?, addr).await?;
        let name = format!("node-{number}");
        let own = [
            ("SERVER_PORT", addr.port().to_string()),
            ("DRAIN_TIME", format!("{}ms", DRAIN_TIME.as_millis())),
            ("DATA_DIR", common.folder.join(&name).display().to_string()),
            ("DATABASE_URL", services.database_url(postgres.addr(), common.run)),
            ("REDIS_URL", format!("redis://{}", redis.addr())),
            ("REDIS_PREFIX", common.run.to_owned()),
            ("KAFKA_BROKERS", common.kafka.to_string()),
            ("KAFKA_OFFLINE_TOPIC", common.topic.to_owned()),
        ];
        let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let mut settings: Vec<_> = SETTINGS.into_iter().map(pair).collect();
        settings.extend(own.map(|(name, value)| (name.to_owned(), value)));
        settings.extend(common.extra.iter().copied().map(pair));
        Ok(Self {
            log: common.folder.join(format!("{name}.log")),
            binary: common.binary.clone(),
            runs_older: AtomicBool::new(common.older.is_some()),
            older: common.older.clone(),
            process: Mutex::new(None),
            name,
            door,
            postgres,
            redis,
            addr,
            settings,
        })
    }

    /// None: the one that all nodes share.
    pub fn way_to(&self, service: Service) -> Option<&Proxy> {
        match service {
            Service::Postgres => Some(&self.postgres),
            Service::Redis => Some(&self.redis),
            Service::Kafka => None,
        }
    }

    pub fn log(&self) -> &PathBuf {
        &self.log
    }

    fn command(&self) -> anyhow::Result<Command> {
        let log: File = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let older = self.older.as_ref().filter(|_| self.runs_older.load(Ordering::Relaxed));
        let mut command = Command::new(older.unwrap_or(&self.binary));
        command
            .env_clear()
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        Ok(command)
    }

    /// What is started from now on is of the other release.
    pub fn change_release(&self) {
        self.runs_older.fetch_xor(true, Ordering::Relaxed);
    }

    pub async fn migrate(&self) -> anyhow::Result<()> {
        let status = self.command()?.arg("migrate").status().await?;
        ensure!(status.success(), "tidings migrate: {status}, see {}", self.log.display());
        Ok(())
    }

    /// What the product itself says of the stores.
    pub async fn verify(&self) -> anyhow::Result<()> {
        let found = self.command()?.arg("verify").stdout(Stdio::piped()).output().await?;
        let said = String::from_utf8_lossy(&found.stdout);
        ensure!(found.status.success(), "tidings verify: {}", said.trim());
        Ok(())
    }

    /// Starts it if it does not run, and waits until it serves.
    pub async fn start(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        let mut process = self.process.lock().await;
        let mut begun = 0;
        loop {
            if process.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None))) {
                if self.serves(begun)? && self.is_ready().await {
                    return Ok(());
                }
            } else {
                // A node that finds a part of it away ends; whoever runs nodes starts it again.
                begun = std::fs::metadata(&self.log).map_or(0, |log| log.len());
                *process = Some(self.command()?.spawn().context("the binary")?);
            }
            if Instant::now() > deadline {
                bail!("{} is not ready in time, see {}", self.name, self.log.display());
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// It has said where it listens: another program may have taken its port while it was down.
    fn serves(&self, begun: u64) -> anyhow::Result<bool> {
        let log = std::fs::read(&self.log)?;
        let said = String::from_utf8_lossy(log.get(begun as usize..).unwrap_or_default());
        Ok(said.contains(&format!(" at http://{}", self.addr)))
    }

    async fn is_ready(&self) -> bool {
        let ready = async {
            let mut rest = Rest::connect(&self.target()).await?;
            let (status, _) = rest.call(hyper::Method::GET, "/ready", Uuid::nil(), None).await?;
            anyhow::Ok(status.is_success())
        };
        matches!(timeout(Duration::from_secs(2), ready).await, Ok(Ok(true)))
    }

    /// The node itself, past its door.
    pub fn target(&self) -> Target {
        format!("http://{}", self.addr).parse().expect("a loopback address")
    }

    pub fn door_target(&self) -> Target {
        format!("http://{}", self.door.addr()).parse().expect("a loopback address")
    }

    pub async fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let process = self.process.lock().await;
        let pid = process.as_ref().and_then(Child::id).context("the node does not run")?;
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("its pid")?;
        kill_process(pid, signal).with_context(|| format!("{signal:?} to {}", self.name))
    }

    /// Waits for its end.
    pub async fn ended(&self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let mut process = self.process.lock().await;
        let child = process.as_mut().context("the node does not run")?;
        let status = timeout(limit, child.wait()).await;
        let status = status.with_context(|| format!("{} does not end", self.name))??;
        *process = None;
        Ok(status)
    }

    pub async fn kill(&self) -> anyhow::Result<()> {
        self.signal(Signal::KILL).await?;
        self.ended(DRAIN_LIMIT).await?;
        Ok(())
    }

    /// As an operator stops it: it hands its sockets over, and ends with 0.
    pub async fn drain(&self) -> anyhow::Result<()> {
        self.signal(Signal::TERM).await?;
        let status = self.ended(DRAIN_LIMIT).await?;
        ensure!(status.success(), "{} was drained and ended with {status}", self.name);
        Ok(())
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let text = http_get(self.addr, "/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("no metric {name}"))?.trim().parse()?)
    }
}

/// /metrics is no JSON.
async fn http_get(addr: SocketAddr, path: &str) -> anyhow::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let get = async {
        let mut stream = tokio::net::TcpStream::connect(addr).await?;
        let head = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        anyhow::Ok(text)
    };
    timeout(Duration::from_secs(5), get).await.context("no answer")?
}

/// Below the range from which the kernel takes the ports of outgoing connections.
pub fn free_port(dice: &mut Dice) -> anyhow::Result<u16> {
    for _ in 0..200 {
        let port = dice.between(12_000, 19_999) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between 12000 and 19999")
}
