//! A conversation's history: back, on, around a message, and of one thread.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::cluster::{Cluster, text, user};
use crate::harness::http::Reply;
use crate::harness::scenarios;

scenarios! {
    history_goes_back_and_on_by_the_same_pages,
    history_lies_around_a_message,
    a_thread_is_read_by_pages,
    what_is_asked_for_must_be_there_and_be_one_thing,
    nobody_reads_what_was_before_him_in_either_direction,
    the_newest_page_is_what_the_store_holds,
}

async fn read(cluster: &Cluster, who: Uuid, conversation: Uuid, query: &str) -> Reply {
    let path = format!("/api/v1/conversations/{conversation}/messages?{query}");
    cluster.rest(1, who).get(&path).await
}

/// The seqs of a page, and whether there is more.
fn page(reply: Reply) -> (Vec<i64>, bool) {
    let body = reply.body(200);
    let seqs = body["messages"].as_array().unwrap().iter().map(|m| m["seq"].as_i64().unwrap());
    (seqs.collect(), body["has_more"].as_bool().unwrap())
}

fn id(message: &Value) -> &str {
    message["id"].as_str().unwrap()
}

/// A group with messages at the seqs from 2 to `last`.
async fn with_messages(cluster: &Cluster, owner: Uuid, last: i64) -> (Uuid, Vec<Value>) {
    let group = cluster.group(0, owner, &[]).await;
    let mut messages = Vec::new();
    for seq in 2..=last {
        let message = cluster.send(0, owner, group, &seq.to_string()).await;
        assert_eq!(message["seq"], seq);
        messages.push(message);
    }
    (group, messages)
}

async fn history_goes_back_and_on_by_the_same_pages(cluster: &Cluster) {
    let alice = user();
    let (group, messages) = with_messages(cluster, alice, 8).await;
    let at = |seq: usize| id(&messages[seq - 2]);
    let read = async |query: String| page(read(cluster, alice, group, &query).await);
    assert_eq!(read("limit=3".into()).await, (vec![8, 7, 6], true));
    assert_eq!(read(format!("limit=3&before_id={}", at(6))).await, (vec![5, 4, 3], true));
    assert_eq!(read(format!("limit=3&before_id={}", at(3))).await, (vec![2], false));
    // On: the oldest of what is newer, and still the newest first.
    assert_eq!(read(format!("limit=3&after_id={}", at(2))).await, (vec![5, 4, 3], true));
    assert_eq!(read(format!("limit=3&after_id={}", at(5))).await, (vec![8, 7, 6], false));
    assert_eq!(read(format!("limit=2&after_id={}", at(5))).await, (vec![7, 6], true));
    assert_eq!(read(format!("after_id={}", at(8))).await, (vec![], false));
}

async fn history_lies_around_a_message(cluster: &Cluster) {
    let alice = user();
    let (group, messages) = with_messages(cluster, alice, 10).await;
    let around = async |seq: usize, limit: usize| {
        let query = format!("limit={limit}&around_id={}", id(&messages[seq - 2]));
        let reply = read(cluster, alice, group, &query).await;
        let newer = reply.json()["has_more_after"].as_bool().unwrap();
        let (seqs, older) = page(reply);
        (seqs, older, newer)
    };
    assert_eq!(around(6, 5).await, (vec![8, 7, 6, 5, 4], true, true));
    assert_eq!(around(6, 4).await, (vec![7, 6, 5, 4], true, true));
    assert_eq!(around(6, 9).await, (vec![10, 9, 8, 7, 6, 5, 4, 3, 2], false, false));
    assert_eq!(around(2, 5).await, (vec![4, 3, 2], false, true));
    assert_eq!(around(10, 5).await, (vec![10, 9, 8], true, false));
    assert_eq!(around(6, 1).await, (vec![6], true, true));
}

async fn a_thread_is_read_by_pages(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let group = cluster.group(0, alice, &[bob]).await;
    let parent = cluster.send(0, alice, group, "a question").await;
    let mut replies = Vec::new();
    for n in 0..5 {
        let mut body = text(group, &format!("answer {n}"));
        body["parent_message_id"] = parent["id"].clone();
        replies.push(cluster.rest(n, bob).post("/api/v1/messages", body).await.body(201));
        cluster.send(0, alice, group, "something else").await;
    }
    // 3, 5, 7, 9 and 11.
    let thread = async |query: String| {
        let query = format!("parent_message_id={}&{query}", id(&parent));
        page(read(cluster, alice, group, &query).await)
    };
    assert_eq!(thread("limit=2".into()).await, (vec![11, 9], true));
    assert_eq!(thread(format!("limit=2&before_id={}", id(&replies[3]))).await, (vec![7, 5], true));
    assert_eq!(thread(format!("before_id={}", id(&replies[1]))).await, (vec![3], false));
    assert_eq!(thread(format!("limit=2&after_id={}", id(&replies[0]))).await, (vec![7, 5], true));
    // From any message of the conversation, the parent too.
    let all = (vec![11, 9, 7, 5, 3], false);
    assert_eq!(thread(format!("after_id={}", id(&parent))).await, all);
    let path = format!("/api/v1/messages/{}", id(&replies[4]));
    cluster.rest(0, bob).delete(&path).await.body(200);
    assert_eq!(thread(String::new()).await, all, "a deleted one keeps its place");
    let path = format!("/api/v1/messages/{}", id(&parent));
    assert_eq!(cluster.rest(0, bob).get(&path).await.body(200)["reply_count"], 4);
    // One that nobody replied to.
    let query = format!("parent_message_id={}", id(&replies[0]));
    assert_eq!(page(read(cluster, alice, group, &query).await), (vec![], false));
    // Nobody replies to what was deleted.
    let mut body = text(group, "too late");
    body["parent_message_id"] = replies[4]["id"].clone();
    let refused = cluster.rest(0, alice).post("/api/v1/messages", body).await;
    refused.refused(422, "invalid", Some("parent_message_id"));
}

