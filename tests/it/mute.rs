//! Who wants no pushes of a conversation says so himself, and it stands in his offline records.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::cluster::{Cluster, user};
use crate::harness::scenarios;

scenarios! {
    one_mutes_and_unmutes_for_himself,
    nobody_mutes_another,
    a_change_of_both_kinds_is_judged_on_both,
    a_mute_takes_a_place_in_the_log_and_is_shown_to_nobody,
}

fn path(conversation: Uuid, who: Uuid) -> String {
    format!("/api/v1/conversations/{conversation}/participants/{who}")
}

async fn one_mutes_and_unmutes_for_himself(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let direct = json!({ "kind": "direct", "participants": [bob] });
    let direct = cluster.rest(0, alice).post("/api/v1/conversations", direct).await.body(201);
    let direct: Uuid = direct["id"].as_str().unwrap().parse().unwrap();
    for conversation in [direct, cluster.group(0, alice, &[bob]).await] {
        let mine = path(conversation, bob);
        for (given, shown) in [
            ("2999-12-31T23:59:59Z", json!("2999-12-31T23:59:59.000Z")),
            ("9999-12-31T23:59:59.999Z", json!("9999-12-31T23:59:59.999Z")),
            ("2026-01-01T01:30:00.5+01:30", json!("2026-01-01T00:00:00.500Z")),
        ] {
            let body = json!({ "muted_until": given });
            let changed = cluster.rest(0, bob).patch(&mine, body).await.body(200);
            assert_eq!(changed["me"]["muted_until"], shown);
        }
        let read = format!("/api/v1/conversations/{conversation}");
        let before = cluster.rest(1, bob).get(&read).await.body(200);
        assert_eq!(before["me"]["muted_until"], "2026-01-01T00:00:00.500Z");
        // Another field does not touch it, and the same again is no change.
        let again = json!({ "muted_until": "2026-01-01T00:00:00.500Z" });
        let again = cluster.rest(1, bob).patch(&mine, again).await.body(200);
        assert_eq!(again["last_seq"], before["last_seq"]);
        let unmuted = cluster.rest(1, bob).patch(&mine, json!({ "muted_until": null })).await;
        assert_eq!(unmuted.body(200)["me"]["muted_until"], Value::Null);
        for wrong in ["tomorrow", "2026-01-01", "2026-13-01T00:00:00Z", ""] {
            let refused = cluster.rest(1, bob).patch(&mine, json!({ "muted_until": wrong })).await;
            refused.refused(400, "malformed", Some("muted_until"));
        }
        let refused = cluster.rest(1, bob).patch(&mine, json!({})).await;
        refused.refused(422, "invalid", Some("role"));
    }
}

async fn nobody_mutes_another(cluster: &Cluster) {
    let (owner, bob, stranger) = (user(), user(), user());
    let group = cluster.group(0, owner, &[bob]).await;
    let body = json!({ "muted_until": "2999-01-01T00:00:00Z" });
    let refused = cluster.rest(0, owner).patch(&path(group, bob), body.clone()).await;
    refused.refused(403, "forbidden", None);
    let refused = cluster.rest(1, bob).patch(&path(group, owner), body.clone()).await;
    refused.refused(403, "forbidden", None);
    let refused = cluster.rest(1, stranger).patch(&path(group, stranger), body.clone()).await;
    refused.refused(404, "not_found", None);
    let direct = json!({ "kind": "direct", "participants": [bob] });
    let direct = cluster.rest(0, owner).post("/api/v1/conversations", direct).await.body(201);
    let direct: Uuid = direct["id"].as_str().unwrap().parse().unwrap();
    let refused = cluster.rest(1, bob).patch(&path(direct, owner), body).await;
    refused.refused(409, "conflict", None);
}

async fn a_change_of_both_kinds_is_judged_on_both(cluster: &Cluster) {
    let (owner, bob) = (user(), user());
    let group = cluster.group(0, owner, &[bob]).await;
    let both = json!({ "muted_until": "2999-01-01T00:00:00Z", "can_send_messages": false });
    // The right is not his to take, though the mute is his own; and the other way round.
    let refused = cluster.rest(1, bob).patch(&path(group, bob), both.clone()).await;
    refused.refused(403, "forbidden", None);
    let refused = cluster.rest(0, owner).patch(&path(group, bob), both.clone()).await;
    refused.refused(403, "forbidden", None);
    let shown = cluster.rest(0, bob).get(&format!("/api/v1/conversations/{group}")).await;
    let me = shown.body(200)["me"].clone();
    assert_eq!((&me["muted_until"], &me["can_send_messages"]), (&Value::Null, &json!(true)));
    let changed = cluster.rest(0, owner).patch(&path(group, owner), both).await.body(200);
    assert_eq!(changed["me"]["can_send_messages"], false);
    assert_eq!(changed["me"]["muted_until"], "2999-01-01T00:00:00.000Z");
    assert_eq!(changed["last_seq"], 2, "one change");
}

async fn a_mute_takes_a_place_in_the_log_and_is_shown_to_nobody(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let group = cluster.group(0, alice, &[bob]).await;
    let mut at_alice = cluster.connect(0, alice).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let body = json!({ "muted_until": "2999-01-01T00:00:00Z" });
    cluster.rest(1, bob).patch(&path(group, bob), body).await.body(200);
    for client in [&mut at_alice, &mut at_bob] {
        let event = client.find("the change", |event| event["payload"]["seq"] == 2).await;
        assert_eq!(event["type"], "conversation_updated");
        assert!(!event.to_string().contains("muted"), "{event}");
    }
    // The members are known anew: he is muted in the record of the very next message.
    let muted = async |expected: bool| {
        let members = cluster.node(0).store.members(tidings::ids::ConversationId(group)).await;
        let members = members.unwrap().unwrap().members;
        let bob = members.iter().find(|member| member.user_id.0 == bob).unwrap();
        assert_eq!(bob.muted_until.is_some(), expected);
    };
    muted(true).await;
    let body = json!({ "muted_until": null });
    cluster.rest(0, bob).patch(&path(group, bob), body).await.body(200);
    muted(false).await;
}
