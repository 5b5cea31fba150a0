//! What devices tell of messages, what is kept of it, and who is told.

use std::sync::Arc;
use std::time::Duration;

use tidings::ids::{ConversationId, MessageId, Seq, UserId};
use tidings::protocol::model::{MessageReceipt, ReceiptKind};
use tidings::store::types::{Moved, Proof, Receipt, ReceivedPlace, Run, Settled, Told};

use super::Fixture;
use super::fixture::{RECEIPTS_MAX_MEMBERS, by_device, message, user, users};
use crate::harness::until;

fn read(user_id: UserId, message_id: MessageId) -> Receipt {
    Receipt { user_id, message_id, kind: ReceiptKind::Read }
}

fn delivered(user_id: UserId, message_id: MessageId) -> Receipt {
    Receipt { kind: ReceiptKind::Delivered, ..read(user_id, message_id) }
}

/// What a receipt moved: kind, from, up to.
type Steps = Vec<(ReceiptKind, Seq, Seq)>;

async fn receive(f: &Fixture, receipts: &[Receipt]) -> (Vec<Option<ReceivedPlace>>, Vec<Moved>) {
    let received = f.store.receive(receipts, RECEIPTS_MAX_MEMBERS).await.unwrap();
    (received.places, received.moved)
}

async fn steps(f: &Fixture, receipt: Receipt) -> Steps {
    let (places, mut moved) = receive(f, &[receipt]).await;
    assert!(places[0].is_some(), "the message can be seen");
    moved.sort_by_key(|moved| moved.kind);
    moved.iter().map(|moved| (moved.kind, moved.from, moved.up_to)).collect()
}

/// (delivered, read), as others see a member.
async fn marks(f: &Fixture, user: UserId, id: ConversationId) -> (Seq, Seq) {
    let me = f.see(user, id).await.me.expect("in answers to a member");
    (me.delivered_seq, me.read_seq)
}

async fn shown(f: &Fixture, user: UserId, id: MessageId) -> Vec<MessageReceipt> {
    f.store.receipts(user, id, 200, None).await.unwrap().expect("it can be seen")
}

pub async fn what_a_device_tells_moves_what_people_see(f: Arc<Fixture>) {
    use ReceiptKind::{Delivered, Read};
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let batch: Vec<_> = (0..4).map(|_| message(id, ann, "x")).collect();
    f.send(&batch).await;
    // At 2 to 5. Read implies delivered.
    assert_eq!(steps(&f, delivered(ben, batch[0].id)).await, [(Delivered, 2, 2)]);
    assert_eq!(steps(&f, read(ben, batch[2].id)).await, [(Delivered, 3, 4), (Read, 2, 4)]);
    assert_eq!(marks(&f, ben, id).await, (4, 4));
    // Told again, or of something before it: nothing new, nothing back.
    assert_eq!(steps(&f, read(ben, batch[2].id)).await, []);
    assert_eq!(steps(&f, read(ben, batch[1].id)).await, []);
    assert_eq!(steps(&f, delivered(ben, batch[3].id)).await, [(Delivered, 5, 5)]);
    assert_eq!(marks(&f, ben, id).await, (5, 4));
    assert_eq!(f.count("receipts").await, 4);
    assert_eq!(f.see(ben, id).await.unread_count, Some(1));
}

pub async fn a_receipt_for_what_one_cannot_see_changes_nothing(f: Arc<Fixture>) {
    let [ann, ben, late] = users();
    let id = f.group(ann, &[ben]).await;
    let said = message(id, ann, "before he came");
    f.send(std::slice::from_ref(&said)).await;
    f.add(id, ann, late, false).await;
    f.remove_member(id, ann, ben).await;
    let unknown = MessageId(uuid::Uuid::new_v4());
    let asked =
        [read(user(), said.id), read(ben, said.id), read(late, said.id), read(ann, unknown)];
    assert_eq!(receive(&f, &asked).await, (vec![None; 4], vec![]));
    assert_eq!(receive(&f, &[]).await, (vec![], vec![]));
    assert_eq!(f.count("receipts").await, 0);
    assert_eq!(marks(&f, late, id).await, (3, 3));
    for stranger in [user(), ben, late] {
        assert_eq!(f.store.receipts(stranger, said.id, 10, None).await.unwrap(), None);
    }
}

pub async fn receipts_given_together_are_one_step(f: Arc<Fixture>) {
    let [ann, ben, cat] = users();
    let id = f.group(ann, &[ben, cat]).await;
    let batch: Vec<_> = (0..3).map(|_| message(id, ann, "x")).collect();
    f.send(&batch).await;
    f.settle_one(by_device(id, ben, 2, 2)).await;
    let asked = [
        read(ben, batch[1].id),
        delivered(ben, batch[2].id),
        read(cat, batch[0].id),
        read(ben, batch[0].id),
    ];
    let (places, mut moved) = receive(&f, &asked).await;
    let place = |seq, is_settled| Some(ReceivedPlace { conversation_id: id, seq, is_settled });
    assert_eq!(places, [place(3, false), place(4, false), place(2, false), place(2, true)]);
    moved.sort_by_key(|moved| (moved.user_id == cat, moved.kind));
    let moved: Vec<_> =
        moved.iter().map(|m| (m.user_id == cat, m.kind, m.from, m.up_to, m.is_told)).collect();
    use ReceiptKind::{Delivered, Read};
    assert_eq!(
        moved,
        [
            (false, Delivered, 3, 4, true),
            (false, Read, 2, 3, true),
            (true, Delivered, 2, 2, true),
            (true, Read, 2, 2, true),
        ]
    );
}

