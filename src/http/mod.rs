//! The listeners: accept, read with limits and a deadline, route, answer. Handlers stand in a file
//! per resource; each takes who is asking and gives an answer or a problem.

pub mod admin;
pub mod answer;
pub mod conversations;
pub mod cors;
pub mod docs;
pub mod history;
pub mod messages;
pub mod participants;
pub mod presence;
pub mod receipts;
pub mod state;
pub mod sync;
pub mod tickets;
pub mod tls;
pub mod typing;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONNECTION, HeaderMap, HeaderValue, UPGRADE, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{Handshake, Identity};
use crate::protocol::code::Code;
use crate::protocol::model::ReceiptKind;
use crate::protocol::problem::Problem;
use crate::telemetry::metrics::{RouteMetrics, StatusClass};
use crate::telemetry::traces::{self, Span, Trace};
use crate::ws::{Node, upgrade};
use answer::Answer;
use tls::Tls;

/// A request's head must have arrived by then.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Of that, the TLS handshake where there is one.
const TLS_TIMEOUT: Duration = Duration::from_secs(5);
/// Its body, from then on.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);
/// And all of it, with our answer.
const DEADLINE: Duration = Duration::from_secs(30);
/// Of a request's head; hyper answers 431 beyond.
const MAX_HEAD_BYTES: usize = 16 * 1024;
const MAX_REQUEST_ID_BYTES: usize = 128;
/// Connections besides the sockets: requests, and sockets being opened.
const SPARE_CONNECTIONS: usize = 384;
/// Those of operators' tools: probes, scrapes.
const ADMIN_CONNECTIONS: usize = 64;
/// After an accept that failed, for want of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which of the two listeners a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Main,
    Admin,
}

/// What both listeners serve.
pub struct Server {
    node: Arc<Node>,
    exporter: PrometheusHandle,
    /// Of the main door; None: it is in the clear.
    tls: Option<Arc<Tls>>,
    metrics: Vec<(Route, &'static str, RouteMetrics)>,
    /// Connections that are not, or not yet, sockets.
    connections: AtomicUsize,
}

impl Server {
    pub fn new(node: Arc<Node>, exporter: PrometheusHandle, tls: Option<Arc<Tls>>) -> Self {
        let rows = Route::ALL.into_iter().flat_map(|route| {
            // Requests for what is not there are counted together.
            let methods = if route == Route::Unknown { &["other"][..] } else { route.methods() };
            methods.iter().map(move |method| (route, *method))
        });
        let metrics = rows
            .map(|(route, method)| (route, method, node.metrics.route(method, route.template())))
            .collect();
        Self { node, exporter, tls, metrics, connections: AtomicUsize::new(0) }
    }

    fn is_full(&self) -> bool {
        let node = &self.node;
        let open = node.sockets.load(Ordering::Relaxed) + self.connections.load(Ordering::Relaxed);
        open >= node.config.ws.max_connections + SPARE_CONNECTIONS
    }

