//! Who is online where: per user the devices that have a session, and the node that holds it.
//!
//! A hint, never a proof: it decides whether a message waits for a socket or goes out as a push at
//! once, and what others see. So it may be late, but it must not say "offline" of someone online:
//! what is not known is [`Status::Unknown`]. Called by `ws` (a session's begin and end) and by
//! `write_path` and `http` (questions).

mod last_seen;
mod local;
mod redis;

use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;

pub use self::local::LocalPresence;
pub use self::redis::RedisPresence;
use crate::clock::Timestamp;
use crate::config::PresenceConfig;
use crate::ids::{DeviceId, NodeId, SessionId, UserId};
use crate::protocol::model::{Device, UserPresence};
use crate::shards::Shards;
use crate::shutdown::Stage;

/// One device's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Set by the registration to the lease that is current then.
    pub node: NodeId,
    pub session: SessionId,
    pub device: DeviceId,
    pub platform: Option<Box<str>>,
    pub app_version: Option<Box<str>>,
    /// The session's begin, by its node's clock. Of two sessions of a device the one that joined
    /// later is the younger, and its entry says so even where the nodes' clocks differ.
    pub since: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// At least one.
    Online(Vec<Entry>),
    /// `last_seen`: the latest end of a session that is known; after a crash of its node, no
    /// earlier than its begin.
    Offline { last_seen: Option<Timestamp> },
    /// Redis did not answer, or what is not in it may only be not in it yet. `last_seen` as far as
    /// it is known all the same.
    Unknown { last_seen: Option<Timestamp> },
}

impl Status {
    pub fn is_known(&self) -> bool {
        !matches!(self, Self::Unknown { .. })
    }

    /// What others are shown. Not known is shown as not online: nobody waits for an answer that may
    /// not come.
    pub fn shown(self, user_id: UserId) -> UserPresence {
        let offline =
            |last_seen| UserPresence { user_id, online: false, devices: Vec::new(), last_seen };
        match self {
            Self::Online(entries) => {
                let devices = entries
                    .into_iter()
                    .map(|entry| Device { device_id: entry.device, platform: entry.platform });
                UserPresence { online: true, devices: devices.collect(), ..offline(None) }
            }
            Self::Offline { last_seen } | Self::Unknown { last_seen } => offline(last_seen),
        }
    }
}

/// What a registration found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// This device's older session, which must be closed.
    pub replaced: Option<Entry>,
    /// A younger session of this device stays, nothing was registered: close the caller's session.
    pub younger: bool,
    /// The user's devices online, this one included. More than `max_devices`: nothing was
    /// registered, close the caller's session.
    pub devices: usize,
}

#[derive(Clone, Debug, Error)]
pub enum PresenceError {
    /// Retry later. What was to be written may have been; a new lease repairs that.
    #[error("presence cannot be reached: {0}")]
    Unavailable(String),
    /// The settings are wrong: tell the operator.
    #[error("presence cannot be used as it is set: {0}")]
    Rejected(String),
}

impl PresenceError {
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// The value of the label `reason` in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Rejected(_) => "rejected",
        }
    }
}

pub type Result<T> = std::result::Result<T, PresenceError>;

#[derive(Clone)]
pub enum Presence {
    Local(LocalPresence),
    Redis(RedisPresence),
}

/// Calls the method of the same name on whichever there is.
macro_rules! forward {
    ($on:expr, $method:ident($($arg:expr),*)) => {
        match $on {
            Presence::Local(inner) => inner.$method($($arg),*),
            Presence::Redis(inner) => inner.$method($($arg),*).await,
        }
    };
}

impl Presence {
    /// In process it never fails; Redis has to answer once, for the first lease. Its tasks are
    /// put on the stage.
    pub async fn connect(
        config: &PresenceConfig,
        shards: Option<&Shards>,
        stage: &Stage,
    ) -> Result<Self> {
        match shards {
            None => Ok(Self::Local(LocalPresence::open(config, stage).await)),
            Some(shards) => Ok(Self::Redis(RedisPresence::connect(config, shards, stage).await?)),
        }
    }

    /// The current lease's.
    pub fn node_id(&self) -> NodeId {
        match self {
            Self::Local(inner) => inner.node_id(),
            Self::Redis(inner) => inner.node_id(),
        }
    }

    /// A new id: entries under the old one are void or doubtful. Register all sessions again.
    pub fn lease_changes(&self) -> watch::Receiver<NodeId> {
        match self {
            Self::Local(inner) => inner.lease_changes(),
            Self::Redis(inner) => inner.lease_changes(),
        }
    }

    /// A session that joins: it replaces its device's older one.
    ///
    /// After an error the session may go on: it is registered again with the next lease, which is
    /// taken as soon as Redis answers.
    pub async fn register(&self, user: UserId, entry: Entry) -> Result<Registered> {
        forward!(self, register(user, entry))
    }

    /// Registers sessions again under a new lease: each yields to a younger session of its device.
    /// Answers in the order of the entries. After an error some of them may be registered.
    pub async fn register_again(&self, entries: Vec<(UserId, Entry)>) -> Result<Vec<Registered>> {
        forward!(self, register_again(entries))
    }

    /// Only if the device's entry is this session's. Records that the user was seen now.
    pub async fn remove(&self, user: UserId, device: &DeviceId, session: SessionId) {
        forward!(self, remove(user, device.clone(), session));
    }

    pub async fn remove_many(&self, sessions: Vec<(UserId, DeviceId, SessionId)>) {
        forward!(self, remove_many(sessions));
    }

    /// In the order of the users. However many they are, up to a thousand cost two round trips, and
    /// one that checks the pooled connection.
    pub async fn status(&self, users: &[UserId]) -> Vec<Status> {
        forward!(self, status(users))
    }

    /// Whether somebody who is not registered is really offline.
    pub fn absence_is_certain(&self) -> bool {
        match self {
            Self::Local(_) => true,
            Self::Redis(inner) => inner.absence_is_certain(),
        }
    }

    pub async fn ping(&self) -> Result<()> {
        match self {
            Self::Local(_) => Ok(()),
            Self::Redis(inner) => inner.ping().await,
        }
    }

    /// Gives the lease back, after which all that is registered here is void at once.
    pub async fn close(&self) {
        match self {
            Self::Local(inner) => inner.close().await,
            Self::Redis(inner) => inner.close().await,
        }
    }

    /// Leases taken after the first one, since the start.
    pub fn lease_losses(&self) -> u64 {
        match self {
            Self::Local(_) => 0,
            Self::Redis(inner) => inner.lease_losses(),
        }
    }
}

/// What stands in Redis under nodes whose lease ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphans {
    /// All entries there are.
    pub entries: u64,
    pub of_dead_nodes: u64,
}

/// Reads all that is there, for `tidings verify`.
pub async fn orphans(shards: &Shards) -> Result<Orphans> {
    self::redis::count_orphans(shards).await
}

/// How long after the last change a user's presence is forgotten.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
