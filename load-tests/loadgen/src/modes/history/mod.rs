//! Reading: a page of a long conversation's history, at its end and somewhere in its middle, and the
//! sync of many conversations. How long, and how much of that is the database's time.

mod fill;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use serde_json::{Value, json};
use tidings_client::dice::Dice;
use tidings_client::rest::{Created, Rest};
use tidings_client::target::Target;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::Shared;
use crate::metrics::{self, Query};
use crate::proc::Watch;
use crate::report::{Cost, Latencies, Latency, Progress, Report, Table, latencies, round};
use crate::traffic::prepare::{self, Rests};

/// Messages of a page.
const PAGE: usize = 50;
/// Places in the middle that pages are asked for.
const PLACES: usize = 200;
/// Requests under way at a time; the wait for a place counts as latency.
const AT_ONCE: usize = 64;
/// In each of the many conversations, to be read by a sync.
const UNREAD: usize = 3;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value = "http://127.0.0.1:8083")]
    url: Target,
    /// In the long conversation.
    #[arg(long, default_value_t = 100_000)]
    messages: usize,
    /// Fill it there, with psql: the node's own database. Without it, by sending them all.
    #[arg(long, value_name = "POSTGRES_URL")]
    database: Option<String>,
    /// Where the node serves its metrics, if not at the same URL.
    #[arg(long, value_name = "URL")]
    metrics: Option<Target>,
    /// That a sync is about.
    #[arg(long, default_value_t = 50)]
    conversations: usize,
    /// Requests a second, of each kind in its turn.
    #[arg(long, default_value_t = 100.0, value_name = "PER_SECOND")]
    rate: f64,
    /// For each kind.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    common: Shared,
}

#[derive(Serialize)]
struct Figures {
    url: String,
    messages: u64,
    conversations: usize,
    /// Of the filling.
    fill_seconds: f64,
    reads: Vec<Reads>,
}

#[derive(Serialize)]
struct Reads {
    kind: &'static str,
    per_second: f64,
    seconds: f64,
    latency: Latencies,
    cost: Cost,
    us_per_read: BTreeMap<String, f64>,
    /// The node's use cases of the store: their times are the database's, with the wait for a
    /// connection.
    store: BTreeMap<String, Query>,
    faults: BTreeMap<String, u64>,
}

/// What is read.
struct World {
    user: Uuid,
    long: Created,
    /// Somewhere in the long conversation.
    places: Vec<Uuid>,
    /// The many, with their heads: before what is unread, and after it.
    many: BTreeMap<Uuid, (u64, u64)>,
}

#[derive(Clone, Copy)]
enum Kind {
    NewestPage,
    MiddlePage,
    SyncUnread,
    SyncUpToDate,
}

const KINDS: [(Kind, &str); 4] = [
    (Kind::NewestPage, "newest page"),
    (Kind::MiddlePage, "page in the middle"),
    (Kind::SyncUnread, "sync of what is unread"),
    (Kind::SyncUpToDate, "sync without news"),
];

pub async fn run(mut args: Args) -> anyhow::Result<bool> {
    ensure!(args.messages >= PAGE * 2, "--messages is at least {}", PAGE * 2);
    ensure!(args.rate > 0.0 && args.conversations <= 60, "--rate, or --conversations (up to 60)");
    args.url.key.clone_from(&args.common.jwt_key);
    let mut progress = Progress::new();
    let watch = Watch::new(args.common.pids.clone())?;
    watch.check_room(AT_ONCE + prepare::AT_ONCE)?;
    let started = Instant::now();
    let world = world(&args, &mut progress).await?;
    let mut figures = Figures {
        url: args.url.to_string(),
        messages: world.long.last_seq,
        conversations: args.conversations,
        fill_seconds: round(started.elapsed().as_secs_f64(), 1),
        reads: Vec::new(),
    };
    let mut dice = Dice::new(args.seed);
    for (kind, name) in KINDS {
        figures
            .reads
            .push(read(&args, &world, kind, name, &watch, &mut dice, &mut progress).await?);
    }
    let faults = figures.reads.iter().filter(|reads| !reads.faults.is_empty());
    let faults = faults.map(|reads| format!("{}: {:?}", reads.kind, reads.faults)).collect();
    Report::new("history", faults, figures).publish(table, &args.common)
}

async fn world(args: &Args, progress: &mut Progress) -> anyhow::Result<World> {
    let user = Uuid::new_v4();
    let mut rest = Rest::connect(&args.url).await?;
    let mut many = BTreeMap::new();
    for _ in 0..args.conversations {
        let other = Uuid::new_v4();
        let created = rest.create_direct(other, user).await?;
        for _ in 0..UNREAD {
            rest.send_text(other, created.id, "unread").await?;
        }
        let head = created.last_seq;
        many.insert(created.id, (head, head + UNREAD as u64));
    }
    let long = fill::long(args, &mut rest, user, progress).await?;
    // The node has closed the first one, if that took long.
    let mut rest = Rest::connect(&args.url).await?;
    let mut dice = Dice::new(args.seed);
    let mut places = Vec::new();
    for _ in 0..PLACES {
        let seq = dice.between(long.last_seq / 4, long.last_seq * 3 / 4);
        places.push(message_after(&mut rest, user, long.id, seq).await?);
        progress.tell(|| format!("{} of {PLACES} places found", places.len()));
    }
    Ok(World { user, long, places, many })
}

