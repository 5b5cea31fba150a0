//! A day of all that users do: they write, type, read, lose their connection and come back, page
//! through histories, and ask what they missed. Each at its own rate, who does what following from a
//! seed.
//!
//! All arrivals are independent of the server (Poisson): what is due waits in the user's queue while
//! he is away, and that counts as latency.

mod schedule;
mod user;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use tidings_client::dice::Dice;
use tidings_client::key::Key;
use tidings_client::target::Target;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use self::schedule::{Action, Schedule};
use self::user::{Order, User};
use super::count;
use crate::proc::{Sample, Watch};
use crate::report::{Cost, Latencies, Latency, Progress, Report, Table, latencies, round};
use crate::traffic::prepare::{self, Rests};
use crate::traffic::{Ledger, Outcome, Room};
use crate::{Shared, duration};

/// Members of a conversation.
const MEMBERS: std::ops::RangeInclusive<u64> = 2..=20;
/// What may be due for one user; beyond, it is a fault of the run.
const ORDERS: usize = 256;
/// Requests for pages under way at a time.
const PAGES: usize = 64;
const TICK: Duration = Duration::from_millis(200);

/// Whom there is, and what they do: all the day's modes take this.
#[derive(Clone, Debug, clap::Args)]
pub struct Life {
    /// A node; given once for each, users take turns.
    #[arg(long = "url", default_value = "http://127.0.0.1:8083")]
    pub urls: Vec<Target>,
    #[arg(long, default_value_t = 500)]
    users: usize,
    /// Of 2 to 20 members.
    #[arg(long, default_value_t = 200)]
    conversations: usize,
    /// All rates: a second, all users together.
    #[arg(long, default_value_t = 100.0)]
    sends: f64,
    #[arg(long, default_value_t = 50.0)]
    typing: f64,
    #[arg(long, default_value_t = 50.0)]
    reads: f64,
    #[arg(long, default_value_t = 5.0)]
    reconnects: f64,
    #[arg(long, default_value_t = 20.0)]
    pages: f64,
    #[arg(long, default_value_t = 10.0)]
    syncs: f64,
    /// What all that users do follows from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// After the end: until then everything must be answered and have arrived.
    #[arg(long, default_value = "10s", value_parser = duration)]
    settle: Duration,
}

impl Life {
    /// All prove themselves with this key.
    pub fn sign(&mut self, key: Option<&Key>) {
        for url in &mut self.urls {
            url.key = key.cloned();
        }
    }

    /// The node of user `index`.
    pub fn url(&self, index: usize) -> &Target {
        &self.urls[index % self.urls.len()]
    }
}

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    life: Life,
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    #[command(flatten)]
    common: Shared,
}

#[derive(Serialize)]
pub struct Figures {
    pub url: String,
    users: usize,
    conversations: usize,
    seed: u64,
    pub seconds: f64,
    /// What was done a second.
    per_second: BTreeMap<String, f64>,
    /// From when something was due to its answer; `delivery` to each recipient who was connected.
    latency: Latencies,
    cost: Cost,
    /// Of all that the node did for one message: its deliveries, receipts and all else.
    us_per_message: BTreeMap<String, f64>,
    us_per_action: BTreeMap<String, f64>,
    pub outcome: Outcome,
}

/// The day, while it goes on.
pub struct Day {
    life: Life,
    ledger: Arc<Ledger>,
    users: Vec<mpsc::Sender<Order>>,
    tasks: JoinSet<()>,
    /// Of each user, his rooms.
    memberships: Vec<Vec<Arc<Room>>>,
    ids: Vec<Uuid>,
    done: Arc<Done>,
    schedule: Schedule,
}

/// By action.
#[derive(Default)]
pub struct Done(Mutex<BTreeMap<Action, Latency>>);

impl Done {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Action, Latency>> {
        self.0.lock().expect("no holder panics")
    }

    fn note(&self, action: Action, due: Instant) {
        self.all().entry(action).or_insert_with(Latency::new).record(due.elapsed());
    }
}

