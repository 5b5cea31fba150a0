//! Pairs of users in direct conversations, one writing to the other: how many durable messages a
//! second, how fast, at what cost, and whether each acknowledged one arrived exactly once.
//!
//! The clocks of both ends are the same process's, so a message's way is measured without any
//! timestamp on the wire: its number is its `ref` and its `client_message_id`.

mod outcome;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use anyhow::{Context, ensure};
use tidings_client::rest::Rest;
use tidings_client::socket::{Identity, Socket};
use tidings_client::target::Target;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
use uuid::Uuid;

use super::count;
use crate::Shared as Common;
use crate::duration;
use crate::proc::Watch;
use crate::report::{Cost, Latency, Progress};
use crate::wire::{self, Frame};

/// REST connections and handshakes at a time while the pairs are prepared.
const PREPARERS: usize = 8;
/// Messages of a run, all pairs together: 16 bytes are kept for each.
const MAX_MESSAGES: usize = 20_000_000;
/// With `--rate`: unanswered messages of a pair beyond which it waits. The wait counts as latency.
const MAX_UNANSWERED: usize = 1_000;
/// After a refusal that does not say how long to wait.
const RETRY: Duration = Duration::from_millis(100);
const TICK: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value = "http://127.0.0.1:8083")]
    url: Target,
    /// Connect the receiving sides here instead: another node of the cluster.
    #[arg(long)]
    receiver_url: Option<Target>,
    #[arg(long, default_value_t = 1_000)]
    pairs: usize,
    /// Each pair keeps so many messages unanswered: as fast as the server goes.
    #[arg(long, default_value_t = 1)]
    in_flight: usize,
    /// Instead, so many messages a second, all pairs together, on a fixed schedule: a message that
    /// could not leave in time is late, not left out.
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    warmup: u64,
    /// After the last send: until then everything must have arrived, and nothing may come twice.
    #[arg(long, default_value = "8s", value_parser = duration)]
    settle: Duration,
    /// Fail below so many durable messages a second.
    #[arg(long, value_name = "PER_SECOND")]
    min_rate: Option<f64>,
    #[command(flatten)]
    common: Common,
}

/// What became of one message.
struct Entry {
    /// When it was due, from the start of the sending.
    due: Duration,
    acked: bool,
    /// Times it was received.
    delivered: u8,
}

/// By the message's number.
type Log = Arc<Mutex<Vec<Entry>>>;

/// When things happen; sending starts at `start`.
#[derive(Clone, Copy)]
struct Plan {
    start: Instant,
    measure: Instant,
    end: Instant,
    settled: Instant,
}

struct Run {
    args: Args,
    plan: OnceLock<Plan>,
    /// True once everybody is connected and there is a plan.
    go: watch::Sender<bool>,
    /// The window in which acknowledgements count.
    measuring: AtomicBool,
    sent: AtomicUsize,
    acked: AtomicUsize,
    delivered: AtomicUsize,
    acked_in_window: AtomicUsize,
    stats: Mutex<Stats>,
}

struct Stats {
    ack: Latency,
    delivery: Latency,
    errors: BTreeMap<String, u64>,
    /// Other frames, and how sockets ended.
    events: BTreeMap<String, u64>,
    ends: BTreeMap<String, u64>,
    /// When the last message was received.
    last: Option<Instant>,
}

impl Run {
    fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().expect("no holder panics")
    }

    fn plan(&self) -> &Plan {
        self.plan.get().expect("the plan is made before anyone is told to go")
    }

    /// Whether a message that was due then is measured.
    fn in_window(&self, due: Duration) -> bool {
        let plan = self.plan();
        (plan.measure..plan.end).contains(&(plan.start + due))
    }
}

pub async fn run(args: Args) -> anyhow::Result<bool> {
    ensure!(args.pairs > 0 && args.in_flight > 0, "--pairs and --in-flight must not be 0");
    ensure!(args.rate.is_none_or(|rate| rate > 0.0 && rate < 1e6), "--rate is out of range");
    let mut progress = Progress::new();
    let watch = Watch::new(args.common.pids.clone())?;
    watch.check_room(args.pairs * 2 + PREPARERS)?;
    let run = Arc::new(Run {
        args,
        plan: OnceLock::new(),
        go: watch::Sender::new(false),
        measuring: AtomicBool::new(false),
        sent: AtomicUsize::new(0),
        acked: AtomicUsize::new(0),
        delivered: AtomicUsize::new(0),
        acked_in_window: AtomicUsize::new(0),
        stats: Mutex::new(Stats {
            ack: Latency::new(),
            delivery: Latency::new(),
            errors: BTreeMap::new(),
            events: BTreeMap::new(),
            ends: BTreeMap::new(),
            last: None,
        }),
    });

    let mut tasks = JoinSet::new();
    let logs = prepare(&run, &mut tasks, &mut progress).await?;
    let start = Instant::now() + TICK;
    let measure = start + Duration::from_secs(run.args.warmup);
    let end = measure + Duration::from_secs(run.args.seconds);
    let plan = Plan { start, measure, end, settled: end + run.args.settle };
    let _: Result<(), Plan> = run.plan.set(plan);
    run.go.send_replace(true);

    follow(&run, plan.measure, &mut progress).await;
    let before = watch.sample()?;
    run.measuring.store(true, Relaxed);
    let started = Instant::now();
    follow(&run, plan.end, &mut progress).await;
    let after = watch.sample()?;
    run.measuring.store(false, Relaxed);
    let seconds = started.elapsed().as_secs_f64();
    follow(&run, plan.settled, &mut progress).await;
    let ends = run.stats().ends.clone();
    while tasks.join_next().await.is_some() {}

    let cost = Cost::between(&before, &after);
    let figures = outcome::figures(&run, &logs, cost, seconds, ends);
    outcome::publish(&run.args, figures)
}

