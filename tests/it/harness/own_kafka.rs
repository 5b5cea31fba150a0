//! A Kafka broker that one test has to itself, behind TLS and passwords.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::certs::{Authority, together};
use super::{free_port, services, until_within};

pub const USER: &str = "tidings";
pub const PASSWORD: &str = "hunter2";
/// Whom the broker knows and lets do nothing.
pub const STRANGER: &str = "stranger";

pub struct OwnKafka {
    /// Asks for a client's certificate.
    pub ssl: u16,
    pub sasl_ssl: u16,
    pub sasl_plaintext: u16,
    broker: Child,
    _folder: TempDir,
}

impl OwnKafka {
    /// Proves itself as 127.0.0.1 by this authority; who shows a certificate of it for `client` may
    /// do anything, as may [`USER`]. None in an embedded-only run.
    pub async fn start(authority: &Authority) -> Option<Self> {
        let jars = format!("{}/*", services::kafka_jars()?);
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let [ssl, sasl_ssl, sasl_plaintext, controller] = std::array::from_fn(|_| free_port());
        let keystore = folder.path().join("keystore.pem");
        together(&authority.issue("broker", "IP:127.0.0.1"), &keystore);
        let listeners = format!(
            "SSL://127.0.0.1:{ssl},SASL_SSL://127.0.0.1:{sasl_ssl},\
             SASL_PLAINTEXT://127.0.0.1:{sasl_plaintext}"
        );
        let module = "org.apache.kafka.common.security";
        let plain = format!(
            "{module}.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\" \
             user_{STRANGER}=\"{PASSWORD}\";"
        );
        let scram = format!("{module}.scram.ScramLoginModule required;");
        let settings = [
            "process.roles=broker,controller".into(),
            "node.id=1".into(),
            format!("controller.quorum.voters=1@127.0.0.1:{controller}"),
            "controller.listener.names=CONTROLLER".into(),
            format!("listeners={listeners},CONTROLLER://127.0.0.1:{controller}"),
            format!("advertised.listeners={listeners}"),
            "listener.security.protocol.map=SSL:SSL,SASL_SSL:SASL_SSL,\
             SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT"
                .into(),
            "inter.broker.listener.name=SSL".into(),
            format!("log.dirs={}", at("data")),
            "auto.create.topics.enable=false".into(),
            "offsets.topic.replication.factor=1".into(),
            "offsets.topic.num.partitions=1".into(),
            "group.initial.rebalance.delay.ms=0".into(),
            "ssl.keystore.type=PEM".into(),
            format!("ssl.keystore.location={}", keystore.display()),
            "ssl.truststore.type=PEM".into(),
            format!("ssl.truststore.location={}", authority.file().display()),
            "listener.name.ssl.ssl.client.auth=required".into(),
            "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512".into(),
            format!("listener.name.sasl_ssl.plain.sasl.jaas.config={plain}"),
            format!("listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={scram}"),
            format!("listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={scram}"),
            format!("listener.name.sasl_plaintext.plain.sasl.jaas.config={plain}"),
            format!("listener.name.sasl_plaintext.scram-sha-256.sasl.jaas.config={scram}"),
            format!("listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config={scram}"),
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer".into(),
            // The controller's own listener is in the clear, for the broker in the same process.
            format!("super.users=User:{USER};User:ANONYMOUS;User:CN=broker;User:CN=client"),
        ];
        std::fs::write(at("server.properties"), settings.join("\n")).unwrap();
        let java = |classes: &str| {
            let mut java = Command::new("java");
            java.args(["-Xms128m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
            if let Some(archive) = services::kafka_classes() {
                java.args(["-Xshare:auto", &format!("-XX:SharedArchiveFile={archive}")]);
            }
            java.args(["-cp", &jars, classes]).stdout(Stdio::null()).stderr(Stdio::null());
            java
        };
        let mut format = java("kafka.tools.StorageTool");
        format.args(["format", "-t", "VGlkaW5ncyB0ZXN0IDAwMQ", "-c", &at("server.properties")]);
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            for name in [USER, STRANGER] {
                let user = format!("{mechanism}=[name={name},password={PASSWORD}]");
                format.args(["--add-scram", &user]);
            }
        }
        let formatted = format.stderr(Stdio::piped()).output().expect("java is installed");
        let errors = String::from_utf8_lossy(&formatted.stderr);
        assert!(formatted.status.success(), "{errors}");
        let log = std::fs::File::create(at("log")).unwrap();
        let mut broker = java("kafka.Kafka");
        broker.arg(at("server.properties")).stdout(log.try_clone().unwrap()).stderr(log);
        let broker = broker.spawn().unwrap();
        let mut kafka = Self { ssl, sasl_ssl, sasl_plaintext, broker, _folder: folder };
        until_within(Duration::from_secs(90), "Kafka listens", async || {
            if let Some(status) = kafka.broker.try_wait().unwrap() {
                let log = kafka._folder.path().join("log");
                panic!("{status}: {}", std::fs::read_to_string(log).unwrap());
            }
            for port in [ssl, sasl_ssl, sasl_plaintext] {
                tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
            }
            Some(())
        })
        .await;
        Some(kafka)
    }
}

impl Drop for OwnKafka {
    fn drop(&mut self) {
        let _ = self.broker.kill();
        let _ = self.broker.wait();
    }
}
