//! The file sink of a single node: JSON lines, appended by one task and confirmed by fsync, one for
//! all that waits.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::record::Record;
use super::{OfflineError, QUEUE_KIB, take_room};
use crate::shutdown::Stage;
use crate::telemetry::Metrics;

/// Lines that share one fsync, and that wait for the next.
const BATCH: usize = 4_096;
/// Messages are nobody else's business.
const MODE: u32 = 0o600;
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct FileSink {
    lines: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    state: Arc<State>,
}

struct State {
    up: AtomicBool,
    waiting: AtomicUsize,
    closing: CancellationToken,
    /// The writer has ended, and what it took is answered.
    closed: CancellationToken,
    metrics: Metrics,
}

/// A line, its share of the bound, and who waits for its confirmation.
struct Job {
    line: Vec<u8>,
    _room: OwnedSemaphorePermit,
    confirm: oneshot::Sender<Result<(), OfflineError>>,
}

impl FileSink {
    /// Opens or creates the file and its folder, locks it against other nodes, and cuts off a line
    /// that a crash left half-written: it was never confirmed.
    pub async fn open(
        path: PathBuf,
        metrics: &Metrics,
        stage: &Stage,
    ) -> Result<Self, OfflineError> {
        let log = spawn_blocking(move || Log::open(path)).await;
        let log = log.map_err(|_| OfflineError::Closing)??;
        let (lines, jobs) = mpsc::channel(BATCH);
        let state = Arc::new(State {
            up: AtomicBool::new(true),
            waiting: AtomicUsize::new(0),
            closing: CancellationToken::new(),
            closed: CancellationToken::new(),
            metrics: metrics.clone(),
        });
        stage.spawn("offline file", run(log, jobs, state.clone()));
        Ok(Self { lines, room: Arc::new(Semaphore::new(QUEUE_KIB as usize)), state })
    }

    pub fn metrics(&self) -> &Metrics {
        &self.state.metrics
    }

    pub async fn hand_over(&self, record: &Record) -> Result<(), OfflineError> {
        let line = record.line();
        let room = take_room(&self.room, line.len()).await?;
        let (confirm, confirmed) = oneshot::channel();
        let job = Job { line, _room: room, confirm };
        // At once while there is room, as above.
        match self.lines.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(job)) => {
                self.lines.send(job).await.map_err(|_| OfflineError::Closing)?;
            }
            Err(TrySendError::Closed(_)) => return Err(OfflineError::Closing),
        }
        confirmed.await.unwrap_or(Err(OfflineError::Closing))
    }

    pub fn is_up(&self) -> bool {
        self.state.up.load(Ordering::Relaxed)
    }

    pub fn queue_len(&self) -> usize {
        self.lines.max_capacity() - self.lines.capacity()
            + self.state.waiting.load(Ordering::Relaxed)
    }

    pub async fn close(&self) {
        self.room.close();
        self.state.closing.cancel();
        if tokio::time::timeout(CLOSE_LIMIT, self.state.closed.cancelled()).await.is_err() {
            tracing::warn!("offline records were not written before the end; they stay unsettled");
        }
    }
}

/// Takes all that waits, appends it, syncs once, answers each; until it is closed and empty.
async fn run(mut log: Log, mut jobs: mpsc::Receiver<Job>, state: Arc<State>) {
    let _closed = state.closed.clone().drop_guard();
    loop {
        let mut batch = Vec::new();
        let taken = tokio::select! {
            biased;
            () = state.closing.cancelled(), if !jobs.is_closed() => {
                jobs.close();
                continue;
            }
            taken = jobs.recv_many(&mut batch, BATCH) => taken,
        };
        if taken == 0 {
            return;
        }
        state.waiting.store(taken, Ordering::Relaxed);
        let text = batch.iter().flat_map(|job| &job.line).copied().collect::<Vec<u8>>();
        let written = spawn_blocking(move || {
            let outcome = log.append(&text);
            (log, outcome)
        });
        // It does not panic, so this is the runtime's end.
        let Ok((back, outcome)) = written.await else {
            return;
        };
        log = back;
        state.metrics.offline.file_syncs.increment(1);
        let was_up = state.up.swap(outcome.is_ok(), Ordering::Relaxed);
        if let Err(error) = &outcome
            && was_up
        {
            tracing::error!(%error, path = %log.path.display(), "offline records cannot be written");
        }
        for job in batch {
            let answer = match &outcome {
                Ok(()) => Ok(()),
                Err(error) => Err(OfflineError::Unavailable(error.to_string())),
            };
            // Whoever does not wait any more does not need to know.
            let _ = job.confirm.send(answer);
        }
        state.waiting.store(0, Ordering::Relaxed);
    }
}

