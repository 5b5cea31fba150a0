//! The outcome: JSON into a file for machines, a table on stdout for people, a line on stderr
//! while it runs.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::Shared;
use crate::proc::{Cpu, Machine, Sample};
use crate::traffic::Outcome;

/// Above it, latencies count as this long.
const MAX_LATENCY: Duration = Duration::from_secs(120);

/// Latencies in microseconds, to three digits.
pub struct Latency(Histogram<u64>);

impl Latency {
    pub fn new() -> Self {
        let max = MAX_LATENCY.as_micros() as u64;
        Self(Histogram::new_with_bounds(1, max, 3).expect("the bounds are in order"))
    }

    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(latency.as_micros() as u64);
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    pub fn summary(&self) -> LatencySummary {
        let at = |quantile| self.0.value_at_quantile(quantile);
        LatencySummary {
            count: self.0.len(),
            mean_us: self.0.mean().round() as u64,
            p50_us: at(0.50),
            p95_us: at(0.95),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: self.0.max(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LatencySummary {
    pub count: u64,
    pub mean_us: u64,
    pub p50_us: u64,
    pub p95_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
}

impl std::fmt::Display for LatencySummary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |us: u64| format!("{:.2}", us as f64 / 1000.0);
        write!(
            f,
            "p50 {}  p95 {}  p99 {}  p99.9 {}  max {} ms",
            ms(self.p50_us),
            ms(self.p95_us),
            ms(self.p99_us),
            ms(self.p999_us),
            ms(self.max_us)
        )
    }
}

/// By what was measured: one name for the same thing in all modes.
pub type Latencies = BTreeMap<String, LatencySummary>;

/// Of those that were measured at all.
pub fn latencies<'a>(named: impl IntoIterator<Item = (&'a str, &'a Latency)>) -> Latencies {
    let summaries = named.into_iter().map(|(what, latency)| (what.to_owned(), latency.summary()));
    summaries.filter(|(_, summary)| summary.count > 0).collect()
}

/// What was used between two samples.
#[derive(Debug, Serialize)]
pub struct Cost {
    /// Seconds of CPU, by process.
    pub cpu: BTreeMap<String, Cpu>,
    pub machine: Machine,
}

impl Cost {
    pub fn between(before: &Sample, after: &Sample) -> Self {
        let used = |(name, usage): (&String, &crate::proc::Usage)| {
            let earlier = before.usage.get(name)?.cpu;
            Some((name.clone(), usage.cpu.since(earlier)))
        };
        Self {
            cpu: after.usage.iter().filter_map(used).collect(),
            machine: after.machine.since(before.machine),
        }
    }

    /// Microseconds of CPU for each of `units`, by process.
    pub fn us_per(&self, units: f64) -> BTreeMap<String, f64> {
        let each = |(name, cpu): (&String, &Cpu)| {
            (name.clone(), round(cpu.total() * 1e6 / units.max(f64::MIN_POSITIVE), 3))
        };
        self.cpu.iter().map(each).collect()
    }

    /// What others did on this machine meanwhile, in seconds of CPU: much of it, and the figures
    /// are worth little.
    pub fn others(&self) -> f64 {
        let ours: f64 = self.cpu.values().map(|cpu| cpu.total()).sum();
        (self.machine.busy - self.machine.softirq - ours).max(0.0)
    }
}

/// Resident bytes by process.
pub fn rss(sample: &Sample) -> BTreeMap<String, u64> {
    let memory = sample.usage.iter();
    memory.map(|(name, usage)| (name.clone(), usage.memory.rss_bytes)).collect()
}

/// Of resident bytes, for each of `units`.
pub fn growth(before: &Sample, after: &Sample, units: f64) -> BTreeMap<String, f64> {
    let (before, after) = (rss(before), rss(after));
    let each = after.into_iter().map(|(name, after)| {
        let grown = after as f64 - before[&name] as f64;
        (name, round(grown / units, 0))
    });
    each.collect()
}

pub fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// Rows of what and how much.
#[derive(Default)]
pub struct Table(Vec<(String, String)>);

impl Table {
    pub fn row(&mut self, what: impl Into<String>, value: impl Into<String>) {
        self.0.push((what.into(), value.into()));
    }

    /// Two rows for the cost of a stretch of time.
    pub fn cost(&mut self, cost: &Cost) {
        let by = cost.cpu.iter().map(|(name, cpu)| {
            format!("{name} {:.2} ({:.2} user, {:.2} system)", cpu.total(), cpu.user, cpu.system)
        });
        self.row("  CPU seconds", by.collect::<Vec<_>>().join(", "));
        let Machine { busy, idle, softirq } = cost.machine;
        let others = cost.others();
        self.row(
            "  machine",
            format!("{busy:.2} s busy, {idle:.2} idle; softirq {softirq:.2}, others {others:.2}"),
        );
    }

