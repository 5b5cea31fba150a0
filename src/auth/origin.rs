//! Which pages may act through a browser.
//!
//! A browser sends requests on behalf of any page it shows, and says by `Origin` which. In dev mode
//! everyone is believed, so there a page is also kept from reaching this node under a name of its
//! own (DNS rebinding), which would make it look like the same origin.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{HOST, HeaderValue, ORIGIN};

use super::Authenticator;
use crate::protocol::code::Code;
use crate::protocol::problem::Problem;

impl Authenticator {
    /// Whether what this page asks for may be done. Browsers name the origin of whatever can do
    /// harm; what names none is no browser, and no page can make it ask.
    pub fn admit_origin(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if !headers.contains_key(ORIGIN) || self.allowed_origin(headers).is_some() {
            return Ok(());
        }
        Err(Problem::new(Code::ForeignOrigin, "this page's origin is not among ALLOWED_ORIGINS"))
    }

    /// The request's origin, if it is this node's own or on the list.
    pub fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let given = headers.get(ORIGIN)?;
        let origin = given.to_str().unwrap_or_default().to_ascii_lowercase();
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let same = origin.split_once("://").is_some_and(|(_, at)| at.eq_ignore_ascii_case(host));
        let allowed = same && self.admit_host(headers).is_ok()
            || self.config().allowed_origins.contains(&origin);
        allowed.then(|| given.clone())
    }

    /// In dev mode, only names that always mean this machine.
    pub fn admit_host(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if !self.is_dev() || headers.get_all(HOST).iter().all(is_loopback) {
            return Ok(());
        }
        let detail = "with AUTH_MODE=dev this node answers by the name localhost or a loopback \
                      address only, and the header Host has another";
        Err(Problem::new(Code::ForeignOrigin, detail))
    }
}

fn is_loopback(host: &HeaderValue) -> bool {
    let Ok(host) = host.to_str() else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    if let Some(address) = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        return address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    }
    let name = name.to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{authenticator, headers};
    use crate::config::AuthMode;

    #[test]
    fn foreign_pages_are_not_admitted() {
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

    #[test]
    fn a_name_that_was_rebound_is_not_the_same_origin() {
        let rebound =
            headers(&[("origin", "http://evil.example:8083"), ("host", "evil.example:8083")]);
        assert!(authenticator(AuthMode::Dev).admit_origin(&rebound).is_err());
        let gateway = authenticator(AuthMode::Gateway { trusted: Vec::new() });
        assert!(gateway.admit_origin(&rebound).is_ok());
    }

    #[test]
    fn in_dev_mode_the_host_is_this_machine() {
        let dev = authenticator(AuthMode::Dev);
        let admits = |host: &str| dev.admit_host(&headers(&[("host", host)])).is_ok();
        for host in [
            "localhost",
            "LocalHost:8083",
            "ada.localhost:80",
            "127.0.0.1",
            "127.9.9.9:1",
            "[::1]",
            "[::1]:8083",
        ] {
            assert!(admits(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:8083",
            "localhost.evil.example",
            "notlocalhost",
            "192.168.1.5:8083",
            "0.0.0.0",
            "[::]",
            "[::1",
            "::1:x",
            "127.0.0.1.nip.io",
            "evil:",
            "localhost:80@evil.example",
        ] {
            assert!(!admits(host), "{host}");
        }
        assert!(dev.admit_host(&headers(&[])).is_ok(), "no browser leaves it out");
        let both = headers(&[("host", "localhost"), ("host", "evil.example")]);
        assert!(dev.admit_host(&both).is_err());
        let gateway = authenticator(AuthMode::Gateway { trusted: Vec::new() });
        assert!(gateway.admit_host(&headers(&[("host", "chat.example")])).is_ok());
    }
}
