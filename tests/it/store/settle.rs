//! Proven runs move the watermarks: never past what was not proven, never backwards.

use std::sync::Arc;

use tidings::ids::{ConversationId, UserId};
use tidings::store::types::Settled;

use super::Fixture;
use super::fixture::{by_device, by_offline, message, user, users};

const MOVED: Settled = Settled::Moved { delivered_from: None };

fn delivered_from(seq: i64) -> Settled {
    Settled::Moved { delivered_from: Some(seq) }
}

/// What others see of a member: delivered.
async fn delivered(f: &Fixture, user: UserId, id: ConversationId) -> i64 {
    f.see(user, id).await.me.expect("in answers to a member").delivered_seq
}

pub async fn a_run_moves_up_to_its_end(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let batch: Vec<_> = (0..5).map(|_| message(id, ann, "x")).collect();
    f.send(&batch).await;
    assert_eq!(f.settle_one(by_device(id, ben, 2, 4)).await, delivered_from(2));
    assert_eq!(delivered(&f, ben, id).await, 4);
    // Offered again, or a part of it: nothing new, nothing back.
    assert_eq!(f.settle_one(by_device(id, ben, 2, 4)).await, MOVED);
    assert_eq!(f.settle_one(by_device(id, ben, 2, 3)).await, MOVED);
    assert_eq!(delivered(&f, ben, id).await, 4);
    // Overlapping what is known: new from there on.
    assert_eq!(f.settle_one(by_device(id, ben, 3, 6)).await, delivered_from(5));
    assert_eq!(delivered(&f, ben, id).await, 6);
    assert_eq!(f.count("receipts").await, 2);
    assert_eq!(f.settle(&[]).await, []);
}

pub async fn a_run_waits_for_an_earlier_message_of_others(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let batch: Vec<_> = (0..3).map(|_| message(id, ann, "x")).collect();
    f.send(&batch).await;
    assert_eq!(f.settle_one(by_device(id, ben, 3, 4)).await, Settled::Waits);
    assert_eq!(delivered(&f, ben, id).await, 1);
    assert_eq!(f.count("receipts").await, 0);
    assert_eq!(f.settle_one(by_device(id, ben, 2, 2)).await, delivered_from(2));
    assert_eq!(f.settle_one(by_device(id, ben, 3, 4)).await, delivered_from(3));
}

pub async fn own_and_deleted_messages_hold_nobody(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    f.say(id, ben, "my own").await;
    let deleted = f.say(id, ann, "deleted").await;
    f.add(id, ann, user(), true).await;
    let last = f.say(id, ann, "hello").await;
    assert_eq!(last, 5);
    let run = by_device(id, ben, last, last);
    assert_eq!(f.settle_one(run).await, Settled::Waits);
    f.delete_messages(deleted).await;
    assert_eq!(f.settle_one(run).await, delivered_from(last));
}

pub async fn runs_of_one_member_settle_one_after_the_other(f: Arc<Fixture>) {
    let [ann, ben, cat] = users();
    let (id, other) = (f.group(ann, &[ben, cat]).await, f.group(ben, &[ann]).await);
    let batch: Vec<_> = (0..9).map(|_| message(id, ann, "x")).collect();
    f.send(&batch).await;
    f.say(other, ben, "x").await;
    // 2..=10 are of others. For ben 6 is missing: what lies above it waits. Given out of order,
    // with another member's and another conversation's between them.
    let runs = [
        by_device(id, ben, 7, 8),
        by_device(other, ann, 2, 2),
        by_device(id, ben, 4, 5),
        by_offline(id, cat, 2, 3),
        by_device(id, ben, 10, 10),
        by_device(id, ben, 2, 3),
        by_device(id, cat, 4, 10),
    ];
    let expected = [
        Settled::Waits,
        delivered_from(2),
        delivered_from(4),
        MOVED,
        Settled::Waits,
        delivered_from(2),
        delivered_from(4),
    ];
    assert_eq!(f.settle(&runs).await, expected);
    assert_eq!(delivered(&f, ben, id).await, 5);
    assert_eq!(delivered(&f, cat, id).await, 10);
    let rest = [by_offline(id, ben, 6, 6), by_device(id, ben, 7, 8), by_device(id, ben, 9, 10)];
    assert_eq!(f.settle(&rest).await, [MOVED, delivered_from(7), delivered_from(9)]);
}

pub async fn a_run_is_refused_above_the_head_and_to_strangers(f: Arc<Fixture>) {
    let [ann, ben, eve] = users();
    let id = f.group(ann, &[ben]).await;
    f.say(id, ann, "hello").await;
    let runs = [
        by_device(id, ben, 2, 3),
        by_device(id, eve, 2, 2),
        by_device(ConversationId::random(), ben, 1, 1),
        by_device(id, ann, 2, 2),
    ];
    let expected = [Settled::Refused, Settled::Refused, Settled::Refused, delivered_from(2)];
    assert_eq!(f.settle(&runs).await, expected);
    assert_eq!(delivered(&f, ben, id).await, 1);
    f.remove_member(id, ann, ben).await;
    assert_eq!(f.settle_one(by_device(id, ben, 2, 2)).await, Settled::Refused);
}

pub async fn devices_move_what_people_see_and_the_offline_sink_does_not(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let batch: Vec<_> = (0..4).map(|_| message(id, ann, "x")).collect();
    f.send(&batch).await;
    assert_eq!(f.settle_one(by_offline(id, ben, 2, 3)).await, MOVED);
    assert_eq!(delivered(&f, ben, id).await, 1);
    // The phone woken by the push proves it after all: settled before, delivered only now.
    assert_eq!(f.settle_one(by_device(id, ben, 2, 3)).await, delivered_from(2));
    assert_eq!(delivered(&f, ben, id).await, 3);
    assert_eq!(f.settle_one(by_offline(id, ben, 4, 4)).await, MOVED);
    assert_eq!(f.settle_one(by_device(id, ben, 5, 5)).await, delivered_from(5));
    assert_eq!(f.count("receipts where kind = 0").await, 2);
}

pub async fn large_groups_keep_watermarks_without_receipts(f: Arc<Fixture>) {
    let others: Vec<UserId> = (0..255).map(|_| user()).collect();
    let ann = user();
    let id = f.group(ann, &others).await;
    f.say(id, ann, "hello").await;
    assert_eq!(f.settle_one(by_device(id, others[0], 2, 2)).await, delivered_from(2));
    assert_eq!(f.count("receipts").await, 1);
    // One more, and it is large.
    f.add(id, ann, user(), true).await;
    assert_eq!(f.settle_one(by_device(id, others[1], 2, 3)).await, MOVED, "and nobody is told");
    assert_eq!(f.count("receipts").await, 1);
    assert_eq!(delivered(&f, others[1], id).await, 3);
}
