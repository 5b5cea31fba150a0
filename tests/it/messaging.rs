//! People talk: who gets what, once, in which shape.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::client::{Client, Opening};
use crate::harness::cluster::{Cluster, id, text, user};
use crate::harness::{scenarios, services};

scenarios! {
    two_people_chat_on_different_nodes,
    the_senders_other_devices_get_it_once_and_his_session_only_the_answer,
    a_send_by_rest_reaches_all_devices_of_the_sender,
    a_message_of_each_type_arrives_as_it_was_sent,
    a_classic_client_gets_what_it_always_got,
    a_full_client_hears_what_happens_to_its_conversations,
    history_is_read_in_pages_newest_first,
    a_direct_conversation_exists_once_even_if_both_begin_it_at_once,
    conversations_are_listed_by_activity,
    unread_messages_are_counted,
    thousands_of_messages_arrive_once_and_leave_no_gap
        ["SETTLE_GRACE" = "4s", "OFFLINE_AFTER" = "60s", "WS_CLIENT_BUFFER_SIZE" = "4096"],
}

async fn two_people_chat_on_different_nodes(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let mut at_alice = cluster.connect(0, alice).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let direct = json!({ "kind": "direct", "participants": [bob] });
    let direct = cluster.rest(0, alice).post("/api/v1/conversations", direct).await.body(201);
    assert_eq!(direct["kind"], "direct");
    let conversation = id(&direct["id"]);

    let hello = at_alice.send(conversation, "Hello Bob, wie geht's? 😀").await;
    assert_eq!(hello["content"], "Hello Bob, wie geht's? 😀");
    assert_eq!(hello["sender_id"], alice.to_string());
    assert_eq!((&hello["seq"], &hello["change_seq"]), (&json!(2), &json!(2)));
    let names: BTreeSet<_> = hello.as_object().unwrap().keys().map(String::as_str).collect();
    let promised = BTreeSet::from([
        "id",
        "conversation_id",
        "seq",
        "change_seq",
        "sender_id",
        "client_message_id",
        "message_type",
        "content",
        "parent_message_id",
        "reply_count",
        "mentions",
        "metadata",
        "created_at",
        "edited_at",
        "deleted_at",
    ]);
    assert_eq!(names, promised, "absent values are null, not left out");
    assert_eq!(at_bob.new_message().await, hello, "what arrives is what was answered");

    let answer = at_bob.send(conversation, "Good, thanks").await;
    assert_eq!(answer["seq"], 3);
    assert_eq!(at_alice.new_message().await, answer);
}

async fn the_senders_other_devices_get_it_once_and_his_session_only_the_answer(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut origin = cluster.connect(0, alice).await;
    let mut others = [cluster.connect(0, alice).await, cluster.connect(1, alice).await];
    let mut at_bob = cluster.connect(1, bob).await;
    let first = origin.send(conversation, "one").await;
    for other in &mut others {
        assert_eq!(other.new_message().await, first);
    }
    assert_eq!(at_bob.new_message().await, first);
    // What the next message overtakes does not come any more: it would be too late for its seq.
    let marker = cluster.send(1, bob, conversation, "two").await;
    for device in others.iter_mut().chain([&mut origin]) {
        assert_eq!(device.new_message().await, marker, "the first one came once, or not at all");
        assert_eq!(messages(device.drain().await), [Value::Null; 0]);
    }
}

async fn a_send_by_rest_reaches_all_devices_of_the_sender(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut devices = [
        cluster.connect(0, alice).await,
        cluster.connect(1, alice).await,
        cluster.connect_classic(1, alice).await,
        cluster.connect(0, bob).await,
    ];
    let sent = cluster.send(0, alice, conversation, "from a script").await;
    for device in &mut devices {
        assert_eq!(device.new_message().await, sent);
        assert_eq!(messages(device.drain().await), [Value::Null; 0]);
    }
}

async fn a_message_of_each_type_arrives_as_it_was_sent(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let parent = cluster.send(0, alice, conversation, "what follows belongs to it").await;
    let media = json!({ "media_url": "https://cdn.example/a?b=c", "duration": 1.5, "size": 12 });
    let place = json!({ "latitude": -89.5, "longitude": 180, "name": "Ünterwegs \"hier\"" });
    for (kind, content, metadata) in [
        ("text", "hi @Bob \u{1}\n", Value::Null),
        ("text", "hi @Bob", json!({ "nested": { "list": [1, null, "x", 1.25, -3] } })),
        ("image", "", media.clone()),
        ("video", "hi @Bob", media.clone()),
        ("audio", "", media.clone()),
        ("file", "a file", media),
        ("location", "", place),
    ] {
        let mentions =
            content.contains("@Bob").then(|| json!([{ "user_id": bob, "offset": 3, "length": 4 }]));
        let body = json!({
            "conversation_id": conversation, "message_type": kind, "content": content,
            "metadata": metadata, "mentions": mentions, "parent_message_id": parent["id"],
        });
        let sent = cluster.rest(0, alice).post("/api/v1/messages", body.clone()).await.body(201);
        for (name, value) in body.as_object().unwrap() {
            assert_eq!(&sent[name], value, "{name} of {kind}");
        }
        let arrived =
            at_bob.find("the message", |event| event["payload"]["message"]["id"] == sent["id"]);
        assert_eq!(arrived.await["payload"]["message"], sent);
        let page = history(cluster, 1, bob, conversation, "?limit=1").await;
        assert_eq!(page["messages"][0], sent, "what is stored is what was answered");
    }
}

