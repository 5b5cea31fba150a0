//! One connection's life.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::{Device, Order};
use crate::copy::{self, Message, Status};
use crate::history::{Entry, How};
use crate::socket::{Closed, Socket};
use crate::wire::{Frame, Problem};

/// How long a gap may take to close by itself.
const GAP_WAIT: Duration = Duration::from_millis(500);
/// Acknowledgements are gathered for so long.
const ACK_WAIT: Duration = Duration::from_millis(100);
/// `hello` must have come by then.
const HELLO_WAIT: Duration = Duration::from_secs(10);

/// Why it ended.
pub enum Ended {
    Closed(Closed),
    /// The server told to come back after this time.
    Told(Duration),
    /// Nothing came for too long, not even what was asked for.
    Silent,
    Dropped,
    Away,
    /// By the order to end.
    Ordered,
}

/// What one connection knows besides the device.
struct Session {
    greeted: bool,
    heard: Instant,
    pinged: bool,
    /// Silence after which one asks; twice as much ends the connection.
    silence: Duration,
    /// When a conversation's gap is not waited for any more.
    gaps: BTreeMap<Uuid, Instant>,
    /// To be acknowledged, and when.
    acks: BTreeSet<Uuid>,
    ack_at: Option<Instant>,
    leave: Option<Duration>,
}

#[derive(Deserialize)]
struct Hello {
    session_id: Uuid,
    node_id: Uuid,
    heartbeat_seconds: u64,
    store_epoch: Uuid,
}

#[derive(Deserialize)]
struct MessageEvent {
    message: Message,
    seq: Option<u64>,
}

#[derive(Deserialize)]
struct ConversationEvent {
    conversation: Conversation,
    seq: u64,
}

#[derive(Deserialize)]
struct Conversation {
    id: Uuid,
    members: Option<Vec<Member>>,
}

#[derive(Deserialize)]
struct Member {
    user_id: Uuid,
}

#[derive(Deserialize)]
struct Resync {
    conversations: Option<Vec<Uuid>>,
}

#[derive(Deserialize)]
struct Other {
    conversation_id: Option<Uuid>,
}

#[derive(Deserialize)]
struct Reconnect {
    after_ms: u64,
}

#[derive(Deserialize)]
struct SyncAnswer {
    store_epoch: Uuid,
    conversations: Vec<copy::Entry>,
    next_after: Option<Uuid>,
}

impl Device {
    pub(super) async fn session(&mut self, mut socket: Socket) -> Ended {
        let mut session = Session {
            greeted: false,
            heard: Instant::now(),
            pinged: false,
            silence: HELLO_WAIT / 2,
            gaps: BTreeMap::new(),
            acks: BTreeSet::new(),
            ack_at: None,
            leave: None,
        };
        let mut frames: Vec<Vec<u8>> = Vec::new();
        loop {
            let now = Instant::now();
            let Some(wake) = self.tick(&mut session, &mut socket, now) else {
                return Ended::Silent;
            };
            let stalled = self.stalled_until.is_some_and(|until| now < until);
            let closed = tokio::select! {
                closed = socket.pump(|_, text| frames.push(text.to_vec())), if !stalled => {
                    session.heard = Instant::now();
                    session.pinged = false;
                    closed
                }
                order = self.orders.recv() => match order {
                    Some(Order::Drop) => return Ended::Dropped,
                    None | Some(Order::End) => {
                        socket.close().await;
                        return Ended::Ordered;
                    }
                    Some(order) => {
                        self.on_order(order);
                        if self.away {
                            socket.close().await;
                            return Ended::Away;
                        }
                        None
                    }
                },
                () = sleep_until(wake) => None,
            };
            for frame in frames.drain(..) {
                self.on_frame(&mut session, &frame);
            }
            self.tell_state();
            if let Some(closed) = closed {
                return Ended::Closed(closed);
            }
            if let Some(after) = session.leave {
                socket.close().await;
                return Ended::Told(after);
            }
        }
    }

