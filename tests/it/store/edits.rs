//! Edits and deletions of messages: who may, what is kept, and what is gone.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tidings::ids::{ConversationId, MessageId, OutboxId, UserId};
use tidings::protocol::command::EditMessage;
use tidings::protocol::model::{ChangeKind, Mention, MessageType, Version};
use tidings::store::types::{
    AmendOutcome, Amendment, Change, NewMessage, OutboxEntry, OutboxLease, SendOutcome, Settled,
};
use tokio::task::JoinSet;

use super::Fixture;
use super::fixture::{
    amend_by, amended, by_device, changed, lease, message, send, stored, user, users,
};

fn text(content: &str) -> EditMessage {
    EditMessage { content: content.into(), mentions: None, metadata: None }
}

fn edit_to(by: UserId, message_id: MessageId, edit: EditMessage) -> Amendment {
    Amendment { by, message_id, edit: Some(edit) }
}

fn edit(by: UserId, message_id: MessageId, content: &str) -> Amendment {
    edit_to(by, message_id, text(content))
}

fn delete(by: UserId, message_id: MessageId) -> Amendment {
    Amendment { by, message_id, edit: None }
}

fn mention(user_id: UserId) -> Option<Vec<Mention>> {
    Some(vec![Mention { user_id, offset: 0, length: 1 }])
}

fn image(id: ConversationId, sender: UserId, metadata: &Value) -> NewMessage {
    NewMessage {
        message_type: MessageType::Image,
        metadata: Some(metadata.clone()),
        ..message(id, sender, "")
    }
}

async fn versions(f: &Fixture, user: UserId, id: MessageId) -> Vec<Version> {
    f.store.edits(user, id, 200, 0).await.unwrap().expect("he sees the message")
}

pub async fn an_edit_keeps_the_version_before(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let (first, _) = f.say_with_id(id, ann, "one").await;
    f.say(id, ben, "meanwhile").await;
    assert_eq!(versions(&f, ben, first).await, []);

    let two = amended(f.amend(edit(ann, first, "two")).await);
    assert_eq!((two.seq, two.change_seq, two.content.as_deref()), (2, 4, Some("two")));
    assert!(two.edited_at.expect("it was edited") >= two.created_at);
    let three = amended(f.amend(edit(ann, first, "three")).await);
    assert_eq!((three.seq, three.change_seq, three.created_at), (2, 5, two.created_at));

    // Just what was answered is what is read, by its sender and by others.
    assert_eq!(f.store.message(ben, first).await.unwrap(), Some(three.clone()));
    assert_eq!(f.history(ann, id).await[1], three);
    let kept: Vec<_> = versions(&f, ben, first)
        .await
        .into_iter()
        .map(|version| (version.seq, version.content, Some(version.edited_at)))
        .collect();
    let one = (2, Some("one".to_owned()), Some(two.created_at));
    assert_eq!(kept, [one, (4, Some("two".to_owned()), two.edited_at)]);

    assert_eq!(f.say(id, ann, "next").await, 6);
    let seen = f.see(ben, id).await;
    assert_eq!((seen.last_seq, seen.unread_count), (6, Some(2)));
}

pub async fn an_edit_that_changes_nothing_takes_no_seq(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let sent = NewMessage {
        mentions: mention(ben),
        metadata: Some(json!({"a": [1, 2.5, null, "é"]})),
        ..message(id, ann, "b")
    };
    let outbox = OutboxLease { id: OutboxId::random(), lease: Duration::ZERO };
    f.send(std::slice::from_ref(&sent)).await;
    let now = f.store.message(ann, sent.id).await.unwrap().expect("she sees it");
    let rows = f.store.outbox_state().await.unwrap().0;
    for metadata in [None, Some(sent.metadata.clone())] {
        let same = EditMessage { content: "b".into(), mentions: mention(ben), metadata };
        let outcome = f.amend(edit_to(ann, sent.id, same)).await;
        assert_eq!(outcome, AmendOutcome::Unchanged(Box::new(now.clone())));
    }
    assert_eq!(f.store.outbox_state().await.unwrap().0, rows);
    assert_eq!(versions(&f, ann, sent.id).await, []);

    // What does change is in the outbox, with its place.
    amend_by(&mut f.store.writer(), &edit(ann, sent.id, "c"), outbox).await;
    let claimed = f.store.claim_outbox(100, Duration::from_secs(60)).await.unwrap();
    let row = claimed.into_iter().find(|row| row.id == outbox.id).expect("it is there");
    let entry = OutboxEntry {
        conversation_id: id,
        message_id: Some(sent.id),
        seq: 3,
        kind: ChangeKind::MessageEdited,
    };
    assert_eq!(row.entries, [entry]);
}

