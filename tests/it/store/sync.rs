//! Clients that come back are told exactly what they missed: against a model of it, and case by case.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidings::ids::{ConversationId, MessageId, Seq, UserId};
use tidings::protocol::command::{EditMessage, Sync};
use tidings::protocol::model::{Conversation, Message, Role};
use tidings::protocol::sync::{SyncAnswer, SyncEntry, SyncStatus, covered};
use tidings::resume::{ANSWER_BYTES, Syncs};
use tidings::store::types::{Amendment, Change, LogPage, PageWanted, Span};
use tidings::telemetry::Metrics;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::fixture::{Fixture, amended, changed, user, users};
use crate::harness::{PATIENCE, within};

/// The service's own way to answer, on the case's store.
struct Resume {
    syncs: Syncs,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Resume {
    async fn on(f: &Fixture) -> Self {
        let epoch = f.store.epoch().await.unwrap();
        let (syncs, worker) = Syncs::new(f.store.clone(), epoch, Metrics::new().0);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(worker.run(stop.clone()));
        Self { syncs, stop, tasks }
    }

    async fn page(&self, user: UserId, sync: Sync, bytes: usize) -> SyncAnswer {
        let (reply, outcome) = oneshot::channel();
        self.syncs.submit(user, sync, bytes, Box::new(|result| drop(reply.send(result))));
        within(PATIENCE, "a page", outcome).await.unwrap().expect("the sync is answered")
    }

    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        within(PATIENCE, "the worker ends", self.tasks.wait()).await;
    }
}

fn sync(cursors: &[(ConversationId, Seq)]) -> Sync {
    Sync {
        cursors: cursors.iter().copied().collect(),
        after: None,
        to: None,
        store_epoch: None,
        limit: 200,
    }
}

