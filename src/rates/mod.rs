//! How fast clients may be: per user and per address, on this node alone.
//!
//! Each limit is a rate with a burst of five times as much; who is faster hears when to come back.
//! Addresses of this machine and of trusted proxies are not limited: behind a proxy it is the
//! client's own address that counts. Called by `http` and `ws` before anything is done.

mod held;
mod limiter;
mod source;

use std::net::IpAddr;
use std::time::Duration;

use hyper::HeaderMap;

use self::held::Held;
use self::limiter::Limiter;
use crate::config::RatesConfig;
use crate::ids::UserId;
use crate::protocol::code::Code;
use crate::protocol::problem::Problem;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Limited;

/// Identities from one address that could not be proven, in a second. What is refused costs us a
/// check of a signature, and tells someone who guesses how far he came.
const FAILED_IDENTITIES: u32 = 5;
/// Connections of one address that are not sockets: requests, and heads that are still to come.
const MOST_CONNECTIONS: u32 = 96;
/// Lists of users to be watched, from one user in a second: each is read from store and presence.
const WATCHES: u32 = 2;
/// Tokens that are to replace a socket's, from one user in a second: each signature is checked.
const TOKENS: u32 = 1;

pub struct Rates {
    config: RatesConfig,
    sends: Limiter<UserId>,
    receipts: Limiter<UserId>,
    typing: Limiter<UserId>,
    syncs: Limiter<UserId>,
    watches: Limiter<UserId>,
    tokens: Limiter<UserId>,
    handshakes: Limiter<IpAddr>,
    identities: Limiter<IpAddr>,
    sockets: Held,
    /// Connections that are not, or not yet, sockets.
    connections: Held,
    metrics: Metrics,
}

impl Rates {
    pub fn new(config: RatesConfig, metrics: Metrics) -> Self {
        Self {
            sends: Limiter::new(config.sends_per_user),
            // Apart from the sends: who reads a busy group is not to be kept from writing.
            receipts: Limiter::new(config.sends_per_user),
            typing: Limiter::new(config.typing_per_user),
            syncs: Limiter::new(config.syncs_per_user),
            watches: Limiter::new(WATCHES),
            tokens: Limiter::new(TOKENS),
            handshakes: Limiter::new(config.handshakes_per_ip),
            identities: Limiter::new(FAILED_IDENTITIES),
            sockets: Held::new(config.connections_per_ip),
            connections: Held::new(config.connections_per_ip.min(MOST_CONNECTIONS)),
            config,
            metrics,
        }
    }

    /// A send, an edit or a deletion.
    pub fn send(&self, user: UserId) -> Result<(), Problem> {
        self.judge(Limited::Sends, self.sends.check(&user))
    }

    /// A receipt: something was delivered or read.
    pub fn receipt(&self, user: UserId) -> Result<(), Problem> {
        self.judge(Limited::Receipts, self.receipts.check(&user))
    }

    pub fn typing(&self, user: UserId) -> Result<(), Problem> {
        self.judge(Limited::Typing, self.typing.check(&user))
    }

    pub fn sync(&self, user: UserId) -> Result<(), Problem> {
        self.judge(Limited::Syncs, self.syncs.check(&user))
    }

    pub fn watch(&self, user: UserId) -> Result<(), Problem> {
        self.judge(Limited::Watches, self.watches.check(&user))
    }

    pub fn token(&self, user: UserId) -> Result<(), Problem> {
        self.judge(Limited::Tokens, self.tokens.check(&user))
    }

    /// The address by which a client is counted; None if it is not limited. `peer` is the other
    /// end of the TCP connection.
    pub fn source(&self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        source::of(peer, headers, &self.config.trusted_proxies)
    }

    pub fn handshake(&self, source: Option<IpAddr>) -> Result<(), Problem> {
        let waits = source.map_or(Ok(()), |source| self.handshakes.check(&source));
        self.judge(Limited::Handshakes, waits)
    }

    /// What is told of an identity that was refused: the refusal, or that there were too many.
    pub fn identity_refused(&self, source: Option<IpAddr>, refusal: Problem) -> Problem {
        let waits = match source {
            Some(source) if refusal.code == Code::Unauthenticated => self.identities.check(&source),
            _ => Ok(()),
        };
        self.judge(Limited::Identities, waits).err().unwrap_or(refusal)
    }

