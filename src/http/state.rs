//! What the node says of itself: the page, health, readiness, metrics.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue};
use hyper::{Response, StatusCode};
use metrics_exporter_prometheus::PrometheusHandle;

use super::answer;
use crate::protocol::answer::{Health, Readiness, Ready};
use crate::telemetry::metrics::PoolState;
use crate::ws::Node;

const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// The page may run its own script and talk to this node, and nothing else.
pub const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
    script-src 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

pub fn page() -> Response<Full<Bytes>> {
    let page = Bytes::from_static(include_bytes!("demo.html"));
    let mut response = answer::with_type(StatusCode::OK, "text/html; charset=utf-8", page);
    let policy = HeaderValue::from_static(PAGE_POLICY);
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    response
}

/// The process runs its loop: nothing else is asked.
pub fn health() -> Response<Full<Bytes>> {
    answer::json(StatusCode::OK, &Health { status: "ok" })
}

/// 200 while the node can store messages and is not stopping. A bus or an offline sink that is
/// away is shown and costs nothing that was acknowledged.
pub async fn ready(node: &Arc<Node>) -> Response<Full<Bytes>> {
    let store = tokio::time::timeout(STORE_TIMEOUT, node.store.ping()).await;
    let store = matches!(store, Ok(Ok(_)));
    let bus = node.bus.is_whole();
    let offline = node.offline.is_up();
    let stopping = node.stopping.is_cancelled();
    let status = match (store && !stopping, bus && offline) {
        (false, _) => Ready::NotReady,
        (true, false) => Ready::Degraded,
        (true, true) => Ready::Ready,
    };
    let body = Readiness {
        status,
        stopping,
        node_id: node.presence.node_id(),
        store: store.into(),
        bus: bus.into(),
        offline: offline.into(),
    };
    let code = match status {
        Ready::NotReady => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    answer::json(code, &body)
}

/// What is sampled is sampled now; the rest was counted where it happened.
pub fn metrics(node: &Arc<Node>, exporter: &PrometheusHandle) -> Response<Full<Bytes>> {
    let (in_use, idle) = node.store.pool_use();
    let pool = &node.metrics.store.pool;
    pool.of(PoolState::InUse).set(in_use as f64);
    pool.of(PoolState::Idle).set(idle as f64);
    node.metrics.store.recent_bytes.set(node.store.recent_bytes() as f64);
    let redis = &node.metrics.redis;
    redis.subscriptions.set(node.bus.subscriptions() as f64);
    redis.reconnects.absolute(node.bus.reconnects());
    redis.undecodable.absolute(node.bus.undecodable());
    redis.lease_losses.absolute(node.presence.lease_losses());
    redis.probe_lag.set(node.bus.probe_lag().unwrap_or_default().as_secs_f64());
    let text = exporter.render();
    answer::with_type(StatusCode::OK, "text/plain; version=0.0.4", text.into())
}
