//! Who is writing just now: told to the conversation's other members, and stored nowhere.
//!
//! A client says it again every few seconds while its user writes, and says when he stops; others
//! show it for some seconds, or until his message comes. Told are: at most one beginning in
//! [`QUIET`] for each user and conversation, and after it one end, at once. Whoever types is not
//! told himself, on no device. Called by `http` and `ws`; one task per node, so that an end never
//! overtakes its beginning.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use moka::sync::Cache;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, Class, Classic, Envelope, Head};
use crate::clock::Timestamp;
use crate::ids::{ConversationId, UserId};
use crate::protocol::code::Code;
use crate::protocol::command::Typing as Command;
use crate::protocol::event::Event;
use crate::protocol::problem::Problem;
use crate::store::types::{MemberState, Members};
use crate::telemetry::Metrics;
use crate::write_path::members::MembersCache;
use crate::write_path::{WritePath, Yields, store_problem};

/// Within it a beginning is not told again.
pub const QUIET: Duration = Duration::from_secs(3);
/// For so long after his removal a member's typing may still be told, and he be told of others'.
const MEMBERS_AGE: Duration = Duration::from_secs(2);
/// What waits to be told; beyond, a client hears that the node is busy.
const QUEUE: usize = 1_024;
/// Taken together, so that their publishes share round trips.
const BATCH: usize = 128;
/// Conversations whose members are read at a time.
const READS: usize = 8;
/// Remembered of the last seconds; each some ten bytes.
const REMEMBERED: u64 = 100_000;

/// Called once, with whether it is his to tell; must not wait.
pub type Reply = Box<dyn FnOnce(Result<(), Problem>) + Send>;

struct Request {
    by: UserId,
    command: Command,
    reply: Reply,
}

/// The way in.
#[derive(Clone)]
pub struct Typing(mpsc::Sender<Request>);

impl Typing {
    /// Submits and returns at once.
    pub fn tell(&self, by: UserId, command: Command, reply: Reply) {
        let request = Request { by, command, reply };
        let (request, problem) = match self.0.try_send(request) {
            Ok(()) => return,
            Err(mpsc::error::TrySendError::Full(request)) => {
                (request, Problem::new(Code::Busy, "too many are typing; try again shortly"))
            }
            Err(mpsc::error::TrySendError::Closed(request)) => {
                let detail = "this node is stopping; use another";
                (request, Problem::new(Code::Unavailable, detail))
            }
        };
        (request.reply)(Err(problem));
    }
}

/// What tells the others.
pub struct Teller {
    queue: mpsc::Receiver<Request>,
    members: MembersCache,
    bus: Bus,
    write_path: WritePath,
    told: Cache<(UserId, ConversationId), Told>,
    metrics: Metrics,
}

/// What was told last of one user in one conversation.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Told {
    /// When his latest beginning was.
    began: Option<Instant>,
    is_typing: bool,
}

pub fn new(
    members: MembersCache,
    bus: Bus,
    write_path: WritePath,
    metrics: Metrics,
) -> (Typing, Teller) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let told = Cache::builder().max_capacity(REMEMBERED).time_to_live(QUIET).build();
    (Typing(sender), Teller { queue, members, bus, write_path, told, metrics })
}

