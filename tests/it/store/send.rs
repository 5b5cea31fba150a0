//! Sending: order, duplicates, refusals.

use std::sync::Arc;

use tidings::ids::{ConversationId, MessageId, UserId};
use tidings::protocol::model::{Mention, Message, MessageType};
use tidings::store::types::{Change, NewMessage, SendOutcome};

use super::Fixture;
use super::fixture::{changed, message, stored, users};

fn duplicate(outcome: &SendOutcome) -> &Message {
    match outcome {
        SendOutcome::Duplicate(message) => message,
        other => panic!("the first message is given again, not {other:?}"),
    }
}

fn with_client_id(message: NewMessage, id: &str) -> NewMessage {
    NewMessage { client_message_id: Some(id.into()), ..message }
}

fn reply(message: NewMessage, parent: MessageId) -> NewMessage {
    NewMessage { parent_message_id: Some(parent), ..message }
}

fn mentioning(message: NewMessage, whom: &[UserId]) -> NewMessage {
    let mention = |user_id: &UserId| Mention { user_id: *user_id, offset: 0, length: 1 };
    NewMessage { mentions: Some(whom.iter().map(mention).collect()), ..message }
}

pub async fn a_batch_is_stored_in_the_order_given(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let (one, two) = (f.group(ann, &[ben]).await, f.direct(ann, ben).await);
    let mut rich = mentioning(message(one, ann, "@ben café 🎈"), &[ben]);
    rich.message_type = MessageType::Image;
    rich.client_message_id = Some("c-1".into());
    rich.metadata =
        Some(serde_json::json!({"media_url": "https://example.org/a.png", "n": [1, null]}));
    let batch = [
        message(one, ann, "a"),
        message(two, ben, "b"),
        message(one, ben, "c"),
        rich.clone(),
        message(two, ben, "e"),
    ];
    let outcomes = f.send(&batch).await;
    let seqs: Vec<_> = outcomes.iter().map(|outcome| stored(outcome).seq).collect();
    assert_eq!(seqs, [2, 2, 3, 4, 3]);
    assert!(outcomes.iter().all(|outcome| stored(outcome).members_version == 1));

    let found = f.store.messages(&[rich.id, message(one, ann, "never sent").id]).await.unwrap();
    assert_eq!(
        found,
        [Message {
            id: rich.id,
            conversation_id: one,
            seq: 4,
            change_seq: 4,
            sender_id: ann,
            client_message_id: Some("c-1".into()),
            message_type: MessageType::Image,
            content: Some("@ben café 🎈".into()),
            parent_message_id: None,
            reply_count: 0,
            mentions: rich.mentions,
            metadata: rich.metadata,
            created_at: stored(&outcomes[3]).created_at,
            edited_at: None,
            deleted_at: None,
        }]
    );
    assert_eq!(f.store.messages(&[]).await.unwrap(), []);
    assert_eq!(f.see(ann, one).await.last_seq, 4);
    // Two creations and the batch.
    assert_eq!(f.store.outbox_state().await.unwrap().0, 3);
}

pub async fn a_repeated_message_is_given_again(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let first = with_client_id(message(id, ann, "hello"), "x");
    let seq = stored(&f.send_one(first.clone()).await).seq;
    f.say(id, ann, "between").await;

    let again = with_client_id(message(id, ann, "hello"), "x");
    let outcome = f.send_one(again.clone()).await;
    let given = duplicate(&outcome);
    assert_eq!((given.id, given.seq), (first.id, seq));
    assert_eq!(given.content.as_deref(), Some("hello"));

    let other_body = NewMessage { body_hash: [8; 32], ..again.clone() };
    assert_eq!(f.send_one(other_body).await, SendOutcome::DifferentBody);

    // Another's message by the same name is another message.
    let of_ben = with_client_id(message(id, ben, "hello"), "x");
    assert_eq!(stored(&f.send_one(of_ben).await).seq, 4);

    // In a batch with new ones, and deleted meanwhile: its place is given, not its words.
    f.delete_messages(seq).await;
    let outcomes = f.send(&[message(id, ann, "new"), again, message(id, ben, "newer")]).await;
    assert_eq!((stored(&outcomes[0]).seq, stored(&outcomes[2]).seq), (5, 6));
    let given = duplicate(&outcomes[1]);
    assert_eq!((given.id, &given.content), (first.id, &None));
    assert!(given.deleted_at.is_some());
}

