use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use tidings::config::{Config, SETTINGS};

/// What operators write, a `NAME=value` a line.
pub fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let given: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once('=')).collect();
    // What stands in a file is not these bytes.
    if given.values().any(|value| value.trim().starts_with("file:")) {
        return;
    }
    let config = match Config::from_lookup(|name| given.get(name).map(|value| (*value).into())) {
        Ok(config) => config,
        Err(faults) => {
            assert!(!faults.0.is_empty());
            let shown = faults.to_string();
            for fault in &faults.0 {
                let setting = SETTINGS.iter().find(|setting| setting.name == fault.setting);
                let setting = setting.expect("it names a setting");
                assert!(!fault.expected.is_empty() && shown.contains(fault.setting));
                let value = fault.value.as_deref().unwrap_or("***");
                let masked = value.strip_suffix("***").is_some_and(|scheme| {
                    scheme.is_empty() || scheme.ends_with("://") && !scheme.contains('@')
                });
                assert!(!setting.secret || masked, "a secret shows: {fault:?}");
            }
            return;
        }
    };
    let (limits, ws, delivery) = (&config.limits, &config.ws, &config.delivery);
    let duration = |name, value, low: &str, high: &str| {
        let range = time(low).expect("it is good")..=time(high).expect("it is good");
        is_as_given(&given, name, value, range, time);
    };
    duration("SETTLE_GRACE", delivery.settle_grace, "50ms", "1h");
    duration("OFFLINE_AFTER", delivery.offline_after, "50ms", "24h");
    duration("RECEIPTS_RETENTION", delivery.receipts_retention, "50ms", "3650d");
    duration("NODE_LEASE", config.presence.lease, "300ms", "1h");
    duration("HEARTBEAT_INTERVAL", ws.heartbeat_interval, "50ms", "1h");
    duration("HEARTBEAT_TIMEOUT", ws.heartbeat_timeout, "50ms", "1h");
    duration("DRAIN_GRACE", config.drain.grace, "0s", "1h");
    duration("DRAIN_TIME", config.drain.time, "0s", "1h");
    let bytes = |name, value, range| is_as_given(&given, name, value, range, bytes);
    bytes("MAX_FRAME_BYTES", limits.frame_bytes, 1..=ws.buffer_bytes);
    bytes("MAX_CONTENT_BYTES", limits.content_bytes, 1..=limits.frame_bytes);
    bytes("MAX_METADATA_BYTES", limits.metadata_bytes, 1..=limits.frame_bytes);
    bytes("WS_CLIENT_BUFFER_BYTES", ws.buffer_bytes, 1 << 10..=1 << 30);
    let number = |name, value, range| is_as_given(&given, name, value, range, |t| t.parse().ok());
    number("WS_CLIENT_BUFFER_SIZE", ws.buffer_messages, 1..=1 << 20);
    number("MAX_CONNECTIONS", ws.max_connections, 1..=100_000_000);
    number("MAX_DEVICES_PER_USER", config.presence.max_devices, 1..=1_000);
    number("MAX_GROUP_SIZE", limits.group_size, 2..=100_000);
    number("DB_WRITE_LANES", config.write_lanes, 1..=64);
    number("RATE_SENDS_PER_USER", config.rates.sends_per_user as usize, 0..=1_000_000);
}

/// Within its bounds, and what was written, by a reading of our own.
fn is_as_given<T: PartialOrd + std::fmt::Debug>(
    given: &BTreeMap<&str, &str>,
    name: &str,
    value: T,
    range: RangeInclusive<T>,
    read: impl Fn(&str) -> Option<T>,
) {
    assert!(range.contains(&value), "{name} is {value:?}");
    if let Some(text) = given.get(name).map(|text| text.trim()).filter(|text| !text.is_empty()) {
        assert_eq!(read(text).as_ref(), Some(&value), "{name} is {text:?}");
    }
}

fn time(text: &str) -> Option<Duration> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
    Some(match unit.trim() {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number * 60),
        "h" => Duration::from_secs(number * 3_600),
        "d" => Duration::from_secs(number * 86_400),
        _ => return None,
    })
}

fn bytes(text: &str) -> Option<usize> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let number: usize = text.strip_suffix(unit)?.parse().ok()?;
    let power = ["B", "KiB", "MiB", "GiB"].iter().position(|name| *name == unit.trim())?;
    Some(number << (10 * power))
}
