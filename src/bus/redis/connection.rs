//! Connections that say when they are lost, and the pauses between attempts to make them again.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{MultiplexedConnection, SendError};
use redis::{AsyncConnectionConfig, ProtocolVersion, PushInfo, PushKind, RedisResult};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use uuid::Uuid;

use crate::config::Addr;
use crate::shards::Shards;

/// To be connected and greeted.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection and the word that it is lost, which its users give too when it disappoints them.
/// The client's own task ends with the last clone of the connection.
#[derive(Clone)]
pub(super) struct Live {
    pub connection: MultiplexedConnection,
    pub lost: CancellationToken,
}

type OnPush = dyn Fn(PushInfo) + Send + Sync;

/// Makes connections of one kind to one master.
pub(super) struct Connector {
    shards: Shards,
    addr: Addr,
    response_timeout: Duration,
    /// Called in the connection's task, in the order of arrival: must not wait.
    on_push: Arc<OnPush>,
}

impl Connector {
    pub fn new(
        shards: &Shards,
        addr: &Addr,
        response_timeout: Duration,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Self {
        let (shards, addr) = (shards.clone(), addr.clone());
        Self { shards, addr, response_timeout, on_push: Arc::new(on_push) }
    }

    pub async fn open(&self) -> RedisResult<Live> {
        let lost = CancellationToken::new();
        let on_push = {
            let (lost, on_push) = (lost.clone(), self.on_push.clone());
            move |push: PushInfo| {
                match push.kind {
                    PushKind::Disconnection => lost.cancel(),
                    _ => on_push(push),
                }
                Ok::<(), SendError>(())
            }
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.response_timeout))
            .set_push_sender(on_push);
        // RESP3 tells of a lost connection at once, and lets a subscriber send other commands.
        let connection = self.shards.open(&self.addr, ProtocolVersion::RESP3, config).await?;
        Ok(Live { connection, lost })
    }

    /// Tries until it succeeds.
    pub async fn reopen(&self, backoff: &mut Backoff) -> Live {
        loop {
            sleep(backoff.pause()).await;
            match self.open().await {
                Ok(live) => return live,
                Err(error) => debug!(addr = ?self.addr, %error, "Redis does not answer yet"),
            }
        }
    }
}

/// Growing pauses with jitter, so that a returning Redis does not meet all nodes at one moment.
pub(super) struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(2);
    /// A connection that lived so long makes the next pause short again; one that was lost at once
    /// does not.
    const STEADY: Duration = Duration::from_secs(5);

    pub fn new() -> Self {
        Self(Self::FIRST)
    }

    /// Between half and all of 200 ms, 400 ms, … 2 s.
    fn pause(&mut self) -> Duration {
        let longest = self.0;
        self.0 = (longest * 2).min(Self::LONGEST);
        let random = Uuid::new_v4().as_u64_pair().1 as u32; // its upper half holds fixed bits
        longest.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
    }

    pub fn after(&mut self, lived: Duration) {
        if lived >= Self::STEADY {
            *self = Self::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_start_again() {
        let mut backoff = Backoff::new();
        for longest in [200, 400, 800, 1600, 2000, 2000] {
            let longest = Duration::from_millis(longest);
            let pause = backoff.pause();
            assert!(pause >= longest / 2 && pause <= longest, "{pause:?} of {longest:?}");
        }
        backoff.after(Duration::from_secs(1));
        assert!(backoff.pause() >= Duration::from_secs(1));
        backoff.after(Backoff::STEADY);
        assert!(backoff.pause() <= Backoff::FIRST);
    }
}
