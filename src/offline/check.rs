//! What a node needs of Kafka, looked at one by one: for `tidings check`. Leaves no record.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::Producer as _;
use tokio::task::spawn_blocking;

use super::kafka::{admin_client, blocking};
use super::logs::Logs;
use super::producer::Producer;
use crate::finding::Findings;

const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Around the largest record: its recipients, headers and JSON.
const RECORD_SPARE: usize = 128 << 10;
/// The largest record that is made to be refused.
const PROBE_BYTES: usize = 16 << 20;
const UNREACHABLE: &str = "start it, and see that KAFKA_BROKERS and the way to it are right; a \
                           broker tells its clients where to go on (advertised.listeners)";

/// What the topic looks like.
struct Topic {
    partitions: usize,
    /// Of the partition that has fewest.
    replicas: usize,
    in_sync: usize,
    leaderless: usize,
}

/// `largest`: bytes of the largest change of a message.
pub async fn check(
    client: &ClientConfig,
    brokers: &str,
    name: &str,
    partitions: i32,
    largest: usize,
    found: &mut Findings,
) {
    let config = client.clone();
    let started = Instant::now();
    let seen = match blocking(move || Producer::new(&config, Logs::default())).await {
        Ok(producer) => {
            let seen = topic(&producer, name).await;
            let taken = started.elapsed();
            producer.end().await;
            seen.map(|(answering, topic)| (answering, topic, taken))
        }
        Err(error) => Err(error),
    };
    let topic = match seen {
        Ok((answering, topic, taken)) => {
            let taken = taken.as_millis();
            found.ok("reachable", format!("{brokers}: {answering} brokers, in {taken} ms"));
            topic
        }
        Err(error) => {
            return found.problem("reachable", format!("{brokers}: {error}"), UNREACHABLE);
        }
    };
    let admin = match admin_client(client).await {
        Ok(admin) => admin,
        Err(error) => {
            return found.problem("topic", error.to_string(), "report this");
        }
    };
    match topic {
        None => may_create(&admin, name, partitions, found).await,
        Some(topic) => {
            judge(name, &topic, partitions, found);
            let limit = configuration(&admin, name, &topic, largest, found).await;
            may_write(client, name, limit, found).await;
        }
    }
    // Waits for its thread.
    let _ = spawn_blocking(move || drop(admin)).await;
}

/// How many brokers there are, and the topic if there is one. Asks for all topics: on many brokers
/// merely asking for one by name makes it.
async fn topic(producer: &Producer, name: &str) -> Result<(usize, Option<Topic>), KafkaError> {
    let (producer, name) = (producer.clone(), name.to_owned());
    blocking(move || {
        let metadata = producer.base().client().fetch_metadata(None, ANSWER_LIMIT)?;
        let topic = metadata.topics().iter().find(|topic| topic.name() == name).map(|topic| {
            let partitions = topic.partitions();
            Topic {
                partitions: partitions.len(),
                replicas: partitions.iter().map(|one| one.replicas().len()).min().unwrap_or(0),
                in_sync: partitions.iter().map(|one| one.isr().len()).min().unwrap_or(0),
                leaderless: partitions.iter().filter(|one| one.leader() < 0).count(),
            }
        });
        Ok((metadata.brokers().len(), topic))
    })
    .await
}

fn judge(name: &str, topic: &Topic, wanted: i32, found: &mut Findings) {
    let detail = format!("{name} has {} partitions", topic.partitions);
    if topic.leaderless > 0 {
        let detail = format!("{detail}, {} of them without a leader", topic.leaderless);
        found.problem("topic", detail, "bring the brokers back that hold them");
    } else if topic.partitions != wanted as usize {
        // A later change would reorder keys, so that the topic's own number stands.
        found.ok("topic", format!("{detail} (KAFKA_TOPIC_PARTITIONS={wanted} is for a new one)"));
    } else {
        found.ok("topic", detail);
    }
    match topic.replicas {
        0 | 1 => found.warning(
            "replicas",
            "one replica: what was handed over is lost with its broker",
            "three replicas with min.insync.replicas=2",
        ),
        replicas => found.ok("replicas", format!("{replicas}, {} in sync", topic.in_sync)),
    }
}

