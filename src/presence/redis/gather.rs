//! Sessions that join and leave one by one, gathered: what waits while a batch is under way, or comes
//! shortly after it began, goes to the server as the next one. So a storm costs a few large pipelines.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::super::{Entry, PresenceError, Registered, Result};
use super::Inner;
use crate::ids::{DeviceId, SessionId, UserId};

/// Changes in one batch.
const BATCH: usize = 256;
/// Changes that may wait; beyond, those who make them do.
const QUEUE: usize = 1_024;
/// Between the beginnings of two batches: a pipeline costs as much as some of what is in it.
const PACE: Duration = Duration::from_millis(4);

pub(super) enum Change {
    Join { user: UserId, entry: Entry, reply: oneshot::Sender<Result<Registered>> },
    Leave { user: UserId, device: DeviceId, session: SessionId, done: oneshot::Sender<()> },
}

pub(super) struct Gather(mpsc::Sender<Change>);

impl Gather {
    pub fn new() -> (Self, mpsc::Receiver<Change>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    pub async fn join(&self, user: UserId, entry: Entry) -> Result<Registered> {
        let (reply, registered) = oneshot::channel();
        let _ = self.0.send(Change::Join { user, entry, reply }).await;
        // Dropped, sent or not: the task has ended.
        registered.await.unwrap_or_else(|_| Err(PresenceError::Unavailable("it is closed".into())))
    }

    pub async fn leave(&self, user: UserId, device: DeviceId, session: SessionId) {
        let (done, removed) = oneshot::channel();
        let _ = self.0.send(Change::Leave { user, device, session, done }).await;
        let _ = removed.await;
    }
}

/// Until nobody can change anything any more.
pub(super) async fn run(inner: &Inner, mut changes: mpsc::Receiver<Change>) {
    let mut batch = Vec::new();
    let mut next = Instant::now();
    while changes.recv_many(&mut batch, BATCH).await > 0 {
        sleep_until(next).await;
        next = Instant::now() + PACE;
        while batch.len() < BATCH
            && let Ok(change) = changes.try_recv()
        {
            batch.push(change);
        }
        let (mut joining, mut replies) = (Vec::new(), Vec::new());
        let (mut leaving, mut left) = (Vec::new(), Vec::new());
        for change in batch.drain(..) {
            match change {
                Change::Join { user, entry, reply } => {
                    joining.push((user, entry));
                    replies.push(reply);
                }
                Change::Leave { user, device, session, done } => {
                    leaving.push((user, device, session));
                    left.push(done);
                }
            }
        }
        // Who leaves and is back is in this order: his device's entry is free when he joins.
        if !leaving.is_empty() {
            inner.remove_all(&leaving).await;
        }
        for done in left {
            let _ = done.send(());
        }
        if joining.is_empty() {
            continue;
        }
        let registered = inner.register(&mut joining, true).await;
        for (reply, registered) in replies.into_iter().zip(registered) {
            let _ = reply.send(registered);
        }
    }
}
