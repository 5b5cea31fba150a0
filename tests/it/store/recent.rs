//! What a node holds in memory of the newest messages is never seen: whatever happens on whichever
//! node, its answers are those of one that holds nothing.

use std::sync::Arc;

use tidings::ids::{ConversationId, UserId};
use tidings::store::Store;
use tidings::store::types::{Anchor, History, HistoryPage, LogPage, LogPart, PageWanted, Span};
use tidings::telemetry::Metrics;

use super::fixture::{Fixture, message, stored, users};
use super::sync::Model;
use crate::fuzz::Random;
use crate::model::Said;

/// Changes of one run.
const STEPS: usize = 150;
/// So little that entries push each other out, or much.
const BYTES: [u64; 2] = [6_000, 1 << 20];

pub async fn what_is_held_in_memory_is_what_the_store_says(f: Arc<Fixture>) {
    for seed in 1..=3 {
        let mut dice = Random(seed);
        let people: [UserId; 5] = users();
        let mut nodes = Vec::new();
        for bytes in BYTES {
            let (metrics, exporter) = Metrics::new();
            let store = Store::connect(&f.config, metrics).await.unwrap();
            nodes.push((store.with_recent(bytes), exporter));
        }
        let mut model = Model::default();
        for _ in 0..STEPS {
            if dice.below(6) == 0 {
                reply(&f, &mut model, &mut dice).await;
            } else {
                model.change(&f, &people, &mut dice).await;
            }
            // A message was committed by one of them, which goes on by it.
            let by = dice.below(nodes.len());
            note(&f, &model, &nodes[by].0).await;
            for (node, _) in &nodes {
                for _ in 0..dice.below(3) {
                    pages_are_the_same(&f, &model, node, &people, &mut dice).await;
                    logs_are_the_same(&f, node, &people, &mut dice).await;
                }
            }
        }
        // The small one may have lost all before it was asked for.
        let (large, exporter) = &nodes[1];
        let shown = exporter.render();
        for kind in ["page", "sync"] {
            let series = format!("tidings_recent_reads_total{{kind=\"{kind}\",outcome=\"hit\"}} ");
            let line = shown.lines().find_map(|line| line.strip_prefix(&series)).expect(&shown);
            assert!(line.parse::<u64>().unwrap() > 20, "{kind}: {line} were found in memory");
        }
        assert!(large.recent_bytes() > 0);
        for (node, _) in nodes {
            node.close().await;
        }
    }
}

/// One member answers to what he sees.
async fn reply(f: &Fixture, model: &mut Model, dice: &mut Random) {
    let ids: Vec<_> = model.logs.keys().copied().collect();
    let Some(id) = dice.one(&ids) else { return };
    let log = model.logs.get_mut(&id).expect("it is one of them");
    let Some(sender) = dice.one(&log.writers()) else { return };
    let seen = log.seen_by(sender).into_iter().filter(|(_, said)| said.content.is_some());
    let seen: Vec<_> = seen.map(|(id, _)| id).collect();
    let reply = message(id, sender, "an answer");
    let reply = tidings::store::types::NewMessage { parent_message_id: dice.one(&seen), ..reply };
    let (reply_id, content) = (reply.id, Some(reply.content.clone()));
    let seq = stored(&f.send_one(reply).await).seq;
    log.take(seq);
    log.messages.insert(reply_id, Said { sender, seq, change_seq: seq, content });
}

/// Tells a node of the messages that stand at the heads, as its lanes would of their own.
async fn note(f: &Fixture, model: &Model, node: &Store) {
    let newest = model.logs.values().filter_map(|log| {
        let newest = log.messages.iter().find(|(_, said)| said.seq == log.last_seq);
        newest.map(|(id, _)| *id)
    });
    for message in f.store.messages(&newest.collect::<Vec<_>>()).await.unwrap() {
        node.note_committed(&Arc::new(message));
    }
}

async fn pages_are_the_same(
    f: &Fixture,
    model: &Model,
    node: &Store,
    people: &[UserId],
    dice: &mut Random,
) {
    let ids: Vec<ConversationId> = model.logs.keys().copied().collect();
    let (Some(id), Some(user)) = (dice.one(&ids), dice.one(people)) else { return };
    let page = |limit| HistoryPage { anchor: Anchor::Newest, thread: None, limit };
    // The last: exactly what there is, or a little less.
    let whole = match f.store.history(user, id, page(200)).await.unwrap() {
        History::Page { messages, .. } => messages.len(),
        _ => 0,
    };
    let exact = whole.saturating_sub(dice.below(3)).max(1) as u32;
    let limit = [1, 2, 5, 200, exact][dice.below(5)];
    let held = node.history(user, id, page(limit)).await.unwrap();
    assert_eq!(held, f.store.history(user, id, page(limit)).await.unwrap(), "{limit} of {id}");
}

/// Of many at once, as after a storm: some lack the same.
async fn logs_are_the_same(f: &Fixture, node: &Store, people: &[UserId], dice: &mut Random) {
    let spans: Vec<_> =
        people.iter().map(|user| Span { user_id: *user, after: None, to: None }).collect();
    let all = f.store.sync_heads(&spans).await.unwrap();
    let mut wanted = Vec::new();
    // The same for all: where a page of SQLite ends depends on the largest of its statement.
    let room = [1, 3, 10, 200][dice.below(4)];
    for (user_id, heads) in people.iter().zip(all) {
        for head in heads.heads.into_iter().filter(|head| head.left_seq.is_none()) {
            let (last_seq, history_from_seq) = (head.last_seq, head.history_from_seq);
            let lacks = [1, 3, 10, last_seq][dice.below(4)].min(last_seq);
            wanted.push(PageWanted {
                user_id: *user_id,
                conversation_id: head.conversation_id,
                since: last_seq - lacks,
                room,
                last_seq,
                history_from_seq,
            });
        }
    }
    let shown = |pages: Vec<LogPage>| -> Vec<_> {
        let pages = pages.into_iter().zip(&wanted).map(|(page, wanted)| match page {
            LogPage::Part(part) => {
                let changed = part.info_changed(wanted.since);
                (changed, LogPage::Part(LogPart { info_head: 0, ..part }))
            }
            gone => (false, gone),
        });
        pages.collect()
    };
    let held = shown(node.sync_pages(&wanted).await.unwrap());
    let read = shown(f.store.sync_pages(&wanted).await.unwrap());
    for ((held, read), wanted) in held.iter().zip(&read).zip(&wanted) {
        assert_eq!(held, read, "{wanted:?}");
    }
    assert_eq!(held.len(), wanted.len());
}
