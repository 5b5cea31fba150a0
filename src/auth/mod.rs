//! Who is asking. An [`Identity`] is made here and nowhere else.
//!
//! Reaches the issuer of tokens (`jwks`) and, for tickets, Redis; knows no store, bus or presence.

mod jwt;
mod origin;
mod tickets;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use tokio_util::sync::CancellationToken;

use crate::clock::Timestamp;
use crate::config::{AuthConfig, AuthMode, JwtConfig, JwtKeys};
use crate::finding::Findings;
use crate::ids::UserId;
use crate::protocol::code::Code;
use crate::protocol::problem::Problem;
use crate::shards::Shards;
use jwt::{LEEWAY, Tokens};
use tickets::{TICKET_LIFE, Tickets};

const USER_HEADER: &str = "x-user-id";

/// A user whose identity was proven in the way the settings ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    user_id: UserId,
    /// The token's end; None without tokens.
    expires_at: Option<Timestamp>,
}

impl Identity {
    pub fn user_id(&self) -> UserId {
        self.user_id
    }

    pub fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }
}

/// Whether a token's end is past, by all that the clocks may differ.
pub fn is_past(expires_at: Timestamp, now: Timestamp) -> bool {
    now.since(expires_at) > LEEWAY
}

/// What a socket's handshake may bring beside its headers, since browsers can set none on it.
#[derive(Clone, Copy, Default)]
pub struct Handshake<'a> {
    /// A user's id in the query; counts in dev mode only.
    pub user_id: Option<&'a str>,
    /// In the query; counts in every mode, and before everything else.
    pub ticket: Option<&'a str>,
    /// A token among the subprotocols.
    pub token: Option<&'a str>,
}

/// For `tidings check`: whether there are keys by which tokens can be verified.
pub async fn check_jwt(config: &JwtConfig, found: &mut Findings) {
    match Tokens::connect(config).await {
        Ok(_) => found.ok("keys", format!("{:?}", config.keys)),
        Err(error) => {
            let fix = "see that JWT_JWKS_URL is right, and that this machine reaches the issuer";
            found.problem("keys", format!("{:?}: {error:#}", config.keys), fix);
        }
    }
    if let JwtKeys::Jwks(url) = &config.keys
        && url.0.scheme_str() == Some("http")
        && !matches!(url.0.host(), Some("localhost" | "127.0.0.1" | "[::1]"))
    {
        let detail = "the keys come over http://: whoever is in between can be any user";
        found.warning("keys", detail, "https://");
    }
    if config.issuer.is_none() {
        let detail = "the token's issuer (iss) is not looked at";
        found.warning("issuer", detail, "set JWT_ISSUER");
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Authenticator(Arc<Inner>);

struct Inner {
    config: AuthConfig,
    /// With `AUTH_MODE=jwt`.
    tokens: Option<Tokens>,
    tickets: Tickets,
}

impl Authenticator {
    /// Where tokens are checked by an issuer's key set, the issuer has to answer once.
    pub async fn connect(config: AuthConfig, shards: Option<&Shards>) -> anyhow::Result<Self> {
        let tokens = match &config.mode {
            AuthMode::Jwt(jwt) => Some(Tokens::connect(jwt).await.context("JWT_JWKS_URL")?),
            AuthMode::Dev | AuthMode::Gateway { .. } => None,
        };
        let tickets = Tickets::new(shards);
        Ok(Self(Arc::new(Inner { config, tokens, tickets })))
    }

    /// Keeps the issuer's keys fresh until `stop`.
    pub async fn keep_keys(self, stop: CancellationToken) {
        match &self.0.tokens {
            Some(tokens) => tokens.keep(stop).await,
            None => stop.cancelled().await,
        }
    }

    fn config(&self) -> &AuthConfig {
        &self.0.config
    }

    /// Everyone is who he says he is: for a laptop only.
    pub fn is_dev(&self) -> bool {
        matches!(self.0.config.mode, AuthMode::Dev)
    }

    /// Identities are proven by tokens, and end with them.
    pub fn uses_tokens(&self) -> bool {
        self.0.tokens.is_some()
    }

    /// `peer` is the other end of the TCP connection. Every identity that is refused is refused
    /// here, or by [`Self::check_token`].
    pub async fn identify(
        &self,
        headers: &HeaderMap,
        peer: IpAddr,
        handshake: Handshake<'_>,
    ) -> Result<Identity, Problem> {
        if let Some(ticket) = handshake.ticket {
            return Box::pin(self.redeem(ticket)).await;
        }
        let named = || headers.get(USER_HEADER).map(|value| value.to_str().unwrap_or_default());
        match &self.0.config.mode {
            AuthMode::Dev => user(named().or(handshake.user_id)),
            AuthMode::Gateway { trusted } => {
                if !trusted.iter().any(|net| net.contains(peer)) {
                    return Err(refusal("X-User-ID is believed from the gateway only"));
                }
                user(named())
            }
            AuthMode::Jwt(_) => {
                let token = bearer(headers)?.or(handshake.token);
                let missing =
                    "the header Authorization holds \"Bearer\" and a token, and it is missing";
                let token = token.ok_or_else(|| refusal(missing))?;
                Box::pin(self.check_token(token)).await
            }
        }
    }

    /// Also for a socket whose token is about to end.
    pub async fn check_token(&self, token: &str) -> Result<Identity, Problem> {
        match &self.0.tokens {
            Some(tokens) => tokens.check(token).await,
            None => Err(Problem::invalid("token", "identities come without tokens here")),
        }
    }

    /// A new ticket, and how long it is good.
    pub async fn issue_ticket(&self, identity: Identity) -> Result<(String, Duration), Problem> {
        Ok((self.0.tickets.issue(identity).await?, TICKET_LIFE))
    }

    async fn redeem(&self, ticket: &str) -> Result<Identity, Problem> {
        let identity = self.0.tickets.redeem(ticket).await?;
        let identity = identity
            .ok_or_else(|| refusal("there is no such ticket: each is good once, and for 30 s"))?;
        if identity.expires_at.is_some_and(|at| is_past(at, Timestamp::now())) {
            return Err(refusal("the token by which the ticket was made has expired (exp)"));
        }
        Ok(identity)
    }
}

fn user(named: Option<&str>) -> Result<Identity, Problem> {
    let missing = "the header X-User-ID names the user, and it is missing";
    match named.ok_or_else(|| refusal(missing))?.parse() {
        Ok(user_id) => Ok(Identity { user_id, expires_at: None }),
        Err(_) => Err(refusal("the header X-User-ID holds a UUID, and this is none")),
    }
}

/// The token of the one `Authorization` header, if there is one.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = given.next() else { return Ok(None) };
    if given.next().is_some() {
        return Err(refusal("there are several headers Authorization"));
    }
    let value = value.to_str().unwrap_or_default();
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim())),
        _ => Err(refusal(
            "the header Authorization holds something else than \"Bearer\" and a token",
        )),
    }
}

