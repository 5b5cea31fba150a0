//! Groups whose members sit on different nodes, many of them writing at once: each member's each
//! device must receive every message exactly once, and ordered by `seq` there must be no gap.
//!
//! Every user has two devices on neighbouring nodes and writes from the first one, so that the
//! second shows whether one's own messages reach one's other devices.

mod verdict;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, ensure};
use tidings_client::rest::Rest;
use tidings_client::socket::{Identity, Socket};
use tidings_client::target::Target;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use self::verdict::{Device, Group, Received};
use super::count;
use crate::Shared as Common;
use crate::duration;
use crate::proc::Watch;
use crate::report::{Latency, Progress};
use crate::wire::{self, Frame};

/// Receipts that are kept in memory, all devices together.
const MAX_RECEIPTS: usize = 20_000_000;
/// Attempts for one message; with the same `client_message_id`, so that none is stored twice.
const MAX_TRIES: u32 = 20;
const RETRY: Duration = Duration::from_millis(200);
const TICK: Duration = Duration::from_millis(100);
const DEVICES: [&str; 2] = ["first", "second"];

#[derive(clap::Args)]
pub struct Args {
    /// A node; given once for each.
    #[arg(long = "url", required = true)]
    urls: Vec<Target>,
    /// Users, all of whom write.
    #[arg(long, default_value_t = 50)]
    senders: usize,
    #[arg(long, default_value_t = 20)]
    conversations: usize,
    /// Of each conversation.
    #[arg(long, default_value_t = 10)]
    members: usize,
    #[arg(long, default_value_t = 10_000)]
    messages: usize,
    /// Each sender keeps so many messages unanswered.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    in_flight: u32,
    /// All messages must have been acknowledged by then.
    #[arg(long, default_value = "120s", value_parser = duration)]
    deadline: Duration,
    /// After the last acknowledgement: until then everything must have arrived, and nothing may
    /// come twice.
    #[arg(long, default_value = "8s", value_parser = duration)]
    settle: Duration,
    #[command(flatten)]
    common: Common,
}

struct Run {
    args: Args,
    groups: Vec<Group>,
    by_id: HashMap<Uuid, usize>,
    /// The number of the next message to be sent.
    next: AtomicUsize,
    acked: AtomicUsize,
    received: AtomicUsize,
    /// Users times two; each is written by its own task only.
    devices: Vec<Mutex<Device>>,
    stats: Mutex<Stats>,
    stage: watch::Sender<Stage>,
}

/// What the sockets do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Listen,
    Send,
    Close,
}

struct Stats {
    ack: Latency,
    delivery: Latency,
    /// From the sending to what a device held already.
    repeat: Latency,
    /// When message N was first sent.
    sent: Vec<Option<Instant>>,
    errors: BTreeMap<String, u64>,
    events: BTreeMap<String, u64>,
    ends: BTreeMap<String, u64>,
}

impl Run {
    fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().expect("no holder panics")
    }

    fn device(&self, index: usize) -> MutexGuard<'_, Device> {
        self.devices[index].lock().expect("no holder panics")
    }
}

