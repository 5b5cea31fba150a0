//! Kafka behind TLS, passwords and rights.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{Consumer, StreamConsumer};
use tidings::config::Config;
use tidings::offline::Offline;
use tidings::shutdown::Stage;
use tidings::telemetry::Metrics;

use crate::check::check;
use crate::flows;
use crate::harness::certs::Authority;
use crate::harness::cluster::{Ground, Kind, Settings, on_ground};
use crate::harness::own_kafka::{OwnKafka, PASSWORD, STRANGER, USER};
use crate::harness::within;

/// Longer than a connection may take that does not come about.
const SOON: Duration = Duration::from_secs(30);

fn settings(ground: &Ground, port: u16, security: &[(&str, &str)]) -> Settings {
    let brokers = format!("127.0.0.1:{port}");
    let mut changed = vec![("KAFKA_BROKERS", brokers.as_str())];
    changed.extend(security);
    ground.settings_with("0", &changed)
}

/// Whether the sink can be had by these settings, or why not.
async fn connect(settings: &Settings) -> Result<(), String> {
    let config = Config::from_lookup(|name| settings.get(name).cloned());
    let config = config.map_err(|faults| faults.to_string())?;
    assert!(!format!("{config:?}").contains(PASSWORD), "the password is shown");
    let ((metrics, _), stage) = (Metrics::new(), Stage::new("offline", Default::default()));
    let connecting = Offline::connect(&config.offline, &metrics, &stage);
    let connected = within(SOON, "a connection or an error", Box::pin(connecting)).await;
    connected.map_err(|error| error.to_string())?.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_and_nodes_prove_who_they_are() {
    let (ours, other) = (Authority::new(), Authority::new());
    let Some(kafka) = OwnKafka::start(&ours).await else { return };
    let (client, foreign) =
        (ours.issue("client", "DNS:client"), other.issue("client", "DNS:client"));
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let (ca, other_ca) = (text(&ours.file()), text(&other.file()));
    let sasl = |protocol, mechanism, user, password| {
        [
            ("KAFKA_SECURITY_PROTOCOL", protocol),
            ("KAFKA_SASL_MECHANISM", mechanism),
            ("KAFKA_SASL_USERNAME", user),
            ("KAFKA_SASL_PASSWORD", password),
        ]
    };
    on_ground(Kind::Cluster, &[], async |ground| {
        let with_ca = |port, security: &[(&str, &str)], ca: &str| {
            settings(ground, port, &[security, &[("KAFKA_CA_FILE", ca)]].concat())
        };
        // A node at work, and the records that it left.
        let plain = sasl("sasl_ssl", "PLAIN", USER, PASSWORD);
        flows::all(&with_ca(kafka.sasl_ssl, &plain, &ca)).await;
        let consumer: StreamConsumer = ClientConfig::new()
            .set("bootstrap.servers", format!("127.0.0.1:{}", kafka.sasl_ssl))
            .set("security.protocol", "sasl_ssl")
            .set("ssl.ca.location", &ca)
            .set("sasl.mechanism", "SCRAM-SHA-512")
            .set("sasl.username", USER)
            .set("sasl.password", PASSWORD)
            .set("group.id", "test")
            .set("auto.offset.reset", "earliest")
            .create()
            .unwrap();
        consumer.subscribe(&[ground.setting("KAFKA_OFFLINE_TOPIC")]).unwrap();
        within(SOON, "a record", consumer.recv()).await.unwrap();

        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let scram = sasl("sasl_ssl", mechanism, USER, PASSWORD);
            connect(&with_ca(kafka.sasl_ssl, &scram, &ca)).await.unwrap();
            let scram = sasl("sasl_plaintext", mechanism, USER, PASSWORD);
            connect(&settings(ground, kafka.sasl_plaintext, &scram)).await.unwrap();
        }
        let (cert, key) = (text(&client.cert), text(&client.key));
        let own = |cert: &str, key: &str| {
            let (cert, key) = (("KAFKA_CERT_FILE", cert), ("KAFKA_KEY_FILE", key));
            with_ca(kafka.ssl, &[("KAFKA_SECURITY_PROTOCOL", "ssl"), cert, key], &ca)
        };
        connect(&own(&cert, &key)).await.unwrap();

        let refused = async |settings: Settings, told: &[&str]| {
            let error = connect(&settings).await.expect_err("it is refused");
            println!("{error}");
            for told in told {
                assert!(error.contains(told), "{told} is not told: {error}");
            }
            assert!(!error.contains(PASSWORD), "{error}");
        };
        let scram = sasl("sasl_ssl", "SCRAM-SHA-512", USER, PASSWORD);
        let wrong = sasl("sasl_ssl", "SCRAM-SHA-512", USER, "wrong");
        let stranger = sasl("sasl_ssl", "SCRAM-SHA-512", STRANGER, PASSWORD);
        let told = check(&with_ca(kafka.sasl_ssl, &scram, &ca)).await;
        told.expect("kafka", "write", "ok", "may write");
        let told = check(&with_ca(kafka.sasl_ssl, &stranger, &ca)).await;
        told.expect("kafka", "reachable", "ok", "1 brokers");
        told.expect("kafka", "topic", "problem", "uthoriz");
        let clear = settings(ground, kafka.sasl_ssl, &[]);
        let foreign = own(&text(&foreign.cert), &text(&foreign.key));
        tokio::join!(
            refused(with_ca(kafka.sasl_ssl, &scram, &other_ca), &["certificate", "KAFKA_CA_FILE"]),
            refused(with_ca(kafka.sasl_ssl, &wrong, &ca), &["uthentication"]),
            // Refused for the topic, or before that as one who may write nothing at all.
            refused(with_ca(kafka.sasl_ssl, &stranger, &ca), &["uthoriz"]),
            refused(foreign, &["KAFKA_BROKERS"]),
            refused(clear, &["KAFKA_BROKERS"]),
        );
    })
    .await;
}