pub async fn run(mut args: Args) -> anyhow::Result<bool> {
    args.life.sign(args.common.jwt_key.as_ref());
    let mut progress = Progress::new();
    let watch = Watch::new(args.common.pids.clone())?;
    let mut day = Day::begin(args.life, &watch, &mut progress).await?;
    let before = watch.sample()?;
    let started = Instant::now();
    let end = started + Duration::from_secs(args.seconds);
    day.go_on(end, &mut progress).await?;
    let (after, seconds) = (watch.sample()?, started.elapsed().as_secs_f64());
    let figures = day.end(&before, &after, seconds, &mut progress).await;
    Report::new("day", figures.outcome.faults(), figures).publish(Figures::table, &args.common)
}

impl Day {
    /// Everybody is there, and nothing happens yet.
    pub async fn begin(life: Life, watch: &Watch, progress: &mut Progress) -> anyhow::Result<Self> {
        ensure!(life.users as u64 >= *MEMBERS.end(), "--users is at least {}", MEMBERS.end());
        ensure!(life.conversations > 0, "--conversations must not be 0");
        watch.check_room(life.users + prepare::AT_ONCE + PAGES)?;
        let ledger = Ledger::new();
        let ids: Vec<Uuid> = (0..life.users).map(|_| Uuid::new_v4()).collect();
        let rooms = rooms(&life, &ids, &ledger, progress).await?;
        let mut memberships = vec![Vec::new(); life.users];
        let mut writers = vec![Vec::new(); life.users];
        let mut heads = vec![BTreeMap::new(); life.users];
        for (room, head, members) in rooms {
            for (writer, member) in members.into_iter().enumerate() {
                heads[member].insert(room.id, head);
                writers[member].push(writer);
                memberships[member].push(room.clone());
            }
        }
        let mut day = Self {
            users: Vec::new(),
            tasks: JoinSet::new(),
            memberships,
            ids,
            done: Arc::default(),
            schedule: Schedule::new(&life, Instant::now()),
            life,
            ledger,
        };
        let (life, ids) = (day.life.clone(), day.ids.clone());
        let open = |index: usize| prepare::open(life.url(index), index, ids[index], user::DEVICE);
        let mut sockets = stream::iter(0..ids.len()).map(open).buffered(prepare::AT_ONCE);
        for (index, (writers, cursors)) in writers.into_iter().zip(heads).enumerate() {
            let socket = sockets.next().await.context("a socket for each user")?;
            let (orders, due) = mpsc::channel(ORDERS);
            let user = User::new(&day, index, writers, cursors);
            day.tasks.spawn(user.run(socket.context("a user")?, due));
            day.users.push(orders);
            progress.tell(|| format!("{} of {} users there", index + 1, day.life.users));
        }
        day.schedule = Schedule::new(&day.life, Instant::now());
        Ok(day)
    }

    /// What is due until then.
    pub async fn go_on(&mut self, end: Instant, progress: &mut Progress) -> anyhow::Result<()> {
        let rests: Vec<_> = self.life.urls.iter().map(|url| Arc::new(Rests::new(url))).collect();
        let mut pages = JoinSet::new();
        while let Some((due, action)) = self.schedule.next_before(end) {
            sleep_until(due).await;
            let index = self.schedule.dice.below(self.users.len());
            let place = self.schedule.dice.below(usize::MAX);
            let room = self.memberships[index].get(place % self.memberships[index].len().max(1));
            match (action, room) {
                (Action::Page, Some(room)) if pages.len() < PAGES => {
                    pages.spawn(page(
                        rests[index % rests.len()].clone(),
                        self.done.clone(),
                        self.ids[index],
                        room.id,
                        due,
                    ));
                }
                (Action::Page, _) => {}
                _ => {
                    if self.users[index].try_send(Order { action, place, due }).is_err() {
                        self.ledger.error("a user's queue is full");
                    }
                }
            }
            while let Some(ended) = pages.try_join_next() {
                if let Err(error) = ended.context("a page").flatten() {
                    count(&mut self.ledger.counts().errors, &format!("{error:#}"));
                }
            }
            progress.tell(|| self.told());
        }
        sleep_until(end).await;
        Ok(())
    }

    fn told(&self) -> String {
        let done = self.done.all();
        let each = done.iter().map(|(action, latency)| format!("{action:?} {}", latency.count()));
        format!("{}; {}", self.ledger.told(), each.collect::<Vec<_>>().join(", ").to_lowercase())
    }

