//! A send that is repeated is done once, whichever way it comes and however often.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::client::Answer;
use crate::harness::cluster::{Cluster, text, user};
use crate::harness::scenarios;

scenarios! {
    a_repeated_send_gives_the_first_message,
    the_same_send_on_all_ways_at_once_is_one_message,
    a_repeat_gives_the_first_message_even_to_one_who_may_not_send_any_more,
    two_people_may_use_the_same_client_message_id,
}

fn send(conversation: Uuid, content: &str, client_message_id: &str) -> Value {
    let mut body = text(conversation, content);
    body["client_message_id"] = client_message_id.into();
    body
}

async fn a_repeated_send_gives_the_first_message(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut socket = cluster.connect(1, alice).await;
    let body = send(conversation, "once", "c-1");
    let first = cluster.rest(0, alice).post("/api/v1/messages", body.clone()).await.body(201);
    assert_eq!(first["client_message_id"], "c-1");
    for at in 0..2 {
        let again = cluster.rest(at, alice).post("/api/v1/messages", body.clone()).await.body(200);
        assert_eq!(again, first);
    }
    assert_eq!(socket.command("send_message", body.clone()).await.ok()["message"], first);
    // The same values in another order, with nothings spelled out.
    let spelled = format!(
        r#"{{"metadata":null,"message_type":"text","mentions":[],"client_message_id":"c-1",
            "conversation_id":"{conversation}","content":"\u006fnce","unknown":1}}"#
    );
    let again = cluster.rest(0, alice).call("POST", "/api/v1/messages", &spelled).await.body(200);
    assert_eq!(again, first);
    // As a header.
    let keyed = cluster.rest(1, alice).with("idempotency-key", "c-1");
    let again = keyed.post("/api/v1/messages", text(conversation, "once")).await.body(200);
    assert_eq!(again, first);
    // The body's own goes before it, and the header has to be a key all the same.
    let other = cluster.rest(1, alice).with("idempotency-key", "c-2");
    let again = other.post("/api/v1/messages", body.clone()).await.body(200);
    assert_eq!(again, first);
    for key in ["", "\u{e9}", &"k".repeat(129)] {
        let wrong = cluster.rest(1, alice).with("idempotency-key", key);
        for body in [body.clone(), text(conversation, "once")] {
            let refused = wrong.post("/api/v1/messages", body).await;
            refused.refused(422, "invalid", Some("Idempotency-Key"));
        }
    }

    for (name, value) in [
        ("content", json!("twice")),
        ("metadata", json!({ "a": 1 })),
        ("conversation_id", json!(cluster.group(0, alice, &[]).await)),
        ("mentions", json!([{ "user_id": bob, "offset": 0, "length": 1 }])),
        ("parent_message_id", first["id"].clone()),
    ] {
        let mut other = body.clone();
        other[name] = value;
        let field = Some("client_message_id");
        let refused = cluster.rest(1, alice).post("/api/v1/messages", other.clone()).await;
        refused.refused(422, "idempotency_mismatch", field);
        let refused = socket.command("send_message", other).await;
        refused.refused(422, "idempotency_mismatch", field);
    }
    let path = format!("/api/v1/conversations/{conversation}/messages");
    let history = cluster.rest(0, bob).get(&path).await.body(200);
    assert_eq!(history["messages"], json!([first]));
}

async fn the_same_send_on_all_ways_at_once_is_one_message(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let mut sockets = [cluster.connect(0, alice).await, cluster.connect(1, alice).await];
    for round in 0..10 {
        let id = format!("c-{round}");
        let body = send(conversation, "at once", &id);
        let other = send(conversation, "something else", &id);
        let by_rest = (0..6).map(async |at| {
            let reply = cluster.rest(at, alice).post("/api/v1/messages", body.clone()).await;
            (reply.status, reply.json())
        });
        let by_socket = sockets.iter_mut().map(async |socket| {
            let mut refs = Vec::new();
            for _ in 0..3 {
                refs.push(socket.submit("send_message", body.clone()).await);
            }
            let mut messages = Vec::new();
            for reference in refs {
                messages.push(socket.answer(&reference).await);
            }
            messages
        });
        let by_other = (0..2).map(async |at| {
            cluster.rest(at, alice).post("/api/v1/messages", other.clone()).await.status
        });
        let (by_rest, by_socket, by_other) =
            tokio::join!(join_all(by_rest), join_all(by_socket), join_all(by_other));
        // Whichever body came first stands; the other one is refused.
        let mut messages: Vec<Value> = Vec::new();
        let (mut created, mut refused) = (0, 0);
        for (status, reply) in by_rest {
            match status {
                201 => created += 1,
                422 => refused += 1,
                status => assert_eq!(status, 200, "{reply}"),
            }
            messages.extend((status != 422).then_some(reply));
        }
        for answer in by_socket.into_iter().flatten() {
            match answer {
                Answer::Ok(mut payload) => messages.push(payload["message"].take()),
                Answer::Error(problem) => {
                    assert_eq!(problem["code"], "idempotency_mismatch");
                    refused += 1;
                }
            }
        }
        let ids: BTreeSet<&str> = messages.iter().map(|m| m["id"].as_str().unwrap()).collect();
        let other_first = by_other.contains(&201);
        if other_first {
            assert_eq!((created, refused, ids.len()), (0, 12, 0), "{messages:?}");
        } else {
            assert!(created <= 1, "created {created} times");
            assert_eq!((refused, ids.len()), (0, 1), "{messages:?}");
            assert_eq!(by_other, [422, 422]);
        }
        let arrived = at_bob.new_message().await;
        assert_eq!(arrived["client_message_id"], id.as_str());
        assert_eq!(arrived["seq"], round + 2, "one message took one seq");
    }
    let left = at_bob.drain().await;
    assert!(left.iter().all(|event| event["type"] != "new_message"), "{left:?}");
}

async fn a_repeat_gives_the_first_message_even_to_one_who_may_not_send_any_more(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let body = send(conversation, "still there", "c-1");
    let first = cluster.rest(1, bob).post("/api/v1/messages", body.clone()).await.body(201);
    let path = format!("/api/v1/conversations/{conversation}/participants/{bob}");
    let muted = json!({ "can_send_messages": false });
    cluster.rest(0, alice).patch(&path, muted).await.body(200);
    let again = cluster.rest(0, bob).post("/api/v1/messages", body.clone()).await.body(200);
    assert_eq!(again, first);
    assert_eq!(cluster.rest(0, alice).delete(&path).await.status, 204);
    for at in 0..2 {
        let again = cluster.rest(at, bob).post("/api/v1/messages", body.clone()).await.body(200);
        assert_eq!(again, first);
        let new = send(conversation, "a new one", "c-2");
        let refused = cluster.rest(at, bob).post("/api/v1/messages", new).await;
        refused.refused(404, "not_found", None);
    }
}

async fn two_people_may_use_the_same_client_message_id(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut seqs = BTreeSet::new();
    for (at, who) in [(0, alice), (1, bob)] {
        let body = send(conversation, "mine", "1");
        let sent = cluster.rest(at, who).post("/api/v1/messages", body).await.body(201);
        assert_eq!(sent["sender_id"], who.to_string());
        seqs.insert(sent["seq"].as_i64().unwrap());
    }
    assert_eq!(seqs, BTreeSet::from([2, 3]));
}
