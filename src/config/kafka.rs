//! Settings of the offline sink: Kafka with who may come in and who is trusted, else a file.

use std::fmt;
use std::path::{Path, PathBuf};

use super::OfflineConfig;
use super::values::{Reader, read_certificates, read_file};

/// More partitions than any number of consumers likely today: a later change would reorder keys.
const TOPIC_PARTITIONS: i32 = 12;

/// How the brokers are spoken to.
#[derive(Clone, Debug, Default)]
pub struct KafkaSecurity {
    /// None: in the clear.
    pub tls: Option<KafkaTls>,
    /// None: nobody asks who we are, or our certificate tells.
    pub sasl: Option<KafkaSasl>,
}

#[derive(Clone, Debug, Default)]
pub struct KafkaTls {
    /// Who signs the brokers' certificates; None: whom this system trusts.
    pub ca: Option<PathBuf>,
    /// Our own certificate, and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone)]
pub struct KafkaSasl {
    /// As brokers call it: `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512`.
    pub mechanism: &'static str,
    pub username: String,
    pub password: String,
}

impl fmt::Debug for KafkaSasl {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {}", self.mechanism, self.username)
    }
}

impl KafkaSecurity {
    /// As `security.protocol` of Kafka's clients.
    pub fn protocol(&self) -> &'static str {
        match (&self.tls, &self.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        }
    }
}

pub(super) fn read_offline(read: &mut Reader, data_dir: &Path) -> OfflineConfig {
    let brokers = read.list("KAFKA_BROKERS", |item| {
        let fine = item.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && !host.contains('/')
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        fine.then(|| item.to_owned()).ok_or_else(|| "host:port, separated by commas".into())
    });
    let topic = read.parse("KAFKA_OFFLINE_TOPIC", |text| {
        let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let fine = text.len() <= 249 && text.chars().all(legal) && text != "." && text != "..";
        fine.then(|| text.to_owned())
            .ok_or_else(|| "at most 249 letters, digits, dots, underscores and hyphens".into())
    });
    let partitions = read.number("KAFKA_TOPIC_PARTITIONS", TOPIC_PARTITIONS, 1..=10_000);
    let security = read_security(read);
    if brokers.is_empty() {
        if security.protocol() != "plaintext" && read.text("KAFKA_BROKERS").is_none() {
            // Else records that belong to brokers would quietly go to a file.
            let expected = "the brokers, because KAFKA_SECURITY_PROTOCOL is set";
            read.fault("KAFKA_BROKERS", expected);
        }
        return OfflineConfig::File { path: data_dir.join("offline.jsonl") };
    }
    OfflineConfig::Kafka {
        brokers: brokers.join(","),
        topic: topic.unwrap_or_else(|| "tidings.offline".into()),
        partitions,
        security,
    }
}

fn read_security(read: &mut Reader) -> KafkaSecurity {
    let protocol = read.parse("KAFKA_SECURITY_PROTOCOL", |text| match text {
        "plaintext" => Ok((false, false)),
        "ssl" => Ok((true, false)),
        "sasl_plaintext" => Ok((false, true)),
        "sasl_ssl" => Ok((true, true)),
        _ => Err("plaintext, ssl, sasl_plaintext or sasl_ssl".into()),
    });
    let known = protocol.is_some() || read.text("KAFKA_SECURITY_PROTOCOL").is_none();
    let (tls, sasl) = protocol.unwrap_or_default();
    let ca = read.parse("KAFKA_CA_FILE", |path| read_certificates(path).map(|_| path.into()));
    let cert = read.parse("KAFKA_CERT_FILE", |path| read_certificates(path).map(|_| path.into()));
    let key = read.parse("KAFKA_KEY_FILE", |path| read_file(path).map(|_| path.into()));
    // Else somebody believes that what is sent is encrypted, or that he is known, and it is not so.
    for name in ["KAFKA_CA_FILE", "KAFKA_CERT_FILE", "KAFKA_KEY_FILE"] {
        if known && !tls && read.text(name).is_some() {
            read.fault(name, "nothing, unless KAFKA_SECURITY_PROTOCOL is ssl or sasl_ssl");
        }
    }
    if read.text("KAFKA_CERT_FILE").is_some() != read.text("KAFKA_KEY_FILE").is_some() {
        let missing = if key.is_some() { "KAFKA_CERT_FILE" } else { "KAFKA_KEY_FILE" };
        read.fault(missing, "KAFKA_CERT_FILE and KAFKA_KEY_FILE together");
    }
    KafkaSecurity {
        sasl: read_sasl(read, known, tls, sasl),
        tls: tls.then(|| KafkaTls { ca, own: cert.zip(key) }),
    }
}

fn read_sasl(read: &mut Reader, known: bool, tls: bool, wanted: bool) -> Option<KafkaSasl> {
    let mechanism = read.parse("KAFKA_SASL_MECHANISM", |text| {
        let known = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];
        let found = known.into_iter().find(|mechanism| *mechanism == text);
        found.ok_or_else(|| "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512".into())
    });
    let username = read.text("KAFKA_SASL_USERNAME");
    let password = read.text("KAFKA_SASL_PASSWORD");
    let names = ["KAFKA_SASL_MECHANISM", "KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"];
    for name in names {
        let given = read.text(name).is_some();
        if wanted && !given {
            read.fault(
                name,
                "a value, because KAFKA_SECURITY_PROTOCOL is sasl_plaintext or sasl_ssl",
            );
        }
        if known && !wanted && given {
            let expected = "nothing, unless KAFKA_SECURITY_PROTOCOL is sasl_plaintext or sasl_ssl";
            read.fault(name, expected);
        }
    }
    if wanted && !tls && mechanism == Some("PLAIN") {
        let expected = "SCRAM-SHA-256 or SCRAM-SHA-512, unless KAFKA_SECURITY_PROTOCOL is \
                        sasl_ssl: PLAIN sends the password as it is";
        read.fault("KAFKA_SASL_MECHANISM", expected);
    }
    if !wanted {
        return None;
    }
    Some(KafkaSasl { mechanism: mechanism?, username: username?, password: password? })
}
