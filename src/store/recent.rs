//! The newest messages of the conversations that are read most, so that first pages of histories
//! and the resumes after a storm seldom touch the table of messages.
//!
//! Each change of a conversation takes the next place of its log, so the log's head alone tells in
//! which state it is. What is held is labelled with the head at which it was read, and is given only
//! to one whom the database has just told the same head, with his rights. So nothing has to be
//! invalidated: what others changed, on whichever node, is not found here.

use std::sync::Arc;

use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use serde_json::Value;

use super::types::{History, LogPage, LogPart, PageWanted, Standing};
use crate::ids::{ConversationId, Seq};
use crate::protocol::model::{Mention, Message};

/// Messages of one conversation: as many as the longest page shows.
const MESSAGES: usize = 200;
/// And their bytes, about.
const BYTES: usize = 512 << 10;
/// What an entry takes without messages, with the cache's own share.
const ENTRY_BYTES: usize = 256;

/// What is held of all conversations; cheap to clone.
#[derive(Clone)]
pub struct Recent(Cache<ConversationId, Arc<Entry>>);

/// A part of a conversation as it is at `head`: ALL messages changed after `change_floor`, and ALL
/// that stand after `seq_floor`.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    head: Seq,
    /// Title and members are as they were at this place, at the latest.
    info_head: Seq,
    change_floor: Seq,
    seq_floor: Seq,
    /// There is a message at or below `seq_floor`; else it is not known.
    more_below: bool,
    /// In order of seq.
    messages: Vec<Arc<Message>>,
    /// What they take in memory, about.
    bytes: usize,
}

impl Recent {
    /// Holds about so many bytes; None if that is none.
    pub fn new(bytes: u64) -> Option<Self> {
        let cache = Cache::builder()
            .max_capacity(bytes)
            .weigher(|_, entry: &Arc<Entry>| {
                u32::try_from(ENTRY_BYTES + entry.bytes).unwrap_or(u32::MAX)
            })
            // One storm, not a habit, is what the next reader has in common with the last one.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        (bytes > 0).then_some(Self(cache))
    }

    /// Bytes held, about.
    pub fn bytes(&self) -> u64 {
        self.0.run_pending_tasks();
        self.0.weighted_size()
    }

    /// Whether it is worth asking where the log stands.
    pub fn holds(&self, id: ConversationId) -> bool {
        self.0.contains_key(&id)
    }

    /// What a member lacks, if all of it is held and there is room for it.
    pub fn part(&self, wanted: &PageWanted) -> Option<LogPage> {
        self.0.get(&wanted.conversation_id)?.part(wanted).map(LogPage::Part)
    }

    /// The newest page, if it is held whole.
    pub fn newest(&self, id: ConversationId, at: Standing, limit: u32) -> Option<History> {
        self.0.get(&id)?.newest(at, limit as usize)
    }

    /// Keeps what was read for `wanted`, if it was read to the end with all rights.
    pub fn keep_page(&self, wanted: &PageWanted, page: &LogPage) {
        if let LogPage::Part(part) = page
            && let Some(entry) = Entry::of_part(wanted.since, part)
        {
            self.keep(wanted.conversation_id, entry);
        }
    }

    /// Keeps the newest page, newest first, as it was read at `at`.
    pub fn keep_newest(&self, id: ConversationId, at: Standing, page: &History) {
        if let History::Page { messages, has_more } = page {
            self.keep(id, Entry::of_newest(at, messages, *has_more));
        }
    }

    /// Goes on by a message that was just committed, where the one before it is known.
    pub fn go_on(&self, message: &Arc<Message>) {
        let id = message.conversation_id;
        if !self.holds(id) {
            return;
        }
        self.0.entry(id).and_compute_with(|held| match held {
            Some(held) if held.value().head + 1 == message.seq => {
                held.into_value().with(message).map_or(Op::Remove, |next| Op::Put(Arc::new(next)))
            }
            // A gap: what lies between was made by others. The next who reads replaces it.
            _ => Op::Nop,
        });
    }

    fn keep(&self, id: ConversationId, new: Entry) {
        self.0.entry(id).and_compute_with(|held| match held {
            Some(held) if held.value().head > new.head => Op::Nop,
            Some(held) if held.value().head == new.head => {
                Op::Put(Arc::new(new.merged(held.value())))
            }
            _ => Op::Put(Arc::new(new)),
        });
    }
}

