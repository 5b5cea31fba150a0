//! Which address a request is counted by.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use hyper::HeaderMap;

use crate::config::IpNet;

const FORWARDED: &str = "x-forwarded-for";
/// An IPv6 client has a network of this prefix to itself, and as many addresses as it likes.
const IPV6_PREFIX: u32 = 64;

/// None for what is not limited: this machine, and a trusted proxy that speaks for itself.
///
/// Each proxy adds the address it was called from at the right end of `X-Forwarded-For`, so only
/// what trusted ones added is believed: the rightmost address that is none of theirs.
pub fn of(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> Option<IpAddr> {
    let is_trusted = |addr: IpAddr| trusted.iter().any(|net| net.contains(addr));
    let mut addr = peer.to_canonical();
    if is_trusted(addr) {
        let lines = headers.get_all(FORWARDED).iter().rev();
        let hops = lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.rsplit(','));
        for hop in hops {
            // What is no address was added by a trusted proxy, too: it is the last one known.
            let Some(hop) = parse(hop.trim()) else { break };
            addr = hop;
            if !is_trusted(addr) {
                break;
            }
        }
    }
    (!addr.is_loopback() && !is_trusted(addr)).then(|| network(addr))
}

/// Some proxies add the port.
fn parse(hop: &str) -> Option<IpAddr> {
    let addr = hop.parse::<IpAddr>().or_else(|_| hop.parse::<SocketAddr>().map(|at| at.ip()));
    let addr = addr.or_else(|_| hop.trim_matches(['[', ']']).parse());
    addr.ok().map(|addr| addr.to_canonical())
}

fn network(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(_) => addr,
        IpAddr::V6(addr) => {
            let network = u128::from(addr) & (u128::MAX << (128 - IPV6_PREFIX));
            IpAddr::V6(Ipv6Addr::from(network))
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn of(peer: &str, forwarded: &[&'static str], trusted: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append(FORWARDED, HeaderValue::from_static(line));
        }
        let trusted: Vec<IpNet> = trusted.iter().map(|net| net.parse().unwrap()).collect();
        super::of(peer.parse().unwrap(), &headers, &trusted).map(|addr| addr.to_string())
    }

    #[test]
    fn only_what_trusted_proxies_added_is_believed() {
        let known = |addr: &str| Some(addr.to_owned());
        let net = &["10.0.0.0/8"][..];
        assert_eq!(of("203.0.113.7", &["198.51.100.1"], net), known("203.0.113.7"));
        assert_eq!(of("10.0.0.1", &["198.51.100.1"], net), known("198.51.100.1"));
        let spoofed = ["192.0.2.66, 198.51.100.1, 10.0.0.2"];
        assert_eq!(of("10.0.0.1", &spoofed, net), known("198.51.100.1"));
        let lines = ["192.0.2.66", "198.51.100.1", "10.0.0.2 , 10.0.0.3"];
        assert_eq!(of("10.0.0.1", &lines, net), known("198.51.100.1"));
        assert_eq!(of("10.0.0.1", &["198.51.100.1:4711"], net), known("198.51.100.1"));
        assert_eq!(of("::ffff:10.0.0.1", &["::ffff:198.51.100.1"], net), known("198.51.100.1"));
    }

    #[test]
    fn this_machine_and_proxies_themselves_are_not_limited() {
        assert_eq!(of("127.0.0.1", &[], &[]), None);
        assert_eq!(of("::1", &["198.51.100.1"], &[]), None);
        let net = &["10.0.0.0/8"][..];
        assert_eq!(of("10.0.0.1", &[], net), None);
        assert_eq!(of("10.0.0.1", &["10.0.0.2"], net), None);
        assert_eq!(of("10.0.0.1", &["198.51.100.1, unknown"], net), None);
        assert_eq!(of("10.0.0.1", &["127.0.0.1"], net), None);
    }

    #[test]
    fn a_client_with_many_ipv6_addresses_is_one() {
        let one = of("2001:db8:1:2:3::4", &[], &[]);
        assert_eq!(one, of("2001:db8:1:2:ffff::1", &[], &[]));
        assert_ne!(one, of("2001:db8:1:3::4", &[], &[]));
        assert_eq!(of("10.0.0.1", &["[2001:db8:1:2::9]:80"], &["10.0.0.1"]), one);
    }
}