pub async fn senders_are_found_in_a_stretch(f: Arc<Fixture>) {
    let [ann, ben, cat] = users();
    let id = f.group(ann, &[ben, cat]).await;
    let batch = [
        message(id, ann, "2"),
        message(id, ben, "3"),
        message(id, cat, "4"),
        message(id, ann, "5"),
    ];
    f.send(&batch).await;
    f.delete_messages(4).await;
    let told = f.store.told(&[(id, ben, 1, 4), (id, cat, 5, 5), (id, ann, 9, 12)]).await.unwrap();
    let one = |stretch, at: usize| Told {
        stretch,
        sender_id: batch[at].sender_id,
        message_id: batch[at].id,
        seq: at as Seq + 2,
    };
    assert_eq!(told, [one(0, 0), one(1, 3)]);
    // Of a long stretch the last ones.
    let many: Vec<_> = (0..250).map(|_| message(id, ann, "x")).collect();
    f.send(&many).await;
    let told = f.store.told(&[(id, ben, 6, 255)]).await.unwrap();
    assert_eq!(told.len(), 200);
    assert_eq!((told[0].seq, told[199].seq), (56, 255));
    assert_eq!(f.store.told(&[]).await.unwrap(), []);
}

pub async fn each_recipient_of_a_message_is_shown_with_times(f: Arc<Fixture>) {
    let mut others: [UserId; 4] = users();
    others.sort_unstable();
    let [ben, cat, dan, late] = others;
    let ann = user();
    let id = f.group(ann, &[ben, cat, dan]).await;
    let said = message(id, ann, "x");
    f.send(std::slice::from_ref(&said)).await;
    f.add(id, ann, late, true).await;
    f.settle_one(by_device(id, ben, 2, 2)).await;
    receive(&f, &[read(cat, said.id)]).await;
    let all = shown(&f, ben, said.id).await;
    let states: Vec<_> = all
        .iter()
        .map(|r| (r.user_id, r.delivered, r.delivered_at.is_some(), r.read, r.read_at.is_some()))
        .collect();
    let expected = [
        (ben, true, true, false, false),
        (cat, true, true, true, true),
        (dan, false, false, false, false),
    ];
    assert_eq!(states, expected, "not the sender, and not one who came later");
    let page = f.store.receipts(ann, said.id, 2, None).await.unwrap().unwrap();
    assert_eq!(page, all[..2]);
    let page = f.store.receipts(ann, said.id, 2, Some(cat)).await.unwrap().unwrap();
    assert_eq!(page, all[2..]);
    assert_eq!(f.store.receipts(ann, said.id, 2, Some(dan)).await.unwrap(), Some(vec![]));
}

pub async fn times_are_forgotten_and_the_state_is_not(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let said = message(id, ann, "x");
    f.send(std::slice::from_ref(&said)).await;
    receive(&f, &[read(ben, said.id)]).await;
    let hour = Duration::from_secs(3_600);
    assert_eq!(f.store.expire_receipts(hour, 100).await.unwrap(), 0);
    // The clock has to move on by a millisecond; then one at a time.
    let expired = async || f.store.expire_receipts(Duration::ZERO, 1).await.ok().filter(|n| *n > 0);
    assert_eq!(until("a receipt is old", expired).await, 1);
    assert_eq!(f.store.expire_receipts(Duration::ZERO, 100).await.unwrap(), 1);
    assert_eq!(f.store.expire_receipts(Duration::ZERO, 100).await.unwrap(), 0);
    let receipt = MessageReceipt {
        user_id: ben,
        delivered: true,
        delivered_at: None,
        read: true,
        read_at: None,
    };
    assert_eq!(shown(&f, ann, said.id).await, [receipt]);
}

pub async fn an_acknowledgement_moves_all_up_to_it_or_nothing(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let batch: Vec<_> = (0..3).map(|_| message(id, ann, "x")).collect();
    f.send(&batch).await;
    let ack = |hi| Run { proof: Proof::Ack, ..by_device(id, ben, 1, hi) };
    assert_eq!(f.settle_one(ack(5)).await, Settled::Refused, "above the head");
    assert_eq!(marks(&f, ben, id).await, (1, 1));
    assert_eq!(f.settle_one(ack(3)).await, Settled::Moved { delivered_from: Some(2) });
    assert_eq!(f.settle_one(ack(4)).await, Settled::Moved { delivered_from: Some(4) });
    let stranger = Run { user_id: user(), ..ack(4) };
    assert_eq!(f.settle_one(stranger).await, Settled::Refused);
}
