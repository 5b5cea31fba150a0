//! The task that makes one master's subscriptions match its groups, and owns the reconnect.
//!
//! The client's own resubscription is not used: it swallows errors, and a server that hangs is not
//! noticed by it at all. Here every connection starts empty, gets all that is held in bulk, and is
//! believed only while something arrives on it: a probe that this node sends to itself, or events.
//!
//! One probe for each master: what else could be lost, a slot that goes to another master, Redis says
//! itself, by ending the subscriptions of that slot.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, PushInfo, PushKind, RedisError, RedisResult, ServerErrorKind, Value};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::connection::{Backoff, Connector, Live};
use super::fleet::Fleet;
use super::gauges::Gauges;
use super::link::Link;
use super::subscriptions::Groups;
use crate::bus::{Envelope, Inbox, Partitions};
use crate::config::{Addr, RedisConfig};
use crate::ids::UserId;
use crate::shards::Shards;

/// Channels in one command: a few ten milliseconds of the server's time.
const CHUNK: usize = 5_000;
/// For the confirmations of one command.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Between the beginnings of two changes of the subscriptions.
const PACE: Duration = Duration::from_millis(4);
/// Seconds in a row, each with a probe sent, in which nothing at all arrived.
const SILENT_LIMIT: u32 = 2;
/// Until a master is asked again for a slot that it says is not his.
const MOVED_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Subscriber {
    shards: Shards,
    addr: Addr,
    connector: Connector,
    groups: Arc<Groups>,
    /// Those that are this master's.
    held: watch::Receiver<Arc<[usize]>>,
    link: Arc<Link>,
    ear: Arc<Ear>,
    gauges: Arc<Gauges>,
    first: Mutex<Option<Live>>,
}

/// Hears what arrives. Runs in the connection's task, so that a user's events keep their order.
struct Ear {
    inbox: Arc<dyn Inbox>,
    gauges: Arc<Gauges>,
    /// On which the probes go out.
    link: Arc<Link>,
    groups: Arc<Groups>,
    held: watch::Receiver<Arc<[usize]>>,
    shards: Shards,
    /// Ends the names of the probes' channels.
    probe: String,
    /// The probes' clock.
    born: Instant,
    /// Pushes of any kind: each shows that the connection lives.
    heard: AtomicU64,
    bell: Arc<Notify>,
    /// Commands under way.
    busy: AtomicUsize,
    /// Replies no longer belong to the commands they seem to.
    torn: AtomicBool,
}

#[derive(Debug, Error)]
enum Loss {
    #[error("the connection was closed")]
    Closed,
    #[error("{0}")]
    Failed(#[from] RedisError),
    #[error("nothing arrives, not even this node's own probes")]
    Silent,
    #[error("slots moved while commands were under way")]
    Torn,
}

impl Subscriber {
    pub fn new(
        fleet: &Fleet,
        addr: &Addr,
        held: watch::Receiver<Arc<[usize]>>,
        link: Arc<Link>,
    ) -> Self {
        let (shards, groups, gauges) = (&fleet.shards, &fleet.groups, &fleet.gauges);
        let ear = Arc::new(Ear {
            inbox: fleet.inbox.clone(),
            gauges: gauges.clone(),
            link: link.clone(),
            groups: groups.clone(),
            held: held.clone(),
            shards: shards.clone(),
            probe: format!(":probe:{}", Uuid::new_v4().simple()),
            born: Instant::now(),
            heard: AtomicU64::new(0),
            bell: Arc::default(),
            busy: AtomicUsize::new(0),
            torn: AtomicBool::new(false),
        });
        let on_push = {
            let ear = ear.clone();
            move |push| ear.on_push(push)
        };
        Self {
            shards: shards.clone(),
            addr: addr.clone(),
            connector: Connector::new(shards, addr, RESPONSE_TIMEOUT, on_push),
            groups: groups.clone(),
            held,
            link,
            ear,
            gauges: gauges.clone(),
            first: Mutex::default(),
        }
    }

    /// Rung when there may be something to do.
    pub fn bell(&self) -> Arc<Notify> {
        self.ear.bell.clone()
    }

    /// The first attempt; `run` makes the others.
    pub async fn open_first(&self) -> RedisResult<()> {
        let live = self.connector.open().await?;
        *self.first.lock().unwrap_or_else(PoisonError::into_inner) = Some(live);
        Ok(())
    }

    pub async fn run(&self, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep_subscribed()).await;
    }