    /// Counts a socket, which [`Self::disconnect`] takes back.
    pub fn connect(&self, source: Option<IpAddr>) -> Result<(), Problem> {
        if self.sockets.take(source) {
            return Ok(());
        }
        self.metrics.rates.limited.of(Limited::Connections).increment(1);
        let detail = "this address holds as many sockets as it may on this node";
        Err(Problem::new(Code::RateLimited, detail))
    }

    pub fn disconnect(&self, source: Option<IpAddr>) {
        self.sockets.give_back(source);
    }

    /// Counts a connection of which no request is known yet, so that one address alone, which is
    /// slow with its requests' heads, cannot hold all there are; [`Self::leave`] takes it back.
    #[must_use]
    pub fn enter(&self, source: Option<IpAddr>) -> bool {
        let free = self.connections.take(source);
        if !free {
            self.metrics.rates.limited.of(Limited::Connections).increment(1);
        }
        free
    }

    pub fn leave(&self, source: Option<IpAddr>) {
        self.connections.give_back(source);
    }

    fn judge(&self, limit: Limited, waits: Result<(), Duration>) -> Result<(), Problem> {
        let Err(wait) = waits else { return Ok(()) };
        self.metrics.rates.limited.of(limit).increment(1);
        let detail = match limit {
            Limited::Sends => "you send, edit or delete faster than you may",
            Limited::Receipts => "you confirm messages faster than you may",
            Limited::Typing => "you tell that you type more often than you may",
            Limited::Syncs => "you sync more often than you may",
            Limited::Watches => "you change whom you watch more often than you may",
            Limited::Tokens => "you renew your token more often than you may",
            Limited::Handshakes | Limited::Connections => {
                "too many sockets are opened from this address"
            }
            Limited::Identities => "too many identities from this address were refused",
        };
        // Rounded up: who comes back then must not be too early.
        let retry_ms = wait.as_micros().div_ceil(1_000).max(1) as u64;
        Err(Problem { retry_ms: Some(retry_ms), ..Problem::new(Code::RateLimited, detail) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(sends_per_user: u32, connections_per_ip: u32) -> Rates {
        let config = RatesConfig {
            sends_per_user,
            typing_per_user: 1,
            syncs_per_user: 1,
            handshakes_per_ip: 1,
            connections_per_ip,
            trusted_proxies: Vec::new(),
        };
        Rates::new(config, Metrics::new().0)
    }

    #[test]
    fn who_is_too_fast_hears_exactly_when_to_come_back() {
        let rates = rates(1, 1);
        let (ann, ben) = (UserId(uuid::Uuid::from_u128(1)), UserId(uuid::Uuid::from_u128(2)));
        for _ in 0..5 {
            rates.send(ann).unwrap();
        }
        let problem = rates.send(ann).unwrap_err();
        assert_eq!(problem.code, Code::RateLimited);
        let wait = problem.retry_ms().unwrap();
        assert!((1..=1_000).contains(&wait), "{wait}");
        rates.send(ben).unwrap();
        rates.receipt(ann).unwrap();
    }

    #[test]
    fn nothing_is_limited_that_is_off_or_has_no_source() {
        let rates = rates(0, 0);
        let ann = UserId(uuid::Uuid::from_u128(1));
        let source = Some("203.0.113.7".parse().unwrap());
        for _ in 0..1_000 {
            rates.send(ann).unwrap();
            rates.handshake(None).unwrap();
            rates.connect(source).unwrap();
        }
    }

    #[test]
    fn sockets_and_connections_of_an_address_are_limited() {
        let source = Some("203.0.113.7".parse().unwrap());
        let few = rates(0, 2);
        few.connect(source).unwrap();
        few.connect(source).unwrap();
        assert_eq!(few.connect(source).unwrap_err().code, Code::RateLimited);
        let many = rates(0, 1_000);
        assert!((0..MOST_CONNECTIONS).all(|_| many.enter(source)) && !many.enter(source));
        many.leave(source);
        assert!(many.enter(source));
    }

    #[test]
    fn only_refusals_for_want_of_an_identity_count() {
        let rates = rates(0, 0);
        let source = Some("203.0.113.7".parse().unwrap());
        let refuse = |code| rates.identity_refused(source, Problem::new(code, "x")).code;
        for _ in 0..100 {
            assert_eq!(refuse(Code::Unavailable), Code::Unavailable);
        }
        for _ in 0..FAILED_IDENTITIES * 5 {
            assert_eq!(refuse(Code::Unauthenticated), Code::Unauthenticated);
        }
        assert_eq!(refuse(Code::Unauthenticated), Code::RateLimited);
    }
}