async fn what_is_asked_for_must_be_there_and_be_one_thing(cluster: &Cluster) {
    let alice = user();
    let (group, messages) = with_messages(cluster, alice, 3).await;
    let elsewhere = cluster.group(0, alice, &[]).await;
    let foreign = cluster.send(0, alice, elsewhere, "elsewhere").await;
    let (known, nowhere) = (id(&messages[0]), user().to_string());
    for field in ["before_id", "after_id", "around_id", "parent_message_id"] {
        for unknown in [id(&foreign), &nowhere] {
            let reply = read(cluster, alice, group, &format!("{field}={unknown}")).await;
            reply.refused(404, "not_found", Some(field));
            let reply = read(cluster, user(), group, &format!("{field}={known}")).await;
            reply.refused(404, "not_found", None);
        }
        let reply = read(cluster, alice, group, &format!("{field}=first")).await;
        reply.refused(422, "invalid", Some(field));
    }
    for (one, other, field) in [
        ("before_id", "after_id", "after_id"),
        ("before_id", "around_id", "around_id"),
        ("after_id", "around_id", "around_id"),
        ("parent_message_id", "around_id", "around_id"),
    ] {
        let reply = read(cluster, alice, group, &format!("{one}={known}&{other}={known}")).await;
        reply.refused(422, "invalid", Some(field));
    }
    // A thread's own place may be the one that is not there.
    let query = format!("parent_message_id={known}&after_id={nowhere}");
    read(cluster, alice, group, &query).await.refused(404, "not_found", Some("after_id"));
}

async fn nobody_reads_what_was_before_him_in_either_direction(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let (group, messages) = with_messages(cluster, alice, 3).await;
    let path = format!("/api/v1/conversations/{group}/participants");
    let added = json!({ "user_ids": [bob], "with_history": false });
    cluster.rest(0, alice).post(&path, added).await.body(200);
    let mut body = text(group, "an answer to what he cannot see");
    body["parent_message_id"] = messages[0]["id"].clone();
    cluster.rest(0, alice).post("/api/v1/messages", body).await.body(201);
    let last = cluster.send(0, alice, group, "last").await;
    for field in ["before_id", "after_id", "around_id", "parent_message_id"] {
        let reply = read(cluster, bob, group, &format!("{field}={}", id(&messages[1]))).await;
        reply.refused(404, "not_found", Some(field));
    }
    let reply = read(cluster, bob, group, &format!("around_id={}", id(&last))).await;
    assert_eq!(page(reply), (vec![6, 5], false));
    let query = format!("parent_message_id={}&after_id={}", id(&messages[0]), id(&last));
    read(cluster, bob, group, &query).await.refused(404, "not_found", Some("parent_message_id"));
}

/// Also where a node gives it from memory: what it committed itself, and what others changed since.
async fn the_newest_page_is_what_the_store_holds(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let group = cluster.group(0, alice, &[bob]).await;
    cluster.send(0, alice, group, "first").await;
    let path = format!("/api/v1/conversations/{group}/messages");
    let newest = async |at: usize| -> Value { cluster.rest(at, bob).get(&path).await.body(200) };
    let same = async |seqs: &[i64]| {
        let page = newest(0).await;
        let shown: Vec<_> =
            page["messages"].as_array().unwrap().iter().map(|m| &m["seq"]).collect();
        assert_eq!(json!(shown), json!(seqs));
        assert_eq!(page, newest(0).await);
        assert_eq!(page, newest(1).await);
        for message in page["messages"].as_array().unwrap() {
            let path = format!("/api/v1/messages/{}", id(message));
            assert_eq!(*message, cluster.rest(1, bob).get(&path).await.body(200));
        }
    };
    same(&[2]).await;
    let mut body = text(group, "@bob look");
    body["client_message_id"] = json!("c-1");
    body["mentions"] = json!([{ "user_id": bob, "offset": 0, "length": 4 }]);
    body["metadata"] = json!({ "n": 1.50, "large": 1e300, "deep": { "a": [null, true, "x"] } });
    let sent: Value = cluster.rest(0, alice).post("/api/v1/messages", body).await.body(201);
    same(&[3, 2]).await;
    let edit = json!({ "content": "@bob look here" });
    let path = format!("/api/v1/messages/{}", id(&sent));
    let edited = cluster.rest(1, alice).patch(&path, edit).await;
    assert_eq!(edited.body(200)["change_seq"], 4);
    same(&[3, 2]).await;
    let mut reply = text(group, "I see");
    reply["parent_message_id"] = sent["id"].clone();
    cluster.rest(0, bob).post("/api/v1/messages", reply).await.body(201);
    same(&[5, 3, 2]).await;
    cluster.send(1, alice, group, "good").await;
    same(&[6, 5, 3, 2]).await;
    cluster.send(0, alice, group, "bye").await;
    same(&[7, 6, 5, 3, 2]).await;
}
