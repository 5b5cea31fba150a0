//! Several writers at once: lanes of one node, or of several.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidings::ids::{ConversationId, Seq};
use tidings::protocol::model::Kind;
use tidings::store::types::{Change, ChangeOutcome, SendOutcome};
use tokio::task::JoinSet;

use super::Fixture;
use super::fixture::{
    MAX_GROUP, change_by, changed, create_direct, message, send, stored, user, users,
};

/// Sends each batch until each of its messages is stored, and gives their places.
async fn send_all(
    mut writer: tidings::store::Writer,
    batches: Vec<Vec<tidings::store::types::NewMessage>>,
) -> Vec<(ConversationId, Seq)> {
    let mut places = Vec::new();
    for mut batch in batches {
        while !batch.is_empty() {
            let outcomes = send(&mut writer, &batch).await;
            let mut again = Vec::new();
            for (message, outcome) in batch.into_iter().zip(outcomes) {
                match outcome {
                    SendOutcome::Again => again.push(message),
                    outcome => places.push((message.conversation_id, stored(&outcome).seq)),
                }
            }
            batch = again;
        }
    }
    places
}

fn by_conversation(places: Vec<(ConversationId, Seq)>) -> BTreeMap<ConversationId, Vec<Seq>> {
    let mut seqs = BTreeMap::<_, Vec<Seq>>::new();
    for (id, seq) in places {
        seqs.entry(id).or_default().push(seq);
    }
    seqs.values_mut().for_each(|seqs| seqs.sort_unstable());
    seqs
}

/// A shape of the statement that took the seq from a snapshot gave the same place twice when two
/// connections wrote to the same conversation: seqs come from the row that was locked.
pub async fn seqs_are_gap_free_however_many_write(f: Arc<Fixture>) {
    const BATCHES: usize = 40;
    const BATCH: usize = 32;
    let ann = user();
    let mut conversations = Vec::new();
    for _ in 0..10 {
        conversations.push(f.group(ann, &[]).await);
    }
    let mut writing = JoinSet::new();
    let writers = f.writers(4);
    let total = writers.len() * BATCHES * BATCH;
    for (w, writer) in writers.into_iter().enumerate() {
        let conversation = |b: usize, i: usize| conversations[(w + 3 * b + 7 * i) % 10];
        let batch = |b| (0..BATCH).map(|i| message(conversation(b, i), ann, "x")).collect();
        writing.spawn(send_all(writer, (0..BATCHES).map(batch).collect()));
    }
    let places = writing.join_all().await.concat();
    assert_eq!(places.len(), total);
    for (id, seqs) in by_conversation(places) {
        assert_eq!(seqs, (2..2 + seqs.len() as Seq).collect::<Vec<_>>(), "of {id}");
        assert_eq!(f.see(ann, id).await.last_seq, seqs.len() as Seq + 1);
    }
}

pub async fn a_direct_conversation_exists_once_per_pair(f: Arc<Fixture>) {
    let [ann, ben, cat] = users();
    let mut creating = JoinSet::new();
    for (i, mut writer) in f.writers(6).into_iter().enumerate() {
        let (by, other) = if i % 2 == 0 { (ann, ben) } else { (ben, ann) };
        creating.spawn(async move {
            let id = ConversationId::random();
            (id, change_by(&mut writer, id, &create_direct(by, other), MAX_GROUP).await)
        });
    }
    let outcomes = creating.join_all().await;
    let made: Vec<_> = outcomes
        .iter()
        .filter_map(|(id, outcome)| match outcome {
            ChangeOutcome::Changed(changed) => {
                assert_eq!(changed.conversation_id, *id);
                Some(*id)
            }
            _ => None,
        })
        .collect();
    let [made] = made[..] else { panic!("one of them made it, not {made:?}") };
    for (id, outcome) in outcomes {
        assert!(id == made || outcome == ChangeOutcome::Unchanged(made), "{outcome:?}");
    }
    assert_eq!(
        f.change(ConversationId::random(), create_direct(ben, ann)).await,
        ChangeOutcome::Unchanged(made)
    );
    assert_ne!(f.direct(ann, cat).await, made);
    assert_eq!(f.see(ben, made).await.kind, Kind::Direct);
}

/// Members come and go while others write: one log without gaps, whoever took the numbers.
pub async fn changes_and_messages_share_one_log(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[]).await;
    let mut changer = f.store.writer();
    let mut writing = JoinSet::new();
    for writer in f.writers(2) {
        let batches = (0..30).map(|_| (0..8).map(|_| message(id, ann, "x")).collect()).collect();
        writing.spawn(send_all(writer, batches));
    }
    writing.spawn(async move {
        let mut places = Vec::new();
        for _ in 0..30 {
            let add = Change::AddMembers { by: ann, user_ids: vec![ben], with_history: true };
            places.push((id, changed(&change_by(&mut changer, id, &add, MAX_GROUP).await).seq));
            let remove = Change::RemoveMember { by: ann, user_id: ben };
            places.push((id, changed(&change_by(&mut changer, id, &remove, MAX_GROUP).await).seq));
        }
        places
    });
    let seqs = by_conversation(writing.join_all().await.concat()).remove(&id).expect("it was used");
    assert_eq!(seqs, (2..2 + seqs.len() as Seq).collect::<Vec<_>>());
}
