//! One or a few durable writers in groups of many sizes, all members online: what a delivery costs,
//! how many a second there are, and how long they take.
//!
//! At the limit, a message counts as under way until its last member has it, so that the pace is
//! that of the deliveries and nothing piles up. Then the same groups once more on a schedule, at a
//! share of what the limit was: the latency of a server that is not at its limit.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
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

const MAX_SIZE: usize = 1_000;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value = "http://127.0.0.1:8083")]
    url: Target,
    /// Connect every second member here instead: another node of the cluster.
    #[arg(long)]
    receiver_url: Option<Target>,
    /// Members of a group, all online; one step of the run for each.
    #[arg(long, value_delimiter = ',', default_values_t = [2, 10, 100, 1_000])]
    sizes: Vec<usize>,
    /// Groups of a step; without it one, and as many of the small ones as have 100 members.
    #[arg(long)]
    groups: Option<usize>,
    /// Members of each group who write.
    #[arg(long, default_value_t = 1)]
    writers: usize,
    /// Each writer keeps so many messages undelivered: as fast as the server delivers.
    #[arg(long, default_value_t = 4)]
    in_flight: usize,
    /// Then on a schedule: this share of the rate found; 0 leaves that out.
    #[arg(long, default_value_t = 0.5)]
    share: f64,
    /// Instead of a share, so many messages a second, all writers together.
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,
    #[command(flatten)]
    window: Window,
    /// After the last send of a step: until then everything must have arrived.
    #[arg(long, default_value = "5s", value_parser = duration)]
    settle: Duration,
    #[command(flatten)]
    common: Shared,
}

#[derive(Serialize)]
struct Figures {
    url: String,
    receiver_url: Option<String>,
    writers: usize,
    steps: Vec<Step>,
}

#[derive(Serialize)]
struct Step {
    members: usize,
    groups: usize,
    saturation: Measured,
    scheduled: Option<Measured>,
    outcome: Outcome,
}

pub async fn run(mut args: Args) -> anyhow::Result<bool> {
    ensure!(
        args.sizes.iter().all(|size| (2..=MAX_SIZE).contains(size) && args.writers <= *size),
        "--sizes are 2 to {MAX_SIZE}, and at least --writers"
    );
    ensure!(args.writers > 0 && args.in_flight > 0, "--writers and --in-flight must not be 0");
    ensure!((0.0..1.0).contains(&args.share), "--share is below 1");
    args.url.key.clone_from(&args.common.jwt_key);
    let mut progress = Progress::new();
    let watch = Watch::new(args.common.pids.clone())?;
    let mut figures = Figures {
        url: args.url.to_string(),
        receiver_url: args.receiver_url.as_ref().map(Target::to_string),
        writers: args.writers,
        steps: Vec::new(),
    };
    for members in args.sizes.clone() {
        let groups = args.groups.unwrap_or((100 / members).max(1));
        watch.check_room(groups * members + prepare::AT_ONCE)?;
        figures.steps.push(step(&args, &watch, members, groups, &mut progress).await?);
    }
    let faults = figures.steps.iter().flat_map(|step| {
        let faults = step.outcome.faults().into_iter();
        faults.map(|fault| format!("groups of {}: {fault}", step.members))
    });
    Report::new("group", faults.collect(), figures).publish(table, &args.common)
}

async fn step(
    args: &Args,
    watch: &Watch,
    members: usize,
    groups: usize,
    progress: &mut Progress,
) -> anyhow::Result<Step> {
    let ledger = Ledger::new();
    let mut tasks = JoinSet::new();
    let rests = Rests::new(&args.url);
    for group in 0..groups {
        open(args, &rests, &ledger, (group, groups), members, &mut tasks).await?;
        progress.tell(|| format!("{} of {groups} groups of {members} ready", group + 1));
    }
    let pace = Pace::Undelivered(args.in_flight);
    let saturation = measure(&ledger, watch, args.window, pace, progress).await?;
    ledger.settle();
    follow(&ledger, Instant::now() + Duration::from_secs(1), progress).await;
    let share = saturation.rate(&ledger) * args.share;
    let rate = args.rate.or((share > 0.0).then_some(share));
    let scheduled = match rate {
        Some(rate) => {
            let pace = Pace::Rate(rate.max(1.0).round());
            Some(measure(&ledger, watch, args.window, pace, progress).await?)
        }
        None => None,
    };
    ledger.settle();
    follow(&ledger, Instant::now() + args.settle, progress).await;
    let outcome = ledger.outcome();
    ledger.close(&mut tasks).await;
    Ok(Step {
        members,
        groups,
        saturation: saturation.measured(&ledger),
        scheduled: scheduled.map(|stretch| stretch.measured(&ledger)),
        outcome,
    })
}

/// Group `number` of so many: its conversation, and a socket for each member.
async fn open(
    args: &Args,
    rests: &Rests,
    ledger: &Arc<Ledger>,
    (number, groups): (usize, usize),
    members: usize,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let users: Vec<Uuid> = (0..members).map(|_| Uuid::new_v4()).collect();
    let title = format!("group {number}");
    let created = rests.with(async |rest| rest.create_group(users[0], &title, &users[1..]).await);
    let room = ledger.add_room(created.await?.id, members, args.writers);
    let target = |index: usize| match &args.receiver_url {
        Some(other) if index % 2 == 1 => other,
        _ => &args.url,
    };
    let sockets = stream::iter(users.iter().enumerate()).map(async |(index, user)| {
        let place = number * members + index;
        let socket = prepare::open(target(index), place, *user, "load").await;
        anyhow::Ok((index, socket.context("a member")?))
    });
    let sockets: Vec<_> = sockets.buffer_unordered(prepare::AT_ONCE).try_collect().await?;
    for (index, socket) in sockets {
        let member = Member::new(ledger.clone(), [room.clone()]);
        let turn = (number * args.writers + index, groups * args.writers);
        let writer = (index < args.writers).then(|| Writer::new(room.clone(), index, turn));
        tasks.spawn(member.run(socket, writer, "member"));
    }
    Ok(())
}

fn table(figures: &Figures) -> Table {
    let mut table = Table::default();
    let to = figures.receiver_url.as_ref().map_or(String::new(), |url| format!(" and {url}"));
    table.row("target", format!("{}{to}", figures.url));
    for step in &figures.steps {
        table.row("", "");
        table.row(
            format!("groups of {}", step.members),
            format!("{}, with {} writers each", step.groups, figures.writers),
        );
        for measured in std::iter::once(&step.saturation).chain(&step.scheduled) {
            measured.rows(&mut table);
        }
        table.outcome(&step.outcome);
    }
    table
}
