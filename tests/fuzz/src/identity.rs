use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::Value;
use tidings::auth::{Authenticator, Handshake};
use tidings::clock::Timestamp;
use tidings::config::Config;
use tidings::ids::UserId;
use tidings::protocol::code::Code;

use super::now;

const SECRET: &str = "an HMAC secret of exactly 34 bytes";
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

static BY_NAME: LazyLock<Authenticator> = LazyLock::new(|| authenticator("dev"));
static BY_TOKEN: LazyLock<Authenticator> = LazyLock::new(|| authenticator("jwt"));

fn authenticator(mode: &str) -> Authenticator {
    let config = Config::from_lookup(|name| match name {
        "AUTH_MODE" => Some(mode.into()),
        "JWT_KEY" if mode == "jwt" => Some(SECRET.into()),
        _ => None,
    });
    now(Authenticator::connect(config.expect("the settings are good").auth, None))
        .expect("a single key needs nobody")
}

/// Who says that he is somebody. The first byte says by what: a header, a ticket, a token as it is,
/// or a token whose header and claims, one line each, are signed with the right key.
pub fn identity(data: &[u8]) {
    let Some((how, data)) = data.split_first() else { return };
    match how % 5 {
        0 => named(data),
        1 => bearer(data),
        2 => ticket(data),
        3 => token(data),
        _ => signed(data),
    }
}

fn headers(name: HeaderName, value: &[u8]) -> Option<HeaderMap> {
    Some(HeaderMap::from_iter([(name, HeaderValue::from_bytes(value).ok()?)]))
}

fn named(data: &[u8]) {
    let name = HeaderName::from_static("x-user-id");
    let Some(headers) = headers(name, data) else { return };
    let given = now(BY_NAME.identify(&headers, PEER, Handshake::default()));
    let user: Option<UserId> = std::str::from_utf8(data).ok().and_then(|text| text.parse().ok());
    match given {
        Ok(identity) => assert_eq!(Some(identity.user_id()), user),
        Err(problem) => assert_eq!((problem.code, user), (Code::Unauthenticated, None)),
    }
}

/// Nobody here knows the key.
fn bearer(data: &[u8]) {
    let Some(headers) = headers(AUTHORIZATION, data) else { return };
    let given = now(BY_TOKEN.identify(&headers, PEER, Handshake::default()));
    assert_eq!(given.expect_err("it is no token of ours").code, Code::Unauthenticated);
}

fn ticket(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let handshake = Handshake { ticket: Some(text), ..Handshake::default() };
    let given = now(BY_NAME.identify(&HeaderMap::new(), PEER, handshake));
    assert_eq!(given.expect_err("no ticket was issued").code, Code::Unauthenticated);
}

fn token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let given = now(BY_TOKEN.check_token(text));
    assert_eq!(given.expect_err("it is no token of ours").code, Code::Unauthenticated);
}

fn signed(data: &[u8]) {
    let mut lines = data.splitn(2, |byte| *byte == b'\n');
    let (header, claims) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let text = format!("{}.{}", base64(header), base64(claims));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = crypto::sign(text.as_bytes(), &key, Algorithm::HS256).expect("HMAC works");
    let identity = match now(BY_TOKEN.check_token(&format!("{text}.{signature}"))) {
        Ok(identity) => identity,
        Err(problem) => return assert_eq!(problem.code, Code::Unauthenticated),
    };
    let read = |text: &[u8]| serde_json::from_slice::<Value>(text);
    // What nobody looks at may be half a character.
    let (Ok(header), Ok(claims)) = (read(header), read(claims)) else { return };
    assert_eq!((&header["alg"], header.get("crit")), (&"HS256".into(), None));
    let sub = claims["sub"].as_str().and_then(|sub| sub.parse().ok());
    assert_eq!(sub, Some(identity.user_id()), "{claims}");
    let end = identity.expires_at().expect("a token ends");
    let exp = claims["exp"].as_f64().expect("a token has an end");
    assert_eq!(end.millis(), (exp * 1_000.0) as i64, "{claims}");
    assert!(end.millis() > Timestamp::now().millis() - 6_000, "it has ended: {claims}");
    // It names nobody for whom it is meant, for nothing is set.
    assert!(claims.get("aud").is_none_or(Value::is_null), "{claims}");
}

/// For URLs, without padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let mut three = [0; 4];
        three[1..=part.len()].copy_from_slice(part);
        let bits = u32::from_be_bytes(three);
        for digit in 0..=part.len() {
            text.push(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize].into());
        }
    }
    text
}
