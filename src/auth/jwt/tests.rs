use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::*;
use crate::config::Config;

const USER: &str = "11111111-1111-4111-8111-111111111111";
const SECRET: &str = "an HMAC secret of exactly 34 bytes";
const RSA: &str = include_str!("../../../tests/keys/rsa.pem");
const RSA_PUBLIC: &str = include_str!("../../../tests/keys/rsa.pub.pem");
const OTHER_RSA: &str = include_str!("../../../tests/keys/other-rsa.pem");
const EC: &str = include_str!("../../../tests/keys/ec.pem");
const EC_PUBLIC: &str = include_str!("../../../tests/keys/ec.pub.pem");
const ED: &str = include_str!("../../../tests/keys/ed.pem");
const ED_PUBLIC: &str = include_str!("../../../tests/keys/ed.pub.pem");

fn now() -> i64 {
    Timestamp::now().millis() / 1_000
}

fn claims() -> Value {
    json!({ "sub": USER, "exp": now() + 60 })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn signer(algorithm: Algorithm) -> EncodingKey {
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
            EncodingKey::from_secret(SECRET.as_bytes())
        }
        Algorithm::ES256 => EncodingKey::from_ec_pem(EC.as_bytes()).unwrap(),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(ED.as_bytes()).unwrap(),
        _ => EncodingKey::from_rsa_pem(RSA.as_bytes()).unwrap(),
    }
}

fn sign(algorithm: Algorithm, claims: &Value) -> String {
    encode(&Header::new(algorithm), claims, &signer(algorithm)).unwrap()
}

async fn tokens(settings: &[(&str, &str)]) -> Tokens {
    let config = Config::from_lookup(|name| {
        let given = settings.iter().find(|(key, _)| *key == name);
        given.map_or((name == "AUTH_MODE").then(|| "jwt".into()), |(_, value)| {
            Some((*value).to_owned())
        })
    });
    let crate::config::AuthMode::Jwt(jwt) = config.unwrap().auth.mode else { panic!("no jwt") };
    Tokens::connect(&jwt).await.unwrap()
}

/// Why a token is refused.
async fn refused(tokens: &Tokens, token: &str) -> String {
    let problem = tokens.check(token).await.expect_err("it is refused");
    assert_eq!(problem.code, Code::Unauthenticated);
    problem.detail.into_owned()
}

const KEYS: [(Algorithm, &str); 4] = [
    (Algorithm::HS256, SECRET),
    (Algorithm::RS256, RSA_PUBLIC),
    (Algorithm::ES256, EC_PUBLIC),
    (Algorithm::EdDSA, ED_PUBLIC),
];

#[tokio::test]
async fn each_algorithm_is_good_with_its_own_key_only() {
    for (algorithm, key) in KEYS {
        let tokens = tokens(&[("JWT_KEY", key)]).await;
        let identity = tokens.check(&sign(algorithm, &claims())).await.unwrap();
        assert_eq!(identity.user_id().to_string(), USER);
        let ends = identity.expires_at().unwrap().millis() / 1_000 - now();
        assert!((58..=60).contains(&ends), "{algorithm:?}: {ends} s");
        for (other, _) in KEYS.iter().filter(|(other, _)| *other != algorithm) {
            let detail = refused(&tokens, &sign(*other, &claims())).await;
            assert!(detail.contains("(alg)"), "{other:?} for {algorithm:?}: {detail}");
        }
    }
    // The same family is not enough.
    let secret = tokens(&[("JWT_KEY", SECRET)]).await;
    assert!(refused(&secret, &sign(Algorithm::HS512, &claims())).await.contains("(alg)"));
    let rsa = tokens(&[("JWT_KEY", RSA_PUBLIC)]).await;
    for algorithm in [Algorithm::RS512, Algorithm::PS256] {
        assert!(refused(&rsa, &sign(algorithm, &claims())).await.contains("(alg)"));
    }
}