/// The same numbers for the same seed: SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % end as u64) as usize
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| all[self.below(all.len())])
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Said {
    sender: UserId,
    seq: Seq,
    change_seq: Seq,
    /// None once deleted.
    content: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Membership {
    left_seq: Option<Seq>,
    history_from: Seq,
    role: Role,
    can_send: bool,
}

/// A conversation as it must be.
#[derive(Default)]
struct Log {
    last_seq: Seq,
    /// The last change of title, members, roles or rights.
    info_seq: Seq,
    title: Option<String>,
    members: BTreeMap<UserId, Membership>,
    messages: BTreeMap<MessageId, Said>,
}

impl Log {
    fn take(&mut self, seq: Seq) {
        assert_eq!(seq, self.last_seq + 1, "the log has no gaps");
        self.last_seq = seq;
    }

    fn take_info(&mut self, seq: Seq) {
        self.take(seq);
        self.info_seq = seq;
    }

    fn member(&self, user: UserId) -> Option<&Membership> {
        self.members.get(&user).filter(|member| member.left_seq.is_none())
    }

    fn present(&self) -> Vec<UserId> {
        self.members.keys().copied().filter(|user| self.member(*user).is_some()).collect()
    }

    fn seen_by(&self, user: UserId) -> BTreeMap<MessageId, Said> {
        let from = self.member(user).expect("a member looks").history_from;
        let seen = self.messages.iter().filter(|(_, said)| said.seq >= from);
        seen.map(|(id, said)| (*id, said.clone())).collect()
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
type Info = (Option<String>, BTreeMap<UserId, (Role, bool)>);

fn info(conversation: &Conversation) -> Info {
    let members = conversation.members.iter().flatten();
    let members = members.map(|m| (m.user_id, (m.role, m.can_send_messages)));
    (conversation.title.clone(), members.collect())
}

fn said(message: &Message) -> Said {
    Said {
        sender: message.sender_id,
        seq: message.seq,
        change_seq: message.change_seq,
        content: message.content.clone(),
    }
}

#[derive(Default)]
struct Model {
    logs: BTreeMap<ConversationId, Log>,
    said: usize,
}

impl Model {
    /// One random change of the store, and the same of the model.
    async fn change(&mut self, f: &Fixture, people: &[UserId], dice: &mut Dice) {
        self.said += 1;
        let text = format!("{} {}", self.said, "x".repeat(dice.below(200)));
        let ids: Vec<_> = self.logs.keys().copied().collect();
        let owner = people[0];
        if ids.is_empty() || ids.len() < 5 && dice.below(20) == 0 {
            let first: Vec<_> =
                people[1..].iter().copied().filter(|_| dice.below(2) == 0).collect();
            let id = f.group(owner, &first).await;
            let member = |user| {
                let role = if user == owner { Role::Owner } else { Role::Member };
                (user, Membership { left_seq: None, history_from: 1, role, can_send: true })
            };
            let members = first.iter().chain([&owner]).map(|user| member(*user)).collect();
            self.logs.insert(id, Log { last_seq: 1, info_seq: 1, members, ..Log::default() });
            return;
        }
        let id = dice.of(&ids).expect("there is one");
        let log = self.logs.get_mut(&id).expect("it is one of them");
        let present = log.present();
        let others: Vec<_> = present.iter().copied().filter(|user| *user != owner).collect();
        match dice.below(12) {
            0..5 => {
                let writers: Vec<_> =
                    present.into_iter().filter(|user| log.members[user].can_send).collect();
                let sender = dice.of(&writers).expect("the owner may always write");
                let (message, seq) = f.say_with_id(id, sender, &text).await;
                log.take(seq);
                let content = Some(text);
                log.messages.insert(message, Said { sender, seq, change_seq: seq, content });
            }
            5..8 => {
                // Edited or deleted by who wrote it, while he is a member who may.
                let deletes = dice.below(3) == 0;
                let own = log.messages.iter().filter(|(_, said)| {
                    let by = log.member(said.sender);
                    let may = by.is_some_and(|m| m.history_from <= said.seq);
                    may && said.content.is_some() && (deletes || by.is_some_and(|m| m.can_send))
                });
                let own: Vec<_> = own.map(|(id, said)| (*id, said.sender)).collect();
                let Some((message_id, by)) = dice.of(&own) else { return };
                let edit = (!deletes).then(|| EditMessage {
                    content: text.clone(),
                    mentions: None,
                    metadata: None,
                });
                let message = amended(f.amend(Amendment { by, message_id, edit }).await);
                log.take(message.change_seq);
                let said = log.messages.get_mut(&message_id).expect("it is one of them");
                said.change_seq = message.change_seq;
                said.content = (!deletes).then_some(text);
            }
            8 => {
                let absent: Vec<_> =
                    people.iter().copied().filter(|user| log.member(*user).is_none()).collect();
                let Some(user) = dice.of(&absent) else { return };
                let with_history = dice.below(2) == 0;
                let seq = f.add(id, owner, user, with_history).await;
                log.take_info(seq);
                let history_from = if with_history { 1 } else { seq };
                let (role, can_send) = (Role::Member, true);
                let member = Membership { left_seq: None, history_from, role, can_send };
                log.members.insert(user, member);
            }
            9 => {
                let Some(user) = dice.of(&others) else { return };
                let seq = f.remove_member(id, owner, user).await;
                log.take_info(seq);
                log.members.get_mut(&user).expect("he is one").left_seq = Some(seq);
            }
            10 => {
                let change = Change::SetTitle { by: owner, title: Some(text.clone()) };
                log.take_info(changed(&f.change(id, change).await).seq);
                log.title = Some(text);
            }
            _ => {
                let Some(user_id) = dice.of(&others) else { return };
                let member = log.members.get_mut(&user_id).expect("he is one");
                let rights = dice.below(2) == 0;
                if rights {
                    member.can_send = !member.can_send;
                } else {
                    let admin = member.role == Role::Admin;
                    member.role = if admin { Role::Member } else { Role::Admin };
                }
                let role = (!rights).then_some(member.role);
                let can_send_messages = rights.then_some(member.can_send);
                let muted_until = None;
                let change =
                    Change::SetMember { by: owner, user_id, role, can_send_messages, muted_until };
                log.take_info(changed(&f.change(id, change).await).seq);
            }
        }
    }
}

#[derive(Default)]
struct Held {
    cursor: Seq,
    history_from: Seq,
    info: Option<Info>,
    messages: BTreeMap<MessageId, Said>,
    /// The seqs that answers said to cover.
    proven: BTreeSet<Seq>,
}

/// A device of a user, with what it holds.
struct Device {
    user: UserId,
    copies: BTreeMap<ConversationId, Held>,
    /// Where its last sync was to go on.
    after: Option<ConversationId>,
}

impl Device {
    /// One page, checked against the model and taken over. True if the range goes on.
    async fn page(&mut self, resume: &Resume, model: &Model, dice: &mut Dice) -> bool {
        let limit = 1 + dice.below(4) as u32;
        let bytes = [1, 700, 3_000, ANSWER_BYTES][dice.below(4)];
        let after = self.after;
        // A copy that holds nothing need not be named.
        let named = self.copies.iter().filter(|(id, copy)| {
            after.is_none_or(|after| **id > after) && (copy.cursor > 0 || dice.below(2) == 0)
        });
        let cursors = named.map(|(id, copy)| (*id, copy.cursor)).collect();
        let asked = Sync { cursors, after, to: None, store_epoch: None, limit };
        let answer = resume.page(self.user, asked.clone(), bytes).await;
        let listed: Vec<_> = answer.conversations.iter().map(|entry| entry.id).collect();
        assert!(listed.is_sorted_by(|a, b| a < b), "in order of id, each once: {listed:?}");
        let messages: usize = answer.conversations.iter().map(|e| e.messages.len()).sum();
        assert!(messages <= limit as usize, "{messages} of {limit}");
        assert!(answer.next_after >= after || answer.next_after.is_none(), "it goes on");
        // What the answer says it has done, it has named: whatever the user holds or may see.
        let done = |id: &ConversationId| {
            after.is_none_or(|after| *id > after) && answer.next_after.is_none_or(|end| *id <= end)
        };
        let mine = model.logs.iter().filter(|(_, log)| log.member(self.user).is_some());
        for id in mine.map(|(id, _)| id).chain(asked.cursors.keys()).filter(|id| done(id)) {
            assert!(listed.contains(id), "{id} is left out");
        }
        for (id, lo, hi) in covered(&answer) {
            self.copies.entry(id).or_default().proven.extend(lo..=hi);
        }
        self.after = answer.next_after;
        for entry in answer.conversations {
            let since = asked.cursors.get(&entry.id).copied();
            self.take_over(entry, since, &model.logs);
        }
        self.after.is_some()
    }

    fn take_over(
        &mut self,
        entry: SyncEntry,
        since: Option<Seq>,
        logs: &BTreeMap<ConversationId, Log>,
    ) {
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
    async fn catch_up(&mut self, resume: &Resume, model: &Model, dice: &mut Dice) {
        self.after = None;
        for turn in 0.. {
            assert!(turn < 2_000, "a resume ends");
            // A copy that began anew is behind its range.
            let goes_on = self.page(resume, model, dice).await;
            if !goes_on && self.copies.values().all(|copy| copy.cursor > 0) {
                break;
            }
        }
        let held: Vec<_> = self.copies.keys().copied().collect();
        let mine = model.logs.iter().filter(|(_, log)| log.member(self.user).is_some());
        assert_eq!(held, mine.map(|(id, _)| *id).collect::<Vec<_>>());
        for (id, copy) in &self.copies {
            let log = &model.logs[id];
            assert_eq!(copy.cursor, log.last_seq);
            assert_eq!(copy.messages, log.seen_by(self.user));
            assert_eq!(copy.info.as_ref(), Some(&log.info()));
            for said in copy.messages.values().filter(|said| said.content.is_some()) {
                assert!(copy.proven.contains(&said.seq), "{} was brought, not proven", said.seq);
            }
        }
    }
}

/// Whatever happens, in whatever order, and wherever a client's pages were cut off: it ends with
/// exactly what is there for it to see.
pub async fn a_client_ends_with_what_the_model_has(f: Arc<Fixture>) {
    let resume = Resume::on(&f).await;
    for seed in 1..=3 {
        let mut dice = Dice(seed);
        let people: [UserId; 4] = users();
        let mut model = Model::default();
        let device = |user| Device { user, copies: BTreeMap::new(), after: None };
        // The last of each user sleeps until the end.
        let mut devices: Vec<_> = people.iter().chain(&people).map(|user| device(*user)).collect();
        for step in 1..=160 {
            model.change(&f, &people, &mut dice).await;
            let at = dice.below(people.len());
            for _ in 0..dice.below(3) {
                devices[at].page(&resume, &model, &mut dice).await;
            }
            if step % 20 == 0 {
                let at = dice.below(people.len());
                devices[at].catch_up(&resume, &model, &mut dice).await;
            }
        }
        for device in &mut devices {
            device.catch_up(&resume, &model, &mut dice).await;
        }
    }
    resume.end().await;
}

/// A page at any cursor, cut anywhere: complete up to where it ends.
pub async fn a_page_is_complete_up_to_where_it_ends(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let mut ids = Vec::new();
    for n in 0..8 {
        ids.push(f.say_with_id(id, ann, &format!("{n}")).await.0);
    }
    // All of the first six change after the last: 9 is the head before, 15 after.
    for message_id in &ids[..6] {
        let edit = EditMessage { content: "new".into(), mentions: None, metadata: None };
        amended(f.amend(Amendment { by: ann, message_id: *message_id, edit: Some(edit) }).await);
    }
    let places = [(8, 8), (9, 9), (2, 10), (3, 11), (4, 12), (5, 13), (6, 14), (7, 15)];
    for room in 1..10 {
        let mut since = 0;
        let mut brought = Vec::new();
        while since < 15 {
            let wanted = PageWanted { user_id: ben, conversation_id: id, since, room };
            let page = f.store.sync_pages(&[wanted]).await.unwrap().remove(0);
            let LogPage::Part(part) = page else { panic!("he is a member: {page:?}") };
            assert!(part.messages.len() <= room as usize);
            assert!(part.next_seq > since && part.last_seq == 15, "{part:?}");
            let late = (since.max(1) + 1..=part.next_seq.min(7)).filter(|_| part.next_seq < 15);
            let late: Vec<_> = late.filter(|seq| seq + 8 > part.next_seq).collect();
            assert_eq!(part.pending, late, "from {since}, {room} at most: {part:?}");
            brought.extend(part.messages.iter().map(|m| (m.seq, m.change_seq)));
            since = part.next_seq;
        }
        assert_eq!(brought, places, "{room} at most");
    }
    // Many at once, in the order asked for.
    let stranger = user();
    let wanted = [(ben, 9, 1), (stranger, 0, 1), (ann, 14, 5), (ben, 0, 2)]
        .map(|(user_id, since, room)| PageWanted { user_id, conversation_id: id, since, room });
    let pages = f.store.sync_pages(&wanted).await.unwrap();
    let seqs = |page: &LogPage| match page {
        LogPage::Part(part) => part.messages.iter().map(|m| m.seq).collect(),
        LogPage::Gone { left_seq } => vec![left_seq.unwrap_or(-1)],
    };
    let seqs: Vec<Vec<Seq>> = pages.iter().map(seqs).collect();
    assert_eq!(seqs[..3], [vec![2], vec![-1], vec![7]]);
}

pub async fn heads_are_those_of_the_range(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(f.group(ann, &[ben]).await);
    }
    ids.sort();
    f.remove_member(ids[2], ann, ben).await;
    let span = |user_id, after: Option<usize>, to: Option<usize>| Span {
        user_id,
        after: after.map(|at| ids[at]),
        to: to.map(|at| ids[at]),
    };
    let spans = [
        span(ben, None, None),
        span(user(), None, None),
        span(ann, Some(1), Some(3)),
        span(ben, Some(4), None),
        span(ben, None, Some(0)),
    ];
    let heads = f.store.sync_heads(&spans).await.unwrap();
    let found = heads.iter().map(|heads| {
        assert_eq!(heads.up_to, None);
        heads.heads.iter().map(|head| (head.conversation_id, head.left_seq)).collect::<Vec<_>>()
    });
    let all = |at: &[usize]| at.iter().map(|at| (ids[*at], None)).collect::<Vec<_>>();
    let left = [all(&[0, 1]), vec![(ids[2], Some(2))], all(&[3, 4])].concat();
    assert_eq!(found.collect::<Vec<_>>(), [left, vec![], all(&[2, 3]), vec![], all(&[0])]);
}

/// A log that was restored, or lost commits, is not the one the client knows.
pub async fn a_copy_of_another_log_is_reset(f: Arc<Fixture>) {
    let resume = Resume::on(&f).await;
    let [ann, ben] = users();
    let mut ids = [f.group(ann, &[ben]).await, f.group(ann, &[]).await, f.group(ann, &[]).await];
    ids.sort();
    for id in ids {
        f.say(id, ann, "x").await;
    }
    let statuses = async |sync| {
        let answer = resume.page(ann, sync, ANSWER_BYTES).await;
        let entries = answer.conversations.into_iter();
        entries.map(|e| (e.status, e.next_seq, e.messages.len())).collect::<Vec<_>>()
    };
    use SyncStatus::{Changed, Gone, Reset, UpToDate};
    // A seq above the head; one at it; one never named.
    let above = sync(&[(ids[0], 3), (ids[1], 2)]);
    assert_eq!(statuses(above).await, [(Reset, 2, 0), (UpToDate, 2, 0), (Changed, 2, 1)]);
    // Another epoch: whatever the client holds is of another log.
    let stranger = ConversationId(Uuid::max());
    let other = sync(&[(ids[0], 2), (ids[1], 1), (stranger, 5)]);
    let other = Sync { store_epoch: Some(Uuid::new_v4()), ..other };
    let expected = [(Reset, 2, 0), (Reset, 2, 0), (Changed, 2, 1), (Gone, 5, 0)];
    assert_eq!(statuses(other).await, expected);
    let same = Sync { store_epoch: Some(f.store.epoch().await.unwrap()), ..sync(&[(ids[0], 2)]) };
    assert_eq!(statuses(same).await, [(UpToDate, 2, 0), (Changed, 2, 1), (Changed, 2, 1)]);
    resume.end().await;
}
