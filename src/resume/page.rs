//! Which conversations of a sync get into one answer, and how much of each. Pure: what the store
//! said goes in, an answer within its bounds comes out.
//!
//! Conversations are answered in order of id. The first one that does not fit whole ends the
//! answer, and the next call goes on with it.

use std::io;

use serde::Serialize;
use uuid::Uuid;

use crate::ids::{ConversationId, Seq, UserId};
use crate::protocol::command::Sync;
use crate::protocol::model::Conversation;
use crate::protocol::sync::{SyncAnswer, SyncEntry, SyncStatus};
use crate::sabotage::{self, Mutation};
use crate::store::MEMBERS_SHOWN;
use crate::store::types::{Head, Heads, LogPage, LogPart, PageWanted};

/// Conversations in one answer.
const MAX_ENTRIES: usize = 1_000;
/// Of them, those whose logs are read.
const MAX_WANTED: usize = 100;
/// About what an entry takes, without messages.
const ENTRY_BYTES: usize = 128;
/// About what a member takes inside a conversation.
const MEMBER_BYTES: usize = 220;

/// What an answer is to hold, before logs are read.
#[derive(Debug)]
pub struct Plan {
    pub slots: Vec<Slot>,
    /// Where the range goes on behind the slots; None if they are all.
    next_after: Option<ConversationId>,
}

#[derive(Debug)]
pub enum Slot {
    /// Nothing is to be read for it.
    Done(SyncEntry),
    Wanted {
        wanted: PageWanted,
        /// By the client; others he need not be told of once they are gone.
        named: bool,
    },
}

impl Plan {
    pub fn wanted(&self) -> impl Iterator<Item = PageWanted> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Wanted { wanted, .. } => Some(*wanted),
            Slot::Done(_) => None,
        })
    }
}

/// Judges what the client named by where the logs stand. `epoch` is the store's, `bytes` what the
/// answer should have at most.
pub fn plan(user_id: UserId, sync: &Sync, epoch: Uuid, heads: &Heads, bytes: usize) -> Plan {
    let other_epoch = sync.store_epoch.is_some_and(|theirs| theirs != epoch);
    let mut plan = Plan { slots: Vec::new(), next_after: heads.up_to };
    let (mut room, mut wanted, mut estimate) = (i64::from(sync.limit), 0, 0);
    let mut last = None;
    for (id, cursor, head) in merged(sync, heads) {
        let slot = judge(id, cursor, head, other_epoch);
        let Some(slot) = slot else { continue };
        let full = room == 0 || wanted == MAX_WANTED;
        let full = full && slot.is_err() || plan.slots.len() == MAX_ENTRIES;
        // Twice, for what is guessed too high; the answer is cut by what it has in truth.
        if full || estimate >= bytes.saturating_mul(2) {
            plan.next_after = last;
            return plan;
        }
        last = Some(id);
        estimate += ENTRY_BYTES;
        plan.slots.push(match slot {
            Ok(entry) => Slot::Done(entry),
            Err((since, head)) => {
                let page = PageWanted {
                    user_id,
                    conversation_id: id,
                    since,
                    room: u32::try_from(room).unwrap_or(sync.limit),
                    last_seq: head.last_seq,
                    history_from_seq: head.history_from_seq,
                };
                // A place holds one message at most.
                room -= (head.last_seq - since.max(head.history_from_seq - 1)).clamp(0, room);
                wanted += 1;
                let members = usize::try_from(head.member_count).unwrap_or_default();
                if since == 0 && members <= MEMBERS_SHOWN {
                    estimate += members * MEMBER_BYTES;
                }
                Slot::Wanted { wanted: page, named: cursor.is_some() }
            }
        });
    }
    plan
}

/// All that was named or found, in order of id.
fn merged<'a>(
    sync: &'a Sync,
    heads: &'a Heads,
) -> impl Iterator<Item = (ConversationId, Option<Seq>, Option<Head>)> + 'a {
    let mut named = sync
        .cursors
        .iter()
        .map(|(id, seq)| (*id, *seq))
        .take_while(|(id, _)| heads.up_to.is_none_or(|up_to| *id <= up_to))
        .peekable();
    let mut found = heads.heads.iter().copied().peekable();
    std::iter::from_fn(move || {
        let id = match (named.peek(), found.peek()) {
            (None, None) => return None,
            (Some((id, _)), None) => *id,
            (None, Some(head)) => head.conversation_id,
            (Some((id, _)), Some(head)) => (*id).min(head.conversation_id),
        };
        let cursor = named.next_if(|(named, _)| *named == id).map(|(_, seq)| seq);
        Some((id, cursor, found.next_if(|head| head.conversation_id == id)))
    })
}

