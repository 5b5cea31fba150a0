//! Lets a socket in: origin, identity, room; then the bare TCP stream, without hyper's buffers.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fastwebsockets::upgrade::UpgradeFut;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderMap, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::handle::{Opening, Session};
use super::{Node, session, wire};
use crate::auth::Handshake;
use crate::protocol::code::Code;
use crate::protocol::problem::Problem;
use crate::write_path::Yields;

/// Clients that offer it get every event; those that do not are classic ones.
const SUBPROTOCOL: &str = "tidings.v1.json";
/// Begins an entry that is no protocol but brings a token: pages can set no other header. It is
/// never echoed.
const TOKEN_SUBPROTOCOL: &str = "bearer.";
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a platform's or an app version's name.
pub const MAX_NAME_BYTES: usize = 32;

/// Answers the handshake, and runs the session once the connection is the socket's.
pub async fn upgrade(
    node: &Arc<Node>,
    mut request: Request<Incoming>,
    peer: IpAddr,
) -> Result<Response<Full<Bytes>>, Problem> {
    if !fastwebsockets::upgrade::is_upgrade_request(&request) {
        return Err(Problem::new(Code::UpgradeRequired, "/ws is for WebSockets"));
    }
    node.auth.admit_origin(request.headers())?;
    let source = node.rates.source(peer, request.headers());
    node.rates.handshake(source)?;
    let opening = opening(node, &request, peer)
        .await
        .map_err(|problem| node.rates.identity_refused(source, problem))?;
    let place = Place::take(node.clone(), source)?;
    let full = !opening.classic;
    let (response, upgraded) = fastwebsockets::upgrade::upgrade(&mut request).map_err(|error| {
        Problem::new(Code::Malformed, format!("no WebSocket handshake: {error}"))
    })?;
    let session = Arc::new(Session::new(opening, node.queue_bounds(), node.metrics.clone()));
    node.sessions.spawn(async move {
        // Boxed: an open socket is not to hold what the upgrade needs.
        let node = place.node.clone();
        match Box::pin(bare(upgraded)).await {
            Some((Stream::Tcp(tcp), early)) => session::run(node, session, tcp, early).await,
            // Boxed: who has no TLS is not to hold room for it.
            Some((Stream::Tls(tls), early)) => {
                Box::pin(session::run(node, session, *tls, early)).await;
            }
            None => {}
        }
    });
    let (mut head, _) = response.into_parts();
    if full {
        head.headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    Ok(Response::from_parts(head, Full::default()))
}

enum Stream {
    Tcp(TcpStream),
    Tls(Box<wire::Tls>),
}

/// The stream by itself, and what was read of it already; None if the client went away between its
/// request and our answer.
async fn bare(upgraded: UpgradeFut) -> Option<(Stream, Bytes)> {
    let socket = tokio::time::timeout(UPGRADE_TIMEOUT, upgraded).await.ok()?.ok()?;
    // The rest of what was read is copied, mostly nothing: the original holds hyper's whole buffer.
    let upgraded = match socket.into_inner().into_inner().downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => {
            let early = Bytes::copy_from_slice(&parts.read_buf);
            return Some((Stream::Tcp(parts.io.into_inner()), early));
        }
        Err(upgraded) => upgraded,
    };
    match upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>() {
        Ok(parts) => {
            let (tcp, state) = parts.io.into_inner().into_inner();
            let early = Bytes::copy_from_slice(&parts.read_buf);
            Some((Stream::Tls(Box::new(wire::Tls::new(tcp, state))), early))
        }
        Err(_) => unreachable!("every connection is served on one of the two"),
    }
}

/// One of the `MAX_CONNECTIONS`, and of those of its address; given back when dropped.
struct Place {
    node: Arc<Node>,
    source: Option<IpAddr>,
}

impl Place {
    fn take(node: Arc<Node>, source: Option<IpAddr>) -> Result<Self, Problem> {
        if node.stopping.is_cancelled() {
            return Err(Problem::new(Code::Unavailable, "this node is stopping; use another"));
        }
        if node.write_path.is_pressed(Yields::Socket) {
            let detail = "so many writes wait that no socket is opened; try again shortly";
            return Err(Problem::new(Code::Busy, detail));
        }
        node.rates.connect(source)?;
        let place = Self { node, source };
        let before = place.node.sockets.fetch_add(1, Ordering::Relaxed);
        if before >= place.node.config.ws.max_connections {
            return Err(Problem::new(Code::Busy, "this node holds as many sockets as it may"));
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.node.sockets.fetch_sub(1, Ordering::Relaxed);
        self.node.rates.disconnect(self.source);
    }
}

async fn opening(
    node: &Node,
    request: &Request<Incoming>,
    peer: IpAddr,
) -> Result<Opening, Problem> {
    let headers = request.headers();
    let in_query = |name: &str| {
        let mut pairs = form_urlencoded::parse(request.uri().query()?.as_bytes());
        pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    };
    let ticket = in_query("ticket");
    // Browsers cannot set headers on a socket, they give the same in the query. A gateway sets
    // headers, and what it did not set does not count.
    let by_query = ticket.is_some() || node.auth.is_dev() || node.auth.uses_tokens();
    let query = |name: &str| in_query(name).filter(|_| by_query);
    let given = |header: &str, name: &'static str| -> Result<Option<String>, Problem> {
        match headers.get(header) {
            Some(value) => match value.to_str() {
                Ok(value) => Ok(Some(value.to_owned())),
                Err(_) => Err(Problem::invalid(name, "holds characters outside ASCII")),
            },
            None => Ok(query(name)),
        }
    };
    let name = |header: &str, name: &'static str| -> Result<Option<Box<str>>, Problem> {
        let value = given(header, name)?.filter(|value| !value.is_empty());
        if value.as_ref().is_some_and(|value| value.len() > MAX_NAME_BYTES) {
            return Err(Problem::invalid(name, format!("has more than {MAX_NAME_BYTES} bytes")));
        }
        Ok(value.map(Into::into))
    };
    let device_id = given("x-device-id", "device_id")?.filter(|device| !device.is_empty());
    let device_id = device_id.map(|device| {
        device.parse().map_err(|detail: String| Problem::invalid("device_id", detail))
    });
    let device_id = device_id.transpose()?;
    let platform = name("x-platform", "platform")?;
    let app_version = name("x-app-version", "app_version")?;
    // Last, so that a ticket is not used up by a request that cannot be served.
    let user_id = query("user_id");
    let handshake = Handshake {
        user_id: user_id.as_deref(),
        ticket: ticket.as_deref(),
        token: subprotocols(headers).find_map(|name| name.strip_prefix(TOKEN_SUBPROTOCOL)),
    };
    let identity = node.auth.identify(headers, peer, handshake).await?;
    Ok(Opening {
        identity,
        device_id,
        platform,
        app_version,
        classic: !subprotocols(headers).any(|name| name == SUBPROTOCOL),
        acks: has_feature(request.uri().query(), "acks"),
    })
}

/// `?features=a,b`: what a client promises. Those nobody knows are nothing.
fn has_feature(query: Option<&str>, feature: &str) -> bool {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.any(|(key, value)| key == "features" && value.split(',').any(|name| name == feature))
}

fn subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let offers = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let names = offers.filter_map(|value| value.to_str().ok()).flat_map(|list| list.split(','));
    names.map(str::trim)
}