    async fn keep_subscribed(&self) {
        let mut backoff = Backoff::new();
        let mut live = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        loop {
            let live = match live.take() {
                Some(live) => live,
                None => {
                    let live = self.connector.reopen(&mut backoff).await;
                    self.gauges.reconnects.fetch_add(1, Ordering::Relaxed);
                    live
                }
            };
            let since = Instant::now();
            let Err(loss) = self.serve(live).await;
            for group in self.held.borrow().iter() {
                self.groups.get(*group).lost();
            }
            self.shards.hint();
            warn!(addr = ?self.addr, reason = %loss, "lost the subscriptions in Redis");
            backoff.after(since.elapsed());
        }
    }

    /// One connection's life.
    async fn serve(&self, live: Live) -> Result<Infallible, Loss> {
        self.ear.torn.store(false, Ordering::Relaxed);
        let connection = live.connection;
        let probed = AtomicUsize::new(usize::MAX);
        tokio::select! {
            loss = self.follow(connection.clone(), &probed) => loss,
            loss = self.probe(connection, &probed) => loss,
            () = live.lost.cancelled() => Err(Loss::Closed),
        }
    }

    /// Makes the server's subscriptions match the groups, now and whenever they change.
    async fn follow(
        &self,
        connection: MultiplexedConnection,
        probed: &AtomicUsize,
    ) -> Result<Infallible, Loss> {
        let mut held = self.held.clone();
        loop {
            let began = Instant::now();
            let mine = held.borrow_and_update().clone();
            if !mine.contains(&probed.load(Ordering::Relaxed))
                && let Some(group) = mine.first()
            {
                let channel = self.probe_channel(*group);
                if self.command(connection.clone(), "SUBSCRIBE", vec![channel]).await? {
                    probed.store(*group, Ordering::Relaxed);
                }
            }
            let settling = mine.iter().map(|group| self.settle(*group, connection.clone()));
            // A slot that is not here is looked for elsewhere, and asked for again.
            let all_here = try_join_all(settling).await?.into_iter().all(|here| here)
                && probed.load(Ordering::Relaxed) != usize::MAX;
            let mut gap = Partitions::NONE;
            for group in mine.iter() {
                if self.groups.get(*group).settle() {
                    gap |= self.groups.partitions(*group);
                }
            }
            if gap != Partitions::NONE {
                info!(addr = ?self.addr, subscriptions = self.groups.held(), "subscribed in Redis again");
                self.ear.inbox.on_gap(gap);
            }
            tokio::select! {
                () = self.ear.bell.notified() => {}
                // The fleet lives as long as its ships.
                _ = held.changed() => {}
                () = sleep(MOVED_PAUSE), if !all_here => {}
            }
            // Those who come shortly after one another are subscribed together.
            sleep_until(began + PACE).await;
            if self.ear.torn.load(Ordering::Relaxed) {
                return Err(Loss::Torn);
            }
        }
    }