/// The entry, or from where on the log is to be read; None if there is nothing to tell.
fn judge(
    id: ConversationId,
    cursor: Option<Seq>,
    head: Option<Head>,
    other_epoch: bool,
) -> Option<Result<SyncEntry, (Seq, Head)>> {
    let bare = |status, since, next_seq| Some(Ok(SyncEntry::bare(id, status, since, next_seq)));
    match (cursor, head) {
        // No difference between what does not exist and what is not his.
        (Some(since), None) => bare(SyncStatus::Gone, since, since),
        (Some(since), Some(Head { left_seq: Some(left_seq), .. })) => {
            Some(Ok(gone(id, since, Some(left_seq))))
        }
        (None, Some(Head { left_seq: Some(_), .. })) | (None, None) => None,
        (None, Some(head)) => Some(Err((0, head))),
        (Some(since), Some(head)) if other_epoch || since > head.last_seq => {
            bare(SyncStatus::Reset, since, head.last_seq)
        }
        (Some(since), Some(head)) if since == head.last_seq => {
            bare(SyncStatus::UpToDate, since, since)
        }
        (Some(since), Some(head)) => Some(Err((since, head))),
    }
}

fn gone(id: ConversationId, since: Seq, left_seq: Option<Seq>) -> SyncEntry {
    SyncEntry { left_seq, ..SyncEntry::bare(id, SyncStatus::Gone, since, since) }
}

/// Puts the answer together. `pages` are those of [`Plan::wanted`] in their order, `shown` gives
/// the conversation of each whose info changed. The answer has at most `limit` messages and `bytes`
/// bytes, but always something.
pub fn assemble(
    plan: Plan,
    pages: impl IntoIterator<Item = LogPage>,
    mut shown: impl FnMut(ConversationId) -> Option<Conversation>,
    epoch: Uuid,
    limit: u32,
    bytes: usize,
) -> SyncAnswer {
    let mut pages = pages.into_iter();
    let mut entries: Vec<SyncEntry> = Vec::with_capacity(plan.slots.len());
    let (mut room, mut used) = (limit as usize, 0);
    let mut next_after = plan.next_after;
    for slot in plan.slots {
        let entry = match slot {
            Slot::Done(entry) => Some(entry),
            Slot::Wanted { wanted, named } => {
                match pages.next().unwrap_or(LogPage::Gone { left_seq: None }) {
                    LogPage::Gone { left_seq } => {
                        named.then(|| gone(wanted.conversation_id, wanted.since, left_seq))
                    }
                    LogPage::Part(part) => {
                        let id = wanted.conversation_id;
                        let conversation =
                            part.info_changed(wanted.since).then(|| shown(id)).flatten();
                        Some(changed(wanted, part, conversation))
                    }
                }
            }
        };
        let Some(mut entry) = entry else { continue };
        if sabotage::is_on(Mutation::CutPages) {
            entry.messages.pop();
        }
        let first = entries.is_empty();
        let Some(size) = fit(&mut entry, first, room, bytes.saturating_sub(used)) else {
            next_after = Some(before(entry.id));
            break;
        };
        used += size;
        room -= entry.messages.len();
        let cut = entry.more.then(|| before(entry.id));
        entries.push(entry);
        if cut.is_some() {
            next_after = cut;
            break;
        }
    }
    SyncAnswer { store_epoch: epoch, conversations: entries, next_after }
}

fn changed(wanted: PageWanted, part: LogPart, conversation: Option<Conversation>) -> SyncEntry {
    SyncEntry {
        history_from_seq: conversation.is_some().then_some(part.history_from_seq),
        conversation: conversation.map(Box::new),
        more: part.next_seq < part.last_seq,
        messages: part.messages,
        pending: part.pending,
        ..SyncEntry::bare(wanted.conversation_id, SyncStatus::Changed, wanted.since, part.next_seq)
    }
}

/// Cuts the entry to what there is room for, and tells its size; None if there is none for it. The
/// first one of an answer goes in, with a message at least, whatever its size.
fn fit(entry: &mut SyncEntry, first: bool, room: usize, bytes: usize) -> Option<usize> {
    let messages = std::mem::take(&mut entry.messages);
    let mut size = encoded_len(entry);
    if size > bytes && !first {
        return None;
    }
    let mut keep = 0;
    for message in messages.iter().take(room) {
        let with = size + encoded_len(message) + 1;
        if with > bytes && !(first && keep == 0) {
            break;
        }
        (size, keep) = (with, keep + 1);
    }
    if keep == 0 && !messages.is_empty() {
        return None;
    }
    let all = messages.len();
    let mut part = LogPart {
        last_seq: entry.next_seq,
        history_from_seq: 0,
        info_head: 0,
        messages,
        next_seq: entry.next_seq,
        pending: std::mem::take(&mut entry.pending),
    };
    part.cut(entry.since, keep);
    entry.more |= keep < all;
    (entry.messages, entry.next_seq, entry.pending) = (part.messages, part.next_seq, part.pending);
    Some(size)
}

/// The place in the order of ids just before this one: a range after it begins with this one.
fn before(id: ConversationId) -> ConversationId {
    ConversationId(Uuid::from_u128(id.0.as_u128().saturating_sub(1)))
}

/// How long it is as JSON.
fn encoded_len<T: Serialize>(value: &T) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).expect("answers have string keys, and counting works");
    count.0
}
