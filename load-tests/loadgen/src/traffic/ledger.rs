//! What was sent and what became of it. An entry for each message, by conversation; counts and
//! latencies by phase of the run.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Pace, Sending, Stage, TICK};
use crate::modes::count;
use crate::report::{self, Latencies, Latency};

/// Messages of a run: some 24 bytes are kept for each.
const MAX_MESSAGES: usize = 20_000_000;

/// What became of one message.
struct Entry {
    /// When it was due, from the beginning of the ledger.
    due: Duration,
    /// Of the room's writers.
    writer: u16,
    /// It counts as under way until the last recipient has it, else until it is answered.
    until_delivered: bool,
    /// Whether it was acknowledged, or refused.
    acked: Option<bool>,
    /// Recipients who have it.
    delivered: u16,
}

/// A conversation.
pub struct Room {
    pub number: usize,
    pub id: Uuid,
    /// Who is to get each message: all members' sockets but the writer's.
    pub recipients: u16,
    log: Mutex<Vec<Entry>>,
    writers: Vec<Arc<Unfinished>>,
}

/// Messages of one writer that still count as under way.
#[derive(Default)]
pub struct Unfinished {
    pub count: AtomicUsize,
    /// Told when it gets less by somebody else's doing.
    pub less: Notify,
}

/// A stretch of the run.
pub struct Phase {
    from: Duration,
    /// Of messages that were due in it.
    ack: Latency,
    refusal: Latency,
    delivery: Latency,
    /// That happened in it.
    pub acked: usize,
    pub refused: usize,
    pub delivered: usize,
}

/// Over the whole run.
#[derive(Default)]
pub struct Counts {
    pub doubled: usize,
    pub errors: BTreeMap<String, u64>,
    /// Other frames, and how sockets ended.
    pub events: BTreeMap<String, u64>,
    pub ends: BTreeMap<String, u64>,
    /// When the last message was received for the first time.
    last: Option<Instant>,
}

/// The run so far.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub sent: usize,
    pub acked: usize,
    pub refused: usize,
    pub delivered: usize,
    /// Recipients who never got an acknowledged message.
    pub missing: usize,
    /// Times a recipient got what he had.
    pub doubled: usize,
    /// Neither acknowledged nor refused.
    pub unanswered: usize,
    /// From the last send to the last first receipt; 0 if that was earlier.
    pub complete_after_ms: u64,
    pub errors: BTreeMap<String, u64>,
    pub events: BTreeMap<String, u64>,
    pub ends: BTreeMap<String, u64>,
}

pub struct Ledger {
    start: Instant,
    rooms: Mutex<Vec<Arc<Room>>>,
    pub stage: watch::Sender<Stage>,
    phases: Mutex<Vec<Phase>>,
    counts: Mutex<Counts>,
    sent: AtomicUsize,
}

impl Ledger {
    pub fn new() -> Arc<Self> {
        let ledger = Self {
            start: Instant::now(),
            rooms: Mutex::default(),
            stage: watch::Sender::new(Stage::Listen),
            phases: Mutex::default(),
            counts: Mutex::default(),
            sent: AtomicUsize::new(0),
        };
        ledger.begin_phase();
        Arc::new(ledger)
    }

    /// From now on what happens counts there; returns its number. The first one is there already.
    pub fn begin_phase(&self) -> usize {
        let mut phases = self.phases();
        phases.push(Phase {
            from: self.start.elapsed(),
            ack: Latency::new(),
            refusal: Latency::new(),
            delivery: Latency::new(),
            acked: 0,
            refused: 0,
            delivered: 0,
        });
        phases.len() - 1
    }

    /// Lets the writers begin, a moment from now, so that all know before the first is due.
    pub fn send(&self, pace: Pace, heedless: bool) {
        let from = Instant::now() + TICK;
        self.stage.send_replace(Stage::Send(Sending { from, pace, heedless }));
    }

    /// Ends the sending: now.
    pub fn settle(&self) {
        self.stage.send_replace(Stage::Settle { end: Instant::now() });
    }

    /// Ends the sockets, and waits for that.
    pub async fn close(&self, tasks: &mut JoinSet<()>) {
        self.stage.send_replace(Stage::Close);
        while tasks.join_next().await.is_some() {}
    }

    /// What is in a phase's books.
    pub fn phase<T>(&self, number: usize, read: impl FnOnce(&Phase) -> T) -> T {
        read(&self.phases()[number])
    }