/// The attack: a public key is known to all, so an HMAC with its text as the secret proves nothing.
#[tokio::test]
async fn a_public_key_is_no_secret() {
    for key in [RSA_PUBLIC, EC_PUBLIC, ED_PUBLIC] {
        let tokens = tokens(&[("JWT_KEY", key)]).await;
        for secret in [key.as_bytes(), key.trim().as_bytes()] {
            let forger = EncodingKey::from_secret(secret);
            let forged = encode(&Header::new(Algorithm::HS256), &claims(), &forger).unwrap();
            assert!(refused(&tokens, &forged).await.contains("(alg)"));
        }
    }
}

#[tokio::test]
async fn what_is_not_signed_or_not_by_this_key_is_refused() {
    let tokens = tokens(&[("JWT_KEY", RSA_PUBLIC)]).await;
    let other = EncodingKey::from_rsa_pem(OTHER_RSA.as_bytes()).unwrap();
    let foreign = encode(&Header::new(Algorithm::RS256), &claims(), &other).unwrap();
    assert!(refused(&tokens, &foreign).await.contains("signature"));
    let good = sign(Algorithm::RS256, &claims());
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (header, payload) = message.split_once('.').unwrap();
    let other_user = sign(Algorithm::RS256, &with("sub", json!(uuid::Uuid::nil())));
    let other_payload = other_user.split('.').nth(1).unwrap();
    assert!(
        refused(&tokens, &format!("{header}.{other_payload}.{signature}"))
            .await
            .contains("signature")
    );
    assert!(refused(&tokens, &format!("{message}.")).await.contains("signature"));
    // {"alg":"none"}, {"alg":"None","typ":"JWT"}
    for none in ["eyJhbGciOiJub25lIn0", "eyJhbGciOiJOb25lIiwidHlwIjoiSldUIn0"] {
        for token in [format!("{none}.{payload}."), format!("{none}.{payload}.{signature}")] {
            assert!(refused(&tokens, &token).await.contains("(alg)"));
        }
    }
    for token in ["", ".", "..", "a.b", "a.b.c", "....", "ä.ö.ü", message, &"x".repeat(9_000)] {
        let detail = refused(&tokens, token).await;
        assert!(token.len() < 4 || !detail.contains(token), "{detail}");
    }
}

#[tokio::test]
async fn times_are_checked_with_a_small_difference_of_clocks() {
    let tokens = tokens(&[("JWT_KEY", SECRET)]).await;
    let check = async |claims: Value| tokens.check(&sign(Algorithm::HS256, &claims)).await;
    let why = async |claims: Value| refused(&tokens, &sign(Algorithm::HS256, &claims)).await;
    assert!(check(with("exp", json!(now() - 2))).await.is_ok());
    assert!(why(with("exp", json!(now() - 10))).await.contains("(exp)"));
    assert!(why(json!({ "sub": USER })).await.contains("(exp)"));
    for exp in [json!("tomorrow"), json!(-1), Value::Null, json!([])] {
        why(with("exp", exp)).await;
    }
    let fraction = check(with("exp", json!(now() as f64 + 60.5))).await.unwrap();
    assert_eq!(fraction.expires_at().unwrap().millis() % 1_000, 500);
    let forever = check(with("exp", json!(u64::MAX))).await.unwrap();
    assert!(!crate::auth::is_past(forever.expires_at().unwrap(), Timestamp::now()));
    assert!(check(with("nbf", json!(now() + 2))).await.is_ok());
    assert!(why(with("nbf", json!(now() + 60))).await.contains("(nbf)"));
    why(with("nbf", json!("now"))).await;
}