async fn follow(run: &Run, until: Instant, progress: &mut Progress) {
    while Instant::now() < until {
        sleep_until(until.min(Instant::now() + TICK)).await;
        progress.tell(|| {
            let (sent, acked) = (run.sent.load(Relaxed), run.acked.load(Relaxed));
            format!("{sent} sent, {acked} acknowledged, {} delivered", run.delivered.load(Relaxed))
        });
    }
}

struct Pair {
    index: usize,
    conversation: Uuid,
    sender: Socket,
    receiver: Socket,
}

/// Creates the conversations, opens the sockets and starts their tasks.
async fn prepare(
    run: &Arc<Run>,
    tasks: &mut JoinSet<()>,
    progress: &mut Progress,
) -> anyhow::Result<Vec<Log>> {
    let next = Arc::new(AtomicUsize::new(0));
    let (prepared, mut pairs) = mpsc::channel(PREPARERS);
    let mut preparers = JoinSet::new();
    for _ in 0..PREPARERS.min(run.args.pairs) {
        let (run, next, prepared) = (run.clone(), next.clone(), prepared.clone());
        preparers.spawn(async move {
            let mut rest = Rest::connect(&run.args.url).await?;
            loop {
                let index = next.fetch_add(1, Relaxed);
                if index >= run.args.pairs {
                    return anyhow::Ok(());
                }
                let pair = pair(&run.args, &mut rest, index).await?;
                if prepared.send(pair).await.is_err() {
                    return Ok(());
                }
            }
        });
    }
    drop(prepared);
    let mut logs = Vec::new();
    // At once, so that the first sockets answer pings while the last are being opened.
    while let Some(Pair { index, conversation, sender, receiver }) = pairs.recv().await {
        let log = Log::default();
        let sending = Sender {
            run: run.clone(),
            log: log.clone(),
            index,
            conversation,
            unanswered: 0,
            resume: None,
            command: String::new(),
        };
        tasks.spawn(send(sending, sender));
        tasks.spawn(receive(run.clone(), log.clone(), receiver));
        logs.push(log);
        progress.tell(|| format!("{} of {} pairs ready", logs.len(), run.args.pairs));
    }
    while let Some(ended) = preparers.join_next().await {
        ended.context("a preparer")??;
    }
    Ok(logs)
}

async fn pair(args: &Args, rest: &mut Rest, index: usize) -> anyhow::Result<Pair> {
    let receiver_url = args.receiver_url.as_ref().unwrap_or(&args.url);
    let (from, to) = (Uuid::new_v4(), Uuid::new_v4());
    let conversation = rest.create_direct(from, to).await?.id;
    let from = Identity { user: from, device: "load-sender" };
    let sender = Socket::open(&args.url, args.url.source(index), from, true).await;
    let to = Identity { user: to, device: "load-receiver" };
    let source = receiver_url.source(args.pairs + index);
    let receiver = Socket::open(receiver_url, source, to, true).await;
    Ok(Pair {
        index,
        conversation,
        sender: sender.context("a sender")?,
        receiver: receiver.context("a receiver")?,
    })
}

/// Until there is a plan; pings are answered meanwhile. False if the socket has ended.
async fn ready(run: &Run, client: &mut Socket, who: &str) -> bool {
    let mut go = run.go.subscribe();
    loop {
        let closed = tokio::select! {
            _ = go.wait_for(|go| *go) => return true,
            closed = client.pump(|_, _| {}) => closed,
        };
        if let Some(closed) = closed {
            count(&mut run.stats().ends, &format!("{who} {closed}"));
            return false;
        }
    }
}

struct Sender {
    run: Arc<Run>,
    log: Log,
    /// Of the pair.
    index: usize,
    conversation: Uuid,
    unanswered: usize,
    /// Set by a refusal: no sends until then.
    resume: Option<Instant>,
    /// The buffer in which commands are written.
    command: String,
}

