//! Sockets that are open and say nothing: what one costs the server in memory and CPU.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::ensure;
use serde::Serialize;
use tidings_client::socket::{CONNECT_TIMEOUT, Identity, Socket};
use tidings_client::target::Target;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::count;
use crate::Shared as Common;
use crate::proc::{Sample, Watch};
use crate::report::{Cost, Progress, Report, Table, growth, round, rss};
use crate::{duration, wire};

/// Handshakes under way at a time.
const HANDSHAKES: usize = 256;
/// After the last `hello`, until what the handshakes needed has been given back.
const SETTLE: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_millis(100);

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value = "ws://127.0.0.1:8083/ws")]
    url: Target,
    #[arg(long, default_value_t = 10_000)]
    sockets: usize,
    /// Sockets opened in a second, and commands sent in a second after that.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// How long they are held open, silent.
    #[arg(long, default_value = "30s", value_parser = duration)]
    hold: Duration,
    /// Then let each socket send one large command, and measure the memory again.
    #[arg(long)]
    after_traffic: bool,
    /// How long after the traffic.
    #[arg(long, default_value = "60s", value_parser = duration)]
    rest: Duration,
    /// Of that command.
    #[arg(long, default_value_t = 6_000, value_parser = clap::value_parser!(u32).range(64..60_000))]
    command_bytes: u32,
    /// Connect as an existing client does, without the subprotocol.
    #[arg(long)]
    classic: bool,
    /// Fail if an idle socket takes more of the node's memory.
    #[arg(long, value_name = "BYTES")]
    max_bytes_per_socket: Option<f64>,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Open, hold; answer pings.
    Hold,
    /// Send one command, then hold.
    Talk,
    Close,
}

struct Run {
    args: Args,
    ping: String,
    phase: watch::Sender<Phase>,
    /// Sockets whose `hello` came.
    opened: AtomicUsize,
    failed: AtomicUsize,
    /// Commands that were answered.
    answered: AtomicUsize,
    /// How sockets failed or ended, other than by our own will.
    ends: Mutex<BTreeMap<String, u64>>,
}

