//! The one task that makes the server's subscriptions match the table, and owns the reconnect.
//!
//! The client's own resubscription is not used: it swallows errors, and a server that hangs is not
//! noticed by it at all. Here every connection starts empty, gets all that is held in bulk, and is
//! believed only while something arrives on it: a probe that this node sends to itself, or events.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, PushInfo, PushKind, RedisError, RedisResult, Value};
use thiserror::Error;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::connection::{Backoff, Connector, Live};
use super::link::Link;
use super::subscriptions::{Difference, Subscriptions};
use crate::bus::{Envelope, Inbox};
use crate::config::RedisConfig;
use crate::ids::UserId;

/// Channels in one command: a few ten milliseconds of the server's time.
const CHUNK: usize = 5_000;
/// For the confirmations of one command.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Between the beginnings of two changes of the subscriptions.
const PACE: Duration = Duration::from_millis(4);
/// Seconds in a row, each with a probe sent, in which nothing at all arrived.
const SILENT_LIMIT: u32 = 2;

pub(super) struct Subscriber {
    config: RedisConfig,
    connector: Connector,
    subscriptions: Arc<Subscriptions>,
    link: Arc<Link>,
    ear: Arc<Ear>,
    gauges: Arc<Gauges>,
}

/// What others may ask about the subscriber.
#[derive(Default)]
pub(super) struct Gauges {
    pub whole: AtomicBool,
    pub reconnects: AtomicU64,
    /// Microseconds; 0 before the first probe came back.
    pub probe_lag: AtomicU64,
    pub undecodable: AtomicU64,
}

/// Hears what arrives. Runs in the connection's task, so that a user's events keep their order.
struct Ear {
    inbox: Arc<dyn Inbox>,
    gauges: Arc<Gauges>,
    probe_channel: String,
    /// The probes' clock.
    born: Instant,
    /// Pushes of any kind: each shows that the connection lives.
    heard: AtomicU64,
}

#[derive(Debug, Error)]
enum Loss {
    #[error("the connection was closed")]
    Closed,
    #[error("{0}")]
    Failed(#[from] RedisError),
    #[error("nothing arrives, not even this node's own probes")]
    Silent,
}

impl Subscriber {
    pub fn new(
        config: &RedisConfig,
        inbox: Arc<dyn Inbox>,
        subscriptions: Arc<Subscriptions>,
        link: Arc<Link>,
        gauges: Arc<Gauges>,
    ) -> RedisResult<Self> {
        let ear = Arc::new(Ear {
            inbox,
            gauges: gauges.clone(),
            probe_channel: format!("{}:probe:{}", config.prefix, Uuid::new_v4().simple()),
            born: Instant::now(),
            heard: AtomicU64::new(0),
        });
        let on_push = {
            let ear = ear.clone();
            move |push| ear.on_push(push)
        };
        let connector = Connector::new(config, RESPONSE_TIMEOUT, on_push)?;
        Ok(Self { config: config.clone(), connector, subscriptions, link, ear, gauges })
    }

    pub async fn open(&self) -> RedisResult<Live> {
        self.connector.open().await
    }

    pub async fn run(self, first: Live, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep_subscribed(first)).await;
        self.gauges.whole.store(false, Ordering::Relaxed);
        self.subscriptions.close();
    }