/// Whom the first statement reads for, and who waits for what that brings: of those who lack the same
/// log one reads for all, if his page is sure to hold all above his cursor. By their places in
/// `wanted`, of which `missing` are to be read.
pub fn readers(wanted: &[PageWanted], missing: Vec<usize>) -> (Vec<usize>, Vec<usize>) {
    let mut leaders = std::collections::HashMap::new();
    for &at in &missing {
        let page = &wanted[at];
        let reads_all = page.history_from_seq <= 1;
        if reads_all && page.last_seq - page.since <= i64::from(page.room) {
            let leader = leaders.entry(page.conversation_id).or_insert(at);
            if page.since < wanted[*leader].since {
                *leader = at;
            }
        }
    }
    missing.into_iter().partition(|at| {
        let page = &wanted[*at];
        leaders.get(&page.conversation_id).is_none_or(|leader| {
            leader == at || wanted[*leader].since > start(page.since, page.history_from_seq)
        })
    })
}

/// Nothing a member may see stands before his history begins, changes included.
fn start(since: Seq, history_from_seq: Seq) -> Seq {
    since.max(history_from_seq - 1)
}

impl Entry {
    fn new(
        head: Seq,
        info_head: Seq,
        (change_floor, seq_floor, more_below): (Seq, Seq, bool),
        mut messages: Vec<Arc<Message>>,
    ) -> Self {
        messages.sort_unstable_by_key(|message| message.seq);
        let bytes = messages.iter().map(|message| weight(message)).sum();
        Self { head, info_head, change_floor, seq_floor, more_below, messages, bytes }.trimmed()
    }

    /// None if the page was cut, or not all can be seen by the one it was read for.
    fn of_part(since: Seq, part: &LogPart) -> Option<Self> {
        let whole = part.next_seq == part.last_seq && part.history_from_seq <= 1;
        let messages = || part.messages.iter().cloned().map(Arc::new).collect();
        whole.then(|| Self::new(part.last_seq, part.info_head, (since, since, false), messages()))
    }

    /// What else was changed is not known: the floor of changes is the head, and title and members
    /// cannot have changed after that.
    fn of_newest(at: Standing, messages: &[Message], has_more: bool) -> Self {
        let lowest = messages.last().filter(|_| has_more).map(|message| message.seq);
        let seq_floor = lowest.unwrap_or(at.history_from_seq) - 1;
        let messages = messages.iter().cloned().map(Arc::new).collect();
        Self::new(at.last_seq, at.last_seq, (at.last_seq, seq_floor, has_more), messages)
    }

    /// Both are of the same head.
    fn merged(self, other: &Self) -> Self {
        let mut messages = self.messages;
        messages.extend(other.messages.iter().cloned());
        messages.sort_unstable_by_key(|message| message.seq);
        messages.dedup_by_key(|message| message.seq);
        let change_floor = self.change_floor.min(other.change_floor);
        let seq_floor = self.seq_floor.min(other.seq_floor);
        let more_below = self.more_below && self.seq_floor == seq_floor
            || other.more_below && other.seq_floor == seq_floor;
        let info_head = self.info_head.min(other.info_head);
        Self::new(self.head, info_head, (change_floor, seq_floor, more_below), messages)
    }

    /// With the message just behind its head. None if more than that has changed: the count of
    /// replies of another.
    fn with(self: Arc<Self>, message: &Arc<Message>) -> Option<Self> {
        if message.parent_message_id.is_some() || message.change_seq != message.seq {
            return None;
        }
        let mut next = Arc::unwrap_or_clone(self);
        next.head = message.seq;
        next.bytes += weight(message);
        next.messages.push(message.clone());
        Some(next.trimmed())
    }

    /// Within its bounds: the oldest go, and the floors rise above them.
    fn trimmed(mut self) -> Self {
        let mut excess = 0;
        while self.messages.len() - excess > MESSAGES
            || self.bytes > BYTES && excess < self.messages.len()
        {
            let oldest = &self.messages[excess];
            self.bytes -= weight(oldest);
            self.seq_floor = self.seq_floor.max(oldest.seq);
            self.change_floor = self.change_floor.max(oldest.change_seq);
            self.more_below = true;
            excess += 1;
        }
        self.messages.drain(..excess);
        self
    }

