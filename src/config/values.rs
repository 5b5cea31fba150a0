//! How settings are read and written: units, lists, addresses, and faults collected instead of
//! returned, so that an operator sees all of them at once. Called by `config` only.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// One setting that cannot be used as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub setting: &'static str,
    /// None if it is not set; of a secret only the URL's scheme.
    pub value: Option<String>,
    /// What would be right.
    pub expected: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value:?}: expected {}", self.setting, self.expected),
            None => write!(f, "{} is not set: expected {}", self.setting, self.expected),
        }
    }
}

/// All that is wrong with the settings; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFaults(pub Vec<Fault>);

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the settings cannot be used:")?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl std::error::Error for ConfigFaults {}

/// A setting's name, and whether its value must not be shown.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub name: &'static str,
    pub secret: bool,
}

/// Reads settings from the table of them all, and remembers what is wrong.
pub(super) struct Reader<'a> {
    settings: &'static [Setting],
    lookup: &'a dyn Fn(&str) -> Option<String>,
    faults: Vec<Fault>,
    /// The names asked for: in the end all of the table, which [`Reader::finish`] checks.
    read: BTreeSet<&'static str>,
}

impl<'a> Reader<'a> {
    pub fn new(settings: &'static [Setting], lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { settings, lookup, faults: Vec::new(), read: BTreeSet::new() }
    }

    /// The value without the blanks around it; an empty one is as good as none.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.read.insert(name);
        let value = (self.lookup)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// None if it is not set, or wrong; `parse` says what it expects instead.
    pub fn parse<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.text(name)?;
        match parse(&value) {
            Ok(parsed) => Some(parsed),
            Err(expected) => {
                self.fault(name, expected);
                None
            }
        }
    }

    pub fn number<T>(&mut self, name: &'static str, default: T, range: RangeInclusive<T>) -> T
    where
        T: FromStr + PartialOrd + fmt::Display,
    {
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        self.parse(name, |text| {
            text.parse().ok().filter(|value| range.contains(value)).ok_or_else(expected)
        })
        .unwrap_or(default)
    }

    pub fn duration(
        &mut self,
        name: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let expected = || {
            let (low, high) = (show_duration(*range.start()), show_duration(*range.end()));
            format!("a time with its unit (ms, s, m, h, d), from {low} to {high}")
        };
        self.parse(name, |text| {
            parse_duration(text).filter(|value| range.contains(value)).ok_or_else(expected)
        })
        .unwrap_or(default)
    }

    pub fn size(
        &mut self,
        name: &'static str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> usize {
        let expected = || {
            let (low, high) = (show_size(*range.start()), show_size(*range.end()));
            format!("a size with its unit (B, KiB, MiB, GiB), from {low} to {high}")
        };
        self.parse(name, |text| {
            parse_size(text).filter(|value| range.contains(value)).ok_or_else(expected)
        })
        .unwrap_or(default)
    }

    pub fn flag(&mut self, name: &'static str, default: bool) -> bool {
        self.parse(name, |text| text.parse().map_err(|_| "true or false".into())).unwrap_or(default)
    }

    /// A list separated by commas; empty if it is not set.
    pub fn list<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        self.parse(name, |text| {
            text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(parse).collect()
        })
        .unwrap_or_default()
    }

    /// Notes that `name` cannot be used as it is; the first reason given stands.
    pub fn fault(&mut self, name: &'static str, expected: impl Into<String>) {
        if self.faults.iter().any(|fault| fault.setting == name) {
            return;
        }
        let secret = self.settings.iter().any(|setting| setting.name == name && setting.secret);
        let value = self.text(name).map(|value| if secret { mask(&value) } else { value });
        self.faults.push(Fault { setting: name, value, expected: expected.into() });
    }

    pub fn finish<T>(self, config: T) -> Result<T, ConfigFaults> {
        debug_assert!(
            self.read.iter().copied().eq({
                let names: BTreeSet<_> = self.settings.iter().map(|setting| setting.name).collect();
                names.into_iter()
            }),
            "the table of settings and what is read differ"
        );
        if self.faults.is_empty() { Ok(config) } else { Err(ConfigFaults(self.faults)) }
    }
}

/// The certificates of a PEM file; an error says what would be right.
pub(super) fn read_certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read_file(path)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    read.ok()
        .filter(|certificates| !certificates.is_empty())
        .ok_or_else(|| "the path of a file of certificates (PEM)".into())
}