    /// Sends what is due. When to be called again; None if the connection is dead.
    fn tick(
        &mut self,
        session: &mut Session,
        socket: &mut Socket,
        now: Instant,
    ) -> Option<Instant> {
        if let Some(until) = self.stalled_until {
            if now < until {
                session.heard = now;
                return Some(until);
            }
            self.stalled_until = None;
        }
        let silent = now.saturating_duration_since(session.heard);
        let overdue = self.commands.overdue_at().is_some_and(|at| at <= now);
        if silent >= session.silence * 2 || overdue {
            return None;
        }
        let out = socket.outbox();
        if silent >= session.silence && !session.pinged && session.greeted {
            out.text(r#"{"type":"ping"}"#);
            session.pinged = true;
        }
        let ask_at = session.heard + session.silence * if session.pinged { 2 } else { 1 };
        let mut wake = ask_at.max(now + Duration::from_millis(10));
        if !session.greeted {
            return Some(wake);
        }
        let due: Vec<Uuid> =
            session.gaps.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for id in due {
            session.gaps.remove(&id);
            let Some(conversation) = self.copy.conversations.get(&id) else { continue };
            if let Some(next) = conversation.beyond_gap() {
                let cursor = conversation.cursor;
                self.note(Entry::Gap { conversation: id, cursor, next });
                self.resume.want(id);
            }
        }
        if let Some(frame) = self.resume.take(now, &self.copy) {
            out.text(&frame);
        }
        for frame in self.commands.take(now, |entry| self.profile.note(entry)) {
            out.text(&frame);
        }
        if session.ack_at.is_some_and(|at| at <= now) {
            session.ack_at = None;
            if let Some(frame) = self.acks(session) {
                out.text(&frame);
            }
        }
        let times = [self.commands.next(), self.resume.next(), session.ack_at];
        for at in times.into_iter().flatten().chain(session.gaps.values().copied()) {
            wake = wake.min(at);
        }
        Some(wake)
    }

    /// The cursors of what was told since the last time; but not while pages are still to come, for
    /// what these will bring is not held.
    fn acks(&self, session: &mut Session) -> Option<String> {
        let due = std::mem::take(&mut session.acks);
        let held = due.into_iter().filter_map(|id| {
            let conversation = self.copy.conversations.get(&id)?;
            let unsure = conversation.gone || conversation.partial || conversation.doubted;
            (!unsure && conversation.cursor > 0).then_some((id, conversation.cursor))
        });
        let held: BTreeMap<Uuid, u64> = held.collect();
        (!held.is_empty())
            .then(|| json!({ "type": "ack", "payload": { "conversations": held } }).to_string())
    }

    fn on_frame(&mut self, session: &mut Session, text: &[u8]) {
        let understood = Frame::read(text).and_then(|frame| self.on_event(session, &frame));
        if understood.is_none() {
            let text: String = String::from_utf8_lossy(text).chars().take(300).collect();
            self.note(Entry::Fault { what: format!("not understood: {text}") });
        }
    }

    /// None: it is not as the contract says.
    fn on_event(&mut self, session: &mut Session, frame: &Frame<'_>) -> Option<()> {
        match frame.kind {
            "hello" => {
                let hello: Hello = frame.payload()?;
                session.greeted = true;
                // The server pings after half of this at the latest.
                session.silence = Duration::from_secs(hello.heartbeat_seconds) * 2;
                let Hello { session_id: session, node_id: node, store_epoch: epoch, .. } = hello;
                self.note(Entry::Connected { session, node, epoch });
                if self.resume.on_hello(epoch) {
                    self.copy.doubt();
                }
                self.tell_state();
                self.show(|state| {
                    state.connected = true;
                    state.connects += 1;
                });
            }
            "new_message" | "message_updated" | "message_deleted" => {
                let event: MessageEvent = frame.payload()?;
                let id = event.message.conversation_id;
                self.reopen(id);
                self.told(session, How::Live, frame.kind, id, event.seq?, Some(&event.message));
            }
            "conversation_updated" => {
                let ConversationEvent { conversation, seq } = frame.payload()?;
                let (id, me) = (conversation.id, self.profile.user);
                let inside = conversation
                    .members
                    .is_none_or(|members| members.iter().any(|member| member.user_id == me));
                if inside {
                    self.reopen(id);
                }
                self.told(session, How::Live, frame.kind, id, seq, None);
                if !inside {
                    self.copy.left(id);
                    session.gaps.remove(&id);
                    // It may be old news: the log knows.
                    self.resume.want(id);
                }
            }
            "resync" => {
                self.note(Entry::Resync);
                match frame.payload::<Resync>()?.conversations {
                    Some(some) => some.into_iter().for_each(|id| self.resume.want(id)),
                    None => self.resume.want_all(),
                }
            }
            "reconnect" => {
                let Reconnect { after_ms } = frame.payload()?;
                self.note(Entry::Reconnect { after_ms });
                session.leave = Some(Duration::from_millis(after_ms));
            }
            "ok" => self.on_ok(session, frame)?,
            "error" => self.on_error(frame)?,
            // Others are not for us, or of a later release; but whose they are is seen.
            kind => {
                if let Some(Other { conversation_id: Some(id) }) = frame.payload()
                    && self.heard.insert((id, kind.to_owned()))
                {
                    self.note(Entry::Heard { kind: kind.to_owned(), conversation: id });
                }
            }
        }
        Some(())
    }

    /// Something is told of a conversation we had left: we are in again, or it is old; the log knows.
    fn reopen(&mut self, id: Uuid) {
        if self.copy.conversations.get(&id).is_some_and(|conversation| conversation.gone) {
            self.copy.reopen(id);
            self.resume.want(id);
        }
    }

    fn told(
        &mut self,
        session: &mut Session,
        how: How,
        kind: &str,
        id: Uuid,
        seq: u64,
        message: Option<&Message>,
    ) {
        let message = message.map(Message::state);
        let cursor = self.copy.told(id, seq, message.clone());
        let kind = kind.to_owned();
        self.note(Entry::Told { how, kind, conversation: id, seq, message, cursor });
        self.after_change(session, id);
    }

    fn after_change(&mut self, session: &mut Session, id: Uuid) {
        match self.copy.conversations[&id].beyond_gap() {
            Some(_) => {
                session.gaps.entry(id).or_insert_with(|| Instant::now() + GAP_WAIT);
            }
            None => {
                session.gaps.remove(&id);
            }
        }
        // Told again also means: not acknowledged yet.
        if self.profile.acks {
            session.acks.insert(id);
            session.ack_at.get_or_insert_with(|| Instant::now() + ACK_WAIT);
        }
    }

    fn on_ok(&mut self, session: &mut Session, frame: &Frame<'_>) -> Option<()> {
        let reference = frame.reference?;
        if let Some(named) = self.resume.answered(reference) {
            let answer: SyncAnswer = frame.payload()?;
            for entry in &answer.conversations {
                let id = entry.id;
                let since = named.get(&id).copied().unwrap_or_default();
                let copy::Paged { cursor, again } = self.copy.page(entry);
                self.note(Entry::Page {
                    conversation: id,
                    status: entry.status.word().into(),
                    since,
                    next_seq: entry.next_seq,
                    more: entry.more,
                    messages: entry.messages.iter().map(Message::state).collect(),
                    history_from: entry.history_from_seq,
                    left_seq: entry.left_seq,
                    cursor,
                });
                if again {
                    self.note(Entry::Again { conversation: id });
                    self.resume.want(id);
                }
                if entry.status == Status::Gone {
                    session.gaps.remove(&id);
                } else {
                    self.after_change(session, id);
                }
            }
            self.resume.on_page(answer.store_epoch, answer.next_after, &named);
            return Some(());
        }
        let MessageEvent { message, .. } = frame.payload()?;
        let (seq, change) = (message.seq, message.change_seq);
        let note = |entry| self.profile.note(entry);
        let kind = self.commands.on_ok(reference, message.id, seq, change, note)?;
        // A send's answer tells of the message's creation, another of its latest change.
        let seq = if kind == "new_message" { seq } else { change };
        self.told(session, How::Answer, kind, message.conversation_id, seq, Some(&message));
        Some(())
    }

    fn on_error(&mut self, frame: &Frame<'_>) -> Option<()> {
        let Problem { code, retry_ms } = frame.payload()?;
        let Some(reference) = frame.reference else {
            // Of an acknowledgement: we may have been removed meanwhile, and what the store did not
            // take is told again.
            let expected = matches!(&*code, "not_found" | "unavailable" | "busy");
            return expected.then_some(());
        };
        if self.resume.answered(reference).is_some() {
            self.resume.on_error(retry_ms);
            let again = matches!(&*code, "busy" | "unavailable" | "rate_limited");
            return again.then_some(());
        }
        let note = |entry| self.profile.note(entry);
        self.commands.on_error(reference, code, retry_ms, note).then_some(())
    }
}
