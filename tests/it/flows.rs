//! What a node is used for, once around: for tests about what it stands on.

use futures_util::future::join_all;
use serde_json::json;
use tidings::app::App;
use tidings::config::Config;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::harness::client::{Client, Opening};
use crate::harness::cluster::{Settings, id, text, user};
use crate::harness::http::Rest;
use crate::harness::until;

/// How many groups talk at once.
const GROUPS: usize = 6;
const MESSAGES: usize = 10;

/// Starts a node with these settings, uses it from several sides at once, and stops it. Fails if
/// anything is refused, or does not settle.
pub async fn all(settings: &Settings) {
    let config = Config::from_lookup(|name| settings.get(name).cloned()).unwrap();
    let app = App::build(config).await.expect("the node starts");
    let (addr, node) = (app.addr(), app.node().clone());
    let stop = CancellationToken::new();
    let running = TaskTracker::new().spawn(app.run(stop.clone().cancelled_owned()));
    join_all((0..GROUPS).map(|_| group(addr))).await;
    until("all is settled", async || {
        let (outbox, _) = node.store.outbox_state().await.ok()?;
        let (laggards, _) = node.store.laggards_state().await.ok()?;
        (outbox == 0 && laggards == 0).then_some(())
    })
    .await;
    node.store.expire_receipts(std::time::Duration::ZERO, 1_000).await.unwrap();
    stop.cancel();
    assert!(running.await.unwrap(), "it stops in order");
}

async fn group(addr: std::net::SocketAddr) {
    let (ann, ben, cem) = (user(), user(), user());
    let rest = |user: Uuid| Rest::new(addr, Some(user));
    let mut socket = Client::open(addr, Opening::new(ben)).await.unwrap();
    let body = json!({ "kind": "group", "title": "Friends", "participants": [ben] });
    let made = rest(ann).post("/api/v1/conversations", body).await.body(201);
    let group = id(&made["id"]);
    let path = format!("/api/v1/conversations/{group}");
    let mut sent = Vec::new();
    for at in 0..MESSAGES {
        let body = text(group, &format!("{at}"));
        sent.push(rest(ann).post("/api/v1/messages", body).await.body(201));
    }
    for message in &sent {
        let event = socket.event("new_message", "each message arrives").await;
        assert_eq!(event["message"]["id"], message["id"]);
    }
    let at = |at: usize| format!("/api/v1/messages/{}", sent[at]["id"].as_str().unwrap());
    rest(ann).call("PUT", &at(0), r#"{"content":"edited"}"#).await.body(200);
    assert_eq!(rest(ann).delete(&at(1)).await.status, 200);
    let edits = rest(ben).get(&format!("{}/edits", at(0))).await.body(200);
    assert_eq!(edits["edits"].as_array().map(Vec::len), Some(1), "{edits}");
    let mut reply = text(group, "a reply");
    reply["parent_message_id"] = sent[2]["id"].clone();
    rest(ben).post("/api/v1/messages", reply).await.body(201);
    assert_eq!(rest(ben).post(&format!("{}/read", at(9)), json!({})).await.status, 204);
    rest(ann).get(&format!("{}/receipts", at(3))).await.body(200);
    let added = json!({ "user_ids": [cem], "with_history": true });
    rest(ann).post(&format!("{path}/participants"), added).await.body(200);
    rest(ann).patch(&path, json!({ "title": "Others" })).await.body(200);
    rest(ann).get("/api/v1/conversations").await.body(200);
    let before = sent[9]["id"].as_str().unwrap();
    let page =
        rest(cem).get(&format!("{path}/messages?limit=5&before_id={before}")).await.body(200);
    assert_eq!(page["messages"].as_array().map(Vec::len), Some(5));
    let sync = json!({ "conversations": {}, "after": null, "to": null, "limit": 200 });
    let synced = rest(cem).post("/api/v1/sync", sync).await.body(200);
    assert_eq!(synced["conversations"][0]["status"], "changed", "{synced}");
    rest(ann).get(&format!("/api/v1/presence?user_ids={ben}")).await.body(200);
    assert_eq!(rest(ann).delete(&format!("{path}/participants/{cem}")).await.status, 204);
}
