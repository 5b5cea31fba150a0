//! What a client's messages make happen. The read loop never waits for the store: it submits and
//! goes on, and the answer comes through the queue.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde_json::json;
use tokio::time::{Duration, Instant};

use super::handle::Session;
use super::outbound::{Class, Item};
use super::{Node, resume, signals};
use crate::clock::Timestamp;
use crate::protocol::answer::TokenRefreshed;
use crate::protocol::code::{CloseCode, Code};
use crate::protocol::command::{self, Command, Token};
use crate::protocol::event::{self, Event, MessageAnswer};
use crate::protocol::model::{Message, ReceiptKind};
use crate::protocol::problem::Problem;
use crate::store::types::{Amendment, Receipt};
use crate::write_path::{self, Sent, Yields};

/// Commands that cannot be understood, in a minute, before the session ends.
const MAX_FAULTS: u32 = 20;
/// Commands above the user's rate, in a minute, before the session ends. One who waits as he is told
/// has few; one who sends a burst at once has time to read that it was too much.
const MAX_HASTE: u32 = 1_000;

/// Acts on one whole message. Waits only for room among the session's commands in flight, so that
/// a client that sends faster than it is answered is slowed down by its own socket.
pub async fn on_message(
    mut message: BytesMut,
    session: &Arc<Session>,
    node: &Arc<Node>,
    faults: &mut Faults,
) -> Result<(), CloseCode> {
    if let Some(code) = session.queue.ended() {
        return Err(code);
    }
    // The timer ends silent ones.
    if session.is_past(Timestamp::now()) {
        return Err(CloseCode::TokenExpired);
    }
    let limit = node.limits.max_frame_bytes;
    let size = message.len();
    if size > limit {
        let detail = format!("the frame has {size} bytes, at most {limit} are allowed");
        let reference = command::reference(&mut message);
        let problem = Problem::new(Code::TooLarge, detail);
        answer(event::error(reference.as_deref(), &problem), session).await;
        return Ok(());
    }
    // Fragments and binary frames have not been checked yet; text in binary frames is text.
    if std::str::from_utf8(&message).is_err() {
        return Err(CloseCode::InvalidUtf8);
    }
    let frame = command::decode(&mut message, &node.limits);
    let reference = frame.reference;
    match frame.command {
        Ok(command) => match too_fast(&command, session, node) {
            Ok(()) => on_command(command, reference, size, session, node).await,
            Err(problem) => {
                if frame.is_send {
                    node.metrics.sends.refused.of(problem.code).increment(1);
                }
                // Not read on until there is room for the answer: who hammers slows himself down.
                answer(event::error(reference.as_deref(), &problem), session).await;
                faults.add_haste()?;
            }
        },
        Err(problem) => {
            if frame.is_send {
                node.metrics.sends.refused.of(problem.code).increment(1);
            }
            answer(event::error(reference.as_deref(), &problem), session).await;
            if matches!(problem.code, Code::Malformed | Code::UnknownCommand) {
                faults.add()?;
            }
        }
    }
    Ok(())
}

/// Whether the user has to wait before he does this.
fn too_fast(command: &Command, session: &Session, node: &Node) -> Result<(), Problem> {
    let (rates, user) = (&node.rates, session.user_id);
    match command {
        // Before anything is made of it, for a node that is overloaded refuses many.
        Command::SendMessage(send) if node.write_path.is_full(send.conversation_id) => {
            Err(write_path::busy())
        }
        Command::SendMessage(_) | Command::EditMessage(..) | Command::DeleteMessage(_) => {
            rates.send(user)
        }
        Command::ReadReceipt(_) => rates.receipt(user),
        Command::Typing(_) => rates.typing(user),
        Command::Sync(_) if node.write_path.is_pressed(Yields::Sync) => Err(crate::resume::busy()),
        Command::Sync(_) => rates.sync(user),
        Command::WatchPresence(_) => rates.watch(user),
        Command::RefreshToken(_) => rates.token(user),
        // Gathered in memory, whatever their number.
        Command::Ack(_) | Command::Ping => Ok(()),
    }
}

