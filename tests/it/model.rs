//! What a conversation must be, and a client that keeps a copy by the rules of the README: the
//! model that the stores and the simulation are held against.

use std::collections::{BTreeMap, BTreeSet};

use tidings::ids::{ConversationId, MessageId, Seq, UserId};
use tidings::protocol::command::Sync;
use tidings::protocol::model::{Conversation, Message, Role};
use tidings::protocol::sync::{SyncAnswer, SyncEntry, SyncStatus, covered};
use tidings::resume::{ANSWER_BYTES, Syncs};
use tokio::sync::oneshot;

use crate::fuzz::Random;
use crate::harness::{PATIENCE, within};

pub type Logs = BTreeMap<ConversationId, Log>;

#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    pub sender: UserId,
    pub seq: Seq,
    pub change_seq: Seq,
    /// None once deleted.
    pub content: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Membership {
    pub left_seq: Option<Seq>,
    pub history_from: Seq,
    pub role: Role,
    pub can_send: bool,
}

/// A conversation as it must be.
#[derive(Default)]
pub struct Log {
    pub last_seq: Seq,
    /// The last change of title, members, roles or rights.
    pub info_seq: Seq,
    pub title: Option<String>,
    pub members: BTreeMap<UserId, Membership>,
    pub messages: BTreeMap<MessageId, Said>,
}

impl Log {
    /// As it is when `owner` has made it for these others.
    pub fn new(owner: UserId, others: &[UserId]) -> Self {
        let member = |user: &UserId| {
            let role = if *user == owner { Role::Owner } else { Role::Member };
            (*user, Membership { left_seq: None, history_from: 1, role, can_send: true })
        };
        let members = others.iter().chain([&owner]).map(member).collect();
        Self { last_seq: 1, info_seq: 1, members, ..Self::default() }
    }

    pub fn take(&mut self, seq: Seq) {
        assert_eq!(seq, self.last_seq + 1, "the log has no gaps");
        self.last_seq = seq;
    }

    pub fn take_info(&mut self, seq: Seq) {
        self.take(seq);
        self.info_seq = seq;
    }

    pub fn member(&self, user: UserId) -> Option<&Membership> {
        self.members.get(&user).filter(|member| member.left_seq.is_none())
    }

    pub fn present(&self) -> Vec<UserId> {
        self.members.keys().copied().filter(|user| self.member(*user).is_some()).collect()
    }

    /// Those who may write now.
    pub fn writers(&self) -> Vec<UserId> {
        self.present().into_iter().filter(|user| self.members[user].can_send).collect()
    }

    pub fn seen_by(&self, user: UserId) -> BTreeMap<MessageId, Said> {
        let from = self.member(user).expect("a member looks").history_from;
        let seen = self.messages.iter().filter(|(_, said)| said.seq >= from);
        seen.map(|(id, said)| (*id, said.clone())).collect()
    }

    /// What those who wrote it may change now, with them; or delete.
    pub fn own(&self, deletes: bool) -> Vec<(MessageId, UserId)> {
        let own = self.messages.iter().filter(|(_, said)| {
            let by = self.member(said.sender);
            let may = by.is_some_and(|m| m.history_from <= said.seq);
            may && said.content.is_some() && (deletes || by.is_some_and(|m| m.can_send))
        });
        own.map(|(id, said)| (*id, said.sender)).collect()
    }

    pub fn amend(&mut self, id: MessageId, seq: Seq, content: Option<String>) {
        self.take(seq);
        let said = self.messages.get_mut(&id).expect("it is one of them");
        (said.change_seq, said.content) = (seq, content);
    }

    pub fn join(&mut self, user: UserId, seq: Seq, with_history: bool) {
        self.take_info(seq);
        let history_from = if with_history { 1 } else { seq };
        let (role, can_send) = (Role::Member, true);
        self.members.insert(user, Membership { left_seq: None, history_from, role, can_send });
    }

    pub fn leave(&mut self, user: UserId, seq: Seq) {
        self.take_info(seq);
        self.members.get_mut(&user).expect("he is one").left_seq = Some(seq);
    }