impl Teller {
    pub async fn run(mut self, stop: CancellationToken) {
        let mut requests = Vec::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = self.queue.recv_many(&mut requests, BATCH) => {}
            }
            let judged = requests.drain(..).map(async |request| {
                let members = self.judge(request.by, request.command.conversation_id).await;
                (request, members)
            });
            let judged: Vec<_> = futures_util::stream::iter(judged).buffered(READS).collect().await;
            let mut publishes = Vec::new();
            for (request, members) in judged {
                let Request { by, command, reply } = request;
                match members {
                    Ok(members) => {
                        reply(Ok(()));
                        self.tell(by, command, &members, &mut publishes);
                    }
                    Err(problem) => reply(Err(problem)),
                }
            }
            if self.write_path.is_pressed(Yields::Ephemeral) {
                continue;
            }
            // Who is not there now needs not hear of it later.
            self.bus.publish(&publishes).await;
            self.metrics.signals.typing.increment(publishes.len() as u64);
        }
    }

    /// The members, if he may write there.
    async fn judge(&self, by: UserId, id: ConversationId) -> Result<Arc<Members>, Problem> {
        let mut members = self.recent(id, MEMBERS_AGE).await?;
        if !find(&members, by).is_some_and(|member| member.can_send_messages) {
            // He may have come, or got the right, a moment ago.
            members = self.recent(id, Duration::ZERO).await?;
        }
        match find(&members, by) {
            None => Err(Problem::conversation_not_found()),
            Some(member) if !member.can_send_messages => Err(Problem::new(
                Code::Forbidden,
                "you may read this conversation but not write to it",
            )),
            Some(_) => Ok(members),
        }
    }

    async fn recent(&self, id: ConversationId, age: Duration) -> Result<Arc<Members>, Problem> {
        let members = self.members.recent(id, age).await.map_err(|error| store_problem(&error))?;
        members.ok_or_else(Problem::conversation_not_found)
    }

    fn tell(
        &self,
        by: UserId,
        command: Command,
        members: &Members,
        publishes: &mut Vec<(UserId, Bytes)>,
    ) {
        let Command { conversation_id, is_typing } = command;
        let key = (by, conversation_id);
        let Some(told) = next(self.told.get(&key), is_typing, Instant::now()) else { return };
        self.told.insert(key, told);
        let timestamp = Timestamp::now();
        let event = Event::Typing { conversation_id, user_id: by, is_typing, timestamp };
        let envelope = Envelope {
            head: Head {
                class: Class::Ephemeral,
                conversation_id,
                sender_id: by,
                origin: None,
                lo: 0,
                hi: 0,
                sent_at: timestamp,
            },
            full: event.encode(),
            // Classic clients take each of these events for a beginning.
            classic: if is_typing { Classic::Same } else { Classic::None },
        };
        let envelope = envelope.encode();
        let others = members.members.iter().filter(|m| m.left_seq.is_none() && m.user_id != by);
        publishes.extend(others.map(|member| (member.user_id, envelope.clone())));
    }
}

fn find(members: &Members, user: UserId) -> Option<&MemberState> {
    members.members.iter().find(|member| member.user_id == user && member.left_seq.is_none())
}

/// What will have been told, if it is to be told at all. What was told longer than [`QUIET`] ago is
/// forgotten.
fn next(told: Option<Told>, is_typing: bool, now: Instant) -> Option<Told> {
    let began = told.and_then(|told| told.began);
    match told {
        _ if is_typing => {
            let again = began.is_some_and(|began| now - began < QUIET);
            (!again).then_some(Told { began: Some(now), is_typing })
        }
        Some(told) if !told.is_typing => None,
        // Of a beginning that is forgotten, or was told by another node, the end is told, too.
        _ => Some(Told { began, is_typing }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of these, at milliseconds, are told.
    fn told(said: &[(u64, bool)]) -> Vec<u64> {
        let start = Instant::now();
        let mut held: Option<(Told, u64)> = None;
        let mut told = Vec::new();
        for (at, is_typing) in said {
            let known = held.filter(|(_, since)| at - since < 3_000).map(|(known, _)| known);
            let now = start + Duration::from_millis(*at);
            if let Some(known) = next(known, *is_typing, now) {
                held = Some((known, *at));
                told.push(*at);
            }
        }
        told
    }

    #[test]
    fn one_beginning_in_three_seconds_and_its_end_at_once() {
        let (yes, no) = (true, false);
        assert_eq!(told(&[(0, yes), (1_000, yes), (2_999, yes), (3_000, yes)]), [0, 3_000]);
        assert_eq!(told(&[(0, yes), (10, no), (20, no)]), [0, 10]);
        let restless = [(0, yes), (10, no), (20, yes), (30, no), (40, yes), (3_000, yes)];
        assert_eq!(told(&restless), [0, 10, 3_000]);
        assert_eq!(told(&[(0, yes), (8_000, no), (8_500, no)]), [0, 8_000], "a late end");
        assert_eq!(told(&[(0, no), (10, yes), (20, no)]), [0, 10, 20]);
    }
}
