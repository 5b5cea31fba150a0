//! The Kafka sink: an idempotent producer, keyed by conversation, that counts a record as handed
//! over when all in-sync replicas have it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::Producer as _;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::logs::Logs;
use super::producer::Producer;
use super::record::Record;
use super::{OfflineError, QUEUE_KIB, take_room};
use crate::config::KafkaSecurity;
use crate::telemetry::Metrics;
use crate::telemetry::traces::{Span, Trace};

/// For all that happens at start.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// From the producer's queue to the confirmation; then the caller tries again later.
const DELIVERY_LIMIT: Duration = Duration::from_secs(30);
/// A broker that is stopped, not dead, keeps its connections: a request fails after this time.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// An awaited single record takes this long; many at once share the request anyway.
const LINGER: Duration = Duration::from_millis(2);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBE_LIMIT: Duration = Duration::from_secs(3);
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct KafkaSink {
    inner: Arc<Inner>,
    /// Ends the probe when the last clone is gone.
    _probe: Arc<DropGuard>,
}

struct Inner {
    client: ClientConfig,
    /// Locked for a call that does not wait, never across an await; see [`Inner::replace`].
    producer: RwLock<Producer>,
    topic: String,
    /// If the topic has to be made again.
    partitions: i32,
    queue: Arc<Semaphore>,
    up: AtomicBool,
    closing: CancellationToken,
    metrics: Metrics,
}

impl KafkaSink {
    pub async fn connect(
        client: ClientConfig,
        brokers: &str,
        topic: &str,
        partitions: i32,
        metrics: &Metrics,
        tasks: &TaskTracker,
    ) -> Result<Self, OfflineError> {
        let logs = Logs::default();
        let fail = |error: KafkaError| OfflineError::Connect {
            brokers: brokers.to_owned(),
            reason: logs.explain(&error),
        };
        let producer = Producer::new(&client, logs.clone()).map_err(fail)?;
        let deadline = Instant::now() + CONNECT_LIMIT;
        let created = create_topic(&client, topic, partitions).await;
        let of_topic = find_topic(&producer, topic, deadline).await.map_err(fail)?;
        match (of_topic, created) {
            (Some(there), _) if there != partitions => {
                tracing::info!(
                    topic,
                    partitions = there,
                    "the offline topic has its own number of partitions"
                );
            }
            (Some(_), _) => {}
            (None, created) => {
                let reason = match created {
                    Err(error) => error.to_string(),
                    Ok(()) => "it was created, but has no leader yet".into(),
                };
                return Err(OfflineError::Topic { topic: topic.to_owned(), reason });
            }
        }
        let closing = CancellationToken::new();
        let inner = Arc::new(Inner {
            client,
            producer: RwLock::new(producer),
            topic: topic.to_owned(),
            partitions,
            queue: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
            up: AtomicBool::new(true),
            closing: closing.clone(),
            metrics: metrics.clone(),
        });
        tasks.spawn(inner.clone().probe());
        Ok(Self { inner, _probe: Arc::new(closing.drop_guard()) })
    }

    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    pub async fn hand_over(&self, record: &Record) -> Result<(), OfflineError> {
        let started = Instant::now();
        let outcome = self.inner.produce(record).await;
        let metrics = &self.inner.metrics.kafka;
        match &outcome {
            Ok(()) => metrics.produce.record(started.elapsed()),
            Err(error) => metrics.failures.of(error.label()).increment(1),
        }
        metrics.queue.set(self.queue_len() as f64);
        outcome
    }

    pub fn is_up(&self) -> bool {
        self.inner.up.load(Ordering::Relaxed)
    }

    pub fn queue_len(&self) -> usize {
        self.inner.with_producer(Producer::queue_len)
    }

    pub async fn close(&self) {
        self.inner.closing.cancel();
        self.inner.queue.close();
        let producer = self.inner.with_producer(Clone::clone);
        let flushed = spawn_blocking(move || producer.base().flush(CLOSE_LIMIT)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!(
                records = self.queue_len(),
                "offline records were not confirmed before the end; they stay unsettled"
            );
        }
    }
}

