//! One socket of a conversation's member: notes what arrives, and writes at its pace if it is one
//! of the writers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidings_client::socket::Socket;
use tokio::time::{Instant, sleep_until};

use super::ledger::Unfinished;
use super::{Ledger, Pace, Room, Sending, Stage};
use crate::modes::count;
use crate::wire::{self, Frame, Key};

/// On schedule: messages under way of a writer beyond which it waits. The wait counts as latency.
const MAX_UNANSWERED: usize = 1_000;
/// After a refusal that does not say how long to wait.
const RETRY: Duration = Duration::from_millis(100);

/// What one user knows of the messages.
pub struct Member {
    ledger: Arc<Ledger>,
    rooms: BTreeMap<usize, Held>,
    /// It reads pages, too: these may bring what an event brings as well, and none of it is a
    /// double.
    pub resumes: bool,
}

struct Held {
    room: Arc<Room>,
    /// By message, whether it is here.
    seen: Vec<bool>,
}

impl Member {
    pub fn new(ledger: Arc<Ledger>, rooms: impl IntoIterator<Item = Arc<Room>>) -> Self {
        let held = |room: Arc<Room>| (room.number, Held { room, seen: Vec::new() });
        Self { ledger, rooms: rooms.into_iter().map(held).collect(), resumes: false }
    }

    pub fn room(&self, number: usize) -> Option<&Arc<Room>> {
        self.rooms.get(&number).map(|held| &held.room)
    }

    /// Of an event, or else of a page.
    pub fn on_message(&mut self, key: Option<Key>, live: bool) {
        let held = key.and_then(|key| Some((key.number, self.rooms.get_mut(&key.room)?)));
        let Some((number, held)) = held else {
            return self.ledger.error("a foreign message");
        };
        if held.seen.len() <= number {
            held.seen.resize(number + 1, false);
        }
        if std::mem::replace(&mut held.seen[number], true) {
            self.ledger.counts().doubled += usize::from(!self.resumes);
        } else if self.ledger.delivered(&held.room, number, live).is_none() {
            self.ledger.error("a foreign message");
        }
    }

    /// The answer to a send; true if it was taken for one.
    pub fn on_answer(&self, frame: &Frame<'_>, acked: bool) {
        let key = frame.reference.and_then(|reference| reference.parse::<Key>().ok());
        let room = key.and_then(|key| self.rooms.get(&key.room));
        let answered = room
            .zip(key)
            .and_then(|(held, key)| self.ledger.answered(&held.room, key.number, acked));
        if answered.is_none() {
            self.ledger.error("an answer to nothing");
        }
    }

    fn on_text(&mut self, writer: Option<&mut Writer>, text: &[u8]) {
        let Some(frame) = Frame::read(text) else {
            return self.ledger.error("not JSON");
        };
        match frame.kind {
            "new_message" => {
                let payload: Option<wire::MessagePayload<'_>> = frame.payload();
                self.on_message(payload.and_then(|payload| payload.message.key()), true);
            }
            "ok" => self.on_answer(&frame, true),
            "error" => {
                let problem = frame.payload::<wire::Problem>();
                let code = problem.as_ref().map_or("error without code", |p| p.code.as_str());
                self.ledger.error(code);
                self.on_answer(&frame, false);
                if let Some(writer) = writer {
                    let retry = problem.and_then(|problem| problem.retry_ms);
                    writer.pause(retry.map_or(RETRY, Duration::from_millis));
                }
            }
            kind => count(&mut self.ledger.counts().events, kind),
        }
    }

    /// Until the end of the run.
    pub async fn run(mut self, mut client: Socket, mut writer: Option<Writer>, who: &str) {
        let ledger = self.ledger.clone();
        let mut stage = ledger.stage.subscribe();
        // The run may have begun before this task.
        stage.mark_changed();
        loop {
            let wake = writer.as_mut().and_then(|writer| writer.fill(&ledger, &mut client));
            let unfinished = writer.as_ref().map(|writer| writer.unfinished.clone());
            tokio::select! {
                closed = client.pump(|_, text| self.on_text(writer.as_mut(), text)) => {
                    if let Some(closed) = closed {
                        return count(&mut ledger.counts().ends, &format!("{who} {closed}"));
                    }
                }
                _ = stage.changed() => {
                    let stage = *stage.borrow_and_update();
                    if let Stage::Close = stage {
                        return client.close().await;
                    }
                    if let Some(writer) = &mut writer {
                        writer.on_stage(stage);
                    }
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
                () = less(unfinished.as_deref()), if unfinished.is_some() => {}
            }
        }
    }
}

async fn less(unfinished: Option<&Unfinished>) {
    if let Some(unfinished) = unfinished {
        unfinished.less.notified().await;
    }
}

/// Of one conversation's writers, what it has to write.
pub struct Writer {
    room: Arc<Room>,
    /// In the room.
    index: usize,
    unfinished: Arc<Unfinished>,
    /// Its turn on the schedule of all, and how many they are.
    turn: (usize, usize),
    sending: Option<Sending>,
    end: Option<Instant>,
    /// Messages since the sending began, and how many there may be.
    sent: usize,
    most: usize,
    /// Set by a refusal: no sends until then.
    resume: Option<Instant>,
    /// The buffer in which commands are written.
    command: String,
}

impl Writer {
    pub fn new(room: Arc<Room>, index: usize, turn: (usize, usize)) -> Self {
        Self {
            unfinished: room.writer(index),
            room,
            index,
            turn,
            sending: None,
            end: None,
            sent: 0,
            most: usize::MAX,
            resume: None,
            command: String::new(),
        }
    }

    pub fn at_most(mut self, messages: usize) -> Self {
        self.most = messages;
        self
    }

    fn on_stage(&mut self, stage: Stage) {
        match stage {
            Stage::Send(sending) => {
                (self.sending, self.end) = (Some(sending), None);
                (self.sent, self.resume) = (0, None);
            }
            Stage::Settle { end } => self.end = Some(end),
            Stage::Listen | Stage::Close => {}
        }
    }

    fn pause(&mut self, retry: Duration) {
        if self.sending.is_none_or(|sending| !sending.heedless) {
            self.resume = Some(Instant::now() + retry);
        }
    }

    /// Queues what may leave now; returns when to look again, if not for something that arrives.
    fn fill(&mut self, ledger: &Ledger, client: &mut Socket) -> Option<Instant> {
        let Sending { from, pace, .. } = self.sending?;
        loop {
            let now = Instant::now();
            if let Some(later) = self.resume.filter(|resume| *resume > now) {
                return Some(later);
            }
            let (due, most) = match pace {
                Pace::Unanswered(most) | Pace::Undelivered(most) => (now.max(from), most),
                Pace::Rate(rate) => {
                    let (turn, turns) = self.turn;
                    let place = (self.sent * turns + turn) as f64;
                    (from + Duration::from_secs_f64(place / rate), MAX_UNANSWERED)
                }
            };
            let count = self.unfinished.count.load(std::sync::atomic::Ordering::Relaxed);
            let over = self.sent >= self.most || self.end.is_some_and(|end| due >= end);
            if over || count >= most {
                return None;
            }
            if due > now {
                return Some(due);
            }
            let number = ledger.sent(&self.room, self.index, due, pace)?;
            self.sent += 1;
            let key = Key { room: self.room.number, number };
            wire::send_message(&mut self.command, self.room.id, key);
            client.outbox().text(&self.command);
        }
    }
}