#[derive(Serialize)]
struct Figures {
    url: String,
    sockets: usize,
    opened: usize,
    connect_seconds: f64,
    connect_cost: Cost,
    connect_us_per_socket: BTreeMap<String, f64>,
    /// Resident bytes by process: before the first socket, with all open, after the hold.
    rss_before: BTreeMap<String, u64>,
    rss_open: BTreeMap<String, u64>,
    rss_held: BTreeMap<String, u64>,
    /// Growth of the resident bytes from before to after the hold.
    bytes_per_socket: BTreeMap<String, f64>,
    fds_held: BTreeMap<String, usize>,
    hold_seconds: f64,
    hold_cost: Cost,
    /// CPU of one idle socket in a second.
    hold_us_per_socket_second: BTreeMap<String, f64>,
    after_traffic: Option<AfterTraffic>,
    rss_closed: BTreeMap<String, u64>,
    ends: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct AfterTraffic {
    command_bytes: u32,
    answered: usize,
    rest_seconds: f64,
    rss: BTreeMap<String, u64>,
    bytes_per_socket: BTreeMap<String, f64>,
    cost: Cost,
    us_per_command: BTreeMap<String, f64>,
}

pub async fn run(args: Args) -> anyhow::Result<bool> {
    ensure!(args.sockets > 0, "--sockets must not be 0");
    let mut progress = Progress::new();
    let watch = Watch::new(args.common.pids.clone())?;
    watch.check_room(args.sockets)?;
    let run = Arc::new(Run {
        ping: wire::padded_ping(args.command_bytes as usize),
        args,
        phase: watch::Sender::new(Phase::Hold),
        opened: AtomicUsize::new(0),
        failed: AtomicUsize::new(0),
        answered: AtomicUsize::new(0),
        ends: Mutex::default(),
    });
    let mut tasks = JoinSet::new();

    let before = watch.sample()?;
    let started = Instant::now();
    open_all(&run, &mut tasks, &mut progress).await;
    let opened = run.opened.load(Relaxed);
    let failures = run.ends.lock().expect("no holder panics").clone();
    ensure!(opened > 0, "no socket could be opened: {failures:?}");
    let connect_seconds = started.elapsed().as_secs_f64();
    let connected = watch.sample()?;
    sleep(SETTLE).await;
    let open = watch.sample()?;

    let hold = Instant::now();
    hold_until(hold + run.args.hold, || format!("{opened} sockets held"), &mut progress).await;
    let held = watch.sample()?;
    let hold_seconds = hold.elapsed().as_secs_f64();

    let after_traffic = if run.args.after_traffic {
        Some(talk(&run, &watch, &before, &held, &mut progress).await?)
    } else {
        None
    };

    let ends = run.ends.lock().expect("no holder panics").clone();
    run.phase.send_replace(Phase::Close);
    while tasks.join_next().await.is_some() {
        progress.tell(|| format!("closing, {} left", tasks.len()));
    }
    sleep(SETTLE).await;
    let closed = watch.sample()?;

    let sockets = opened.max(1) as f64;
    let connect_cost = Cost::between(&before, &connected);
    let hold_cost = Cost::between(&open, &held);
    let figures = Figures {
        url: format!("ws://{}{}", run.args.url.host, run.args.url.ws_path),
        sockets: run.args.sockets,
        opened,
        connect_seconds: round(connect_seconds, 2),
        connect_us_per_socket: connect_cost.us_per(sockets),
        connect_cost,
        rss_before: rss(&before),
        rss_open: rss(&open),
        rss_held: rss(&held),
        bytes_per_socket: growth(&before, &held, sockets),
        fds_held: held.usage.iter().map(|(name, usage)| (name.clone(), usage.fds)).collect(),
        hold_seconds: round(hold_seconds, 2),
        hold_us_per_socket_second: hold_cost.us_per(sockets * hold_seconds),
        hold_cost,
        after_traffic,
        rss_closed: rss(&closed),
        ends,
    };
    let faults = faults(&run.args, &figures);
    Report::new("idle", faults, figures).publish(table, &run.args.common)
}

/// At the given rate; returns when each socket is open or has failed.
async fn open_all(run: &Arc<Run>, tasks: &mut JoinSet<()>, progress: &mut Progress) {
    let permits = Arc::new(Semaphore::new(HANDSHAKES));
    let started = Instant::now();
    let told = || {
        let (opened, failed) = (run.opened.load(Relaxed), run.failed.load(Relaxed));
        format!("{opened} of {} sockets open, {failed} failed", run.args.sockets)
    };
    for index in 0..run.args.sockets {
        // The timer's steps of 1 ms make small bursts of it at high rates.
        sleep_until(started + pause(run, index)).await;
        let permit = permits.clone().acquire_owned().await.expect("it is never closed");
        tasks.spawn(socket(run.clone(), index, permit));
        progress.tell(told);
    }
    let deadline = Instant::now() + CONNECT_TIMEOUT + TICK;
    while run.opened.load(Relaxed) + run.failed.load(Relaxed) < run.args.sockets
        && Instant::now() < deadline
    {
        sleep(TICK).await;
        progress.tell(told);
    }
}

/// When socket `index` has its turn.
fn pause(run: &Run, index: usize) -> Duration {
    Duration::from_secs_f64(index as f64 / f64::from(run.args.rate))
}

async fn hold_until(end: Instant, text: impl Fn() -> String, progress: &mut Progress) {
    while Instant::now() < end {
        sleep_until(end.min(Instant::now() + Duration::from_secs(1))).await;
        progress.tell(&text);
    }
}

/// Everything larger than a pointer that a socket needs only for a moment is boxed: what stands
/// here is held ten thousand times.
async fn socket(run: Arc<Run>, index: usize, permit: OwnedSemaphorePermit) {
    let mut phase = run.phase.subscribe();
    let opening: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(open(run.clone(), index));
    let mut client = match opening.await {
        Ok(client) => client,
        Err(error) => {
            run.failed.fetch_add(1, Relaxed);
            return note(&run, &format!("{error:#}"));
        }
    };
    run.opened.fetch_add(1, Relaxed);
    drop(permit);
    loop {
        let closed = tokio::select! {
            closed = client.pump(|_, _| {}) => closed,
            changed = phase.changed() => {
                let now = *phase.borrow_and_update();
                match now {
                    Phase::Talk => Box::pin(command(&mut client, &run, index)).await,
                    _ if changed.is_err() || now == Phase::Close => {
                        return Box::pin(client.close()).await;
                    }
                    _ => None,
                }
            }
        };
        if let Some(closed) = closed {
            return note(&run, &closed.to_string());
        }
    }
}

async fn open(run: Arc<Run>, index: usize) -> anyhow::Result<Socket> {
    let target = &run.args.url;
    let device = format!("load-{index}");
    let identity = Identity { user: Uuid::new_v4(), device: &device };
    Socket::open(target, target.source(index), identity, !run.args.classic).await
}

fn note(run: &Run, end: &str) {
    count(&mut run.ends.lock().expect("no holder panics"), end);
}

/// One large command when it is this socket's turn, and its answer.
async fn command(
    client: &mut Socket,
    run: &Run,
    index: usize,
) -> Option<tidings_client::socket::Closed> {
    let turn = sleep(pause(run, index));
    tokio::pin!(turn);
    let mut answered = false;
    loop {
        tokio::select! {
            closed = client.pump(|_, text| answered |= wire::kind(text) == "pong") => {
                if closed.is_some() {
                    return closed;
                }
                if answered {
                    run.answered.fetch_add(1, Relaxed);
                    return None;
                }
            }
            () = &mut turn, if !turn.is_elapsed() => client.outbox().text(&run.ping),
        }
    }
}

async fn talk(
    run: &Run,
    watch: &Watch,
    before: &Sample,
    held: &Sample,
    progress: &mut Progress,
) -> anyhow::Result<AfterTraffic> {
    let opened = run.opened.load(Relaxed);
    run.phase.send_replace(Phase::Talk);
    let deadline = Instant::now() + pause(run, run.args.sockets) + CONNECT_TIMEOUT;
    let told = || format!("{} of {opened} commands answered", run.answered.load(Relaxed));
    while run.answered.load(Relaxed) < opened && Instant::now() < deadline {
        sleep(TICK).await;
        progress.tell(told);
    }
    let sent = watch.sample()?;
    let rest = Instant::now();
    hold_until(rest + run.args.rest, || "resting after the traffic".to_owned(), progress).await;
    let rested = watch.sample()?;
    let cost = Cost::between(held, &sent);
    let answered = run.answered.load(Relaxed);
    Ok(AfterTraffic {
        command_bytes: run.args.command_bytes,
        answered,
        rest_seconds: round(rest.elapsed().as_secs_f64(), 2),
        rss: rss(&rested),
        bytes_per_socket: growth(before, &rested, opened.max(1) as f64),
        us_per_command: cost.us_per(answered.max(1) as f64),
        cost,
    })
}

fn faults(args: &Args, figures: &Figures) -> Vec<String> {
    let mut faults = Vec::new();
    if figures.opened < figures.sockets {
        faults.push(format!("{} of {} sockets opened", figures.opened, figures.sockets));
    }
    if !figures.ends.is_empty() {
        faults.push(format!("sockets ended: {:?}", figures.ends));
    }
    if let Some(after) = figures.after_traffic.as_ref().filter(|a| a.answered < figures.opened) {
        faults.push(format!("{} of {} commands answered", after.answered, figures.opened));
    }
    if let Some(max) = args.max_bytes_per_socket {
        match figures.bytes_per_socket.get("node") {
            Some(bytes) if *bytes <= max => {}
            Some(bytes) => faults.push(format!("{bytes} bytes per socket, at most {max} allowed")),
            None => faults.push("--max-bytes-per-socket needs --pid node=PID".to_owned()),
        }
    }
    faults
}

fn table(figures: &Figures) -> Table {
    let mut table = Table::default();
    table.row("target", &figures.url);
    table.row("sockets", format!("{} of {}", figures.opened, figures.sockets));
    table.counts("ended or failed", &figures.ends);
    table.row("connect", format!("{} s", figures.connect_seconds));
    table.cost(&figures.connect_cost);
    table.by_process("  µs of CPU per socket", &figures.connect_us_per_socket);
    table.memory("memory before", &figures.rss_before);
    table.memory("memory open", &figures.rss_open);
    table.memory("memory after the hold", &figures.rss_held);
    table.by_process("  bytes per socket", &figures.bytes_per_socket);
    table.row("hold", format!("{} s", figures.hold_seconds));
    table.cost(&figures.hold_cost);
    table.by_process("  µs of CPU per socket and second", &figures.hold_us_per_socket_second);
    if let Some(after) = &figures.after_traffic {
        let AfterTraffic { command_bytes, answered, rest_seconds, .. } = after;
        table.row("after traffic", format!("{answered} commands of {command_bytes} bytes"));
        table.cost(&after.cost);
        table.by_process("  µs of CPU per command", &after.us_per_command);
        table.memory(format!("  memory {rest_seconds} s later"), &after.rss);
        table.by_process("  bytes per socket", &after.bytes_per_socket);
    }
    table.memory("memory after the close", &figures.rss_closed);
    table
}