    fn count(&self, route: Route, method: &Method, status: u16, elapsed: Duration) {
        let rows = || self.metrics.iter();
        let row = rows()
            .find(|row| row.0 == route && row.1 == method.as_str())
            .or_else(|| rows().find(|row| row.0 == Route::Unknown));
        if let Some((_, _, metrics)) = row {
            metrics.requests.of(StatusClass::of_status(status)).increment(1);
            metrics.seconds.record(elapsed);
        }
    }
}

/// Accepts until `stop`; a failed accept is never the end.
pub async fn serve(
    server: Arc<Server>,
    listener: TcpListener,
    door: Door,
    connections: TaskTracker,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let is_full = match door {
            Door::Main => server.is_full(),
            // A node full of clients has to answer those who look after it.
            Door::Admin => connections.len() >= ADMIN_CONNECTIONS,
        };
        match accepted {
            // Dropped, which closes it: better than to run out of file descriptors.
            Ok(_) if is_full => {}
            Ok((stream, peer)) => {
                let peer = peer.ip();
                // Dropped as well, where one address holds too many of them.
                let Some(held) = Counted::new(server.clone(), peer, door) else { continue };
                let serving = connection(held, stream, peer, door, stop.clone());
                connections.spawn(serving);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One of the connections, for as long as it is held.
struct Counted {
    server: Arc<Server>,
    source: Option<IpAddr>,
}

impl Counted {
    fn new(server: Arc<Server>, peer: IpAddr, door: Door) -> Option<Self> {
        let source = match door {
            Door::Main => server.node.rates.source(peer, &HeaderMap::new()),
            Door::Admin => None,
        };
        server.node.rates.enter(source).then(|| {
            server.connections.fetch_add(1, Ordering::Relaxed);
            Self { server, source }
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.server.connections.fetch_sub(1, Ordering::Relaxed);
        self.server.node.rates.leave(self.source);
    }
}

async fn connection(
    held: Counted,
    stream: TcpStream,
    peer: IpAddr,
    door: Door,
    stop: CancellationToken,
) {
    // Events are small and wanted now.
    let _ = stream.set_nodelay(true);
    let tls = held.server.tls.as_ref().filter(|_| door == Door::Main);
    let Some(tls) = tls.map(|tls| TlsAcceptor::from(tls.current())) else {
        return talk(held, TokioIo::new(stream), HEAD_TIMEOUT, peer, door, stop).await;
    };
    // Boxed, so that who has no TLS does not hold what it needs.
    Box::pin(async move {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = tokio::time::timeout(TLS_TIMEOUT, tls.accept(stream)) => accepted,
        };
        match accepted {
            Ok(Ok(stream)) => {
                let head_timeout = HEAD_TIMEOUT - TLS_TIMEOUT;
                talk(held, TokioIo::new(stream), head_timeout, peer, door, stop).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "no TLS handshake"),
            Err(_) => tracing::debug!("no TLS handshake in time"),
        }
    })
    .await;
}

/// Serves the requests of one connection.
async fn talk<S>(
    held: Counted,
    stream: S,
    head_timeout: Duration,
    peer: IpAddr,
    door: Door,
    stop: CancellationToken,
) where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let server = &held.server;
    // An IPv4 client of an IPv6 listener is the IPv4 client the settings speak of.
    let peer = peer.to_canonical();
    let service = service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(respond(&server, request, peer, door).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(stream, service)
        .with_upgrades();
    let mut serving = std::pin::pin!(serving);
    // Errors here are the client's: it went away, or did not speak HTTP.
    tokio::select! {
        _ = &mut serving => {}
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(HEAD_TIMEOUT, serving).await;
        }
    }
}

async fn respond(
    server: &Server,
    request: Request<Incoming>,
    peer: IpAddr,
    door: Door,
) -> Response<Full<Bytes>> {
    let started = Instant::now();
    let node = &server.node;
    let request_id = request_id(&request);
    let method = request.method().clone();
    let (route, path) = Route::of(request.uri().path(), door, node.auth.is_dev());
    let origin = node.auth.allowed_origin(request.headers()).filter(|_| door == Door::Main);
    let mut span = Span::default();
    if traces::is_on() && route.is_traced() {
        let parent = Trace::of_headers(request.headers());
        span = Span::of_request(|| format!("{method} {}", route.template()), &parent);
        span.set("http.request.method", &method);
        span.set("http.route", route.template());
        span.set("request_id", &request_id);
    }
    let handling = handle(server, request, door, route, path, peer, span.trace());
    let handled = tokio::time::timeout(DEADLINE, handling);
    let answer = handled.await.unwrap_or_else(|_| {
        Err(Problem::new(Code::Unavailable, "the answer took too long; try again"))
    });
    let mut response = answer.unwrap_or_else(|mut problem| {
        problem.request_id = Some(request_id.clone());
        answer::problem(&problem)
    });
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        let allowed = route.methods().join(", ");
        response.headers_mut().insert(ALLOW, HeaderValue::from_str(&allowed).expect("is ASCII"));
    }
    if response.status() == StatusCode::UPGRADE_REQUIRED {
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if response.status() == StatusCode::UNAUTHORIZED && node.auth.uses_tokens() {
        let scheme = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
    }
    if door == Door::Main && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        cors::mark(response.headers_mut(), origin);
    }
    let value = HeaderValue::from_str(&request_id).expect("checked or made by us");
    response.headers_mut().insert("x-request-id", value);
    let status = response.status().as_u16();
    let elapsed = started.elapsed();
    server.count(route, &method, status, elapsed);
    span.count("http.response.status_code", status.into());
    if status >= 500 {
        span.failed("server error");
    }
    drop(span);
    let (method, route) = (method.as_str(), route.template());
    let duration_ms = elapsed.as_millis() as u64;
    if status == 500 {
        tracing::error!(request_id, method, route, status, duration_ms, "answered");
    } else {
        tracing::debug!(request_id, method, route, status, duration_ms, "answered");
    }
    response
}

/// The caller's own, if it is fit to be logged, or a new one.
fn request_id(request: &Request<Incoming>) -> String {
    let given = request.headers().get("x-request-id").and_then(|value| value.to_str().ok());
    given
        .filter(|id| !id.is_empty() && id.len() <= MAX_REQUEST_ID_BYTES)
        .filter(|id| id.bytes().all(|byte| byte.is_ascii_graphic()))
        .map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned)
}

/// Every path there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Page,
    Health,
    Ready,
    Metrics,
    Socket,
    Messages,
    Message,
    Edits,
    Read,
    Delivered,
    Receipts,
    Conversations,
    Conversation,
    Participants,
    Participant,
    History,
    Typing,
    Sync,
    Presence,
    Tickets,
    Disconnect,
    OpenApi,
    AsyncApi,
    Docs,
    Unknown,
}

/// The ids in a path, as text.
type Path = [String; 2];

impl Route {
    pub const ALL: [Self; 25] = [
        Self::Page,
        Self::Health,
        Self::Ready,
        Self::Metrics,
        Self::Socket,
        Self::Messages,
        Self::Message,
        Self::Edits,
        Self::Read,
        Self::Delivered,
        Self::Receipts,
        Self::Conversations,
        Self::Conversation,
        Self::Participants,
        Self::Participant,
        Self::History,
        Self::Typing,
        Self::Sync,
        Self::Presence,
        Self::Tickets,
        Self::Disconnect,
        Self::OpenApi,
        Self::AsyncApi,
        Self::Docs,
        Self::Unknown,
    ];