    pub async fn end(
        mut self,
        before: &Sample,
        after: &Sample,
        seconds: f64,
        progress: &mut Progress,
    ) -> Figures {
        let settled = Instant::now() + self.life.settle;
        while Instant::now() < settled {
            sleep(TICK).await;
            progress.tell(|| self.told());
        }
        let outcome = self.ledger.outcome();
        self.users.clear();
        self.ledger.close(&mut self.tasks).await;
        let cost = Cost::between(before, after);
        let done = self.done.all();
        let mut latency = self.ledger.phase(0, |phase| phase.latency());
        let named: Vec<_> = done
            .iter()
            .map(|(action, latency)| (format!("{action:?}").to_lowercase(), latency))
            .collect();
        latency.extend(latencies(named.iter().map(|(what, latency)| (what.as_str(), *latency))));
        let mut per_second: BTreeMap<String, f64> = named
            .iter()
            .map(|(what, latency)| (what.clone(), round(latency.count() as f64 / seconds, 1)))
            .collect();
        per_second.insert("send".to_owned(), round(outcome.acked as f64 / seconds, 1));
        let actions: u64 = named.iter().map(|(_, latency)| latency.count()).sum();
        Figures {
            url: self.life.urls.iter().map(Target::to_string).collect::<Vec<_>>().join(" "),
            users: self.life.users,
            conversations: self.life.conversations,
            seed: self.life.seed,
            seconds: round(seconds, 1),
            per_second,
            latency,
            us_per_message: cost.us_per(outcome.acked as f64),
            us_per_action: cost.us_per(actions as f64 + outcome.acked as f64),
            cost,
            outcome,
        }
    }
}

/// The conversations with their heads, and who is in each.
async fn rooms(
    life: &Life,
    ids: &[Uuid],
    ledger: &Ledger,
    progress: &mut Progress,
) -> anyhow::Result<Vec<(Arc<Room>, u64, Vec<usize>)>> {
    let mut dice = Dice::new(life.seed);
    let groups: Vec<Vec<usize>> = (0..life.conversations)
        .map(|number| {
            let size = dice.between(*MEMBERS.start(), *MEMBERS.end()) as usize;
            // Each user is somewhere if there are enough places.
            let mut members = vec![number % ids.len()];
            while members.len() < size {
                let member = dice.below(ids.len());
                if !members.contains(&member) {
                    members.push(member);
                }
            }
            members
        })
        .collect();
    let rests = Rests::new(life.url(0));
    let create = async |members: &Vec<usize>| {
        let others: Vec<Uuid> = members[1..].iter().map(|member| ids[*member]).collect();
        let owner = ids[members[0]];
        rests.with(async |rest| rest.create_group(owner, "day", &others).await).await
    };
    // In order, so that a seed means the same whatever is ready first.
    let mut created = stream::iter(&groups).map(create).buffered(prepare::AT_ONCE);
    let mut rooms = Vec::new();
    while let Some(created) = created.next().await {
        let (created, members) = (created?, groups[rooms.len()].clone());
        let room = ledger.add_room(created.id, members.len(), members.len());
        rooms.push((room, created.last_seq, members));
        progress.tell(|| format!("{} of {} conversations created", rooms.len(), groups.len()));
    }
    Ok(rooms)
}

async fn page(
    rests: Arc<Rests>,
    done: Arc<Done>,
    user: Uuid,
    room: Uuid,
    due: Instant,
) -> anyhow::Result<()> {
    let path = format!("/api/v1/conversations/{room}/messages?limit=50");
    rests.with(async |rest| rest.get(&path, user).await).await?;
    done.note(Action::Page, due);
    Ok(())
}

impl Figures {
    pub fn table(&self) -> Table {
        let mut table = Table::default();
        table.row("target", &self.url);
        let Self { users, conversations, seed, seconds, .. } = self;
        table.row("life", format!("{users} users in {conversations} conversations, seed {seed}"));
        table.by_process(format!("a second, for {seconds} s"), &self.per_second);
        table.latency(&self.latency);
        table.cost(&self.cost);
        table.by_process("  µs of CPU per message", &self.us_per_message);
        table.by_process("  µs of CPU per action", &self.us_per_action);
        table.outcome(&self.outcome);
        table
    }
}
