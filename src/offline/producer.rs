//! The producer, with a thread of its own that serves its confirmations.
//!
//! The crate's FutureProducer has such a thread too, which waits for 100 ms at a time and spins
//! through the last millisecond of each wait: three quarters of the CPU of an idle node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::logs::Logs;

/// Each wait for confirmations, which are served as they come; so long may the end take. The client
/// waits for whole milliseconds and spins through what is left of the last one: so a little more
/// than whole ones, which is over when it wakes.
const WAIT: Duration = Duration::from_micros(500_050);

type Outcome = Result<(), KafkaError>;
/// Who waits for a record's outcome, and its share of the queue's bound.
type Waiting = (oneshot::Sender<Outcome>, Option<OwnedSemaphorePermit>);
pub(super) type Sent = Result<oneshot::Receiver<Outcome>, KafkaError>;

/// Clones are the same producer. The drop of the last one blocks: see [`Producer::end`].
#[derive(Clone)]
pub(super) struct Producer(Arc<Served>);

struct Served {
    base: Arc<BaseProducer<Logs>>,
    ending: Arc<AtomicBool>,
    /// Until the end.
    thread: Option<JoinHandle<()>>,
}

impl Producer {
    /// Blocks: reads files, starts threads.
    pub fn new(config: &ClientConfig, logs: Logs) -> Result<Self, KafkaError> {
        let base: Arc<BaseProducer<Logs>> = Arc::new(config.create_with_context(logs)?);
        let ending = Arc::new(AtomicBool::new(false));
        let (served, is_ending) = (base.clone(), ending.clone());
        let serve = move || {
            while !is_ending.load(Ordering::Relaxed) {
                served.poll(WAIT);
            }
        };
        let started = thread::Builder::new().name("kafka".into()).spawn(serve);
        let thread = started.map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok(Self(Arc::new(Served { base, ending, thread: Some(thread) })))
    }

    /// Puts a record into the queue, which copies it; never waits. `room` is held as long as the
    /// copy is, whoever still waits for the outcome.
    pub fn send(
        &self,
        topic: &str,
        key: &str,
        value: &[u8],
        headers: OwnedHeaders,
        room: Option<OwnedSemaphorePermit>,
    ) -> Sent {
        let (confirm, confirmed) = oneshot::channel();
        let record = BaseRecord::with_opaque_to(topic, Box::new((confirm, room)));
        let record = record.key(key).payload(value).headers(headers);
        self.base().send(record).map_err(|(error, _)| error)?;
        Ok(confirmed)
    }

    /// What became of a record; a failure if nobody tells within `limit`.
    pub async fn outcome(sent: Sent, limit: Duration) -> Outcome {
        match timeout(limit, sent?).await {
            Ok(told) => told.unwrap_or(Err(KafkaError::Canceled)),
            Err(_) => Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut)),
        }
    }

    /// Why it will never confirm anything again.
    pub fn broken(&self) -> Option<String> {
        if self.0.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            return Some("its thread has ended".into());
        }
        let (code, reason) = self.base().client().fatal_error()?;
        Some(format!("{code}: {reason}"))
    }

    /// Records that are not confirmed.
    pub fn queue_len(&self) -> usize {
        self.base().in_flight_count().max(0) as usize
    }

    /// The crate's, of which this is a use.
    pub fn base(&self) -> &BaseProducer<Logs> {
        &self.0.base
    }

    /// If it is the last: what is not confirmed fails, and none of its threads is left.
    pub async fn end(self) {
        let _ = spawn_blocking(move || drop(self)).await;
    }
}

impl Drop for Served {
    /// The client goes after this, with threads that may not outlive the process's TLS library.
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic was told of.
            let _ = thread.join();
        }
    }
}

impl ProducerContext for Logs {
    type DeliveryOpaque = Box<Waiting>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiting: Self::DeliveryOpaque) {
        let (confirm, room) = *waiting;
        drop(room);
        // Whoever does not wait any more does not need it.
        let _ = confirm.send(result.as_ref().map(drop).map_err(|(error, _)| error.clone()));
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;
    use crate::offline::kafka::client_config;

    #[tokio::test]
    async fn a_record_keeps_its_room_as_long_as_its_copy_is_kept() {
        // Nobody listens there.
        let config = client_config("127.0.0.1:1", &Default::default());
        let producer = Producer::new(&config, Logs::default()).unwrap();
        let queue = Arc::new(Semaphore::new(2));
        let send = || {
            let room = queue.clone().try_acquire_owned().unwrap();
            producer.send("topic", "key", b"value", OwnedHeaders::new(), Some(room))
        };
        let given_up = Producer::outcome(send(), Duration::from_millis(1)).await;
        assert!(given_up.is_err());
        let waited_for = send();
        assert_eq!((producer.queue_len() >= 2, queue.available_permits()), (true, 0));
        assert_eq!(producer.broken(), None);
        let limit = Duration::from_secs(20);
        let (outcome, ()) = tokio::join!(Producer::outcome(waited_for, limit), producer.end());
        let code = outcome.unwrap_err().rdkafka_error_code();
        assert_eq!(code, Some(RDKafkaErrorCode::PurgeQueue));
        assert_eq!(queue.available_permits(), 2);
    }
}