    fn of(path: &str, door: Door, dev: bool) -> (Self, Path) {
        let path = path.strip_suffix('/').unwrap_or(path);
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let ids = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        let none = || ids("", "");
        match (door, segments.as_slice()) {
            (_, ["health"]) => (Self::Health, none()),
            (_, ["ready"]) => (Self::Ready, none()),
            (Door::Admin, ["metrics"]) => (Self::Metrics, none()),
            (Door::Admin, ["admin", "v1", "disconnect"]) => (Self::Disconnect, none()),
            (Door::Admin, _) => (Self::Unknown, none()),
            (Door::Main, ["metrics"]) if dev => (Self::Metrics, none()),
            (Door::Main, []) if dev => (Self::Page, none()),
            (Door::Main, ["openapi.json"]) => (Self::OpenApi, none()),
            (Door::Main, ["asyncapi.json"]) => (Self::AsyncApi, none()),
            (Door::Main, ["docs"]) => (Self::Docs, none()),
            (Door::Main, ["ws"]) => (Self::Socket, none()),
            (Door::Main, ["api", "v1", rest @ ..]) => match rest {
                ["messages"] => (Self::Messages, none()),
                ["messages", id] => (Self::Message, ids(id, "")),
                ["messages", id, "edits"] => (Self::Edits, ids(id, "")),
                ["messages", id, "read"] => (Self::Read, ids(id, "")),
                ["messages", id, "delivered"] => (Self::Delivered, ids(id, "")),
                ["messages", id, "receipts"] => (Self::Receipts, ids(id, "")),
                ["conversations"] => (Self::Conversations, none()),
                ["conversations", id] => (Self::Conversation, ids(id, "")),
                ["conversations", id, "participants"] => (Self::Participants, ids(id, "")),
                ["conversations", id, "participants", user] => (Self::Participant, ids(id, user)),
                ["conversations", id, "messages"] => (Self::History, ids(id, "")),
                ["conversations", id, "typing"] => (Self::Typing, ids(id, "")),
                ["sync"] => (Self::Sync, none()),
                ["presence"] => (Self::Presence, none()),
                ["ws-tickets"] => (Self::Tickets, none()),
                _ => (Self::Unknown, none()),
            },
            _ => (Self::Unknown, none()),
        }
    }

