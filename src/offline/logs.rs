//! What the Kafka client logs and reports.

use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// Passes them on, and keeps the last reason. They name brokers, never what is in a record or a
/// setting.
#[derive(Clone, Default)]
pub(super) struct Logs {
    /// What kept the client from a broker when it last tried.
    last: Arc<Mutex<Option<String>>>,
}

impl Logs {
    /// Most errors only tell that no broker was reached; why, is told aside.
    pub fn explain(&self, error: &KafkaError) -> String {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match last {
            // As the setting is called here.
            Some(last) => format!("{error}: {}", last.replace("ssl.ca.location", "KAFKA_CA_FILE")),
            None => error.to_string(),
        }
    }
}

impl ClientContext for Logs {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        match level {
            // Of a lost connection, too, from which it recovers by itself.
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => tracing::warn!(facility, "librdkafka: {text}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(facility, "librdkafka: {text}");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(facility, "librdkafka: {text}"),
        }
    }

    /// The same events once more, summed up.
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::trace!(%error, reason, "librdkafka reports an error");
        // That all are gone follows from what was told before.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
    }
}