async fn on_command(
    command: Command,
    reference: Option<String>,
    size: usize,
    session: &Arc<Session>,
    node: &Arc<Node>,
) {
    match command {
        Command::Ping => {
            answer(Event::Pong { timestamp: Timestamp::now() }.encode(), session).await;
            if let Some(reference) = reference {
                answer(event::ok(&reference, json!({})), session).await;
            }
        }
        Command::SendMessage(send) => {
            let reserved = session.reserve(size).await;
            let answered = session.clone();
            let reply = Box::new(move |result: Result<Sent, Problem>| {
                let message = result.as_ref().map(|sent| MessageAnswer { message: sent.message() });
                finish(&answered, reserved, reference.as_deref(), message);
            });
            node.write_path.send(session.user_id, Some(session.id), send, reply);
        }
        Command::ReadReceipt(message_id) => {
            let reserved = session.reserve(size).await;
            let answered = session.clone();
            let receipt = Receipt { user_id: session.user_id, message_id, kind: ReceiptKind::Read };
            let reply = Box::new(move |result: Result<(), Problem>| {
                let result = result.as_ref().map(|()| json!({}));
                finish(&answered, reserved, reference.as_deref(), result);
            });
            node.write_path.receive(receipt, Some(session.id), reply);
        }
        Command::Ack(_) if !session.acks => {
            let detail = "ack is for sockets that were opened with /ws?features=acks";
            let problem = Problem::new(Code::Conflict, detail);
            answer(event::error(reference.as_deref(), &problem), session).await;
        }
        Command::Ack(ack) => {
            session.on_ack(&ack, &node.write_path.proofs);
            if let Some(reference) = reference {
                answer(event::ok(&reference, json!({})), session).await;
            }
        }
        Command::EditMessage(message_id, edit) => {
            // Metadata that is kept is in the answer, too.
            let kept = if edit.metadata.is_none() { node.limits.max_metadata_bytes } else { 0 };
            let amendment = Amendment { by: session.user_id, message_id, edit: Some(edit) };
            amend(amendment, reference, size + kept, session, node).await;
        }
        Command::RefreshToken(token) => {
            let reserved = session.reserve(size).await;
            let (session, node) = (session.clone(), node.clone());
            // The issuer may have to be asked for a key.
            node.clone().sessions.spawn(async move {
                let answer = match refresh_token(&token, &session, &node).await {
                    Ok(expires_at) => reference
                        .map(|reference| event::ok(&reference, TokenRefreshed { expires_at })),
                    Err(problem) => Some(event::error(reference.as_deref(), &problem)),
                };
                match answer {
                    Some(answer) => {
                        session.push(Item { reserved, ..Item::text(answer, Class::Answer) });
                    }
                    None => session.release(reserved),
                }
            });
        }
        Command::DeleteMessage(message_id) => {
            let amendment = Amendment { by: session.user_id, message_id, edit: None };
            amend(amendment, reference, size, session, node).await;
        }
        Command::Typing(typing) => signals::typing(typing, reference, size, session, node).await,
        Command::WatchPresence(watch) => {
            signals::watch(watch, reference, size, session, node).await;
        }
        Command::Sync(sync) => resume::on_sync(sync, reference, session, node).await,
    }
}

/// Nothing changes unless the token is good and the same user's.
async fn refresh_token(
    token: &Token,
    session: &Session,
    node: &Node,
) -> Result<Timestamp, Problem> {
    let identity = node.auth.check_token(token.as_str()).await?;
    if identity.user_id() != session.user_id {
        let detail = "the token is another user's; open a socket of his own";
        return Err(Problem::new(Code::Forbidden, detail));
    }
    let expires_at = identity.expires_at().expect("what a token proves ends with it");
    Ok(session.extend(expires_at))
}

/// Answers at once, which also waits for room: a client that sends many at once is slowed down.
async fn answer(bytes: Bytes, session: &Session) {
    let reserved = session.reserve(bytes.len()).await;
    session.push(Item { reserved, ..Item::text(bytes, Class::Answer) });
}

async fn amend(
    amendment: Amendment,
    reference: Option<String>,
    size: usize,
    session: &Arc<Session>,
    node: &Arc<Node>,
) {
    let reserved = session.reserve(size).await;
    let answered = session.clone();
    let reply = Box::new(move |result: Result<Arc<Message>, Problem>| {
        let message = result.as_ref().map(|message| MessageAnswer { message });
        finish(&answered, reserved, reference.as_deref(), message);
    });
    node.write_path.amend(amendment, Some(session.id), reply);
}

/// Answers a command that has waited for the store, in the room reserved for it.
pub(super) fn finish(
    session: &Session,
    reserved: u32,
    reference: Option<&str>,
    result: Result<impl Serialize, &Problem>,
) {
    let answer = match (result, reference) {
        (Ok(payload), Some(reference)) => event::ok(reference, payload),
        (Ok(_), None) => return session.release(reserved),
        (Err(problem), reference) => event::error(reference, problem),
    };
    session.push(Item { reserved, ..Item::text(answer, Class::Answer) });
}

/// What a client does wrong, counted by the minute.
#[derive(Default)]
pub struct Faults {
    misunderstood: Count,
    hasty: Count,
}

impl Faults {
    /// One more command that could not be understood; an error if that was one too many.
    pub fn add(&mut self) -> Result<(), CloseCode> {
        if self.misunderstood.add() > MAX_FAULTS { Err(CloseCode::BadProtocol) } else { Ok(()) }
    }

    /// One more command above the user's rate; an error if that was one too many.
    pub fn add_haste(&mut self) -> Result<(), CloseCode> {
        if self.hasty.add() > MAX_HASTE { Err(CloseCode::TooFast) } else { Ok(()) }
    }
}

#[derive(Default)]
struct Count {
    since: Option<Instant>,
    count: u32,
}

impl Count {
    /// How many there are in this minute, with one more.
    fn add(&mut self) -> u32 {
        let now = Instant::now();
        if self.since.is_none_or(|since| now - since > Duration::from_secs(60)) {
            *self = Self { since: Some(now), count: 0 };
        }
        self.count += 1;
        self.count
    }
}
