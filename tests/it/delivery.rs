//! The closed loop: each acknowledged message is proven to reach a device of each member, or is
//! handed over for him, whatever dies in between.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tidings::clock::Timestamp;
use tidings::ids::{ConversationId, MessageId, OutboxId, UserId};
use tidings::protocol::model::MessageType;
use tidings::store::types::{NewMessage, OutboxLease, SendOutcome, Stored};
use uuid::Uuid;

use crate::handed::{Handed, users};
use crate::harness::client::{Client, Opening};
use crate::harness::cluster::{Cluster, id, text, user};
use crate::harness::metrics::series;
use crate::harness::process::{Process, Signal};
use crate::harness::{cluster_scenarios, scenarios};

scenarios! {
    one_without_a_device_is_handed_over_and_nobody_else,
    mentions_and_mutes_are_told,
    a_fast_dialogue_leaves_nobody_behind,
    many_messages_for_one_who_is_absent_are_all_handed_over,
    one_without_a_device_who_is_no_member_any_more_is_not_told,
    a_message_that_reaches_a_node_without_its_user_is_handed_over,
    what_a_dead_node_left_in_the_outbox_is_delivered,
    what_a_dead_node_left_of_a_change_is_published,
    a_device_that_lacks_many_is_helped_in_its_own_way ["OFFLINE_AFTER" = "60s"],
    a_later_message_does_not_hide_one_that_was_lost ["OFFLINE_AFTER" = "60s"],
}

cluster_scenarios! {
    a_message_for_one_whose_node_was_killed_is_handed_over,
    a_message_for_one_whose_node_stands_still_is_handed_over,
    one_whose_node_was_killed_gets_his_messages_where_he_comes_back
        ["OFFLINE_AFTER" = "20s", "NODE_LEASE" = "6s"],
    what_a_killed_node_acknowledged_arrives ["OFFLINE_AFTER" = "60s"],
}

/// In a dialogue each message is a run of its own, for one's own lie between. When only one run of
/// a member was settled with each flush, a fast one left both behind: messages came again, and in
/// the end went to the offline sink of people who had never left.
async fn a_fast_dialogue_leaves_nobody_behind(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut devices = [cluster.connect(0, alice).await, cluster.connect(1, bob).await];
    for number in 0..200 {
        let (speaks, listens) = (number % 2, 1 - number % 2);
        let sent = devices[speaks].send(conversation, &format!("{number}")).await;
        assert_eq!(devices[listens].new_message().await, sent);
    }
    cluster.settled().await;
    for at in 0..2 {
        for (name, value) in series(cluster.addr(at)).await {
            let of = ["tidings_laggards_total", "tidings_offline_records_total"];
            let looked_after = of.iter().any(|of| name.starts_with(of)) && value > 0.0;
            assert!(!looked_after, "nobody was looked after: {name} {value}");
        }
    }
}

async fn one_without_a_device_is_handed_over_and_nobody_else(cluster: &Cluster) {
    let (alice, bob, carol, dave) = (user(), user(), user(), user());
    let conversation = cluster.group(0, alice, &[bob, carol, dave]).await;
    cluster.absence_is_certain().await;
    let mut at_carol = cluster.connect(1, carol).await;
    let mut handed = Handed::over(&cluster.ground);
    // The sender himself has no device.
    let sent = cluster.send(0, alice, conversation, "anybody there?").await;
    assert_eq!(at_carol.new_message().await, sent);
    for absent in [bob, dave] {
        let record = handed.record_for(&sent, absent).await;
        assert_eq!(record["value"]["message"], sent);
        assert_eq!(record["value"]["change_seq"], sent["change_seq"]);
        assert_eq!(record["value"]["reason"], "absent");
        assert_eq!(record["headers"]["ce_type"], "tidings.message.created");
        let recipients = record["value"]["recipients"].as_array().unwrap();
        for recipient in recipients {
            assert_eq!(
                (&recipient["mentioned"], &recipient["muted"]),
                (&json!(false), &json!(false))
            );
        }
    }
    // One who comes later is told by his socket.
    let mut at_bob = cluster.connect(0, bob).await;
    let second = cluster.send(1, carol, conversation, "only me").await;
    assert_eq!(at_bob.new_message().await, second);
    handed.record_for(&second, dave).await;
    handed.record_for(&second, alice).await;
    cluster.settled().await;
    handed.read().await;
    let of = |message: &Value| -> BTreeSet<Uuid> {
        let records = handed.records.iter();
        records.filter(|r| r["value"]["message"]["id"] == message["id"]).flat_map(users).collect()
    };
    assert_eq!(of(&sent), BTreeSet::from([bob, dave]), "not the sender, not who has it");
    assert_eq!(of(&second), BTreeSet::from([alice, dave]));
    let ids: BTreeSet<_> =
        handed.records.iter().map(|r| r["headers"]["ce_id"].to_string()).collect();
    assert_eq!(ids.len(), handed.records.len(), "in a healthy case nothing is told twice");
}

