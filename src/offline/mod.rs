//! For users without a socket: hands changes of messages over to a notification service, by Kafka,
//! or by a file where there is none.
//!
//! Called by `write_path` only. A record counts as handed over when the broker or the disk has
//! confirmed it; until then its recipients stay unsettled, so a failure here delays and never
//! loses. What waits is bounded in bytes.

mod check;
mod file;
mod kafka;
mod logs;
mod producer;
mod record;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::timeout;

use file::FileSink;
use kafka::KafkaSink;
pub use record::{MAX_RECIPIENTS, Reason, Recipient, Record};

use crate::config::OfflineConfig;
use crate::finding::Findings;
use crate::sabotage::{self, Mutation};
use crate::shutdown::Stage;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{KafkaFailure, OfflineOutcome};

/// What may wait for its confirmation: 64 MiB, counted in KiB. Callers beyond that wait in line.
const QUEUE_KIB: u32 = 64 << 10;
/// How long they do; then the caller comes again later, as after any failure.
const ROOM_LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub enum Offline {
    Kafka(KafkaSink),
    File(FileSink),
}

#[derive(Debug, Error)]
pub enum OfflineError {
    #[error("no Kafka broker of KAFKA_BROKERS ({brokers}) answers: {reason}")]
    Connect { brokers: String, reason: String },
    #[error("the topic KAFKA_OFFLINE_TOPIC ({topic}) cannot be used: {reason}")]
    Topic { topic: String, reason: String },
    #[error("the offline file {path} cannot be used: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error(
        "the offline file {path} belongs to another node that runs: give each node a DATA_DIR of \
         its own"
    )]
    Locked { path: PathBuf },
    /// Not confirmed, and perhaps written all the same: hand it over again later.
    #[error("the offline record was not confirmed: {0}")]
    Unavailable(String),
    /// The local queue is full: hand it over again later.
    #[error("too many offline records wait for their confirmation")]
    QueueFull,
    /// The broker will never take this record (too large, malformed): page someone.
    #[error("the offline record was refused: {0}")]
    Refused(String),
    /// The node is stopping; whoever is still unsettled is looked after by another one.
    #[error("the offline sink is closing")]
    Closing,
}

impl OfflineError {
    /// A retry may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::QueueFull | Self::Closing)
    }

    /// The value of the label `reason` in metrics.
    pub fn label(&self) -> KafkaFailure {
        match self {
            Self::QueueFull => KafkaFailure::QueueFull,
            Self::Refused(_) => KafkaFailure::Refused,
            Self::Closing => KafkaFailure::Closing,
            _ => KafkaFailure::Unavailable,
        }
    }
}

/// For `tidings check`; of a file there is nothing to be asked. `largest`: bytes of the largest change.
pub async fn check_kafka(config: &OfflineConfig, largest: usize, found: &mut Findings) {
    if let OfflineConfig::Kafka { brokers, topic, partitions, security } = config {
        let client = kafka::client_config(brokers, security);
        check::check(&client, brokers, topic, *partitions, largest, found).await;
    }
}

impl Offline {
    /// Connects within 10 s, making the topic if it is missing, or opens the file and mends it. The
    /// sink's task runs on the stage until [`Offline::close`], or until the last clone is dropped.
    pub async fn connect(
        config: &OfflineConfig,
        metrics: &Metrics,
        stage: &Stage,
    ) -> Result<Self, OfflineError> {
        match config {
            OfflineConfig::Kafka { brokers, topic, partitions, security } => {
                let client = kafka::client_config(brokers, security);
                let sink =
                    KafkaSink::connect(client, brokers, topic, *partitions, metrics, stage).await?;
                Ok(Self::Kafka(sink))
            }
            OfflineConfig::File { path } => {
                Ok(Self::File(FileSink::open(path.clone(), metrics, stage).await?))
            }
        }
    }

    /// Resolves when the record is confirmed, by the brokers or by the disk; Kafka gives up after
    /// about a minute at most. To be awaited many at once: they share batches. While the queue has
    /// room, futures first polled in order are written in order; otherwise `change_seq` tells which
    /// is newer. Dropping the future may or may not hand the record over, and gives no room back
    /// that the record still takes.
    pub async fn hand_over(&self, record: Record) -> Result<(), OfflineError> {
        if sabotage::is_on(Mutation::SkipKafka) {
            return Ok(());
        }
        let (metrics, outcome) = match self {
            Self::Kafka(sink) => (sink.metrics(), sink.hand_over(&record).await),
            Self::File(sink) => (sink.metrics(), sink.hand_over(&record).await),
        };
        let label = if outcome.is_ok() { OfflineOutcome::Produced } else { OfflineOutcome::Failed };
        metrics.offline.records.of(label).increment(1);
        outcome
    }

    /// By the latest sign there is: the last confirmation, or a probe every few seconds.
    pub fn is_up(&self) -> bool {
        match self {
            Self::Kafka(sink) => sink.is_up(),
            Self::File(sink) => sink.is_up(),
        }
    }

    /// Records that wait for their confirmation.
    pub fn queue_len(&self) -> usize {
        match self {
            Self::Kafka(sink) => sink.queue_len(),
            Self::File(sink) => sink.queue_len(),
        }
    }

    /// Refuses what is new, and waits, within 10 s, until what was handed over is confirmed; what is
    /// not by then fails.
    pub async fn close(&self) {
        match self {
            Self::Kafka(sink) => sink.close().await,
            Self::File(sink) => sink.close().await,
        }
    }
}

/// A share of the queue's bound for so many bytes, held until they are confirmed. While there is
/// room it is given at once, without a turn of the scheduler, which would mix up the order.
async fn take_room(
    queue: &Arc<Semaphore>,
    bytes: usize,
) -> Result<OwnedSemaphorePermit, OfflineError> {
    let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(QUEUE_KIB).clamp(1, QUEUE_KIB);
    match queue.clone().try_acquire_many_owned(kib) {
        Ok(room) => return Ok(room),
        Err(TryAcquireError::Closed) => return Err(OfflineError::Closing),
        Err(TryAcquireError::NoPermits) => {}
    }
    match timeout(ROOM_LIMIT, queue.clone().acquire_many_owned(kib)).await {
        Ok(room) => room.map_err(|_| OfflineError::Closing),
        Err(_) => Err(OfflineError::QueueFull),
    }
}
