//! Nobody reads or writes where he is not a member, also while that changes.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::client::{Answer, Client};
use crate::harness::cluster::{Cluster, id, text, user};
use crate::harness::{PATIENCE, scenarios, within};

scenarios! {
    one_removed_while_he_sends_is_heard_before_his_removal_only,
    one_muted_while_he_sends_is_heard_before_that_only,
    one_who_sends_while_others_come_is_never_refused,
    a_removed_member_gets_his_own_removal_and_nothing_after_it,
    one_added_without_history_sees_nothing_of_before,
    one_who_comes_back_sees_what_comes_then,
    a_group_outlives_its_owner,
    what_a_role_does_not_allow_is_refused,
    participants_are_listed_in_pages,
}

fn participant(conversation: Uuid, who: Uuid) -> String {
    format!("/api/v1/conversations/{conversation}/participants/{who}")
}

/// Sends without a pause, several at a time, until refused; returns the seqs that were accepted and
/// the refusal.
async fn send_until_refused(client: &mut Client, conversation: Uuid) -> (Vec<i64>, Value) {
    let mut seqs = Vec::new();
    loop {
        let mut refs = Vec::new();
        for _ in 0..8 {
            refs.push(client.submit("send_message", text(conversation, "again")).await);
        }
        let mut refusal = None;
        for reference in refs {
            match client.answer(&reference).await {
                Answer::Ok(payload) => {
                    assert!(refusal.is_none(), "accepted after a refusal: {payload}");
                    seqs.push(payload["message"]["seq"].as_i64().unwrap());
                }
                Answer::Error(problem) => refusal = Some(problem),
            }
        }
        if let Some(problem) = refusal {
            return (seqs, problem);
        }
    }
}

/// `change` is made on one node while the member sends on the other.
async fn race(cluster: &Cluster, change: Option<Value>, status: u16, code: &str) {
    let (alice, bob) = (user(), user());
    for _ in 0..5 {
        let conversation = cluster.group(0, alice, &[bob]).await;
        let mut at_alice = cluster.connect(0, alice).await;
        let mut at_bob = cluster.connect(1, bob).await;
        let changed = async {
            // In the middle of it.
            for _ in 0..10 {
                at_alice.new_message().await;
            }
            let (rest, path) = (cluster.rest(0, alice), participant(conversation, bob));
            match &change {
                Some(change) => rest.patch(&path, change.clone()).await.status,
                None => rest.delete(&path).await.status,
            }
        };
        let sent = send_until_refused(&mut at_bob, conversation);
        let sent = within(PATIENCE, "the change is noticed", sent);
        let ((accepted, refusal), changed) = tokio::join!(sent, changed);
        assert!(changed == 200 || changed == 204, "{changed}");
        assert_eq!((&refusal["status"], &refusal["code"]), (&json!(status), &json!(code)));
        // The creation may have reached her, too.
        let changed =
            |event: &Value| event["type"] == "conversation_updated" && event["payload"]["seq"] != 1;
        let update = at_alice.find("the change", changed).await;
        let seq = update["payload"]["seq"].as_i64().unwrap();
        assert!(accepted.len() >= 10, "he was sending when it happened");
        assert!(accepted.iter().all(|accepted| *accepted < seq), "{seq}: {accepted:?}");
        assert_eq!(accepted.len() as i64, seq - 2, "each seq below it is one of his messages");
        let path = format!("/api/v1/conversations/{conversation}/messages?limit=200");
        let history = cluster.rest(0, alice).get(&path).await.body(200);
        let latest = history["messages"][0]["seq"].as_i64().unwrap();
        assert_eq!(latest, seq - 1, "nothing of him is stored after it");
    }
}

async fn one_removed_while_he_sends_is_heard_before_his_removal_only(cluster: &Cluster) {
    race(cluster, None, 404, "not_found").await;
}

async fn one_muted_while_he_sends_is_heard_before_that_only(cluster: &Cluster) {
    race(cluster, Some(json!({ "can_send_messages": false })), 403, "forbidden").await;
}

