//! All sockets of a crowd are cut at once, while others go on talking: how long until all are back
//! and hold what they missed, what each return costs, and what the talk feels of it.
//!
//! The crowd comes back as the reference client does: with full jitter, later after each failure,
//! when the server says if it says so. Each user is in some conversations, whose last messages he
//! has not read; his `sync` brings them, page by page, and must bring all.

mod client;
mod outcome;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::ensure;
use futures_util::{StreamExt, stream};
use tidings_client::target::Target;
use tokio::runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use crate::modes::chat;
use crate::proc::{Sample, Watch};
use crate::report::{Latency, Progress};
use crate::traffic::prepare::{self, Rests};
use crate::traffic::{Ledger, Pace, follow};
use crate::{Shared, duration};

/// From the last opened socket to the measurement before the storm, and after it.
const SETTLE: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_millis(100);

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value = "http://127.0.0.1:8083")]
    url: Target,
    /// The crowd that is cut.
    #[arg(long, default_value_t = 10_000)]
    sockets: usize,
    /// Conversations of each of them.
    #[arg(long, default_value_t = 3)]
    conversations: usize,
    /// Of each conversation.
    #[arg(long, default_value_t = 10)]
    members: usize,
    /// Messages of each conversation that all have still to read.
    #[arg(long, default_value_t = 3)]
    missed: usize,
    /// Sockets opened in a second before the storm.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    open_rate: u32,
    /// Pairs of others that talk all the time.
    #[arg(long, default_value_t = 100)]
    pairs: usize,
    /// Their messages a second, all together.
    #[arg(long, default_value_t = 500.0, value_name = "PER_SECOND")]
    rate: f64,
    /// Of talk before the storm, to compare with.
    #[arg(long, default_value = "10s", value_parser = duration)]
    before: Duration,
    /// How the connections end.
    #[arg(long, value_enum, default_value_t = Cut::Reset)]
    cut: Cut,
    /// The first try to come back is made at a random moment of this time, 0 is at once; without
    /// it, as the reference client does.
    #[arg(long, value_parser = duration)]
    spread: Option<Duration>,
    /// All must be back by then.
    #[arg(long, default_value = "120s", value_parser = duration)]
    deadline: Duration,
    /// After the last send: until then everything must have arrived.
    #[arg(long, default_value = "8s", value_parser = duration)]
    settle: Duration,
    /// Fail if it takes longer until all are back and hold what they missed.
    #[arg(long, value_parser = duration)]
    max_back: Option<Duration>,
    #[command(flatten)]
    common: Shared,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Cut {
    /// As when a network or a proxy is gone.
    Reset,
    /// With a close frame, as an update of the clients would.
    Close,
}

/// What the crowd does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Listen,
    Return { cut: Instant },
    Close,
}

/// One of the crowd: what it is a member of, and up to where it holds that.
struct User {
    id: Uuid,
    cursors: BTreeMap<Uuid, u64>,
}

#[derive(Default)]
struct Counts {
    opened: AtomicUsize,
    failed: AtomicUsize,
    returned: AtomicUsize,
    resumed: AtomicUsize,
    /// Messages that the syncs brought.
    caught_up: AtomicUsize,
}

struct Crowd {
    args: Args,
    users: Vec<User>,
    stage: watch::Sender<Stage>,
    counts: Counts,
    stats: Mutex<Stats>,
}

struct Stats {
    handshake: Latency,
    resume: Latency,
    /// From the cut.
    connected: Latency,
    back: Latency,
    /// Why something was tried again.
    retries: BTreeMap<String, u64>,
    ends: BTreeMap<String, u64>,
}

impl Crowd {
    fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().expect("no holder panics")
    }
}

