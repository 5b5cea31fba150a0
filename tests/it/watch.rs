//! Who watches others is told when they come and go, wherever that is, as long as they share a
//! conversation.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::client::{Client, Opening};
use crate::harness::cluster::{Cluster, id, user};
use crate::harness::http::Rest;
use crate::harness::process::{Process, Signal};
use crate::harness::{cluster_scenarios, scenarios, until};

scenarios! {
    // So long a round that what is told at once is not found by looking.
    one_who_watches_is_told_who_comes_and_goes ["NODE_LEASE" = "9s"],
    a_new_list_replaces_the_old_one,
    only_those_who_share_a_conversation_are_told,
    a_list_outside_its_limits_is_refused,
    classic_sockets_watch_nobody,
    last_seen_is_told_and_outlives_a_restart,
}

cluster_scenarios! {
    one_whose_node_dies_is_told_to_be_gone,
}

async fn watch(client: &mut Client, users: &[Uuid]) -> Vec<Value> {
    let answer = client.command("watch_presence", json!({ "user_ids": users })).await.ok();
    answer["presence"].as_array().unwrap().clone()
}

/// The next presence event, which must be of this user.
async fn told(client: &mut Client, who: Uuid, online: bool) -> Value {
    let event = client.event("presence", "someone comes or goes").await;
    assert_eq!((id(&event["user_id"]), &event["online"]), (who, &json!(online)), "{event}");
    event
}

async fn nothing_told(client: &mut Client) {
    let rest = client.drain().await;
    assert_eq!(rest.iter().find(|event| event["type"] == "presence"), None);
}

async fn one_who_watches_is_told_who_comes_and_goes(cluster: &Cluster) {
    let (alice, bob, carol) = (user(), user(), user());
    cluster.group(0, alice, &[bob, carol]).await;
    cluster.absence_is_certain().await;
    let _at_carol = cluster.connect(1, carol).await;
    let mut at_alice = cluster.connect(0, alice).await;
    let mut found = watch(&mut at_alice, &[bob, carol]).await;
    found.sort_by_key(|found| found["online"].as_bool());
    assert_eq!((id(&found[0]["user_id"]), &found[0]["online"]), (bob, &json!(false)));
    assert_eq!((id(&found[1]["user_id"]), &found[1]["online"]), (carol, &json!(true)));
    assert_eq!(found[1]["devices"][0]["platform"], "web");
    let same = format!("/api/v1/presence?user_ids={carol}");
    let same = cluster.rest(1, alice).get(&same).await.body(200);
    assert_eq!(found[1], same["presence"][0], "the same as by asking");

    let started = Instant::now();
    let phone = cluster.connect(1, bob).await;
    let event = told(&mut at_alice, bob, true).await;
    assert_eq!(event["last_seen"], Value::Null);
    // A second device changes nothing, nor does the end of one of two.
    let tablet = cluster.connect(0, bob).await;
    phone.close().await;
    tablet.close().await;
    let event = told(&mut at_alice, bob, false).await;
    assert!(event["last_seen"].is_string(), "{event}");
    let _again = cluster.connect(0, bob).await;
    told(&mut at_alice, bob, true).await;
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    nothing_told(&mut at_alice).await;
}

async fn a_new_list_replaces_the_old_one(cluster: &Cluster) {
    let (alice, bob, carol) = (user(), user(), user());
    cluster.group(0, alice, &[bob, carol]).await;
    cluster.absence_is_certain().await;
    let mut at_alice = cluster.connect(0, alice).await;
    watch(&mut at_alice, &[bob]).await;
    watch(&mut at_alice, &[carol, carol]).await;
    let at_bob = cluster.connect(1, bob).await;
    let at_carol = cluster.connect(1, carol).await;
    told(&mut at_alice, carol, true).await;
    assert_eq!(watch(&mut at_alice, &[]).await, [] as [Value; 0]);
    at_bob.close().await;
    at_carol.close().await;
    let gone = format!("/api/v1/presence?user_ids={carol}");
    until("she is gone", async || {
        let found = cluster.rest(0, alice).get(&gone).await.body(200);
        (found["presence"][0]["online"] == false).then_some(())
    })
    .await;
    nothing_told(&mut at_alice).await;
    assert_eq!(watch(&mut at_alice, &[alice]).await[0]["online"], true, "oneself, too");
}