async fn send(mut sender: Sender, mut client: Socket) {
    let run = sender.run.clone();
    if !ready(&run, &mut client, "sender").await {
        return;
    }
    let plan = *run.plan();
    sleep_until(plan.start).await;
    let sending = async {
        loop {
            let wake = sender.fill(&mut client, &plan);
            tokio::select! {
                closed = client.pump(|_, text| sender.on_text(text)) => {
                    if let Some(closed) = closed {
                        return count(&mut run.stats().ends, &format!("sender {closed}"));
                    }
                }
                () = sleep_until(wake.unwrap_or(plan.end)), if wake.is_some() => {}
            }
        }
    };
    if timeout_at(plan.settled, sending).await.is_err() {
        client.close().await;
    }
}

impl Sender {
    /// Queues what may leave now; returns when to look again if not for an answer.
    fn fill(&mut self, client: &mut Socket, plan: &Plan) -> Option<Instant> {
        loop {
            let now = Instant::now();
            if let Some(resume) = self.resume.filter(|resume| *resume > now) {
                return Some(resume);
            }
            let number = self.log.lock().expect("no holder panics").len();
            let due = match self.run.args.rate {
                None => now,
                // The pairs take turns on one schedule.
                Some(rate) => {
                    let place = (number * self.run.args.pairs + self.index) as f64;
                    plan.start + Duration::from_secs_f64(place / rate)
                }
            };
            let most = self.run.args.rate.map_or(self.run.args.in_flight, |_| MAX_UNANSWERED);
            if due >= plan.end || self.unanswered >= most {
                return None;
            }
            if due > now {
                return Some(due);
            }
            if self.run.sent.fetch_add(1, Relaxed) >= MAX_MESSAGES {
                self.run.sent.fetch_sub(1, Relaxed);
                return None;
            }
            let entry = Entry { due: due - plan.start, acked: false, delivered: 0 };
            self.log.lock().expect("no holder panics").push(entry);
            self.unanswered += 1;
            wire::send_message(&mut self.command, self.conversation, number);
            client.outbox().text(&self.command);
        }
    }

    fn on_text(&mut self, text: &[u8]) {
        let Some(frame) = Frame::read(text) else {
            return count(&mut self.run.stats().errors, "not JSON");
        };
        match frame.kind {
            "ok" => self.on_ok(&frame),
            "error" => {
                let problem = frame.payload::<wire::Problem>();
                let code = problem.as_ref().map_or("error without code", |p| p.code.as_str());
                count(&mut self.run.stats().errors, code);
                if frame.number().is_some() {
                    self.unanswered = self.unanswered.saturating_sub(1);
                }
                let retry = problem.and_then(|problem| problem.retry_ms);
                self.resume = Some(Instant::now() + retry.map_or(RETRY, Duration::from_millis));
            }
            kind => count(&mut self.run.stats().events, kind),
        }
    }

    fn on_ok(&mut self, frame: &Frame<'_>) {
        let mut log = self.log.lock().expect("no holder panics");
        let Some(entry) = frame.number().and_then(|number| log.get_mut(number)) else {
            return count(&mut self.run.stats().errors, "ok with a foreign ref");
        };
        if std::mem::replace(&mut entry.acked, true) {
            return count(&mut self.run.stats().errors, "acknowledged twice");
        }
        self.unanswered -= 1;
        self.run.acked.fetch_add(1, Relaxed);
        if self.run.measuring.load(Relaxed) {
            self.run.acked_in_window.fetch_add(1, Relaxed);
        }
        if self.run.in_window(entry.due) {
            let latency = self.run.plan().start.elapsed().saturating_sub(entry.due);
            self.run.stats().ack.record(latency);
        }
    }
}

async fn receive(run: Arc<Run>, log: Log, mut client: Socket) {
    if !ready(&run, &mut client, "receiver").await {
        return;
    }
    let plan = *run.plan();
    let receiving = async {
        loop {
            if let Some(closed) = client.pump(|_, text| on_event(&run, &log, text)).await {
                return count(&mut run.stats().ends, &format!("receiver {closed}"));
            }
        }
    };
    if timeout_at(plan.settled, receiving).await.is_err() {
        client.close().await;
    }
}

fn on_event(run: &Run, log: &Log, text: &[u8]) {
    let Some(frame) = Frame::read(text) else {
        return count(&mut run.stats().errors, "not JSON");
    };
    if frame.kind != "new_message" {
        return count(&mut run.stats().events, frame.kind);
    }
    let payload: Option<wire::MessagePayload<'_>> = frame.payload();
    let number = payload.and_then(|payload| payload.message.number());
    let mut log = log.lock().expect("no holder panics");
    let Some(entry) = number.and_then(|number| log.get_mut(number)) else {
        return count(&mut run.stats().errors, "a foreign message");
    };
    entry.delivered = entry.delivered.saturating_add(1);
    let mut stats = run.stats();
    if entry.delivered == 1 {
        run.delivered.fetch_add(1, Relaxed);
        stats.last = Some(Instant::now());
        if run.in_window(entry.due) {
            stats.delivery.record(run.plan().start.elapsed().saturating_sub(entry.due));
        }
    }
}