/// Each change of the members makes the sends that met it be judged again, not be refused.
async fn one_who_sends_while_others_come_is_never_refused(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let path = format!("/api/v1/conversations/{conversation}/participants");
    let changes = async {
        for _ in 0..25 {
            let body = json!({ "user_ids": [user()] });
            cluster.rest(0, alice).post(&path, body).await.body(200);
        }
    };
    let sends = async {
        let mut seqs = Vec::new();
        for _ in 0..25 {
            let mut refs = Vec::new();
            for _ in 0..4 {
                refs.push(at_bob.submit("send_message", text(conversation, "welcome")).await);
            }
            for reference in refs {
                let sent = at_bob.answer(&reference).await.ok();
                seqs.push(sent["message"]["seq"].as_i64().unwrap());
            }
        }
        seqs
    };
    let ((), seqs) = tokio::join!(changes, sends);
    assert!(seqs.is_sorted(), "one socket's messages keep their order: {seqs:?}");
    let path = format!("/api/v1/conversations/{conversation}");
    let shown = cluster.rest(0, alice).get(&path).await.body(200);
    assert_eq!(shown["last_seq"], 1 + 25 + 100, "each change and message took one seq");
}

async fn a_removed_member_gets_his_own_removal_and_nothing_after_it(cluster: &Cluster) {
    let (alice, bob, carol) = (user(), user(), user());
    let conversation = cluster.group(0, alice, &[bob, carol]).await;
    let elsewhere = cluster.group(0, alice, &[bob]).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let mut at_carol = cluster.connect(1, carol).await;
    let before = cluster.send(0, alice, conversation, "with Bob").await;
    assert_eq!(at_bob.new_message().await, before);
    assert_eq!(cluster.rest(0, alice).delete(&participant(conversation, bob)).await.status, 204);
    let after = cluster.send(0, alice, conversation, "without Bob").await;
    let rename = json!({ "title": "without Bob" });
    let path = format!("/api/v1/conversations/{conversation}");
    cluster.rest(0, alice).patch(&path, rename).await.body(200);
    assert_eq!(at_carol.new_message().await, before);
    assert_eq!(at_carol.new_message().await, after);
    // The creation of either conversation may have reached him, too.
    let is_removal = |event: &Value| {
        let payload = &event["payload"];
        payload["conversation"]["id"] == conversation.to_string() && payload["seq"] != 1
    };
    let removal = at_bob.find("his removal", is_removal).await;
    assert_eq!(
        (&removal["type"], &removal["payload"]["seq"]),
        (&json!("conversation_updated"), &json!(3))
    );
    let marker = cluster.send(0, alice, elsewhere, "still here").await;
    assert_eq!(at_bob.new_message().await, marker);
    let rest = at_bob.drain().await;
    let of_it = |event: &&Value| {
        event.to_string().contains(&conversation.to_string()) && event["payload"]["seq"] != 1
    };
    assert_eq!(rest.iter().find(of_it), None, "nothing after his removal");
    for path in ["", "/messages", "/participants"] {
        let path = format!("/api/v1/conversations/{conversation}{path}");
        cluster.rest(1, bob).get(&path).await.refused(404, "not_found", None);
    }
}

async fn one_added_without_history_sees_nothing_of_before(cluster: &Cluster) {
    let (alice, bob, carol) = (user(), user(), user());
    let conversation = cluster.group(0, alice, &[]).await;
    let before = cluster.send(0, alice, conversation, "before").await;
    let path = format!("/api/v1/conversations/{conversation}/participants");
    for (who, with_history) in [(bob, false), (carol, true)] {
        let body = json!({ "user_ids": [who], "with_history": with_history });
        cluster.rest(1, alice).post(&path, body).await.body(200);
    }
    let after = cluster.send(0, alice, conversation, "after").await;
    let path = format!("/api/v1/conversations/{conversation}/messages");
    let read =
        async |who: Uuid, query: &str| cluster.rest(1, who).get(&format!("{path}{query}")).await;
    let history = |messages: &[&Value]| json!({ "messages": messages, "has_more": false });
    assert_eq!(read(bob, "").await.body(200), history(&[&after]));
    assert_eq!(read(carol, "").await.body(200), history(&[&after, &before]));
    // Not by its id either.
    let query = format!("?before_id={}", before["id"].as_str().unwrap());
    read(bob, &query).await.refused(404, "not_found", Some("before_id"));
    let mut reply = text(conversation, "what was it?");
    reply["parent_message_id"] = before["id"].clone();
    let refused = cluster.rest(0, bob).post("/api/v1/messages", reply).await;
    refused.refused(422, "invalid", Some("parent_message_id"));
}