impl Inner {
    fn with_producer<T>(&self, call: impl FnOnce(&Producer) -> T) -> T {
        call(&self.producer.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn produce(self: &Arc<Self>, record: &Record) -> Result<(), OfflineError> {
        let value = record.value();
        let _room = take_room(&self.queue, value.len()).await?;
        let mut span = Span::of_record(|| format!("{} publish", self.topic), record.trace());
        span.set("messaging.system", "kafka");
        span.count("messaging.message.body.size", value.len());
        let confirmed = match self.enqueue(record, &value, &span.trace()) {
            Ok(confirmed) => match confirmed.await {
                Ok(outcome) => outcome,
                Err(_) => Err(KafkaError::Canceled),
            },
            Err(error) => Err(error),
        };
        let Err(error) = confirmed else {
            self.up.store(true, Ordering::Relaxed);
            return Ok(());
        };
        let error = classify(&error);
        span.failed("not confirmed");
        if error.is_transient() {
            self.up.store(false, Ordering::Relaxed);
            self.replace_if_broken().await;
        }
        Err(error)
    }

    /// Puts the record into the producer's own queue, which copies it.
    fn enqueue(
        &self,
        record: &Record,
        value: &[u8],
        trace: &Trace,
    ) -> Result<oneshot::Receiver<Result<(), KafkaError>>, KafkaError> {
        let key = record.key().to_string();
        let named = record.headers();
        let mut headers = named
            .iter()
            .fold(OwnedHeaders::new_with_capacity(named.len()), |headers, (key, value)| {
                headers.insert(Header { key, value: Some(value) })
            });
        if let Some(value) = &trace.traceparent() {
            headers = headers.insert(Header { key: "traceparent", value: Some(value) });
        }
        self.with_producer(|producer| producer.send(&self.topic, &key, value, headers))
    }

    /// An idempotent producer that lost track of its sequence fails for ever: a new one takes over.
    /// What the old one held fails and is handed over again by its callers, with the same ids.
    async fn replace_if_broken(self: &Arc<Self>) {
        let fatal = self.with_producer(|producer| producer.base().client().fatal_error());
        if let Some((code, reason)) = fatal
            && !self.closing.is_cancelled()
        {
            tracing::error!(%code, reason, "the Kafka producer is broken, making a new one");
            let inner = self.clone();
            let replaced = spawn_blocking(move || inner.replace()).await;
            if let Ok(Err(error)) = replaced {
                tracing::error!(%error, "no new Kafka producer could be made");
            }
        }
    }

    /// Blocks: making a client reads files, and ending one may wait.
    fn replace(&self) -> Result<(), KafkaError> {
        let mut producer = self.producer.write().unwrap_or_else(PoisonError::into_inner);
        // Someone else may have been quicker.
        if producer.base().client().fatal_error().is_some() {
            let old =
                std::mem::replace(&mut *producer, Producer::new(&self.client, Logs::default())?);
            drop(producer);
            drop(old);
        }
        Ok(())
    }

    async fn probe(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let probes = async {
            loop {
                ticks.tick().await;
                self.probe_once().await;
            }
        };
        tokio::select! {
            () = self.closing.cancelled() => {}
            () = probes => {}
        }
    }

    /// Asks for the topic, so that an outage shows also without traffic, and its end without a
    /// record that dares; a topic that was lost meanwhile is made again.
    async fn probe_once(self: &Arc<Self>) {
        self.replace_if_broken().await;
        let producer = self.with_producer(Clone::clone);
        match partitions_of(&producer, &self.topic, PROBE_LIMIT).await {
            Ok(Some(_)) => {
                if !self.up.swap(true, Ordering::Relaxed) {
                    tracing::info!("Kafka answers again");
                }
            }
            Ok(None) => {
                self.up.store(false, Ordering::Relaxed);
                let made = create_topic(&self.client, &self.topic, self.partitions).await;
                let error = made.err().map(|error| error.to_string());
                tracing::warn!(topic = self.topic, error, "the offline topic was missing");
            }
            Err(error) => {
                if self.up.swap(false, Ordering::Relaxed) {
                    tracing::warn!(%error, "Kafka does not answer");
                }
            }
        }
        self.metrics.kafka.queue.set(producer.queue_len() as f64);
    }
}

pub(super) fn client_config(brokers: &str, security: &KafkaSecurity) -> ClientConfig {
    let millis = |time: Duration| time.as_millis().to_string();
    let mut config = ClientConfig::new();
    config
        .set_log_level(RDKafkaLogLevel::Info)
        .set("bootstrap.servers", brokers)
        .set("client.id", "tidings")
        // Confirmed means: on all in-sync replicas, once, in order.
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("delivery.timeout.ms", millis(DELIVERY_LIMIT))
        .set("request.timeout.ms", millis(REQUEST_LIMIT))
        .set("socket.timeout.ms", millis(REQUEST_LIMIT))
        .set("socket.keepalive.enable", "true")
        .set("linger.ms", millis(LINGER))
        .set("compression.type", "lz4")
        // As the Java clients do it, so that others find a conversation's partition.
        .set("partitioner", "murmur2_random")
        // Back soon after a restart of the broker.
        .set("reconnect.backoff.max.ms", "2000")
        // Beyond our own bound, so that this one is never the first to be reached. Every record
        // takes at least 1 KiB of ours.
        .set("queue.buffering.max.kbytes", (2 * QUEUE_KIB).to_string())
        .set("queue.buffering.max.messages", (2 * QUEUE_KIB).to_string())
        .set("security.protocol", security.protocol());
    let mut set = |name: &str, path: &Path| {
        config.set(name, path.to_string_lossy());
    };
    if let Some(tls) = &security.tls {
        if let Some(ca) = &tls.ca {
            set("ssl.ca.location", ca);
        }
        if let Some((cert, key)) = &tls.own {
            set("ssl.certificate.location", cert);
            set("ssl.key.location", key);
        }
    }
    if let Some(sasl) = &security.sasl {
        config
            .set("sasl.mechanism", sasl.mechanism)
            .set("sasl.username", &sasl.username)
            .set("sasl.password", &sasl.password);
    }
    config
}

/// Makes the topic; Ok also if it is there. First of all, for on many brokers merely asking for an
/// unknown topic makes it, with a number of partitions that nobody chose.
async fn create_topic(
    client: &ClientConfig,
    topic: &str,
    partitions: i32,
) -> Result<(), KafkaError> {
    let admin: AdminClient<Logs> = client.create_with_context(Logs::default())?;
    // The broker's own default replication.
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
    let options = AdminOptions::new()
        .request_timeout(Some(CONNECT_LIMIT))
        .operation_timeout(Some(CONNECT_LIMIT));
    let answer = admin.create_topics([&new], &options).await;
    // Waits for its thread.
    let _ = spawn_blocking(move || drop(admin)).await;
    match answer?.into_iter().next() {
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) | None => Ok(()),
        Some(Err((_, code))) => Err(KafkaError::AdminOp(code)),
        Some(Ok(_)) => {
            tracing::info!(topic, partitions, "created the offline topic");
            Ok(())
        }
    }
}

/// How many partitions the topic has, once each has a leader; None if it does not come to that
/// before the deadline. An error if no broker answers.
async fn find_topic(
    producer: &Producer,
    topic: &str,
    deadline: Instant,
) -> Result<Option<i32>, KafkaError> {
    /// A new topic's leaders are known after a few milliseconds.
    const PAUSE: Duration = Duration::from_millis(50);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match partitions_of(producer, topic, left.min(PROBE_LIMIT)).await {
            Ok(Some(partitions)) => return Ok(Some(partitions)),
            answer if Instant::now() + PAUSE >= deadline => return answer,
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Asks once: how many partitions the topic has, None if it is missing or one lacks its leader.
async fn partitions_of(
    producer: &Producer,
    topic: &str,
    limit: Duration,
) -> Result<Option<i32>, KafkaError> {
    let (producer, topic) = (producer.clone(), topic.to_owned());
    let asked = spawn_blocking(move || {
        let metadata = producer.base().client().fetch_metadata(Some(&topic), limit)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let led = found.map(|found| found.partitions()).filter(|partitions| {
            !partitions.is_empty() && partitions.iter().all(|one| one.leader() >= 0)
        });
        Ok(led.map(|partitions| partitions.len() as i32))
    });
    // Not joined only if the runtime is going down.
    asked.await.unwrap_or(Err(KafkaError::Canceled))
}

/// Only what is wrong with the record itself, listed by name, is refused for ever; all else may
/// pass, a missing topic and a missing right, too: someone gives it back.
fn classify(error: &KafkaError) -> OfflineError {
    use RDKafkaErrorCode as Code;
    let reason = error.to_string();
    match error.rdkafka_error_code() {
        Some(Code::QueueFull) => OfflineError::QueueFull,
        Some(
            Code::MessageSizeTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::UnsupportedForMessageFormat,
        ) => OfflineError::Refused(reason),
        _ => OfflineError::Unavailable(reason),
    }
}
