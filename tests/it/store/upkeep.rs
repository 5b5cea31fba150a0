//! What keeps the promises after the send: outbox, laggards, tables, locks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tidings::config::StoreConfig;
use tidings::ids::{ConversationId, OutboxId, UserId};
use tidings::protocol::model::ChangeKind;
use tidings::store::types::{Change, Laggard, OutboxEntry, OutboxLease, Settled};
use tidings::store::{Schema, Store, StoreError};
use tidings::telemetry::Metrics;
use tokio::task::JoinSet;

use super::Fixture;
use super::fixture::{
    RECEIPTS_MAX_MEMBERS, by_device, by_offline, lease, message, stored, user, users,
};

const LONG: Duration = Duration::from_secs(600);

async fn claim(f: &Fixture) -> Vec<Laggard> {
    f.store.claim_laggards(100, LONG).await.unwrap()
}

/// Sends and settles the batch's outbox row, as after a dispatch that reached nobody.
async fn say_to_nobody(f: &Fixture, id: ConversationId, by: UserId) -> i64 {
    let (outbox, seq) = f.say_in_outbox(id, by, "x").await;
    f.store.settle_outbox(&[outbox], Duration::ZERO).await.unwrap();
    seq
}

pub async fn an_outbox_row_is_claimed_when_its_lease_runs_out(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let created = f.store.claim_outbox(10, LONG).await.unwrap();
    assert_eq!(created.len(), 1);
    let of_creation = OutboxEntry {
        conversation_id: id,
        message_id: None,
        seq: 1,
        kind: ChangeKind::ConversationUpdated,
    };
    assert_eq!(created[0].entries, [of_creation]);
    // It is ours now.
    assert_eq!(f.store.claim_outbox(10, LONG).await.unwrap(), []);

    let held = OutboxLease { id: OutboxId::random(), lease: LONG };
    let batch = [message(id, ann, "a"), message(id, ben, "b")];
    for outcome in f.store.writer().send(&batch, held).await.unwrap() {
        stored(&outcome);
    }
    assert_eq!(f.store.claim_outbox(10, LONG).await.unwrap(), [], "its node still dispatches it");

    let mut rows = Vec::new();
    for _ in 0..3 {
        rows.push(f.say_in_outbox(id, ann, "x").await);
    }
    let first = f.store.claim_outbox(2, LONG).await.unwrap();
    let ids: Vec<_> = first.iter().map(|row| row.id).collect();
    assert_eq!(ids, [rows[0].0, rows[1].0], "the oldest first, as many as asked for");
    let entry = first[0].entries[0];
    assert_eq!((entry.conversation_id, entry.seq), (id, rows[0].1));
    assert_eq!(entry.kind, ChangeKind::MessageCreated);
    assert!(entry.message_id.is_some());

    let (count, age) = f.store.outbox_state().await.unwrap();
    assert_eq!(count, 5);
    assert!(age < LONG);
    let all = [created[0].id, held.id, rows[0].0, rows[1].0, rows[2].0];
    f.store.settle_outbox(&all, Duration::ZERO).await.unwrap();
    assert_eq!(f.store.outbox_state().await.unwrap(), (0, Duration::ZERO));
    f.store.settle_outbox(&all, Duration::ZERO).await.unwrap();
    f.store.settle_outbox(&[], Duration::ZERO).await.unwrap();
}

/// It held up all rows that were claimed with it, for ever.
pub async fn a_row_that_cannot_be_read_holds_up_no_other(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let creation = f.store.claim_outbox(1, LONG).await.unwrap().remove(0);
    f.store.settle_outbox(&[creation.id], Duration::ZERO).await.unwrap();
    f.say_in_outbox(id, ann, "of a newer release").await;
    match f.config {
        StoreConfig::Postgres(_) => f.execute("update outbox set kinds = '{99}'").await,
        StoreConfig::Sqlite(_) => f.execute("update outbox set kinds = '[99]'").await,
    }
    let (readable, _) = f.say_in_outbox(id, ann, "x").await;
    let claimed = f.store.claim_outbox(10, LONG).await.unwrap();
    let claimed: Vec<_> = claimed.iter().map(|row| row.id).collect();
    assert_eq!(claimed, [readable]);
    assert_eq!(f.store.outbox_state().await.unwrap().0, 2, "the other one is left to its release");
}