async fn a_classic_client_gets_what_it_always_got(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let opening = Opening { classic: true, ..Opening::new(bob) };
    let mut classic = Client::open(cluster.addr(1), opening).await.unwrap();
    assert_eq!(classic.subprotocol, None);
    let names: BTreeSet<_> =
        classic.hello.as_object().unwrap().keys().map(String::as_str).collect();
    let promised = BTreeSet::from([
        "session_id",
        "node_id",
        "user_id",
        "device_id",
        "heartbeat_seconds",
        "limits",
        "store_epoch",
        "server_time",
    ]);
    assert_eq!(names, promised);
    assert_eq!(classic.hello["user_id"], bob.to_string());
    assert_eq!(classic.hello["device_id"], classic.device.as_str());

    let conversation = cluster.group(0, alice, &[bob]).await;
    cluster.rest(0, alice).post(&participants(conversation), json!({ "user_ids": [user()] })).await;
    let sent = cluster.send(0, alice, conversation, "hello").await;
    let event = classic.find("the message", |event| event["type"] != "pong").await;
    assert_eq!(event["type"], "new_message", "no event of a new kind comes before it: {event}");
    assert_eq!(event["payload"]["type"], "new_message");
    assert_eq!(event["payload"]["message"], sent);
    assert!(is_time(&event["payload"]["timestamp"]), "{event}");

    classic.send_text(r#"{"type":"ping"}"#).await;
    let pong = classic.event("pong", "the answer to a ping").await;
    assert!(is_time(&pong["timestamp"]), "{pong}");
    assert_eq!(classic.drain().await, [Value::Null; 0]);
}

async fn a_full_client_hears_what_happens_to_its_conversations(cluster: &Cluster) {
    let (alice, bob, carol) = (user(), user(), user());
    let mut at_alice = cluster.connect(0, alice).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let mut at_carol = cluster.connect(1, carol).await;
    assert_eq!(at_alice.subprotocol.as_deref(), Some("tidings.v1.json"));
    let conversation = cluster.group(0, alice, &[bob]).await;
    let rest = cluster.rest(1, alice);

    let told = async |seq: u64, change: &str, devices: &mut [&mut Client]| -> Value {
        let mut shown = Value::Null;
        for device in devices {
            let update = device.event("conversation_updated", change).await;
            assert_eq!(update["seq"], seq, "{change}: {update}");
            assert!(is_time(&update["timestamp"]), "{update}");
            assert_eq!(update["conversation"]["last_seq"], seq, "{change}: {update}");
            shown = update["conversation"].clone();
            for own in ["me", "unread_count"] {
                assert!(shown.get(own).is_none(), "an event to all shows nobody's own: {shown}");
            }
        }
        shown
    };
    let shown = told(1, "created", &mut [&mut at_alice, &mut at_bob]).await;
    assert_eq!(id(&shown["id"]), conversation);
    assert_eq!(members(&shown), BTreeSet::from([alice, bob]));

    rest.post(&participants(conversation), json!({ "user_ids": [carol] })).await.body(200);
    let shown = told(2, "added", &mut [&mut at_alice, &mut at_bob, &mut at_carol]).await;
    assert_eq!(members(&shown), BTreeSet::from([alice, bob, carol]));

    let path = format!("/api/v1/conversations/{conversation}");
    rest.patch(&path, json!({ "title": "Best friends" })).await.body(200);
    let shown = told(3, "renamed", &mut [&mut at_alice, &mut at_bob, &mut at_carol]).await;
    assert_eq!(shown["title"], "Best friends");

    let path = format!("{}/{carol}", participants(conversation));
    rest.patch(&path, json!({ "can_send_messages": false })).await.body(200);
    let shown = told(4, "muted", &mut [&mut at_alice, &mut at_bob, &mut at_carol]).await;
    let listed = shown["members"].as_array().unwrap();
    let muted = listed.iter().find(|member| id(&member["user_id"]) == carol).unwrap();
    assert_eq!(muted["can_send_messages"], false);

    assert_eq!(rest.delete(&path).await.status, 204);
    let shown = told(5, "removed", &mut [&mut at_alice, &mut at_bob]).await;
    assert_eq!(members(&shown), BTreeSet::from([alice, bob]));
    let shown = told(5, "removed", &mut [&mut at_carol]).await;
    assert_eq!(id(&shown["id"]), conversation);
    assert!(shown.get("members").is_none(), "the others are not her business any more: {shown}");
}

async fn history_is_read_in_pages_newest_first(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_alice = cluster.connect(0, alice).await;
    let mut sent = Vec::new();
    for number in 0..25 {
        sent.push(at_alice.send(conversation, &format!("message {number}")).await);
    }
    sent.reverse();
    let mut read = Vec::new();
    let mut query = String::from("?limit=10");
    for (size, more) in [(10, true), (10, true), (5, false)] {
        let page = history(cluster, 1, bob, conversation, &query).await;
        let messages = page["messages"].as_array().unwrap();
        assert_eq!(messages.len(), size);
        assert_eq!(page["has_more"], more, "after {} messages", read.len() + size);
        read.extend_from_slice(messages);
        query = format!("?limit=10&before_id={}", read.last().unwrap()["id"].as_str().unwrap());
    }
    assert_eq!(read, sent);
    let none = history(cluster, 0, bob, conversation, &query).await;
    assert_eq!(none, json!({ "messages": [], "has_more": false }));
    let whole = history(cluster, 0, bob, conversation, "").await;
    assert_eq!(whole, json!({ "messages": sent, "has_more": false }));
    let exact = history(cluster, 0, bob, conversation, "?limit=25").await;
    assert_eq!(exact["has_more"], false, "a page that is just full is the last one");
}

async fn a_direct_conversation_exists_once_even_if_both_begin_it_at_once(cluster: &Cluster) {
    for _ in 0..10 {
        let (alice, bob) = (user(), user());
        let begin = async |at: usize, by: Uuid, with: Uuid| {
            let body = json!({ "kind": "direct", "participants": [with] });
            cluster.rest(at, by).post("/api/v1/conversations", body).await
        };
        let (one, other) = tokio::join!(begin(0, alice, bob), begin(1, bob, alice));
        let statuses = BTreeSet::from([one.status, other.status]);
        assert_eq!(statuses, BTreeSet::from([200, 201]), "{} {}", one.text, other.text);
        assert_eq!(one.json()["id"], other.json()["id"]);
        let again = begin(1, alice, bob).await.body(200);
        assert_eq!(again["id"], one.json()["id"]);
        let list = cluster.rest(0, bob).get("/api/v1/conversations").await.body(200);
        assert_eq!(list["conversations"].as_array().unwrap().len(), 1);
    }
}

async fn conversations_are_listed_by_activity(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(cluster.group(0, alice, &[bob]).await);
    }
    let sent = cluster.send(1, alice, made[1], "this one moves to the top").await;
    let expected = [made[1], made[4], made[3], made[2], made[0]];
    let mut read = Vec::new();
    let mut query = String::from("?limit=2");
    loop {
        let path = format!("/api/v1/conversations{query}");
        let page = cluster.rest(1, bob).get(&path).await.body(200);
        read.extend_from_slice(page["conversations"].as_array().unwrap());
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("?limit=2&cursor={cursor}");
    }
    assert_eq!(read.iter().map(|c| id(&c["id"])).collect::<Vec<_>>(), expected);
    assert_eq!(read[0]["last_message"], sent);
    assert_eq!(read[0]["me"]["role"], "member");
    // A stranger has none of them.
    let page = cluster.rest(0, user()).get("/api/v1/conversations").await.body(200);
    assert_eq!(page, json!({ "conversations": [], "next_cursor": null }));
}

