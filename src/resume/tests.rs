//! What gets into one answer, and what is refused.

use tokio::sync::oneshot;

use super::page::{Slot, assemble, plan};
use super::*;
use crate::clock::Timestamp;
use crate::config::{SqliteConfig, StoreConfig};
use crate::ids::{MessageId, Seq};
use crate::protocol::model::{Message, MessageType};
use crate::store::types::{Head, Heads, LogPart};

const ME: UserId = UserId(Uuid::from_u128(7));
const EPOCH: Uuid = Uuid::from_u128(9);

fn id(n: u128) -> ConversationId {
    ConversationId(Uuid::from_u128(n << 8))
}

fn sync(cursors: impl IntoIterator<Item = (u128, Seq)>) -> Sync {
    Sync {
        cursors: cursors.into_iter().map(|(n, seq)| (id(n), seq)).collect(),
        after: None,
        to: None,
        store_epoch: None,
        limit: 200,
    }
}

fn heads(all: impl IntoIterator<Item = (u128, Seq)>) -> Heads {
    let heads = all.into_iter().map(|(n, last_seq)| Head {
        conversation_id: id(n),
        last_seq,
        left_seq: None,
        history_from_seq: 1,
        member_count: 2,
    });
    Heads { heads: heads.collect(), up_to: None }
}

fn message(seq: Seq, bytes: usize) -> Message {
    Message {
        id: MessageId(Uuid::from_u128(seq as u128)),
        conversation_id: id(1),
        seq,
        change_seq: seq,
        sender_id: ME,
        client_message_id: None,
        message_type: MessageType::Text,
        content: Some("x".repeat(bytes)),
        parent_message_id: None,
        reply_count: 0,
        mentions: None,
        metadata: None,
        created_at: Timestamp::from_millis(0),
        edited_at: None,
        deleted_at: None,
    }
}

fn part(last_seq: Seq, messages: Vec<Message>) -> LogPage {
    LogPage::Part(LogPart {
        last_seq,
        history_from_seq: 1,
        info_head: 0,
        messages,
        next_seq: last_seq,
        pending: Vec::new(),
    })
}

/// Ids as small numbers; an id just before one is shown as half of it.
fn small(id: ConversationId) -> f64 {
    (id.0.as_u128() as f64 / 128.0).round() / 2.0
}

fn shape(answer: &SyncAnswer) -> Vec<(f64, usize, Seq, bool)> {
    let entries = answer.conversations.iter();
    entries.map(|e| (small(e.id), e.messages.len(), e.next_seq, e.more)).collect()
}

fn answered(sync: &Sync, heads: &Heads, pages: Vec<LogPage>, bytes: usize) -> SyncAnswer {
    let plan = plan(ME, sync, EPOCH, heads, bytes);
    let wanted = plan.wanted().count();
    assemble(plan, pages.into_iter().take(wanted), |_| None, EPOCH, sync.limit, bytes)
}

#[test]
fn the_messages_of_one_answer_are_shared_out_in_order() {
    let limited = Sync { limit: 5, ..sync([(1, 1), (2, 1), (3, 1)]) };
    let heads = heads([(1, 4), (2, 9), (3, 4)]);
    let plan = plan(ME, &limited, EPOCH, &heads, ANSWER_BYTES);
    let rooms: Vec<_> = plan.wanted().map(|wanted| wanted.room).collect();
    assert_eq!(rooms, [5, 2], "there is no room for the third");
    let of = |seqs: std::ops::RangeInclusive<Seq>| seqs.map(|seq| message(seq, 1)).collect();
    let pages = vec![part(4, of(2..=4)), part(9, of(2..=9))];
    let answer = answered(&limited, &heads, pages, ANSWER_BYTES);
    assert_eq!(shape(&answer), [(1.0, 3, 4, false), (2.0, 2, 3, true)]);
    // The range goes on with the one that was cut.
    let next = answer.next_after.unwrap();
    assert!(id(1) < next && next < id(2));
}

#[test]
fn an_answer_is_bounded_in_bytes_and_always_brings_something() {
    let asked = sync([(1, 1), (2, 1), (3, 4)]);
    let heads = heads([(1, 4), (2, 4), (3, 4)]);
    let large = || vec![part(4, (2..=4).map(|seq| message(seq, 3_000)).collect()); 2];
    let size = |answer: &SyncAnswer| serde_json::to_vec(answer).unwrap().len();
    let tiny = answered(&asked, &heads, large(), 1);
    assert_eq!(shape(&tiny), [(1.0, 1, 2, true)], "one message whatever its size");
    let some = answered(&asked, &heads, large(), 8_000);
    assert_eq!(shape(&some), [(1.0, 2, 3, true)]);
    assert!(size(&some) <= 8_000);
    let more = answered(&asked, &heads, large(), 15_000);
    assert_eq!(shape(&more), [(1.0, 3, 4, false), (2.0, 1, 2, true)]);
    assert!(size(&more) <= 15_000);
    // The second does not fit at all: it is where the range goes on.
    let one = answered(&asked, &heads, large(), 10_500);
    assert_eq!(shape(&one), [(1.0, 3, 4, false)]);
    assert!(one.next_after.is_some_and(|next| id(1) < next && next < id(2)));
    let all = answered(&asked, &heads, large(), ANSWER_BYTES);
    assert_eq!(shape(&all), [(1.0, 3, 4, false), (2.0, 3, 4, false), (3.0, 0, 4, false)]);
    assert_eq!(all.next_after, None);
}

