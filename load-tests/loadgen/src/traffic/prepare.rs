//! What a run needs before it begins: conversations and sockets, many at a time.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tidings_client::rest::Rest;
use tidings_client::socket::{Identity, Socket};
use tidings_client::target::Target;
use tokio::time::Instant;
use uuid::Uuid;

/// Under way at a time: a few, for the server is to be loaded by the run and not by this.
pub const AT_ONCE: usize = 16;

/// The node closes connections that say nothing for some seconds more than this.
const KEEP: Duration = Duration::from_secs(5);

/// REST connections, made when one is needed and none is free.
pub struct Rests {
    target: Target,
    /// With the time of their last request.
    free: Mutex<Vec<(Rest, Instant)>>,
}

impl Rests {
    pub fn new(target: &Target) -> Self {
        Self { target: target.clone(), free: Mutex::default() }
    }

    fn free(&self) -> MutexGuard<'_, Vec<(Rest, Instant)>> {
        self.free.lock().expect("no holder panics")
    }

    /// One connection for the time of `work`; it is kept if that went well.
    pub async fn with<T>(
        &self,
        work: impl AsyncFnOnce(&mut Rest) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let free = self.free().pop();
        let mut rest = match free {
            Some((rest, used)) if used.elapsed() < KEEP => rest,
            _ => Rest::connect(&self.target).await?,
        };
        let done = work(&mut rest).await?;
        self.free().push((rest, Instant::now()));
        Ok(done)
    }
}

/// A user's socket, once it was greeted; `index` chooses the address it comes from.
pub async fn open(
    target: &Target,
    index: usize,
    user: Uuid,
    device: &str,
) -> anyhow::Result<Socket> {
    let identity = Identity { user, device };
    Socket::open(target, target.source(index), identity, true).await
}
