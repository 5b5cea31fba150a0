//! The Kafka sink: an idempotent producer, keyed by conversation, that counts a record as handed
//! over when all in-sync replicas have it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::Producer as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::logs::Logs;
use super::producer::{Producer, Sent};
use super::record::Record;
use super::{OfflineError, QUEUE_KIB, take_room};
use crate::config::KafkaSecurity;
use crate::shutdown::Stage;
use crate::telemetry::Metrics;
use crate::telemetry::traces::{Span, Trace};

/// For all that happens at start.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// From the producer's queue to the confirmation; then the caller tries again later.
const DELIVERY_LIMIT: Duration = Duration::from_secs(30);
/// By then the producer has told of a record, unless it is dead.
const OUTCOME_LIMIT: Duration = DELIVERY_LIMIT.saturating_add(Duration::from_secs(5));
/// What the client takes, as much as it can: the topic alone judges how large a record may be.
const MAX_BYTES: u32 = 1_000_000_000;
/// A broker that is stopped, not dead, keeps its connections: a request fails after this time.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// An awaited single record takes this long; many at once share the request anyway.
const LINGER: Duration = Duration::from_millis(2);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBE_LIMIT: Duration = Duration::from_secs(3);
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// Before a broken producer is replaced again, if that has failed.
const REPLACE_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct KafkaSink {
    inner: Arc<Inner>,
    /// Ends the probe when the last clone is gone.
    _probe: Arc<DropGuard>,
}

struct Inner {
    client: ClientConfig,
    /// Locked for a call that does not wait, never across an await; None once it is closed.
    producer: RwLock<Option<Producer>>,
    /// One call does it.
    replacing: AtomicBool,
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
        stage: &Stage,
    ) -> Result<Self, OfflineError> {
        let logs = Logs::default();
        let fail = |error: KafkaError| OfflineError::Connect {
            brokers: brokers.to_owned(),
            reason: logs.explain(&error),
        };
        let unusable = |reason| OfflineError::Topic { topic: topic.to_owned(), reason };
        let (config, to_logs) = (client.clone(), logs.clone());
        let producer = blocking(move || Producer::new(&config, to_logs)).await.map_err(fail)?;
        let deadline = Instant::now() + CONNECT_LIMIT;
        let created = create_topic(&client, topic, partitions).await;
        let found = match (find_topic(&producer, topic, deadline).await, created) {
            (Ok(Seen::Led(there)), _) => Ok(there),
            (Ok(Seen::Leaderless), _) => Err(unusable("a partition of it has no leader".into())),
            (Ok(Seen::Missing), Err(error)) => {
                Err(unusable(format!("it does not exist, and it cannot be created here: {error}")))
            }
            (Ok(Seen::Missing), Ok(())) => {
                Err(unusable("it was created, and the brokers do not know it yet".into()))
            }
            (Err(error), _) => Err(fail(error)),
        };
        match found {
            Ok(there) if there != partitions => {
                tracing::info!(
                    topic,
                    partitions = there,
                    "the offline topic has its own number of partitions"
                );
            }
            Ok(_) => {}
            Err(error) => {
                producer.end().await;
                return Err(error);
            }
        }
        let closing = CancellationToken::new();
        let inner = Arc::new(Inner {
            client,
            producer: RwLock::new(Some(producer)),
            replacing: AtomicBool::new(false),
            topic: topic.to_owned(),
            partitions,
            queue: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
            up: AtomicBool::new(true),
            closing: closing.clone(),
            metrics: metrics.clone(),
        });
        stage.spawn_until("probe", closing.clone(), inner.clone().probe());
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
        self.inner.with_producer(Producer::queue_len).unwrap_or(0)
    }

    /// When it is done, no thread of the producer is left; if a probe is still asking, when that is.
    pub async fn close(&self) {
        self.inner.closing.cancel();
        self.inner.queue.close();
        let inner = self.inner.clone();
        if let Ok(Some(records)) = spawn_blocking(move || inner.end()).await {
            tracing::warn!(
                records,
                "offline records were not confirmed before the end; they stay unsettled"
            );
        }
    }
}

impl Inner {
    fn with_producer<T>(&self, call: impl FnOnce(&Producer) -> T) -> Option<T> {
        self.producer.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(call)
    }

    async fn produce(self: &Arc<Self>, record: &Record) -> Result<(), OfflineError> {
        let value = record.value();
        let size = value.len();
        let room = take_room(&self.queue, size).await?;
        let mut span = Span::of_record(|| format!("{} publish", self.topic), record.trace());
        span.set("messaging.system", "kafka");
        span.count("messaging.message.body.size", size);
        let sent = self.enqueue(record, value, &span.trace(), room).ok_or(OfflineError::Closing)?;
        let Err(error) = Producer::outcome(sent, OUTCOME_LIMIT).await else {
            self.up.store(true, Ordering::Relaxed);
            return Ok(());
        };
        let error = classify(&error);
        span.failed("not confirmed");
        if error.is_transient() {
            if self.up.swap(false, Ordering::Relaxed) {
                tracing::warn!(%error, "Kafka confirms no record");
            }
            self.replace_if_broken();
        }
        Err(error)
    }

    /// Puts the record into the producer's own queue, which copies it; None if it is closed.
    fn enqueue(
        &self,
        record: &Record,
        value: Vec<u8>,
        trace: &Trace,
        room: OwnedSemaphorePermit,
    ) -> Option<Sent> {
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
        self.with_producer(|producer| producer.send(&self.topic, &key, &value, headers, Some(room)))
    }

