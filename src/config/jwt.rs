//! Settings of `AUTH_MODE=jwt`, and the keys that verify tokens.
//!
//! A key knows the one algorithm it is for, so a token cannot choose another one for it: the text
//! of a public key never serves as an HMAC secret.

use std::fmt;

use hyper::Uri;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};

use super::values::Reader;

/// Shorter HMAC secrets than the hash's own length can be guessed from a single token.
const MIN_SECRET_BYTES: usize = 32;
/// Of an RSA modulus: 2,048 bits, and the 4,096 that the verifier takes at most.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=512;
const ED25519_BYTES: usize = 32;
const KEY_FORM: &str = "an HMAC secret of at least 32 bytes, or a public key as PEM text \
                        (RSA of 2048 to 4096 bits, P-256 or Ed25519), or file:/path of either";

#[derive(Clone, Debug)]
pub struct JwtConfig {
    pub keys: JwtKeys,
    /// What `iss` must be; None: it is not looked at.
    pub issuer: Option<String>,
    /// What `aud` must hold; None: a token meant for somebody is refused.
    pub audience: Option<String>,
}

/// Where the keys come from.
#[derive(Clone, Debug)]
pub enum JwtKeys {
    Fixed(JwtKey),
    Jwks(JwksUrl),
}

/// Where a JSON Web Key Set is; `http` or `https`.
#[derive(Clone)]
pub struct JwksUrl(pub Uri);

impl fmt::Debug for JwksUrl {
    /// Without path and query, which may hold a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.0.scheme_str().unwrap_or(""), self.0.host().unwrap_or(""))
    }
}

/// A key and the one algorithm it is for.
#[derive(Clone)]
pub struct JwtKey {
    pub algorithm: Algorithm,
    pub key: DecodingKey,
    /// `kid`: what a token calls it.
    pub id: Option<String>,
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ***", self.algorithm)
    }
}

impl JwtKey {
    /// As the setting gives it; an error says what would be right.
    fn read(setting: &str) -> Result<Self, String> {
        if let Some(path) = setting.strip_prefix("file:") {
            let bytes = std::fs::read(path).map_err(|error| {
                format!("file:/path of a file that can be read ({})", error.kind())
            })?;
            // Editors end a file with a line break; it is no part of a secret.
            let end = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
            return Self::from_bytes(end.strip_suffix(b"\r").unwrap_or(end));
        }
        if setting.starts_with(PEM_BEGIN) {
            // Many tools cannot put line breaks into a variable.
            return Self::from_bytes(setting.replace("\\n", "\n").as_bytes());
        }
        Self::from_bytes(setting.as_bytes())
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let expected = || KEY_FORM.to_owned();
        if bytes.starts_with(PEM_BEGIN.as_bytes()) {
            let text = std::str::from_utf8(bytes).map_err(|_| expected())?;
            if text.contains("PRIVATE KEY") {
                return Err("a public key: the private one belongs to the issuer alone".into());
            }
            let key = DecodingKey::from_rsa_pem(bytes)
                .or_else(|_| DecodingKey::from_ec_pem(bytes))
                .or_else(|_| DecodingKey::from_ed_pem(bytes));
            let jwk = key.and_then(|key| Jwk::from_decoding_key(&key, None));
            return jwk.ok().and_then(|jwk| Self::from_jwk(&jwk)).ok_or_else(expected);
        }
        if bytes.len() < MIN_SECRET_BYTES {
            return Err(expected());
        }
        Ok(Self { algorithm: Algorithm::HS256, key: DecodingKey::from_secret(bytes), id: None })
    }

    /// None if it is of no use here: of another algorithm, for another purpose, broken, or a
    /// secret, which would be none once it is published.
    pub fn from_jwk(jwk: &Jwk) -> Option<Self> {
        let common = &jwk.common;
        let verifies = match (&common.public_key_use, &common.key_operations) {
            (Some(purpose), _) => *purpose == PublicKeyUse::Signature,
            (None, Some(operations)) => operations.contains(&KeyOperations::Verify),
            (None, None) => true,
        };
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            AlgorithmParameters::OctetKeyPair(ed) if ed.curve == EllipticCurve::Ed25519 => {
                Algorithm::EdDSA
            }
            _ => return None,
        };
        let other = common.key_algorithm.is_some_and(|named| named != algorithm.into());
        if !verifies || other {
            return None;
        }
        let key = DecodingKey::from_jwk(jwk).ok()?;
        let sound = match key.kind() {
            jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, .. } => {
                let leading = n.iter().take_while(|byte| **byte == 0).count();
                RSA_BYTES.contains(&(n.len() - leading))
            }
            // The verifier takes the first bytes of what is shorter than a key, and panics.
            jsonwebtoken::DecodingKeyKind::SecretOrDer(bytes) => {
                algorithm != Algorithm::EdDSA || bytes.len() == ED25519_BYTES
            }
        };
        // A point that is not on the curve shows when it is first used.
        let usable = sound && jsonwebtoken::crypto::verify("", b"", &key, algorithm).is_ok();
        usable.then(|| Self { algorithm, key, id: common.key_id.clone() })
    }
}

const PEM_BEGIN: &str = "-----BEGIN";

/// None, with a fault, if it is not known how tokens are to be verified.
pub(super) fn read_jwt(read: &mut Reader, wanted: bool) -> Option<JwtConfig> {
    let key = read.parse("JWT_KEY", JwtKey::read);
    let url = read.parse("JWT_JWKS_URL", parse_url);
    let issuer = read.text("JWT_ISSUER");
    let audience = read.text("JWT_AUDIENCE");
    let given = |read: &mut Reader, name| read.text(name).is_some();
    let (key_given, url_given) = (given(read, "JWT_KEY"), given(read, "JWT_JWKS_URL"));
    if !wanted {
        // Else somebody believes that tokens are checked, and they are not.
        for name in ["JWT_KEY", "JWT_JWKS_URL", "JWT_ISSUER", "JWT_AUDIENCE"] {
            if given(read, name) {
                read.fault(name, "nothing, unless AUTH_MODE=jwt");
            }
        }
        return None;
    }
    match (key_given, url_given) {
        (true, true) => read.fault("JWT_KEY", "nothing, because JWT_JWKS_URL says where keys are"),
        (false, false) => {
            let expected = format!("{KEY_FORM}; or set JWT_JWKS_URL, because AUTH_MODE=jwt");
            read.fault("JWT_KEY", expected);
        }
        _ => {}
    }
    let keys = key.map(JwtKeys::Fixed).or(url.map(JwtKeys::Jwks))?;
    Some(JwtConfig { keys, issuer, audience })
}

fn parse_url(text: &str) -> Result<JwksUrl, String> {
    let url = text.parse::<Uri>().ok().filter(|url| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.authority().is_some_and(|at| !at.host().is_empty() && !at.as_str().contains('@'))
    });
    url.map(JwksUrl).ok_or_else(|| "an address such as https://issuer.example.com/jwks.json".into())
}