pub async fn laggards_are_those_behind_and_nobody_else(f: Arc<Fixture>) {
    let [ann, ben, cat, dan] = users();
    let id = f.group(ann, &[ben, cat, dan]).await;
    let creation = f.store.claim_outbox(1, LONG).await.unwrap().remove(0);
    f.store.settle_outbox(&[creation.id], Duration::ZERO).await.unwrap();
    assert_eq!(f.laggards().await, 0, "changes of the conversation make nobody a laggard");

    let (outbox, seq) = f.say_in_outbox(id, ann, "x").await;
    f.settle_one(by_device(id, ben, seq, seq)).await;
    // One who left and one who came after it have nothing to wait for.
    f.remove_member(id, ann, dan).await;
    f.add(id, ann, user(), true).await;
    f.store.settle_outbox(&[outbox], Duration::ZERO).await.unwrap();
    let found = claim(&f).await;
    assert_eq!(found.len(), 1, "{found:?}");
    let laggard = &found[0];
    assert_eq!((laggard.user_id, laggard.conversation_id), (cat, id));
    assert_eq!((laggard.settled_seq, laggard.last_seq, laggard.behind), (1, seq, 1));
    assert_eq!((laggard.tries, laggard.muted_until), (0, None));
    assert!(laggard.age < LONG);

    let lacking = f.store.lacking(cat, id, laggard.settled_seq, 10).await.unwrap();
    assert_eq!(lacking.iter().map(|message| message.seq).collect::<Vec<_>>(), [seq]);
    assert_eq!(f.store.lacking(ann, id, 1, 10).await.unwrap(), [], "his own he does not lack");
}

pub async fn a_laggard_is_claimed_once_and_goes_when_settled(f: Arc<Fixture>) {
    let ann = user();
    let others: Vec<_> = (0..20).map(|_| user()).collect();
    let id = f.group(ann, &others).await;
    let first = say_to_nobody(&f, id, ann).await;
    let last = say_to_nobody(&f, id, ann).await;
    assert_eq!(f.laggards().await, 20);

    let mut claiming = JoinSet::new();
    for _ in 0..4 {
        let f = f.clone();
        claiming.spawn(async move {
            let mut mine = Vec::new();
            loop {
                match f.store.claim_laggards(3, LONG).await.unwrap() {
                    found if found.is_empty() => return mine,
                    found => mine.extend(found.iter().map(|laggard| laggard.user_id)),
                }
            }
        });
    }
    let claimed = claiming.join_all().await.concat();
    assert_eq!(claimed.len(), 20);
    assert_eq!(claimed.iter().collect::<BTreeSet<_>>(), others.iter().collect());

    // Part of the way is not all of it.
    assert!(matches!(
        f.settle_one(by_device(id, others[0], first, first)).await,
        Settled::Moved { .. }
    ));
    assert_eq!(f.laggards().await, 20);
    let runs: Vec<_> = others.iter().map(|user| by_offline(id, *user, first, last)).collect();
    f.settle(&runs).await;
    assert_eq!(f.laggards().await, 0);
}

pub async fn laggards_wait_and_are_hastened(f: Arc<Fixture>) {
    let [ann, ben, cat] = users();
    let id = f.group(ann, &[ben, cat]).await;
    let seq = say_to_nobody(&f, id, ann).await;
    assert_eq!(claim(&f).await.len(), 2);
    f.store.postpone_laggards(&[(ben, id, LONG), (cat, id, Duration::ZERO)]).await.unwrap();
    let found = claim(&f).await;
    assert_eq!(found.iter().map(|l| (l.user_id, l.tries)).collect::<Vec<_>>(), [(cat, 1)]);

    f.store.hasten_laggards(&[ben, user()]).await.unwrap();
    let found = claim(&f).await;
    assert_eq!(found.iter().map(|l| (l.user_id, l.tries)).collect::<Vec<_>>(), [(ben, 1)]);
    assert_eq!(found[0].last_seq, seq);
    let (count, overdue) = f.store.laggards_state().await.unwrap();
    assert_eq!(count, 2);
    assert!(overdue < LONG);
    f.store.postpone_laggards(&[]).await.unwrap();
    f.store.hasten_laggards(&[]).await.unwrap();
}