#[tokio::test]
async fn issuer_audience_and_subject_are_checked() {
    let settings =
        [("JWT_KEY", SECRET), ("JWT_ISSUER", "https://issuer"), ("JWT_AUDIENCE", "tidings")];
    let strict = tokens(&settings).await;
    let why = async |claims: Value| refused(&strict, &sign(Algorithm::HS256, &claims)).await;
    let good = || {
        let mut claims = with("iss", json!("https://issuer"));
        claims["aud"] = json!("tidings");
        claims
    };
    let changed = |name: &str, value: Value| {
        let mut claims = good();
        claims[name] = value;
        claims
    };
    for claims in [good(), changed("aud", json!(["other", "tidings"]))] {
        assert!(strict.check(&sign(Algorithm::HS256, &claims)).await.is_ok());
    }
    for issuer in [json!("https://other"), json!(""), json!(7), Value::Null, json!(["x"])] {
        assert!(why(changed("iss", issuer)).await.contains("(iss)"));
    }
    for audience in [json!("other"), json!(["other"]), json!([]), json!(7), Value::Null] {
        assert!(why(changed("aud", audience)).await.contains("(aud)"));
    }
    for subject in [json!("ada"), json!(""), json!(7), Value::Null] {
        assert!(why(changed("sub", subject)).await.contains("(sub)"));
    }
    why(changed("sub", json!([USER]))).await;
    // Not set: any issuer, and nobody's audience.
    let lenient = tokens(&[("JWT_KEY", SECRET)]).await;
    let any = with("iss", json!("anyone"));
    assert!(lenient.check(&sign(Algorithm::HS256, &any)).await.is_ok());
    for audience in [json!("tidings"), json!(["tidings"]), json!([]), json!(7), json!({})] {
        let meant = sign(Algorithm::HS256, &with("aud", audience));
        assert!(refused(&lenient, &meant).await.contains("JWT_AUDIENCE"));
    }
    let nobody = sign(Algorithm::HS256, &with("aud", Value::Null));
    assert!(lenient.check(&nobody).await.is_ok());
}

#[tokio::test]
async fn demands_in_the_header_that_are_not_known_are_not_passed_over() {
    let tokens = tokens(&[("JWT_KEY", SECRET)]).await;
    let header = Header { crit: Some(vec!["b64".into()]), ..Header::new(Algorithm::HS256) };
    let token = encode(&header, &claims(), &signer(Algorithm::HS256)).unwrap();
    assert!(refused(&tokens, &token).await.contains("(crit)"));
}

/// The public half of a key, as an issuer publishes it.
fn jwk(algorithm: Algorithm) -> Value {
    serde_json::to_value(Jwk::from_encoding_key(&signer(algorithm), algorithm).unwrap()).unwrap()
}

fn usable(jwk: Value) -> bool {
    serde_json::from_value::<Jwk>(jwk).is_ok_and(|jwk| JwtKey::from_jwk(&jwk).is_some())
}

#[test]
fn of_a_key_set_only_what_verifies_our_algorithms_is_taken() {
    let changed = |algorithm, name: &str, value: Value| {
        let mut jwk = jwk(algorithm);
        jwk[name] = value;
        jwk
    };
    for algorithm in [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA] {
        assert!(usable(jwk(algorithm)), "{algorithm:?}: {}", jwk(algorithm));
        assert!(usable(changed(algorithm, "use", json!("sig"))));
        assert!(!usable(changed(algorithm, "use", json!("enc"))));
        assert!(!usable(changed(algorithm, "key_ops", json!(["sign"]))));
        assert!(!usable(changed(algorithm, "alg", json!("HS256"))));
        assert!(!usable(changed(algorithm, "alg", json!("PS512"))));
    }
    // A published secret is none.
    assert!(!usable(
        json!({ "kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "alg": "HS256" })
    ));
    for x in ["", "AAAA", "!"] {
        assert!(!usable(changed(Algorithm::EdDSA, "x", json!(x))), "no panic, and no key: {x}");
        assert!(!usable(changed(Algorithm::ES256, "x", json!(x))), "{x}");
    }
    assert!(!usable(changed(Algorithm::RS256, "n", json!("AQAB"))), "too short");
}