    /// Resident memory.
    pub fn memory(&mut self, what: impl Into<String>, rss: &BTreeMap<String, u64>) {
        let each = rss.iter().map(|(name, rss)| {
            let mib = *rss as f64 / f64::from(1 << 20);
            format!("{name} {mib:.1} MiB")
        });
        self.row(what, each.collect::<Vec<_>>().join(", "));
    }

    pub fn by_process(&mut self, what: impl Into<String>, values: &BTreeMap<String, f64>) {
        let values = values.iter().map(|(name, value)| format!("{name} {value}"));
        self.row(what, values.collect::<Vec<_>>().join(", "));
    }

    pub fn latency(&mut self, latency: &Latencies) {
        for (what, summary) in latency {
            self.row(what.replace('_', " "), summary.to_string());
        }
    }

    pub fn outcome(&mut self, outcome: &Outcome) {
        let Outcome { sent, acked, refused, delivered, missing, doubled, unanswered, .. } = outcome;
        self.row(
            "whole run",
            format!("{sent} sent, {acked} acknowledged, {refused} refused, {delivered} delivered"),
        );
        self.row(
            "  of these",
            format!(
                "{missing} missing, {doubled} doubled, {unanswered} unanswered; complete {} ms \
                 after the last send",
                outcome.complete_after_ms
            ),
        );
        self.counts("errors", &outcome.errors);
        self.counts("other events", &outcome.events);
        self.counts("sockets ended", &outcome.ends);
    }

    pub fn counts(&mut self, what: impl Into<String>, counts: &BTreeMap<String, u64>) {
        let counts = counts.iter().map(|(what, count)| format!("{what} {count}"));
        let counts = counts.collect::<Vec<_>>().join(", ");
        self.row(what, if counts.is_empty() { "none".to_owned() } else { counts });
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = self.0.iter().map(|(what, _)| what.chars().count()).max().unwrap_or(0);
        self.0.iter().try_for_each(|(what, value)| writeln!(f, "{what:width$}  {value}"))
    }
}

/// The whole outcome of a mode.
#[derive(Serialize)]
pub struct Report<T: Serialize> {
    pub mode: &'static str,
    pub passed: bool,
    /// Why not.
    pub faults: Vec<String>,
    #[serde(flatten)]
    pub figures: T,
}

impl<T: Serialize> Report<T> {
    pub fn new(mode: &'static str, faults: Vec<String>, figures: T) -> Self {
        Self { mode, passed: faults.is_empty(), faults, figures }
    }

    /// True if passed.
    pub fn publish(&self, table: fn(&T) -> Table, common: &Shared) -> anyhow::Result<bool> {
        println!("{} ", self.mode);
        print!("{}", table(&self.figures));
        for fault in &self.faults {
            println!("FAULT  {fault}");
        }
        println!("{}", if self.passed { "PASSED" } else { "FAILED" });
        if let Some(path) = &common.json {
            let text = serde_json::to_string_pretty(self)?;
            fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
        }
        Ok(self.passed)
    }
}

/// A line on stderr, at most once a second.
pub struct Progress {
    started: Instant,
    next: Instant,
}

impl Progress {
    pub fn new() -> Self {
        let now = Instant::now();
        Self { started: now, next: now + Duration::from_secs(1) }
    }

    pub fn tell(&mut self, text: impl FnOnce() -> String) {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + Duration::from_secs(1);
            eprintln!("[{:>4} s] {}", (now - self.started).as_secs(), text());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_latencies() {
        let mut latency = Latency::new();
        for ms in 1..=1000 {
            latency.record(Duration::from_millis(ms));
        }
        latency.record(Duration::from_secs(3600));
        let summary = latency.summary();
        let near = |value: u64, ms: u64| (value as f64 / (ms * 1000) as f64 - 1.0).abs() < 0.002;
        assert_eq!(summary.count, 1001);
        assert!(near(summary.p50_us, 501), "{summary:?}");
        assert!(near(summary.p99_us, 991), "{summary:?}");
        assert!(near(summary.max_us, 120_000), "{summary:?}");
        let empty = Latency::new().summary();
        assert_eq!((empty.count, empty.max_us), (0, 0));
    }

    #[test]
    fn a_table_is_aligned() {
        let mut table = Table::default();
        table.row("a", "1");
        table.row("long", "2");
        table.counts("none", &BTreeMap::new());
        assert_eq!(table.to_string(), "a     1\nlong  2\nnone  none\n");
    }

    #[test]
    fn cost_is_the_difference() {
        let sample = |user, busy| Sample {
            usage: BTreeMap::from([(
                "node".to_owned(),
                crate::proc::Usage { cpu: Cpu { user, system: 1.0 }, ..Default::default() },
            )]),
            machine: Machine { busy, idle: 0.0, softirq: 0.0 },
            kernel: crate::proc::Kernel::default(),
        };
        let cost = Cost::between(&sample(1.0, 2.0), &sample(3.0, 7.0));
        assert_eq!(cost.us_per(1000.0)["node"], 2000.0);
        assert_eq!(cost.others(), 3.0);
    }
}
