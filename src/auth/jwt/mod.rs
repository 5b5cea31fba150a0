//! Tokens: a JSON Web Token (RFC 7519) signed by a key that is known here.

mod jwks;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::Identity;
use crate::clock::Timestamp;
use crate::config::{JwtConfig, JwtKey, JwtKeys};
use crate::protocol::code::Code;
use crate::protocol::problem::Problem;
use jwks::{Jwks, NoKey};

/// By which the clocks of issuer and nodes may differ.
pub const LEEWAY: Duration = Duration::from_secs(5);
const MAX_TOKEN_BYTES: usize = 8 * 1024;
const MEANT_FOR_SOMEBODY: &str =
    "the token is meant for somebody (aud), and JWT_AUDIENCE is not set";

/// Checks tokens.
pub struct Tokens {
    keys: Keys,
    issuer: Option<String>,
    audience: Option<String>,
}

enum Keys {
    Fixed(Arc<JwtKey>),
    Jwks(Box<Jwks>),
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    sub: serde_json::Value,
    /// Seconds since the Unix epoch, perhaps with a part of one.
    exp: Option<f64>,
    aud: Option<serde_json::Value>,
}

impl Tokens {
    pub async fn connect(config: &JwtConfig) -> anyhow::Result<Self> {
        let keys = match &config.keys {
            JwtKeys::Fixed(key) => Keys::Fixed(Arc::new(key.clone())),
            JwtKeys::Jwks(url) => Keys::Jwks(Box::new(Jwks::connect(url.clone()).await?)),
        };
        let (issuer, audience) = (config.issuer.clone(), config.audience.clone());
        Ok(Self { keys, issuer, audience })
    }

    /// Keeps the keys fresh until `stop`.
    pub async fn keep(&self, stop: CancellationToken) {
        match &self.keys {
            Keys::Fixed(_) => stop.cancelled().await,
            Keys::Jwks(jwks) => jwks.keep(stop).await,
        }
    }

    /// Who the token says is asking. The refusal tells which check failed, and nothing of the
    /// token.
    pub async fn check(&self, token: &str) -> Result<Identity, Problem> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(refusal(format!("the token has more than {MAX_TOKEN_BYTES} bytes")));
        }
        let header = decode_header(token).map_err(|_| {
            refusal("the token's header cannot be read, or its algorithm (alg) is not known")
        })?;
        if header.crit.is_some() {
            return Err(refusal("the token's header demands what is not known here (crit)"));
        }
        let key = self.key(header.kid.as_deref(), header.alg).await?;
        if key.algorithm != header.alg {
            return Err(refusal("the token's algorithm (alg) is not the one of its key"));
        }
        let checked = decode::<Claims>(token, &key.key, &self.validation(key.algorithm));
        let claims = checked.map_err(|error| self.refused(&error))?.claims;
        // The library passes over an audience that is no text.
        if self.audience.is_none() && claims.aud.is_some() {
            return Err(refusal(MEANT_FOR_SOMEBODY));
        }
        let user_id = claims.sub.as_str().and_then(|sub| sub.parse().ok());
        let user_id =
            user_id.ok_or_else(|| refusal("the token's subject (sub) is no user's UUID"))?;
        // Saturates where the number is beyond all time.
        let expires_at = claims.exp.ok_or_else(|| refusal("the token has no end (exp)"))?;
        let expires_at = Timestamp::from_millis((expires_at * 1_000.0) as i64);
        Ok(Identity { user_id, expires_at: Some(expires_at) })
    }

    async fn key(&self, id: Option<&str>, algorithm: Algorithm) -> Result<Arc<JwtKey>, Problem> {
        match &self.keys {
            // A single key needs no name.
            Keys::Fixed(key) => Ok(key.clone()),
            Keys::Jwks(jwks) => jwks.find(id, algorithm).await.map_err(|none| match none {
                NoKey::Unnamed => refusal("the token does not name its key (kid)"),
                NoKey::Unknown => refusal("the token's key (kid) is not among the issuer's"),
                NoKey::Unreachable => {
                    let detail = "the token's key (kid) is not known, and the issuer cannot be \
                                  asked just now";
                    Problem::new(Code::Unavailable, detail)
                }
            }),
        }
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if let Some(audience) = &self.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    fn refused(&self, error: &Error) -> Problem {
        refusal(match error.kind() {
            ErrorKind::InvalidSignature => "the token's signature does not fit its key",
            ErrorKind::ExpiredSignature => "the token has expired (exp)",
            ErrorKind::ImmatureSignature => "the token is not valid yet (nbf)",
            ErrorKind::InvalidIssuer => "the token is of another issuer (iss)",
            ErrorKind::InvalidAudience if self.audience.is_none() => MEANT_FOR_SOMEBODY,
            ErrorKind::InvalidAudience => "the token is meant for somebody else (aud)",
            ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
                "iss" => "the token names no issuer (iss)",
                "aud" => "the token names no audience (aud)",
                _ => "the token has no end (exp)",
            },
            ErrorKind::InvalidAlgorithm => "the token's algorithm (alg) is not the one of its key",
            _ => "the token cannot be read",
        })
    }
}

fn refusal(detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(Code::Unauthenticated, detail)
}
