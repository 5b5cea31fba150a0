//! Postgres, Redis and Kafka of this checkout, as `scripts/services` runs them for us alone: we stop
//! and kill them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Postgres,
    Redis,
    Kafka,
}

impl Service {
    pub const ALL: [Self; 3] = [Self::Postgres, Self::Redis, Self::Kafka];

    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Kafka => "kafka",
        }
    }
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
    postgres_port: u16,
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
}

impl Services {
    pub fn new(args: Addresses) -> Self {
        Self { args, turn: Mutex::new(()) }
    }

    pub fn kafka_proxy_port(&self) -> u16 {
        self.args.kafka_proxy_port
    }

    /// Where a proxy reaches the service.
    pub fn addr(&self, service: Service) -> SocketAddr {
        let port = match service {
            Service::Postgres => self.args.postgres_port,
            Service::Redis => self.args.redis_port,
            Service::Kafka => self.args.kafka_door_port,
        };
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// `up`, `kill`, `pause`, `resume`.
    pub async fn call(&self, verb: &str, service: Service) -> anyhow::Result<()> {
        let _turn = self.turn.lock().await;
        let mut script = Command::new(&self.args.services);
        script.arg(verb).arg(service.name()).env("TIDINGS_STATE", &self.args.state);
        output(script).await.with_context(|| format!("services {verb} {}", service.name()))?;
        Ok(())
    }

    pub fn database_url(&self, at: SocketAddr, database: &str) -> String {
        format!("postgres://tidings:tidings@{at}/{database}")
    }

    /// One object a row.
    pub async fn sql(&self, database: &str, statement: &str) -> anyhow::Result<String> {
        let url = self.database_url(self.addr(Service::Postgres), database);
        let mut psql = Command::new("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement]).arg(url);
        output(psql).await.context("psql")
    }

    pub async fn redis(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut cli = Command::new("redis-cli");
        cli.args(["-h", "127.0.0.1", "-p", &self.args.redis_port.to_string()]).args(arguments);
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
        let file = self.args.state.join("services/redis/dump.rdb");
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

async fn output(mut command: Command) -> anyhow::Result<String> {
    command.kill_on_drop(true);
    let done = timeout(LIMIT, command.output()).await.context("it takes too long")??;
    if !done.status.success() {
        bail!("{}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8(done.stdout)?)
}