pub async fn run(mut args: Args) -> anyhow::Result<bool> {
    check(&args)?;
    for url in &mut args.urls {
        url.key.clone_from(&args.common.jwt_key);
    }
    let mut progress = Progress::new();
    let watch = Watch::new(args.common.pids.clone())?;
    watch.check_room(args.senders * 2 + 1)?;
    let users: Vec<Uuid> = (0..args.senders).map(|_| Uuid::new_v4()).collect();
    let groups = create(&args, &users).await?;
    let run = Arc::new(Run {
        by_id: groups.iter().enumerate().map(|(at, group)| (group.id, at)).collect(),
        groups,
        next: AtomicUsize::new(0),
        acked: AtomicUsize::new(0),
        received: AtomicUsize::new(0),
        devices: (0..users.len() * 2).map(|_| Mutex::default()).collect(),
        stats: Mutex::new(Stats {
            ack: Latency::new(),
            delivery: Latency::new(),
            repeat: Latency::new(),
            sent: vec![None; args.messages],
            errors: BTreeMap::new(),
            events: BTreeMap::new(),
            ends: BTreeMap::new(),
        }),
        stage: watch::Sender::new(Stage::Listen),
        args,
    });

    let mut tasks = JoinSet::new();
    for (user, id) in users.iter().enumerate() {
        for (at, device) in DEVICES.into_iter().enumerate() {
            let target = &run.args.urls[(user + at) % run.args.urls.len()];
            let identity = Identity { user: *id, device };
            let source = target.source(user * 2 + at);
            let client = Socket::open(target, source, identity, true).await;
            let client = client.with_context(|| format!("{} device of a user", DEVICES[at]))?;
            tasks.spawn(socket(run.clone(), user * 2 + at, client));
        }
    }
    let before = watch.sample()?;
    let started = Instant::now();
    run.stage.send_replace(Stage::Send);
    let told = || {
        let (acked, received) = (run.acked.load(Relaxed), run.received.load(Relaxed));
        format!("{acked} of {} acknowledged, {received} received", run.args.messages)
    };
    while run.acked.load(Relaxed) < run.args.messages && started.elapsed() < run.args.deadline {
        sleep_until(Instant::now() + TICK).await;
        progress.tell(told);
    }
    let seconds = started.elapsed().as_secs_f64();
    let after = watch.sample()?;
    let settled = Instant::now() + run.args.settle;
    while Instant::now() < settled {
        sleep_until(settled.min(Instant::now() + TICK)).await;
        progress.tell(told);
    }
    let ends = run.stats().ends.clone();
    run.stage.send_replace(Stage::Close);
    while tasks.join_next().await.is_some() {}
    verdict::publish(&run, &before, &after, seconds, ends)
}

fn check(args: &Args) -> anyhow::Result<()> {
    let Args { senders, conversations, members, messages, .. } = *args;
    ensure!(members >= 2 && messages > 0, "at least 2 members and 1 message are needed");
    ensure!(members <= senders, "--members is at most --senders, of whom the members are");
    ensure!(
        conversations.saturating_mul(members) >= senders,
        "{conversations} conversations of {members} have no place for {senders} senders"
    );
    let receipts = messages.saturating_mul(members).saturating_mul(2);
    ensure!(
        receipts <= MAX_RECEIPTS && conversations <= 100_000,
        "{receipts} receipts in {conversations} conversations are too many to remember"
    );
    Ok(())
}

/// The conversations, in turns on each node; neighbours share members.
async fn create(args: &Args, users: &[Uuid]) -> anyhow::Result<Vec<Group>> {
    let mut rests = Vec::new();
    for url in &args.urls {
        rests.push(Rest::connect(url).await?);
    }
    let mut groups = Vec::new();
    for at in 0..args.conversations {
        let first = at * users.len() / args.conversations;
        let members: Vec<usize> = (0..args.members).map(|n| (first + n) % users.len()).collect();
        let others: Vec<Uuid> = members[1..].iter().map(|user| users[*user]).collect();
        let rest = &mut rests[at % args.urls.len()];
        let title = format!("scatter {at}");
        let created = rest.create_group(users[members[0]], &title, &others).await?;
        groups.push(Group { id: created.id, joined_seq: created.last_seq, members });
    }
    Ok(groups)
}

/// A message on its way.
struct Pending {
    number: usize,
    group: usize,
    tries: u32,
    /// Set by a refusal: sent again then.
    again: Option<Instant>,
}

/// What one socket's task knows.
struct Talk {
    run: Arc<Run>,
    /// Of the device.
    index: usize,
    /// The conversations of this user.
    groups: Vec<usize>,
    pending: Vec<Pending>,
    command: String,
}

async fn socket(run: Arc<Run>, index: usize, mut client: Socket) {
    let user = index / 2;
    let is_member = |at: &usize| run.groups[*at].members.contains(&user);
    let groups = (0..run.groups.len()).filter(is_member).collect();
    let mut stage = run.stage.subscribe();
    let mut socket =
        Talk { run: run.clone(), index, groups, pending: Vec::new(), command: String::new() };
    let mut sending = false;
    loop {
        if sending {
            socket.fill(&mut client);
        }
        let again = socket.pending.iter().filter_map(|pending| pending.again).min();
        tokio::select! {
            closed = client.pump(|_, text| socket.on_text(text)) => {
                if let Some(closed) = closed {
                    return count(&mut run.stats().ends, &closed.to_string());
                }
            }
            _ = stage.changed() => {
                let stage = *stage.borrow_and_update();
                if stage == Stage::Close {
                    return client.close().await;
                }
                sending = stage == Stage::Send && index.is_multiple_of(2);
            }
            () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
        }
    }
}