pub async fn one_who_lacks_nothing_any_more_is_no_laggard(f: Arc<Fixture>) {
    let [ann, ben, cat] = users();
    let id = f.group(ann, &[ben, cat]).await;
    let kept = say_to_nobody(&f, id, ann).await;
    let deleted = say_to_nobody(&f, id, ann).await;
    f.remove_member(id, ann, cat).await;
    f.delete_messages(deleted).await;
    let found = claim(&f).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].user_id, found[0].last_seq, found[0].behind), (ben, kept, 1));
    f.settle_one(by_device(id, ben, kept, kept)).await;
    assert_eq!(f.laggards().await, 0);

    // Deleted while he was behind: found when claimed.
    let deleted = say_to_nobody(&f, id, ann).await;
    assert_eq!(f.laggards().await, 1);
    f.delete_messages(deleted).await;
    assert_eq!(claim(&f).await, []);
    assert_eq!(f.laggards().await, 0);
}

pub async fn a_long_monologue_makes_no_laggard_of_its_author(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    for _ in 0..4 {
        let outbox = OutboxLease { id: OutboxId::random(), lease: Duration::ZERO };
        let batch: Vec<_> = (0..200).map(|_| message(id, ann, "x")).collect();
        f.store.writer().send(&batch, outbox).await.unwrap();
        f.settle_one(by_device(id, ben, 2, f.see(ben, id).await.last_seq)).await;
        f.store.settle_outbox(&[outbox.id], Duration::ZERO).await.unwrap();
    }
    assert_eq!(f.laggards().await, 0);
    // What others then say is what she lacks, and nothing else.
    let last = say_to_nobody(&f, id, ben).await;
    let found = claim(&f).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].user_id, found[0].last_seq, found[0].behind), (ann, last, 1));
    // Her own messages moved the line, so that no look is long.
    assert!(found[0].settled_seq > last - 100, "{}", found[0].settled_seq);
}

/// Repeats what another transaction was in the way of; anything else is a failure.
macro_rules! despite_conflicts {
    ($call:expr) => {
        loop {
            match $call.await {
                Err(StoreError::Conflict(_)) => {}
                outcome => break outcome.unwrap(),
            }
        }
    };
}

/// Claims what is due and hands it all to the offline sink, once.
async fn reconcile(f: &Fixture) {
    let claimed = despite_conflicts!(f.store.claim_laggards(4, Duration::from_millis(200)));
    let runs: Vec<_> = claimed
        .iter()
        .map(|l| by_offline(l.conversation_id, l.user_id, l.settled_seq + 1, l.last_seq))
        .collect();
    despite_conflicts!(f.store.settle(&runs, RECEIPTS_MAX_MEMBERS));
}