async fn one_who_comes_back_sees_what_comes_then(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let leaving = cluster.rest(1, bob).delete(&participant(conversation, bob)).await;
    assert_eq!(leaving.status, 204);
    cluster.send(0, alice, conversation, "he is gone").await;
    let path = format!("/api/v1/conversations/{conversation}/participants");
    let back = json!({ "user_ids": [bob], "with_history": false });
    cluster.rest(0, alice).post(&path, back).await.body(200);
    let welcome = cluster.send(0, alice, conversation, "welcome back").await;
    assert_eq!(at_bob.new_message().await, welcome, "and not what was said without him");
    let path = format!("/api/v1/conversations/{conversation}");
    let shown = cluster.rest(1, bob).get(&path).await.body(200);
    assert_eq!(shown["unread_count"], 1);
}

async fn a_group_outlives_its_owner(cluster: &Cluster) {
    let (alice, bob, carol) = (user(), user(), user());
    let conversation = cluster.group(0, alice, &[bob, carol]).await;
    let admin = json!({ "role": "admin" });
    let path = participant(conversation, carol);
    cluster.rest(0, alice).patch(&path, admin).await.body(200);
    let path = participant(conversation, alice);
    assert_eq!(cluster.rest(1, alice).delete(&path).await.status, 204);
    let path = format!("/api/v1/conversations/{conversation}");
    let shown = cluster.rest(0, carol).get(&path).await.body(200);
    assert_eq!(shown["me"]["role"], "owner", "the admin, not the older member");
    let left = cluster.rest(1, carol).delete(&participant(conversation, carol)).await;
    assert_eq!(left.status, 204);
    let shown = cluster.rest(0, bob).get(&path).await.body(200);
    assert_eq!(shown["me"]["role"], "owner", "the oldest member");
    let left = cluster.rest(1, bob).delete(&participant(conversation, bob)).await;
    assert_eq!(left.status, 204, "the last one may leave, too");
    cluster.rest(0, bob).get(&path).await.refused(404, "not_found", None);
}

async fn what_a_role_does_not_allow_is_refused(cluster: &Cluster) {
    let (owner, admin, member, other) = (user(), user(), user(), user());
    let conversation = cluster.group(0, owner, &[admin, member, other]).await;
    let as_admin = json!({ "role": "admin" });
    let path = participant(conversation, admin);
    cluster.rest(0, owner).patch(&path, as_admin.clone()).await.body(200);
    let of = |who| participant(conversation, who);
    let group = format!("/api/v1/conversations/{conversation}");
    let add = format!("{group}/participants");
    let muted = json!({ "can_send_messages": false });
    let someone = json!({ "user_ids": [user()] });
    let title = json!({ "title": "mine" });
    for (who, method, path, body) in [
        (member, "POST", &add, &someone),
        (member, "PATCH", &group, &title),
        (member, "PATCH", &of(other), &muted),
        (member, "PATCH", &of(member), &as_admin),
        (member, "DELETE", &of(other), &Value::Null),
        (admin, "PATCH", &of(owner), &muted),
        (admin, "PATCH", &of(member), &as_admin),
        (admin, "DELETE", &of(owner), &Value::Null),
    ] {
        let reply = cluster.rest(1, who).call(method, path, &body.to_string()).await;
        reply.refused(403, "forbidden", None);
    }
    let stranger = of(user());
    let refused = cluster.rest(1, owner).delete(&stranger).await;
    refused.refused(404, "not_found", None);
    // What an admin may do.
    cluster.rest(1, admin).patch(&of(other), muted).await.body(200);
    assert_eq!(cluster.rest(1, admin).delete(&of(other)).await.status, 204);
    cluster.rest(0, admin).patch(&group, title).await.body(200);
    cluster.rest(0, admin).post(&add, someone).await.body(200);
}

async fn participants_are_listed_in_pages(cluster: &Cluster) {
    let owner = user();
    let mut expected: Vec<Uuid> = (0..6).map(|_| user()).collect();
    let conversation = cluster.group(0, owner, &expected).await;
    expected.push(owner);
    expected.sort_unstable();
    let path = format!("/api/v1/conversations/{conversation}/participants?limit=3");
    let (mut listed, mut query) = (Vec::new(), path.clone());
    loop {
        let page = cluster.rest(1, expected[0]).get(&query).await.body(200);
        listed.extend(page["participants"].as_array().unwrap().iter().map(|m| id(&m["user_id"])));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("{path}&cursor={cursor}");
    }
    assert_eq!(listed, expected);
}