pub async fn mentions_and_metadata_follow_the_edit(f: Arc<Fixture>) {
    let [ann, ben, cat] = users();
    let id = f.group(ann, &[ben]).await;
    let metadata = json!({"media_url": "https://x/1", "n": 1});
    let sent = NewMessage { mentions: mention(ben), ..image(id, ann, &metadata) };
    let sent = NewMessage { content: "ben".into(), ..sent };
    f.send(std::slice::from_ref(&sent)).await;

    let first = amended(f.amend(edit(ann, sent.id, "x")).await);
    assert_eq!((first.mentions, first.metadata.as_ref()), (None, Some(&metadata)));
    let other = json!({"media_url": "https://x/2"});
    let with = EditMessage { mentions: mention(ben), metadata: Some(Some(other)), ..text("ben") };
    let second = amended(f.amend(edit_to(ann, sent.id, with.clone())).await);
    assert_eq!((&second.mentions, &second.metadata), (&with.mentions, &with.metadata.unwrap()));
    assert_eq!(f.store.message(ben, sent.id).await.unwrap(), Some(second));
    let kept = versions(&f, ben, sent.id).await;
    let kept: Vec<_> =
        kept.into_iter().map(|version| (version.mentions, version.metadata)).collect();
    assert_eq!(kept, [(mention(ben), Some(metadata.clone())), (None, Some(metadata))]);

    let stranger = EditMessage { mentions: mention(cat), ..text("cat") };
    let outcome = f.amend(edit_to(ann, sent.id, stranger)).await;
    assert_eq!(outcome, AmendOutcome::MentionNotMember);

    // Of a text it can be taken away.
    let sent = NewMessage { metadata: Some(json!({"a": 1})), ..message(id, ann, "x") };
    f.send(std::slice::from_ref(&sent)).await;
    let without = EditMessage { metadata: Some(None), ..text("x") };
    assert_eq!(amended(f.amend(edit_to(ann, sent.id, without)).await).metadata, None);
    assert_eq!(f.store.message(ann, sent.id).await.unwrap().expect("hers").metadata, None);
}

pub async fn only_its_sender_edits_or_deletes_a_message(f: Arc<Fixture>) {
    let [ann, ben, cat, eve] = users();
    let id = f.group(ann, &[ben, cat]).await;
    let (bens, _) = f.say_with_id(id, ben, "mine").await;
    let (cats, _) = f.say_with_id(id, cat, "mine").await;
    f.remove_member(id, ann, cat).await;
    let head = f.see(ann, id).await.last_seq;
    let nowhere = MessageId::new(id, tidings::clock::Timestamp::now());
    for (by, message, expected) in [
        // Not even an owner.
        (ann, bens, AmendOutcome::NotSender),
        (eve, bens, AmendOutcome::NotFound),
        // A leaver sees no message any more.
        (cat, cats, AmendOutcome::NotFound),
        (ann, nowhere, AmendOutcome::NotFound),
    ] {
        assert_eq!(f.amend(edit(by, message, "x")).await, expected);
        assert_eq!(f.amend(delete(by, message)).await, expected);
    }
    // She is back, but without what was before.
    f.add(id, ann, cat, false).await;
    assert_eq!(f.amend(edit(cat, cats, "x")).await, AmendOutcome::NotFound);
    assert_eq!(f.amend(delete(cat, cats)).await, AmendOutcome::NotFound);
    assert_eq!(f.see(ann, id).await.last_seq, head + 1);
}

pub async fn one_who_may_not_write_may_still_delete(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let (message, _) = f.say_with_id(id, ben, "mine").await;
    let mute = Change::SetMember {
        by: ann,
        user_id: ben,
        role: None,
        can_send_messages: Some(false),
        muted_until: None,
    };
    let version = changed(&f.change(id, mute).await).members_version;
    assert_eq!(f.amend(edit(ben, message, "x")).await, AmendOutcome::Forbidden);
    let AmendOutcome::Amended { message: left, members_version } =
        f.amend(delete(ben, message)).await
    else {
        panic!("deleting needs no right")
    };
    assert_eq!((left.change_seq, members_version), (4, version));
}

