//! Pairs of users in direct conversations, one writing to the other: how many durable messages a
//! second, how fast, at what cost, and whether each acknowledged one arrived exactly once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use tidings_client::target::Target;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use crate::proc::Watch;
use crate::report::{Progress, Report, Table};
use crate::traffic::prepare::{self, Rests};
use crate::traffic::{Ledger, Measured, Member, Outcome, Pace, Window, Writer, follow, measure};
use crate::{Shared, duration};

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value = "http://127.0.0.1:8083")]
    url: Target,
    /// Connect the receiving sides here instead: another node of the cluster.
    #[arg(long)]
    receiver_url: Option<Target>,
    #[arg(long, default_value_t = 1_000)]
    pairs: usize,
    /// The receiving sides are not there: each message goes to the offline records.
    #[arg(long, conflicts_with = "receiver_url")]
    absent: bool,
    /// Each pair keeps so many messages unanswered: as fast as the server goes.
    #[arg(long, default_value_t = 1)]
    in_flight: usize,
    /// Instead, so many messages a second, all pairs together, on a fixed schedule: a message that
    /// could not leave in time is late, not left out.
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,
    #[command(flatten)]
    window: Window,
    /// After the last send: until then everything must have arrived, and nothing may come twice.
    #[arg(long, default_value = "8s", value_parser = duration)]
    settle: Duration,
    /// Fail below so many durable messages a second.
    #[arg(long, value_name = "PER_SECOND")]
    min_rate: Option<f64>,
    #[command(flatten)]
    common: Shared,
}

#[derive(Serialize)]
struct Figures {
    url: String,
    receiver_url: Option<String>,
    pairs: usize,
    #[serde(flatten)]
    measured: Measured,
    /// Of the whole run, warm-up included.
    outcome: Outcome,
}

pub async fn run(mut args: Args) -> anyhow::Result<bool> {
    ensure!(args.pairs > 0 && args.in_flight > 0, "--pairs and --in-flight must not be 0");
    ensure!(args.rate.is_none_or(|rate| rate > 0.0 && rate < 1e6), "--rate is out of range");
    args.url.key.clone_from(&args.common.jwt_key);
    let mut receivers = args.receiver_url.clone().unwrap_or_else(|| args.url.clone());
    receivers.key.clone_from(&args.common.jwt_key);
    let mut progress = Progress::new();
    let watch = Watch::new(args.common.pids.clone())?;
    watch.check_room(args.pairs * 2 + prepare::AT_ONCE)?;
    let ledger = Ledger::new();
    let mut tasks = JoinSet::new();
    let readers = (!args.absent).then_some(&receivers);
    open(&ledger, &args.url, readers, args.pairs, &mut tasks, &mut progress).await?;

    let pace = Pace::of(args.rate, args.in_flight);
    let stretch = measure(&ledger, &watch, args.window, pace, &mut progress).await?;
    ledger.settle();
    follow(&ledger, Instant::now() + args.settle, &mut progress).await;
    let outcome = ledger.outcome();
    ledger.close(&mut tasks).await;

    let figures = Figures {
        url: args.url.to_string(),
        receiver_url: args.receiver_url.as_ref().map(Target::to_string),
        pairs: args.pairs,
        measured: stretch.measured(&ledger),
        outcome,
    };
    let mut faults = figures.outcome.faults();
    let rate = figures.measured.messages_per_second;
    if let Some(min) = args.min_rate.filter(|min| rate < *min) {
        faults.push(format!("{rate} durable messages a second, at least {min} wanted"));
    }
    Report::new("chat", faults, figures).publish(table, &args.common)
}

/// Creates the conversations, opens the sockets and starts their tasks: at once, so that the first
/// ones answer pings while the last are being opened.
pub async fn pairs(
    ledger: &Arc<Ledger>,
    from: &Target,
    to: &Target,
    pairs: usize,
    tasks: &mut JoinSet<()>,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    open(ledger, from, Some(to), pairs, tasks, progress).await
}

/// The same; without `to` nobody reads.
async fn open(
    ledger: &Arc<Ledger>,
    from: &Target,
    to: Option<&Target>,
    pairs: usize,
    tasks: &mut JoinSet<()>,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let rests = Rests::new(from);
    let pair = async |index: usize| {
        let (writer, reader) = (Uuid::new_v4(), Uuid::new_v4());
        let created = rests.with(async |rest| rest.create_direct(writer, reader).await).await?;
        let writer = prepare::open(from, index, writer, "load-writer").await.context("a writer")?;
        let reader = match to {
            Some(to) => Some(prepare::open(to, pairs + index, reader, "load-reader").await),
            None => None,
        };
        anyhow::Ok((index, created.id, writer, reader.transpose().context("a reader")?))
    };
    let mut ready = stream::iter(0..pairs).map(pair).buffer_unordered(prepare::AT_ONCE);
    let mut count = 0;
    while let Some(pair) = ready.next().await {
        let (index, id, writer, reader) = pair?;
        let room = ledger.add_room(id, 1 + reader.iter().len(), 1);
        let member = || Member::new(ledger.clone(), [room.clone()]);
        let writing = Writer::new(room.clone(), 0, (index, pairs));
        tasks.spawn(member().run(writer, Some(writing), "writer"));
        if let Some(reader) = reader {
            tasks.spawn(member().run(reader, None, "reader"));
        }
        count += 1;
        progress.tell(|| format!("{count} of {pairs} pairs ready"));
    }
    Ok(())
}

fn table(figures: &Figures) -> Table {
    let mut table = Table::default();
    let to = figures.receiver_url.as_ref().map_or(String::new(), |url| format!(" to {url}"));
    table.row("target", format!("{}{to}", figures.url));
    table.row("pairs", figures.pairs.to_string());
    figures.measured.rows(&mut table);
    table.outcome(&figures.outcome);
    table
}