    fn part(&self, wanted: &PageWanted) -> Option<LogPart> {
        let start = start(wanted.since, wanted.history_from_seq);
        if self.head != wanted.last_seq || self.change_floor > start {
            return None;
        }
        let changed = self.messages.iter().filter(|message| message.change_seq > start);
        // With those he does not see, as the statement counts them: the pages are the same.
        if changed.clone().count() > wanted.room as usize {
            return None;
        }
        let seen = changed.filter(|message| message.seq >= wanted.history_from_seq);
        let mut messages: Vec<_> = seen.map(|message| Message::clone(message)).collect();
        messages.sort_unstable_by_key(|message| message.change_seq);
        Some(LogPart {
            last_seq: self.head,
            history_from_seq: wanted.history_from_seq,
            info_head: self.info_head,
            messages,
            next_seq: self.head,
            pending: Vec::new(),
        })
    }

    fn newest(&self, at: Standing, limit: usize) -> Option<History> {
        if self.head != at.last_seq {
            return None;
        }
        // Of those at or below the floor some may be missing.
        let floor = start(self.seq_floor, at.history_from_seq);
        let seen = &self.messages[self.messages.partition_point(|message| message.seq <= floor)..];
        let has_more = if seen.len() > limit {
            true
        } else if self.seq_floor < at.history_from_seq {
            false
        } else if seen.len() == limit && self.more_below && at.history_from_seq <= 1 {
            // Who sees all sees what is below, too; of others it is not known.
            true
        } else {
            return None;
        };
        let messages = seen.iter().rev().take(limit).map(|message| Message::clone(message));
        Some(History::Page { messages: messages.collect(), has_more })
    }
}

/// What a message takes in memory, about.
fn weight(message: &Message) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    size_of::<Message>()
        + text(&message.content)
        + text(&message.client_message_id)
        + message.mentions.as_ref().map_or(0, |mentions| mentions.len() * size_of::<Mention>())
        + message.metadata.as_ref().map_or(0, value_weight)
}

