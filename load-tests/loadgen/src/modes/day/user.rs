//! One user of the day, on one device. It comes back after each loss, reads what it missed, and sends
//! again what was not answered, under the same `client_message_id`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tidings_client::dice::Dice;
use tidings_client::socket::Socket;
use tidings_client::target::Target;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::schedule::Action;
use super::{Day, Done};
use crate::modes::count;
use crate::traffic::{Ledger, Member, Pace, Room, prepare};
use crate::wire::{self, Frame, Key};

pub const DEVICE: &str = "load-day";
/// As the reference client waits.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// After a refusal that does not say how long to wait.
const RETRY: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug)]
pub struct Order {
    pub action: Action,
    /// Which of the user's conversations: any number.
    pub place: usize,
    pub due: Instant,
}

pub struct User {
    ledger: Arc<Ledger>,
    done: Arc<Done>,
    member: Member,
    target: Target,
    index: usize,
    id: Uuid,
    rooms: Vec<Arc<Room>>,
    /// Of these rooms, which of the writers this user is.
    writers: Vec<usize>,
    cursors: BTreeMap<Uuid, u64>,
    /// The newest message of each conversation, for receipts.
    newest: BTreeMap<Uuid, Uuid>,
    /// Sent and not answered.
    unanswered: BTreeSet<(usize, usize)>,
    /// Other commands, by their `ref`, and when they were due.
    pending: BTreeMap<usize, (Action, Instant)>,
    commands: usize,
    sync: Option<Sync>,
}

/// The one sync under way.
struct Sync {
    after: Option<Uuid>,
    /// What it is for; none of what the server asked for.
    orders: Vec<(Action, Instant)>,
    /// Asked for again then.
    again: Option<Instant>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    message: Message<'a>,
    seq: Option<u64>,
}

#[derive(Deserialize)]
struct Message<'a> {
    id: Uuid,
    conversation_id: Uuid,
    sender_id: Uuid,
    seq: u64,
    client_message_id: Option<&'a str>,
}

impl Message<'_> {
    fn key(&self) -> Option<Key> {
        self.client_message_id?.parse().ok()
    }
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    conversations: Vec<Entry<'a>>,
    next_after: Option<Uuid>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    id: Uuid,
    next_seq: Option<u64>,
    #[serde(borrow, default)]
    messages: Vec<Message<'a>>,
}

impl User {
    pub fn new(day: &Day, index: usize, writers: Vec<usize>, cursors: BTreeMap<Uuid, u64>) -> Self {
        let rooms = day.memberships[index].clone();
        let mut member = Member::new(day.ledger.clone(), rooms.iter().cloned());
        member.resumes = true;
        Self {
            ledger: day.ledger.clone(),
            done: day.done.clone(),
            member,
            target: day.life.url(index).clone(),
            index,
            id: day.ids[index],
            rooms,
            writers,
            cursors,
            newest: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            pending: BTreeMap::new(),
            commands: 0,
            sync: None,
        }
    }

    /// Until nobody gives orders any more.
    pub async fn run(mut self, mut socket: Socket, mut orders: mpsc::Receiver<Order>) {
        loop {
            let again = self.sync.as_ref().and_then(|sync| sync.again);
            tokio::select! {
                closed = socket.pump(|_, text| self.on_text(text)) => {
                    if let Some(closed) = closed {
                        count(&mut self.ledger.counts().ends, &closed.to_string());
                        socket = self.come_back(Vec::new()).await;
                    }
                }
                order = orders.recv() => match order {
                    None => return socket.close().await,
                    Some(Order { action: Action::Reconnect, due, .. }) => {
                        socket.cut();
                        socket = self.come_back(vec![(Action::Reconnect, due)]).await;
                    }
                    Some(order) => self.on_order(order, &mut socket),
                },
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            }
            self.ask(&mut socket);
        }
    }

    fn on_order(&mut self, Order { action, place, due }: Order, socket: &mut Socket) {
        if self.rooms.is_empty() {
            return;
        }
        let at = place % self.rooms.len();
        let room = self.rooms[at].clone();
        match action {
            Action::Send => {
                let pace = Pace::Rate(0.0);
                if let Some(number) = self.ledger.sent(&room, self.writers[at], due, pace) {
                    self.unanswered.insert((room.number, number));
                    self.send(&room, number, socket);
                }
            }
            Action::Typing => {
                let payload = json!({ "conversation_id": room.id, "is_typing": true });
                self.command(action, due, "typing", payload, socket);
            }
            Action::Read => {
                // Nothing was said there yet: then there is nothing to be read.
                if let Some(message) = self.newest.get(&room.id) {
                    let payload = json!({ "message_id": message });
                    self.command(action, due, "read_receipt", payload, socket);
                }
            }
            Action::Sync => self.want((action, due)),
            Action::Reconnect | Action::Page => {}
        }
    }

    fn send(&self, room: &Room, number: usize, socket: &mut Socket) {
        let mut text = String::new();
        wire::send_message(&mut text, room.id, Key { room: room.number, number });
        socket.outbox().text(&text);
    }

    fn command(
        &mut self,
        action: Action,
        due: Instant,
        kind: &str,
        payload: serde_json::Value,
        socket: &mut Socket,
    ) {
        self.commands += 1;
        self.pending.insert(self.commands, (action, due));
        let reference = self.commands.to_string();
        let command = json!({ "type": kind, "ref": reference, "payload": payload });
        socket.outbox().text(&command.to_string());
    }