/// A node may still be subscribed for one who has just left: then a receiver is counted, and nobody
/// received.
async fn a_message_that_reaches_a_node_without_its_user_is_handed_over(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    cluster.absence_is_certain().await;
    let bus = &cluster.node(1).bus;
    bus.subscribe(UserId(bob)).await.unwrap();
    let mut handed = Handed::over(&cluster.ground);
    let sent = cluster.send(0, alice, conversation, "are you still there?").await;
    let record = handed.record_for(&sent, bob).await;
    assert_eq!(record["value"]["reason"], "absent");
    bus.unsubscribe(UserId(bob));
    cluster.settled().await;
}

async fn mentions_and_mutes_are_told(cluster: &Cluster) {
    let (alice, bob, carol, dave) = (user(), user(), user(), user());
    let conversation = cluster.group(0, alice, &[bob, carol]).await;
    let until = match cluster.is_embedded() {
        true => "(unixepoch() + 3600) * 1000",
        false => "now() + interval '1 hour'",
    };
    let which = match cluster.is_embedded() {
        true => format!("hex(user_id) = '{}'", carol.simple().to_string().to_uppercase()),
        false => format!("user_id = '{carol}'"),
    };
    cluster
        .ground
        .sql(&format!("update participants set muted_until = {until} where {which}"))
        .await;
    // What nodes remember of the members is read anew when these change.
    let path = format!("/api/v1/conversations/{conversation}/participants");
    cluster.rest(0, alice).post(&path, json!({ "user_ids": [dave] })).await.body(200);
    let mut handed = Handed::over(&cluster.ground);
    let mut body = text(conversation, "hey @Bob and @Carol");
    body["mentions"] = json!([
        { "user_id": bob, "offset": 4, "length": 4 },
        { "user_id": carol, "offset": 13, "length": 6 },
    ]);
    let sent = cluster.rest(0, alice).post("/api/v1/messages", body).await.body(201);
    for (who, mentioned, muted) in [(bob, true, false), (carol, true, true), (dave, false, false)] {
        let record = handed.record_for(&sent, who).await;
        let recipients = record["value"]["recipients"].as_array().unwrap();
        let recipient = recipients.iter().find(|r| id(&r["user_id"]) == who).unwrap();
        let expected = json!({ "user_id": who, "mentioned": mentioned, "muted": muted });
        assert_eq!(*recipient, expected);
    }
}

async fn many_messages_for_one_who_is_absent_are_all_handed_over(cluster: &Cluster) {
    const COUNT: usize = 230;
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut handed = Handed::over(&cluster.ground);
    let mut at_alice = cluster.connect(0, alice).await;
    let mut refs = Vec::new();
    for number in 0..COUNT {
        let body = text(conversation, &format!("number {number}"));
        refs.push(at_alice.submit("send_message", body).await);
    }
    let mut sent = BTreeSet::new();
    for reference in refs {
        let message = at_alice.answer(&reference).await.ok()["message"].take();
        sent.insert(message["id"].as_str().unwrap().to_owned());
    }
    let told = |records: &[Value]| -> BTreeSet<String> {
        let ids = records.iter().map(|r| r["value"]["message"]["id"].as_str().unwrap().to_owned());
        ids.collect()
    };
    handed.until("all are handed over", |records| told(records).len() == COUNT).await;
    assert_eq!(told(&handed.records), sent);
    cluster.settled().await;
    handed.read().await;
    assert_eq!(handed.everyone(), BTreeSet::from([bob]));
}

async fn one_without_a_device_who_is_no_member_any_more_is_not_told(cluster: &Cluster) {
    let (alice, bob, carol) = (user(), user(), user());
    let conversation = cluster.group(0, alice, &[bob, carol]).await;
    let mut handed = Handed::over(&cluster.ground);
    let path = format!("/api/v1/conversations/{conversation}/participants/{bob}");
    assert_eq!(cluster.rest(0, alice).delete(&path).await.status, 204);
    let sent = cluster.send(1, alice, conversation, "without Bob").await;
    handed.record_for(&sent, carol).await;
    cluster.settled().await;
    handed.read().await;
    assert_eq!(handed.everyone(), BTreeSet::from([carol]));
}