    /// A conversation of so many sockets, so many of whom write.
    pub fn add_room(&self, id: Uuid, members: usize, writers: usize) -> Arc<Room> {
        let mut rooms = self.rooms.lock().expect("no holder panics");
        let room = Arc::new(Room {
            number: rooms.len(),
            id,
            recipients: u16::try_from(members - 1).expect("groups are smaller"),
            log: Mutex::default(),
            writers: (0..writers).map(|_| Arc::default()).collect(),
        });
        rooms.push(room.clone());
        room
    }

    fn phases(&self) -> MutexGuard<'_, Vec<Phase>> {
        self.phases.lock().expect("no holder panics")
    }

    pub fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().expect("no holder panics")
    }

    pub fn error(&self, what: &str) {
        count(&mut self.counts().errors, what);
    }

    /// A message that is about to leave; its number in the room. None: the run has had enough.
    pub fn sent(&self, room: &Room, writer: usize, due: Instant, pace: Pace) -> Option<usize> {
        if self.sent.fetch_add(1, Relaxed) >= MAX_MESSAGES {
            self.sent.fetch_sub(1, Relaxed);
            return None;
        }
        let due = due.saturating_duration_since(self.start);
        let mut log = room.log();
        log.push(Entry {
            due,
            writer: writer as u16,
            until_delivered: matches!(pace, Pace::Undelivered(_)),
            acked: None,
            delivered: 0,
        });
        room.writers[writer].count.fetch_add(1, Relaxed);
        Some(log.len() - 1)
    }

    /// The server's answer to its writer. None: there was one before, or it is not ours.
    pub fn answered(&self, room: &Room, number: usize, acked: bool) -> Option<()> {
        let mut log = room.log();
        let entry = log.get_mut(number)?;
        if entry.acked.is_some() {
            return None;
        }
        entry.acked = Some(acked);
        if !acked || !entry.until_delivered || entry.delivered == room.recipients {
            room.writers[usize::from(entry.writer)].count.fetch_sub(1, Relaxed);
        }
        let mut phases = self.phases();
        let latency = self.start.elapsed().saturating_sub(entry.due);
        let now = phases.last_mut()?;
        if acked {
            now.acked += 1;
            of(&mut phases, entry.due).ack.record(latency);
        } else {
            now.refused += 1;
            of(&mut phases, entry.due).refusal.record(latency);
        }
        Some(())
    }

    /// A recipient got it, who did not have it. None: it is not ours.
    /// Its latency means something if it came by an event, not by a page that was asked for.
    pub fn delivered(&self, room: &Room, number: usize, live: bool) -> Option<()> {
        let mut log = room.log();
        let entry = log.get_mut(number)?;
        entry.delivered += 1;
        let last = entry.delivered == room.recipients && entry.acked == Some(true);
        if last && entry.until_delivered {
            let writer = &room.writers[usize::from(entry.writer)];
            writer.count.fetch_sub(1, Relaxed);
            writer.less.notify_one();
        }
        let mut phases = self.phases();
        phases.last_mut()?.delivered += 1;
        if live {
            let latency = self.start.elapsed().saturating_sub(entry.due);
            of(&mut phases, entry.due).delivery.record(latency);
        }
        self.counts().last = Some(Instant::now());
        Some(())
    }

    pub fn told(&self) -> String {
        let phases = self.phases();
        let sum = |of: fn(&Phase) -> usize| phases.iter().map(of).sum::<usize>();
        let (acked, refused) = (sum(|phase| phase.acked), sum(|phase| phase.refused));
        let refused = if refused > 0 { format!(", {refused} refused") } else { String::new() };
        let delivered = sum(|phase| phase.delivered);
        let sent = self.sent.load(Relaxed);
        format!("{sent} sent, {acked} acknowledged{refused}, {delivered} delivered")
    }

    pub fn outcome(&self) -> Outcome {
        let (mut missing, mut unanswered) = (0, 0);
        for room in self.rooms.lock().expect("no holder panics").iter() {
            for entry in room.log().iter() {
                let lacking = room.recipients.saturating_sub(entry.delivered);
                missing += usize::from(lacking) * usize::from(entry.acked == Some(true));
                unanswered += usize::from(entry.acked.is_none());
            }
        }
        let end = match *self.stage.borrow() {
            Stage::Settle { end } => end,
            _ => Instant::now(),
        };
        let phases = self.phases();
        let sum = |of: fn(&Phase) -> usize| phases.iter().map(of).sum::<usize>();
        let counts = self.counts();
        let complete = counts.last.map(|last| last.saturating_duration_since(end));
        Outcome {
            sent: self.sent.load(Relaxed),
            acked: sum(|phase| phase.acked),
            refused: sum(|phase| phase.refused),
            delivered: sum(|phase| phase.delivered),
            missing,
            doubled: counts.doubled,
            unanswered,
            complete_after_ms: complete.unwrap_or_default().as_millis() as u64,
            errors: counts.errors.clone(),
            events: counts.events.clone(),
            ends: counts.ends.clone(),
        }
    }
}