pub async fn a_repeated_message_is_given_again_to_one_who_left(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let first = with_client_id(message(id, ben, "bye"), "x");
    assert_eq!(stored(&f.send_one(first.clone()).await).seq, 2);
    f.remove_member(id, ann, ben).await;

    let again = with_client_id(message(id, ben, "bye"), "x");
    assert_eq!(duplicate(&f.send_one(again.clone()).await).id, first.id);
    let other_body = NewMessage { body_hash: [8; 32], ..again };
    assert_eq!(f.send_one(other_body).await, SendOutcome::DifferentBody);
    let new = with_client_id(message(id, ben, "one more"), "y");
    assert_eq!(f.send_one(new).await, SendOutcome::NotFound);
}

pub async fn what_the_sender_may_not_do_is_refused_and_takes_no_seq(f: Arc<Fixture>) {
    let [ann, ben, eve] = users();
    let id = f.group(ann, &[ben]).await;
    let mute = Change::SetMember {
        by: ann,
        user_id: ben,
        role: None,
        can_send_messages: Some(false),
        muted_until: None,
    };
    assert_eq!(changed(&f.change(id, mute).await).seq, 2);
    let rows = f.store.outbox_state().await.unwrap().0;

    let refused = [
        message(id, eve, "let me in"),
        message(ConversationId::random(), ann, "nowhere"),
        message(id, ben, "muted"),
    ];
    let expected = [SendOutcome::NotFound, SendOutcome::NotFound, SendOutcome::Forbidden];
    assert_eq!(f.send(&refused).await, expected);
    assert_eq!(f.store.outbox_state().await.unwrap().0, rows);

    // The refused ones hold up nobody in their batch.
    let mut batch = refused.to_vec();
    batch.insert(1, message(id, ann, "hello"));
    batch.push(message(id, ann, "again"));
    let outcomes = f.send(&batch).await;
    assert_eq!((stored(&outcomes[1]).seq, stored(&outcomes[4]).seq), (3, 4));
    assert_eq!(stored(&outcomes[1]).members_version, 2);
    assert_eq!(
        [&outcomes[0], &outcomes[2], &outcomes[3]],
        [&expected[0], &expected[1], &expected[2]]
    );
    assert_eq!(f.send(&[]).await, []);
}

pub async fn a_parent_must_be_seen_by_the_sender(f: Arc<Fixture>) {
    let [ann, ben, cat] = users();
    let (id, other) = (f.group(ann, &[ben]).await, f.group(ann, &[ben]).await);
    let (parent, seq) = f.say_with_id(id, ann, "question").await;
    let (elsewhere, _) = f.say_with_id(other, ann, "elsewhere").await;
    f.add(id, ann, cat, false).await;

    let answer = |by, parent| reply(message(id, by, "answer"), parent);
    let outcomes = f
        .send(&[
            answer(ben, parent),
            answer(ben, elsewhere),
            answer(ben, message(id, ann, "never sent").id),
            answer(cat, parent),
        ])
        .await;
    stored(&outcomes[0]);
    assert!(outcomes[1..].iter().all(|outcome| *outcome == SendOutcome::ParentNotFound));
    f.delete_messages(seq).await;
    assert_eq!(f.send_one(answer(ben, parent)).await, SendOutcome::ParentDeleted);
    // One who never could see it is not told that it was there.
    assert_eq!(f.send_one(answer(cat, parent)).await, SendOutcome::ParentNotFound);
}

pub async fn only_members_can_be_mentioned(f: Arc<Fixture>) {
    let [ann, ben, cat, eve] = users();
    let id = f.group(ann, &[ben, cat]).await;
    let naming = |whom: &[UserId]| mentioning(message(id, ann, "@"), whom);
    stored(&f.send_one(naming(&[ben, cat, ann])).await);
    stored(&f.send_one(naming(&[])).await);
    assert_eq!(f.send_one(naming(&[ben, eve])).await, SendOutcome::MentionNotMember);
    f.remove_member(id, ann, cat).await;
    assert_eq!(f.send_one(naming(&[cat])).await, SendOutcome::MentionNotMember);
}
