//! Postgres, Redis and Kafka of this checkout, as `scripts/services` runs them for us alone: we stop
//! and kill them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::redises::Topology;

const LIMIT: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Postgres,
    Redis,
    Kafka,
}

impl Service {
    pub const ALL: [Self; 3] = [Self::Postgres, Self::Redis, Self::Kafka];
}

#[derive(clap::Args)]
pub struct Addresses {
    /// The script that starts and stops them.
    #[arg(long)]
    services: PathBuf,
    /// Where they keep their data; the script knows it as TIDINGS_STATE.
    #[arg(long)]
    state: PathBuf,
    #[arg(long)]
    redis_port: u16,
    /// Of the listener that leads clients back to itself.
    #[arg(long)]
    kafka_port: u16,
    /// Of the listener that leads clients to the proxy.
    #[arg(long)]
    kafka_door_port: u16,
    /// Where the proxy for Kafka has to listen.
    #[arg(long)]
    pub kafka_proxy_port: u16,
}

pub struct Services {
    args: Addresses,
    /// The script takes one call at a time.
    turn: Mutex<()>,
    /// The one of the pair that is the primary now.
    pub(crate) standby_leads: AtomicBool,
    pub topology: Topology,
}

impl Services {
    pub fn new(args: Addresses, topology: Topology) -> Self {
        Self { args, turn: Mutex::new(()), standby_leads: AtomicBool::new(false), topology }
    }

    pub fn kafka_proxy_port(&self) -> u16 {
        self.args.kafka_proxy_port
    }

    /// As the script calls it; of Postgres, whichever is the primary.
    pub fn name(&self, service: Service) -> &'static str {
        match service {
            Service::Postgres => self.primary(),
            Service::Redis => self.topology.name(),
            Service::Kafka => "kafka",
        }
    }

    /// Where a proxy reaches the service.
    pub fn addr(&self, service: Service) -> anyhow::Result<SocketAddr> {
        let port = match service {
            Service::Postgres => self.port(self.primary())?,
            Service::Redis => self.args.redis_port,
            Service::Kafka => self.args.kafka_door_port,
        };
        Ok((Ipv4Addr::LOCALHOST, port).into())
    }

    pub fn state(&self, name: &str) -> PathBuf {
        self.args.state.join("services").join(name)
    }

    /// Of a server that is made anew it is another.
    pub fn port(&self, name: &str) -> anyhow::Result<u16> {
        let file = self.state(name).join("port");
        let port = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Ok(port.trim().parse()?)
    }

    /// `up`, `kill`, `pause`, `resume`.
    pub async fn call(&self, verb: &str, service: Service) -> anyhow::Result<()> {
        self.script(&[verb, self.name(service)]).await
    }

    pub async fn script(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let _turn = self.turn.lock().await;
        let mut script = Command::new(&self.args.services);
        script.args(arguments).env("TIDINGS_STATE", &self.args.state);
        output(script).await.with_context(|| format!("services {}", arguments.join(" ")))?;
        Ok(())
    }

    pub fn database_url(&self, at: SocketAddr, database: &str) -> String {
        format!("postgres://tidings:tidings@{at}/{database}")
    }

    /// One object a row.
    pub async fn sql(&self, database: &str, statement: &str) -> anyhow::Result<String> {
        psql(self.database_url(self.addr(Service::Postgres)?, database), statement).await
    }

    /// One server, as the script calls it.
    pub async fn redis_at(&self, name: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let port = self.port(name)?.to_string();
        self.redis_cli(&[&["-h", "127.0.0.1", "-p", &port], arguments].concat()).await
    }

    pub async fn redis_cli(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut cli = Command::new("redis-cli");
        cli.args(arguments);
        output(cli).await.context("redis-cli")
    }

    /// All records of a topic, one object a line; nothing of a topic that is not there.
    pub async fn records(&self, topic: &str) -> anyhow::Result<String> {
        let broker = format!("127.0.0.1:{}", self.args.kafka_port);
        let mut kcat = Command::new("kcat");
        kcat.args(["-C", "-q", "-J", "-e", "-o", "beginning", "-b", &broker, "-t", topic]);
        output(kcat).await.context("kcat")
    }

    /// With what it holds if `saved`, else with nothing.
    pub async fn save_redis(&self, saved: bool) -> anyhow::Result<()> {
        let file = self.state("redis").join("dump.rdb");
        if saved {
            let said = self.redis(&["save"]).await?;
            ensure!(said.trim() == "OK", "redis says {said} to SAVE");
            ensure!(file.exists(), "redis saved, but not to {}", file.display());
        } else if file.exists() {
            std::fs::remove_file(&file)?;
        }
        Ok(())
    }
}

pub async fn psql(url: String, statement: &str) -> anyhow::Result<String> {
    let mut psql = Command::new("psql");
    psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement]).arg(url);
    output(psql).await.context("psql")
}

async fn output(mut command: Command) -> anyhow::Result<String> {
    command.kill_on_drop(true);
    let done = timeout(LIMIT, command.output()).await.context("it takes too long")??;
    if !done.status.success() {
        bail!("{}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8(done.stdout)?)
}
