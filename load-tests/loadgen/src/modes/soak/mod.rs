//! The mixed day for long: is the node after that as it was in the beginning? Its memory, threads,
//! files, and what is left to settle are sampled all the time, and judged in the end (see `trend`).

mod trend;

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Serialize;
use tidings_client::target::Target;
use tokio::time::Instant;

use self::trend::{Limit, Trend, Verdict};
use super::day;
use crate::metrics;
use crate::proc::{Named, Sample, Watch};
use crate::report::{Progress, Report, Table};
use crate::{Shared, duration};

/// What is judged. Rows and sessions move with the load of the moment, so a rise must be many of
/// them: of outbox rows, more than the batches of a settle grace, which are there all the time.
const LIMITS: [(&str, f64, f64); 7] = [
    // Rises faster, an hour, and by more within the half that is judged.
    ("resident_mib", 24.0, 4.0),
    ("fds", 60.0, 20.0),
    ("threads", 6.0, 3.0),
    ("tidings_sockets_open", 60.0, 20.0),
    ("tidings_redis_subscriptions", 60.0, 20.0),
    ("tidings_outbox_rows", 600.0, 1_000.0),
    ("tidings_laggards_rows", 60.0, 20.0),
];
const MIB: f64 = (1 << 20) as f64;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    life: day::Life,
    /// Of the day; the second half of it is judged.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=1_440))]
    minutes: u64,
    /// Between two samples.
    #[arg(long, default_value = "5s", value_parser = duration)]
    every: Duration,
    /// Where the node serves its metrics, if not there.
    #[arg(long, value_name = "URL")]
    metrics: Option<Target>,
    /// The memory's rise that is allowed, MiB an hour.
    #[arg(long)]
    mib_per_hour: Option<f64>,
    #[command(flatten)]
    common: Shared,
}

#[derive(Serialize)]
struct Figures {
    verdicts: Vec<Verdict>,
    #[serde(flatten)]
    day: day::Figures,
    /// All samples, by what was sampled.
    trends: Vec<Trend>,
}

pub async fn run(mut args: Args) -> anyhow::Result<bool> {
    args.life.sign(args.common.jwt_key.as_ref());
    let node = args.common.pids.iter().find(|named| named.name == "node").cloned();
    let node = node.context("--pid node=PID says whose memory is judged")?;
    ensure!(args.every >= Duration::from_secs(1), "--every is at least a second");
    let mut progress = Progress::new();
    let watch = Watch::new(args.common.pids.clone())?;
    let metrics = args.metrics.unwrap_or_else(|| args.life.url(0).clone());
    let mut day = day::Day::begin(args.life, &watch, &mut progress).await?;
    let mut trends: Vec<Trend> = LIMITS.map(|(name, ..)| Trend::new(name)).into();
    let before = watch.sample()?;
    let started = Instant::now();
    let end = started + Duration::from_secs(args.minutes * 60);
    while Instant::now() < end {
        day.go_on(end.min(Instant::now() + args.every), &mut progress).await?;
        let at = started.elapsed().as_secs_f64();
        sample(&mut trends, at, &node, &watch.sample()?, &metrics::scrape(&metrics).await?);
    }
    let (after, seconds) = (watch.sample()?, started.elapsed().as_secs_f64());
    let day = day.end(&before, &after, seconds, &mut progress).await;

    let mut faults = day.outcome.faults();
    let verdicts: Vec<Verdict> = trends
        .iter()
        .zip(LIMITS)
        .filter_map(|(trend, (name, per_hour, least))| {
            let own = args.mib_per_hour.filter(|_| name == "resident_mib");
            trend.judge(Limit { per_hour: own.unwrap_or(per_hour), least })
        })
        .collect();
    let rising = verdicts.iter().filter(|verdict| verdict.rises);
    faults.extend(rising.map(|verdict| format!("{} {verdict}", verdict.name)));
    Report::new("soak", faults, Figures { verdicts, day, trends }).publish(table, &args.common)
}

/// What a node does not tell, such as subscriptions where there is no Redis, has no samples.
fn sample(trends: &mut [Trend], at: f64, node: &Named, sample: &Sample, scrape: &metrics::Scrape) {
    for trend in trends {
        let usage = &sample.usage[&node.name];
        let value = match trend.name {
            "resident_mib" => Some(usage.memory.rss_bytes as f64 / MIB),
            "fds" => Some(usage.fds as f64),
            "threads" => Some(threads(node) as f64),
            name => scrape.sum(name),
        };
        trend.points.extend(value.map(|value| (at, value)));
    }
}

fn threads(node: &Named) -> usize {
    let count = |pid: &u32| fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    node.pids.iter().map(count).sum()
}

fn table(figures: &Figures) -> Table {
    let mut table = figures.day.table();
    for verdict in &figures.verdicts {
        table.row(verdict.name, verdict.to_string());
    }
    table
}
