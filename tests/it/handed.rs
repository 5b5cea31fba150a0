//! What was handed over for users without a device, as others read it: from Kafka by a consumer of
//! our own, or from the file. Each record is checked against the published schema.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::message::{Headers, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::harness::PATIENCE;
use crate::harness::cluster::{Ground, Kind, id};

pub struct Handed {
    from: From,
    /// In the form of a line of the file: key, headers, value.
    pub records: Vec<Value>,
}

enum From {
    Kafka(StreamConsumer),
    File(PathBuf),
}

impl Handed {
    /// From the first record on.
    pub fn over(ground: &Ground) -> Self {
        let from = match ground.kind {
            Kind::Embedded => From::File(ground.data_dir("0").join("offline.jsonl")),
            Kind::Cluster => From::Kafka(consumer(ground)),
        };
        Self { from, records: Vec::new() }
    }

    /// Waits until the records hold what is wanted.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&[Value]) -> bool) {
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            self.read().await;
            if wanted(&self.records) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "not in time: {what}; there are {:#?}",
                self.records
            );
        }
    }

    /// Waits until this message is handed over for this user; returns the record.
    pub async fn record_for(&mut self, message: &Value, user: Uuid) -> Value {
        let is_it = |record: &&Value| {
            record["value"]["message"]["id"] == message["id"] && users(record).contains(&user)
        };
        let what = format!("a record of {} for {user}", message["id"]);
        self.until(&what, |records| records.iter().any(|record| is_it(&record))).await;
        self.records.iter().find(is_it).unwrap().clone()
    }

    /// Reads what has come since.
    pub async fn read(&mut self) {
        match &self.from {
            From::Kafka(consumer) => {
                let moment = Duration::from_millis(300);
                while let Ok(received) = tokio::time::timeout(moment, consumer.recv()).await {
                    let received = received.expect("the broker answers");
                    let mut headers = json!({});
                    for header in received.headers().unwrap().iter() {
                        let text = std::str::from_utf8(header.value.unwrap()).unwrap();
                        headers[header.key] = text.into();
                    }
                    let key = std::str::from_utf8(received.key().unwrap()).unwrap();
                    let value: Value = serde_json::from_slice(received.payload().unwrap()).unwrap();
                    self.records.push(json!({ "key": key, "headers": headers, "value": value }));
                    check(self.records.last().unwrap());
                }
            }
            From::File(path) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let text = std::fs::read_to_string(path).unwrap();
                // The last line may be half written.
                let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
                for line in whole.skip(self.records.len()) {
                    self.records.push(serde_json::from_str(line).unwrap());
                    check(self.records.last().unwrap());
                }
            }
        }
    }

    /// All to whom anything was handed over.
    pub fn everyone(&self) -> BTreeSet<Uuid> {
        self.records.iter().flat_map(users).collect()
    }
}

pub fn users(record: &Value) -> Vec<Uuid> {
    let recipients = record["value"]["recipients"].as_array().unwrap();
    recipients.iter().map(|recipient| id(&recipient["user_id"])).collect()
}

fn consumer(ground: &Ground) -> StreamConsumer {
    let topic = ground.setting("KAFKA_OFFLINE_TOPIC");
    let consumer: StreamConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", ground.setting("KAFKA_BROKERS"))
        .set("group.id", topic)
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer can be made");
    let partitions: i32 = ground.setting("KAFKA_TOPIC_PARTITIONS").parse().unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).expect("partitions can be assigned");
    consumer
}

fn check(record: &Value) {
    static SCHEMA: &str = include_str!("../../docs/schemas/offline-record.schema.json");
    let root: Value = serde_json::from_str(SCHEMA).unwrap();
    let line = format!("{}#/$defs/line", root["$id"].as_str().unwrap());
    let schema = json!({ "$ref": line, "$defs": { "root": root } });
    let validator = jsonschema::draft202012::new(&schema).expect("the schema is valid");
    let errors: Vec<_> = validator.iter_errors(record).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?} in {record:#}");
    assert_eq!(record["key"], record["value"]["message"]["conversation_id"]);
}