    /// A sync of everything, or a part in the one under way, which is as good.
    fn want(&mut self, order: (Action, Instant)) {
        let now = Some(Instant::now());
        let sync =
            self.sync.get_or_insert_with(|| Sync { after: None, orders: Vec::new(), again: now });
        sync.orders.push(order);
    }

    /// Asks for the next page, when that is due.
    fn ask(&mut self, socket: &mut Socket) {
        let Some(sync) = &mut self.sync else { return };
        if sync.again.take_if(|again| *again <= Instant::now()).is_none() {
            return;
        }
        let after = sync.after;
        let named: BTreeMap<_, _> =
            self.cursors.iter().filter(|(id, _)| after.is_none_or(|after| **id > after)).collect();
        let payload = json!({ "conversations": named, "after": after });
        let command = json!({ "type": "sync", "ref": "sync", "payload": payload });
        socket.outbox().text(&command.to_string());
    }

    /// With full jitter, as often as it takes; then all is read, and what was not answered is sent
    /// once more.
    async fn come_back(&mut self, orders: Vec<(Action, Instant)>) -> Socket {
        // Their answers were lost with the connection: typing and receipts are not repeated.
        self.pending.clear();
        let mut dice = Dice::of(self.index as u64, self.commands as u64);
        let mut limit = FIRST_WAIT;
        let mut socket = loop {
            sleep(dice.up_to(limit)).await;
            match prepare::open(&self.target, self.index, self.id, DEVICE).await {
                Ok(socket) => break socket,
                Err(error) => count(&mut self.ledger.counts().errors, &format!("{error:#}")),
            }
            limit = (limit * 2).min(LONGEST_WAIT);
        };
        let mut waiting = self.sync.take().map_or_else(Vec::new, |sync| sync.orders);
        waiting.extend(orders);
        self.sync = Some(Sync { after: None, orders: waiting, again: Some(Instant::now()) });
        for (room, number) in self.unanswered.clone() {
            if let Some(room) = self.member.room(room).cloned() {
                self.send(&room, number, &mut socket);
            }
        }
        socket
    }

    fn on_text(&mut self, text: &[u8]) {
        let Some(frame) = Frame::read(text) else {
            return self.ledger.error("not JSON");
        };
        match (frame.kind, frame.reference) {
            ("new_message", _) => {
                let Some(Event { message, seq }) = frame.payload() else {
                    return self.ledger.error("a message without a conversation");
                };
                self.member.on_message(message.key(), true);
                self.hold(&message, seq.unwrap_or(message.seq));
            }
            ("resync", _) => {
                let now = Some(Instant::now());
                self.sync.get_or_insert(Sync { after: None, orders: Vec::new(), again: now });
            }
            ("ok" | "error", Some("sync")) => self.on_page(&frame),
            ("ok" | "error", Some(reference)) => self.on_answer(&frame, reference),
            (kind, _) => count(&mut self.ledger.counts().events, kind),
        }
    }

    /// The cursor goes on by one, or by a page.
    fn hold(&mut self, message: &Message<'_>, seq: u64) {
        self.newest.insert(message.conversation_id, message.id);
        if let Some(cursor) = self.cursors.get_mut(&message.conversation_id)
            && *cursor + 1 == seq
        {
            *cursor = seq;
        }
    }

    fn on_answer(&mut self, frame: &Frame<'_>, reference: &str) {
        let acked = frame.kind == "ok";
        if !acked {
            let problem = frame.payload::<wire::Problem>();
            self.ledger.error(problem.as_ref().map_or("error without code", |p| p.code.as_str()));
        }
        if let Ok(Key { room, number }) = reference.parse() {
            // Answered twice where it was sent twice.
            if self.unanswered.remove(&(room, number)) {
                self.member.on_answer(frame, acked);
            }
            if let Some(Event { message, .. }) = frame.payload::<Event<'_>>().filter(|_| acked) {
                self.hold(&message, message.seq);
            }
        } else if let Some((action, due)) =
            reference.parse().ok().and_then(|number| self.pending.remove(&number))
            && acked
        {
            self.done.note(action, due);
        }
    }

    fn on_page(&mut self, frame: &Frame<'_>) {
        let Some(sync) = &mut self.sync else { return };
        if frame.kind == "error" {
            let problem = frame.payload::<wire::Problem>();
            let retry = problem.as_ref().and_then(|problem| problem.retry_ms);
            let code = problem.as_ref().map_or("error without code", |problem| &problem.code);
            self.ledger.error(&format!("sync: {code}"));
            sync.again = Some(Instant::now() + retry.map_or(RETRY, Duration::from_millis));
            return;
        }
        let Some(page) = frame.payload::<Page<'_>>() else {
            return self.ledger.error("a page without conversations");
        };
        sync.after = page.next_after;
        if page.next_after.is_some() {
            sync.again = Some(Instant::now());
        } else if let Some(sync) = self.sync.take() {
            for (action, due) in sync.orders {
                self.done.note(action, due);
            }
        }
        for Entry { id, next_seq, messages } in page.conversations {
            for message in &messages {
                // One's own come back, too; they are no delivery.
                if message.sender_id != self.id {
                    self.member.on_message(message.key(), false);
                }
                self.newest.insert(id, message.id);
            }
            if let (Some(cursor), Some(next)) = (self.cursors.get_mut(&id), next_seq) {
                *cursor = next.max(*cursor);
            }
        }
    }
}
