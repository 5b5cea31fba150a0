//! Clients that come back read what they missed: the syncs of many users are gathered into shared
//! statements, a few at a time, so that ten thousand of them leave the store's other connections to
//! the rest of the node.
//!
//! Called by `http` and `ws`; knows the store alone. Nothing here waits for a timer: a worker takes
//! what waits.

pub mod page;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::ids::{ConversationId, UserId};
use crate::protocol::code::Code;
use crate::protocol::command::Sync;
use crate::protocol::problem::Problem;
use crate::protocol::sync::{SyncAnswer, SyncStatus};
use crate::store::types::{LogPage, PageWanted, Span};
use crate::store::{Store, StoreError};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::ResumeResult;
use page::Plan;

/// An answer has at most so many bytes. One conversation with one message goes in even if it has
/// more: with all that may stand in both, that is still below half of the default queue.
pub const ANSWER_BYTES: usize = 256 * 1024;
/// Syncs that may wait.
const QUEUE: usize = 16_384;
/// And the cursors they name.
const QUEUE_CURSORS: usize = 1_000_000;
/// Syncs whose heads are read in one statement,
const BATCH: usize = 64;
/// unless they name more than this.
const BATCH_CURSORS: usize = 2_000;
/// Messages that one statement may give, about,
const PAGE_MESSAGES: u32 = 1_000;
/// and conversations.
const PAGES: usize = 200;
/// A sync that waited for longer is not read any more: its client has given up, or will soon.
const PATIENCE: Duration = Duration::from_secs(10);

/// Called once, with the answer; must not wait.
pub type Reply = Box<dyn FnOnce(Result<SyncAnswer, Problem>) + Send>;

struct Pending {
    user_id: UserId,
    sync: Sync,
    bytes: usize,
    reply: Reply,
    since: Instant,
    _room: OwnedSemaphorePermit,
}

/// The way in.
#[derive(Clone)]
pub struct Syncs {
    queue: mpsc::Sender<Pending>,
    room: Arc<Semaphore>,
    metrics: Metrics,
}

/// Reads what waits; as many of them run as statements may at a time.
#[derive(Clone)]
pub struct Worker {
    queue: Arc<Mutex<mpsc::Receiver<Pending>>>,
    store: Store,
    epoch: Uuid,
    metrics: Metrics,
}

impl Syncs {
    pub fn new(store: Store, epoch: Uuid, metrics: Metrics) -> (Self, Worker) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let queue = Arc::new(Mutex::new(receiver));
        let room = Arc::new(Semaphore::new(QUEUE_CURSORS));
        let worker = Worker { queue, store, epoch, metrics: metrics.clone() };
        (Self { queue: sender, room, metrics }, worker)
    }

    /// Submits a checked sync, whose answer is to have at most so many bytes, and returns at once;
    /// `reply` is called when it was read, or now if it is refused. All refusals but those of the
    /// form are made here: a user's rate belongs to them.
    pub fn submit(&self, user_id: UserId, sync: Sync, bytes: usize, reply: Reply) {
        let bytes = bytes.min(ANSWER_BYTES);
        let cursors = u32::try_from(sync.cursors.len() + 1).unwrap_or(u32::MAX);
        let Ok(room) = self.room.clone().try_acquire_many_owned(cursors) else {
            return self.refuse(reply, busy());
        };
        let pending = Pending { user_id, sync, bytes, reply, since: Instant::now(), _room: room };
        match self.queue.try_send(pending) {
            Ok(()) => self.metrics.resume.waiting.increment(1.0),
            Err(TrySendError::Full(pending)) => self.refuse(pending.reply, busy()),
            Err(TrySendError::Closed(pending)) => {
                let problem = Problem::new(Code::Unavailable, "this node is stopping; use another");
                self.refuse(pending.reply, problem);
            }
        }
    }

    fn refuse(&self, reply: Reply, problem: Problem) {
        answer(&self.metrics, reply, Err(problem));
    }
}

pub fn busy() -> Problem {
    Problem::new(Code::Busy, "too many clients resume at once; try again shortly")
}

fn answer(metrics: &Metrics, reply: Reply, result: Result<SyncAnswer, Problem>) {
    let label = match &result {
        Ok(answer) => {
            let any = |status| answer.conversations.iter().any(|entry| entry.status == status);
            if any(SyncStatus::Reset) {
                ResumeResult::Reset
            } else if any(SyncStatus::Changed) || any(SyncStatus::Gone) {
                ResumeResult::Changed
            } else {
                ResumeResult::UpToDate
            }
        }
        Err(problem) if problem.code == Code::Busy => ResumeResult::Busy,
        Err(_) => ResumeResult::Failed,
    };
    metrics.resume.pages.of(label).increment(1);
    reply(result);
}

/// What a caller hears of a failure of the store; the details are in the log.
fn store_problem(error: &StoreError) -> Problem {
    tracing::warn!(%error, "what clients missed could not be read");
    if error.is_transient() {
        Problem::new(Code::Unavailable, "the store cannot be reached; try again")
    } else {
        Problem::new(Code::Internal, "the store refused; the log of the node tells why")
    }
}

