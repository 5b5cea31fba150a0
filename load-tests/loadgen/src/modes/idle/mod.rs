//! Sockets that are open and say nothing: what one costs the server in memory and CPU.

mod outcome;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::ensure;
use futures_util::{StreamExt, stream};
use tidings_client::socket::{CONNECT_TIMEOUT, Identity, Socket};
use tidings_client::target::Target;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use self::outcome::{AfterTraffic, Figures, PerSocket, Step};
use super::count;
use crate::Shared as Common;
use crate::proc::{Sample, Watch};
use crate::report::{Cost, Progress, growth, round, rss};
use crate::traffic::prepare::{self, Rests};
use crate::{duration, wire};

/// Handshakes under way at a time.
const HANDSHAKES: usize = 256;
/// After the last `hello`, until what the handshakes needed has been given back.
const SETTLE: Duration = Duration::from_secs(3);
/// From the last message to its last receipt.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(30);
/// Members of a group that is told something, and groups at a time.
const GROUP: usize = 100;
const TELLERS: usize = 4;
const TICK: Duration = Duration::from_millis(100);

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value = "ws://127.0.0.1:8083/ws")]
    url: Target,
    #[arg(long, default_value_t = 10_000)]
    sockets: usize,
    /// Instead, so many at first, then so many in all, and so on: does each cost the same?
    #[arg(long, value_delimiter = ',', conflicts_with = "sockets")]
    steps: Vec<usize>,
    /// Sockets opened in a second, and commands sent in a second after that.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// How long the server is watched before any of them is open.
    #[arg(long, default_value = "0s", value_parser = duration)]
    before: Duration,
    /// How long they are held open, silent.
    #[arg(long, default_value = "30s", value_parser = duration)]
    hold: Duration,
    /// Then let each socket receive messages and send one large command, and measure the memory
    /// again.
    #[arg(long)]
    after_traffic: bool,
    /// That each receives.
    #[arg(long, default_value_t = 20)]
    messages: usize,
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
    users: Vec<Uuid>,
    phase: watch::Sender<Phase>,
    /// Sockets whose `hello` came.
    opened: AtomicUsize,
    failed: AtomicUsize,
    /// Messages at all sockets together.
    received: AtomicUsize,
    /// Commands that were answered.
    answered: AtomicUsize,
    /// How sockets failed or ended, other than by our own will.
    ends: Mutex<BTreeMap<String, u64>>,
}