    /// How the route is called in metrics, logs and documents.
    pub fn template(self) -> &'static str {
        match self {
            Self::Page => "/",
            Self::Health => "/health",
            Self::Ready => "/ready",
            Self::Metrics => "/metrics",
            Self::Socket => "/ws",
            Self::Messages => "/api/v1/messages",
            Self::Message => "/api/v1/messages/{id}",
            Self::Edits => "/api/v1/messages/{id}/edits",
            Self::Read => "/api/v1/messages/{id}/read",
            Self::Delivered => "/api/v1/messages/{id}/delivered",
            Self::Receipts => "/api/v1/messages/{id}/receipts",
            Self::Conversations => "/api/v1/conversations",
            Self::Conversation => "/api/v1/conversations/{id}",
            Self::Participants => "/api/v1/conversations/{id}/participants",
            Self::Participant => "/api/v1/conversations/{id}/participants/{user_id}",
            Self::History => "/api/v1/conversations/{id}/messages",
            Self::Typing => "/api/v1/conversations/{id}/typing",
            Self::Sync => "/api/v1/sync",
            Self::Presence => "/api/v1/presence",
            Self::Tickets => "/api/v1/ws-tickets",
            Self::Disconnect => "/admin/v1/disconnect",
            Self::OpenApi => "/openapi.json",
            Self::AsyncApi => "/asyncapi.json",
            Self::Docs => "/docs",
            Self::Unknown => "unknown",
        }
    }

    /// A socket's request says nothing of its life, and probes would be all that one sees.
    fn is_traced(self) -> bool {
        !matches!(self, Self::Health | Self::Ready | Self::Metrics | Self::Socket | Self::Unknown)
    }

    /// Whether the admin listener is where it belongs.
    pub fn is_admin(self) -> bool {
        matches!(self, Self::Metrics | Self::Disconnect)
    }

    pub fn methods(self) -> &'static [&'static str] {
        match self {
            Self::Page
            | Self::Health
            | Self::Ready
            | Self::Metrics
            | Self::Socket
            | Self::Edits
            | Self::Receipts
            | Self::History
            | Self::Presence
            | Self::OpenApi
            | Self::AsyncApi
            | Self::Docs => &["GET"],
            Self::Messages
            | Self::Read
            | Self::Delivered
            | Self::Typing
            | Self::Sync
            | Self::Tickets
            | Self::Disconnect => &["POST"],
            Self::Message => &["GET", "PUT", "DELETE"],
            Self::Conversations | Self::Participants => &["GET", "POST"],
            Self::Conversation => &["GET", "PATCH"],
            Self::Participant => &["PATCH", "DELETE"],
            Self::Unknown => &[],
        }
    }
}

/// What a handler works on.
pub struct Call<'a> {
    pub node: &'a Arc<Node>,
    pub user: crate::ids::UserId,
    pub identity: Identity,
    pub headers: hyper::HeaderMap,
    pub query: Option<String>,
    pub path: Path,
    pub body: Vec<u8>,
    /// Of the call, for what it starts.
    pub trace: Trace,
}

