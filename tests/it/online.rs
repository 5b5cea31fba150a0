//! Who is online, as others see it, and what one device may do.

use serde_json::{Value, json};
use tidings::bus::{Envelope, Order};
use tidings::ids::UserId;
use tidings::ws::PRESENCE_TURNS;
use uuid::Uuid;

use crate::harness::client::{Client, Opening};
use crate::harness::cluster::{Cluster, user};
use crate::harness::process::{Process, Signal};
use crate::harness::{cluster_scenarios, scenarios, until};

scenarios! {
    friends_see_who_comes_and_goes,
    strangers_see_nothing,
    a_device_that_comes_back_replaces_its_older_session,
    a_session_that_was_replaced_takes_nothing_with_it,
    one_device_too_many_is_not_let_in ["MAX_DEVICES_PER_USER" = "2"],
}

cluster_scenarios! {
    one_whose_node_was_killed_is_offline_after_its_lease,
    one_whose_node_stands_still_is_offline_after_its_lease_and_comes_back,
    a_connection_that_was_given_up_replaces_nobody,
    who_lost_his_place_to_a_connection_that_was_given_up_comes_again,
}

/// One user as another one sees him; Null if he is left out.
async fn seen(cluster: &Cluster, at: usize, by: Uuid, of: Uuid) -> Value {
    let path = format!("/api/v1/presence?user_ids={of}");
    let answer = cluster.rest(at, by).get(&path).await.body(200);
    answer["presence"][0].clone()
}

/// Waits until he is seen as online, or offline, on every node.
async fn seen_as(cluster: &Cluster, by: Uuid, of: Uuid, online: bool) -> Value {
    let mut last = Value::Null;
    for at in 0..2 {
        let what = format!("node {at} shows online: {online}");
        last = until(&what, async || {
            let seen = seen(cluster, at, by, of).await;
            (seen["online"] == online).then_some(seen)
        })
        .await;
    }
    last
}

async fn friends_see_who_comes_and_goes(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    cluster.group(0, alice, &[bob]).await;
    // Until then nobody is said to have been seen.
    cluster.absence_is_certain().await;
    let never = seen(cluster, 0, alice, bob).await;
    assert_eq!(never["last_seen"], Value::Null);
    assert_eq!((&never["online"], &never["devices"]), (&json!(false), &json!([])));

    let phone = cluster.connect(1, bob).await;
    let online = seen_as(cluster, alice, bob, true).await;
    let device = json!({ "device_id": phone.device, "platform": "web" });
    assert_eq!(online["devices"], json!([device]));
    assert_eq!(online["user_id"], bob.to_string());
    let laptop = cluster.connect(0, bob).await;
    for at in 0..2 {
        let seen = seen(cluster, at, alice, bob).await;
        assert_eq!(seen["devices"].as_array().unwrap().len(), 2, "{seen}");
    }
    phone.close().await;
    until("one device is left", async || {
        let seen = seen(cluster, 0, alice, bob).await;
        (seen["devices"] == json!([{ "device_id": laptop.device, "platform": "web" }]))
            .then_some(())
    })
    .await;
    // Without a word.
    drop(laptop);
    let offline = seen_as(cluster, alice, bob, false).await;
    assert_eq!(offline["devices"], json!([]));
    assert!(offline["last_seen"].is_string(), "{offline}");
}

async fn strangers_see_nothing(cluster: &Cluster) {
    let (alice, bob, eve) = (user(), user(), user());
    let group = cluster.group(0, alice, &[bob]).await;
    let _at_bob = cluster.connect(0, bob).await;
    seen_as(cluster, alice, bob, true).await;
    for at in 0..2 {
        assert_eq!(seen(cluster, at, eve, bob).await, Value::Null);
        // Oneself, and nobody else.
        let path = format!("/api/v1/presence?user_ids={bob},{eve},{alice},{}", user());
        let all = cluster.rest(at, bob).get(&path).await.body(200);
        let mut ids: Vec<_> =
            all["presence"].as_array().unwrap().iter().map(|p| &p["user_id"]).collect();
        ids.sort_by_key(|id| id.to_string());
        let mut wanted = [json!(alice), json!(bob)];
        wanted.sort_by_key(Value::to_string);
        assert_eq!(ids, wanted.iter().collect::<Vec<_>>());
    }
    // One who left is a stranger.
    let path = format!("/api/v1/conversations/{group}/participants/{alice}");
    assert_eq!(cluster.rest(0, alice).delete(&path).await.status, 204);
    assert_eq!(seen(cluster, 1, alice, bob).await, Value::Null);
}

async fn same_device(cluster: &Cluster, at: usize, user: Uuid, device: &str) -> Client {
    let opening = Opening { device: device.into(), ..Opening::new(user) };
    Client::open(cluster.addr(at), opening).await.expect("the socket opens")
}