pub async fn run(mut args: Args) -> anyhow::Result<bool> {
    let mut steps = std::mem::take(&mut args.steps);
    if steps.is_empty() {
        steps.push(args.sockets);
    }
    ensure!(steps.is_sorted() && steps[0] > 0, "--steps go up");
    args.sockets = steps[steps.len() - 1];
    args.url.key.clone_from(&args.common.jwt_key);
    let mut progress = Progress::new();
    let watch = Watch::new(args.common.pids.clone())?;
    watch.check_room(args.sockets + prepare::AT_ONCE)?;
    let run = Arc::new(Run {
        ping: wire::padded_ping(args.command_bytes as usize),
        users: (0..args.sockets).map(|_| Uuid::new_v4()).collect(),
        args,
        phase: watch::Sender::new(Phase::Hold),
        opened: AtomicUsize::new(0),
        failed: AtomicUsize::new(0),
        received: AtomicUsize::new(0),
        answered: AtomicUsize::new(0),
        ends: Mutex::default(),
    });
    let mut tasks = JoinSet::new();
    let empty = watch.sample()?;
    let watched = Instant::now();
    hold_until(watched + run.args.before, || "no socket yet".to_owned(), &mut progress).await;
    let empty_seconds = watched.elapsed().as_secs_f64();
    let start = watch.sample()?;
    let (mut before, mut opened) = (watch.sample()?, 0);
    let mut figures = Vec::new();
    for sockets in steps {
        let begun = Instant::now();
        open_to(&run, sockets, &mut tasks, &mut progress).await;
        let seconds = begun.elapsed().as_secs_f64();
        let now = run.opened.load(Relaxed);
        let more = now - opened;
        let failures = || run.ends.lock().expect("no holder panics").clone();
        ensure!(more > 0, "no socket could be opened: {:?}", failures());
        let connected = watch.sample()?;
        sleep(SETTLE).await;
        let open = watch.sample()?;
        figures.push(Step::new((now, more), seconds, &start, &before, &connected, &open));
        (before, opened) = (open, now);
    }

    let (open, sockets) = (before, opened);
    let hold = Instant::now();
    hold_until(hold + run.args.hold, || format!("{sockets} sockets held"), &mut progress).await;
    let held = watch.sample()?;
    let hold_seconds = hold.elapsed().as_secs_f64();
    let after_traffic = if run.args.after_traffic {
        Some(talk(&run, &watch, &start, &held, &mut progress).await?)
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

    let cost = Cost::between(&open, &held);
    let us_per_socket_second = cost.us_per(sockets as f64 * hold_seconds);
    let us_per_socket_second_more = (!run.args.before.is_zero()).then(|| {
        let empty = Cost::between(&empty, &start).us_per(sockets as f64 * empty_seconds);
        let more = |(name, us): (&String, &f64)| {
            (name.clone(), round(us - empty.get(name).copied().unwrap_or_default(), 3))
        };
        us_per_socket_second.iter().map(more).collect()
    });
    let figures = Figures {
        url: run.args.url.to_string(),
        sockets: run.args.sockets,
        opened: sockets,
        steps: figures,
        rss_before: rss(&start),
        rss_held: rss(&held),
        rss_closed: rss(&closed),
        bytes_per_socket: growth(&start, &held, sockets as f64),
        kernel: PerSocket::between(&start.kernel, &held.kernel, sockets as f64),
        fds_held: held.usage.iter().map(|(name, usage)| (name.clone(), usage.fds)).collect(),
        hold_seconds: round(hold_seconds, 2),
        us_per_socket_second,
        us_per_socket_second_more,
        cost,
        after_traffic,
        ends,
    };
    outcome::publish(&run.args, figures)
}

/// At the given rate, until so many are open in all; returns when each is open or has failed.
async fn open_to(run: &Arc<Run>, sockets: usize, tasks: &mut JoinSet<()>, progress: &mut Progress) {
    let permits = Arc::new(Semaphore::new(HANDSHAKES));
    let started = Instant::now();
    let tried = || run.opened.load(Relaxed) + run.failed.load(Relaxed);
    let told = || {
        let (opened, failed) = (run.opened.load(Relaxed), run.failed.load(Relaxed));
        format!("{opened} of {} sockets open, {failed} failed", run.args.sockets)
    };
    for (turn, index) in (tried()..sockets).enumerate() {
        // The timer's steps of 1 ms make small bursts of it at high rates.
        sleep_until(started + pause(run, turn)).await;
        let permit = permits.clone().acquire_owned().await.expect("it is never closed");
        tasks.spawn(socket(run.clone(), index, permit));
        progress.tell(told);
    }
    let deadline = Instant::now() + CONNECT_TIMEOUT + TICK;
    while tried() < sockets && Instant::now() < deadline {
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
            closed = client.pump(|_, text| receive(&run, text)) => closed,
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
    let identity = Identity { user: run.users[index], device: &device };
    Socket::open(target, target.source(index), identity, !run.args.classic).await
}

fn receive(run: &Run, text: &[u8]) {
    if wire::kind(text) == "new_message" {
        run.received.fetch_add(1, Relaxed);
    }
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
            closed = client.pump(|_, text| {
                answered |= wire::kind(text) == "pong";
                receive(run, text);
            }) => {
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

/// Each user is told some messages in a group, and says one thing himself.
async fn talk(
    run: &Run,
    watch: &Watch,
    before: &Sample,
    held: &Sample,
    progress: &mut Progress,
) -> anyhow::Result<AfterTraffic> {
    let opened = run.opened.load(Relaxed);
    tell_all(run, progress).await?;
    let expected = opened * run.args.messages;
    let received = || run.received.load(Relaxed);
    let deadline = Instant::now() + RECEIVE_TIMEOUT;
    while received() < expected && Instant::now() < deadline {
        sleep(TICK).await;
        progress.tell(|| format!("{} of {expected} messages received", received()));
    }
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
    let sockets = opened.max(1) as f64;
    Ok(AfterTraffic {
        received: run.args.messages,
        received_in_all: received(),
        command_bytes: run.args.command_bytes,
        answered,
        rest_seconds: round(rest.elapsed().as_secs_f64(), 2),
        rss: rss(&rested),
        bytes_per_socket: growth(before, &rested, sockets),
        kernel: PerSocket::between(&before.kernel, &rested.kernel, sockets),
        us_per_frame: cost.us_per((answered + received()).max(1) as f64),
        cost,
    })
}

/// Groups of all users, by somebody who is not connected.
async fn tell_all(run: &Run, progress: &mut Progress) -> anyhow::Result<()> {
    let rests = Rests::new(&run.args.url);
    let groups: Vec<&[Uuid]> = run.users.chunks(GROUP).collect();
    let tell = async |members: &[Uuid]| {
        let writer = Uuid::new_v4();
        let created = rests.with(async |rest| rest.create_group(writer, "idle", members).await);
        let group = created.await?.id;
        for _ in 0..run.args.messages {
            rests.with(async |rest| rest.send_text(writer, group, "hello").await).await?;
        }
        anyhow::Ok(())
    };
    let mut told = stream::iter(&groups).map(|members| tell(members)).buffer_unordered(TELLERS);
    let mut count = 0;
    while let Some(done) = told.next().await {
        done?;
        count += 1;
        progress.tell(|| format!("{count} of {} groups told", groups.len()));
    }
    Ok(())
}
