//! For users without a socket: what is handed over is confirmed, readable by others, and the same
//! on a retry. On the file, and on a real Kafka if TEST_KAFKA_BROKERS names one.

#![expect(clippy::unwrap_used, reason = "where a test cannot go on it fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{join_all, try_join_all};
use metrics_exporter_prometheus::PrometheusHandle;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use tidings::clock::Timestamp;
use tidings::config::{KafkaSasl, KafkaSecurity, OfflineConfig};
use tidings::ids::{ConversationId, MessageId, UserId};
use tidings::offline::{Offline, OfflineError, Reason, Recipient, Record};
use tidings::protocol::model::ChangeKind;
use tidings::protocol::model::{Mention, Message, MessageType};
use tidings::shutdown::Stage;
use tidings::telemetry::Metrics;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::certs::Authority;
use crate::harness::own_kafka::{OwnKafka, PASSWORD, USER};
use crate::harness::until;

const PATIENCE: Duration = Duration::from_secs(20);

/// An offline sink with what it needs around it.
struct Sink {
    offline: Offline,
    exporter: PrometheusHandle,
    stage: Stage,
}

impl Sink {
    async fn connect(config: &OfflineConfig) -> Result<Self, OfflineError> {
        let (metrics, exporter) = Metrics::new();
        let stage = Stage::new("offline", CancellationToken::new());
        let offline = Offline::connect(config, &metrics, &stage).await?;
        Ok(Self { offline, exporter, stage })
    }

    async fn hand_over_all(&self, records: impl IntoIterator<Item = Record>) {
        let all = records.into_iter().map(|record| self.offline.hand_over(record));
        let all = tokio::time::timeout(PATIENCE, try_join_all(all)).await;
        all.expect("confirmed in time").expect("confirmed");
    }

    fn metric(&self, series: &str) -> f64 {
        let output = self.exporter.render();
        let line = output.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_else(|| panic!("no {series}")).trim().parse().unwrap()
    }

    /// Nothing of it runs on after its close.
    async fn close(self) {
        self.offline.close().await;
        assert!(self.stage.end(PATIENCE).await, "its tasks end");
        assert_eq!(self.offline.queue_len(), 0);
        let refused = self.offline.hand_over(created(1)).await;
        assert!(matches!(refused, Err(OfflineError::Closing)), "{refused:?}");
    }
}

fn message(seq: i64) -> Message {
    let conversation_id = ConversationId::random();
    Message {
        id: MessageId::new(conversation_id, Timestamp::now()),
        conversation_id,
        seq,
        change_seq: seq,
        sender_id: UserId(Uuid::new_v4()),
        client_message_id: Some("c1".into()),
        message_type: MessageType::Text,
        content: Some("hello @you".into()),
        parent_message_id: None,
        reply_count: 0,
        mentions: None,
        metadata: None,
        created_at: Timestamp::now(),
        edited_at: None,
        deleted_at: None,
    }
}

fn recipients(count: usize) -> Vec<Recipient> {
    let recipient = |at: usize| Recipient {
        user_id: UserId(Uuid::new_v4()),
        mentioned: at == 0,
        muted: at == 1,
    };
    (0..count).map(recipient).collect()
}

fn split(kind: ChangeKind, message: &Message, recipients: &[Recipient]) -> Vec<Record> {
    Record::split(kind, &Arc::new(message.clone()), recipients.to_vec(), Reason::Absent)
}

/// A record of a new message in a conversation of its own.
fn created(seq: i64) -> Record {
    split(ChangeKind::MessageCreated, &message(seq), &recipients(1)).remove(0)
}

