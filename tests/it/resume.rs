//! A client that was away is told exactly what it missed, while live events go on.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tidings::ids::{ConversationId, UserId};
use tidings::store::types::{NewMessage, OutboxLease};
use uuid::Uuid;

use crate::harness::client::Client;
use crate::harness::cluster::{Cluster, id, user};
use crate::harness::metrics::metric;
use crate::harness::scenarios;

scenarios! {
    a_device_that_was_away_gets_exactly_what_it_missed,
    live_events_during_a_resume_are_neither_lost_nor_doubled ["RATE_SYNCS_PER_USER" = "0"],
    one_who_was_removed_is_told_and_reads_nothing,
    another_log_is_reset,
    conversations_that_were_not_named_are_listed,
    a_range_is_read_page_by_page ["RATE_SYNCS_PER_USER" = "0"],
    a_year_away_is_one_row_per_message ["RATE_SYNCS_PER_USER" = "0"],
    what_is_not_a_sync_is_refused,
    one_sync_at_a_time_on_a_socket ["RATE_SYNCS_PER_USER" = "0"],
    who_syncs_too_often_waits ["RATE_SYNCS_PER_USER" = "1"],
    what_a_page_shows_is_proven,
    an_answer_is_never_too_large_for_its_queue ["WS_CLIENT_BUFFER_BYTES" = "64KiB"],
}

const SYNC: &str = "/api/v1/sync";

/// What a client keeps, by the rules for clients: of each message the state with the highest
/// `change_seq`; the cursor moves by a page's `next_seq` or an event at cursor + 1.
#[derive(Default)]
struct Held {
    cursors: BTreeMap<String, i64>,
    messages: BTreeMap<String, Value>,
    /// Events and messages of pages that were held already.
    repeated: usize,
}

impl Held {
    fn put(&mut self, message: &Value) {
        let old = self.messages.get(message["id"].as_str().unwrap());
        let newer = old.is_none_or(|old| {
            old["change_seq"].as_i64().unwrap() < message["change_seq"].as_i64().unwrap()
        });
        if newer {
            self.messages.insert(message["id"].as_str().unwrap().to_owned(), message.clone());
        } else {
            self.repeated += 1;
        }
    }

    fn event(&mut self, event: &Value) {
        let message = &event["payload"]["message"];
        if message.is_null() {
            return;
        }
        self.put(message);
        let cursor = self.cursors.entry(message["conversation_id"].as_str().unwrap().to_owned());
        let cursor = cursor.or_default();
        if event["payload"]["seq"] == *cursor + 1 {
            *cursor += 1;
        }
    }

    fn page(&mut self, answer: &Value) {
        for entry in answer["conversations"].as_array().unwrap() {
            let name = entry["id"].as_str().unwrap().to_owned();
            entry["messages"].as_array().unwrap().iter().for_each(|message| self.put(message));
            let cursor = self.cursors.entry(name).or_default();
            *cursor = (*cursor).max(entry["next_seq"].as_i64().unwrap());
        }
    }

    /// In order of seq: (seq, change_seq, content).
    fn log(&self) -> Vec<(i64, i64, Option<String>)> {
        let mut log: Vec<_> = self.messages.values().map(row).collect();
        log.sort();
        log
    }
}

fn row(message: &Value) -> (i64, i64, Option<String>) {
    (
        message["seq"].as_i64().unwrap(),
        message["change_seq"].as_i64().unwrap(),
        message["content"].as_str().map(str::to_owned),
    )
}

/// Asks on the socket, and by REST on another node: the answer is the same.
async fn sync_both(cluster: &Cluster, client: &mut Client, request: Value) -> Value {
    let answer = client.command("sync", request.clone()).await.ok();
    let by_rest = cluster.rest(0, client.user).post(SYNC, request).await.body(200);
    assert_eq!(without_receipts(answer.clone()), without_receipts(by_rest));
    answer
}

/// What is delivered moves between two questions.
fn without_receipts(mut answer: Value) -> Value {
    for entry in answer["conversations"].as_array_mut().unwrap() {
        let Some(conversation) = entry.get_mut("conversation") else { continue };
        conversation["me"]["delivered_seq"].take();
        for member in conversation["members"].as_array_mut().unwrap() {
            member["delivered_seq"].take();
        }
    }
    answer
}

