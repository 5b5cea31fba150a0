//! What a device holds of its conversations. Pure.
//!
//! The rules: of each message the state with the highest `change_seq` stays. A conversation's cursor
//! moves only by an event at cursor + 1 or by the `next_seq` of a page. An event beyond is kept, and
//! counts when those before it have come; if they do not come in time, the log is read from the
//! cursor on.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;
use uuid::Uuid;

use crate::history::{State, hash};

/// A message on the wire.
#[derive(Clone, Debug, Deserialize)]
pub struct Message {
    pub id: Uuid,
    pub conversation_id: Uuid,
    pub seq: u64,
    pub change_seq: u64,
    pub sender_id: Uuid,
    pub client_message_id: Option<String>,
    pub content: Option<String>,
}

impl Message {
    pub fn state(&self) -> State {
        State {
            id: self.id,
            seq: self.seq,
            change_seq: self.change_seq,
            sender: self.sender_id,
            client_message_id: self.client_message_id.clone(),
            hash: self.content.as_deref().map(hash),
        }
    }
}

/// A conversation of a sync's answer.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry {
    pub id: Uuid,
    pub status: Status,
    pub history_from_seq: Option<u64>,
    pub messages: Vec<Message>,
    pub next_seq: u64,
    pub more: bool,
    pub left_seq: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    UpToDate,
    Changed,
    Gone,
    Reset,
}

impl Status {
    pub fn word(self) -> &'static str {
        match self {
            Self::UpToDate => "up_to_date",
            Self::Changed => "changed",
            Self::Gone => "gone",
            Self::Reset => "reset",
        }
    }
}

