//! Messages are edited and deleted: who hears of it, in which shape, and when a node dies over it.

use std::time::Duration;

use serde_json::{Value, json};
use tidings::ids::{MessageId, OutboxId, UserId};
use tidings::protocol::command::EditMessage;
use tidings::store::types::{AmendOutcome, Amendment, OutboxLease};
use uuid::Uuid;

use crate::handed::Handed;
use crate::harness::cluster::{Cluster, id, user};
use crate::harness::scenarios;

scenarios! {
    an_edit_and_a_deletion_reach_all_who_see_the_message,
    others_messages_and_what_is_gone_cannot_be_changed,
    one_without_a_device_is_told_by_the_offline_sink,
    a_change_that_was_never_dispatched_is_taken_over,
}

fn path(message: &Value) -> String {
    format!("/api/v1/messages/{}", id(&message["id"]))
}

async fn edit(cluster: &Cluster, at: usize, by: Uuid, message: &Value, content: &str) -> Value {
    let body = json!({ "content": content }).to_string();
    cluster.rest(at, by).call("PUT", &path(message), &body).await.body(200)
}

async fn an_edit_and_a_deletion_reach_all_who_see_the_message(cluster: &Cluster) {
    let (alice, bob, late) = (user(), user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut origin = cluster.connect(0, alice).await;
    let mut others = [
        cluster.connect(1, alice).await,
        cluster.connect(1, bob).await,
        cluster.connect_classic(0, bob).await,
    ];
    let message = origin.send(conversation, "Helo").await;
    let members = format!("/api/v1/conversations/{conversation}/participants");
    let body = json!({ "user_ids": [late], "with_history": false });
    cluster.rest(0, alice).post(&members, body).await.body(200);
    let mut at_late = cluster.connect(1, late).await;

    let command = json!({ "message_id": message["id"], "content": "Hello" });
    let edited = origin.command("edit_message", command).await.ok()["message"].take();
    assert_eq!((&edited["seq"], &edited["change_seq"]), (&json!(2), &json!(4)));
    assert_eq!(edited["content"], "Hello");
    for other in &mut others {
        let event = other.event("message_updated", "the edit").await;
        assert_eq!((&event["type"], &event["seq"]), (&json!("message_updated"), &json!(4)));
        assert_eq!(event["message"], edited);
    }
    assert_eq!(cluster.rest(1, bob).get(&path(&message)).await.body(200), edited);
    let edits = cluster.rest(1, bob).get(&format!("{}/edits", path(&message))).await.body(200);
    let version = json!({
        "seq": 2, "content": "Helo", "mentions": null, "metadata": null,
        "edited_at": message["created_at"],
    });
    assert_eq!(edits, json!({ "edits": [version], "next_cursor": null }));
    // Page by page.
    let command = json!({ "message_id": message["id"], "content": "Hello!" });
    origin.command("edit_message", command).await.ok();
    for other in &mut others {
        other.event("message_updated", "the second edit").await;
    }
    let edits = format!("{}/edits?limit=1", path(&message));
    let first = cluster.rest(1, bob).get(&edits).await.body(200);
    assert_eq!((&first["edits"][0]["seq"], &first["next_cursor"]), (&json!(2), &json!("2")));
    let second = cluster.rest(1, bob).get(&format!("{edits}&cursor=2")).await.body(200);
    assert_eq!((&second["edits"][0]["seq"], &second["next_cursor"]), (&json!(4), &json!("4")));
    let third = cluster.rest(1, bob).get(&format!("{edits}&cursor=4")).await.body(200);
    assert_eq!(third, json!({ "edits": [], "next_cursor": null }));
    let bad = cluster.rest(1, bob).get(&format!("{edits}&cursor=-1")).await;
    bad.refused(422, "invalid", Some("cursor"));

    let deleted = cluster.rest(1, alice).delete(&path(&message)).await.body(200);
    assert_eq!((&deleted["change_seq"], &deleted["content"]), (&json!(6), &Value::Null));
    for device in others.iter_mut().chain([&mut origin]) {
        let event = device.event("message_deleted", "the deletion").await;
        assert_eq!((&event["type"], &event["seq"]), (&json!("message_deleted"), &json!(6)));
        assert_eq!(event["message"], deleted);
    }
    assert_eq!(cluster.rest(0, alice).delete(&path(&message)).await.body(200), deleted);

    // One who may not look back hears nothing of it; the session that asked has its answer only.
    let marker = cluster.send(0, bob, conversation, "next").await;
    assert_eq!(marker["seq"], 7);
    assert_eq!(at_late.new_message().await, marker);
    assert_eq!(origin.new_message().await, marker);
    for device in [&mut at_late, &mut origin] {
        let told = |event: &Value| event["type"].as_str().unwrap().starts_with("message_");
        let rest: Vec<_> = device.drain().await.into_iter().filter(told).collect();
        assert!(rest.iter().all(|event| event["type"] == "message_delivered"), "{rest:?}");
    }
}

async fn others_messages_and_what_is_gone_cannot_be_changed(cluster: &Cluster) {
    let (alice, bob, eve) = (user(), user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let message = cluster.send(0, alice, conversation, "mine").await;
    let put = async |by, body: Value| {
        cluster.rest(1, by).call("PUT", &path(&message), &body.to_string()).await
    };
    let body = || json!({ "content": "yours" });
    put(bob, body()).await.refused(403, "forbidden", None);
    put(eve, body()).await.refused(404, "not_found", None);
    cluster.rest(1, bob).delete(&path(&message)).await.refused(403, "forbidden", None);
    cluster.rest(1, eve).delete(&path(&message)).await.refused(404, "not_found", None);
    cluster.rest(1, eve).get(&path(&message)).await.refused(404, "not_found", None);
    let edits = format!("{}/edits", path(&message));
    cluster.rest(1, eve).get(&edits).await.refused(404, "not_found", None);
    let rest = cluster.rest(0, alice);
    rest.delete("/api/v1/messages/nonsense").await.refused(404, "not_found", None);
    put(alice, json!({ "content": " " })).await.refused(422, "invalid", Some("content"));
    put(alice, json!({})).await.refused(400, "malformed", Some("content"));
    let mention = json!([{ "user_id": eve, "offset": 0, "length": 1 }]);
    let body = json!({ "content": "x", "mentions": mention });
    put(alice, body).await.refused(422, "invalid", Some("mentions"));
    let long = "x".repeat(16 * 1024 + 1);
    put(alice, json!({ "content": long })).await.refused(413, "too_large", Some("content"));
    let command = json!({ "message_id": message["id"] });
    let refused = at_bob.command("delete_message", command.clone()).await;
    refused.refused(403, "forbidden", None);
    at_bob.command("edit_message", command).await.refused(400, "malformed", Some("content"));

    // Nothing of that took a place; neither does an edit that changes nothing.
    assert_eq!(edit(cluster, 1, alice, &message, "mine").await, message);
    rest.delete(&path(&message)).await.body(200);
    put(alice, json!({ "content": "x" })).await.refused(409, "conflict", None);
    assert_eq!(cluster.send(0, bob, conversation, "next").await["seq"], 4);
}

async fn one_without_a_device_is_told_by_the_offline_sink(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    cluster.absence_is_certain().await;
    let mut handed = Handed::over(&cluster.ground);
    let message = cluster.send(0, alice, conversation, "one").await;
    handed.record_for(&message, bob).await;
    edit(cluster, 0, alice, &message, "two").await;
    cluster.rest(0, alice).delete(&path(&message)).await.body(200);
    let of = |kind: &str, record: &Value| {
        record["headers"]["ce_type"] == format!("tidings.message.{kind}")
            && record["value"]["message"]["id"] == message["id"]
    };
    let all = |records: &[Value]| {
        ["created", "edited", "deleted"].iter().all(|kind| records.iter().any(|r| of(kind, r)))
    };
    handed.until("a record of each change", all).await;
    let seq = |kind: &str| {
        let record = handed.records.iter().find(|record| of(kind, record)).unwrap();
        record["value"]["change_seq"].as_i64().unwrap()
    };
    assert_eq!(["created", "edited", "deleted"].map(seq), [2, 3, 4]);
}

/// A node that dies between the commit and the dispatch leaves its outbox row.
async fn a_change_that_was_never_dispatched_is_taken_over(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let message = cluster.send(0, alice, conversation, "one").await;
    assert_eq!(at_bob.new_message().await, message);
    let mut writer = cluster.node(0).store.writer();
    let mut amend = async |content: Option<&str>| {
        let edit = content.map(|content| EditMessage {
            content: content.into(),
            mentions: None,
            metadata: None,
        });
        let (by, message_id) = (UserId(alice), MessageId(id(&message["id"])));
        let outbox = OutboxLease { id: OutboxId::random(), lease: Duration::ZERO };
        let outcome = writer.amend(&Amendment { by, message_id, edit }, outbox).await.unwrap();
        assert!(matches!(outcome, AmendOutcome::Amended { .. }), "{outcome:?}");
    };
    amend(Some("two")).await;
    let event = at_bob.event("message_updated", "the edit").await;
    assert_eq!((&event["seq"], &event["message"]["content"]), (&json!(3), &json!("two")));
    amend(None).await;
    let event = at_bob.event("message_deleted", "the deletion").await;
    assert_eq!((&event["seq"], &event["message"]["content"]), (&json!(4), &Value::Null));
}