/// The newest page of the history, oldest first.
async fn history(cluster: &Cluster, user: Uuid, conversation: Uuid) -> Vec<Value> {
    let path = format!("/api/v1/conversations/{conversation}/messages?limit=200");
    let mut page = cluster.rest(0, user).get(&path).await.body(200);
    let mut messages = page["messages"].as_array_mut().map(std::mem::take).unwrap();
    messages.reverse();
    messages
}

async fn call(cluster: &Cluster, at: usize, by: Uuid, method: &str, path: &str, body: Value) {
    let reply = cluster.rest(at, by).call(method, path, &body.to_string()).await;
    assert!(reply.status < 300, "{reply:?}");
}

async fn edit(cluster: &Cluster, by: Uuid, message: &Value, content: &str) {
    let path = format!("/api/v1/messages/{}", id(&message["id"]));
    call(cluster, 0, by, "PUT", &path, json!({ "content": content })).await;
}

async fn a_device_that_was_away_gets_exactly_what_it_missed(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut held = Held::default();
    let mut at_bob = cluster.connect(0, bob).await;
    let first = cluster.send(0, alice, conversation, "first").await;
    let second = cluster.send(0, bob, conversation, "second").await;
    let kept = cluster.send(0, alice, conversation, "kept").await;
    for _ in 0..3 {
        let event = at_bob.find("a message", |event| event["type"] == "new_message").await;
        held.event(&event);
    }
    let cursor = kept["seq"].as_i64().unwrap();
    let device = at_bob.device.clone();
    at_bob.close().await;

    edit(cluster, alice, &first, "1st").await;
    let own = format!("/api/v1/messages/{}", id(&second["id"]));
    cluster.rest(1, bob).delete(&own).await.body(200);
    cluster.send(1, alice, conversation, "missed").await;
    let short = cluster.send(1, alice, conversation, "short-lived").await;
    cluster
        .rest(1, alice)
        .delete(&format!("/api/v1/messages/{}", id(&short["id"])))
        .await
        .body(200);
    let path = format!("/api/v1/conversations/{conversation}");
    call(cluster, 0, alice, "PATCH", &path, json!({ "title": "New" })).await;

    let mut opening = crate::harness::client::Opening::new(bob);
    opening.device = device;
    let mut at_bob = Client::open(cluster.addr(1), opening).await.expect("the socket opens");
    let epoch = at_bob.hello["store_epoch"].clone();
    let request =
        json!({ "conversations": { conversation.to_string(): cursor }, "store_epoch": epoch });
    let answer = sync_both(cluster, &mut at_bob, request).await;
    assert_eq!((&answer["store_epoch"], &answer["next_after"]), (&epoch, &Value::Null));
    let entries = answer["conversations"].as_array().unwrap();
    let [entry] = entries.as_slice() else { panic!("one conversation: {answer}") };
    assert_eq!((&entry["status"], &entry["more"]), (&json!("changed"), &json!(false)));
    assert_eq!(entry["next_seq"], cursor + 6);
    assert_eq!(entry["conversation"]["title"], "New");
    assert_eq!(entry["conversation"]["members"].as_array().unwrap().len(), 2);
    assert_eq!(entry["history_from_seq"], 1);
    assert_eq!(entry["conversation"]["me"]["role"], "member");
    let rows: Vec<_> = entry["messages"].as_array().unwrap().iter().map(row).collect();
    let expected = [
        (2, cursor + 1, Some("1st".to_owned())),
        (3, cursor + 2, None),
        (cursor + 3, cursor + 3, Some("missed".to_owned())),
        (cursor + 4, cursor + 5, None),
    ];
    assert_eq!(rows, expected, "in the order of their changes, each once");
    held.page(&answer);
    let truth: Vec<_> = history(cluster, bob, conversation).await.iter().map(row).collect();
    assert_eq!(held.log(), truth);

    // What follows is live, and a sync from where the page ended finds nothing.
    let live = cluster.send(0, alice, conversation, "live").await;
    assert_eq!(at_bob.new_message().await, live);
    let request = json!({ "conversations": { conversation.to_string(): cursor + 7 } });
    let answer = sync_both(cluster, &mut at_bob, request).await;
    let expected = json!([{
        "id": conversation, "status": "up_to_date", "messages": [], "next_seq": cursor + 7,
        "more": false,
    }]);
    assert_eq!(answer["conversations"], expected);
    for result in ["changed", "up_to_date"] {
        let name = format!("tidings_resumes_total{{result=\"{result}\"}}");
        assert!(metric(cluster.addr(1), &name).await >= 1.0, "{name}");
    }
}

