//! `REDIS_URL`: one server, the master that sentinels name, or a cluster.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use redis::io::tcp::TcpSettings;
use redis::{
    Client, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo, RedisResult,
    TlsCertificates,
};

use crate::ids::UserId;

const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

const ONE: &str = "redis://user:password@host:port/db, or rediss:// for TLS";
const SENTINEL: &str = "redis-sentinel://user:password@host:port,host:port/service/db with the \
                        sentinels' addresses, or rediss-sentinel:// for TLS; \
                        ?sentinel_user= and &sentinel_password= are the sentinels' own";
const CLUSTER: &str = "redis-cluster://user:password@host:port,host:port with some of the \
                       cluster's nodes and no database, or rediss-cluster:// for TLS";

#[derive(Clone)]
pub struct RedisConfig {
    /// One of the forms that [`Place::parse`] knows; may hold passwords.
    pub url: String,
    /// Begins the name of every channel and key.
    pub prefix: String,
    /// Certificates (PEM) of the authorities that are believed with TLS; None: the system's.
    pub ca_file: Option<PathBuf>,
}

impl RedisConfig {
    /// How many parts the users are divided into.
    pub const PARTITIONS: usize = 128;

    pub fn partition(user: UserId) -> usize {
        (user.hash() % Self::PARTITIONS as u64) as usize
    }

    /// `<prefix>:{pNN}:<kind>:<user>`. The hash tag keeps all that belongs to a user in one slot,
    /// and the number of tags small, so that on a Cluster one command subscribes to many channels.
    pub fn user_key(&self, kind: &str, user: UserId) -> String {
        let partition = Self::partition(user);
        format!("{}:{{p{partition:02}}}:{kind}:{user}", self.prefix)
    }
}

impl fmt::Debug for RedisConfig {
    /// Without users and passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = Place::parse(&self.url).ok();
        f.debug_struct("RedisConfig")
            .field("hosts", &place.as_ref().map(|place| &place.hosts))
            .field("kind", &place.as_ref().map(|place| &place.kind))
            .field("tls", &place.as_ref().map(|place| place.tls))
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Addr {
    pub host: Arc<str>,
    pub port: u16,
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What `REDIS_URL` says.
#[derive(Clone)]
pub struct Place {
    pub kind: Kind,
    /// The server, the sentinels, or some of the cluster's nodes; at least one.
    pub hosts: Vec<Addr>,
    /// For the servers: user, password, database.
    login: RedisConnectionInfo,
    pub tls: bool,
}

#[derive(Clone)]
pub enum Kind {
    One,
    Sentinel { service: String, login: RedisConnectionInfo },
    Cluster,
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One => f.write_str("one server"),
            Self::Sentinel { service, .. } => write!(f, "sentinels of {service}"),
            Self::Cluster => f.write_str("cluster"),
        }
    }
}

impl Place {
    /// An error says what was expected, and nothing of the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or(ONE)?;
        let (tls, expected) = match scheme {
            "redis" => (false, ONE),
            "rediss" => (true, ONE),
            "redis-sentinel" => (false, SENTINEL),
            "rediss-sentinel" => (true, SENTINEL),
            "redis-cluster" => (false, CLUSTER),
            "rediss-cluster" => (true, CLUSTER),
            _ => return Err(format!("{ONE}; or {SENTINEL}; or {CLUSTER}")),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (service, db) = match expected {
            SENTINEL => path.split_once('/').unwrap_or((path, "")),
            _ => ("", path),
        };
        let sentinels = expected == SENTINEL;
        let port = if sentinels { SENTINEL_PORT } else { REDIS_PORT };
        let hosts: Option<Vec<Addr>> = hosts.split(',').map(|host| addr(host, port)).collect();
        let hosts = hosts.ok_or(expected)?;
        let fine = !rest.contains('#')
            && service.is_empty() != sentinels
            && (query.is_empty() || sentinels)
            && (expected != ONE || hosts.len() == 1)
            && (expected != CLUSTER || matches!(db, "" | "0"));
        if !fine {
            return Err(expected.into());
        }
        // The client's own parser undoes the escapes of user and password.
        let login = format!("redis://{user}@host/{db}").into_connection_info();
        let login = login.map_err(|_| expected)?.redis_settings().clone();
        let kind = match expected {
            ONE => Kind::One,
            CLUSTER => Kind::Cluster,
            _ => {
                let mut login = RedisConnectionInfo::default();
                for (name, value) in form_urlencoded::parse(query.as_bytes()) {
                    login = match &*name {
                        "sentinel_user" => login.set_username(value),
                        "sentinel_password" => login.set_password(value),
                        _ => return Err(expected.into()),
                    };
                }
                Kind::Sentinel { service: service.into(), login }
            }
        };
        Ok(Self { kind, hosts, login, tls })
    }