    async fn keep_subscribed(&self, mut live: Live) {
        let mut backoff = Backoff::new();
        let mut gap = false;
        loop {
            let since = Instant::now();
            let Err(loss) = self.serve(live, &mut gap).await;
            self.gauges.whole.store(false, Ordering::Relaxed);
            self.subscriptions.lost();
            warn!(reason = %loss, "lost the subscriptions in Redis");
            gap = true;
            backoff.after(since.elapsed());
            live = self.connector.reopen(&mut backoff).await;
            self.gauges.reconnects.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One connection's life. `gap`: events were lost before it; cleared once that was told.
    async fn serve(&self, live: Live, gap: &mut bool) -> Result<Infallible, Loss> {
        let connection = live.connection;
        connection.clone().subscribe(&self.ear.probe_channel).await?;
        tokio::select! {
            loss = self.follow(connection.clone(), gap) => loss,
            loss = self.probe(connection) => loss,
            () = live.lost.cancelled() => Err(Loss::Closed),
        }
    }

    /// Makes the server's subscriptions match the table, now and whenever it changes.
    async fn follow(
        &self,
        mut connection: MultiplexedConnection,
        gap: &mut bool,
    ) -> Result<Infallible, Loss> {
        loop {
            let began = Instant::now();
            while let Some(Difference { subscribe, unsubscribe }) = self.subscriptions.take(CHUNK) {
                if !subscribe.is_empty() {
                    connection.subscribe(self.channels(&subscribe)).await?;
                    self.subscriptions.confirm(&subscribe);
                }
                if !unsubscribe.is_empty() {
                    connection.unsubscribe(self.channels(&unsubscribe)).await?;
                }
            }
            self.gauges.whole.store(true, Ordering::Relaxed);
            if std::mem::take(gap) {
                info!(subscriptions = self.subscriptions.held(), "subscribed in Redis again");
                self.ear.inbox.on_gap();
            }
            self.subscriptions.changed().await;
            // Those who come shortly after one another are subscribed together.
            sleep_until(began + PACE).await;
        }
    }

    /// Sends this node a message every second and listens whether anything arrives.
    ///
    /// Seconds are counted as this task lives them: after a pause of the whole process, what has
    /// arrived meanwhile is heard before the connection is given up.
    async fn probe(&self, connection: MultiplexedConnection) -> Result<Infallible, Loss> {
        let mut ticks = interval(PROBE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut heard, mut silent) = (None, 0);
        loop {
            ticks.tick().await;
            let heard_now = Some(self.ear.heard.load(Ordering::Relaxed));
            silent = if heard_now == heard { silent + 1 } else { 0 };
            heard = heard_now;
            if silent >= SILENT_LIMIT {
                return Err(Loss::Silent);
            }
            // The way the events take. After a silent second by this very connection, so that a
            // publishing connection that hangs does not cost the subscriptions.
            let link = if silent == 0 { self.link.now() } else { None };
            let mut way = link.unwrap_or_else(|| connection.clone());
            let sent = (self.ear.born.elapsed().as_micros() as u64).to_be_bytes();
            let publish = way.publish(&self.ear.probe_channel, &sent[..]);
            // Whether it was sent matters only in what is heard.
            let sent: Result<RedisResult<()>, _> = timeout(PROBE_EVERY, publish).await;
            if let Ok(Err(error)) = sent {
                debug!(%error, "could not send the probe");
            }
        }
    }

    fn channels(&self, users: &[UserId]) -> Vec<String> {
        users.iter().map(|user| channel(&self.config, *user)).collect()
    }
}

impl Ear {
    fn on_push(&self, push: PushInfo) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        if push.kind != PushKind::Message {
            return;
        }
        let Ok([Value::BulkString(channel), Value::BulkString(payload)]) =
            <[Value; 2]>::try_from(push.data)
        else {
            return;
        };
        if channel == self.probe_channel.as_bytes() {
            self.on_probe(&payload);
            return;
        }
        match (user_of(&channel), Envelope::decode(Bytes::from(payload))) {
            (Some(user), Ok(envelope)) => self.inbox.deliver(user, envelope),
            (_, decoded) => {
                if self.gauges.undecodable.fetch_add(1, Ordering::Relaxed) == 0 {
                    let reason = decoded.err();
                    warn!(
                        ?reason,
                        "dropped an envelope that this release cannot read; counting on"
                    );
                }
            }
        }
    }

    fn on_probe(&self, payload: &[u8]) {
        if let Ok(sent) = payload.try_into().map(u64::from_be_bytes) {
            let lag = (self.born.elapsed().as_micros() as u64).saturating_sub(sent);
            self.gauges.probe_lag.store(lag.max(1), Ordering::Relaxed);
        }
    }
}

/// A user's channel.
pub(super) fn channel(config: &RedisConfig, user: UserId) -> String {
    config.user_key("user", user)
}

/// Whose channel it is.
fn user_of(channel: &[u8]) -> Option<UserId> {
    let id = channel.last_chunk::<36>()?;
    Uuid::try_parse_ascii(id).ok().map(UserId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_names_its_user() {
        let config = RedisConfig { url: String::new(), prefix: "tidings".into() };
        let user: UserId = "018f4e3a-0000-7000-8000-000000000001".parse().unwrap();
        let name = channel(&config, user);
        assert_eq!(name, format!("tidings:{{p{:02}}}:user:{user}", user.hash() % 128));
        assert_eq!(user_of(name.as_bytes()), Some(user));
        assert_eq!(user_of(b"tidings:user:x"), None);
    }
}