/// Commits a message as a node does that dies before it tells anyone.
async fn commit_and_die(cluster: &Cluster, conversation: Uuid, sender: Uuid) -> MessageId {
    commit_many_and_die(cluster, conversation, sender, 1).await[0]
}

async fn commit_many_and_die(
    cluster: &Cluster,
    conversation: Uuid,
    sender: Uuid,
    count: usize,
) -> Vec<MessageId> {
    let store = cluster.ground.store().await;
    let message = || NewMessage {
        id: MessageId::new(ConversationId(conversation), Timestamp::now()),
        conversation_id: ConversationId(conversation),
        sender_id: UserId(sender),
        client_message_id: None,
        body_hash: [7; 32],
        message_type: MessageType::Text,
        content: "my last words".into(),
        parent_message_id: None,
        mentions: None,
        metadata: None,
    };
    let lease = OutboxLease { id: OutboxId::random(), lease: Duration::from_millis(200) };
    let batch: Vec<_> = (0..count).map(|_| message()).collect();
    let outcomes = store.writer().send(&batch, lease).await.unwrap();
    let stored = |outcome: &_| matches!(outcome, SendOutcome::Stored(Stored { .. }));
    assert!(outcomes.iter().all(stored), "{outcomes:?}");
    store.close().await;
    batch.iter().map(|message| message.id).collect()
}

async fn what_a_dead_node_left_in_the_outbox_is_delivered(cluster: &Cluster) {
    let (alice, bob, carol) = (user(), user(), user());
    let conversation = cluster.group(0, alice, &[bob, carol]).await;
    let mut at_bob = cluster.connect(0, bob).await;
    let mut classic = cluster.connect_classic(1, bob).await;
    let mut handed = Handed::over(&cluster.ground);
    let left = commit_and_die(cluster, conversation, alice).await;
    for device in [&mut at_bob, &mut classic] {
        assert_eq!(device.new_message().await["id"], left.to_string());
    }
    handed.record_for(&json!({ "id": left.to_string() }), carol).await;
    cluster.settled().await;
    handed.read().await;
    assert_eq!(handed.everyone(), BTreeSet::from([carol]));
    let next = cluster.send(0, alice, conversation, "and on it goes").await;
    assert_eq!(next["seq"], 3);
    at_bob.find("the next one", |event| event["payload"]["message"]["id"] == next["id"]).await;
}