    fn info(&self) -> Info {
        let present = self.present().into_iter().map(|user| {
            let member = &self.members[&user];
            (user, (member.role, member.can_send))
        });
        (self.title.clone(), present.collect())
    }
}

/// Title, and each member's role and right.
pub type Info = (Option<String>, BTreeMap<UserId, (Role, bool)>);

pub fn info(conversation: &Conversation) -> Info {
    let members = conversation.members.iter().flatten();
    let members = members.map(|m| (m.user_id, (m.role, m.can_send_messages)));
    (conversation.title.clone(), members.collect())
}

pub fn said(message: &Message) -> Said {
    Said {
        sender: message.sender_id,
        seq: message.seq,
        change_seq: message.change_seq,
        content: message.content.clone(),
    }
}

/// A client's copy of a conversation.
#[derive(Default)]
pub struct Held {
    pub cursor: Seq,
    pub history_from: Seq,
    pub info: Option<Info>,
    pub messages: BTreeMap<MessageId, Said>,
    /// The seqs that answers said to cover.
    pub proven: BTreeSet<Seq>,
}

/// A device of a user, with what it holds.
pub struct Device {
    pub user: UserId,
    pub copies: BTreeMap<ConversationId, Held>,
    /// Where its last sync was to go on.
    pub after: Option<ConversationId>,
}

impl Device {
    pub fn new(user: UserId) -> Self {
        Self { user, copies: BTreeMap::new(), after: None }
    }

    /// What it asks for next, and how large the answer may be.
    pub fn ask(&self, random: &mut Random) -> (Sync, usize) {
        let limit = 1 + random.below(4) as u32;
        let bytes = [1, 700, 3_000, ANSWER_BYTES][random.below(4)];
        let after = self.after;
        // A copy that holds nothing need not be named.
        let named = self.copies.iter().filter(|(id, copy)| {
            after.is_none_or(|after| **id > after) && (copy.cursor > 0 || random.below(2) == 0)
        });
        let cursors = named.map(|(id, copy)| (*id, copy.cursor)).collect();
        (Sync { cursors, after, to: None, store_epoch: None, limit }, bytes)
    }

    /// One page, checked against the model and taken over. True if the range goes on.
    pub async fn page(&mut self, syncs: &Syncs, logs: &Logs, random: &mut Random) -> bool {
        let (asked, bytes) = self.ask(random);
        let answer = read(syncs, self.user, asked.clone(), bytes).await;
        self.take(&asked, answer, logs)
    }

    pub fn take(&mut self, asked: &Sync, answer: SyncAnswer, logs: &Logs) -> bool {
        let after = asked.after;
        let listed: Vec<_> = answer.conversations.iter().map(|entry| entry.id).collect();
        assert!(listed.is_sorted_by(|a, b| a < b), "in order of id, each once: {listed:?}");
        let messages: usize = answer.conversations.iter().map(|e| e.messages.len()).sum();
        assert!(messages <= asked.limit as usize, "{messages} of {}", asked.limit);
        assert!(answer.next_after >= after || answer.next_after.is_none(), "it goes on");
        // What the answer says it has done, it has named: whatever the user holds or may see.
        let done = |id: &ConversationId| {
            after.is_none_or(|after| *id > after) && answer.next_after.is_none_or(|end| *id <= end)
        };
        let mine = logs.iter().filter(|(_, log)| log.member(self.user).is_some());
        for id in mine.map(|(id, _)| id).chain(asked.cursors.keys()).filter(|id| done(id)) {
            assert!(listed.contains(id), "{id} is left out");
        }
        for (id, lo, hi) in covered(&answer) {
            self.copies.entry(id).or_default().proven.extend(lo..=hi);
        }
        self.after = answer.next_after;
        for entry in answer.conversations {
            let since = asked.cursors.get(&entry.id).copied();
            self.take_over(entry, since, logs);
        }
        self.after.is_some()
    }