/// What came of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paged {
    /// Where the cursor went.
    pub cursor: Option<u64>,
    /// The log is to be read from its beginning: more of it than before is ours to see.
    pub again: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Conversation {
    pub cursor: u64,
    /// Of events that lie beyond cursor + 1.
    ahead: BTreeSet<u64>,
    pub messages: HashMap<Uuid, State>,
    /// We are out of it.
    pub gone: bool,
    /// Nothing before it was ours to see, when we were last told.
    history_from: u64,
    /// It is of another store than the one we are connected to.
    pub doubted: bool,
    /// Pages are still to come: what they bring is not held yet, though the cursor is beyond it.
    pub partial: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Copy {
    pub conversations: BTreeMap<Uuid, Conversation>,
}

impl Copy {
    /// An event of the change at `seq`, or the answer to one's own command; where the cursor went.
    pub fn told(&mut self, id: Uuid, seq: u64, message: Option<State>) -> Option<u64> {
        let conversation = self.conversations.entry(id).or_default();
        if let Some(message) = message {
            conversation.keep(message);
        }
        conversation.advance(seq)
    }

    /// What a page says.
    pub fn page(&mut self, entry: &Entry) -> Paged {
        let conversation = self.conversations.entry(entry.id).or_default();
        match entry.status {
            Status::Gone => {
                if conversation.doubted {
                    *conversation = Conversation::default();
                }
                conversation.gone = true;
                conversation.ahead.clear();
                conversation.partial = false;
                return Paged::default();
            }
            // One may take `next_seq` for the cursor and read the newest page of the history; we want
            // all of it.
            Status::Reset => {
                *conversation = Conversation { partial: true, ..Conversation::default() };
                return Paged { cursor: None, again: true };
            }
            Status::UpToDate | Status::Changed => {}
        }
        conversation.gone = false;
        conversation.partial = entry.more;
        let mut again = false;
        if let Some(from) = entry.history_from_seq {
            conversation.messages.retain(|_, message| message.seq >= from);
            // Let in again, this time with what was before: our cursor is beyond it.
            again = from < conversation.history_from;
            conversation.history_from = from;
        }
        for message in &entry.messages {
            conversation.keep(message.state());
        }
        if again {
            conversation.cursor = 0;
            conversation.ahead.clear();
            return Paged { cursor: None, again };
        }
        // Live events may have taken the cursor further meanwhile.
        let further = entry.next_seq > conversation.cursor;
        Paged { cursor: further.then(|| conversation.go_to(entry.next_seq)), again }
    }

    /// The store is another than what we hold is of: what stays of that, pages will tell.
    pub fn doubt(&mut self) {
        self.conversations.retain(|_, conversation| !conversation.gone);
        self.conversations.values_mut().for_each(|conversation| conversation.doubted = true);
    }

    /// We were removed at `seq`, as an event told.
    pub fn left(&mut self, id: Uuid) {
        let conversation = self.conversations.entry(id).or_default();
        conversation.gone = true;
        conversation.ahead.clear();
    }

    /// Events of it came again after we had left: the next sync tells.
    pub fn reopen(&mut self, id: Uuid) {
        self.conversations.entry(id).or_default().gone = false;
    }
}

impl Conversation {
    fn keep(&mut self, message: State) {
        let held = self.messages.get(&message.id);
        if held.is_none_or(|held| held.change_seq < message.change_seq) {
            self.messages.insert(message.id, message);
        }
    }

    fn advance(&mut self, seq: u64) -> Option<u64> {
        if seq <= self.cursor {
            return None;
        }
        if seq > self.cursor + 1 {
            self.ahead.insert(seq);
            return None;
        }
        Some(self.go_to(seq))
    }

    fn go_to(&mut self, seq: u64) -> u64 {
        self.cursor = seq;
        while let Some(first) = self.ahead.first().copied()
            && first <= self.cursor + 1
        {
            self.cursor = self.cursor.max(first);
            self.ahead.pop_first();
        }
        self.cursor
    }

    /// The first of the events that lie beyond a gap.
    pub fn beyond_gap(&self) -> Option<u64> {
        self.ahead.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uuid = Uuid::from_u128(1);

    fn message(id: u128, seq: u64, change_seq: u64) -> Message {
        Message {
            id: Uuid::from_u128(id),
            conversation_id: A,
            seq,
            change_seq,
            sender_id: Uuid::nil(),
            client_message_id: None,
            content: Some(format!("as of {change_seq}")),
        }
    }

    fn entry(status: Status, next_seq: u64, messages: Vec<Message>) -> Entry {
        Entry {
            id: A,
            status,
            history_from_seq: None,
            messages,
            next_seq,
            more: false,
            left_seq: None,
        }
    }

    fn tell(copy: &mut Copy, seq: u64) -> Option<u64> {
        copy.told(A, seq, Some(message(u128::from(seq), seq, seq).state()))
    }

    #[test]
    fn the_cursor_waits_for_each_place() {
        let mut copy = Copy::default();
        assert_eq!(tell(&mut copy, 1), Some(1));
        assert_eq!(tell(&mut copy, 3), None);
        assert_eq!(tell(&mut copy, 5), None);
        assert_eq!(copy.conversations[&A].beyond_gap(), Some(3));
        assert_eq!(tell(&mut copy, 2), Some(3));
        assert_eq!(tell(&mut copy, 2), None, "once more");
        assert_eq!(copy.conversations[&A].beyond_gap(), Some(5));
        // A page closes what is left, and 5, held already, follows.
        let page = entry(Status::Changed, 4, vec![message(4, 4, 4)]);
        assert_eq!(copy.page(&page).cursor, Some(5));
        assert_eq!(copy.conversations[&A].beyond_gap(), None);
        assert_eq!(copy.conversations[&A].messages.len(), 5);
    }

    #[test]
    fn the_latest_state_of_a_message_stays_in_whatever_order_it_comes() {
        let mut copy = Copy::default();
        copy.told(A, 4, Some(message(1, 1, 4).state()));
        copy.told(A, 1, Some(message(1, 1, 1).state()));
        assert_eq!(copy.conversations[&A].messages[&Uuid::from_u128(1)].change_seq, 4);
        assert_eq!(copy.conversations[&A].cursor, 1);
    }

    #[test]
    fn a_late_page_takes_nothing_back() {
        let mut copy = Copy::default();
        (1..=6).for_each(|seq| assert_eq!(tell(&mut copy, seq), Some(seq)));
        assert_eq!(copy.page(&entry(Status::Changed, 3, vec![message(2, 2, 2)])), Paged::default());
        assert_eq!((copy.conversations[&A].cursor, copy.conversations[&A].messages.len()), (6, 6));
    }

    #[test]
    fn gone_and_reset() {
        let mut copy = Copy::default();
        tell(&mut copy, 1);
        tell(&mut copy, 3);
        assert_eq!(copy.page(&entry(Status::Gone, 1, vec![])), Paged::default());
        assert!(copy.conversations[&A].gone && copy.conversations[&A].beyond_gap().is_none());
        // He is let in again, and may not look back.
        let again = Entry {
            history_from_seq: Some(3),
            ..entry(Status::Changed, 7, vec![message(7, 7, 7)])
        };
        assert_eq!(copy.page(&again).cursor, Some(7));
        assert!(!copy.conversations[&A].gone);
        let mut seqs: Vec<_> = copy.conversations[&A].messages.values().map(|m| m.seq).collect();
        seqs.sort_unstable();
        assert_eq!(seqs, [3, 7]);
        // And once more, now with what was before: it is read from the beginning.
        let wider = Entry { history_from_seq: Some(1), ..entry(Status::Changed, 9, vec![]) };
        assert_eq!(copy.page(&wider), Paged { cursor: None, again: true });
        assert_eq!(copy.conversations[&A].cursor, 0);
        let all = Entry { history_from_seq: Some(1), ..entry(Status::Changed, 9, vec![]) };
        assert_eq!(copy.page(&all), Paged { cursor: Some(9), again: false });
        copy.doubt();
        assert!(copy.conversations[&A].doubted);
        let reset = entry(Status::Reset, 2, vec![]);
        assert_eq!(copy.page(&reset), Paged { cursor: None, again: true });
        let held = &copy.conversations[&A];
        assert_eq!((held.cursor, held.messages.len()), (0, 0));
        assert!(held.partial && !held.doubted);
        let all = entry(Status::Changed, 2, vec![message(9, 2, 2)]);
        assert_eq!(copy.page(&all).cursor, Some(2));
        assert!(!copy.conversations[&A].partial);
    }
}