async fn unread_messages_are_counted(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let path = format!("/api/v1/conversations/{conversation}");
    let unread =
        async |who: Uuid| cluster.rest(1, who).get(&path).await.body(200)["unread_count"].clone();
    assert_eq!(unread(bob).await, 0, "a conversation that was only made is read");
    for _ in 0..3 {
        cluster.send(0, alice, conversation, "are you there?").await;
    }
    assert_eq!(unread(bob).await, 3);
    assert_eq!(unread(alice).await, 0, "one's own are not unread");
    cluster.send(0, bob, conversation, "yes").await;
    assert_eq!((unread(bob).await, unread(alice).await), (json!(3), json!(1)));
    let mut at_alice = cluster.connect(0, alice).await;
    let mut refs = Vec::new();
    for _ in 0..120 {
        refs.push(at_alice.submit("send_message", text(conversation, "hello?")).await);
    }
    for reference in refs {
        at_alice.answer(&reference).await.ok();
    }
    assert_eq!(unread(bob).await, 100, "counted up to 100");
}

/// The order of arrival may differ from that of the seqs, but nothing is lost or comes twice.
async fn thousands_of_messages_arrive_once_and_leave_no_gap(cluster: &Cluster) {
    const USERS: usize = 50;
    const CONVERSATIONS: usize = 20;
    const MEMBERS: usize = 6;
    let each = services::messages(2_000) / USERS;
    let users: Vec<Uuid> = (0..USERS).map(|_| user()).collect();
    let mut conversations_of: BTreeMap<Uuid, Vec<Uuid>> = BTreeMap::new();
    let mut members_of: BTreeMap<Uuid, Vec<Uuid>> = BTreeMap::new();
    for at in 0..CONVERSATIONS {
        let members: Vec<Uuid> = (0..MEMBERS).map(|n| users[(at * 3 + n) % USERS]).collect();
        let conversation = cluster.group(at, members[0], &members[1..]).await;
        for member in &members {
            conversations_of.entry(*member).or_default().push(conversation);
        }
        members_of.insert(conversation, members);
    }
    // Who sends where is known before, and so is what everyone has to get.
    let target = |user: &Uuid, n: usize| conversations_of[user][n % conversations_of[user].len()];
    let mut expected: BTreeMap<Uuid, usize> = BTreeMap::new();
    for sender in &users {
        for n in 0..each {
            for member in members_of[&target(sender, n)].iter().filter(|member| *member != sender) {
                *expected.entry(*member).or_default() += 1;
            }
        }
    }
    // All are there before the first one speaks.
    let clients = users.iter().enumerate().map(|(at, me)| cluster.connect(at, *me));
    let clients = join_all(clients).await;
    let talk = async |mut client: Client| {
        let me = client.user;
        let mut refs = Vec::new();
        for n in 0..each {
            let body = text(target(&me, n), &format!("message {n}"));
            refs.push(client.submit("send_message", body).await);
        }
        let mut acknowledged = Vec::new();
        for reference in refs {
            let message = client.answer(&reference).await.ok()["message"].take();
            acknowledged.push((id(&message["conversation_id"]), message["seq"].as_i64().unwrap()));
        }
        let mut received = Vec::new();
        for _ in 0..expected[&me] {
            let message = client.new_message().await;
            received.push((id(&message["conversation_id"]), message["seq"].as_i64().unwrap()));
        }
        (client, acknowledged, received)
    };
    let talks = join_all(clients.into_iter().map(talk)).await;

    let mut seqs: BTreeMap<Uuid, BTreeSet<i64>> = BTreeMap::new();
    for (conversation, seq) in talks.iter().flat_map(|(_, acknowledged, _)| acknowledged) {
        assert!(seqs.entry(*conversation).or_default().insert(*seq), "a seq was given twice");
    }
    for (conversation, seqs) in &seqs {
        let whole: BTreeSet<i64> = (2..).take(seqs.len()).collect();
        assert_eq!(*seqs, whole, "the log of {conversation} has no gap");
    }
    for (mut client, acknowledged, received) in talks {
        assert_eq!(messages(client.drain().await), [Value::Null; 0], "nothing comes twice");
        let own: BTreeSet<_> = acknowledged.into_iter().collect();
        let distinct: BTreeSet<_> = received.iter().copied().collect();
        assert_eq!(distinct.len(), received.len(), "nothing comes twice");
        let mut wanted = BTreeSet::new();
        for conversation in &conversations_of[&client.user] {
            wanted.extend(seqs[conversation].iter().map(|seq| (*conversation, *seq)));
        }
        let wanted: BTreeSet<_> = wanted.difference(&own).copied().collect();
        assert_eq!(distinct, wanted, "everything came");
    }
}

fn participants(conversation: Uuid) -> String {
    format!("/api/v1/conversations/{conversation}/participants")
}

async fn history(cluster: &Cluster, at: usize, who: Uuid, of: Uuid, query: &str) -> Value {
    let path = format!("/api/v1/conversations/{of}/messages{query}");
    cluster.rest(at, who).get(&path).await.body(200)
}

fn members(conversation: &Value) -> BTreeSet<Uuid> {
    let members = conversation["members"].as_array().expect("its members are shown");
    members.iter().map(|member| id(&member["user_id"])).collect()
}

/// The new messages among these events.
fn messages(events: Vec<Value>) -> Vec<Value> {
    events.into_iter().filter(|event| event["type"] == "new_message").collect()
}

/// UTC with milliseconds.
fn is_time(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    text.len() == "2026-01-01T00:00:00.000Z".len() && text.ends_with('Z')
}
