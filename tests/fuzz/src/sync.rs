use std::collections::{BTreeMap, BTreeSet};

use tidings::clock::Timestamp;
use tidings::ids::{ConversationId, MessageId, Seq, UserId};
use tidings::protocol::command::Sync;
use tidings::protocol::model::{Conversation, Kind, Message, MessageType};
use tidings::protocol::sync::{SyncStatus, covered};
use tidings::resume::page::{assemble, plan};
use tidings::store::types::{Head, Heads, LogPage, LogPart, PageWanted};
use uuid::Uuid;

use super::Numbers;

const ME: UserId = UserId(Uuid::from_u128(7));
const EPOCH: Uuid = Uuid::from_u128(9);

/// Logs of a few conversations, a client with cursors in them, and the bounds of its pages: whatever
/// they are, page by page it comes to hold exactly what is there, and nothing else is proven.
pub fn sync(data: &[u8]) {
    let mut numbers = Numbers::new(data);
    let limit = 1 + numbers.below(6) as u32;
    let bytes = [1, 700, 3_000, 1 << 18][numbers.below(4)];
    let logs: BTreeMap<_, _> =
        (1..=1 + numbers.below(5)).map(|n| (id(n as u128), Log::random(&mut numbers))).collect();
    let mut copies: BTreeMap<ConversationId, Copy> = BTreeMap::new();
    for (id, log) in &logs {
        let cursor = numbers.below(log.last_seq as usize + 3) as Seq;
        // What was there when the cursor stood at the head, as the client got it then.
        let held = log.changes.iter().filter(|(seq, ..)| *seq <= cursor);
        if numbers.below(3) > 0 {
            let messages = held.map(|(seq, of, deleted)| (*of, (*seq, *deleted))).collect();
            copies.insert(*id, Copy { cursor, messages, proven: BTreeSet::new() });
        }
    }
    let mut after = None;
    for turn in 0.. {
        assert!(turn < 1_000, "a resume ends");
        after = page(&logs, &mut copies, after, limit, bytes);
        if after.is_none() {
            break;
        }
    }
    for (id, log) in &logs {
        let Some(copy) = copies.get(id) else {
            assert!(log.left, "{id:?} is left out");
            continue;
        };
        assert_eq!((copy.cursor, log.left), (log.last_seq, false), "{id:?}");
        assert_eq!(copy.messages, log.state(log.last_seq), "{id:?}");
    }
}

/// One page, asked for and taken over; where the range goes on.
fn page(
    logs: &BTreeMap<ConversationId, Log>,
    copies: &mut BTreeMap<ConversationId, Copy>,
    after: Option<ConversationId>,
    limit: u32,
    bytes: usize,
) -> Option<ConversationId> {
    let of_range = |id: &ConversationId| after.is_none_or(|after| *id > after);
    let cursors = copies.iter().filter(|(id, _)| of_range(id));
    let cursors: BTreeMap<_, _> = cursors.map(|(id, copy)| (*id, copy.cursor)).collect();
    let heads = logs.iter().filter(|(id, _)| of_range(id)).map(|(id, log)| Head {
        conversation_id: *id,
        last_seq: log.last_seq,
        left_seq: log.left.then_some(log.last_seq),
        history_from_seq: 1,
        member_count: 2,
    });
    let heads = Heads { heads: heads.collect(), up_to: None };
    let asked = Sync { cursors, after, to: None, store_epoch: Some(EPOCH), limit };
    let plan = plan(ME, &asked, EPOCH, &heads, bytes);
    let pages: Vec<_> = plan.wanted().map(|w| logs[&w.conversation_id].page(w)).collect();
    let answer = assemble(plan, pages, |id| Some(conversation(id)), EPOCH, limit, bytes);

    let listed: Vec<_> = answer.conversations.iter().map(|entry| entry.id).collect();
    assert!(listed.is_sorted_by(|a, b| a < b) && listed.iter().all(of_range), "{listed:?}");
    let messages: usize = answer.conversations.iter().map(|entry| entry.messages.len()).sum();
    assert!(messages <= limit as usize, "{messages} of {limit}");
    // One conversation with one message goes in whatever its size; what is around them is little.
    let size = serde_json::to_vec(&answer).expect("an answer can be written").len();
    assert!(size <= bytes + 200 || listed.len() == 1 && messages <= 1, "{size} of {bytes}");
    assert!(answer.next_after.is_none() || answer.next_after >= after, "it goes on");
    let done = |id: &ConversationId| of_range(id) && answer.next_after.is_none_or(|end| *id <= end);
    for (id, log) in logs.iter().filter(|(id, _)| done(id)) {
        assert!(listed.contains(id) || log.left && !copies.contains_key(id), "{id:?} is left out");
    }
    for (id, lo, hi) in covered(&answer) {
        assert!(0 < lo && lo <= hi && hi <= logs[&id].last_seq, "{id:?}: {lo}..={hi}");
        let proven = &mut copies.entry(id).or_default().proven;
        let said = logs[&id].state(logs[&id].last_seq);
        // What is deleted by now holds nobody up, and may be covered before it is brought.
        let is_deleted = |seq: &Seq| said.get(seq).is_some_and(|(_, deleted)| *deleted);
        let mut twice = (lo..=hi).filter(|seq| !proven.insert(*seq));
        assert!(twice.all(|seq| is_deleted(&seq)), "{id:?}: {lo}..={hi} twice");
    }
    for entry in answer.conversations {
        let log = &logs[&entry.id];
        match entry.status {
            SyncStatus::Gone => {
                assert!(log.left);
                copies.remove(&entry.id);
                continue;
            }
            SyncStatus::Reset => {
                assert!(entry.since > log.last_seq);
                copies.remove(&entry.id);
            }
            SyncStatus::UpToDate => assert_eq!(entry.since, log.last_seq),
            SyncStatus::Changed => assert!(entry.since < entry.next_seq),
        }
        let copy = copies.entry(entry.id).or_default();
        copy.cursor = entry.next_seq;
        if entry.status == SyncStatus::Reset {
            // Then the client reads the newest page of the history.
            copy.messages = log.state(entry.next_seq);
        }
        copy.messages
            .extend(entry.messages.iter().map(|m| (m.seq, (m.change_seq, m.deleted_at.is_some()))));
        let held = |seq: &Seq| copy.messages.contains_key(seq);
        let said = log.state(log.last_seq);
        let lacks = |seq: &&Seq| said.get(seq).is_some_and(|(_, deleted)| !deleted) && !held(seq);
        assert_eq!(copy.proven.iter().find(lacks), None, "proven, and not brought");
    }
    answer.next_after
}