    /// An idempotent producer that lost track of its sequence fails for ever: a new one takes over.
    /// What the old one held fails and is handed over again by its callers, with the same ids.
    fn replace_if_broken(self: &Arc<Self>) {
        if self.with_producer(Producer::broken).flatten().is_some()
            && !self.closing.is_cancelled()
            && !self.replacing.swap(true, Ordering::AcqRel)
        {
            let inner = self.clone();
            spawn_blocking(move || {
                inner.replace();
                inner.replacing.store(false, Ordering::Release);
            });
        }
    }

    /// Blocks: making a client reads files, and ending one waits. Nobody else does meanwhile.
    fn replace(&self) {
        // Else it was replaced between the look and the turn.
        let Some(reason) = self.with_producer(Producer::broken).flatten() else { return };
        tracing::error!(reason, "the Kafka producer is broken, making a new one");
        match Producer::new(&self.client, Logs::default()) {
            Ok(new) => {
                let mut producer = self.producer.write().unwrap_or_else(PoisonError::into_inner);
                let ended = match producer.as_mut() {
                    Some(old) => std::mem::replace(old, new),
                    // Closed meanwhile.
                    None => new,
                };
                drop(producer);
                drop(ended);
            }
            Err(error) => {
                tracing::error!(%error, "no new Kafka producer could be made");
                thread::sleep(REPLACE_PAUSE);
            }
        }
    }

    /// Blocks until all is confirmed, or the limit is over: then returns how many records are not,
    /// which fail.
    fn end(&self) -> Option<usize> {
        let producer = self.with_producer(Clone::clone)?;
        let flushed = producer.base().flush(CLOSE_LIMIT);
        let left = flushed.is_err().then(|| producer.queue_len());
        let held = self.producer.write().unwrap_or_else(PoisonError::into_inner).take();
        drop((held, producer));
        left
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
        self.replace_if_broken();
        let Some(producer) = self.with_producer(Clone::clone) else { return };
        let topic = self.topic.as_str();
        match look_for(producer, topic, PROBE_LIMIT).await {
            Ok(Seen::Led(_)) => {
                if !self.up.swap(true, Ordering::Relaxed) {
                    tracing::info!("Kafka answers again");
                }
            }
            Ok(Seen::Leaderless) => {
                if self.up.swap(false, Ordering::Relaxed) {
                    tracing::warn!(topic, "a partition of the offline topic has no leader");
                }
            }
            Ok(Seen::Missing) => {
                self.up.store(false, Ordering::Relaxed);
                match create_topic(&self.client, topic, self.partitions).await {
                    Ok(()) => tracing::warn!(topic, "the offline topic was missing"),
                    Err(error) => {
                        tracing::warn!(topic, %error, "the offline topic is missing, or hidden");
                    }
                }
            }
            Err(error) => {
                if self.up.swap(false, Ordering::Relaxed) {
                    tracing::warn!(%error, "Kafka does not answer");
                }
            }
        }
        let waiting = self.with_producer(Producer::queue_len).unwrap_or(0);
        self.metrics.kafka.queue.set(waiting as f64);
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
        .set("message.max.bytes", MAX_BYTES.to_string())
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

/// What takes files, threads or time is not for an async worker.
pub(super) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, KafkaError> + Send + 'static,
) -> Result<T, KafkaError> {
    // Not joined only if the runtime is going down.
    spawn_blocking(call).await.unwrap_or(Err(KafkaError::Canceled))
}

/// To be dropped where it may block: it waits for its thread.
pub(super) async fn admin_client(client: &ClientConfig) -> Result<AdminClient<Logs>, KafkaError> {
    let client = client.clone();
    blocking(move || client.create_with_context(Logs::default())).await
}

/// Makes the topic; Ok also if it is there. First of all, for on many brokers merely asking for an
/// unknown topic makes it, with a number of partitions that nobody chose.
async fn create_topic(
    client: &ClientConfig,
    topic: &str,
    partitions: i32,
) -> Result<(), KafkaError> {
    let admin = admin_client(client).await?;
    // The broker's own default replication.
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
    let options = AdminOptions::new()
        .request_timeout(Some(CONNECT_LIMIT))
        .operation_timeout(Some(CONNECT_LIMIT));
    let answer = admin.create_topics([&new], &options).await;
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

/// What the brokers tell of the topic.
#[derive(Debug, PartialEq)]
enum Seen {
    /// So many partitions, each with its leader.
    Led(i32),
    /// It is there, and one of its partitions waits for its broker.
    Leaderless,
    Missing,
}

/// Asks until each partition has its leader, or the deadline is over. An error if no broker answers.
async fn find_topic(
    producer: &Producer,
    topic: &str,
    deadline: Instant,
) -> Result<Seen, KafkaError> {
    /// A new topic's leaders are known after a few milliseconds.
    const PAUSE: Duration = Duration::from_millis(50);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match look_for(producer.clone(), topic, left.min(PROBE_LIMIT)).await {
            Ok(seen @ Seen::Led(_)) => return Ok(seen),
            answer if Instant::now() + PAUSE >= deadline => return answer,
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Asks once.
async fn look_for(producer: Producer, topic: &str, limit: Duration) -> Result<Seen, KafkaError> {
    let topic = topic.to_owned();
    blocking(move || {
        let metadata = producer.base().client().fetch_metadata(Some(&topic), limit)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let partitions = found.map(|found| found.partitions()).unwrap_or_default();
        Ok(match partitions {
            [] => Seen::Missing,
            all if all.iter().any(|one| one.leader() < 0) => Seen::Leaderless,
            all => Seen::Led(all.len() as i32),
        })
    })
    .await
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
