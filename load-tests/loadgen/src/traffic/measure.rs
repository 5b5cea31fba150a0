//! A stretch of traffic, and what it cost.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::{Ledger, Pace, follow};
use crate::proc::Watch;
use crate::report::{Cost, Latencies, Progress, Table, round};

/// How long.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Window {
    /// Measured seconds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Seconds of the same load before that.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    pub warmup: u64,
}

/// Of the measured window; latencies are of messages that were due in it.
#[derive(Debug, Serialize)]
pub struct Measured {
    pub load: String,
    pub seconds: f64,
    /// Acknowledged, thus durable.
    pub messages_per_second: f64,
    pub refusals_per_second: f64,
    pub deliveries_per_second: f64,
    pub latency: Latencies,
    pub cost: Cost,
    pub us_per_message: BTreeMap<String, f64>,
    pub us_per_delivery: BTreeMap<String, f64>,
    pub softirq_us_per_message: f64,
}

/// A phase that is over, while some of what was due in it may still be under way.
pub struct Stretch {
    pub phase: usize,
    pub load: String,
    pub seconds: f64,
    pub cost: Cost,
}

impl Stretch {
    /// Acknowledged messages a second.
    pub fn rate(&self, ledger: &Ledger) -> f64 {
        ledger.phase(self.phase, |phase| phase.acked as f64 / self.seconds)
    }

    /// To be called when all has arrived: else the slowest would be missing in the latencies.
    pub fn measured(self, ledger: &Ledger) -> Measured {
        let Self { phase, load, seconds, cost } = self;
        ledger.phase(phase, |phase| {
            let per_second = |count: usize| round(count as f64 / seconds, 1);
            Measured {
                load,
                seconds: round(seconds, 3),
                messages_per_second: per_second(phase.acked),
                refusals_per_second: per_second(phase.refused),
                deliveries_per_second: per_second(phase.delivered),
                latency: phase.latency(),
                us_per_message: cost.us_per(phase.acked as f64),
                us_per_delivery: cost.us_per(phase.delivered as f64),
                softirq_us_per_message: round(
                    cost.machine.softirq * 1e6 / phase.acked.max(1) as f64,
                    3,
                ),
                cost,
            }
        })
    }
}

impl Measured {
    pub fn rows(&self, table: &mut Table) {
        table.row("load", &self.load);
        let Self { messages_per_second, deliveries_per_second, .. } = self;
        table.row(
            "durable messages a second",
            format!("{messages_per_second} over {} s", self.seconds),
        );
        if self.refusals_per_second > 0.0 {
            table.row("  refusals a second", self.refusals_per_second.to_string());
        }
        table.row("  deliveries a second", deliveries_per_second.to_string());
        table.latency(&self.latency);
        table.cost(&self.cost);
        table.by_process("  µs of CPU per message", &self.us_per_message);
        if (deliveries_per_second / messages_per_second.max(0.1) - 1.0).abs() > 0.1 {
            table.by_process("  µs of CPU per delivery", &self.us_per_delivery);
        }
        table.row("  µs of softirq per message", self.softirq_us_per_message.to_string());
    }
}

/// Lets the writers write at this pace, and goes on with them after that.
pub async fn measure(
    ledger: &Ledger,
    watch: &Watch,
    window: Window,
    pace: Pace,
    progress: &mut Progress,
) -> anyhow::Result<Stretch> {
    ledger.send(pace, false);
    self::window(ledger, watch, window, pace, progress).await
}

/// Of traffic that goes on already.
pub async fn window(
    ledger: &Ledger,
    watch: &Watch,
    window: Window,
    pace: Pace,
    progress: &mut Progress,
) -> anyhow::Result<Stretch> {
    follow(ledger, Instant::now() + Duration::from_secs(window.warmup), progress).await;
    let before = watch.sample()?;
    let (phase, started) = (ledger.begin_phase(), Instant::now());
    follow(ledger, started + Duration::from_secs(window.seconds), progress).await;
    let cost = Cost::between(&before, &watch.sample()?);
    let seconds = started.elapsed().as_secs_f64();
    ledger.begin_phase();
    Ok(Stretch { phase, load: pace.to_string(), seconds, cost })
}