async fn handle(
    server: &Server,
    request: Request<Incoming>,
    door: Door,
    route: Route,
    path: Path,
    peer: IpAddr,
    trace: Trace,
) -> Answer {
    let node = &server.node;
    node.auth.admit_host(request.headers())?;
    if route == Route::Unknown {
        return Err(Problem::new(Code::NotFound, "there is nothing at this path"));
    }
    if door == Door::Main && cors::is_preflight(&request) {
        node.auth.admit_origin(request.headers())?;
        return cors::preflight(route);
    }
    if !route.methods().contains(&request.method().as_str()) {
        return Err(Problem::new(Code::MethodNotAllowed, "this path has no such method"));
    }
    cors::admit(&node.auth, door, &request)?;
    match route {
        Route::Page => return Ok(state::page()),
        Route::Health => return Ok(state::health()),
        Route::Ready => return Ok(state::ready(node).await),
        Route::Metrics => return Ok(state::metrics(node, &server.exporter)),
        Route::OpenApi => return Ok(docs::openapi()),
        Route::AsyncApi => return Ok(docs::asyncapi()),
        Route::Docs => return Ok(docs::page()),
        Route::Socket => return upgrade::upgrade(node, request, peer).await,
        Route::Disconnect => return admin::disconnect(node, request.into_body()).await,
        _ => {}
    }
    let identity = node.auth.identify(request.headers(), peer, Handshake::default()).await;
    let identity = identity.map_err(|problem| {
        let source = node.rates.source(peer, request.headers());
        node.rates.identity_refused(source, problem)
    })?;
    let (head, body) = request.into_parts();
    let call = Call {
        node,
        user: identity.user_id(),
        identity,
        query: head.uri.query().map(str::to_owned),
        headers: head.headers,
        path,
        trace,
        body: read(body, node.limits.max_frame_bytes).await?,
    };
    match (route, head.method) {
        (Route::Messages, _) => messages::send(call).await,
        (Route::Message, Method::PUT) => messages::edit(call).await,
        (Route::Message, Method::DELETE) => messages::delete(call).await,
        (Route::Message, _) => messages::get(call).await,
        (Route::Edits, _) => messages::edits(call).await,
        (Route::Read, _) => receipts::note(call, ReceiptKind::Read).await,
        (Route::Delivered, _) => receipts::note(call, ReceiptKind::Delivered).await,
        (Route::Receipts, _) => receipts::list(call).await,
        (Route::Conversations, Method::POST) => conversations::create(call).await,
        (Route::Conversations, _) => conversations::list(call).await,
        (Route::Conversation, Method::PATCH) => conversations::patch(call).await,
        (Route::Conversation, _) => conversations::get(call).await,
        (Route::Participants, Method::POST) => participants::add(call).await,
        (Route::Participants, _) => participants::list(call).await,
        (Route::Participant, Method::DELETE) => participants::remove(call).await,
        (Route::Participant, _) => participants::patch(call).await,
        (Route::History, _) => history::get(call).await,
        (Route::Typing, _) => typing::tell(call).await,
        (Route::Sync, _) => sync::sync(call).await,
        (Route::Presence, _) => presence::query(call).await,
        (Route::Tickets, _) => tickets::issue(call).await,
        _ => unreachable!("handled above, or refused by its methods"),
    }
}

async fn read(body: Incoming, limit: usize) -> Result<Vec<u8>, Problem> {
    let read = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await;
    let read = read.map_err(|_| {
        let detail = format!("the body did not arrive within {BODY_TIMEOUT:?}");
        Problem::new(Code::RequestTimeout, detail)
    })?;
    match read {
        Ok(body) => Ok(body.to_bytes().into()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(Problem::new(
            Code::TooLarge,
            format!("the body is larger than the {limit} bytes allowed"),
        )),
        Err(_) => Err(Problem::new(Code::Malformed, "the body did not arrive whole")),
    }
}
