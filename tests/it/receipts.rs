//! Delivered and read: proven by the socket, told by devices, seen by senders.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::client::{Client, Opening};
use crate::harness::cluster::{Cluster, id, user};
use crate::harness::raw::{FIN, PING, PONG, Raw};
use crate::harness::{scenarios, until};

scenarios! {
    a_delivery_is_told_to_the_sender_once_it_is_proven,
    a_socket_that_does_not_answer_proves_nothing ["OFFLINE_AFTER" = "60s"],
    a_device_that_promises_acks_proves_by_them_alone,
    what_was_read_is_told_to_the_sender_and_to_ones_other_devices,
    a_run_is_one_event_for_full_clients_and_one_a_message_for_classic_ones,
    a_phone_woken_by_a_push_tells_what_it_got,
    a_receipt_for_what_one_cannot_see_is_not_found,
    receipts_of_a_message_are_listed_by_pages,
    in_large_groups_only_watermarks_move ["RECEIPTS_MAX_MEMBERS" = "2"],
}

fn path(message: &Value, rest: &str) -> String {
    format!("/api/v1/messages/{}/{rest}", id(&message["id"]))
}

/// `(delivered_seq, read_seq)` of a member, as another one sees it.
async fn marks(cluster: &Cluster, seen_by: Uuid, conversation: Uuid, of: Uuid) -> (i64, i64) {
    let path = format!("/api/v1/conversations/{conversation}");
    let shown = cluster.rest(0, seen_by).get(&path).await.body(200);
    let members = shown["members"].as_array().unwrap();
    let member = members.iter().find(|member| id(&member["user_id"]) == of).unwrap();
    (member["delivered_seq"].as_i64().unwrap(), member["read_seq"].as_i64().unwrap())
}

fn receipt(event: &Value) -> (Uuid, Uuid, i64, i64) {
    let seq = |name: &str| event[name].as_i64().unwrap();
    (id(&event["message_id"]), id(&event["user_id"]), seq("from_seq"), seq("up_to_seq"))
}

async fn a_delivery_is_told_to_the_sender_once_it_is_proven(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_alice = cluster.connect(0, alice).await;
    let mut also_alice = cluster.connect_classic(1, alice).await;
    let _at_bob = cluster.connect(1, bob).await;
    let message = at_alice.send(conversation, "Hello").await;
    for device in [&mut at_alice, &mut also_alice] {
        let event = device.event("message_delivered", "bob has it").await;
        assert_eq!(receipt(&event), (id(&message["id"]), bob, 2, 2));
        assert_eq!(id(&event["conversation_id"]), conversation);
        assert!(event["timestamp"].is_string());
    }
    assert_eq!(marks(cluster, alice, conversation, bob).await, (2, 1));
}