pub async fn run(mut args: Args) -> anyhow::Result<bool> {
    ensure!(args.members >= 2 && args.sockets >= args.members, "--members is 2 to --sockets");
    ensure!(args.pairs > 0 && args.rate > 0.0, "--pairs and --rate must not be 0");
    args.url.key.clone_from(&args.common.jwt_key);
    let mut progress = Progress::new();
    let watch = Watch::new(args.common.pids.clone())?;
    watch.check_room(args.sockets + args.pairs * 2 + prepare::AT_ONCE)?;
    let users = conversations(&args, &mut progress).await?;
    let crowd = Arc::new(Crowd {
        users,
        stage: watch::Sender::new(Stage::Listen),
        counts: Counts::default(),
        stats: Mutex::new(Stats {
            handshake: Latency::new(),
            resume: Latency::new(),
            connected: Latency::new(),
            back: Latency::new(),
            retries: BTreeMap::new(),
            ends: BTreeMap::new(),
        }),
        args,
    });
    let args = &crowd.args;

    // A thread of its own: ten thousand that come back at once must not hold up those whose
    // latency is measured.
    let own = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let crowds = own.handle().clone();
    let mut samples = vec![watch.sample()?];
    let mut tasks = JoinSet::new();
    let connect_seconds = open(&crowd, &mut tasks, &crowds, &mut progress).await?;
    samples.push(watch.sample()?);
    sleep(SETTLE).await;
    leave_unread(&crowd, &mut progress).await?;
    let ledger = Ledger::new();
    let mut talk = JoinSet::new();
    chat::pairs(&ledger, &args.url, &args.url, args.pairs, &mut talk, &mut progress).await?;
    ledger.send(Pace::Rate(args.rate), false);
    follow(&ledger, Instant::now() + SETTLE, &mut progress).await;

    samples.push(watch.sample()?);
    let phases = [ledger.begin_phase()];
    let started = Instant::now();
    follow(&ledger, started + args.before, &mut progress).await;
    samples.push(watch.sample()?);
    let phases = [phases[0], ledger.begin_phase()];
    let cut = Instant::now();
    let mut seconds = vec![(cut - started).as_secs_f64()];
    crowd.stage.send_replace(Stage::Return { cut });
    let peak = returning(&crowd, &watch, cut, &mut progress).await?;
    seconds.push(cut.elapsed().as_secs_f64());
    samples.push(watch.sample()?);
    ledger.begin_phase();
    follow(&ledger, Instant::now() + SETTLE, &mut progress).await;
    ledger.settle();
    follow(&ledger, Instant::now() + args.settle, &mut progress).await;
    let talk_outcome = ledger.outcome();
    samples.push(watch.sample()?);
    ledger.close(&mut talk).await;
    let ends = crowd.stats().ends.clone();
    crowd.stage.send_replace(Stage::Close);
    while tasks.join_next().await.is_some() {}
    own.shutdown_background();
    outcome::publish(outcome::Run {
        crowd: &crowd,
        ledger: &ledger,
        samples: &samples,
        connect_seconds,
        phases,
        seconds: [seconds[0], seconds[1]],
        peak,
        ends,
        talk: talk_outcome,
    })
}

/// The users, each in as many conversations as wanted, with neighbours that differ.
async fn conversations(args: &Args, progress: &mut Progress) -> anyhow::Result<Vec<User>> {
    let mut users: Vec<User> =
        (0..args.sockets).map(|_| User { id: Uuid::new_v4(), cursors: BTreeMap::new() }).collect();
    let per_layer = args.sockets / args.members;
    let groups: Vec<Vec<usize>> = (0..args.conversations * per_layer)
        .map(|number| {
            let (layer, first) = (number / per_layer, number % per_layer * args.members);
            (0..args.members).map(|at| (first + layer + at) % args.sockets).collect()
        })
        .collect();
    let ids: Vec<Uuid> = users.iter().map(|user| user.id).collect();
    let rests = Rests::new(&args.url);
    let create = async |members: &Vec<usize>| {
        let others: Vec<Uuid> = members[1..].iter().map(|member| ids[*member]).collect();
        let owner = ids[members[0]];
        let created = rests.with(async |rest| rest.create_group(owner, "storm", &others).await);
        anyhow::Ok((members.clone(), created.await?))
    };
    let mut ready = stream::iter(&groups).map(create).buffer_unordered(prepare::AT_ONCE);
    let mut count = 0;
    while let Some(created) = ready.next().await {
        let (members, created) = created?;
        for member in members {
            users[member].cursors.insert(created.id, created.last_seq);
        }
        count += 1;
        progress.tell(|| format!("{count} of {} conversations created", groups.len()));
    }
    Ok(users)
}

