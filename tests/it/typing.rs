//! Who is writing just now: told to the others at once, never stored, and to nobody else.

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::client::{Answer, Client};
use crate::harness::cluster::{Cluster, id, user};
use crate::harness::{scenarios, until};

scenarios! {
    others_see_who_types_and_when_he_stops,
    typing_by_rest_is_the_same,
    a_beginning_is_told_once_in_three_seconds_and_its_end_at_once,
    who_is_no_member_cannot_type_and_hears_of_nobody,
    one_who_may_not_write_does_not_type,
    a_newcomer_types_at_once,
    typing_is_not_stored,
}

fn typing(conversation: Uuid, is_typing: bool) -> Value {
    json!({ "conversation_id": conversation, "is_typing": is_typing })
}

async fn tell(client: &mut Client, conversation: Uuid, is_typing: bool) {
    let answer = client.command("typing", typing(conversation, is_typing)).await.ok();
    assert_eq!(answer, json!({}));
}

/// The next typing event, which must be of this user.
async fn heard(client: &mut Client, who: Uuid, is_typing: bool) -> Value {
    let event = client.event("typing", "someone types").await;
    assert_eq!((id(&event["user_id"]), &event["is_typing"]), (who, &json!(is_typing)));
    event
}

/// Typing events that came until a message of `who` did, which goes the same way.
async fn until_a_message(
    cluster: &Cluster,
    at: usize,
    who: Uuid,
    conversation: Uuid,
    clients: &mut [&mut Client],
) -> Vec<Value> {
    cluster.send(at, who, conversation, "a marker").await;
    let mut events = Vec::new();
    for client in clients {
        client.new_message().await;
        events.extend(client.drain().await.into_iter().filter(|e| e["type"] == "typing"));
    }
    events
}

async fn others_see_who_types_and_when_he_stops(cluster: &Cluster) {
    let (alice, bob, carol) = (user(), user(), user());
    let group = cluster.group(0, alice, &[bob, carol]).await;
    let mut at_alice = cluster.connect(0, alice).await;
    let mut elsewhere = cluster.connect(1, alice).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let mut at_carol = cluster.connect_classic(0, carol).await;
    tell(&mut at_alice, group, true).await;
    let event = heard(&mut at_bob, alice, true).await;
    assert_eq!(id(&event["conversation_id"]), group);
    assert!(event["timestamp"].as_str().is_some_and(|at| at.ends_with('Z')), "{event}");
    heard(&mut at_carol, alice, true).await;
    // Without a ref nothing is answered.
    let stop = json!({ "type": "typing", "payload": typing(group, false) });
    at_alice.send_text(&stop.to_string()).await;
    heard(&mut at_bob, alice, false).await;
    // Whoever types is not told, on no device; and a classic client would take the end for a
    // beginning.
    let mut silent = [&mut elsewhere, &mut at_carol];
    let more = until_a_message(cluster, 1, bob, group, &mut silent).await;
    assert_eq!(more, [] as [Value; 0]);
    assert_eq!(at_alice.drain().await.iter().filter(|e| e["type"] == "typing").count(), 0);
}

async fn typing_by_rest_is_the_same(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let direct = json!({ "kind": "direct", "participants": [bob] });
    let direct = cluster.rest(0, alice).post("/api/v1/conversations", direct).await.body(201);
    let path = format!("/api/v1/conversations/{}/typing", direct["id"].as_str().unwrap());
    let mut at_bob = cluster.connect(1, bob).await;
    for is_typing in [true, false] {
        let told = cluster.rest(0, alice).post(&path, json!({ "is_typing": is_typing })).await;
        assert_eq!((told.status, told.text.as_str()), (204, ""));
        heard(&mut at_bob, alice, is_typing).await;
    }
    for (body, field) in [(json!({}), "is_typing"), (json!({ "is_typing": "yes" }), "is_typing")] {
        let refused = cluster.rest(0, alice).post(&path, body).await;
        refused.refused(400, "malformed", Some(field));
    }
    let nowhere = "/api/v1/conversations/nowhere/typing";
    let refused = cluster.rest(0, alice).post(nowhere, json!({ "is_typing": true })).await;
    refused.refused(404, "not_found", None);
}

