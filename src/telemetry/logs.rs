//! Log lines: JSON for machines, or text for a terminal. Made by `main` through [`init_logs`].
//!
//! A JSON line has the keys `level`, `ts`, `caller`, `msg` and then the fields of the event and of
//! the spans around it, flat, so that one filter finds all lines of a `message_id`. One line is one
//! write, so lines of several threads do not mix.

use std::fmt;
use std::io::{self, Write};

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;
use thiserror::Error;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::{EnvFilter, Layer};

use crate::clock::Timestamp;
use crate::config::{LogConfig, LogFormat};

#[derive(Debug, Error)]
pub enum LogError {
    #[error("LOG_LEVEL is no filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("logs were set up already")]
    Twice(#[from] tracing::subscriber::SetGlobalDefaultError),
}

/// Sends the logs of the whole process to stderr. Once per process.
pub fn init_logs(config: &LogConfig) -> Result<(), LogError> {
    let ansi = io::IsTerminal::is_terminal(&io::stderr());
    tracing::subscriber::set_global_default(subscriber(config, io::stderr, ansi)?)?;
    Ok(())
}

fn subscriber<W>(
    config: &LogConfig,
    writer: W,
    ansi: bool,
) -> Result<impl Subscriber + Send + Sync + use<W>, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match config.format {
        LogFormat::Json => Box::new(JsonLines { writer }),
        LogFormat::Text => Box::new(
            tracing_subscriber::fmt::layer()
                .with_timer(Clock)
                .with_ansi(ansi)
                .with_file(true)
                .with_line_number(true)
                .with_target(false)
                .with_writer(writer),
        ),
    };
    Ok(Registry::default().with(lines.with_filter(filter(&config.level)?)))
}

/// A bare level is meant for this service: below `warn` its libraries would drown it.
fn filter(level: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    match level.parse::<LevelFilter>() {
        Ok(level) if level > LevelFilter::WARN => {
            EnvFilter::try_new(format!("warn,tidings={level}"))
        }
        _ => EnvFilter::try_new(level),
    }
}

struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", Timestamp::now())
    }
}

/// Writes each event as one JSON object on one line.
struct JsonLines<W> {
    writer: W,
}

/// A span's fields, kept in its extensions until it ends.
#[derive(Default)]
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    /// The last value given to a key stands: an inner span's over an outer's, the event's over all.
    fn set(&mut self, key: &'static str, value: Value) {
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key, value)),
        }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        let at = self.0.iter().position(|(known, _)| *known == key)?;
        Some(self.0.remove(at).1)
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field.name(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field.name(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field.name(), format!("{value:?}").into());
    }
}

struct Line<'a> {
    level: &'static str,
    caller: Option<String>,
    msg: Value,
    fields: &'a Fields,
}

const OWN_KEYS: [&str; 4] = ["level", "ts", "caller", "msg"];

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("level", self.level)?;
        map.serialize_entry("ts", &Timestamp::now())?;
        map.serialize_entry("caller", &self.caller)?;
        map.serialize_entry("msg", &self.msg)?;
        for (key, value) in &self.fields.0 {
            if OWN_KEYS.contains(key) {
                map.serialize_entry(&format!("{key}_"), value)?;
            } else {
                map.serialize_entry(key, value)?;
            }
        }
        map.end()
    }
}

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    W: for<'w> MakeWriter<'w> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            record.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                of_span.0.iter().for_each(|(key, value)| fields.set(key, value.clone()));
            }
        }
        event.record(&mut fields);
        let msg = fields.take("message").unwrap_or_default();
        let metadata = event.metadata();
        let caller = metadata.file().zip(metadata.line());
        let line = Line {
            level: match *metadata.level() {
                tracing::Level::ERROR => "error",
                tracing::Level::WARN => "warn",
                tracing::Level::INFO => "info",
                tracing::Level::DEBUG => "debug",
                tracing::Level::TRACE => "trace",
            },
            caller: caller.map(|(file, line)| format!("{file}:{line}")),
            msg,
            fields: &fields,
        };
        let Ok(mut text) = serde_json::to_vec(&line) else {
            return;
        };
        text.push(b'\n');
        // Where nobody takes the log there is nobody to tell.
        let _ = self.writer.make_writer_for(metadata).write_all(&text);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log(level: &str, format: LogFormat, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let config = LogConfig { level: level.into(), format };
        let subscriber = subscriber(&config, move || writer.clone(), false).unwrap();
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_json_line_has_its_fields_flat() {
        let text = log("info", LogFormat::Json, || {
            let outer = tracing::info_span!("request", request_id = "r1", sender_id = "outer");
            let _outer = outer.enter();
            let inner = tracing::info_span!("send", sender_id = "u1", seq = tracing::field::Empty);
            let _inner = inner.enter();
            inner.record("seq", 7);
            tracing::warn!(message_id = %"m1", retries = 2, late = true, ts = "x", "slow \"send\"");
        });
        assert!(text.ends_with('\n') && text.trim_end().lines().count() == 1, "{text}");
        let line: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "warn");
        assert_eq!(line["msg"], "slow \"send\"");
        assert!(line["caller"].as_str().unwrap().starts_with("src/telemetry/logs.rs:"), "{text}");
        let ts = line["ts"].as_str().unwrap();
        assert!(ts.len() == 24 && ts.ends_with('Z') && &ts[19..20] == ".", "{ts}");
        assert_eq!(line["request_id"], "r1");
        assert_eq!(line["sender_id"], "u1");
        assert_eq!(line["seq"], 7);
        assert_eq!(line["message_id"], "m1");
        assert_eq!(line["retries"], 2);
        assert_eq!(line["late"], true);
        assert_eq!(line["ts_"], "x");
        assert_eq!(line.len(), 11, "{text}");
        assert!(text.starts_with("{\"level\":\"warn\",\"ts\":\""), "{text}");
    }

    #[test]
    fn text_is_readable() {
        let text = log("info", LogFormat::Text, || {
            tracing::info!(message_id = %"m1", "hello");
            tracing::debug!("unseen");
        });
        assert!(text.contains("INFO"), "{text}");
        assert!(text.contains("src/telemetry/logs.rs:"), "{text}");
        assert!(text.contains("hello") && text.contains("message_id=m1"), "{text}");
        assert!(!text.contains("unseen"), "{text}");
    }

    #[test]
    fn a_bare_level_is_for_this_service() {
        let both = || {
            tracing::debug!("ours");
            tracing::debug!(target: "hyper", "theirs");
            tracing::warn!(target: "hyper", "important");
        };
        let text = log("debug", LogFormat::Json, both);
        assert!(text.contains("ours") && text.contains("important"), "{text}");
        assert!(!text.contains("theirs"), "{text}");
        let text = log("warn,hyper=debug", LogFormat::Json, both);
        assert!(!text.contains("ours") && text.contains("theirs"), "{text}");
    }
}