/// One of each kind: created with all that a message can have, edited, deleted, and late for many.
fn one_of_each(conversation: &Message) -> Vec<Record> {
    let to = recipients(3);
    let rich = Message {
        message_type: MessageType::Image,
        // As long as it may be, of characters that grow when they are escaped.
        content: Some("\u{1}\"ä".repeat(4_096)),
        parent_message_id: Some(MessageId(Uuid::now_v7())),
        mentions: Some(vec![Mention { user_id: to[0].user_id, offset: 6, length: 4 }]),
        metadata: Some(json!({"media_url": "https://example.com/x.png", "duration": 1.5})),
        ..conversation.clone()
    };
    let edited =
        Message { change_seq: 8, edited_at: Some(Timestamp::now()), ..conversation.clone() };
    let deleted = Message {
        change_seq: 9,
        content: None,
        deleted_at: Some(Timestamp::now()),
        ..edited.clone()
    };
    [
        split(ChangeKind::MessageCreated, &rich, &to),
        split(ChangeKind::MessageEdited, &edited, &to),
        split(ChangeKind::MessageDeleted, &deleted, &to),
        Record::split(ChangeKind::MessageCreated, &Arc::new(rich), recipients(500), Reason::Late),
    ]
    .concat()
}

fn schema() -> Value {
    serde_json::from_str(include_str!("../../docs/schemas/offline-record.schema.json")).unwrap()
}

/// Checks against the schema, or against one of its definitions.
fn assert_valid(value: &Value, definition: Option<&str>) {
    let mut schema = schema();
    if let Some(definition) = definition {
        let id = schema["$id"].as_str().unwrap().to_owned();
        let root = std::mem::replace(&mut schema, Value::Null);
        schema = json!({"$ref": format!("{id}#/$defs/{definition}"), "$defs": {"root": root}});
    }
    let validator = jsonschema::draft202012::new(&schema).expect("a valid schema");
    let errors: Vec<_> = validator.iter_errors(value).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?} in {value:#}");
}

#[test]
fn the_schema_names_all_there_is_and_refuses_what_is_wrong() {
    assert!(jsonschema::draft202012::meta::is_valid(&schema()));
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    for record in one_of_each(&message(7)) {
        let line: Value = serde_json::from_slice(&record.line()).unwrap();
        assert_valid(&line, Some("line"));
        let (value, schema) = (&line["value"], schema());
        assert_eq!(names(value), names(&schema["properties"]));
        let message = &schema["$defs"]["message"]["properties"];
        assert_eq!(names(&value["message"]), names(message));
        let recipient = &schema["$defs"]["recipient"]["properties"];
        assert_eq!(names(&value["recipients"][0]), names(recipient));
        let mut headers = names(&line["headers"]);
        // Of records in Kafka, where nodes send traces.
        headers.insert("traceparent".into());
        assert_eq!(headers, names(&schema["$defs"]["headers"]["properties"]));
    }
    let validator = jsonschema::draft202012::new(&schema()).unwrap();
    let valid: Value = serde_json::from_slice(&created(1).value()).unwrap();
    assert!(validator.is_valid(&valid));
    for (pointer, wrong) in [
        ("/message/id", json!("m1")),
        ("/message/content", Value::Null),
        ("/message/created_at", json!("2026-01-01T00:00:00Z")),
        ("/message/message_type", json!("poll")),
        ("/change_seq", json!(0)),
        ("/recipients", json!([])),
        ("/recipients/0", json!({"user_id": "x"})),
        ("/reason", json!("because")),
    ] {
        let mut value = valid.clone();
        *value.pointer_mut(pointer).unwrap() = wrong;
        assert!(!validator.is_valid(&value), "{pointer}");
    }
}

// ---- the file ----

fn file_config(folder: &Path) -> OfflineConfig {
    OfflineConfig::File { path: folder.join("data/offline.jsonl") }
}

