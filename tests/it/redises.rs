//! Several Redis servers that one test has to itself, with TLS and with a user of few rights: a cluster,
//! or a master and its replica under sentinels.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tidings::config::RedisConfig;

use crate::harness::free_port;
use crate::own_redis::{shared, until};

/// Of the servers' user `tidings`, of the sentinels, and of the servers' default user.
pub const PASSWORD: &str = "geheim";
const LIMIT: Duration = Duration::from_secs(60);

/// The user as docs/redis.md tells operators, with a test's password.
pub fn acl(password: &str) -> String {
    let guide = include_str!("../../docs/redis.md");
    let line = guide.lines().find(|line| line.starts_with("user tidings on "));
    line.expect("the guide has a line for the ACL file")
        .replace(">PASSWORD", &format!(">{password}"))
}

pub struct Server {
    pub port: u16,
    process: Option<Child>,
    arguments: Vec<String>,
}

impl Server {
    fn start(folder: &Path, name: &str, options: &[String]) -> Self {
        let port = free_port();
        let own = folder.join(name);
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("redis.conf"), "").unwrap();
        let acl_file = own.join("users.acl");
        std::fs::write(
            &acl_file,
            format!("user default on >{PASSWORD} ~* &* +@all\n{}\n", acl(PASSWORD)),
        )
        .unwrap();
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let mut arguments = vec![path(&own.join("redis.conf"))];
        let set = [
            ("--bind", "127.0.0.1".to_owned()),
            ("--port", "0".into()),
            ("--tls-port", port.to_string()),
            ("--dir", path(&own)),
            ("--save", String::new()),
            ("--tls-cert-file", path(&folder.join("server.pem"))),
            ("--tls-key-file", path(&folder.join("server.key"))),
            ("--tls-ca-cert-file", path(&folder.join("ca.pem"))),
            ("--tls-auth-clients", "no".into()),
            ("--tls-replication", "yes".into()),
        ];
        arguments.extend(set.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        if !options.contains(&"--sentinel".to_owned()) {
            arguments.extend(["--aclfile".into(), path(&acl_file)]);
            arguments.extend(["--masterauth".into(), PASSWORD.into()]);
        }
        arguments.extend(options.iter().cloned());
        let mut server = Self { port, process: None, arguments };
        server.up();
        server
    }

    pub fn up(&mut self) {
        let process = Command::new("redis-server")
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.process = Some(process.expect("redis-server is installed"));
    }

    pub fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub struct Redises {
    pub servers: Vec<Server>,
    sentinels: Vec<Server>,
    folder: tempfile::TempDir,
}

impl Redises {
    /// One server. None in an embedded-only run, as of the others.
    pub async fn one() -> Option<Self> {
        shared()?;
        let folder = certified();
        let servers = vec![Server::start(folder.path(), "one", &[])];
        let redises = Self { servers, sentinels: Vec::new(), folder };
        redises.answer().await;
        Some(redises)
    }

    /// Three masters with a replica each.
    pub async fn cluster() -> Option<Self> {
        shared()?;
        let folder = certified();
        let servers = (0..6).map(|number| {
            let bus = free_port().to_string();
            let options = ["--cluster-enabled", "yes", "--tls-cluster", "yes"];
            let more = ["--cluster-node-timeout", "2000", "--cluster-port", &bus];
            Server::start(
                folder.path(),
                &number.to_string(),
                &words(&[&options[..], &more].concat()),
            )
        });
        let redises = Self { servers: servers.collect(), sentinels: Vec::new(), folder };
        redises.answer().await;
        let hosts = redises.servers.iter().map(|server| format!("127.0.0.1:{}", server.port));
        let hosts: Vec<String> = hosts.collect();
        let create = [&["--cluster".into(), "create".into()], &hosts[..]].concat();
        let create = [&create[..], &words(&["--cluster-replicas", "1", "--cluster-yes"])].concat();
        let create: Vec<&str> = create.iter().map(String::as_str).collect();
        let said = redises.cli(&redises.servers[0], &create);
        assert!(said.contains("All 16384 slots covered"), "{said}");
        until("the cluster is whole", LIMIT, async || {
            redises.servers.iter().all(|server| redises.is_whole(server)) && {
                let nodes = redises.cli(&redises.servers[5], &["cluster", "nodes"]);
                nodes.lines().filter(|line| line.contains("slave ")).count() == 3
            }
        })
        .await;
        Some(redises)
    }