/// Asks as a node would at its start, and has nothing done.
async fn may_create(admin: &AdminClient<Logs>, name: &str, partitions: i32, found: &mut Findings) {
    let new = NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
    let options = AdminOptions::new()
        .validate_only(true)
        .request_timeout(Some(ANSWER_LIMIT))
        .operation_timeout(Some(ANSWER_LIMIT));
    let refused = match admin.create_topics([&new], &options).await {
        Ok(answers) => answers.into_iter().find_map(|answer| answer.err().map(|(_, code)| code)),
        Err(error) => Some(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)),
    };
    match refused {
        None => {
            found.ok(
                "topic",
                format!("{name} is missing; the node makes it with {partitions} partitions"),
            );
        }
        Some(code) => found.problem(
            "topic",
            format!("{name} is missing, or hidden from this user, who may not make it: {code}"),
            format!("make it ({partitions} partitions) and let this user describe it and write to it, or let him make it"),
        ),
    }
}

/// The largest record that the topic takes; None if it may not be asked for.
async fn configuration(
    admin: &AdminClient<Logs>,
    name: &str,
    topic: &Topic,
    largest: usize,
    found: &mut Findings,
) -> Option<usize> {
    let options = AdminOptions::new().request_timeout(Some(ANSWER_LIMIT));
    let asked = admin.describe_configs([&ResourceSpecifier::Topic(name)], &options).await;
    let Some(Ok(settings)) = asked.ok().and_then(|answers| answers.into_iter().next()) else {
        found.warning(
            "settings",
            "the topic's settings may not be asked for here",
            "let this user describe them (an ACL for DESCRIBE_CONFIGS); a node does without",
        );
        return None;
    };
    let number = |name| settings.get(name)?.value.as_ref()?.parse::<usize>().ok();
    if let Some(wanted) = number("min.insync.replicas") {
        let detail = format!("min.insync.replicas is {wanted}, {} are in sync", topic.in_sync);
        if topic.in_sync < wanted {
            found.problem("acks", detail, "bring the replicas back: nothing is taken until then");
        } else if wanted < 2 && topic.replicas > 1 {
            let fix = "min.insync.replicas=2: else one replica alone may confirm, and be lost";
            found.warning("acks", detail, fix);
        } else {
            found.ok("acks", detail);
        }
    }
    let limit = number("max.message.bytes")?;
    let detail = format!("the topic takes records of {} KiB", limit >> 10);
    match limit >= largest + RECORD_SPARE {
        true => found.ok("size", detail),
        false => found.warning(
            "size",
            format!(
                "{detail}; a message of MAX_FRAME_BYTES makes one of {} KiB",
                (largest + RECORD_SPARE) >> 10
            ),
            "raise max.message.bytes of the topic, or lower MAX_FRAME_BYTES",
        ),
    }
    Some(limit)
}

/// Offers a record that is too large to be taken: the broker looks at the right to write before it
/// looks at the size, so that its refusal tells, and nothing is stored.
async fn may_write(client: &ClientConfig, name: &str, limit: Option<usize>, found: &mut Findings) {
    let Some(limit) = limit else {
        return found.warning(
            "write",
            "not tried: it is not known which size the topic does not take",
            "let this user describe the topic's settings (an ACL for DESCRIBE_CONFIGS)",
        );
    };
    let size = limit + 1024;
    if size > PROBE_BYTES {
        return found.warning(
            "write",
            format!("not tried: the topic takes records of {} KiB, and keeps them", limit >> 10),
            format!("see that this user may write to {name} (an ACL for WRITE)"),
        );
    }
    let mut client = client.clone();
    client
        // The limit is for what was compressed.
        .set("compression.type", "none")
        .set("delivery.timeout.ms", ANSWER_LIMIT.as_millis().to_string())
        .set("request.timeout.ms", ANSWER_LIMIT.as_millis().to_string());
    let refused = async {
        let prober = blocking(move || Producer::new(&client, Logs::default())).await?;
        let sent = prober.send(name, "", &vec![0u8; size], OwnedHeaders::new(), None);
        let outcome = Producer::outcome(sent, ANSWER_LIMIT * 2).await;
        prober.end().await;
        outcome
    };
    match refused.await {
        Err(KafkaError::MessageProduction(
            RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize,
        )) => found.ok("write", "this user may write to the topic"),
        // The topic's limit was raised in this moment: it is written, and says nothing to anybody.
        Ok(()) => found.ok("write", "this user may write to the topic"),
        Err(error) => found.problem(
            "write",
            error.to_string(),
            format!("let this user write to {name} (an ACL for WRITE, and IDEMPOTENT_WRITE before Kafka 3)"),
        ),
    }
}