/// Lanes, dispatchers, devices, reconcilers and changes of members in each other's way: none fails
/// but for conflicts, which are repeated, and in the end everyone's line is at the head.
pub async fn all_at_once_nobody_is_left_behind(f: Arc<Fixture>) {
    let members: [UserId; 6] = users();
    let [ann, ..] = members;
    let id = f.group(ann, &members[1..]).await;
    let guest = user();
    let mut changer = f.store.writer();
    let mut working = JoinSet::new();
    for (w, mut writer) in f.writers(2).into_iter().enumerate() {
        let f = f.clone();
        working.spawn(async move {
            for b in 0..30 {
                let batch: Vec<_> =
                    (0..5).map(|i| message(id, members[(w + b + i) % 6], "x")).collect();
                let outbox = OutboxLease { id: OutboxId::random(), lease: LONG };
                despite_conflicts!(writer.send(&batch, outbox));
                despite_conflicts!(f.store.settle_outbox(&[outbox.id], Duration::ZERO));
            }
        });
    }
    working.spawn(async move {
        for _ in 0..20 {
            let join = Change::AddMembers { by: ann, user_ids: vec![guest], with_history: true };
            let leave = Change::RemoveMember { by: guest, user_id: guest };
            for change in [join, leave] {
                despite_conflicts!(changer.change(id, &change, 100, lease()));
            }
        }
    });
    for device in members {
        let f = f.clone();
        working.spawn(async move {
            for _ in 0..20 {
                let head = f.see(device, id).await.last_seq;
                let mut runs: Vec<_> =
                    members.iter().map(|user| by_device(id, *user, head, head)).collect();
                runs.push(by_device(id, guest, head, head));
                runs.retain(|run| run.user_id != device);
                runs.push(by_device(id, device, 2, head));
                despite_conflicts!(f.store.settle(&runs, RECEIPTS_MAX_MEMBERS));
            }
        });
    }
    for _ in 0..2 {
        let f = f.clone();
        working.spawn(async move {
            for _ in 0..20 {
                reconcile(&f).await;
                for row in despite_conflicts!(f.store.claim_outbox(3, LONG)) {
                    despite_conflicts!(f.store.settle_outbox(&[row.id], Duration::ZERO));
                }
            }
        });
    }
    working.join_all().await;

    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while f.laggards().await > 0 {
        assert!(tokio::time::Instant::now() < deadline, "someone stays behind");
        reconcile(&f).await;
    }
    for row in f.store.claim_outbox(100, LONG).await.unwrap() {
        f.store.settle_outbox(&[row.id], Duration::ZERO).await.unwrap();
    }
    assert_eq!((f.store.outbox_state().await.unwrap().0, f.laggards().await), (0, 0));
    // A run at the head moves only if nothing of others is missing below it.
    let head = f.say(id, ann, "last").await;
    let runs: Vec<_> = members.iter().map(|user| by_offline(id, *user, head, head)).collect();
    for outcome in f.settle(&runs).await {
        assert!(matches!(outcome, Settled::Moved { .. }), "{outcome:?}");
    }
}

pub async fn the_tables_are_laid_once_however_many_try(f: Arc<Fixture>) {
    let empty = f.another().await;
    assert!(
        matches!(empty.store.schema().await.unwrap(), Schema::Behind { missing } if missing > 0)
    );
    let mut laying = JoinSet::new();
    for _ in 0..4 {
        let store = Store::connect(&empty.config, Metrics::new().0).await.unwrap();
        laying.spawn(async move {
            store.migrate().await.unwrap();
            store.close().await;
        });
    }
    laying.join_all().await;
    assert_eq!(empty.store.schema().await.unwrap(), Schema::Current);
    empty.store.migrate().await.unwrap();
    empty.remove().await;
}

pub async fn one_process_holds_the_single_node_lock(f: Arc<Fixture>) {
    assert!(f.store.lock_single_node().await.unwrap());
    assert!(f.store.lock_single_node().await.unwrap(), "it is ours already");
    let second = Store::connect(&f.config, Metrics::new().0).await.unwrap();
    assert!(!second.lock_single_node().await.unwrap());
    f.store.close().await;
    // The database frees it when it sees the end of the session that held it.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while !second.lock_single_node().await.unwrap() {
        assert!(tokio::time::Instant::now() < deadline, "it is never freed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    second.close().await;
}

pub async fn the_epoch_stays(f: Arc<Fixture>) {
    let epoch = f.store.epoch().await.unwrap();
    let second = Store::connect(&f.config, Metrics::new().0).await.unwrap();
    assert_eq!(second.epoch().await.unwrap(), epoch);
    second.ping().await.unwrap();
    let (in_use, idle) = second.pool_use();
    assert!(in_use + idle <= 8, "{in_use} {idle}");
    second.close().await;
}