    /// A master and its replica under three sentinels.
    pub async fn sentinels() -> Option<Self> {
        shared()?;
        let folder = certified();
        let main = Server::start(folder.path(), "main", &[]);
        let port = main.port.to_string();
        let replica = words(&["--replicaof", "127.0.0.1", &port]);
        let servers = vec![main, Server::start(folder.path(), "replica", &replica)];
        let sentinels = (0..3).map(|number| {
            let monitor = format!("sentinel monitor main 127.0.0.1 {port} 2");
            let options = [
                monitor.as_str(),
                "sentinel down-after-milliseconds main 1000",
                "sentinel failover-timeout main 4000",
                &format!("sentinel auth-pass main {PASSWORD}"),
                &format!("sentinel sentinel-pass {PASSWORD}"),
                &format!("requirepass {PASSWORD}"),
            ];
            let name = format!("sentinel-{number}");
            let mut sentinel = Server::start(folder.path(), &name, &words(&["--sentinel"]));
            sentinel.kill();
            std::fs::write(folder.path().join(name).join("redis.conf"), options.join("\n"))
                .unwrap();
            sentinel.up();
            sentinel
        });
        let sentinels = sentinels.collect();
        let redises = Self { servers, sentinels, folder };
        redises.answer().await;
        until("the sentinels know each other and the replica", LIMIT, async || {
            let sentinel = &redises.sentinels[0];
            redises.cli(sentinel, &["sentinel", "ckquorum", "main"]).starts_with("OK 3")
                && redises.cli(sentinel, &["sentinel", "replicas", "main"]).contains("\nok\n")
        })
        .await;
        Some(redises)
    }

    /// As the user of few rights.
    pub fn config(&self) -> RedisConfig {
        let list = |servers: &[Server]| {
            let hosts = servers.iter().map(|server| format!("127.0.0.1:{}", server.port));
            hosts.collect::<Vec<_>>().join(",")
        };
        let user = format!("tidings:{PASSWORD}");
        let url = match (self.servers.len(), self.sentinels.as_slice()) {
            (1, _) => format!("rediss://{user}@{}", list(&self.servers)),
            (_, []) => format!("rediss-cluster://{user}@{}", list(&self.servers[..2])),
            (_, sentinels) => format!(
                "rediss-sentinel://{user}@{}/main?sentinel_password={PASSWORD}",
                list(sentinels)
            ),
        };
        let ca_file = Some(self.folder.path().join("ca.pem"));
        RedisConfig { url, prefix: "tidings".into(), ca_file }
    }

    pub fn masters(&self) -> Vec<usize> {
        let is_master = |at: &usize| {
            let server = &self.servers[*at];
            server.process.is_some() && self.cli(server, &["role"]).starts_with("master")
        };
        (0..self.servers.len()).filter(is_master).collect()
    }

    /// Kills a master and waits until another has taken its place; which was killed.
    pub async fn lose_master(&mut self) -> usize {
        let masters = self.masters();
        self.servers[masters[0]].kill();
        masters[0]
    }

    pub async fn replaced(&self, masters: usize) {
        until("another master has taken over", LIMIT, async || self.masters().len() == masters)
            .await;
    }

    /// Of a cluster: slots of one master to another.
    pub fn move_slots(&self, slots: usize) {
        let masters = self.masters();
        let id = |at: usize| self.cli(&self.servers[masters[at]], &["cluster", "myid"]);
        let (from, to) = (id(0), id(1));
        let server = &self.servers[masters[0]];
        let at = format!("127.0.0.1:{}", server.port);
        let said = self.cli(
            server,
            &[
                "--cluster",
                "reshard",
                &at,
                "--cluster-from",
                from.trim(),
                "--cluster-to",
                to.trim(),
                "--cluster-slots",
                &slots.to_string(),
                "--cluster-yes",
            ],
        );
        assert!(!said.contains("[ERR]"), "{said}");
    }

    fn is_whole(&self, server: &Server) -> bool {
        self.cli(server, &["cluster", "info"]).contains("cluster_state:ok")
            && !self.cli(server, &["info", "replication"]).contains("master_link_status:down")
    }

    async fn answer(&self) {
        for server in self.servers.iter().chain(&self.sentinels) {
            until("redis-server answers", LIMIT, async || {
                self.cli(server, &["ping"]).starts_with("PONG")
            })
            .await;
        }
    }

    /// As the default user.
    pub fn cli(&self, server: &Server, arguments: &[&str]) -> String {
        let said = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &server.port.to_string(), "--tls", "--cacert"])
            .arg(self.folder.path().join("ca.pem"))
            .args(["--no-auth-warning", "-a", PASSWORD])
            .args(arguments)
            .output()
            .expect("redis-cli is installed");
        String::from_utf8(said.stdout).unwrap()
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A folder with an authority, and a certificate of its for 127.0.0.1.
fn certified() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let openssl = |arguments: &str| {
        let said = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(folder.path())
            .output()
            .expect("openssl is installed");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    };
    std::fs::write(folder.path().join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -days 2 -keyout ca.key -out ca.pem -subj /CN=authority"));
    openssl(&format!("req {key} -keyout server.key -out server.csr -subj /CN=redis"));
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
         -out server.pem -extfile names",
    );
    folder
}