async fn a_device_that_comes_back_replaces_its_older_session(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let group = cluster.group(0, alice, &[bob]).await;
    let mut older = same_device(cluster, 0, bob, "phone").await;
    for at in [1, 0, 0, 1] {
        let younger = same_device(cluster, at, bob, "phone").await;
        let (code, reason) = older.closed().await;
        assert_eq!((code, reason.as_str()), (4409, r#"{"reason":"replaced"}"#));
        older = younger;
    }
    // Another device, and another user's device of the same name, are none of its business.
    let mut tablet = same_device(cluster, 0, bob, "tablet").await;
    let mut alices = same_device(cluster, 1, alice, "phone").await;
    let sent = cluster.send(0, alice, group, "hello").await;
    for device in [&mut older, &mut tablet, &mut alices] {
        assert_eq!(device.new_message().await, sent);
    }
}

async fn a_session_that_was_replaced_takes_nothing_with_it(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let group = cluster.group(0, alice, &[bob]).await;
    for round in 0..4 {
        let mut older = same_device(cluster, round, bob, "phone").await;
        let mut younger = same_device(cluster, round + 1, bob, "phone").await;
        older.closed().await;
        drop(older);
        let sent = cluster.send(0, alice, group, "still there?").await;
        younger.find("the message", |event| event["payload"]["message"]["id"] == sent["id"]).await;
        let seen = seen_as(cluster, alice, bob, true).await;
        assert_eq!(seen["devices"].as_array().unwrap().len(), 1, "{seen}");
        younger.close().await;
        seen_as(cluster, alice, bob, false).await;
    }
}

async fn one_device_too_many_is_not_let_in(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let group = cluster.group(0, alice, &[bob]).await;
    let mut first = cluster.connect(0, bob).await;
    let mut second = cluster.connect(1, bob).await;
    for at in 0..2 {
        let mut third = Client::handshake(cluster.addr(at), Opening::new(bob)).await.unwrap();
        let (code, reason) = third.closed().await;
        assert_eq!((code, reason.as_str()), (4429, r#"{"reason":"too_many_devices"}"#));
    }
    // Those that are there stay; a device that comes back is none too many.
    let mut again = same_device(cluster, 0, bob, &second.device).await;
    assert_eq!(second.closed().await.0, 4409);
    let sent = cluster.send(1, alice, group, "hello").await;
    assert_eq!(first.new_message().await, sent);
    assert_eq!(again.new_message().await, sent);
    // One that leaves makes room.
    again.close().await;
    until("there is room again", async || {
        let mut next = Client::handshake(cluster.addr(1), Opening::new(bob)).await.unwrap();
        next.try_event("hello").await.map(|_| next)
    })
    .await;
}

/// Of the cluster, and a third node that can be killed.
async fn third(cluster: &Cluster) -> (Process, std::net::SocketAddr) {
    Process::node(&cluster.ground.settings("third")).await
}

async fn one_whose_node_was_killed_is_offline_after_its_lease(cluster: &Cluster) {
    let (alice, bob, carol) = (user(), user(), user());
    cluster.group(0, alice, &[bob, carol]).await;
    let (node, addr) = third(cluster).await;
    let at_bob = Client::open(addr, Opening::new(bob)).await.unwrap();
    let _at_carol = cluster.connect(1, carol).await;
    cluster.absence_is_certain().await;
    seen_as(cluster, alice, bob, true).await;
    node.kill();
    drop(at_bob);
    let offline = seen_as(cluster, alice, bob, false).await;
    assert!(offline["last_seen"].is_string(), "no earlier than its begin: {offline}");
    seen_as(cluster, alice, carol, true).await;
}

async fn one_whose_node_stands_still_is_offline_after_its_lease_and_comes_back(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let group = cluster.group(0, alice, &[bob]).await;
    let (node, addr) = third(cluster).await;
    let mut at_bob = Client::open(addr, Opening::new(bob)).await.unwrap();
    cluster.absence_is_certain().await;
    seen_as(cluster, alice, bob, true).await;
    node.signal(Signal::STOP);
    seen_as(cluster, alice, bob, false).await;
    node.signal(Signal::CONT);
    seen_as(cluster, alice, bob, true).await;
    let sent = cluster.send(0, alice, group, "are you back?").await;
    at_bob.find("the message", |event| event["payload"]["message"]["id"] == sent["id"]).await;
    node.kill();
}

/// It still waited for its turn when the device was here again by another one, registered after that,
/// was taken for the younger, and had the live session closed for good.
async fn a_connection_that_was_given_up_replaces_nobody(cluster: &Cluster) {
    let alice = user();
    let busy = cluster.node(0).presence_turns.acquire_many(PRESENCE_TURNS as u32).await.unwrap();
    let opening = Opening { device: "phone".into(), ..Opening::new(alice) };
    let given_up = Client::handshake(cluster.addr(0), opening.clone()).await.expect("it is let in");
    let hub = &cluster.node(0).hub;
    until("it waits", async || (hub.sessions().len() == 1).then_some(())).await;
    drop(given_up);
    let mut here = Client::open(cluster.addr(1), opening).await.expect("the socket opens");
    drop(busy);
    until("the other is gone", async || hub.sessions().is_empty().then_some(())).await;
    here.drain().await;
}

/// It registered after the live one, and its client had left before: seen when nodes were drained.
async fn who_lost_his_place_to_a_connection_that_was_given_up_comes_again(cluster: &Cluster) {
    let alice = user();
    let mut here = cluster.connect(1, alice).await;
    let sessions = cluster.node(1).hub.sessions();
    let session = sessions.iter().find(|session| session.user_id.0 == alice).expect("his").id;
    let order = Envelope::order(UserId(alice), Order::ComeAgain(session));
    cluster.node(0).bus.publish(&[(UserId(alice), order.encode())]).await;
    assert_eq!(here.closed().await.0, 4003);
    cluster.connect(1, alice).await;
}