/// Of each message by its seq: the place of its last change, and whether that deleted it.
type State = BTreeMap<Seq, (Seq, bool)>;

#[derive(Default)]
struct Copy {
    cursor: Seq,
    messages: State,
    proven: BTreeSet<Seq>,
}

struct Log {
    last_seq: Seq,
    /// Place, the seq of the message it is about, and whether it deletes it. Other places are of
    /// the conversation itself.
    changes: Vec<(Seq, Seq, bool)>,
    left: bool,
    long: usize,
}

impl Log {
    fn random(numbers: &mut Numbers) -> Self {
        let last_seq = 1 + numbers.below(12) as Seq;
        let mut changes: Vec<(Seq, Seq, bool)> = Vec::new();
        for seq in 2..=last_seq {
            // What is deleted stays so.
            let gone = |of: &Seq| changes.iter().any(|(_, it, deleted)| it == of && *deleted);
            let before: Vec<Seq> =
                changes.iter().map(|(_, of, _)| *of).filter(|of| !gone(of)).collect();
            match numbers.below(8) {
                0 => {}
                what @ (1 | 2) if !before.is_empty() => {
                    changes.push((seq, before[numbers.below(before.len())], what == 1));
                }
                _ => changes.push((seq, seq, false)),
            }
        }
        Self { last_seq, changes, left: numbers.below(6) == 0, long: numbers.below(200) * 10 }
    }

    fn state(&self, up_to: Seq) -> State {
        let changes = self.changes.iter().filter(|(seq, ..)| *seq <= up_to);
        changes.map(|(seq, of, deleted)| (*of, (*seq, *deleted))).collect()
    }

    /// As the store reads it.
    fn page(&self, wanted: PageWanted) -> LogPage {
        if self.left {
            return LogPage::Gone { left_seq: Some(self.last_seq) };
        }
        let mut state: Vec<_> = self.state(self.last_seq).into_iter().collect();
        state.sort_by_key(|(_, (change_seq, _))| *change_seq);
        let changed = state.iter().filter(|(_, (change_seq, _))| *change_seq > wanted.since);
        let messages: Vec<_> = changed
            .map(|(seq, (change_seq, deleted))| self.message(*seq, *change_seq, *deleted))
            .collect();
        let mut part = LogPart {
            last_seq: self.last_seq,
            history_from_seq: 1,
            info_head: 0,
            messages,
            next_seq: self.last_seq,
            pending: Vec::new(),
        };
        part.cut(wanted.since, wanted.room as usize);
        LogPage::Part(part)
    }

    fn message(&self, seq: Seq, change_seq: Seq, deleted: bool) -> Message {
        let at = Timestamp::from_millis(0);
        let message = Message {
            id: MessageId(Uuid::from_u128(seq as u128)),
            conversation_id: id(1),
            seq,
            change_seq,
            sender_id: ME,
            client_message_id: None,
            message_type: MessageType::Text,
            content: Some("x".repeat(self.long)),
            parent_message_id: None,
            reply_count: 0,
            mentions: None,
            metadata: None,
            created_at: at,
            edited_at: None,
            deleted_at: None,
        };
        if deleted { message.deleted(change_seq, at) } else { message }
    }
}

/// With room between two of them.
fn id(n: u128) -> ConversationId {
    ConversationId(Uuid::from_u128(n << 8))
}

fn conversation(id: ConversationId) -> Conversation {
    Conversation {
        id,
        kind: Kind::Group,
        title: None,
        created_by: ME,
        created_at: Timestamp::from_millis(0),
        last_seq: 1,
        last_message: None,
        unread_count: None,
        me: None,
        members: None,
    }
}
