//! Who is asking. An [`Identity`] is made here and nowhere else.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{HOST, ORIGIN};

use crate::config::{AuthConfig, AuthMode};
use crate::ids::UserId;
use crate::protocol::code::Code;
use crate::protocol::problem::Problem;

const USER_HEADER: &str = "x-user-id";

/// A user whose identity was proven in the way the settings ask for.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    user_id: UserId,
}

impl Identity {
    pub fn user_id(&self) -> UserId {
        self.user_id
    }
}

#[derive(Clone, Debug)]
pub struct Authenticator {
    config: AuthConfig,
}

impl Authenticator {
    pub fn new(config: AuthConfig) -> Self {
        Self { config }
    }

    /// Everyone is who he says he is: for a laptop only.
    pub fn is_dev(&self) -> bool {
        matches!(self.config.mode, AuthMode::Dev)
    }

    /// `peer` is the other end of the TCP connection; `named` is a user id in the query, which
    /// browsers give for sockets since they cannot set headers, and counts in dev mode only.
    pub fn identify(
        &self,
        headers: &HeaderMap,
        peer: IpAddr,
        named: Option<&str>,
    ) -> Result<Identity, Problem> {
        let refuse = |detail| Err(Problem::new(Code::Unauthenticated, detail));
        let header = headers.get(USER_HEADER).map(|value| value.to_str().unwrap_or_default());
        let user = match &self.config.mode {
            AuthMode::Dev => header.or(named),
            AuthMode::Gateway { trusted } => {
                if !trusted.iter().any(|net| net.contains(peer)) {
                    return refuse("X-User-ID is believed from the gateway only");
                }
                header
            }
        };
        let Some(user) = user else {
            return refuse("the header X-User-ID names the user, and it is missing");
        };
        match user.parse() {
            Ok(user_id) => Ok(Identity { user_id }),
            Err(_) => refuse("the header X-User-ID holds a UUID, and this is none"),
        }
    }

    /// Whether a page of this origin may open a socket. Browsers always name their origin; what
    /// names none is no browser, and no page can make it connect.
    pub fn admit_origin(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
        let origin = origin.to_str().unwrap_or_default().to_ascii_lowercase();
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let same = origin.split_once("://").is_some_and(|(_, at)| at.eq_ignore_ascii_case(host));
        if same || self.config.allowed_origins.contains(&origin) {
            return Ok(());
        }
        Err(Problem::new(Code::ForeignOrigin, "this page's origin is not among ALLOWED_ORIGINS"))
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const USER: &str = "11111111-1111-4111-8111-111111111111";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    fn authenticator(mode: AuthMode) -> Authenticator {
        Authenticator::new(AuthConfig {
            mode,
            allowed_origins: vec!["https://chat.example".into()],
        })
    }

    #[test]
    fn the_gateway_is_believed_and_nobody_else() {
        let auth =
            authenticator(AuthMode::Gateway { trusted: vec!["10.0.0.0/8".parse().unwrap()] });
        let named = headers(&[(USER_HEADER, USER)]);
        let identify = |headers: &HeaderMap, peer: &str, query| {
            auth.identify(headers, peer.parse().unwrap(), query)
        };
        assert_eq!(identify(&named, "10.1.2.3", None).unwrap().user_id().to_string(), USER);
        assert!(identify(&named, "11.1.2.3", None).is_err());
        assert!(identify(&headers(&[]), "10.1.2.3", Some(USER)).is_err(), "no query here");
        assert!(identify(&headers(&[(USER_HEADER, "me")]), "10.1.2.3", None).is_err());
    }

    #[test]
    fn dev_mode_believes_the_query_too() {
        let auth = authenticator(AuthMode::Dev);
        let peer = "127.0.0.1".parse().unwrap();
        assert!(auth.identify(&headers(&[]), peer, Some(USER)).is_ok());
        assert!(auth.identify(&headers(&[]), peer, None).is_err());
    }

    #[test]
    fn foreign_pages_open_no_socket() {
        let auth = authenticator(AuthMode::Dev);
        let admits = |origin: &str| {
            auth.admit_origin(&headers(&[("origin", origin), ("host", "localhost:8083")])).is_ok()
        };
        assert!(admits("http://localhost:8083"));
        assert!(admits("https://chat.example"));
        assert!(!admits("https://evil.example"));
        assert!(!admits("http://localhost:8084"));
        assert!(!admits("null"));
        assert!(auth.admit_origin(&headers(&[("host", "localhost:8083")])).is_ok());
    }
}
