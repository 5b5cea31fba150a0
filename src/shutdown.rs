//! How the node stops: signals, and the stages in which its tasks end.
//!
//! Every long-lived task belongs to a stage. A task that ends before its stage was told to is a
//! fault: the node stops, and says so by its exit code.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tasks that end together. Cheap to clone: parts of the service that have tasks of their own are
/// given it, and put them there.
#[derive(Clone)]
pub struct Stage {
    name: &'static str,
    /// Told to its tasks when it is their turn to end.
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
    fault: CancellationToken,
}

impl Stage {
    /// `fault` is set when one of the tasks ends unasked.
    pub fn new(name: &'static str, fault: CancellationToken) -> Self {
        Self { name, stop: CancellationToken::new(), tasks: TaskTracker::new(), fault }
    }

    /// Runs a task of this stage.
    pub fn spawn(&self, task: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.spawn_until(task, self.stop.clone(), work);
    }

    /// The same for a task that may end before its stage, when `stop` tells it to.
    pub fn spawn_until(
        &self,
        task: &'static str,
        stop: CancellationToken,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let watch = Watch { stage: self.clone(), task, stop };
        self.tasks.spawn(async move {
            work.await;
            drop(watch);
        });
    }

    /// Tells the tasks to end and waits for them, for `limit` at most; true if all did.
    pub async fn end(&self, limit: Duration) -> bool {
        self.stop.cancel();
        self.tasks.close();
        let ended = tokio::time::timeout(limit, self.tasks.wait()).await.is_ok();
        if !ended {
            tracing::error!(
                stage = self.name,
                left = self.tasks.len(),
                "tasks did not end in time"
            );
        }
        ended
    }
}

/// Dropped when the task ends, also by a panic.
struct Watch {
    stage: Stage,
    task: &'static str,
    stop: CancellationToken,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.stop.is_cancelled() && !self.stage.stop.is_cancelled() {
            tracing::error!(stage = self.stage.name, task = self.task, "a task ended unasked");
            self.stage.fault.cancel();
        }
    }
}

/// Listens from now on; what it gives resolves at the first SIGTERM or SIGINT. A second one ends
/// the process at once, which loses nothing that was acknowledged.
pub fn signals() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let second = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::warn!("a second signal: stopping at once");
            std::process::exit(1);
        };
        #[expect(clippy::disallowed_methods, reason = "it outlives every stage, or ends them all")]
        tokio::spawn(second);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_unasked_is_a_fault_and_one_that_was_asked_is_not() {
        let fault = CancellationToken::new();
        let good = Stage::new("good", fault.clone());
        let stop = good.stop.clone();
        good.spawn("waits", async move { stop.cancelled().await });
        assert!(good.end(Duration::from_secs(5)).await);
        assert!(!fault.is_cancelled());
        let early = Stage::new("early", fault.clone());
        let stop = early.stop.child_token();
        early.spawn_until("ends early", stop.clone(), stop.clone().cancelled_owned());
        stop.cancel();
        early.tasks.close();
        early.tasks.wait().await;
        assert!(!fault.is_cancelled());
        let bad = Stage::new("bad", fault.clone());
        bad.spawn("ends", async {});
        fault.cancelled().await;
    }

    #[tokio::test]
    async fn a_task_that_hangs_is_given_up() {
        let stage = Stage::new("slow", CancellationToken::new());
        stage.spawn("hangs", std::future::pending());
        assert!(!stage.end(Duration::from_millis(10)).await);
    }
}