    /// False: another master holds the group's slot.
    async fn settle(&self, group: usize, connection: MultiplexedConnection) -> Result<bool, Loss> {
        let group = self.groups.get(group);
        while let Some(taken) = group.take(CHUNK, &self.ear.bell) {
            if !taken.subscribe.is_empty() {
                let channels = self.channels(&taken.subscribe);
                if !self.command(connection.clone(), "SUBSCRIBE", channels).await? {
                    group.lost();
                    return Ok(false);
                }
                group.confirm(&taken);
            }
            if !taken.unsubscribe.is_empty() {
                let channels = self.channels(&taken.unsubscribe);
                if !self.command(connection.clone(), "UNSUBSCRIBE", channels).await? {
                    group.lost();
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// In a cluster its namesake for one slot; false: another master holds that.
    async fn command(
        &self,
        mut connection: MultiplexedConnection,
        name: &str,
        channels: Vec<String>,
    ) -> Result<bool, Loss> {
        let mut command = match self.shards.is_cluster() {
            true => redis::cmd(&format!("S{name}")),
            false => redis::cmd(name),
        };
        self.ear.busy.fetch_add(1, Ordering::Relaxed);
        let done = command.arg(channels).exec_async(&mut connection).await;
        self.ear.busy.fetch_sub(1, Ordering::Relaxed);
        match done {
            Ok(()) if self.ear.torn.load(Ordering::Relaxed) => Err(Loss::Torn),
            Ok(()) => Ok(true),
            Err(error) if is_elsewhere(&error) => {
                self.shards.hint();
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Sends this node a message every second and listens whether anything arrives.
    ///
    /// Seconds are counted as this task lives them: after a pause of the whole process, what has
    /// arrived meanwhile is heard before the connection is given up.
    async fn probe(
        &self,
        connection: MultiplexedConnection,
        probed: &AtomicUsize,
    ) -> Result<Infallible, Loss> {
        let publish = if self.shards.is_cluster() { "SPUBLISH" } else { "PUBLISH" };
        let mut ticks = interval(PROBE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut heard, mut silent) = (None, 0);
        loop {
            ticks.tick().await;
            let group = probed.load(Ordering::Relaxed);
            if group == usize::MAX {
                continue;
            }
            let heard_now = Some(self.ear.heard.load(Ordering::Relaxed));
            silent = if heard_now == heard { silent + 1 } else { 0 };
            heard = heard_now;
            if silent >= SILENT_LIMIT {
                return Err(Loss::Silent);
            }
            // The way the events take. After a silent second by this very connection, so that a
            // publishing connection that hangs does not cost the subscriptions.
            let link = if silent == 0 { self.link.now() } else { None };
            let is_own = link.is_none();
            let mut way = link.unwrap_or_else(|| connection.clone());
            let sent = (self.ear.born.elapsed().as_micros() as u64).to_be_bytes();
            let mut publish = redis::cmd(publish);
            publish.arg(self.probe_channel(group)).arg(&sent[..]);
            self.ear.busy.fetch_add(usize::from(is_own), Ordering::Relaxed);
            // Whether it was sent matters only in what is heard.
            let sent = timeout(PROBE_EVERY, publish.exec_async(&mut way)).await;
            self.ear.busy.fetch_sub(usize::from(is_own), Ordering::Relaxed);
            if let Ok(Err(error)) = sent {
                debug!(%error, "could not send the probe");
            }
        }
    }

    fn probe_channel(&self, group: usize) -> String {
        let (prefix, probe) = (&self.shards.config().prefix, &self.ear.probe);
        match self.shards.is_cluster() {
            true => format!("{prefix}:{{p{group:02}}}{probe}"),
            false => format!("{prefix}{probe}"),
        }
    }

    fn channels(&self, users: &[UserId]) -> Vec<String> {
        users.iter().map(|user| channel(self.shards.config(), *user)).collect()
    }
}

/// An error that says that the slot is another master's, or nobody's for now.
fn is_elsewhere(error: &RedisError) -> bool {
    use ServerErrorKind as K;
    matches!(
        error.kind(),
        ErrorKind::Server(K::Moved | K::Ask | K::TryAgain | K::ClusterDown | K::MasterDown)
    )
}

impl Ear {
    fn on_push(&self, push: PushInfo) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        match push.kind {
            PushKind::Message | PushKind::SMessage => self.on_message(push.data),
            PushKind::SUnsubscribe => self.on_end(&push.data),
            _ => {}
        }
    }

    fn on_message(&self, data: Vec<Value>) {
        let Ok([Value::BulkString(channel), Value::BulkString(payload)]) =
            <[Value; 2]>::try_from(data)
        else {
            return;
        };
        if channel.ends_with(self.probe.as_bytes()) {
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

    /// The answer to a command of ours, or Redis' word that the slot is not this master's any more.
    fn on_end(&self, data: &[Value]) {
        let Some(Value::BulkString(channel)) = data.first() else { return };
        let Some(user) = user_of(channel) else { return };
        let group = self.groups.of(user);
        if !self.held.borrow().contains(&group) || !self.groups.get(group).expects(user) {
            return;
        }
        self.groups.get(group).lost();
        self.shards.hint();
        // The client takes this for the reply to the oldest command, and so on from there.
        if self.busy.load(Ordering::Relaxed) > 0 {
            self.torn.store(true, Ordering::Relaxed);
        }
    }

    fn on_probe(&self, payload: &[u8]) {
        if let Ok(sent) = payload.try_into().map(u64::from_be_bytes) {
            let sent = Duration::from_micros(sent);
            self.link.note_probe(self.born.elapsed().saturating_sub(sent));
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
        let config = RedisConfig { url: String::new(), prefix: "tidings".into(), ca_file: None };
        let user: UserId = "018f4e3a-0000-7000-8000-000000000001".parse().unwrap();
        let name = channel(&config, user);
        assert_eq!(name, format!("tidings:{{p{:02}}}:user:{user}", user.hash() % 128));
        assert_eq!(user_of(name.as_bytes()), Some(user));
        assert_eq!(user_of(b"tidings:user:x"), None);
    }
}