fn lines(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("data/offline.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).expect("a whole line")).collect()
}

fn ids(lines: &[Value]) -> Vec<String> {
    lines.iter().map(|line| line["headers"]["ce_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_file_keeps_what_was_confirmed() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::connect(&file_config(folder.path())).await.unwrap();
    let records = one_of_each(&message(7));
    let expected: Vec<_> = records.iter().map(Record::id).collect();
    for record in records {
        sink.offline.hand_over(record).await.unwrap();
        // Confirmed means that it is there now, not after the close.
        assert_eq!(ids(&lines(folder.path())).len() as f64, sink.metric(PRODUCED));
    }
    assert_eq!(ids(&lines(folder.path())), expected);
    lines(folder.path()).iter().for_each(|line| assert_valid(line, Some("line")));
    let mode = std::fs::metadata(folder.path().join("data/offline.jsonl")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    assert!(sink.offline.is_up());
    sink.close().await;
}

const PRODUCED: &str = "tidings_offline_records_total{outcome=\"produced\"}";
const FAILED: &str = "tidings_offline_records_total{outcome=\"failed\"}";
const SYNCS: &str = "tidings_offline_file_syncs_total";

#[tokio::test]
async fn a_line_torn_by_a_crash_is_cut_off() {
    use std::io::Write;

    let folder = tempfile::tempdir().unwrap();
    let config = file_config(folder.path());
    let first = created(1);
    let second = created(2);
    let expected = vec![first.id(), second.id()];
    let sink = Sink::connect(&config).await.unwrap();
    sink.hand_over_all([first]).await;
    sink.close().await;

    let path = folder.path().join("data/offline.jsonl");
    let torn = &created(3).line()[..100];
    std::fs::File::options().append(true).open(path).unwrap().write_all(torn).unwrap();
    let sink = Sink::connect(&config).await.unwrap();
    sink.hand_over_all([second]).await;
    assert_eq!(ids(&lines(folder.path())), expected);
    sink.close().await;
}

#[tokio::test]
async fn many_hand_overs_share_an_fsync() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::connect(&file_config(folder.path())).await.unwrap();
    let records: Vec<_> = (1..=2_000).map(created).collect();
    let expected: Vec<_> = records.iter().map(Record::id).collect();
    sink.hand_over_all(records).await;
    assert_eq!(ids(&lines(folder.path())), expected);
    assert_eq!(sink.metric(PRODUCED), 2_000.0);
    let syncs = sink.metric(SYNCS);
    assert!((1.0..=100.0).contains(&syncs), "{syncs} fsyncs for 2,000 records");
    sink.close().await;
}

#[tokio::test]
async fn what_was_begun_before_the_close_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::connect(&file_config(folder.path())).await.unwrap();
    let begun = (1..=1_000).map(|seq| sink.offline.hand_over(created(seq)));
    let (answers, ()) = tokio::join!(join_all(begun), sink.offline.close());
    let confirmed = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!(confirmed > 0);
    assert!(
        answers
            .iter()
            .flat_map(|answer| answer.as_ref().err())
            .all(|error| { matches!(error, OfflineError::Closing) })
    );
    assert_eq!(lines(folder.path()).len(), confirmed);
    sink.close().await;
}

#[tokio::test]
async fn two_nodes_do_not_share_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = file_config(folder.path());
    let sink = Sink::connect(&config).await.unwrap();
    let error = Sink::connect(&config).await.err().expect("the file is taken").to_string();
    assert!(error.contains("DATA_DIR"), "{error}");
    sink.close().await;
    Sink::connect(&config).await.expect("free again").close().await;
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_named() {
    let config = OfflineConfig::File { path: "/dev/null/offline.jsonl".into() };
    let error = Sink::connect(&config).await.err().expect("no such folder").to_string();
    assert!(error.contains("/dev/null/offline.jsonl"), "{error}");
}

// ---- Kafka ----

/// A topic of its own for a test; None, and the test passes without proving anything, if there is
/// no Kafka, unless TEST_REQUIRE_SERVICES is set.
struct Topic {
    brokers: String,
    name: String,
}

/// A record as a consumer sees it.
struct Consumed {
    partition: i32,
    key: String,
    headers: BTreeMap<String, String>,
    value: Value,
}

#[expect(clippy::disallowed_methods, reason = "where the services of the tests are")]
fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Topic {
    fn new() -> Option<Self> {
        let brokers = env("TEST_KAFKA_BROKERS");
        if brokers.is_none() {
            assert!(env("TEST_REQUIRE_SERVICES").is_none(), "TEST_KAFKA_BROKERS is not set");
            eprintln!("skipped: TEST_KAFKA_BROKERS is not set");
        }
        Some(Self { brokers: brokers?, name: format!("test.offline.{}", Uuid::new_v4()) })
    }

    async fn connect(&self, partitions: i32) -> Sink {
        let (brokers, topic) = (self.brokers.clone(), self.name.clone());
        let config =
            OfflineConfig::Kafka { brokers, topic, partitions, security: Default::default() };
        Sink::connect(&config).await.expect("connects")
    }

    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.brokers).set("group.id", &self.name);
        client
    }

    /// The first `count` records from the beginning of all partitions; panics if they do not come.
    async fn consume(&self, count: usize) -> Vec<Consumed> {
        let (client, name) = (self.client(), self.name.clone());
        let consume = move || {
            let consumer: BaseConsumer = client.create().unwrap();
            let metadata = consumer.fetch_metadata(Some(&name), PATIENCE).unwrap();
            let mut all = TopicPartitionList::new();
            for partition in metadata.topics()[0].partitions() {
                all.add_partition_offset(&name, partition.id(), Offset::Beginning).unwrap();
            }
            consumer.assign(&all).unwrap();
            let deadline = Instant::now() + PATIENCE;
            let mut consumed = Vec::new();
            while consumed.len() < count {
                assert!(Instant::now() < deadline, "{} of {count} records came", consumed.len());
                let Some(record) = consumer.poll(Duration::from_millis(100)) else {
                    continue;
                };
                let record = record.unwrap();
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                let headers = record.headers().unwrap().iter();
                consumed.push(Consumed {
                    partition: record.partition(),
                    key: text(record.key().unwrap()),
                    headers: headers.map(|h| (h.key.to_owned(), text(h.value.unwrap()))).collect(),
                    value: serde_json::from_slice(record.payload().unwrap()).unwrap(),
                });
            }
            consumed
        };
        tokio::task::spawn_blocking(consume).await.unwrap()
    }

    /// Made by somebody else, with these settings.
    async fn create(&self, settings: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let topic = NewTopic::new(&self.name, 1, TopicReplication::Fixed(1));
        let topic = settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value));
        let made = admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
        assert!(made.iter().all(Result::is_ok), "{made:?}");
    }

    async fn delete(self) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        admin.delete_topics(&[&self.name], &AdminOptions::new()).await.unwrap();
    }
}