fn refusal(detail: &'static str) -> Problem {
    Problem::new(Code::Unauthenticated, detail)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const USER: &str = "11111111-1111-4111-8111-111111111111";

    pub fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    /// Of a mode without tokens.
    pub fn authenticator(mode: AuthMode) -> Authenticator {
        let allowed_origins = vec!["https://chat.example".into()];
        let config = AuthConfig { mode, allowed_origins };
        let tickets = Tickets::new(None);
        Authenticator(Arc::new(Inner { config, tokens: None, tickets }))
    }

    fn named(user: Option<&str>) -> Handshake<'_> {
        Handshake { user_id: user, ..Handshake::default() }
    }

    #[tokio::test]
    async fn the_gateway_is_believed_and_nobody_else() {
        let auth =
            authenticator(AuthMode::Gateway { trusted: vec!["10.0.0.0/8".parse().unwrap()] });
        let header = headers(&[(USER_HEADER, USER)]);
        let identify = async |headers: &HeaderMap, peer: &str, query| {
            auth.identify(headers, peer.parse().unwrap(), named(query)).await
        };
        let known = identify(&header, "10.1.2.3", None).await.unwrap();
        assert_eq!((known.user_id().to_string().as_str(), known.expires_at()), (USER, None));
        assert!(identify(&header, "11.1.2.3", None).await.is_err());
        let query = identify(&headers(&[]), "10.1.2.3", Some(USER)).await;
        assert!(query.is_err(), "no query here");
        assert!(identify(&headers(&[(USER_HEADER, "me")]), "10.1.2.3", None).await.is_err());
    }

    #[tokio::test]
    async fn dev_mode_believes_the_query_too() {
        let auth = authenticator(AuthMode::Dev);
        let peer = "127.0.0.1".parse().unwrap();
        assert!(auth.identify(&headers(&[]), peer, named(Some(USER))).await.is_ok());
        assert!(auth.identify(&headers(&[]), peer, named(None)).await.is_err());
    }

    #[tokio::test]
    async fn a_ticket_stands_for_who_asked_for_it_and_nothing_else_counts_beside_it() {
        let auth = authenticator(AuthMode::Gateway { trusted: vec!["10.0.0.1".parse().unwrap()] });
        let peer = "10.0.0.1".parse().unwrap();
        let header = headers(&[(USER_HEADER, USER)]);
        let known = auth.identify(&header, peer, Handshake::default()).await.unwrap();
        let (ticket, life) = auth.issue_ticket(known).await.unwrap();
        assert_eq!(life, Duration::from_secs(30));
        let anywhere = "192.0.2.1".parse().unwrap();
        let handshake = Handshake { ticket: Some(&ticket), ..Handshake::default() };
        assert_eq!(auth.identify(&headers(&[]), anywhere, handshake).await, Ok(known));
        let again = auth.identify(&header, peer, handshake).await;
        assert_eq!(again.unwrap_err().code, Code::Unauthenticated);
        let ended = Identity { expires_at: Some(Timestamp::from_millis(1)), ..known };
        let (ticket, _) = auth.issue_ticket(ended).await.unwrap();
        let handshake = Handshake { ticket: Some(&ticket), ..Handshake::default() };
        let refused = auth.identify(&headers(&[]), peer, handshake).await.unwrap_err();
        assert!(refused.detail.contains("expired"), "{refused:?}");
    }

    #[test]
    fn the_header_holds_one_bearer() {
        let token = |values: &[&str]| {
            let values: Vec<_> = values.iter().map(|value| ("authorization", *value)).collect();
            bearer(&headers(&values)).map(|token| token.map(str::to_owned))
        };
        assert_eq!(token(&[]), Ok(None));
        assert_eq!(token(&["Bearer a.b.c"]), Ok(Some("a.b.c".into())));
        assert_eq!(token(&["bearer  a.b.c"]), Ok(Some("a.b.c".into())));
        assert!(token(&["Basic YTpi"]).is_err());
        assert!(token(&["Bearer"]).is_err());
        assert!(token(&["Bearer a", "Bearer b"]).is_err());
    }
}
