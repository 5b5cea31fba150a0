//! Clients that come back are told exactly what they missed: against a model of it, and case by case.

use std::sync::Arc;

use tidings::ids::{ConversationId, Seq, UserId};
use tidings::protocol::command::{EditMessage, Sync};
use tidings::protocol::model::Role;
use tidings::protocol::sync::{SyncAnswer, SyncStatus};
use tidings::resume::{ANSWER_BYTES, Syncs};
use tidings::store::types::{Amendment, Change, LogPage, PageWanted, Span};
use tidings::telemetry::Metrics;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::fixture::{Fixture, amended, changed, user, users};
use crate::fuzz::Random;
use crate::harness::{PATIENCE, within};
use crate::model::{Device, Log, Logs, Said, read};

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
        read(&self.syncs, user, sync, bytes).await
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

#[derive(Default)]
pub(super) struct Model {
    pub logs: Logs,
    said: usize,
}

impl Model {
    /// One random change of the store, and the same of the model.
    pub async fn change(&mut self, f: &Fixture, people: &[UserId], dice: &mut Random) {
        self.said += 1;
        let text = format!("{} {}", self.said, "x".repeat(dice.below(200)));
        let ids: Vec<_> = self.logs.keys().copied().collect();
        let owner = people[0];
        if ids.is_empty() || ids.len() < 5 && dice.below(20) == 0 {
            let first: Vec<_> =
                people[1..].iter().copied().filter(|_| dice.below(2) == 0).collect();
            let id = f.group(owner, &first).await;
            self.logs.insert(id, Log::new(owner, &first));
            return;
        }
        let id = dice.one(&ids).expect("there is one");
        let log = self.logs.get_mut(&id).expect("it is one of them");
        let present = log.present();
        let others: Vec<_> = present.iter().copied().filter(|user| *user != owner).collect();
        match dice.below(12) {
            0..5 => {
                let sender = dice.one(&log.writers()).expect("the owner may always write");
                let (message, seq) = f.say_with_id(id, sender, &text).await;
                log.take(seq);
                let content = Some(text);
                log.messages.insert(message, Said { sender, seq, change_seq: seq, content });
            }
            5..8 => {
                // Edited or deleted by who wrote it, while he is a member who may.
                let deletes = dice.below(3) == 0;
                let Some((message_id, by)) = dice.one(&log.own(deletes)) else { return };
                let edit = (!deletes).then(|| EditMessage {
                    content: text.clone(),
                    mentions: None,
                    metadata: None,
                });
                let message = amended(f.amend(Amendment { by, message_id, edit }).await);
                log.amend(message_id, message.change_seq, (!deletes).then_some(text));
            }
            8 => {
                let absent: Vec<_> =
                    people.iter().copied().filter(|user| log.member(*user).is_none()).collect();
                let Some(user) = dice.one(&absent) else { return };
                let with_history = dice.below(2) == 0;
                let seq = f.add(id, owner, user, with_history).await;
                log.join(user, seq, with_history);
            }
            9 => {
                let Some(user) = dice.one(&others) else { return };
                let seq = f.remove_member(id, owner, user).await;
                log.leave(user, seq);
            }
            10 => {
                let change = Change::SetTitle { by: owner, title: Some(text.clone()) };
                log.take_info(changed(&f.change(id, change).await).seq);
                log.title = Some(text);
            }
            _ => {
                let Some(user_id) = dice.one(&others) else { return };
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

/// Whatever happens, in whatever order, and wherever a client's pages were cut off: it ends with
/// exactly what is there for it to see.
pub async fn a_client_ends_with_what_the_model_has(f: Arc<Fixture>) {
    let resume = Resume::on(&f).await;
    for seed in 1..=3 {
        let mut dice = Random(seed);
        let people: [UserId; 4] = users();
        let mut model = Model::default();
        // The last of each user sleeps until the end.
        let mut devices: Vec<_> =
            people.iter().chain(&people).map(|user| Device::new(*user)).collect();
        for step in 1..=160 {
            model.change(&f, &people, &mut dice).await;
            let at = dice.below(people.len());
            for _ in 0..dice.below(3) {
                devices[at].page(&resume.syncs, &model.logs, &mut dice).await;
            }
            if step % 20 == 0 {
                let at = dice.below(people.len());
                devices[at].catch_up(&resume.syncs, &model.logs, &mut dice).await;
            }
        }
        for device in &mut devices {
            device.catch_up(&resume.syncs, &model.logs, &mut dice).await;
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
    let wanted = |user_id, since, room| {
        let (last_seq, history_from_seq) = (15, 1);
        PageWanted { user_id, conversation_id: id, since, room, last_seq, history_from_seq }
    };
    let places = [(8, 8), (9, 9), (2, 10), (3, 11), (4, 12), (5, 13), (6, 14), (7, 15)];
    for room in 1..10 {
        let mut since = 0;
        let mut brought = Vec::new();
        while since < 15 {
            let wanted = wanted(ben, since, room);
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
        .map(|(user_id, since, room)| wanted(user_id, since, room));
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