async fn live_events_during_a_resume_are_neither_lost_nor_doubled(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    for n in 0..30 {
        cluster.send(0, alice, conversation, &format!("before {n}")).await;
    }
    let mut at_bob = cluster.connect(1, bob).await;
    let mut held = Held::default();
    held.cursors.insert(conversation.to_string(), 1);
    let writing = async {
        for n in 0..30 {
            let message = cluster.send(n % 2, alice, conversation, &format!("during {n}")).await;
            if n % 3 == 0 {
                edit(cluster, alice, &message, "edited").await;
            }
        }
    };
    let reading = async {
        loop {
            let request = json!({ "conversations": held.cursors, "limit": 3 });
            let reference = at_bob.submit("sync", request).await;
            // Events come before, between and behind the pages.
            loop {
                let event = at_bob.try_next().await.expect("the socket stays open");
                if event["ref"] == *reference {
                    assert_eq!(event["type"], "ok", "{event}");
                    held.page(&event["payload"]);
                    break;
                }
                held.event(&event);
            }
            if held.cursors[&conversation.to_string()] == 1 + 30 + 30 + 10 {
                return;
            }
        }
    };
    tokio::join!(writing, reading);
    let truth: Vec<_> = history(cluster, bob, conversation).await.iter().map(row).collect();
    assert_eq!(truth.len(), 60);
    assert_eq!(held.log(), truth);
}

async fn one_who_was_removed_is_told_and_reads_nothing(cluster: &Cluster) {
    let (alice, bob, eve) = (user(), user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    cluster.send(0, alice, conversation, "one").await;
    let path = format!("/api/v1/conversations/{conversation}/participants");
    assert_eq!(cluster.rest(0, alice).delete(&format!("{path}/{bob}")).await.status, 204);
    cluster.send(0, alice, conversation, "not for bob").await;
    let mut at_bob = cluster.connect(1, bob).await;
    let named = json!({ "conversations": { conversation.to_string(): 1 } });
    let answer = sync_both(cluster, &mut at_bob, named.clone()).await;
    let entry = json!({
        "id": conversation, "status": "gone", "messages": [], "next_seq": 1, "more": false,
        "left_seq": 3,
    });
    assert_eq!(answer["conversations"], json!([entry]));
    // Who does not name it is told nothing; a stranger is told no more than of what does not exist.
    let answer = sync_both(cluster, &mut at_bob, json!({ "conversations": {} })).await;
    assert_eq!(answer["conversations"], json!([]));
    let mut at_eve = cluster.connect(0, eve).await;
    let answer = sync_both(cluster, &mut at_eve, named).await;
    let entry = json!({
        "id": conversation, "status": "gone", "messages": [], "next_seq": 1, "more": false,
    });
    assert_eq!(answer["conversations"], json!([entry]));

    // He comes back, and does not see what was said while he was away.
    let body = json!({ "user_ids": [bob], "with_history": false });
    cluster.rest(0, alice).post(&path, body).await.body(200);
    cluster.send(0, alice, conversation, "again").await;
    let request = json!({ "conversations": { conversation.to_string(): 2 } });
    let answer = sync_both(cluster, &mut at_bob, request).await;
    let entry = &answer["conversations"][0];
    assert_eq!((&entry["status"], &entry["history_from_seq"]), (&json!("changed"), &json!(5)));
    let rows: Vec<_> = entry["messages"].as_array().unwrap().iter().map(row).collect();
    assert_eq!(rows, [(6, 6, Some("again".to_owned()))]);
}

async fn another_log_is_reset(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    cluster.send(0, alice, conversation, "one").await;
    let mut at_bob = cluster.connect(1, bob).await;
    let reset = json!([{
        "id": conversation, "status": "reset", "messages": [], "next_seq": 2, "more": false,
    }]);
    let above = json!({ "conversations": { conversation.to_string(): 3 } });
    assert_eq!(sync_both(cluster, &mut at_bob, above).await["conversations"], reset);
    let named = json!({ conversation.to_string(): 2 });
    let other = json!({ "conversations": named, "store_epoch": Uuid::new_v4() });
    let answer = sync_both(cluster, &mut at_bob, other).await;
    assert_eq!(answer["conversations"], reset);
    assert!(metric(cluster.addr(1), r#"tidings_resumes_total{result="reset"}"#).await >= 2.0);
    // By the epoch of the answer it is the same log.
    let same = json!({ "conversations": named, "store_epoch": answer["store_epoch"] });
    let answer = sync_both(cluster, &mut at_bob, same).await;
    assert_eq!(answer["conversations"][0]["status"], "up_to_date");
}

async fn conversations_that_were_not_named_are_listed(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(cluster.group(0, alice, &[]).await);
    }
    all.sort();
    let joined = all[1];
    cluster.send(0, alice, joined, "before bob").await;
    let path = format!("/api/v1/conversations/{joined}/participants");
    let body = json!({ "user_ids": [bob], "with_history": false });
    cluster.rest(0, alice).post(&path, body).await.body(200);
    let heard = cluster.send(0, alice, joined, "hello bob").await;
    let mut at_bob = cluster.connect(1, bob).await;
    let answer = sync_both(cluster, &mut at_bob, json!({ "conversations": {} })).await;
    let entries = answer["conversations"].as_array().unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0]["conversation"]["id"], json!(joined));
    assert_eq!(entries[0]["messages"], json!([heard]));
    assert_eq!((&entries[0]["next_seq"], &entries[0]["history_from_seq"]), (&json!(4), &json!(3)));

    // Of a range only, and beside those that are named.
    let mut at_alice = cluster.connect(0, alice).await;
    let request = json!({ "conversations": { joined.to_string(): 4 }, "after": all[0] });
    let answer = sync_both(cluster, &mut at_alice, request).await;
    let status = |answer: &Value| {
        let entries = answer["conversations"].as_array().unwrap().iter();
        entries.map(|e| (id(&e["id"]), e["status"].clone())).collect::<Vec<_>>()
    };
    let expected = [(joined, json!("up_to_date")), (all[2], json!("changed"))];
    assert_eq!(status(&answer), expected);
    let request = json!({ "conversations": {}, "to": all[0] });
    let answer = sync_both(cluster, &mut at_alice, request).await;
    assert_eq!(status(&answer), [(all[0], json!("changed"))]);
}

