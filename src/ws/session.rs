//! One socket's life: join, run, leave.
//!
//! Order: into the hub, bus subscription confirmed, presence, `hello`; only then the writer starts,
//! so that events which arrive meanwhile wait behind the `hello`. Whatever ends a session — the
//! client, an error, a slow consumer, a kick, a stop — goes through the queue's end, and out by the
//! same way.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::handle::Session;
use super::outbound::{Class, Item};
use super::{Node, reader, writer};
use crate::bus::{Envelope, Order};
use crate::clock::Timestamp;
use crate::protocol::code::CloseCode;
use crate::protocol::event::{Event, Hello};

/// How long the last frames and the close may take to be written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs a socket from its upgrade to its end. `early` is what the client sent behind the handshake.
#[expect(
    clippy::manual_async_fn,
    reason = "an async fn holds its arguments twice, for as long as it runs"
)]
pub fn run(
    node: Arc<Node>,
    session: Arc<Session>,
    mut stream: TcpStream,
    early: Bytes,
) -> impl Future<Output = ()> + Send {
    async move {
        node.metrics.sockets.opened.increment(1);
        node.metrics.sockets.open.increment(1.0);
        // Boxed: what joining and leaving need is not to be held by an idle socket.
        let subscribed = match Box::pin(join(&node, &session, &stream)).await {
            Ok(()) => {
                node.metrics.sockets.handshake.record(session.opened.elapsed());
                true
            }
            Err(refused) => {
                session.queue.refuse(refused.code);
                refused.subscribed
            }
        };
        let (read_half, write_half) = stream.split();
        let reader = std::pin::pin!(reader::run(read_half, early, &session, &node));
        let writer = std::pin::pin!(writer::run(write_half, &session, &node));
        match select(reader, writer).await {
            Either::Left((code, writer)) => {
                session.queue.end(code);
                let _ = Box::pin(tokio::time::timeout(CLOSE_TIMEOUT, writer)).await;
            }
            // The writer's end ends the session; its reason stands in the queue.
            Either::Right(((), _)) => {}
        }
        Box::pin(leave(&node, &session, subscribed)).await;
    }
}

/// Why a session could not join.
struct Refused {
    code: CloseCode,
    /// The bus holds a subscription for it.
    subscribed: bool,
}

/// Subscribe before anything is read from the store, or events fall between.
async fn join(node: &Node, session: &Arc<Session>, stream: &TcpStream) -> Result<(), Refused> {
    if let Some(older) = node.hub.insert(session.clone()) {
        older.queue.end(CloseCode::Replaced);
    }
    // After the insertion: the drain either sees this session, or is seen here.
    if node.stopping.is_cancelled() {
        return Err(Refused { code: CloseCode::Restart, subscribed: false });
    }
    node.bus.subscribe(session.user_id).await.map_err(|error| {
        tracing::warn!(session.id = %session.id, %error, "a session found no bus");
        Refused { code: CloseCode::Overload, subscribed: false }
    })?;
    let refuse = |code| Refused { code, subscribed: true };
    // Replaced while it waited: the younger session registers the device.
    if let Some(code) = session.queue.ended() {
        return Err(refuse(code));
    }
    let entry = session.entry(node.presence.node_id());
    let turn = node.presence_turns.acquire().await;
    // While it waited its client may have gone and come back elsewhere: who joins counts as the
    // younger, and would shut the live one out.
    if is_gone(stream) {
        return Err(refuse(CloseCode::Lost));
    }
    let registered = node.presence.register(session.user_id, entry).await;
    drop(turn);
    let registered = registered.map_err(|error| {
        tracing::warn!(session.id = %session.id, %error, "a session found no presence");
        refuse(CloseCode::Overload)
    })?;
    if let Some(code) = session.queue.ended() {
        // Replaced in the meantime, and perhaps registered after the younger one: put that right.
        if let Some(younger) = node.hub.of_device(session.user_id, &session.device_id) {
            let entry = younger.entry(node.presence.node_id());
            let again = node.presence.register(session.user_id, entry).await;
            if let Err(error) = again {
                tracing::warn!(session.id = %younger.id, %error, "not registered again");
            }
        }
        return Err(refuse(code));
    }
    if registered.younger {
        return Err(refuse(CloseCode::Replaced));
    }
    if registered.devices > node.config.presence.max_devices {
        return Err(refuse(CloseCode::TooManyDevices));
    }
    if registered.devices == 1 && registered.replaced.is_none() {
        node.watch.came_or_went(session.user_id);
    }
    if let Some(replaced) = registered.replaced.filter(|replaced| replaced.session != session.id) {
        // Our client may have left while we registered, and what we replaced be where he came back:
        // that one is not to be shut out, but to take its place again.
        let order = if is_gone(stream) { Order::ComeAgain } else { Order::Replace };
        // It may live on another node: the user's channel finds it.
        let envelope = Envelope::order(session.user_id, order(replaced.session));
        node.bus.publish(&[(session.user_id, envelope.encode())]).await;
    }
    let hello = Event::Hello(Hello {
        session_id: session.id,
        node_id: node.presence.node_id(),
        user_id: session.user_id,
        device_id: &session.device_id,
        heartbeat_seconds: node.config.ws.heartbeat_interval.as_secs(),
        limits: node.limits,
        store_epoch: node.store_epoch,
        server_time: Timestamp::now(),
    });
    session.queue.push_first(Item::text(hello.encode(), Class::Answer));
    Ok(())
}

/// The client has closed its half, which none does that still wants something of a socket.
fn is_gone(stream: &TcpStream) -> bool {
    let ready = stream.ready(Interest::READABLE).now_or_never();
    ready.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()))
}

async fn leave(node: &Node, session: &Session, subscribed: bool) {
    let code = session.queue.ended().unwrap_or(CloseCode::Lost);
    session.queue.end(code);
    // When ten thousand end at once, those who talk do not wait until all have left.
    let turn = node.presence_turns.acquire().await;
    node.hub.remove(session);
    node.watch.forget(session);
    if subscribed {
        node.bus.unsubscribe(session.user_id);
    }
    // After a restart of the node the client comes back at once, elsewhere.
    let unproven = session.acks || session.barrier.is_open();
    let lost =
        matches!(code, CloseCode::Lost | CloseCode::HeartbeatMissed | CloseCode::SlowConsumer);
    if lost || unproven && code != CloseCode::Restart {
        node.write_path.hasten(session.user_id);
    }
    node.presence.remove(session.user_id, &session.device_id, session.id).await;
    drop(turn);
    if !node.hub.has_any_of(session.user_id) {
        node.watch.came_or_went(session.user_id);
    }
    node.metrics.sockets.open.decrement(1.0);
    node.metrics.sockets.closed.of(code).increment(1);
    tracing::debug!(
        session.id = %session.id,
        user.id = %session.user_id,
        reason = code.name(),
        duration_ms = session.opened.elapsed().as_millis() as u64,
        "a session ended"
    );
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// One who dropped his connection while its join waited, and had come back elsewhere, was shut
    /// out (4409) by what was left of the first: seen under faults, when Redis was slow to answer.
    #[tokio::test]
    async fn a_client_that_left_is_gone_and_one_that_spoke_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        assert!(!is_gone(&stream));
        client.write_all(b"early").await.unwrap();
        stream.readable().await.unwrap();
        assert!(!is_gone(&stream));
        drop(client);
        let gone = async {
            while !is_gone(&stream) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(CLOSE_TIMEOUT, gone).await.expect("it is seen");
    }
}