fn consumed_ids(consumed: &[Consumed]) -> Vec<&str> {
    consumed.iter().map(|record| record.headers["ce_id"].as_str()).collect()
}

#[tokio::test]
async fn kafka_records_are_what_the_schema_says() {
    let Some(topic) = Topic::new() else { return };
    let sink = topic.connect(3).await;
    let conversation = message(7);
    let records = one_of_each(&conversation);
    let expected: Vec<_> = records.iter().map(Record::id).collect();
    let count = records.len();
    sink.hand_over_all(records).await;

    let consumed = topic.consume(count).await;
    // All of one conversation: one key, one partition, in the order of the hand-over.
    assert_eq!(consumed_ids(&consumed), expected);
    for record in &consumed {
        assert_valid(&record.value, None);
        assert_valid(&serde_json::to_value(&record.headers).unwrap(), Some("headers"));
        assert_eq!(record.key, conversation.conversation_id.to_string());
        assert_eq!(record.value["message"]["conversation_id"], record.key);
        assert_eq!(record.partition, consumed[0].partition);
    }
    let types: Vec<_> = consumed.iter().map(|record| record.headers["ce_type"].as_str()).collect();
    let [created, edited, deleted] =
        ["created", "edited", "deleted"].map(|change| format!("tidings.message.{change}"));
    assert_eq!(types, [&created, &edited, &deleted, &created]);
    assert_eq!(consumed[0].value["recipients"].as_array().unwrap().len(), 3);
    assert_eq!(consumed[3].value["recipients"].as_array().unwrap().len(), 500);
    assert_eq!(consumed[3].value["reason"], "late");
    sink.close().await;
    topic.delete().await;
}

