//! Where the load goes: addresses given on the command line. Only loopback is accepted, so that a
//! slip of the keyboard never loads somebody's server.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use anyhow::{Context, bail, ensure};

use crate::key::Key;

/// Connections from one source address to one listener; well below the kernel's range of ports,
/// and what earlier runs left in TIME_WAIT.
const PER_SOURCE: usize = 4_000;

/// One node. `ws://` and `http://` mean the same listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub addr: SocketAddr,
    /// For the `Host` header, with the port.
    pub host: String,
    /// Of the WebSocket.
    pub ws_path: String,
    /// Users prove themselves with tokens of this key; without it, dev mode believes them.
    pub key: Option<Key>,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(url: &str) -> anyhow::Result<Self> {
        let Some((scheme @ ("ws" | "http"), rest)) = url.split_once("://") else {
            bail!("{url}: expected ws://HOST:PORT/ws or http://HOST:PORT");
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().with_context(|| format!("{url}: the port"))?)
            }
            _ => (authority, 80),
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let ip = match bare {
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            _ => bare.parse().with_context(|| format!("{url}: the host is no loopback address"))?,
        };
        ensure!(ip.is_loopback(), "{url}: only loopback addresses are loaded");
        let ws_path = if scheme == "http" || path.len() < 2 { "/ws" } else { path };
        Ok(Self {
            addr: SocketAddr::new(ip, port),
            host: authority.to_owned(),
            ws_path: ws_path.to_owned(),
            key: None,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.host)
    }
}

impl Target {
    /// The address that connection `index` comes from, so that ports do not run out; others for
    /// each node that has an address of its own. None where the kernel chooses.
    pub fn source(&self, index: usize) -> Option<IpAddr> {
        let IpAddr::V4(node) = self.addr.ip() else { return None };
        let block = u8::try_from(index / PER_SOURCE).ok()?;
        let net = node.octets()[3].wrapping_sub(1);
        Some(IpAddr::V4(Ipv4Addr::new(127, 0, net, block.checked_add(2)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_urls_are_read() {
        let target: Target = "ws://127.0.0.1:8083/ws?features=acks".parse().unwrap();
        assert_eq!(target.addr, "127.0.0.1:8083".parse().unwrap());
        assert_eq!(target.ws_path, "/ws?features=acks");
        let target: Target = "http://localhost:99/".parse().unwrap();
        assert_eq!((target.host.as_str(), target.ws_path.as_str()), ("localhost:99", "/ws"));
        let target: Target = "http://[::1]:99".parse().unwrap();
        assert_eq!(target.addr, "[::1]:99".parse().unwrap());
        assert_eq!(target.source(0), None);
    }

    #[test]
    fn other_hosts_are_refused() {
        for url in ["http://10.0.0.1:80", "ws://example.com/ws", "https://localhost", "localhost:1"]
        {
            assert!(url.parse::<Target>().is_err(), "{url}");
        }
    }

    #[test]
    fn sources_change_before_ports_run_out() {
        let target: Target = "http://127.0.0.1:1".parse().unwrap();
        assert_eq!(target.source(0), Some("127.0.0.2".parse().unwrap()));
        assert_eq!(target.source(PER_SOURCE), Some("127.0.0.3".parse().unwrap()));
        let second: Target = "http://127.0.0.2:1".parse().unwrap();
        assert_eq!(second.source(0), Some("127.0.1.2".parse().unwrap()));
    }
}
