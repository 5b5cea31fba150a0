//! Node to node: an envelope published for a user reaches every node that has a session of theirs.
//!
//! Knows neither hub nor store nor presence: envelopes leave through [`Bus::publish`] and arrive
//! at an [`Inbox`]. It promises little, so that it can be quick: an envelope may be lost (then
//! [`Inbox::on_gap`] follows, or a publish says [`Receivers::Unknown`]), never waits for anyone
//! without a bound, and keeps the order of each publisher per user while the connections hold.
//! Called by `write_path` (publishes) and `ws` (subscribes).

mod envelope;
mod local;
mod redis;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

pub use self::envelope::{Class, Classic, DecodeError, Envelope, Head, Order};
pub use self::local::LocalBus;
pub use self::redis::{RedisBus, check as check_redis};
use crate::config::RedisConfig;
use crate::ids::UserId;
use crate::shards::Shards;
use crate::shutdown::Stage;

/// Channels on which nodes tell each other that somebody came or went.
pub const PRESENCE_TOPICS: usize = 64;

/// The number and the channel of the topic that a user's comings and goings belong to. A channel is
/// for many users, so that a node which watches any number of them subscribes to few; it stands
/// under an id that no user has, and what comes by it is never given to a session.
pub fn presence_topic(user: UserId) -> (usize, UserId) {
    let at = (user.hash() >> 16) as usize % PRESENCE_TOPICS;
    (at, UserId(uuid::Uuid::from_u128(at as u128 + 1)))
}

/// Where envelopes arrive: implemented by the hub. Called in the subscriber's task, so it must
/// not wait.
pub trait Inbox: Send + Sync + 'static {
    /// May also come for a user who was unsubscribed a moment ago.
    fn deliver(&self, user: UserId, envelope: Envelope);

    /// Events may have been lost, for any user of these partitions. All their subscriptions are
    /// restored: what clients read from the store from now on, together with what is delivered, has
    /// no hole.
    fn on_gap(&self, partitions: Partitions);
}

/// Some of the parts that users are divided into by their id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partitions(u128);

impl Partitions {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self(u128::MAX);

    /// `at`: below [`RedisConfig::PARTITIONS`].
    pub fn one(at: usize) -> Self {
        Self(1 << at)
    }

    pub fn contain(self, user: UserId) -> bool {
        self.0 >> RedisConfig::partition(user) & 1 == 1
    }
}

impl std::ops::BitOrAssign for Partitions {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// What is known about who got a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receivers {
    /// Nodes subscribed to the user at that moment. A node whose connection just died may still be
    /// counted: a hint, not a proof.
    Count(u32),
    /// No reply, or an error; it may have been delivered, even later.
    Unknown,
}

#[derive(Debug, Error)]
pub enum BusError {
    /// Retry later.
    #[error("the bus cannot be reached: {0}")]
    Unavailable(String),
    /// The settings are wrong: tell the operator.
    #[error("the bus cannot be used as it is set: {0}")]
    Rejected(String),
}

impl BusError {
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

#[derive(Clone)]
pub enum Bus {
    Local(LocalBus),
    Redis(RedisBus),
}

impl Bus {
    /// The in-process bus never fails; Redis has to answer once. Its tasks are put on the stage.
    pub async fn connect(
        shards: Option<&Shards>,
        inbox: Arc<dyn Inbox>,
        stage: &Stage,
    ) -> Result<Self, BusError> {
        match shards {
            None => Ok(Self::Local(LocalBus::new(inbox))),
            Some(shards) => Ok(Self::Redis(RedisBus::connect(shards, inbox, stage).await?)),
        }
    }

    /// Ready when the server has confirmed: what is published from then on arrives. Counted per
    /// user: each success wants one [`Bus::unsubscribe`]; an error, or a call dropped on the way,
    /// leaves nothing behind.
    pub async fn subscribe(&self, user: UserId) -> Result<(), BusError> {
        match self {
            Self::Local(bus) => bus.subscribe(user),
            Self::Redis(bus) => bus.subscribe(user).await?,
        }
        Ok(())
    }

    /// Never waits; the server hears it soon.
    pub fn unsubscribe(&self, user: UserId) {
        match self {
            Self::Local(bus) => bus.unsubscribe(user),
            Self::Redis(bus) => bus.unsubscribe(user),
        }
    }

    /// Publishes encoded envelopes in this order; one answer each, at the same place. Answers within
    /// three seconds when Redis hangs, at once when it is known to be away.
    pub async fn publish(&self, batch: &[(UserId, Bytes)]) -> Vec<Receivers> {
        match self {
            Self::Local(bus) => bus.publish(batch),
            Self::Redis(bus) => bus.publish(batch).await,
        }
    }

    pub async fn ping(&self) -> Result<(), BusError> {
        match self {
            Self::Local(_) => Ok(()),
            Self::Redis(bus) => bus.ping().await,
        }
    }

    /// Everything that is subscribed to is known to arrive. False from the moment a loss is
    /// noticed until all is restored.
    pub fn is_whole(&self) -> bool {
        match self {
            Self::Local(_) => true,
            Self::Redis(bus) => bus.is_whole(),
        }
    }

    /// Users somebody here wants events for.
    pub fn subscriptions(&self) -> usize {
        match self {
            Self::Local(bus) => bus.subscriptions(),
            Self::Redis(bus) => bus.subscriptions(),
        }
    }

    /// Lost connections that were made again, since the start.
    pub fn reconnects(&self) -> u64 {
        match self {
            Self::Local(_) => 0,
            Self::Redis(bus) => bus.reconnects(),
        }
    }

    /// How long the last probe took from publish to arrival, if there was one.
    pub fn probe_lag(&self) -> Option<Duration> {
        match self {
            Self::Local(_) => None,
            Self::Redis(bus) => bus.probe_lag(),
        }
    }

    /// Envelopes that arrived and could not be read, since the start.
    pub fn undecodable(&self) -> u64 {
        match self {
            Self::Local(_) => 0,
            Self::Redis(bus) => bus.undecodable(),
        }
    }
}
