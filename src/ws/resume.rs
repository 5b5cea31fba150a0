//! A client reads what it missed, while live events go on.
//!
//! One page is in flight per session. Its answer takes its room in the queue before it is read, as
//! much as it may have, so that the socket of a client that asks and does not read is not read
//! either; once its size is known, what is too much is given back.

use std::sync::Arc;

use super::Node;
use super::handle::Session;
use super::outbound::{Class, Item, Place};
use crate::clock::Timestamp;
use crate::protocol::code::Code;
use crate::protocol::command::Sync;
use crate::protocol::event;
use crate::protocol::problem::Problem;
use crate::protocol::sync::{SyncAnswer, covered};
use crate::resume::ANSWER_BYTES;

/// Of the queue's bytes, which live events need, too.
const QUEUE_PART: usize = 4;

pub async fn on_sync(
    sync: Sync,
    reference: Option<String>,
    session: &Arc<Session>,
    node: &Arc<Node>,
) {
    let Some(reference) = reference else {
        let problem = Problem::invalid("ref", "a sync is answered by its ref: it must have one");
        return session.answer(event::error(None, &problem));
    };
    if !session.begin_sync() {
        let detail = "one sync at a time: wait for the answer to the last one";
        let problem = Problem::new(Code::RateLimited, detail);
        return session.answer(event::error(Some(&reference), &problem));
    }
    let bytes = ANSWER_BYTES.min(node.config.ws.buffer_bytes / QUEUE_PART);
    let reserved = session.reserve(bytes).await;
    let answered = session.clone();
    let limit = node.config.ws.buffer_bytes;
    let reply = Box::new(move |result: Result<SyncAnswer, Problem>| {
        finish(&answered, reserved, &reference, result, limit);
    });
    node.syncs.submit(session.user_id, sync, bytes, reply);
}

/// What it covers is proven by the pong that follows it.
fn finish(
    session: &Session,
    reserved: u32,
    reference: &str,
    result: Result<SyncAnswer, Problem>,
    limit: usize,
) {
    let now = Timestamp::now();
    let place = |(conversation_id, lo, hi)| Place { conversation_id, lo, hi, sent_at: now };
    let answer = result.map(|answer| {
        let places: Box<[Place]> = covered(&answer).into_iter().map(place).collect();
        (event::ok(reference, &answer), places)
    });
    let mut class = Class::Answer;
    let frame = match answer {
        Ok((frame, places)) if frame.len() <= limit => {
            class = Class::Page(places);
            frame
        }
        // One conversation with one message: nothing smaller can be asked for here.
        Ok(_) => {
            let detail = "the answer is larger than what may wait for this socket; \
                          ask by POST /api/v1/sync";
            event::error(Some(reference), &Problem::new(Code::TooLarge, detail))
        }
        Err(problem) => event::error(Some(reference), &problem),
    };
    let reserved = session.reserve_less(reserved, frame.len());
    // Before the answer can be read: the next sync may follow it at once.
    session.end_sync();
    session.push(Item { reserved, ..Item::text(frame, class) });
}
