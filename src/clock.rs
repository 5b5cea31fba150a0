//! Wall-clock time, in one place, so that the rest of the crate reads it in one form.
//!
//! Leases and graces are judged by the database's clock, never by this one.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A point in time: milliseconds since the Unix epoch, UTC. On the wire RFC 3339 with milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// Those that can be written, which a time zone can lead out of.
const FIRST: Timestamp = Timestamp(-62_167_219_200_000);
const LAST: Timestamp = Timestamp(253_402_300_799_999);

impl Timestamp {
    #[expect(clippy::disallowed_methods, reason = "this is the one reader of the wall clock")]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(since.as_millis() as i64)
    }

    pub fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    pub fn millis(self) -> i64 {
        self.0
    }

    /// Time from `earlier` to `self`; zero if `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0).max(0) as u64)
    }

    pub fn to_datetime(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// As on the wire. By hand: each event holds some, and a form that is worked through at run time
    /// takes ten times as long.
    fn written(self) -> [u8; 24] {
        let at = self.to_datetime();
        let mut text = *b"0000-00-00T00:00:00.000Z";
        for (end, digits, mut value) in [
            (4, 4, at.year().unsigned_abs()),
            (7, 2, u8::from(at.month()).into()),
            (10, 2, at.day().into()),
            (13, 2, at.hour().into()),
            (16, 2, at.minute().into()),
            (19, 2, at.second().into()),
            (23, 3, at.millisecond().into()),
        ] {
            for digit in text[end - digits..end].iter_mut().rev() {
                *digit = b'0' + (value % 10) as u8;
                value /= 10;
            }
        }
        text
    }
}

impl From<OffsetDateTime> for Timestamp {
    fn from(at: OffsetDateTime) -> Self {
        Self((at.unix_timestamp_nanos() / 1_000_000) as i64)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.written()).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let at = OffsetDateTime::parse(&text, &Rfc3339).map(Self::from);
        let at = at.map_err(serde::de::Error::custom)?;
        if !(FIRST..=LAST).contains(&at) {
            return Err(serde::de::Error::custom("a time lies in the years 0000 to 9999, UTC"));
        }
        Ok(at)
    }
}

impl JsonSchema for Timestamp {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = json_schema!({ "type": "string", "format": "date-time" });
        if generator.contract().is_serialize() {
            // Narrower than what is read: UTC, with milliseconds.
            let form = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$";
            schema.insert("pattern".into(), form.into());
        }
        schema
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_rfc_3339_with_milliseconds_both_ways() {
        let at = Timestamp::from_millis(1_700_000_000_007);
        assert_eq!(at.to_string(), "2023-11-14T22:13:20.007Z");
        assert_eq!(serde_json::to_string(&at).unwrap(), "\"2023-11-14T22:13:20.007Z\"");
        let back: Timestamp = serde_json::from_str("\"2023-11-14T23:13:20.007+01:00\"").unwrap();
        assert_eq!(back, at);
    }

    #[test]
    fn times_that_could_not_be_written_are_refused() {
        let read = |text: &str| serde_json::from_str::<Timestamp>(&format!("\"{text}\""));
        for text in ["0000-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z"] {
            assert_eq!(read(text).unwrap().to_string(), text);
        }
        for text in ["0000-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains("the years 0000 to 9999"), "{text}: {error}");
        }
    }

    #[test]
    fn any_time_is_written_as_it_is_read() {
        // Through all fields, over leap days and the ends of years, into the year 5135.
        for step in 0..100_000 {
            let at = Timestamp::from_millis(step * 999_999_937);
            let text = at.to_string();
            let read = OffsetDateTime::parse(&text, &Rfc3339).unwrap();
            assert_eq!((Timestamp::from(read), text.len()), (at, 24), "{text}");
        }
    }
}
