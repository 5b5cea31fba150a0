//! A Redis that one test has to itself, to stop, pause and restart; and the shared one's address.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tidings::config::RedisConfig;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::harness::free_port;

/// The shared Redis with names of this test's own; None in an embedded-only run.
///
/// A test that could not run must never look like one that passed: without the address it fails,
/// unless the run was asked to be embedded only.
#[expect(clippy::disallowed_methods, reason = "tests have no config to read the environment")]
pub fn shared() -> Option<RedisConfig> {
    if let Ok(url) = std::env::var("TEST_REDIS_URL") {
        return Some(named(url));
    }
    if std::env::var("TIDINGS_TEST_EMBEDDED_ONLY").is_ok_and(|value| value == "1") {
        println!("did not run: TEST_REDIS_URL is not set, and this run is embedded only");
        return None;
    }
    panic!("TEST_REDIS_URL is not set: run scripts/test, which starts the services");
}

/// Under names of this test's own.
pub fn named(url: String) -> RedisConfig {
    let prefix = format!("test-{}", Uuid::new_v4().simple());
    RedisConfig { url, prefix, ca_file: None }
}

/// Waits for a condition that other tasks bring about.
pub async fn until(what: &str, within: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

pub struct OwnRedis {
    port: u16,
    folder: tempfile::TempDir,
    server: Child,
}

impl OwnRedis {
    /// None in an embedded-only run.
    pub async fn start() -> Option<Self> {
        shared()?;
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let server = spawn(port, &folder);
        let redis = Self { port, folder, server };
        redis.ready().await;
        Some(redis)
    }

    pub fn config(&self) -> RedisConfig {
        let url = format!("redis://127.0.0.1:{}", self.port);
        RedisConfig { url, prefix: "test".into(), ca_file: None }
    }

    /// Sends one command, from a connection of its own.
    pub async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_command(words).await.unwrap()
    }

    async fn try_command<T: redis::FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let client = redis::Client::open(self.config().url)?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await
    }

    /// The connections stay open, nobody answers.
    pub fn pause(&self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
    }

    pub fn resume(&self) {
        kill_process(self.pid(), Signal::CONT).unwrap();
    }

    /// As in a crash; what was not saved is gone.
    pub fn kill(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    pub async fn start_again(&mut self) {
        self.server = spawn(self.port, &self.folder);
        self.ready().await;
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.server)
    }

    async fn ready(&self) {
        until("redis-server answers", Duration::from_secs(10), async || {
            self.try_command::<String>(&["PING"]).await.is_ok()
        })
        .await;
    }
}

impl Drop for OwnRedis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn spawn(port: u16, folder: &tempfile::TempDir) -> Child {
    Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--appendonly", "no"])
        .args(["--save", "", "--dir"])
        .arg(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed")
}