pub(super) fn read_file(path: &str) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("the path of a file that can be read ({error})"))
}

/// Only the scheme of a URL is surely no secret: a password may hold any character, also unescaped.
fn mask(value: &str) -> String {
    match value.split_once("://") {
        Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') => {
            format!("{scheme}://***")
        }
        _ => "***".into(),
    }
}

const DURATIONS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// A whole number with its unit, in the smallest unit.
fn parse_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// In the largest unit that leaves a whole number.
fn show_unit(value: u64, units: &[(&str, u64)]) -> String {
    let (name, factor) = units
        .iter()
        .rev()
        .find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor))
        .unwrap_or(&units[0]);
    format!("{}{name}", value / factor)
}

fn parse_duration(text: &str) -> Option<Duration> {
    parse_unit(text, &DURATIONS).map(Duration::from_millis)
}

fn show_duration(duration: Duration) -> String {
    show_unit(duration.as_millis() as u64, &DURATIONS)
}

/// Nothing needs no unit.
fn parse_size(text: &str) -> Option<usize> {
    if text == "0" {
        return Some(0);
    }
    parse_unit(text, &SIZES).and_then(|size| usize::try_from(size).ok())
}

fn show_size(size: usize) -> String {
    show_unit(size as u64, &SIZES)
}

/// A range of addresses in CIDR notation, or a single one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IpNet {
    addr: IpAddr,
    prefix: u8,
}

impl IpNet {
    /// An IPv4 address that arrives in IPv6 form (a dual-stack listener does that) counts as IPv4.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(addr)) => {
                let differing = u32::from(net) ^ u32::from(addr);
                differing.leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V6(net), IpAddr::V6(addr)) => {
                let differing = u128::from(net) ^ u128::from(addr);
                differing.leading_zeros() >= u32::from(self.prefix)
            }
            _ => false,
        }
    }
}

impl FromStr for IpNet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || "IP addresses or networks such as 10.0.0.0/8, separated by commas".into();
        let (addr, prefix) = match text.split_once('/') {
            Some((addr, prefix)) => (addr, Some(prefix)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| expected())?;
        let bits = if addr.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(bits), str::parse).map_err(|_| expected())?;
        if prefix > bits { Err(expected()) } else { Ok(Self { addr, prefix }) }
    }
}

impl fmt::Debug for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_need_a_unit() {
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("30s"), Some(Duration::from_secs(30)));
        assert_eq!(parse_duration("90d"), Some(Duration::from_secs(90 * 86_400)));
        assert_eq!(parse_size("64KiB"), Some(64 << 10));
        assert_eq!(parse_size("1 MiB"), Some(1 << 20));
        for wrong in ["", "30", "s", "-1s", "1.5s", "1 week", "30S", "99999999999999999999d"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
        for wrong in ["64", "64kb", "64KB", "1e3B", "99999999999999999GiB"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
        assert_eq!(show_duration(Duration::from_millis(1_500)), "1500ms");
        assert_eq!(show_duration(Duration::from_secs(3_600)), "1h");
        assert_eq!(show_size(64 << 10), "64KiB");
        assert_eq!(show_size(0), "0B");
    }

    #[test]
    fn networks_contain_what_they_should() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(net("10.0.0.0/8").contains(ip("10.255.0.1")));
        assert!(!net("10.0.0.0/8").contains(ip("11.0.0.1")));
        assert!(net("10.0.0.0/8").contains(ip("::ffff:10.1.2.3")));
        assert!(net("127.0.0.1").contains(ip("127.0.0.1")));
        assert!(!net("127.0.0.1").contains(ip("127.0.0.2")));
        assert!(net("0.0.0.0/0").contains(ip("203.0.113.9")));
        assert!(!net("0.0.0.0/0").contains(ip("2001:db8::1")));
        assert!(net("2001:db8::/32").contains(ip("2001:db8:1::1")));
        assert!(!net("2001:db8::/32").contains(ip("2001:db9::1")));
        for wrong in ["10.0.0.0/33", "10.0.0.0/", "10.0.0/8", "::/129", "proxy"] {
            assert!(wrong.parse::<IpNet>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_of_a_secret_is_shown_but_its_scheme() {
        assert_eq!(mask("postgres://u:p@ss?w@host/db?password=a@b"), "postgres://***");
        assert_eq!(mask("hunter2"), "***");
        assert_eq!(mask("hunter 2://x"), "***");
    }
}