#[tokio::test]
async fn a_retry_is_recognised_by_its_id() {
    let Some(topic) = Topic::new() else { return };
    let sink = topic.connect(1).await;
    let (message, to) = (message(7), recipients(2));
    let kind = ChangeKind::MessageCreated;
    for to in [&to[..], &to[..], &to[..1]] {
        sink.hand_over_all(split(kind, &message, to)).await;
    }
    let consumed = topic.consume(3).await;
    let ids = consumed_ids(&consumed);
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[0], ids[2]);
    assert_eq!(consumed[0].value, consumed[1].value);
    sink.close().await;
    topic.delete().await;
}

#[tokio::test]
async fn too_many_recipients_make_two_kafka_records() {
    let Some(topic) = Topic::new() else { return };
    let sink = topic.connect(1).await;
    let to = recipients(501);
    sink.hand_over_all(split(ChangeKind::MessageCreated, &message(7), &to)).await;
    let consumed = topic.consume(2).await;
    let told: Vec<_> = consumed
        .iter()
        .flat_map(|record| record.value["recipients"].as_array().unwrap())
        .map(|recipient| recipient["user_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(told.len(), 501);
    let expected: BTreeSet<_> = to.iter().map(|recipient| recipient.user_id.to_string()).collect();
    assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), expected);
    let ids = consumed_ids(&consumed);
    assert_ne!(ids[0], ids[1]);
    sink.close().await;
    topic.delete().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_are_confirmed_at_once_and_in_order() {
    let Some(topic) = Topic::new() else { return };
    let sink = topic.connect(4).await;
    let conversations: Vec<_> = (0..20).map(|_| message(1)).collect();
    let records = (1..=100).flat_map(|seq| {
        let of = |message: &Message| Message { seq, change_seq: seq, ..message.clone() };
        let record = move |message| {
            split(ChangeKind::MessageCreated, &of(message), &recipients(1)).remove(0)
        };
        conversations.iter().map(record).collect::<Vec<_>>()
    });
    sink.hand_over_all(records).await;
    assert_eq!(sink.metric(PRODUCED), 2_000.0);
    assert_eq!(sink.metric(FAILED), 0.0);
    assert_eq!(sink.metric("tidings_kafka_produce_seconds_count"), 2_000.0);
    // The last to look at the queue need not be the last to be confirmed.
    let empty = async || (sink.metric("tidings_kafka_queue_records") == 0.0).then_some(());
    until("the queue to be told as empty", empty).await;
    assert!(sink.offline.is_up());

    let mut last = BTreeMap::new();
    for record in topic.consume(2_000).await {
        let seq = record.value["change_seq"].as_i64().unwrap();
        let before = last.insert(record.key, seq).unwrap_or(0);
        assert_eq!(seq, before + 1);
    }
    assert_eq!(last.len(), 20);
    sink.close().await;
    topic.delete().await;
}

/// Whatever the client takes if it is not told otherwise (1,000,000 bytes).
#[tokio::test]
async fn the_topic_alone_judges_what_is_too_large() {
    let Some(topic) = Topic::new() else { return };
    topic.create(&[("max.message.bytes", "2000000")]).await;
    let sink = topic.connect(1).await;
    // Of random digits: half of it is left however well it is compressed.
    let large = |bytes: usize| {
        let parts = std::iter::repeat_with(|| Uuid::new_v4().simple().to_string());
        let content = parts.take(bytes / 32).collect::<String>();
        let message = Message { content: Some(content.clone()), ..message(1) };
        (content, split(ChangeKind::MessageCreated, &message, &recipients(1)).remove(0))
    };
    let (content, record) = large(1_600_000);
    sink.hand_over_all([record]).await;
    let refused = sink.offline.hand_over(large(6_400_000).1).await;
    assert!(matches!(refused, Err(OfflineError::Refused(_))), "{refused:?}");
    assert_eq!(sink.metric("tidings_kafka_failures_total{reason=\"refused\"}"), 1.0);
    // Nothing else is held up by it.
    sink.hand_over_all([created(1)]).await;
    let consumed = topic.consume(2).await;
    assert!(consumed[0].value["message"]["content"] == content.as_str(), "another content");
    assert_eq!(consumed[1].value["message"]["content"], "hello @you");
    sink.close().await;
    topic.delete().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_kafka_does_not_confirm_is_told_of_and_fails_at_the_end() {
    let ours = Authority::new();
    let Some(kafka) = OwnKafka::start(&ours).await else { return };
    let (username, password) = (USER.into(), PASSWORD.into());
    let sasl = KafkaSasl { mechanism: "SCRAM-SHA-256", username, password };
    let config = OfflineConfig::Kafka {
        brokers: format!("127.0.0.1:{}", kafka.sasl_plaintext),
        topic: "test".into(),
        partitions: 1,
        security: KafkaSecurity { tls: None, sasl: Some(sasl) },
    };
    let sink = Sink::connect(&config).await.expect("connects");
    sink.hand_over_all([created(1)]).await;
    let unavailable = "tidings_kafka_failures_total{reason=\"unavailable\"}";
    assert_eq!((sink.metric(unavailable), sink.metric(FAILED)), (0.0, 0.0));
    drop(kafka);
    let waiting = join_all((1..=3).map(|seq| sink.offline.hand_over(created(seq))));
    let ending = async {
        let told = async || {
            let waits = sink.metric("tidings_kafka_queue_records") > 0.0;
            (waits && !sink.offline.is_up()).then_some(())
        };
        until("the outage is told of", told).await;
        let started = Instant::now();
        sink.offline.close().await;
        assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    };
    let (outcomes, ()) = tokio::join!(waiting, ending);
    assert!(
        outcomes.iter().all(|one| matches!(one, Err(OfflineError::Unavailable(_)))),
        "{outcomes:?}"
    );
    assert_eq!((sink.metric(unavailable), sink.metric(FAILED)), (3.0, 3.0));
    assert_eq!(sink.metric(PRODUCED), 1.0);
    sink.close().await;
}

#[tokio::test]
async fn a_topic_is_made_once_with_its_partitions() {
    let Some(topic) = Topic::new() else { return };
    for asked in [5, 5, 2] {
        let sink = topic.connect(asked).await;
        let consumer: BaseConsumer = topic.client().create().unwrap();
        let metadata = consumer.fetch_metadata(Some(&topic.name), PATIENCE).unwrap();
        assert_eq!(metadata.topics()[0].partitions().len(), 5);
        sink.close().await;
    }
    topic.delete().await;
}

#[tokio::test]
async fn a_broker_away_at_start_is_an_error_within_its_bound() {
    // One where nobody listens, and one where somebody does and never answers.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let connect = |brokers: String| async move {
        let started = Instant::now();
        let topic = "test.offline.unreachable".to_owned();
        let security = Default::default();
        let config =
            OfflineConfig::Kafka { brokers: brokers.clone(), topic, partitions: 1, security };
        let error = Sink::connect(&config).await.err().expect("nobody answers").to_string();
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        assert!(error.contains("KAFKA_BROKERS") && error.contains(&brokers), "{error}");
    };
    tokio::join!(connect(nobody.to_string()), connect(silent.local_addr().unwrap().to_string()));
}
