//! One socket's life: join, run, leave.
//!
//! Order: into the hub, bus subscription confirmed, presence, `hello`; only then the writer starts,
//! so that events which arrive meanwhile wait behind the `hello`. Whatever ends a session — the
//! client, an error, a slow consumer, a kick, a stop — goes through the queue's end, and out by the
//! same way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::outbound::{Bounds, Class, Item, Outbound};
use super::{Node, reader, writer};
use crate::bus::{Classic, Envelope, Head};
use crate::clock::Timestamp;
use crate::ids::{ConversationId, DeviceId, SessionId, UserId};
use crate::presence::Entry;
use crate::protocol::code::CloseCode;
use crate::protocol::event::{Event, Hello};

/// Commands of one session that wait for their answer; beyond, its socket is not read.
const MAX_IN_FLIGHT: usize = 128;
/// How long the last frames and the close may take to be written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Who opens a socket, with what.
#[derive(Clone, Debug)]
pub struct Opening {
    pub user_id: UserId,
    pub device_id: Option<DeviceId>,
    pub platform: Option<Box<str>>,
    pub app_version: Option<Box<str>>,
    /// Did not offer `tidings.v1.json`.
    pub classic: bool,
}

pub struct Session {
    pub id: SessionId,
    pub user_id: UserId,
    pub device_id: DeviceId,
    pub classic: bool,
    pub queue: Outbound,
    /// Room for commands whose answer is still to come.
    pub in_flight: Semaphore,
    platform: Option<Box<str>>,
    app_version: Option<Box<str>>,
    since: Timestamp,
    opened: Instant,
    /// Seconds from `opened` until something was last read.
    heard: AtomicU32,
    /// A ping is under way.
    asked: AtomicBool,
}

impl Session {
    fn new(opening: Opening, bounds: Bounds) -> Self {
        let id = SessionId::random();
        let device_id = opening
            .device_id
            .unwrap_or_else(|| id.to_string().parse().expect("a UUID's text is a valid device id"));
        Self {
            id,
            user_id: opening.user_id,
            device_id,
            classic: opening.classic,
            queue: Outbound::new(bounds, opening.classic),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            platform: opening.platform,
            app_version: opening.app_version,
            since: Timestamp::now(),
            opened: Instant::now(),
            heard: AtomicU32::new(0),
            asked: AtomicBool::new(false),
        }
    }

    /// Something was read from the client.
    pub fn hear(&self) {
        self.heard.store(self.opened.elapsed().as_secs() as u32, Ordering::Relaxed);
        self.asked.store(false, Ordering::Relaxed);
    }

    /// How long nothing was read, to the second.
    pub fn silence(&self) -> Duration {
        let heard = Duration::from_secs(self.heard.load(Ordering::Relaxed).into());
        self.opened.elapsed().saturating_sub(heard)
    }

    /// True once per silence.
    pub fn ask_for_life(&self) -> bool {
        !self.asked.swap(true, Ordering::Relaxed)
    }

    /// Queues an answer; a session without room for it ends as a slow consumer.
    pub fn answer(&self, bytes: Bytes) {
        // Every outcome but `Queued` means that the session is ending.
        let _: super::outbound::Pushed = self.queue.push(Item::text(bytes, Class::Answer));
    }

    /// How presence shows this session while `node` holds it.
    pub fn entry(&self, node: crate::ids::NodeId) -> Entry {
        Entry {
            node,
            session: self.id,
            device: self.device_id.clone(),
            platform: self.platform.clone(),
            app_version: self.app_version.clone(),
            since: self.since,
        }
    }
}

/// Runs a socket from its upgrade to its end. `early` is what the client sent behind the handshake.
pub async fn run(node: Arc<Node>, mut stream: TcpStream, early: Bytes, opening: Opening) {
    let session = Arc::new(Session::new(opening, node.queue_bounds()));
    node.metrics.sockets.opened.increment(1);
    node.metrics.sockets.open.increment(1.0);
    // Boxed: what joining and leaving need is not to be held by an idle socket.
    let subscribed = match Box::pin(join(&node, &session)).await {
        Ok(()) => true,
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
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, writer).await;
        }
        // The writer's end ends the session; its reason stands in the queue.
        Either::Right(((), _)) => {}
    }
    Box::pin(leave(&node, &session, subscribed)).await;
}

/// Why a session could not join.
struct Refused {
    code: CloseCode,
    /// The bus holds a subscription for it.
    subscribed: bool,
}

/// Subscribe before anything is read from the store, or events fall between.
async fn join(node: &Node, session: &Arc<Session>) -> Result<(), Refused> {
    if let Some(older) = node.hub.insert(session.clone()) {
        older.queue.end(CloseCode::Replaced);
    }
    node.bus.subscribe(session.user_id).await.map_err(|error| {
        tracing::warn!(session.id = %session.id, %error, "a session found no bus");
        Refused { code: CloseCode::Overload, subscribed: false }
    })?;
    let refuse = |code| Refused { code, subscribed: true };
    let entry = session.entry(node.presence.node_id());
    let registered = node.presence.register(session.user_id, entry).await.map_err(|error| {
        tracing::warn!(session.id = %session.id, %error, "a session found no presence");
        refuse(CloseCode::Overload)
    })?;
    if registered.younger {
        return Err(refuse(CloseCode::Replaced));
    }
    if registered.devices > node.config.presence.max_devices {
        return Err(refuse(CloseCode::TooManyDevices));
    }
    if let Some(replaced) = registered.replaced.filter(|replaced| replaced.session != session.id) {
        // It may live on another node: the user's channel finds it.
        let head = Head {
            class: crate::bus::Class::Control,
            conversation_id: ConversationId(uuid::Uuid::nil()),
            sender_id: session.user_id,
            origin: Some(replaced.session),
            lo: 0,
            hi: 0,
            sent_at: Timestamp::now(),
        };
        let envelope = Envelope { head, full: Bytes::new(), classic: Classic::None };
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

async fn leave(node: &Node, session: &Session, subscribed: bool) {
    let code = session.queue.ended().unwrap_or(CloseCode::Lost);
    session.queue.end(code);
    node.hub.remove(session);
    if subscribed {
        node.bus.unsubscribe(session.user_id);
    }
    node.presence.remove(session.user_id, &session.device_id, session.id).await;
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