/// The message behind a place of the log: a sync from there, of one message.
async fn message_after(rest: &mut Rest, user: Uuid, id: Uuid, seq: u64) -> anyhow::Result<Uuid> {
    let before = Uuid::from_u128(id.as_u128() - 1);
    let body =
        json!({ "conversations": { id.to_string(): seq }, "after": before, "to": id, "limit": 1 });
    let answer = rest.post("/api/v1/sync", user, &body).await?;
    let message = &answer["conversations"][0]["messages"][0]["id"];
    message.as_str().and_then(|id| id.parse().ok()).with_context(|| format!("a sync: {answer}"))
}

/// One kind, on schedule.
async fn read(
    args: &Args,
    world: &World,
    kind: Kind,
    name: &'static str,
    watch: &Watch,
    dice: &mut Dice,
    progress: &mut Progress,
) -> anyhow::Result<Reads> {
    let rests = Rests::new(&args.url);
    let count = (args.rate * args.seconds as f64) as usize;
    let places: Vec<usize> = (0..count).map(|_| dice.below(world.places.len())).collect();
    let node = args.metrics.as_ref().unwrap_or(&args.url);
    let (queries, before) = (metrics::scrape(node).await?, watch.sample()?);
    let started = Instant::now();
    let one = async |(turn, place): (usize, &usize)| {
        let due = started + Duration::from_secs_f64(turn as f64 / args.rate);
        sleep_until(due).await;
        let fault = rests.with(async |rest| world.read(rest, kind, *place).await).await;
        (due.elapsed(), fault)
    };
    let mut reading = stream::iter(places.iter().enumerate()).map(one).buffer_unordered(AT_ONCE);
    let (mut latency, mut done) = (Latency::new(), 0);
    let mut faults = BTreeMap::new();
    while let Some((took, fault)) = reading.next().await {
        match fault {
            Ok(()) => latency.record(took),
            Err(error) => super::count(&mut faults, &format!("{error:#}")),
        }
        done += 1;
        progress.tell(|| format!("{name}: {done} of {count}"));
    }
    let seconds = started.elapsed().as_secs_f64();
    let cost = Cost::between(&before, &watch.sample()?);
    Ok(Reads {
        kind: name,
        per_second: round(count as f64 / seconds, 1),
        seconds: round(seconds, 2),
        latency: latencies([("read", &latency)]),
        us_per_read: cost.us_per(count as f64),
        cost,
        store: metrics::scrape(node).await?.queries_since(&queries),
        faults,
    })
}

impl World {
    /// An error: it was refused, or is not what must come.
    async fn read(&self, rest: &mut Rest, kind: Kind, place: usize) -> anyhow::Result<()> {
        let pages = format!("/api/v1/conversations/{}/messages?limit={PAGE}", self.long.id);
        match kind {
            Kind::NewestPage => self.page(rest, &pages).await,
            Kind::MiddlePage => {
                self.page(rest, &format!("{pages}&before_id={}", self.places[place])).await
            }
            Kind::SyncUnread => self.sync(rest, |heads| heads.0, self.many.len() * UNREAD).await,
            Kind::SyncUpToDate => self.sync(rest, |heads| heads.1, 0).await,
        }
    }

    async fn page(&self, rest: &mut Rest, path: &str) -> anyhow::Result<()> {
        let page = rest.get(path, self.user).await?;
        let messages = page["messages"].as_array().map_or(0, Vec::len);
        ensure!(messages == PAGE, "a page of {messages} messages");
        Ok(())
    }

    async fn sync(
        &self,
        rest: &mut Rest,
        cursor: fn(&(u64, u64)) -> u64,
        expected: usize,
    ) -> anyhow::Result<()> {
        let mut cursors: BTreeMap<Uuid, u64> =
            self.many.iter().map(|(id, heads)| (*id, cursor(heads))).collect();
        cursors.insert(self.long.id, self.long.last_seq);
        let body = json!({ "conversations": cursors, "limit": 200 });
        let answer = rest.post("/api/v1/sync", self.user, &body).await?;
        let conversations = answer["conversations"].as_array().into_iter().flatten();
        let count = |entry: &Value| entry["messages"].as_array().map_or(0, Vec::len);
        let messages: usize = conversations.map(count).sum();
        ensure!(messages == expected, "a sync of {messages} messages");
        Ok(())
    }
}

fn table(figures: &Figures) -> Table {
    let mut table = Table::default();
    table.row("target", &figures.url);
    table.row(
        "filled",
        format!("{} messages in one, in {} s", figures.messages, figures.fill_seconds),
    );
    for reads in &figures.reads {
        table.row(reads.kind, format!("{} a second for {} s", reads.per_second, reads.seconds));
        table.latency(&reads.latency);
        table.cost(&reads.cost);
        table.by_process("  µs of CPU per read", &reads.us_per_read);
        for (name, Query { calls, us_per_call }) in &reads.store {
            table.row(format!("  store: {name}"), format!("{calls} calls, {us_per_call} µs each"));
        }
        table.counts("  faults", &reads.faults);
    }
    table
}