/// The file. Its calls block.
struct Log {
    file: File,
    path: PathBuf,
    /// After a failure that could not be undone: where the last whole line ends.
    torn_after: Option<u64>,
}

impl Log {
    fn open(path: PathBuf) -> Result<Self, OfflineError> {
        let fail = |source| OfflineError::File { path: path.clone(), source };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(fail)?;
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(MODE)
            .open(&path)
            .map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OfflineError::Locked { path }),
            Err(TryLockError::Error(source)) => return Err(OfflineError::File { path, source }),
        }
        file.set_permissions(Permissions::from_mode(MODE)).map_err(fail)?;
        let lost = mend(&mut file).map_err(fail)?;
        if lost > 0 {
            tracing::warn!(bytes = lost, path = %path.display(), "cut off a half-written offline record");
        }
        // The file's entry in its folder has to last, too.
        file.sync_all().and_then(|()| File::open(folder)?.sync_all()).map_err(fail)?;
        Ok(Self { file, path, torn_after: None })
    }

    /// All of `text` on the disk, or nothing of it in the file.
    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        if let Some(end) = self.torn_after {
            self.file.set_len(end)?;
            self.torn_after = None;
        }
        let end = self.file.metadata()?.len();
        let written = self.file.write_all(text).and_then(|()| self.file.sync_data());
        if written.is_err() && self.file.set_len(end).is_err() {
            self.torn_after = Some(end);
        }
        written
    }
}

/// Cuts off what follows the last newline; returns how many bytes that was.
fn mend(file: &mut File) -> io::Result<u64> {
    const STEP: u64 = 64 << 10;
    let length = file.seek(SeekFrom::End(0))?;
    let mut end = length;
    let mut part = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(STEP);
        file.seek(SeekFrom::Start(start))?;
        part.clear();
        Read::by_ref(file).take(end - start).read_to_end(&mut part)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            end = start + at as u64 + 1;
            break;
        }
        end = start;
    }
    if end < length {
        file.set_len(end)?;
    }
    Ok(length - end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_survive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("offline.jsonl");
        let long = "x".repeat(200_000);
        for (before, after) in [
            (String::new(), String::new()),
            ("{}\n".into(), "{}\n".into()),
            ("{}\n{\"a\":".into(), "{}\n".into()),
            ("{\"a\":".into(), String::new()),
            (format!("{{}}\n{long}"), "{}\n".into()),
            (long.clone(), String::new()),
            (format!("{long}\n"), format!("{long}\n")),
        ] {
            std::fs::write(&path, &before).unwrap();
            let mut file = File::options().read(true).append(true).open(&path).unwrap();
            assert_eq!(mend(&mut file).unwrap(), (before.len() - after.len()) as u64);
            assert!(std::fs::read_to_string(&path).unwrap() == after);
        }
    }

    #[test]
    fn a_full_disk_is_an_error_and_is_remembered_until_it_is_undone() {
        let full = File::options().append(true).open("/dev/full").unwrap();
        let mut log = Log { file: full, path: "/dev/full".into(), torn_after: None };
        let error = log.append(b"{}\n").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        // A device cannot be cut, as a file with a failing disk cannot.
        assert_eq!(log.torn_after, Some(0));
        assert!(log.append(b"{}\n").is_err());

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("offline.jsonl");
        std::fs::write(&path, "{}\n{\"half").unwrap();
        log.file = File::options().append(true).open(&path).unwrap();
        log.torn_after = Some(3);
        log.append(b"[]\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}\n[]\n");
        assert_eq!(log.torn_after, None);
    }
}