async fn a_range_is_read_page_by_page(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let mut all = Vec::new();
    for _ in 0..6 {
        let conversation = cluster.group(0, alice, &[bob]).await;
        for n in 0..4 {
            cluster.send(0, alice, conversation, &format!("{n}")).await;
        }
        all.push(conversation);
    }
    all.sort();
    let mut at_bob = cluster.connect(1, bob).await;
    let mut held = Held::default();
    let (mut after, mut pages) = (json!(null), 0);
    loop {
        let behind = |name: &str| after.as_str().is_none_or(|after| name > after);
        let named = held.cursors.iter().filter(|(name, _)| behind(name));
        let named: BTreeMap<_, _> = named.collect();
        let request = json!({ "conversations": named, "after": after, "limit": 5, "to": all[4] });
        let answer = sync_both(cluster, &mut at_bob, request).await;
        let entries = answer["conversations"].as_array().unwrap();
        let count: usize = entries.iter().map(|e| e["messages"].as_array().unwrap().len()).sum();
        assert!(count <= 5, "{answer}");
        held.page(&answer);
        pages += 1;
        after = answer["next_after"].clone();
        if after.is_null() {
            break;
        }
    }
    assert!(pages >= 4, "{pages} pages for 20 messages");
    assert_eq!(held.repeated, 0, "nothing comes twice");
    let cursors: Vec<_> = held.cursors.iter().map(|(name, seq)| (name.clone(), *seq)).collect();
    let expected: Vec<_> = all[..5].iter().map(|id| (id.to_string(), 5)).collect();
    assert_eq!(cursors, expected, "those of the range, up to their heads");
    assert_eq!(held.messages.len(), 20);
}