async fn a_beginning_is_told_once_in_three_seconds_and_its_end_at_once(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let group = cluster.group(0, alice, &[bob]).await;
    let mut at_alice = cluster.connect(0, alice).await;
    let mut at_bob = cluster.connect(1, bob).await;
    for _ in 0..4 {
        tell(&mut at_alice, group, true).await;
    }
    for _ in 0..2 {
        tell(&mut at_alice, group, false).await;
    }
    tell(&mut at_alice, group, true).await;
    heard(&mut at_bob, alice, true).await;
    heard(&mut at_bob, alice, false).await;
    let more = until_a_message(cluster, 0, alice, group, &mut [&mut at_bob]).await;
    assert_eq!(more, [] as [Value; 0]);
    // Said again and again, as clients do, it is told again when the time is over.
    let started = tokio::time::Instant::now();
    let again = until("it is told again", async || {
        tell(&mut at_alice, group, true).await;
        at_bob.drain().await.into_iter().find(|event| event["type"] == "typing")
    });
    assert_eq!(again.await["payload"]["is_typing"], true);
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
}

async fn who_is_no_member_cannot_type_and_hears_of_nobody(cluster: &Cluster) {
    let (alice, bob, carol) = (user(), user(), user());
    let group = cluster.group(0, alice, &[bob, carol]).await;
    let with_carol = cluster.group(0, alice, &[carol]).await;
    let mut stranger = cluster.connect(0, user()).await;
    let mut at_bob = cluster.connect(0, bob).await;
    let mut at_carol = cluster.connect(1, carol).await;
    for foreign in [group, user()] {
        let refused = stranger.command("typing", typing(foreign, true)).await;
        refused.refused(404, "not_found", None);
    }
    tell(&mut at_carol, group, true).await;
    heard(&mut at_bob, carol, true).await;
    // On the node where the members are known already, and on the other.
    let path = format!("/api/v1/conversations/{group}/participants/{carol}");
    assert_eq!(cluster.rest(0, alice).delete(&path).await.status, 204);
    until("a removed member's typing is refused", async || {
        let answer = at_carol.command("typing", typing(group, false)).await;
        match answer {
            Answer::Ok(_) => None,
            Answer::Error(problem) => {
                assert_eq!(problem["code"], "not_found");
                Some(())
            }
        }
    })
    .await;
    at_bob.drain().await;
    let refused = at_carol.command("typing", typing(group, true)).await;
    refused.refused(404, "not_found", None);
    let mut at_alice = cluster.connect(1, alice).await;
    tell(&mut at_alice, group, true).await;
    heard(&mut at_bob, alice, true).await;
    let more = until_a_message(cluster, 0, alice, with_carol, &mut [&mut at_carol]).await;
    assert_eq!(more, [] as [Value; 0], "she is out");
}

async fn one_who_may_not_write_does_not_type(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let group = cluster.group(0, alice, &[bob]).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let path = format!("/api/v1/conversations/{group}/participants/{bob}");
    let allow = async |allowed: bool| {
        let body = json!({ "can_send_messages": allowed });
        cluster.rest(0, alice).patch(&path, body).await.body(200);
    };
    allow(false).await;
    let refused = at_bob.command("typing", typing(group, true)).await;
    refused.refused(403, "forbidden", None);
    let by_rest = format!("/api/v1/conversations/{group}/typing");
    let refused = cluster.rest(0, bob).post(&by_rest, json!({ "is_typing": true })).await;
    refused.refused(403, "forbidden", None);
    // A right that was given holds at once, whatever was known before.
    allow(true).await;
    tell(&mut at_bob, group, true).await;
}

async fn a_newcomer_types_at_once(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let group = cluster.group(0, alice, &[]).await;
    let mut at_alice = cluster.connect(0, alice).await;
    let mut at_bob = cluster.connect(1, bob).await;
    // So that both nodes know the members without him.
    tell(&mut at_alice, group, true).await;
    at_bob.command("typing", typing(group, true)).await.refused(404, "not_found", None);
    let path = format!("/api/v1/conversations/{group}/participants");
    cluster.rest(0, alice).post(&path, json!({ "user_ids": [bob] })).await.body(200);
    tell(&mut at_bob, group, true).await;
    heard(&mut at_alice, bob, true).await;
}

async fn typing_is_not_stored(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let group = cluster.group(0, alice, &[bob]).await;
    let mut at_alice = cluster.connect(0, alice).await;
    tell(&mut at_alice, group, true).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let early = until_a_message(cluster, 0, alice, group, &mut [&mut at_bob]).await;
    assert_eq!(early, [] as [Value; 0], "he came later");
    let path = format!("/api/v1/conversations/{group}");
    let shown = cluster.rest(1, bob).get(&path).await.body(200);
    assert_eq!(shown["last_seq"], 2, "the creation and the message");
}
