//! The connection on which this node publishes to one master; it comes back by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, Pipeline, RedisResult, ServerErrorKind};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::connection::{Backoff, Connector, Live};
use super::gauges::Gauges;
use crate::bus::{BusError, Receivers};
use crate::config::Addr;
use crate::shards::Shards;

/// For the replies to one pipeline.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// A publisher waits for the first attempt to connect again, not for a longer outage.
const SHORT_CUT: Duration = Duration::from_millis(500);

#[derive(Clone)]
enum State {
    Up(Live),
    Down { since: Instant },
}

/// What became of one publish.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Published {
    Done(Receivers),
    /// Nobody got it: another master holds the channel.
    Moved,
}

impl Published {
    pub fn receivers(self) -> Receivers {
        match self {
            Self::Done(receivers) => receivers,
            Self::Moved => Receivers::Unknown,
        }
    }
}

pub(super) struct Link {
    connector: Connector,
    state: watch::Sender<State>,
    gauges: Arc<Gauges>,
    /// Microseconds; 0 before the first probe came back.
    probe_lag: AtomicU64,
}

impl Link {
    pub fn new(shards: &Shards, addr: &Addr, gauges: Arc<Gauges>) -> Self {
        let connector = Connector::new(shards, addr, RESPONSE_TIMEOUT, |_| {});
        let state = watch::Sender::new(State::Down { since: Instant::now() });
        Self { connector, state, gauges, probe_lag: 0.into() }
    }

    /// The first attempt; `run` makes the others.
    pub async fn open(&self) -> RedisResult<()> {
        self.state.send_replace(State::Up(self.connector.open().await?));
        Ok(())
    }

    /// Keeps the connection up until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep_up()).await;
        self.state.send_replace(State::Down { since: Instant::now() });
    }

    async fn keep_up(&self) {
        let mut backoff = Backoff::new();
        loop {
            let up = Instant::now();
            let state = self.state.borrow().clone();
            if let State::Up(live) = state {
                live.lost.cancelled().await;
                warn!("lost the connection to Redis for publishing");
                self.state.send_replace(State::Down { since: Instant::now() });
                drop(live);
                backoff.after(up.elapsed());
            }
            let live = self.connector.reopen(&mut backoff).await;
            info!("publishing to Redis again");
            self.gauges.reconnects.fetch_add(1, Ordering::Relaxed);
            self.state.send_replace(State::Up(live));
        }
    }

    /// The connection if it is up, without waiting.
    pub fn now(&self) -> Option<MultiplexedConnection> {
        match &*self.state.borrow() {
            State::Up(live) => Some(live.connection.clone()),
            State::Down { .. } => None,
        }
    }

    async fn live(&self) -> Option<Live> {
        let mut state = self.state.subscribe();
        let since = match &*state.borrow() {
            State::Up(live) => return Some(live.clone()),
            State::Down { since } => *since,
        };
        let up = state.wait_for(|state| matches!(state, State::Up(_)));
        match timeout_at(since + SHORT_CUT, up).await {
            Ok(Ok(state)) => match &*state {
                State::Up(live) => Some(live.clone()),
                State::Down { .. } => None,
            },
            _ => None,
        }
    }

    /// One pipeline. None: the connection failed, and is being made again.
    ///
    /// It is not sent again on the new connection: a server that was only slow would get it twice,
    /// and out of order with what the caller publishes meanwhile.
    pub async fn publish(&self, mut pipeline: Pipeline) -> Option<Vec<Published>> {
        let replies: Vec<RedisResult<u32>> = self.query(pipeline.ignore_errors()).await.ok()?;
        let published = |reply: RedisResult<u32>| match reply {
            Ok(count) => Published::Done(Receivers::Count(count)),
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::Moved) => {
                Published::Moved
            }
            Err(_) => Published::Done(Receivers::Unknown),
        };
        Some(replies.into_iter().map(published).collect())
    }

    pub async fn ping(&self) -> Result<(), BusError> {
        let mut pipeline = redis::pipe();
        let replies: Vec<RedisResult<String>> =
            self.query(pipeline.cmd("PING").ignore_errors()).await?;
        for reply in replies {
            reply.map_err(|error| BusError::Unavailable(error.to_string()))?;
        }
        Ok(())
    }

    /// With `ignore_errors`, so that an error here is one of the connection.
    async fn query<T: redis::FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, BusError> {
        let Some(mut live) = self.live().await else {
            return Err(BusError::Unavailable("there is no connection to Redis".into()));
        };
        pipeline.query_async(&mut live.connection).await.map_err(|error| {
            live.lost.cancel();
            BusError::Unavailable(error.to_string())
        })
    }

    /// From a publish on it to the arrival at this node's subscriber.
    pub fn note_probe(&self, lag: Duration) {
        self.probe_lag.store((lag.as_micros() as u64).max(1), Ordering::Relaxed);
    }

    pub fn probe_lag(&self) -> Option<Duration> {
        let micros = self.probe_lag.load(Ordering::Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros))
    }
}