async fn a_year_away_is_one_row_per_message(cluster: &Cluster) {
    const COUNT: usize = 3_000;
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut writer = cluster.node(0).store.writer();
    let lease = OutboxLease {
        id: tidings::ids::OutboxId::random(),
        lease: std::time::Duration::from_secs(3_600),
    };
    let mut ids = Vec::new();
    for batch in 0..COUNT / 100 {
        let messages: Vec<_> = (0..100)
            .map(|n| NewMessage {
                id: tidings::ids::MessageId::new(
                    ConversationId(conversation),
                    tidings::clock::Timestamp::now(),
                ),
                conversation_id: ConversationId(conversation),
                sender_id: UserId(alice),
                client_message_id: None,
                body_hash: [0; 32],
                message_type: tidings::protocol::model::MessageType::Text,
                content: format!("{}", batch * 100 + n),
                parent_message_id: None,
                mentions: None,
                metadata: None,
            })
            .collect();
        ids.extend(messages.iter().map(|message| message.id.0));
        let lease = OutboxLease { id: tidings::ids::OutboxId::random(), ..lease };
        writer.send(&messages, lease).await.unwrap();
        // Nobody is to be told of these.
        cluster.node(0).store.settle_outbox(&[lease.id], std::time::Duration::ZERO).await.unwrap();
    }
    // One of them again and again, some others once, and one is deleted.
    for n in 0..40 {
        edit(cluster, alice, &json!({ "id": ids[7] }), &format!("edited {n}")).await;
    }
    let others: Vec<_> = (0..20).map(|n| json!({ "id": ids[100 * n + 50] })).collect();
    join_all(others.iter().map(|message| edit(cluster, alice, message, "edited once"))).await;
    let path = format!("/api/v1/messages/{}", ids[9]);
    cluster.rest(0, alice).delete(&path).await.body(200);

    let mut at_bob = cluster.connect(1, bob).await;
    let mut held = Held::default();
    let mut pages = 0;
    loop {
        let request = json!({ "conversations": held.cursors });
        let answer = at_bob.command("sync", request).await.ok();
        let [entry] = answer["conversations"].as_array().unwrap().as_slice() else {
            panic!("one conversation: {answer}")
        };
        if entry["status"] == "up_to_date" {
            break;
        }
        held.page(&answer);
        pages += 1;
        assert_eq!(entry["more"], json!(!answer["next_after"].is_null()));
    }
    assert_eq!(held.repeated, 0, "each message once, however often it was edited");
    assert_eq!(held.messages.len(), COUNT);
    assert_eq!(held.cursors[&conversation.to_string()], 1 + COUNT as i64 + 61);
    assert!(pages <= COUNT / 200 + 2, "{pages} pages");
    let content = |at: usize| held.messages[&ids[at].to_string()]["content"].clone();
    assert_eq!(content(7), "edited 39");
    assert_eq!(
        (content(9), content(10), content(150)),
        (Value::Null, json!("10"), json!("edited once"))
    );
    cluster.settled_within(std::time::Duration::from_secs(60)).await;
}