pub async fn an_edit_suits_the_type_of_its_message(f: Arc<Fixture>) {
    let ann = user();
    let id = f.group(ann, &[]).await;
    let (words, _) = f.say_with_id(id, ann, "words").await;
    let picture = image(id, ann, &json!({"media_url": "https://x"}));
    f.send(std::slice::from_ref(&picture)).await;
    let place = Some(json!({"latitude": 1, "longitude": 2}));
    let moved = EditMessage { metadata: Some(place), ..text("x") };
    let gone = EditMessage { metadata: Some(None), ..text("x") };
    for (message, wrong, field) in [
        (words, text(" "), "content"),
        (picture.id, moved, "metadata.media_url"),
        (picture.id, gone, "metadata.media_url"),
    ] {
        let AmendOutcome::Unsuitable(problem) = f.amend(edit_to(ann, message, wrong)).await else {
            panic!("{field} does not suit it")
        };
        assert_eq!(problem.field.as_deref(), Some(field));
    }
    assert_eq!(f.see(ann, id).await.last_seq, 3);
    let caption = amended(f.amend(edit(ann, picture.id, "a caption")).await);
    assert_eq!(amended(f.amend(edit(ann, picture.id, "")).await).metadata, caption.metadata);
}

pub async fn a_deleted_message_keeps_its_place_and_nothing_else(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let (parent, _) = f.say_with_id(id, ben, "question").await;
    let reply = NewMessage {
        parent_message_id: Some(parent),
        client_message_id: Some("r".into()),
        mentions: mention(ben),
        metadata: Some(json!({"secret": 1})),
        ..message(id, ann, "b: a secret")
    };
    f.send(std::slice::from_ref(&reply)).await;
    amended(f.amend(edit(ann, reply.id, "another secret")).await);
    assert_eq!(f.store.message(ben, parent).await.unwrap().expect("his").reply_count, 1);

    let outbox = lease();
    let deleting = delete(ann, reply.id);
    let left = amended(amend_by(&mut f.store.writer(), &deleting, outbox).await);
    assert_eq!((left.seq, left.change_seq, left.parent_message_id), (3, 5, Some(parent)));
    assert_eq!((&left.content, &left.mentions, &left.metadata), (&None, &None, &None));
    assert!(left.deleted_at.is_some() && left.edited_at.is_some());
    assert_eq!(f.store.message(ben, reply.id).await.unwrap(), Some(left.clone()));
    assert_eq!(f.history(ben, id).await[0], left);
    assert_eq!(f.store.message(ben, parent).await.unwrap().expect("his").reply_count, 0);
    assert_eq!(f.see(ben, id).await.unread_count, Some(0));

    // Not only hidden: the words are nowhere any more.
    assert_eq!(versions(&f, ann, reply.id).await, []);
    assert_eq!(f.count("message_edits").await, 0);
    let said = "messages where content is not null or mentions is not null or metadata is not null";
    assert_eq!(f.count(said).await, 1, "the question");

    // Again is the same; nothing is left to edit; a repeated send gives what is left.
    let rows = f.store.outbox_state().await.unwrap().0;
    assert_eq!(f.amend(deleting).await, AmendOutcome::Unchanged(Box::new(left.clone())));
    assert_eq!(f.amend(edit(ann, reply.id, "x")).await, AmendOutcome::Deleted);
    assert_eq!(f.send_one(reply.clone()).await, SendOutcome::Duplicate(Box::new(left)));
    assert_eq!(f.store.outbox_state().await.unwrap().0, rows);
    let claimed = f.store.claim_outbox(100, Duration::from_secs(60)).await.unwrap();
    let row = claimed.into_iter().find(|row| row.id == outbox.id).expect("it is there");
    let entry = OutboxEntry {
        conversation_id: id,
        message_id: Some(reply.id),
        seq: 5,
        kind: ChangeKind::MessageDeleted,
    };
    assert_eq!(row.entries, [entry]);
    assert_eq!(f.say(id, ann, "next").await, 6);
}

