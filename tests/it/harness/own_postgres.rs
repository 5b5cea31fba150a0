//! A Postgres, a standby of it, and a pooler that one test has to itself.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tempfile::TempDir;

use super::certs::Certificate;
use super::{free_port, services, until};

pub const PASSWORD: &str = "hunter2";

/// Nobody comes in without a password, nor without TLS if it has a certificate.
pub struct OwnPostgres {
    pub port: u16,
    data: Folder,
    server: Child,
}

impl OwnPostgres {
    /// None in an embedded-only run.
    pub async fn start(certificate: Option<&Certificate>) -> Option<Self> {
        services::postgres()?;
        let folder = Folder::new();
        let password = folder.path().join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        let data = folder.path().join("data");
        let mut initdb = command(&bin("initdb"));
        initdb.args(["-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8"]);
        run(initdb.arg("--no-sync").arg("--pwfile").arg(&password).arg("-D").arg(&data));
        let kind = if certificate.is_some() { "hostssl" } else { "host" };
        let rules = format!(
            "{kind} all all 127.0.0.1/32 scram-sha-256\n\
             {kind} replication all 127.0.0.1/32 scram-sha-256\n"
        );
        std::fs::write(data.join("pg_hba.conf"), rules).unwrap();
        if let Some(certificate) = certificate {
            for (from, to) in [(&certificate.cert, "server.crt"), (&certificate.key, "server.key")]
            {
                std::fs::copy(from, data.join(to)).unwrap();
                std::fs::set_permissions(data.join(to), Permissions::from_mode(0o600)).unwrap();
            }
            let settings = data.join("postgresql.auto.conf");
            std::fs::write(&settings, "ssl = on\n").unwrap();
        }
        folder.give_away();
        Some(Self::serve(folder).await)
    }

    /// A streaming replica of this one, which has all that was committed before.
    pub async fn standby(&self) -> Self {
        let folder = Folder::new();
        let primary = format!(
            "host=127.0.0.1 port={} user=postgres password={PASSWORD} sslmode=prefer",
            self.port
        );
        let mut copy = command(&bin("pg_basebackup"));
        copy.args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-d", &primary, "-D"]);
        run(copy.arg(folder.path().join("data")));
        Self::serve(folder).await
    }

    async fn serve(data: Folder) -> Self {
        data.give_away();
        let port = free_port();
        let server = spawn(&data, port);
        let postgres = Self { port, data, server };
        postgres.answers().await;
        postgres
    }

    async fn answers(&self) {
        until("Postgres answers", async || self.try_sql("select 1").await.ok()).await;
    }

    /// As its superuser, with whatever TLS it has.
    pub fn options(&self) -> PgConnectOptions {
        let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(self.port);
        options.username("postgres").password(PASSWORD).database("postgres")
    }

    /// The address of its database `postgres` for a user with the usual password.
    pub fn url(&self, user: &str) -> String {
        format!("postgres://{user}:{PASSWORD}@127.0.0.1:{}/postgres", self.port)
    }

    pub async fn sql(&self, statement: &str) {
        self.try_sql(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    async fn try_sql(&self, statement: &str) -> sqlx::Result<()> {
        let mut connection = self.options().connect().await?;
        let statement = AssertSqlSafe(statement.to_owned());
        let done = sqlx::raw_sql(statement).execute(&mut connection).await;
        connection.close().await?;
        done.map(drop)
    }

    /// One value.
    pub async fn ask(&self, question: &str) -> String {
        let mut connection = self.options().connect().await.unwrap();
        let question = AssertSqlSafe(format!("select ({question})::text"));
        let answer: String = sqlx::query_scalar(question).fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        answer
    }

    /// Until this standby has all that `primary` has now.
    pub async fn catch_up(&self, primary: &Self) {
        let end = primary.ask("pg_current_wal_insert_lsn()").await;
        let there = format!("pg_last_wal_replay_lsn() >= '{end}'");
        until("the standby has replayed", async || {
            (self.ask(&there).await == "true").then_some(())
        })
        .await;
    }

    /// The connections stay open, nobody answers.
    pub fn pause(&self) {
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::STOP);
        }
    }

    pub fn resume(&self) {
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::CONT);
        }
    }

    /// The server and its children.
    fn processes(&self) -> Vec<Pid> {
        let pid = self.server.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        let all = std::iter::once(pid as i32).chain(children);
        all.filter_map(Pid::from_raw).collect()
    }

    pub fn stop(&mut self) {
        // At once, and in order.
        let _ = kill_process(Pid::from_child(&self.server), Signal::QUIT);
        self.server.wait().unwrap();
    }

    pub async fn start_again(&mut self) {
        self.server = spawn(&self.data, self.port);
        self.answers().await;
    }
}

impl Drop for OwnPostgres {
    fn drop(&mut self) {
        // A test that failed may have stopped it.
        if let Ok(None) = self.server.try_wait() {
            self.resume();
            self.stop();
        }
    }
}

fn spawn(data: &Folder, port: u16) -> Child {
    let mut server = command(&bin("postgres"));
    server.arg("-D").arg(data.path().join("data")).args(["-p", &port.to_string()]);
    // What a test commits need not outlive the machine.
    for setting in [
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        "max_connections=60",
        "shared_buffers=16MB",
        "fsync=off",
    ] {
        server.args(["-c", setting]);
    }
    server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("Postgres is installed")
}

/// A pgbouncer in transaction mode before the shared Postgres, with fewer connections to it than it
/// has clients.
pub struct Pooler {
    port: u16,
    _folder: Folder,
    server: Child,
}

impl Pooler {
    /// None in an embedded-only run.
    pub async fn start() -> Option<Self> {
        let postgres: PgConnectOptions = services::postgres()?.parse().unwrap();
        let folder = Folder::new();
        let port = free_port();
        let users = folder.path().join("users.txt");
        // The shared one's user and password, see scripts/services.
        std::fs::write(&users, "\"tidings\" \"tidings\"\n").unwrap();
        let settings = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\n\
             unix_socket_dir=\nauth_type=scram-sha-256\nauth_file={}\npool_mode=transaction\n\
             default_pool_size=2\nmax_client_conn=200\n",
            postgres.get_host(),
            postgres.get_port(),
            users.display(),
        );
        let file = folder.path().join("pgbouncer.ini");
        std::fs::write(&file, settings).unwrap();
        folder.give_away();
        let mut server = command(Path::new("pgbouncer"));
        let server = server.arg("-q").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let server = server.spawn().expect("pgbouncer is installed");
        let pooler = Self { port, _folder: folder, server };
        until("pgbouncer listens", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        Some(pooler)
    }

    /// Of a database of the shared Postgres.
    pub fn options(&self, database: &str) -> PgConnectOptions {
        self.url(database).parse().unwrap()
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://tidings:tidings@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Of the user that Postgres runs as: it refuses to be root, and so does pgbouncer.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(TempDir::new().unwrap());
        folder.give_away();
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// What was put in since, too.
    fn give_away(&self) {
        if geteuid().is_root() {
            run(Command::new("chown").args(["-R", "postgres:"]).arg(self.path()));
        }
    }
}

fn command(program: &Path) -> Command {
    if !geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "env", "HOME=/tmp"]);
    command.arg(program);
    command
}

/// Of the newest version that is installed.
fn bin(program: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("Postgres is installed");
    let versions = versions.map(|version| version.unwrap().path());
    let version = versions
        .max_by_key(|path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()));
    version.unwrap().join("bin").join(program)
}

fn run(command: &mut Command) {
    let done = command.stdin(Stdio::null()).output().expect("it is installed");
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}