async fn what_is_not_a_sync_is_refused(cluster: &Cluster) {
    let alice = user();
    let mut at_alice = cluster.connect(1, alice).await;
    let low = "018bcfe5-6807-7abc-8000-000000000001";
    let many: BTreeMap<_, _> = (0..1_001).map(|_| (Uuid::new_v4().to_string(), 1)).collect();
    for (request, status, field) in [
        (json!({ "conversations": many }), 422, "conversations"),
        (json!({ "conversations": { "x": 1 } }), 422, "conversations.x"),
        (json!({ "conversations": { low: -1 } }), 422, &format!("conversations.{low}")),
        (
            json!({ "conversations": { low: 1 }, "after": low }),
            422,
            &format!("conversations.{low}"),
        ),
        (json!({ "conversations": {}, "limit": 201 }), 422, "limit"),
        (json!({ "conversations": {}, "store_epoch": "x" }), 422, "store_epoch"),
        (json!({}), 400, "conversations"),
    ] {
        let code = if status == 422 { "invalid" } else { "malformed" };
        let refused = at_alice.command("sync", request.clone()).await;
        refused.refused(status, code, Some(field));
        cluster.rest(0, alice).post(SYNC, request).await.refused(status, code, Some(field));
    }
    at_alice.send_text(r#"{"type":"sync","payload":{"conversations":{}}}"#).await;
    let problem = at_alice.event("error", "a sync has a ref").await;
    assert_eq!(problem["field"], "ref");
    let thousand: BTreeMap<_, _> = many.iter().take(1_000).collect();
    let answer = sync_both(cluster, &mut at_alice, json!({ "conversations": thousand })).await;
    assert_eq!(answer["conversations"].as_array().unwrap().len(), 1_000);
}

/// The second of two that arrive together is refused or finds the first one answered, never more.
async fn one_sync_at_a_time_on_a_socket(cluster: &Cluster) {
    let alice = user();
    let mut at_alice = cluster.connect(0, alice).await;
    let mut refused = 0;
    for _ in 0..20 {
        let mut references = Vec::new();
        for _ in 0..10 {
            references.push(at_alice.submit("sync", json!({ "conversations": {} })).await);
        }
        let mut answered = 0;
        for reference in &references {
            match at_alice.answer(reference).await {
                crate::harness::client::Answer::Ok(_) => answered += 1,
                error => {
                    let problem = error.refused(429, "rate_limited", None);
                    assert!(problem["retry_ms"].as_u64() > Some(0));
                    refused += 1;
                }
            }
        }
        assert!(answered >= 1, "the first one is answered");
    }
    assert!(refused > 0, "none of 200 came while another was read");
    at_alice.command("sync", json!({ "conversations": {} })).await.ok();
}

async fn who_syncs_too_often_waits(cluster: &Cluster) {
    let alice = user();
    let rest = cluster.rest(0, alice);
    let body = || json!({ "conversations": {} });
    let mut replies = Vec::new();
    for _ in 0..20 {
        replies.push(rest.post(SYNC, body()).await);
    }
    let refused = replies.into_iter().find(|reply| reply.status != 200).expect("one is too many");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    refused.refused(429, "rate_limited", None);
    // The socket's syncs are counted with them.
    let mut at_alice = cluster.connect(0, alice).await;
    at_alice.command("sync", body()).await.refused(429, "rate_limited", None);
    let limited = metric(cluster.addr(0), r#"tidings_rate_limited_total{limit="syncs"}"#).await;
    assert!(limited >= 2.0, "{limited}");
}

/// One who was away is told to have got his messages by the page that shows them.
async fn what_a_page_shows_is_proven(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let sent = [
        cluster.send(0, alice, conversation, "one").await,
        cluster.send(0, alice, conversation, "two").await,
    ];
    cluster.settled().await;
    let mut at_alice = cluster.connect(0, alice).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let cursors = json!({ "conversations": { conversation.to_string(): 1 } });
    let page = at_bob.command("sync", cursors).await.ok();
    assert_eq!(page["conversations"][0]["messages"][1]["id"], sent[1]["id"]);
    let told = at_alice.event("message_delivered", "by the page").await;
    assert_eq!((&told["from_seq"], &told["up_to_seq"]), (&json!(2), &json!(3)));
    assert_eq!(told["user_id"], bob.to_string());
}

async fn an_answer_is_never_too_large_for_its_queue(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let content = "x".repeat(15 << 10);
    for _ in 0..12 {
        cluster.send(0, alice, conversation, &content).await;
    }
    let mut at_bob = cluster.connect(1, bob).await;
    let mut held = Held::default();
    while held.messages.len() < 12 {
        let answer = at_bob.command("sync", json!({ "conversations": held.cursors })).await.ok();
        assert!(answer.to_string().len() < 32 << 10, "a page is far below the queue's bound");
        held.page(&answer);
    }
    // As control characters take six bytes each as JSON, so that this message with the conversation,
    // whose last one it is, too, has no room on such a socket.
    let carol = user();
    let other = cluster.group(0, alice, &[carol]).await;
    let sent = cluster.send(0, alice, other, &"\u{1}".repeat(10_000)).await;
    let mut at_carol = cluster.connect(1, carol).await;
    let request = json!({ "conversations": {} });
    at_carol.command("sync", request.clone()).await.refused(413, "too_large", None);
    let answer = cluster.rest(1, carol).post(SYNC, request).await.body(200);
    assert_eq!(answer["conversations"][0]["messages"], json!([sent]));
    let request = json!({ "conversations": { other.to_string(): 2 } });
    at_carol.command("sync", request).await.ok();
}