#[test]
fn a_thousand_that_stand_where_they_stood_are_one_answer() {
    let asked = sync((1..=1_000).map(|n| (n, 5)));
    let found = heads((1..=1_000).map(|n| (n, 5)));
    let answer = answered(&asked, &found, Vec::new(), ANSWER_BYTES);
    assert_eq!((answer.conversations.len(), answer.next_after), (1_000, None));
    assert!(answer.conversations.iter().all(|e| e.status == SyncStatus::UpToDate));
    assert!(serde_json::to_vec(&answer).unwrap().len() < ANSWER_BYTES);
    // Those not named come in as many answers as it takes.
    let unknown = answered(&sync([]), &found, vec![part(5, Vec::new()); 1_000], ANSWER_BYTES);
    assert!(unknown.conversations.len() < 1_000);
    assert_eq!(unknown.next_after, unknown.conversations.last().map(|entry| entry.id));
    // What was not looked at is not judged: 5 is named and may be there.
    let partly = Heads { up_to: Some(id(4)), ..heads([(3, 5), (4, 5)]) };
    let answer = answered(&sync([(3, 5), (5, 5)]), &partly, vec![part(5, vec![])], ANSWER_BYTES);
    assert_eq!(shape(&answer), [(3.0, 0, 5, false), (4.0, 0, 5, false)]);
    assert_eq!(answer.next_after, Some(id(4)));
}

#[test]
fn one_who_left_in_between_is_told_if_he_asked() {
    let asked = sync([(1, 1)]);
    let plan = plan(ME, &asked, EPOCH, &heads([(1, 4), (2, 4)]), ANSWER_BYTES);
    assert!(plan.slots.iter().all(|slot| matches!(slot, Slot::Wanted { .. })));
    let gone = vec![LogPage::Gone { left_seq: Some(5) }; 2];
    let answer = assemble(plan, gone, |_| None, EPOCH, 200, ANSWER_BYTES);
    let entries: Vec<_> =
        answer.conversations.iter().map(|e| (small(e.id), e.status, e.left_seq)).collect();
    assert_eq!(entries, [(1.0, SyncStatus::Gone, Some(5))]);
}

/// Nothing waits without a bound, and who finds no room is told when to come back.
#[tokio::test]
async fn what_finds_no_room_is_refused_at_once() {
    let dir = tempfile::TempDir::new().unwrap();
    let config = StoreConfig::Sqlite(SqliteConfig { path: dir.path().join("tidings.db") });
    let (metrics, exporter) = Metrics::new();
    let store = Store::connect(&config, metrics.clone()).await.unwrap();
    store.migrate().await.unwrap();
    let (syncs, worker) = Syncs::new(store, EPOCH, metrics);
    let submit = |names: u128| {
        let (reply, outcome) = oneshot::channel();
        let reply = Box::new(move |result| drop(reply.send(result)));
        syncs.submit(ME, sync((0..names).map(|n| (n, 1))), ANSWER_BYTES, reply);
        outcome
    };
    let mut waiting = Vec::new();
    for _ in 0..QUEUE_CURSORS / 1_000 - 1 {
        waiting.push(submit(999));
    }
    let last = submit(999);
    let refused = submit(1).await.unwrap().unwrap_err();
    assert_eq!((refused.code, refused.retry_ms()), (Code::Busy, Some(500)));
    let line = format!("tidings_resumes_waiting {}\n", waiting.len() + 1);
    assert!(exporter.render().contains(&line), "{line}{}", exporter.render());
    drop(waiting);
    // What waited is worked off, and makes room.
    let stop = CancellationToken::new();
    let running = tokio_util::task::TaskTracker::new().spawn(worker.run(stop.clone()));
    let answer = last.await.unwrap().unwrap();
    assert!(answer.conversations.iter().all(|entry| entry.status == SyncStatus::Gone));
    assert!(submit(1).await.unwrap().is_ok());
    stop.cancel();
    running.await.unwrap();
    assert_eq!(submit(1).await.unwrap().unwrap_err().code, Code::Unavailable);
    let shown = exporter.render();
    for line in [
        "tidings_resumes_total{result=\"busy\"} 1\n",
        "tidings_resumes_total{result=\"failed\"} 1\n",
        "tidings_resumes_waiting 0\n",
    ] {
        assert!(shown.contains(line), "{line}{shown}");
    }
}