fn value_weight(value: &Value) -> usize {
    let inside = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(value_weight).sum(),
        Value::Object(map) => map
            .iter()
            .map(|(name, value)| size_of::<String>() + name.len() + value_weight(value))
            .sum(),
    };
    size_of::<Value>() + inside
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::clock::Timestamp;
    use crate::ids::{MessageId, UserId};
    use crate::protocol::model::MessageType;

    const ID: ConversationId = ConversationId(Uuid::from_u128(1));

    /// A message that stands at `seq` and was changed at `change_seq`.
    fn message(seq: Seq, change_seq: Seq) -> Message {
        Message {
            id: MessageId(Uuid::from_u128(seq as u128)),
            conversation_id: ID,
            seq,
            change_seq,
            sender_id: UserId(Uuid::nil()),
            client_message_id: None,
            message_type: MessageType::Text,
            content: Some("x".into()),
            parent_message_id: None,
            reply_count: 0,
            mentions: None,
            metadata: None,
            created_at: Timestamp::from_millis(0),
            edited_at: None,
            deleted_at: None,
        }
    }

    fn wanted(since: Seq, room: u32, last_seq: Seq, history_from_seq: Seq) -> PageWanted {
        let user_id = UserId(Uuid::nil());
        PageWanted { user_id, conversation_id: ID, since, room, last_seq, history_from_seq }
    }

    /// What was read above `since` by one who sees all.
    fn read(since: Seq, head: Seq, places: &[(Seq, Seq)]) -> Option<Entry> {
        let messages = places.iter().map(|(seq, change)| message(*seq, *change)).collect();
        let part = LogPart {
            last_seq: head,
            history_from_seq: 1,
            info_head: 1,
            messages,
            next_seq: head,
            pending: Vec::new(),
        };
        Entry::of_part(since, &part)
    }

    /// The newest page, newest first.
    fn newest(head: Seq, seqs: impl IntoIterator<Item = Seq>, has_more: bool) -> Entry {
        let messages: Vec<_> = seqs.into_iter().map(|seq| message(seq, seq)).collect();
        Entry::of_newest(at(head, 1), &messages, has_more)
    }

    fn at(last_seq: Seq, history_from_seq: Seq) -> Standing {
        Standing { last_seq, history_from_seq }
    }

    fn changes(part: Option<LogPart>) -> Option<Vec<(Seq, Seq)>> {
        part.map(|part| part.messages.iter().map(|m| (m.seq, m.change_seq)).collect())
    }

    fn seqs(page: Option<History>) -> Option<(Vec<Seq>, bool)> {
        page.map(|page| match page {
            History::Page { messages, has_more } => {
                (messages.iter().map(|message| message.seq).collect(), has_more)
            }
            other => panic!("only pages are held, not {other:?}"),
        })
    }

    #[test]
    fn a_log_is_given_above_the_floor_and_at_its_head_only() {
        // 3 was edited at 9, and so stands there.
        let entry = read(5, 9, &[(6, 6), (8, 8), (3, 9)]).unwrap();
        let part =
            |since, room, last_seq, from| changes(entry.part(&wanted(since, room, last_seq, from)));
        assert_eq!(part(5, 3, 9, 1), Some(vec![(6, 6), (8, 8), (3, 9)]), "in order of change");
        assert_eq!(part(6, 3, 9, 1), Some(vec![(8, 8), (3, 9)]));
        assert_eq!(part(8, 3, 9, 1), Some(vec![(3, 9)]));
        assert_eq!(part(4, 3, 9, 1), None, "below the floor");
        assert_eq!(part(5, 3, 10, 1), None, "another head");
        assert_eq!(part(5, 3, 8, 1), None, "another head");
        assert_eq!(part(5, 2, 9, 1), None, "no room");
        // One whose history begins later sees neither what lies before nor its changes.
        assert_eq!(part(0, 3, 9, 7), Some(vec![(8, 8)]));
        assert_eq!(part(0, 3, 9, 6), Some(vec![(6, 6), (8, 8)]));
        assert_eq!(part(0, 3, 9, 5), None, "5 may be missing");
        assert_eq!(part(0, 1, 9, 7), None, "the statement counts the change he does not see");
    }

    #[test]
    fn what_was_cut_or_read_with_less_rights_is_not_kept() {
        let whole = LogPart {
            last_seq: 4,
            history_from_seq: 1,
            info_head: 1,
            messages: vec![message(2, 2)],
            next_seq: 4,
            pending: Vec::new(),
        };
        assert!(Entry::of_part(1, &whole).is_some());
        assert_eq!(Entry::of_part(1, &LogPart { next_seq: 2, ..whole.clone() }), None);
        assert_eq!(Entry::of_part(1, &LogPart { history_from_seq: 2, ..whole }), None);
    }

    #[test]
    fn a_page_is_given_if_it_is_whole_and_tells_whether_there_is_more() {
        let entry = newest(9, [9, 7, 6], true);
        let page = |limit, last_seq, from| seqs(entry.newest(at(last_seq, from), limit));
        assert_eq!(page(2, 9, 1), Some((vec![9, 7], true)));
        assert_eq!(page(3, 9, 1), Some((vec![9, 7, 6], true)), "as it was read");
        assert_eq!(page(4, 9, 1), None, "one is missing");
        assert_eq!(page(3, 9, 2), None, "whether he may see what is below is not known");
        assert_eq!(page(2, 10, 1), None, "another head");
        assert_eq!(page(3, 9, 6), Some((vec![9, 7, 6], false)));
        assert_eq!(page(3, 9, 7), Some((vec![9, 7], false)));
        assert_eq!(page(3, 9, 5), None);
        let all = newest(9, [9, 7, 2], false);
        assert_eq!(seqs(all.newest(at(9, 1), 5)), Some((vec![9, 7, 2], false)));
        // An old message that was edited stands below the floor, with gaps around it.
        let entry = read(5, 9, &[(6, 6), (8, 8), (3, 9)]).unwrap();
        assert_eq!(seqs(entry.newest(at(9, 1), 2)), None);
        assert_eq!(seqs(entry.newest(at(9, 6), 2)), Some((vec![8, 6], false)));
        // One who joined without history saw all that he may see.
        let late = Entry::of_newest(at(9, 6), &[message(9, 9), message(7, 7)], false);
        assert_eq!(seqs(late.newest(at(9, 6), 2)), Some((vec![9, 7], false)));
        assert_eq!(seqs(late.newest(at(9, 1), 2)), None);
    }

    #[test]
    fn two_of_the_same_head_become_one() {
        let entry = newest(9, [9, 8, 7], true).merged(&read(8, 9, &[(3, 9), (9, 9)]).unwrap());
        assert_eq!((entry.change_floor, entry.seq_floor, entry.info_head), (8, 6, 1));
        assert!(entry.more_below, "of the one that reaches further down");
        let held: Vec<_> = entry.messages.iter().map(|message| message.seq).collect();
        assert_eq!(held, [3, 7, 8, 9]);
        assert_eq!(seqs(entry.newest(at(9, 1), 2)), Some((vec![9, 8], true)));

        let recent = Recent::new(1 << 20).unwrap();
        recent.keep(ID, newest(9, [9], true));
        recent.keep(ID, newest(8, [8, 7], true));
        assert_eq!(recent.0.get(&ID).unwrap().head, 9, "an older read does not replace it");
        recent.keep(ID, newest(10, [10], true));
        assert_eq!(*recent.0.get(&ID).unwrap(), newest(10, [10], true));
    }

    #[test]
    fn the_oldest_go_and_the_floors_rise() {
        let many: Vec<_> = (1..=MESSAGES as Seq + 2).map(|seq| (seq, seq)).collect();
        let head = MESSAGES as Seq + 2;
        let entry = read(0, head, &many).unwrap();
        assert_eq!((entry.messages.len(), entry.seq_floor, entry.change_floor), (MESSAGES, 2, 2));
        // The oldest was edited last: nothing is known of changes any more.
        let edited: Vec<_> = [(1, head + 1)].into_iter().chain(many[1..].iter().copied()).collect();
        let entry = read(0, head + 1, &edited).unwrap();
        assert_eq!((entry.seq_floor, entry.change_floor), (2, head + 1));

        let long = |seq| Message { content: Some("x".repeat(BYTES / 2)), ..message(seq, seq) };
        let entry = Entry::of_newest(at(9, 1), &[long(9), long(8), message(7, 7)], true);
        assert_eq!((entry.messages.len(), entry.seq_floor), (1, 8));
        assert_eq!(entry.bytes, weight(&long(9)));
    }

    #[test]
    fn a_commit_goes_on_where_the_one_before_is_known() {
        let recent = Recent::new(1 << 20).unwrap();
        let go_on = |message: Message| {
            recent.go_on(&Arc::new(message));
            recent.0.get(&ID).map(|entry| (entry.head, entry.messages.len()))
        };
        assert_eq!(go_on(message(2, 2)), None, "nobody has read it");
        recent.keep(ID, read(0, 3, &[(2, 2), (3, 3)]).unwrap());
        assert_eq!(go_on(message(3, 3)), Some((3, 2)), "known already");
        assert_eq!(go_on(message(4, 4)), Some((4, 3)));
        assert_eq!(go_on(message(6, 6)), Some((4, 3)), "5 is not known");
        let entry = recent.0.get(&ID).unwrap();
        assert_eq!(
            entry.bytes,
            entry.messages.iter().map(|message| weight(message)).sum::<usize>()
        );
        assert_eq!((entry.change_floor, entry.info_head), (0, 1));
        let parent_message_id = Some(MessageId(Uuid::from_u128(2)));
        let reply = Message { parent_message_id, ..message(5, 5) };
        assert_eq!(go_on(reply), None, "2 has one reply more");
    }

    #[test]
    fn one_reads_for_those_whose_page_is_sure_to_hold_what_they_lack() {
        let other = ConversationId(Uuid::from_u128(2));
        let pages = [
            wanted(5, 9, 9, 1),
            // The lowest of those who see all, with room for all.
            wanted(3, 9, 9, 1),
            wanted(1, 7, 9, 1),
            wanted(4, 2, 9, 1),
            wanted(0, 9, 9, 4),
            wanted(0, 9, 9, 3),
            PageWanted { conversation_id: other, ..wanted(0, 9, 9, 3) },
            PageWanted { conversation_id: other, ..wanted(7, 1, 9, 1) },
        ];
        let (first, then) = readers(&pages, (0..pages.len()).collect());
        assert_eq!(first, [1, 2, 5, 6, 7]);
        assert_eq!(then, [0, 3, 4]);
        assert_eq!(readers(&pages, vec![3, 4]), (vec![3, 4], vec![]));
    }

    #[test]
    fn nothing_is_held_without_room() {
        assert!(Recent::new(0).is_none());
        let recent = Recent::new(1 << 10).unwrap();
        for n in 0..9 {
            recent.keep(ConversationId(Uuid::from_u128(n)), newest(9, [9, 8], true));
        }
        let bytes = recent.bytes();
        assert!(0 < bytes && bytes <= 1 << 10, "{bytes}");
    }
}