    pub fn is_cluster(&self) -> bool {
        matches!(self.kind, Kind::Cluster)
    }

    /// For a server. `ca`: as in [`RedisConfig::ca_file`], read.
    pub fn server(
        &self,
        addr: &Addr,
        protocol: ProtocolVersion,
        ca: Option<&[u8]>,
    ) -> RedisResult<Client> {
        self.client(addr, self.login.clone().set_protocol(protocol), ca)
    }

    /// For one of the sentinels, or a server where there are none.
    pub fn adviser(&self, addr: &Addr, ca: Option<&[u8]>) -> RedisResult<Client> {
        let login = match &self.kind {
            Kind::Sentinel { login, .. } => login,
            Kind::One | Kind::Cluster => &self.login,
        };
        self.client(addr, login.clone(), ca)
    }

    fn client(
        &self,
        addr: &Addr,
        login: RedisConnectionInfo,
        ca: Option<&[u8]>,
    ) -> RedisResult<Client> {
        let (host, port) = (addr.host.to_string(), addr.port);
        let addr = match self.tls {
            true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            false => ConnectionAddr::Tcp(host, port),
        };
        let info = addr.into_connection_info()?.set_redis_settings(login);
        // Small requests wait for nobody.
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        if !self.tls {
            return Client::open(info);
        }
        let root_cert = ca.map(<[u8]>::to_vec);
        Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })
    }
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`.
fn addr(text: &str, default: u16) -> Option<Addr> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = port.map_or(Some(default), |port| port.parse().ok().filter(|port| *port > 0))?;
    let strange = |c: char| c.is_whitespace() || c.is_control() || "/?#@[]%\\".contains(c);
    let fine = !host.is_empty() && !host.contains(strange);
    fine.then(|| Addr { host: host.into(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(text: &str) -> String {
        format!("{:?}", Place::parse(text).unwrap().hosts)
    }

    #[test]
    fn each_form_is_read() {
        let one = Place::parse("redis://ada:p%40ss@cache/2").unwrap();
        assert!(matches!(one.kind, Kind::One) && !one.tls);
        assert_eq!(format!("{:?}", one.hosts), "[cache:6379]");
        assert_eq!((one.login.username(), one.login.password()), (Some("ada"), Some("p@ss")));
        assert_eq!(one.login.db(), 2);
        assert!(Place::parse("rediss://:geheim@cache:1").unwrap().tls);
        assert_eq!(hosts("redis://[::1]:7/0"), "[[::1]:7]");

        let text =
            "rediss-sentinel://ada:x@a,b:7,[::1]/main/3?sentinel_user=s&sentinel_password=p%2F";
        let sentinel = Place::parse(text).unwrap();
        assert!(sentinel.tls);
        assert_eq!(format!("{:?}", sentinel.hosts), "[a:26379, b:7, [::1]:26379]");
        assert_eq!((sentinel.login.password(), sentinel.login.db()), (Some("x"), 3));
        let Kind::Sentinel { service, login } = &sentinel.kind else { panic!() };
        assert_eq!((service.as_str(), login.username()), ("main", Some("s")));
        assert_eq!(login.password(), Some("p/"));

        let cluster = Place::parse("redis-cluster://:x@a:1,b").unwrap();
        assert!(cluster.is_cluster() && !cluster.tls);
        assert_eq!(format!("{:?}", cluster.hosts), "[a:1, b:6379]");
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for text in [
            "",
            "redis",
            "redis://",
            "redis:///0",
            "redis://a,b",
            "redis://a:0",
            "redis://a:x",
            "redis://a/x",
            "redis://a?x=y",
            "redis://a#insecure",
            "redis://[a]",
            "redis://:x@",
            "redis-cluster://",
            "redis-cluster://a,,b",
            "redis-cluster://a,b/1",
            "redis-cluster://a:1,",
            "redis-sentinel://a:1",
            "redis-sentinel:///main",
            "redis-sentinel://a/main/x",
            "redis-sentinel://a/main?geheim=y",
            "http://a",
            "mysql://a",
            "redis+unix:///tmp/redis",
        ] {
            let error = Place::parse(text).err();
            let error = error.unwrap_or_else(|| panic!("{text} was taken"));
            assert!(!error.contains("geheim"), "{error}");
        }
    }

    #[test]
    fn nothing_secret_is_shown() {
        let url = "redis-sentinel://ada:geheim@a,b/main?sentinel_password=geheim".into();
        let shown = format!("{:?}", RedisConfig { url, prefix: "p".into(), ca_file: None });
        assert!(shown.contains("a:26379, b:26379") && shown.contains("main"), "{shown}");
        assert!(!shown.contains("geheim"), "{shown}");
    }
}