/// The crowd, at the rate; the seconds that it took.
async fn open(
    crowd: &Arc<Crowd>,
    tasks: &mut JoinSet<()>,
    crowds: &runtime::Handle,
    progress: &mut Progress,
) -> anyhow::Result<f64> {
    let Counts { opened, failed, .. } = &crowd.counts;
    let total = crowd.args.sockets;
    let told = || format!("{} of {total} sockets open", opened.load(Relaxed));
    let started = Instant::now();
    for index in 0..total {
        let pause = Duration::from_secs_f64(index as f64 / f64::from(crowd.args.open_rate));
        sleep_until(started + pause).await;
        tasks.spawn_on(client::run(crowd.clone(), index), crowds);
        progress.tell(told);
    }
    while opened.load(Relaxed) + failed.load(Relaxed) < total {
        sleep(TICK).await;
        progress.tell(told);
    }
    let seconds = started.elapsed().as_secs_f64();
    let why = || crowd.stats().ends.clone();
    ensure!(failed.load(Relaxed) == 0, "not all sockets could be opened: {:?}", why());
    Ok(seconds)
}

/// Messages that go to open sockets, whose users do not move their cursors: what they will have
/// missed.
async fn leave_unread(crowd: &Crowd, progress: &mut Progress) -> anyhow::Result<()> {
    // Each conversation by the first of its members.
    let mut writers: BTreeMap<Uuid, Uuid> = BTreeMap::new();
    for user in &crowd.users {
        for conversation in user.cursors.keys() {
            writers.entry(*conversation).or_insert(user.id);
        }
    }
    let rests = Rests::new(&crowd.args.url);
    let write = async |(conversation, writer): (&Uuid, &Uuid)| {
        for _ in 0..crowd.args.missed {
            rests.with(async |rest| rest.send_text(*writer, *conversation, "missed").await).await?;
        }
        anyhow::Ok(())
    };
    let mut written = stream::iter(&writers).map(write).buffer_unordered(prepare::AT_ONCE);
    let mut count = 0;
    while let Some(done) = written.next().await {
        done?;
        count += 1;
        progress.tell(|| format!("{count} of {} conversations written to", writers.len()));
    }
    Ok(())
}

/// Until all are back, or the deadline; the sample with the most memory of the node.
async fn returning(
    crowd: &Crowd,
    watch: &Watch,
    cut: Instant,
    progress: &mut Progress,
) -> anyhow::Result<Sample> {
    let total = crowd.args.sockets;
    let node = |sample: &Sample| sample.usage.get("node").map_or(0, |node| node.memory.rss_bytes);
    let mut peak = watch.sample()?;
    let mut rounds = 0;
    while crowd.counts.resumed.load(Relaxed) < total && cut.elapsed() < crowd.args.deadline {
        sleep(TICK).await;
        rounds += 1;
        if rounds % 5 == 0 {
            let sample = watch.sample()?;
            if node(&sample) > node(&peak) {
                peak = sample;
            }
        }
        progress.tell(|| {
            let Counts { returned, resumed, .. } = &crowd.counts;
            let (returned, resumed) = (returned.load(Relaxed), resumed.load(Relaxed));
            format!("{returned} of {total} connected again, {resumed} resumed")
        });
    }
    Ok(peak)
}