    fn take_over(&mut self, entry: SyncEntry, since: Option<Seq>, logs: &Logs) {
        let log = &logs[&entry.id];
        let Some(member) = log.member(self.user) else {
            assert_eq!((entry.status, since.is_some()), (SyncStatus::Gone, true), "{entry:?}");
            assert_eq!(entry.left_seq, log.members.get(&self.user).and_then(|m| m.left_seq));
            self.copies.remove(&entry.id);
            return;
        };
        let since = since.unwrap_or(0);
        if since == log.last_seq {
            assert_eq!(entry.status, SyncStatus::UpToDate, "{entry:?}");
            return;
        }
        assert_eq!(entry.status, SyncStatus::Changed, "{entry:?}");
        assert_eq!(entry.more, entry.next_seq < log.last_seq);
        assert!(entry.next_seq > since, "each page moves the cursor: {entry:?}");
        // The page itself: all that lies between the cursors, as it is now, and nothing else.
        let seen = log.seen_by(self.user);
        let mut expected: Vec<_> = seen
            .iter()
            .filter(|(_, said)| since < said.change_seq && said.change_seq <= entry.next_seq)
            .collect();
        expected.sort_by_key(|(_, said)| said.change_seq);
        let got: Vec<_> = entry.messages.iter().map(|m| (m.id, said(m))).collect();
        assert!(got.iter().map(|(id, said)| (id, said)).eq(expected), "{since}: {entry:?}");

        let copy = self.copies.entry(entry.id).or_default();
        assert_eq!(entry.conversation.is_some(), since == 0 || log.info_seq > since, "{entry:?}");
        if let Some(conversation) = &entry.conversation {
            let from = entry.history_from_seq.expect("it stands beside the conversation");
            assert_eq!((info(conversation), from), (log.info(), member.history_from));
            assert_eq!(conversation.me.as_ref().unwrap().role, member.role);
            if copy.info.is_some() && from < copy.history_from {
                // More is shown than before: the copy begins anew.
                *copy = Held::default();
                return;
            }
            if copy.history_from < from {
                copy.messages.retain(|_, said| said.seq >= from);
            }
            (copy.history_from, copy.info) = (from, Some(info(conversation)));
        }
        copy.cursor = entry.next_seq;
        copy.messages.extend(entry.messages.iter().map(|m| (m.id, said(m))));
        for said in seen.values().filter(|said| copy.proven.contains(&said.seq)) {
            let held = copy.messages.values().any(|held| held.seq == said.seq);
            assert!(held || said.content.is_none(), "{} is proven and was not brought", said.seq);
        }
    }

    /// Pages to the end, and is then as the model is.
    pub async fn catch_up(&mut self, syncs: &Syncs, logs: &Logs, random: &mut Random) {
        self.after = None;
        for turn in 0.. {
            assert!(turn < 2_000, "a resume ends");
            // A copy that began anew is behind its range.
            let goes_on = self.page(syncs, logs, random).await;
            if !goes_on && self.copies.values().all(|copy| copy.cursor > 0) {
                break;
            }
        }
        self.holds_all(logs);
    }

    /// It is as the model is.
    pub fn holds_all(&self, logs: &Logs) {
        let held: Vec<_> = self.copies.keys().copied().collect();
        let mine = logs.iter().filter(|(_, log)| log.member(self.user).is_some());
        assert_eq!(held, mine.map(|(id, _)| *id).collect::<Vec<_>>());
        for (id, copy) in &self.copies {
            let log = &logs[id];
            assert_eq!(copy.cursor, log.last_seq);
            assert_eq!(copy.messages, log.seen_by(self.user));
            assert_eq!(copy.info.as_ref(), Some(&log.info()));
            for said in copy.messages.values().filter(|said| said.content.is_some()) {
                assert!(copy.proven.contains(&said.seq), "{} was brought, not proven", said.seq);
            }
        }
    }
}

/// A page as the service answers it.
pub async fn read(syncs: &Syncs, user: UserId, sync: Sync, bytes: usize) -> SyncAnswer {
    let (reply, outcome) = oneshot::channel();
    syncs.submit(user, sync, bytes, Box::new(|result| drop(reply.send(result))));
    within(PATIENCE, "a page", outcome).await.unwrap().expect("the sync is answered")
}