pub async fn earlier_versions_are_shown_to_those_who_see_the_message(f: Arc<Fixture>) {
    let [ann, ben, cat, eve] = users();
    let id = f.group(ann, &[ben]).await;
    let (message, _) = f.say_with_id(id, ann, "one").await;
    amended(f.amend(edit(ann, message, "two")).await);
    f.remove_member(id, ann, ben).await;
    let late = f.add(id, ann, cat, false).await;
    f.add(id, ann, eve, true).await;
    let stranger = user();
    for who in [ben, cat, stranger] {
        assert_eq!(f.store.message(who, message).await.unwrap(), None);
        assert_eq!(f.store.edits(who, message, 200, 0).await.unwrap(), None);
    }
    assert_eq!(versions(&f, eve, message).await.len(), 1);

    // The event of a later edit goes to just those who can read it.
    let now = amended(f.amend(edit(ann, message, "three")).await);
    let members = f.store.members(id).await.unwrap().expect("it exists").members;
    let mut told: Vec<_> = members
        .iter()
        .filter(|member| member.sees_change_of(now.seq, now.change_seq))
        .map(|member| member.user_id)
        .collect();
    told.sort();
    assert_eq!(told, [ann, eve]);
    assert!(late > now.seq);
}

/// The row lock of the conversation orders edits of one message by several nodes, and sends beside
/// them: no place is taken twice, and no version is lost.
pub async fn edits_and_messages_share_one_log(f: Arc<Fixture>) {
    const EDITS: usize = 25;
    let ann = user();
    let id = f.group(ann, &[]).await;
    let (edited, first) = f.say_with_id(id, ann, "first").await;
    let mut writing = JoinSet::new();
    for (w, mut writer) in f.writers(3).into_iter().enumerate() {
        writing.spawn(async move {
            let mut seqs = Vec::new();
            for e in 0..EDITS {
                let change = edit(ann, edited, &format!("{w} {e}"));
                seqs.push(amended(amend_by(&mut writer, &change, lease()).await).change_seq);
                let batch: Vec<_> = (0..3).map(|_| message(id, ann, "x")).collect();
                seqs.extend(send(&mut writer, &batch).await.iter().map(|o| stored(o).seq));
            }
            seqs
        });
    }
    let mut seqs = writing.join_all().await.concat();
    seqs.sort_unstable();
    assert_eq!(seqs, (first + 1..=first + seqs.len() as i64).collect::<Vec<_>>());

    let now = f.store.message(ann, edited).await.unwrap().expect("hers");
    let kept = versions(&f, ann, edited).await;
    assert_eq!(kept.len(), seqs.len() / 4);
    assert_eq!((kept[0].seq, kept[0].content.as_deref()), (first, Some("first")));
    assert!(kept.iter().all(|version| seqs.contains(&version.seq) || version.seq == first));
    assert!(kept.iter().all(|version| version.seq < now.change_seq));
    let mut said: Vec<_> = kept.into_iter().map(|version| version.content).collect();
    said.push(now.content);
    said.sort();
    said.dedup();
    assert_eq!(said.len(), seqs.len() / 4 + 1, "each was the message once");
}

pub async fn edits_and_deletions_hold_nobody_up(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let (first, first_seq) = f.say_with_id(id, ann, "one").await;
    let (second, _) = f.say_with_id(id, ann, "two").await;
    let outbox = lease();
    let mut writer = f.store.writer();
    let edited = amended(amend_by(&mut writer, &edit(ann, first, "1"), outbox).await);
    f.store.settle_outbox(&[outbox.id], Duration::ZERO).await.unwrap();
    assert_eq!(f.laggards().await, 0, "an edit makes nobody a laggard");

    // Its event reached a device, but it does not hide the messages that did not.
    let place = edited.change_seq;
    assert_eq!(f.settle_one(by_device(id, ben, place, place)).await, Settled::Waits);
    f.settle_one(by_device(id, ben, first_seq, first_seq)).await;
    assert_eq!(f.settle_one(by_device(id, ben, place, place)).await, Settled::Waits);
    amended(f.amend(delete(ann, second)).await);
    let moved = Settled::Moved { delivered_from: Some(place) };
    assert_eq!(f.settle_one(by_device(id, ben, place, place)).await, moved);
    // The places of edits and deletions are no gap.
    let (last, seq) = f.say_in_outbox(id, ann, "three").await;
    assert_eq!(seq, place + 2);
    f.store.settle_outbox(&[last], Duration::ZERO).await.unwrap();
    assert_eq!(f.laggards().await, 1);
    assert!(matches!(f.settle_one(by_device(id, ben, seq, seq)).await, Settled::Moved { .. }));
    assert_eq!(f.laggards().await, 0);
}
