//! The issuer's keys, fetched from a URL (a JSON Web Key Set, RFC 7517), cached, and fetched anew
//! now and then and when a token names a key that is not known.
//!
//! One task fetches, so however many unknown keys are named, the issuer is asked at most once in
//! [`PAUSE`]. While it is away the keys there were stay good.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jsonwebtoken::Algorithm;
use jsonwebtoken::jwk::Jwk;
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::{JwksUrl, JwtKey};

/// How long a key that the issuer took back may still be good.
const EVERY: Duration = Duration::from_secs(300);
/// After a fetch that failed.
const AGAIN: Duration = Duration::from_secs(30);
/// Between two fetches, whatever is asked for.
const PAUSE: Duration = Duration::from_secs(3);
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_SET_BYTES: usize = 256 * 1024;
/// Of a set; what stands behind them is not looked at.
const MAX_KEYS: usize = 100;

pub struct Jwks {
    state: watch::Sender<State>,
    /// Somebody wants a key that is not there.
    asked: Notify,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    url: JwksUrl,
}

struct State {
    keys: Vec<Arc<JwtKey>>,
    /// When the last fetch ended, and whether it brought the keys.
    tried: Instant,
    reached: bool,
}

/// Why there is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoKey {
    /// The token names none, and several could be meant.
    Unnamed,
    Unknown,
    /// The issuer may have it, and cannot be asked.
    Unreachable,
}

impl State {
    /// The key of this name; without a name, the only one there is for the algorithm.
    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<Arc<JwtKey>, NoKey> {
        let Some(id) = id else {
            let mut fitting = self.keys.iter().filter(|key| key.algorithm == algorithm);
            return match (fitting.next(), fitting.next()) {
                (Some(key), None) => Ok(key.clone()),
                _ => Err(NoKey::Unnamed),
            };
        };
        let named = self.keys.iter().find(|key| key.id.as_deref() == Some(id));
        named.cloned().ok_or(if self.reached { NoKey::Unknown } else { NoKey::Unreachable })
    }
}

impl Jwks {
    /// Fetches the keys once: without any, nobody could come in.
    pub async fn connect(url: JwksUrl) -> anyhow::Result<Self> {
        let tls = HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())?;
        let connector = tls.https_or_http().enable_http1().build();
        // Minutes pass between two fetches: no connection is kept.
        let client =
            Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        let state = State { keys: Vec::new(), tried: Instant::now(), reached: false };
        let jwks = Self { state: watch::Sender::new(state), asked: Notify::new(), client, url };
        let keys = jwks.fetch().await?;
        jwks.tried(Some(keys));
        Ok(jwks)
    }

    /// Waits for a fetch if that may bring the key, for a bounded time.
    pub async fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<Arc<JwtKey>, NoKey> {
        let mut states = self.state.subscribe();
        {
            let state = states.borrow_and_update();
            let found = state.find(id, algorithm);
            if matches!(found, Ok(_) | Err(NoKey::Unnamed)) || state.tried.elapsed() < PAUSE {
                return found;
            }
        }
        self.asked.notify_one();
        // Not in time is as good as not reached, which the state tells.
        let _ = timeout(FETCH_TIMEOUT + Duration::from_secs(1), states.changed()).await;
        self.state.borrow().find(id, algorithm)
    }

    /// Keeps the keys fresh until `stop`.
    pub async fn keep(&self, stop: CancellationToken) {
        stop.run_until_cancelled(async {
            loop {
                let (tried, reached) = {
                    let state = self.state.borrow();
                    (state.tried, state.reached)
                };
                tokio::select! {
                    () = sleep(if reached { EVERY } else { AGAIN }) => {}
                    () = self.asked.notified() => tokio::time::sleep_until(tried + PAUSE).await,
                }
                match self.fetch().await {
                    Ok(keys) => self.tried(Some(keys)),
                    Err(error) => {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "the issuer's keys stay as they were"
                        );
                        self.tried(None);
                    }
                }
            }
        })
        .await;
    }

    fn tried(&self, keys: Option<Vec<Arc<JwtKey>>>) {
        self.state.send_modify(|state| {
            state.tried = Instant::now();
            state.reached = keys.is_some();
            if let Some(keys) = keys {
                state.keys = keys;
            }
        });
    }

    async fn fetch(&self) -> anyhow::Result<Vec<Arc<JwtKey>>> {
        let answer = async {
            let mut request = Request::get(self.url.0.clone()).body(Empty::new())?;
            request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
            let answer = self.client.request(request).await.context("no answer")?;
            // Elsewhere than set there may be somebody else's keys: redirects are not followed.
            if answer.status() != StatusCode::OK {
                bail!("the answer has the status {}", answer.status());
            }
            let body = Limited::new(answer.into_body(), MAX_SET_BYTES).collect().await;
            Ok(body.map_err(|error| anyhow::anyhow!(error))?.to_bytes())
        };
        let body = timeout(FETCH_TIMEOUT, answer)
            .await
            .unwrap_or_else(|_| bail!("no whole answer within {FETCH_TIMEOUT:?}"))?;
        let keys = read(&body)?;
        // More likely a fault of the issuer than the wish to lock everyone out.
        if keys.is_empty() {
            bail!("the answer holds no key for RS256, ES256 or EdDSA");
        }
        Ok(keys)
    }
}

/// The usable keys of a set; one that is not is no reason to refuse the others.
fn read(body: &[u8]) -> anyhow::Result<Vec<Arc<JwtKey>>> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(body).context("the answer is no JSON Web Key Set")?;
    let keys = set.keys.into_iter().take(MAX_KEYS);
    let keys = keys.filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
    Ok(keys.filter_map(|key| JwtKey::from_jwk(&key)).map(Arc::new).collect())
}