/// The phase in which something was due.
fn of(phases: &mut [Phase], due: Duration) -> &mut Phase {
    let at = phases.iter().rposition(|phase| phase.from <= due).unwrap_or_default();
    &mut phases[at]
}

impl Phase {
    /// From when a message was due to its answer, and to each recipient.
    pub fn latency(&self) -> Latencies {
        let named = [("ack", &self.ack), ("refusal", &self.refusal), ("delivery", &self.delivery)];
        report::latencies(named)
    }
}

impl Room {
    fn log(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.log.lock().expect("no holder panics")
    }

    pub fn writer(&self, writer: usize) -> Arc<Unfinished> {
        self.writers[writer].clone()
    }
}

impl Outcome {
    /// What must not be, where nothing was broken on purpose.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut fault = |count: usize, what: &str| {
            if count > 0 {
                faults.push(format!("{count} {what}"));
            }
        };
        fault(self.missing, "deliveries of acknowledged messages are missing");
        fault(self.doubled, "deliveries came more than once");
        fault(self.unanswered, "messages were never answered");
        if self.acked == 0 {
            faults.push("nothing was acknowledged".to_owned());
        }
        if !self.ends.is_empty() {
            faults.push(format!("sockets ended: {:?}", self.ends));
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_slow_counts_where_it_was_due() {
        let ledger = Ledger::new();
        let room = ledger.add_room(Uuid::nil(), 2, 1);
        let due = Instant::now();
        tokio::time::advance(Duration::from_secs(2)).await;
        let number = ledger.sent(&room, 0, due, Pace::Rate(1.0)).unwrap();
        let later = ledger.begin_phase();
        tokio::time::advance(Duration::from_secs(1)).await;
        ledger.answered(&room, number, true).unwrap();
        ledger.delivered(&room, number, true).unwrap();
        let ack = |phase| ledger.phase(phase, |phase| phase.latency().get("ack").copied());
        assert!(
            ack(0).unwrap().p50_us >= 2_990_000,
            "from when it was due, not sent: {:?}",
            ack(0)
        );
        assert!(ack(later).is_none());
        assert_eq!(ledger.phase(later, |phase| (phase.acked, phase.delivered)), (1, 1));
    }

    #[tokio::test]
    async fn what_is_lost_or_comes_twice_is_found() {
        let ledger = Ledger::new();
        let room = ledger.add_room(Uuid::nil(), 3, 1);
        let send =
            || ledger.sent(&room, 0, Instant::now(), Pace::Undelivered(9)).expect("there is room");
        let [whole, half, refused, open] = [send(), send(), send(), send()];
        let under_way = || room.writer(0).count.load(Relaxed);
        assert_eq!(under_way(), 4);
        for number in [whole, half] {
            ledger.answered(&room, number, true).unwrap();
        }
        ledger.answered(&room, refused, false).unwrap();
        assert!(ledger.answered(&room, refused, true).is_none(), "answered before");
        assert_eq!(under_way(), 3, "of the acknowledged ones, recipients still lack something");
        let members = || crate::traffic::Member::new(ledger.clone(), [room.clone()]);
        let key = |number| Some(crate::wire::Key { room: 0, number });
        let (mut one, mut other) = (members(), members());
        one.on_message(key(whole), true);
        other.on_message(key(whole), true);
        other.on_message(key(half), true);
        other.on_message(key(half), true);
        other.on_message(Some(crate::wire::Key { room: 7, number: 0 }), true);
        assert_eq!((under_way(), open), (2, 3));
        let outcome = ledger.outcome();
        assert_eq!((outcome.missing, outcome.doubled, outcome.unanswered), (1, 1, 1));
        assert_eq!((outcome.acked, outcome.refused, outcome.delivered), (2, 1, 3));
        assert_eq!(outcome.errors["a foreign message"], 1);
        assert_eq!(outcome.faults().len(), 3, "{:?}", outcome.faults());
    }
}