async fn only_those_who_share_a_conversation_are_told(cluster: &Cluster) {
    let (alice, bob, carol, dave, stranger) = (user(), user(), user(), user(), user());
    let group = cluster.group(0, alice, &[bob]).await;
    cluster.group(0, alice, &[carol]).await;
    cluster.group(0, dave, &[bob]).await;
    cluster.absence_is_certain().await;
    let mut at_alice = cluster.connect(0, alice).await;
    let mut at_stranger = cluster.connect(1, stranger).await;
    assert_eq!(watch(&mut at_stranger, &[alice, bob]).await, [] as [Value; 0]);
    assert_eq!(watch(&mut at_alice, &[bob, carol, stranger]).await.len(), 2);
    let mut at_dave = cluster.connect(0, dave).await;
    watch(&mut at_dave, &[bob]).await;
    let at_bob = cluster.connect(1, bob).await;
    told(&mut at_alice, bob, true).await;
    told(&mut at_dave, bob, true).await;
    // It ends when they share none any more.
    let path = format!("/api/v1/conversations/{group}/participants/{bob}");
    assert_eq!(cluster.rest(1, bob).delete(&path).await.status, 204);
    at_bob.close().await;
    // He still knows him, and is told by the same step that passes her over.
    told(&mut at_dave, bob, false).await;
    let _at_carol = cluster.connect(1, carol).await;
    told(&mut at_alice, carol, true).await;
    nothing_told(&mut at_alice).await;
    nothing_told(&mut at_stranger).await;
}

async fn a_list_outside_its_limits_is_refused(cluster: &Cluster) {
    let mut socket = cluster.connect(0, user()).await;
    let many: Vec<Uuid> = (0..101).map(|_| user()).collect();
    let refused = socket.command("watch_presence", json!({ "user_ids": many })).await;
    refused.refused(422, "invalid", Some("user_ids"));
    assert_eq!(watch(&mut socket, &many[1..]).await, [] as [Value; 0]);
    for (payload, field) in [
        (json!({}), "user_ids"),
        (json!({ "user_ids": "all" }), "user_ids"),
        (json!({ "user_ids": ["x"] }), "user_ids[0]"),
    ] {
        let refused = socket.command("watch_presence", payload).await;
        refused.refused(400, "malformed", Some(field));
    }
}

async fn classic_sockets_watch_nobody(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    cluster.group(0, alice, &[bob]).await;
    let mut at_alice = cluster.connect_classic(0, alice).await;
    let refused = at_alice.command("watch_presence", json!({ "user_ids": [bob] })).await;
    refused.refused(403, "forbidden", None);
}

async fn last_seen_is_told_and_outlives_a_restart(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    // A node of its own, beside those of the cluster.
    let settings = cluster.ground.settings("third");
    let path = format!("/api/v1/presence?user_ids={bob}");
    let seen = async |addr| {
        let rest = Rest::new(addr, Some(alice));
        until("it is known when he was seen", async || {
            let found = rest.get(&path).await.body(200);
            found["presence"][0]["last_seen"].as_str().map(str::to_owned)
        })
        .await
    };
    let (mut node, addr) = Process::node(&settings).await;
    let group = json!({ "kind": "group", "participants": [bob] });
    Rest::new(addr, Some(alice)).post("/api/v1/conversations", group).await.body(201);
    Client::open(addr, Opening::new(bob)).await.unwrap().close().await;
    let before = seen(addr).await;
    node.signal(Signal::TERM);
    assert!(node.exit().await.success());
    let (_node, addr) = Process::node(&settings).await;
    assert_eq!(seen(addr).await, before);
}

/// Nobody says goodbye for a node that dies: its lease runs out, and others look.
async fn one_whose_node_dies_is_told_to_be_gone(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    cluster.group(0, alice, &[bob]).await;
    cluster.absence_is_certain().await;
    let (node, addr) = Process::node(&cluster.ground.settings("third")).await;
    let at_bob = Client::open(addr, Opening::new(bob)).await.unwrap();
    let mut at_alice = cluster.connect(0, alice).await;
    assert_eq!(watch(&mut at_alice, &[bob]).await[0]["online"], true);
    node.kill();
    drop(at_bob);
    let event = told(&mut at_alice, bob, false).await;
    assert!(event["last_seen"].is_string(), "no earlier than its begin: {event}");
}
