//! One socket's life, and the sockets of this node.
//!
//! `upgrade` lets a socket in, `session` runs it by a `reader` (`frames` are what it reads) and a `writer` in one task, `handle`
//! is what others hold of it, `hub` finds the sessions of a user, `outbound` bounds what waits for each, `barrier` proves
//! what was written, `heartbeat` is the one timer of all, `watch` tells who comes and goes, `wire` is the stream below. An idle socket holds its task, its handle and no buffer.

pub mod barrier;
pub mod commands;
pub mod frames;
pub mod handle;
pub mod heartbeat;
pub mod hub;
pub mod outbound;
pub mod reader;
pub mod resume;
pub mod session;
mod signals;
pub mod upgrade;
pub mod watch;
pub mod wire;
pub mod writer;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::auth::Authenticator;
use crate::bus::Bus;
use crate::config::Config;
use crate::offline::Offline;
use crate::presence::Presence;
use crate::protocol::event::Limits;
use crate::rates::Rates;
use crate::resume::Syncs;
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::typing::Typing;
use crate::write_path::WritePath;
use hub::Hub;
use outbound::Bounds;
use watch::Watch;

/// See [`Node::presence_turns`].
pub const PRESENCE_TURNS: usize = 512;

/// The handles a session or a request needs; made once by `app`.
pub struct Node {
    pub config: Arc<Config>,
    /// What a client may send, as `hello` tells it.
    pub limits: Limits,
    pub auth: Authenticator,
    pub hub: Arc<Hub>,
    pub bus: Bus,
    pub presence: Presence,
    pub store: Store,
    pub store_epoch: Uuid,
    pub offline: Offline,
    pub write_path: WritePath,
    pub typing: Typing,
    pub watch: Watch,
    pub rates: Rates,
    pub syncs: Syncs,
    pub metrics: Metrics,
    /// Every session's task; the stop waits for it.
    pub sessions: TaskTracker,
    /// Set when this node is to end: it takes no new sockets, and requests for `DRAIN_GRACE` still.
    pub stopping: CancellationToken,
    /// Sessions that may be registering or leaving at a time. Whose client has gone again while it
    /// waited for its turn does not register at all.
    pub presence_turns: Semaphore,
    /// Sockets that are open or being opened, against `MAX_CONNECTIONS`.
    pub sockets: AtomicUsize,
}

impl Node {
    pub fn queue_bounds(&self) -> Bounds {
        let ws = &self.config.ws;
        Bounds {
            frames: u32::try_from(ws.buffer_messages).unwrap_or(u32::MAX),
            bytes: u32::try_from(ws.buffer_bytes).unwrap_or(u32::MAX),
        }
    }
}