/// Written is not delivered: a client that never sends a pong, as one whose network is gone.
async fn a_socket_that_does_not_answer_proves_nothing(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_alice = cluster.connect(0, alice).await;
    // The group's own event is not to come between.
    cluster.settled().await;
    let mut silent = Raw::upgraded_as(cluster.addr(1), bob).await;
    let message = at_alice.send(conversation, "Hello").await;
    assert_eq!(silent.event().await["payload"]["message"]["id"], message["id"]);
    let (first, ping) = silent.read_frame().await.expect("the socket is open");
    assert_eq!(first, FIN | PING, "behind the event");
    // He becomes a laggard, for nothing was proven.
    let store = &cluster.node(0).store;
    until("he is behind", async || {
        store.laggards_state().await.ok().filter(|(rows, _)| *rows == 1)
    })
    .await;
    // One of another number proves nothing, as does none at all.
    silent.frame(FIN | PONG, &[0xff; 4]).await;
    silent.frame(FIN | PONG, b"").await;
    assert_eq!(silent.event().await["payload"]["message"]["id"], message["id"], "once more");
    assert!(cluster.metric(r#"tidings_laggards_total{outcome="republished"}"#).await >= 1.0);
    assert_eq!(marks(cluster, alice, conversation, bob).await, (1, 1));
    silent.frame(FIN | PONG, &ping).await;
    at_alice.event("message_delivered", "now it is proven").await;
    assert_eq!(marks(cluster, alice, conversation, bob).await, (2, 1));
    // What was written behind that ping has its own.
    let (first, ping) = silent.read_frame().await.expect("the socket is open");
    assert_eq!(first, FIN | PING);
    silent.frame(FIN | PONG, &ping).await;
}

async fn with_acks(cluster: &Cluster, at: usize, user: Uuid) -> Client {
    let opening = Opening { query: "?features=other,acks".into(), ..Opening::new(user) };
    Client::open(cluster.addr(at), opening).await.expect("the socket opens")
}

async fn a_device_that_promises_acks_proves_by_them_alone(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_alice = cluster.connect(0, alice).await;
    let mut at_bob = with_acks(cluster, 1, bob).await;
    let ack = |seq: i64| json!({ "conversations": { conversation.to_string(): seq } });
    for _ in 0..3 {
        at_alice.send(conversation, "Hello").await;
        at_bob.new_message().await;
    }
    // Up to 4; what lies above the log's head moves nothing.
    at_bob.command("ack", ack(99)).await.ok();
    at_bob.command("ack", json!({ "conversations": { user().to_string(): 1 } })).await.ok();
    assert_eq!(marks(cluster, alice, conversation, bob).await, (1, 1));
    at_bob.submit("ack", ack(3)).await;
    let event = at_alice.event("message_delivered", "two of them").await;
    assert_eq!(receipt(&event).2..=receipt(&event).3, 2..=3);
    at_bob.command("ack", ack(4)).await.ok();
    let event = at_alice.event("message_delivered", "the third").await;
    assert_eq!(receipt(&event).2..=receipt(&event).3, 4..=4);

    for payload in [ack(0), json!({}), json!({ "conversations": { "x": 1 } })] {
        let refused = at_bob.command("ack", payload).await;
        assert!(matches!(refused, crate::harness::client::Answer::Error(_)));
    }
    // Who has not promised it cannot say so.
    at_alice.command("ack", ack(4)).await.refused(409, "conflict", None);
}

async fn what_was_read_is_told_to_the_sender_and_to_ones_other_devices(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_alice = cluster.connect(0, alice).await;
    let mut phone = cluster.connect(1, bob).await;
    let mut laptop = cluster.connect(0, bob).await;
    let message = at_alice.send(conversation, "Hello").await;
    phone.new_message().await;
    let command = json!({ "message_id": message["id"] });
    assert_eq!(phone.command("read_receipt", command.clone()).await.ok(), json!({}));
    let event = at_alice.event("message_read", "bob read it").await;
    assert_eq!(receipt(&event), (id(&message["id"]), bob, 2, 2));
    let event = laptop.event("message_read", "on the other device").await;
    assert_eq!(receipt(&event), (id(&message["id"]), bob, 2, 2));
    assert_eq!(marks(cluster, alice, conversation, bob).await, (2, 2));
    let path_of = format!("/api/v1/conversations/{conversation}");
    assert_eq!(cluster.rest(1, bob).get(&path_of).await.body(200)["unread_count"], 0);

    // Once more, by REST: nothing is new, and nobody is told.
    let reply = cluster.rest(0, bob).call("POST", &path(&message, "read"), "").await;
    assert_eq!((reply.status, reply.text.as_str()), (204, ""));
    let next = at_alice.send(conversation, "And?").await;
    let reply = cluster.rest(0, bob).call("POST", &path(&next, "read"), "").await;
    assert_eq!(reply.status, 204);
    let event = at_alice.event("message_read", "the next").await;
    assert_eq!(receipt(&event).2, 3);
    for device in [&mut phone, &mut laptop] {
        assert_eq!(receipt(&device.event("message_read", "the next").await).3, 3);
    }
    let told = |event: &Value| event["type"] == "message_read";
    assert!(!phone.drain().await.iter().any(told), "the one who tells is not told");
    assert!(!at_alice.drain().await.iter().any(told));
}

async fn a_run_is_one_event_for_full_clients_and_one_a_message_for_classic_ones(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut full = cluster.connect(0, alice).await;
    let mut classic = cluster.connect_classic(1, alice).await;
    let mut messages = Vec::new();
    for _ in 0..5 {
        messages.push(cluster.send(0, alice, conversation, "x").await);
    }
    cluster.send(0, bob, conversation, "mine").await;
    messages.push(cluster.send(0, alice, conversation, "x").await);
    let last = &messages[5];
    let reply = cluster.rest(1, bob).call("POST", &path(last, "read"), "").await;
    assert_eq!(reply.status, 204);
    let event = full.event("message_read", "one for all").await;
    assert_eq!(receipt(&event), (id(&last["id"]), bob, 2, 8));
    for message in &messages {
        let event = classic.event("message_read", "one each").await;
        let seq = message["seq"].as_i64().unwrap();
        assert_eq!(receipt(&event), (id(&message["id"]), bob, seq, seq));
    }
}

async fn a_phone_woken_by_a_push_tells_what_it_got(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_alice = cluster.connect(0, alice).await;
    let message = at_alice.send(conversation, "Hello").await;
    let reply = cluster.rest(1, bob).call("POST", &path(&message, "delivered"), "").await;
    assert_eq!((reply.status, reply.text.as_str()), (204, ""));
    let event = at_alice.event("message_delivered", "by the phone").await;
    assert_eq!(receipt(&event), (id(&message["id"]), bob, 2, 2));
    assert_eq!(marks(cluster, alice, conversation, bob).await, (2, 1));
}

async fn a_receipt_for_what_one_cannot_see_is_not_found(cluster: &Cluster) {
    let (alice, bob, late, stranger) = (user(), user(), user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let message = cluster.send(0, alice, conversation, "Hello").await;
    let members = format!("/api/v1/conversations/{conversation}/participants");
    let body = json!({ "user_ids": [late], "with_history": false });
    cluster.rest(0, alice).post(&members, body).await.body(200);
    for who in [late, stranger] {
        let rest = cluster.rest(1, who);
        for what in ["read", "delivered"] {
            rest.call("POST", &path(&message, what), "").await.refused(404, "not_found", None);
            let nothing = format!("/api/v1/messages/{}/{what}", user());
            rest.call("POST", &nothing, "").await.refused(404, "not_found", None);
            let nothing = format!("/api/v1/messages/x/{what}");
            rest.call("POST", &nothing, "").await.refused(404, "not_found", None);
        }
        rest.get(&path(&message, "receipts")).await.refused(404, "not_found", None);
        let mut socket = cluster.connect(0, who).await;
        let command = json!({ "message_id": message["id"] });
        socket.command("read_receipt", command).await.refused(404, "not_found", None);
        let command = json!({ "message_id": 7 });
        socket.command("read_receipt", command).await.refused(400, "malformed", Some("message_id"));
    }
    assert_eq!(marks(cluster, alice, conversation, late).await, (3, 3));
}

async fn receipts_of_a_message_are_listed_by_pages(cluster: &Cluster) {
    let (alice, mut others) = (user(), [user(), user(), user()]);
    others.sort_unstable();
    let conversation = cluster.group(0, alice, &others).await;
    let message = cluster.send(0, alice, conversation, "Hello").await;
    let tell = async |who: Uuid, what: &str| {
        let reply = cluster.rest(0, who).call("POST", &path(&message, what), "").await;
        assert_eq!(reply.status, 204);
    };
    tell(others[0], "read").await;
    tell(others[1], "delivered").await;
    let rest = cluster.rest(1, others[2]);
    let all = rest.get(&path(&message, "receipts")).await.body(200);
    assert_eq!(all["next_cursor"], Value::Null);
    let listed = all["receipts"].as_array().unwrap();
    for ((receipt, who), (delivered, read)) in
        listed.iter().zip(others).zip([(true, true), (true, false), (false, false)])
    {
        assert_eq!(id(&receipt["user_id"]), who);
        assert_eq!((&receipt["delivered"], &receipt["read"]), (&json!(delivered), &json!(read)));
        assert_eq!(receipt["delivered_at"].is_string(), delivered);
        assert_eq!(receipt["read_at"].is_string(), read);
    }
    assert_eq!(listed.len(), 3);
    let first = rest.get(&path(&message, "receipts?limit=2")).await.body(200);
    assert_eq!(first["receipts"].as_array().unwrap(), &listed[..2]);
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = path(&message, &format!("receipts?limit=2&cursor={cursor}"));
    assert_eq!(rest.get(&second).await.body(200)["receipts"].as_array().unwrap(), &listed[2..]);
    let bad = rest.get(&path(&message, "receipts?cursor=x")).await;
    bad.refused(422, "invalid", Some("cursor"));
}

async fn in_large_groups_only_watermarks_move(cluster: &Cluster) {
    let (alice, bob, carol) = (user(), user(), user());
    let conversation = cluster.group(0, alice, &[bob, carol]).await;
    let mut at_alice = cluster.connect(0, alice).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let mut also_bob = cluster.connect(0, bob).await;
    let message = at_alice.send(conversation, "Hello").await;
    let command = json!({ "message_id": message["id"] });
    at_bob.new_message().await;
    at_bob.command("read_receipt", command).await.ok();
    // One's own unread counts agree in any group.
    also_bob.event("message_read", "on the other device").await;
    assert_eq!(marks(cluster, alice, conversation, bob).await, (2, 2));
    let listed = cluster.rest(0, alice).get(&path(&message, "receipts")).await.body(200);
    let of_bob = listed["receipts"].as_array().unwrap().iter();
    let of_bob = of_bob.clone().find(|receipt| id(&receipt["user_id"]) == bob).unwrap();
    assert_eq!((&of_bob["read"], &of_bob["read_at"]), (&json!(true), &Value::Null));
    // Another, small group shows that nothing of this one is still to come.
    let pair = cluster.group(0, alice, &[bob]).await;
    at_alice.send(pair, "Hello").await;
    let told = at_alice.event("message_delivered", "of the small group").await;
    assert_eq!(id(&told["conversation_id"]), pair);
    let told = |event: &Value| event["type"].as_str().unwrap().starts_with("message_");
    assert!(!at_alice.drain().await.iter().any(told));
}
