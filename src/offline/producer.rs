//! The producer, with a thread of its own that serves its confirmations.
//!
//! The crate's FutureProducer has such a thread too, which waits for 100 ms at a time and spins
//! through the last fraction of a millisecond of each wait: three quarters of the CPU of an idle node.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use tokio::sync::oneshot;

use super::logs::Logs;

/// Each wait for confirmations, which are served as they come; a producer that nobody holds any more
/// is closed so long after.
const WAIT: Duration = Duration::from_secs(1);

type Outcome = Result<(), KafkaError>;

/// Clones are the same producer. The last one leaves its end to the thread: what is not confirmed by
/// then fails.
#[derive(Clone)]
pub(super) struct Producer(Arc<BaseProducer<Logs>>);

impl Producer {
    pub fn new(config: &ClientConfig, logs: Logs) -> Result<Self, KafkaError> {
        let base: Arc<BaseProducer<Logs>> = Arc::new(config.create_with_context(logs)?);
        let held = Arc::downgrade(&base);
        let serve = move || {
            while let Some(base) = held.upgrade() {
                base.poll(WAIT);
            }
        };
        let started = thread::Builder::new().name("kafka".into()).spawn(serve);
        started.map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok(Self(base))
    }

    /// Puts a record into the queue, which copies it; never waits. The receiver fails if the producer
    /// ended before the record was confirmed.
    pub fn send(
        &self,
        topic: &str,
        key: &str,
        value: &[u8],
        headers: OwnedHeaders,
    ) -> Result<oneshot::Receiver<Outcome>, KafkaError> {
        let (confirm, confirmed) = oneshot::channel();
        let record = BaseRecord::with_opaque_to(topic, Box::new(confirm));
        let record = record.key(key).payload(value).headers(headers);
        self.0.send(record).map_err(|(error, _)| error)?;
        Ok(confirmed)
    }

    /// Records that are not confirmed.
    pub fn queue_len(&self) -> usize {
        self.0.in_flight_count().max(0) as usize
    }

    /// The crate's, of which this is a use.
    pub fn base(&self) -> &BaseProducer<Logs> {
        &self.0
    }
}

impl ProducerContext for Logs {
    type DeliveryOpaque = Box<oneshot::Sender<Outcome>>;

    fn delivery(&self, result: &DeliveryResult<'_>, confirm: Self::DeliveryOpaque) {
        // Whoever does not wait any more does not need it.
        let _ = confirm.send(result.as_ref().map(drop).map_err(|(error, _)| error.clone()));
    }
}