impl Talk {
    /// Sends again what was refused for now, and takes new messages as far as there is room.
    fn fill(&mut self, client: &mut Socket) {
        let now = Instant::now();
        for pending in &mut self.pending {
            if pending.again.take_if(|again| *again <= now).is_some() {
                let group = self.run.groups[pending.group].id;
                wire::send_message(&mut self.command, group, pending.number);
                client.outbox().text(&self.command);
            }
        }
        while self.pending.len() < self.run.args.in_flight as usize {
            let number = self.run.next.fetch_add(1, Relaxed);
            if number >= self.run.args.messages {
                // Undone, so that the counter cannot run away.
                self.run.next.store(self.run.args.messages, Relaxed);
                return;
            }
            // Spread without order, the same in every run.
            let spread = number.wrapping_mul(0x9e37_79b9) >> 7;
            let group = self.groups[spread % self.groups.len()];
            self.run.stats().sent[number] = Some(now);
            self.pending.push(Pending { number, group, tries: 1, again: None });
            wire::send_message(&mut self.command, self.run.groups[group].id, number);
            client.outbox().text(&self.command);
        }
    }

    fn on_text(&mut self, text: &[u8]) {
        let Some(frame) = Frame::read(text) else {
            return count(&mut self.run.stats().errors, "not JSON");
        };
        match frame.kind {
            "ok" => self.on_ok(&frame),
            "error" => self.on_error(&frame),
            "new_message" => {
                let noted = self.note(&frame, false);
                self.run.received.fetch_add(1, Relaxed);
                let mut stats = self.run.stats();
                let sent = noted.and_then(|(number, _)| *stats.sent.get(number)?);
                if let (Some(sent), Some((_, first))) = (sent, noted) {
                    let latency = if first { &mut stats.delivery } else { &mut stats.repeat };
                    latency.record(sent.elapsed());
                }
            }
            kind => count(&mut self.run.stats().events, kind),
        }
    }

    /// A message that this device holds now; its number if it is one of ours, and whether it is
    /// new to the device.
    fn note(&self, frame: &Frame<'_>, own: bool) -> Option<(usize, bool)> {
        let payload: Option<wire::MessagePayload<'_>> = frame.payload();
        let message = payload.as_ref().map(|payload| &payload.message);
        let known = message.and_then(|message| {
            let group = *self.run.by_id.get(&message.conversation_id)?;
            Some(Received { group, seq: message.seq, number: message.number()?, own })
        });
        let mut device = self.run.device(self.index);
        let Some(received) = known else {
            device.foreign += 1;
            return None;
        };
        device.received.push(received);
        let first = device.seen.insert((received.group, received.seq));
        Some((received.number, first))
    }

    fn take_pending(&mut self, frame: &Frame<'_>) -> Option<Pending> {
        let number = frame.number()?;
        let at = self.pending.iter().position(|pending| pending.number == number)?;
        Some(self.pending.swap_remove(at))
    }

    fn on_ok(&mut self, frame: &Frame<'_>) {
        let Some(pending) = self.take_pending(frame) else {
            return count(&mut self.run.stats().errors, "ok with a foreign ref");
        };
        if self.note(frame, true).map(|(number, _)| number) != Some(pending.number) {
            count(&mut self.run.stats().errors, "ok with another message");
        }
        self.run.acked.fetch_add(1, Relaxed);
        let mut stats = self.run.stats();
        if let Some(sent) = stats.sent[pending.number] {
            stats.ack.record(sent.elapsed());
        }
    }

    fn on_error(&mut self, frame: &Frame<'_>) {
        let problem = frame.payload::<wire::Problem>();
        let code = problem.as_ref().map_or("error without code", |problem| problem.code.as_str());
        count(&mut self.run.stats().errors, code);
        let Some(mut pending) = self.take_pending(frame) else {
            return;
        };
        // Only what says when to come back is worth another try.
        let retry = problem.as_ref().and_then(|problem| problem.retry_ms);
        if retry.is_some() && pending.tries < MAX_TRIES {
            pending.tries += 1;
            pending.again = Some(Instant::now() + retry.map_or(RETRY, Duration::from_millis));
            self.pending.push(pending);
        }
    }
}
