//! More than the server can take, on schedule: what it refuses, and whether what it accepts stays
//! fast. A server that queues instead looks well at first, and its latency grows without an end.

use std::time::Duration;

use anyhow::ensure;
use serde::Serialize;
use tidings_client::target::Target;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::chat;
use crate::proc::Watch;
use crate::report::{Progress, Report, Table, round};
use crate::traffic::prepare;
use crate::traffic::{Ledger, Measured, Outcome, Pace, Window, follow, measure, window};
use crate::{Shared, duration};

/// Between the search for the limit and the overload.
const PAUSE: Duration = Duration::from_secs(3);
/// The latency of the second half over that of the first, from which on it is a queue that grows.
const GROWS: f64 = 1.5;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value = "http://127.0.0.1:8083")]
    url: Target,
    #[arg(long, default_value_t = 1_000)]
    pairs: usize,
    /// Unanswered messages of each pair, to find the limit.
    #[arg(long, default_value_t = 4)]
    in_flight: usize,
    /// The limit, where it is known: messages a second.
    #[arg(long, value_name = "PER_SECOND")]
    saturation: Option<f64>,
    /// So many times the limit.
    #[arg(long, default_value_t = 1.5)]
    factor: f64,
    #[command(flatten)]
    window: Window,
    /// After the last send: until then all is answered and has arrived.
    #[arg(long, default_value = "20s", value_parser = duration)]
    settle: Duration,
    /// Fail if accepted messages take longer, at the 99th percentile. The default is what full
    /// lanes hold, at the rate of a slow disk.
    #[arg(long, default_value = "5s", value_parser = duration)]
    max_p99: Duration,
    #[command(flatten)]
    common: Shared,
}

#[derive(Serialize)]
struct Figures {
    url: String,
    pairs: usize,
    saturation: Option<Measured>,
    saturation_per_second: f64,
    factor: f64,
    first_half: Measured,
    second_half: Measured,
    /// Of all that was due in the second half.
    refused_share: f64,
    outcome: Outcome,
}

pub async fn run(mut args: Args) -> anyhow::Result<bool> {
    ensure!(args.pairs > 0 && args.in_flight > 0, "--pairs and --in-flight must not be 0");
    ensure!(args.factor > 0.0, "--factor must not be 0");
    args.url.key.clone_from(&args.common.jwt_key);
    let mut progress = Progress::new();
    let watch = Watch::new(args.common.pids.clone())?;
    watch.check_room(args.pairs * 2 + prepare::AT_ONCE)?;
    let ledger = Ledger::new();
    let mut tasks = JoinSet::new();
    chat::pairs(&ledger, &args.url, &args.url, args.pairs, &mut tasks, &mut progress).await?;
    let saturation = if args.saturation.is_none() {
        let pace = Pace::Unanswered(args.in_flight);
        let found = measure(&ledger, &watch, args.window, pace, &mut progress).await?;
        ledger.settle();
        follow(&ledger, Instant::now() + PAUSE, &mut progress).await;
        Some(found)
    } else {
        None
    };
    let found = saturation.as_ref().map(|found| found.rate(&ledger));
    let saturation_per_second = args.saturation.or(found).unwrap_or_default();
    let pace = Pace::Rate((saturation_per_second * args.factor).round());
    ledger.send(pace, true);
    let half = Window { seconds: args.window.seconds.div_ceil(2), ..args.window };
    let first_half = window(&ledger, &watch, half, pace, &mut progress).await?;
    let half = Window { warmup: 0, ..half };
    let second_half = window(&ledger, &watch, half, pace, &mut progress).await?;
    ledger.settle();
    follow(&ledger, Instant::now() + args.settle, &mut progress).await;
    let outcome = ledger.outcome();
    ledger.close(&mut tasks).await;

    let second_half = second_half.measured(&ledger);
    let Measured { messages_per_second, refusals_per_second, .. } = second_half;
    let figures = Figures {
        url: args.url.to_string(),
        pairs: args.pairs,
        saturation: saturation.map(|stretch| stretch.measured(&ledger)),
        saturation_per_second: round(saturation_per_second, 1),
        factor: args.factor,
        refused_share: refusals_per_second / (messages_per_second + refusals_per_second).max(1.0),
        first_half: first_half.measured(&ledger),
        second_half,
        outcome,
    };
    let faults = faults(&args, &figures);
    Report::new("overload", faults, figures).publish(table, &args.common)
}

fn faults(args: &Args, figures: &Figures) -> Vec<String> {
    let mut faults = figures.outcome.faults();
    let p99 = |half: &Measured| Some(Duration::from_micros(half.latency.get("ack")?.p99_us));
    let halves = p99(&figures.first_half).zip(p99(&figures.second_half));
    let Some((first, second)) = halves else {
        faults.push("nothing of what was due in one of the halves was accepted".to_owned());
        return faults;
    };
    if figures.second_half.refusals_per_second == 0.0 {
        faults.push("nothing was refused: this was no overload".to_owned());
    }
    if second > args.max_p99 {
        faults
            .push(format!("accepted messages took {second:.1?} (p99), at most {:?}", args.max_p99));
    }
    // Small latencies may double by chance.
    if second > first.mul_f64(GROWS) && second > args.max_p99 / 2 {
        faults.push(format!("a queue grows: p99 {first:.1?} in the first half, then {second:.1?}"));
    }
    faults
}

fn table(figures: &Figures) -> Table {
    let mut table = Table::default();
    table.row("target", &figures.url);
    table.row("pairs", figures.pairs.to_string());
    if let Some(saturation) = &figures.saturation {
        saturation.rows(&mut table);
    }
    table.row(
        "overload",
        format!("{} times {} a second", figures.factor, figures.saturation_per_second),
    );
    figures.first_half.rows(&mut table);
    figures.second_half.rows(&mut table);
    table.row("refused", format!("{:.0} %", figures.refused_share * 100.0));
    table.outcome(&figures.outcome);
    table
}
