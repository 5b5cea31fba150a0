//! Tokens as an issuer would sign them (HS256): for nodes with `AUTH_MODE=jwt`.

use std::fmt;
use std::str::FromStr;

use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;
use uuid::Uuid;

/// No run lasts until then, so no socket ends with its token.
const YEAR_2100: u64 = 4_102_444_800;
const MIN_BYTES: usize = 32;

/// The secret that the node's `JWT_KEY` is.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    pub fn token(&self, user: Uuid) -> String {
        let claims = json!({ "sub": user, "exp": YEAR_2100 });
        let key = EncodingKey::from_secret(self.0.as_bytes());
        jsonwebtoken::encode(&Header::default(), &claims, &key).expect("a secret signs any claims")
    }
}

impl FromStr for Key {
    type Err = String;

    fn from_str(secret: &str) -> Result<Self, String> {
        let long_enough = secret.len() >= MIN_BYTES;
        long_enough
            .then(|| Self(secret.to_owned()))
            .ok_or_else(|| format!("the secret has at least {MIN_BYTES} bytes"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{Algorithm, DecodingKey, Validation};

    #[test]
    fn a_token_names_its_user_and_proves_it() {
        let secret = "0123456789abcdef0123456789abcdef";
        let (key, user) = (secret.parse::<Key>().unwrap(), Uuid::from_u128(7));
        let token = key.token(user);
        let claims = |secret: &str| {
            let key = DecodingKey::from_secret(secret.as_bytes());
            let rules = Validation::new(Algorithm::HS256);
            jsonwebtoken::decode::<serde_json::Value>(&token, &key, &rules)
        };
        assert_eq!(claims(secret).unwrap().claims["sub"], user.to_string());
        assert!(claims(&secret.replace('0', "1")).is_err(), "another key");
        assert!("short".parse::<Key>().is_err());
    }
}