/// More than are published again at once: a full client is told to read them, a classic one, which
/// cannot, gets them page by page.
async fn a_device_that_lacks_many_is_helped_in_its_own_way(cluster: &Cluster) {
    let (alice, bob, carol) = (user(), user(), user());
    let conversation = cluster.group(0, alice, &[bob, carol]).await;
    cluster.settled().await;
    let mut full = cluster.connect(1, bob).await;
    let mut classic = cluster.connect_classic(0, carol).await;
    let lost = commit_many_and_die(cluster, conversation, alice, 150).await;
    for message in &lost {
        let is_it = |event: &Value| event["payload"]["message"]["id"] == message.to_string();
        classic.find("each of them", is_it).await;
    }
    let resync = full.event("resync", "he is to read them").await;
    assert_eq!(resync["conversations"], json!([conversation]));
    assert!(cluster.metric(r#"tidings_laggards_total{outcome="resync"}"#).await >= 1.0);
    let cursors = json!({ "conversations": { conversation.to_string(): 1 } });
    let page = full.command("sync", cursors).await.ok();
    assert_eq!(page["conversations"][0]["messages"].as_array().map(Vec::len), Some(150));
    // What was read is proven.
    cluster.settled().await;
}

/// Exactly one publish in the middle is lost; what comes before and after it is delivered and proven.
async fn a_later_message_does_not_hide_one_that_was_lost(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_alice = cluster.connect(0, alice).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let first = at_alice.send(conversation, "first").await;
    assert_eq!(at_bob.new_message().await["id"], first["id"]);
    at_alice.event("message_delivered", "the first").await;
    let lost = commit_and_die(cluster, conversation, alice).await;
    let third = at_alice.send(conversation, "third").await;
    assert_eq!(third["seq"], 4);
    assert_eq!(at_bob.new_message().await["id"], third["id"], "the second is lost");
    // Its node's lease runs out, and it comes after all; until then nothing was said of the third.
    assert_eq!(at_bob.new_message().await["id"], lost.to_string());
    let delivered = at_alice.event("message_delivered", "the rest").await;
    assert_eq!(delivered["from_seq"], 3, "{delivered}");
    cluster.settled().await;
}

async fn what_a_dead_node_left_of_a_change_is_published(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    cluster.settled().await;
    let mut at_bob = cluster.connect(1, bob).await;
    let store = cluster.ground.store().await;
    let change = tidings::store::types::Change::SetTitle {
        by: UserId(alice),
        title: Some("In memory of a node".into()),
    };
    let lease = OutboxLease { id: OutboxId::random(), lease: Duration::from_millis(200) };
    store.writer().change(ConversationId(conversation), &change, 1_000, lease).await.unwrap();
    store.close().await;
    let update = at_bob.event("conversation_updated", "the new title").await;
    assert_eq!(update["conversation"]["title"], "In memory of a node");
    assert_eq!(update["seq"], 2);
}

/// A third node, as a process that can be killed, and Bob on it.
async fn bob_on_a_third_node(cluster: &Cluster, bob: Uuid) -> (Process, Client) {
    let (node, addr) = Process::node(&cluster.ground.settings("third")).await;
    let at_bob = Client::open(addr, Opening::new(bob)).await.unwrap();
    (node, at_bob)
}

async fn a_message_for_one_whose_node_was_killed_is_handed_over(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut handed = Handed::over(&cluster.ground);
    let (node, mut at_bob) = bob_on_a_third_node(cluster, bob).await;
    let first = cluster.send(0, alice, conversation, "are you there?").await;
    assert_eq!(at_bob.new_message().await, first);
    cluster.settled().await;
    node.kill();
    let second = cluster.send(0, alice, conversation, "and now?").await;
    handed.record_for(&second, bob).await;
    cluster.settled().await;
    handed.read().await;
    let told = handed.records.iter().any(|r| r["value"]["message"]["id"] == first["id"]);
    assert!(!told, "what he has he is not told again");
}

/// The cruel case: to the bus he is there, and everything sent to him is swallowed.
async fn a_message_for_one_whose_node_stands_still_is_handed_over(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut handed = Handed::over(&cluster.ground);
    let (node, mut at_bob) = bob_on_a_third_node(cluster, bob).await;
    node.signal(Signal::STOP);
    let sent = cluster.send(0, alice, conversation, "can you hear me?").await;
    handed.record_for(&sent, bob).await;
    node.signal(Signal::CONT);
    // It was only asleep: late is better than never.
    assert_eq!(at_bob.new_message().await, sent);
    node.kill();
}

async fn one_whose_node_was_killed_gets_his_messages_where_he_comes_back(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let (node, at_bob) = bob_on_a_third_node(cluster, bob).await;
    let device = at_bob.device.clone();
    node.kill();
    let mut sent = Vec::new();
    for number in 0..5 {
        sent.push(cluster.send(0, alice, conversation, &format!("{number}")).await);
    }
    drop(at_bob);
    let opening = Opening { device, ..Opening::new(bob) };
    let mut at_bob = Client::open(cluster.addr(1), opening).await.unwrap();
    let mut wanted: BTreeSet<_> = sent.iter().map(|message| message["id"].to_string()).collect();
    while !wanted.is_empty() {
        wanted.remove(&at_bob.new_message().await["id"].to_string());
    }
    cluster.settled().await;
    let mut handed = Handed::over(&cluster.ground);
    handed.read().await;
    assert_eq!(handed.records, [Value::Null; 0], "nobody needs a push");
}

/// Killed in the middle of it: what was acknowledged is in the store, and others carry it on once
/// the lease of what was left has run out.
async fn what_a_killed_node_acknowledged_arrives(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let (node, addr) = Process::node(&cluster.ground.settings("third")).await;
    let mut at_bob = cluster.connect(0, bob).await;
    let mut at_alice = Client::open(addr, Opening::new(alice)).await.unwrap();
    let mut refs = Vec::new();
    for number in 0..100 {
        let body = text(conversation, &format!("{number}"));
        refs.push(at_alice.submit("send_message", body).await);
    }
    let mut acknowledged = BTreeSet::new();
    for reference in &refs[..40] {
        let message = at_alice.answer(reference).await.ok()["message"].take();
        acknowledged.insert(message["id"].as_str().unwrap().to_owned());
    }
    node.kill();
    while let Some(message) = at_alice.try_event("ok").await {
        acknowledged.insert(message["message"]["id"].as_str().unwrap().to_owned());
    }
    println!("{} were acknowledged", acknowledged.len());
    let mut received = BTreeSet::new();
    while !acknowledged.is_subset(&received) {
        let message = at_bob.new_message_within(Duration::from_secs(40)).await;
        received.insert(message["id"].as_str().unwrap().to_owned());
    }
    cluster.settled_within(Duration::from_secs(40)).await;
}