impl Worker {
    /// Until `stop`; what waits then is not answered, for its sockets and requests have ended.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            let batch = tokio::select! {
                () = stop.cancelled() => return,
                batch = self.gather() => batch,
            };
            match batch {
                Some(batch) => self.read(batch).await,
                // Nobody can submit any more.
                None => return stop.cancelled().await,
            }
        }
    }

    /// Waits for a sync and takes what waits beside it. Cancel safe: after the wait nothing waits.
    async fn gather(&self) -> Option<Vec<Pending>> {
        let mut queue = self.queue.lock().await;
        let first = queue.recv().await?;
        let mut cursors = first.sync.cursors.len();
        let mut batch = vec![first];
        while batch.len() < BATCH
            && cursors < BATCH_CURSORS
            && let Ok(next) = queue.try_recv()
        {
            cursors += next.sync.cursors.len();
            batch.push(next);
        }
        self.metrics.resume.waiting.decrement(batch.len() as f64);
        self.metrics.resume.batch.record(batch.len() as f64);
        Some(batch)
    }

    async fn read(&self, batch: Vec<Pending>) {
        let (late, batch): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|pending| pending.since.elapsed() > PATIENCE);
        late.into_iter().for_each(|pending| self.answer(pending.reply, Err(busy())));
        let span = |pending: &Pending| Span {
            user_id: pending.user_id,
            after: pending.sync.after,
            to: pending.sync.to,
        };
        let spans: Vec<_> = batch.iter().map(span).collect();
        if spans.is_empty() {
            return;
        }
        let heads = match self.store.sync_heads(&spans).await {
            Ok(heads) => heads,
            Err(error) => return self.fail(batch, &store_problem(&error)),
        };
        let (mut some, mut wanted) = (Vec::new(), Vec::new());
        let mut messages = 0;
        for (pending, heads) in batch.into_iter().zip(heads) {
            let Pending { user_id, sync, bytes, .. } = &pending;
            let plan = page::plan(*user_id, sync, self.epoch, &heads, *bytes);
            let before = wanted.len();
            wanted.extend(plan.wanted());
            if wanted.len() == before {
                // The healthy case: one statement was enough.
                self.finish(pending, plan, Vec::new(), &mut HashMap::new());
                continue;
            }
            messages += pending.sync.limit;
            some.push((pending, plan));
            if messages >= PAGE_MESSAGES || wanted.len() >= PAGES {
                self.read_logs(std::mem::take(&mut some), std::mem::take(&mut wanted)).await;
                messages = 0;
            }
        }
        if !some.is_empty() {
            self.read_logs(some, wanted).await;
        }
    }

    /// `wanted` are those of all the plans, in their order.
    async fn read_logs(&self, batch: Vec<(Pending, Plan)>, wanted: Vec<PageWanted>) {
        let pages = match self.store.sync_pages(&wanted).await {
            Ok(pages) => pages,
            Err(error) => return self.fail(pending_of(batch), &store_problem(&error)),
        };
        let changed = wanted.iter().zip(&pages).filter_map(|(wanted, page)| match page {
            LogPage::Part(part) if part.info_changed(wanted.since) => {
                Some((wanted.user_id, wanted.conversation_id))
            }
            _ => None,
        });
        let changed: Vec<_> = changed.collect();
        let mut shown = HashMap::new();
        if !changed.is_empty() {
            match self.store.sync_conversations(&changed).await {
                // One who has left since is told so by the next page.
                Ok(conversations) => shown.extend(changed.into_iter().zip(conversations)),
                Err(error) => return self.fail(pending_of(batch), &store_problem(&error)),
            }
        }
        let mut pages = pages.into_iter();
        for (pending, plan) in batch {
            let own = pages.by_ref().take(plan.wanted().count()).collect();
            self.finish(pending, plan, own, &mut shown);
        }
    }

    fn finish(&self, pending: Pending, plan: Plan, pages: Vec<LogPage>, shown: &mut Shown) {
        let Pending { user_id, sync, bytes, reply, .. } = pending;
        let shown = |id| shown.get(&(user_id, id)).cloned().flatten();
        let answer = page::assemble(plan, pages, shown, self.epoch, sync.limit, bytes);
        self.answer(reply, Ok(answer));
    }

    fn fail(&self, batch: Vec<Pending>, problem: &Problem) {
        batch.into_iter().for_each(|pending| self.answer(pending.reply, Err(problem.clone())));
    }

    fn answer(&self, reply: Reply, result: Result<SyncAnswer, Problem>) {
        answer(&self.metrics, reply, result);
    }
}

type Shown = HashMap<(UserId, ConversationId), Option<crate::protocol::model::Conversation>>;

fn pending_of(batch: Vec<(Pending, Plan)>) -> Vec<Pending> {
    batch.into_iter().map(|(pending, _)| pending).collect()
}
