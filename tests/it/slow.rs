//! A client that does not read costs a bounded amount of memory, and loses nothing for good.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::client::{Client, Opening};
use crate::harness::cluster::{Cluster, text, user};
use crate::harness::metrics::metric;
use crate::harness::{scenarios, until, until_within};

scenarios! {
    a_full_client_that_stops_reading_is_told_to_read_again
        ["WS_CLIENT_BUFFER_SIZE" = "16", "WS_CLIENT_BUFFER_BYTES" = "64KiB"],
    a_classic_client_that_stops_reading_is_closed
        ["WS_CLIENT_BUFFER_SIZE" = "16", "WS_CLIENT_BUFFER_BYTES" = "64KiB"],
    what_waits_for_a_client_and_what_gives_way_is_shown
        ["WS_CLIENT_BUFFER_SIZE" = "16", "WS_CLIENT_BUFFER_BYTES" = "64KiB"],
    one_slow_client_does_not_hold_up_the_others
        ["WS_CLIENT_BUFFER_SIZE" = "64", "WS_CLIENT_BUFFER_BYTES" = "256KiB"],
    a_client_that_sends_many_at_once_is_not_slow ["WS_CLIENT_BUFFER_SIZE" = "16"],
    a_client_that_sends_large_messages_at_once_is_not_slow,
}

/// Bytes of a queue, by the settings above.
const BOUND: u32 = 64 << 10;

/// A device that the kernel keeps little for.
async fn slow(cluster: &Cluster, at: usize, user: Uuid, classic: bool) -> Client {
    let opening = Opening { classic, lazy: true, ..Opening::new(user) };
    Client::open(cluster.addr(at), opening).await.expect("the socket opens")
}

/// Sends until a queue on that node overflows; returns how many were sent.
async fn flood(cluster: &Cluster, at: usize, by: Uuid, conversation: Uuid) -> usize {
    let content = "x".repeat(15 << 10);
    for sent in 1.. {
        let sends = (0..8).map(|at| cluster.send(at, by, conversation, &content));
        join_all(sends).await;
        for session in cluster.node(at).hub.sessions() {
            let bytes = session.queue.bytes();
            // One answer may stand above the stored events, a hello or a resync.
            assert!(bytes <= BOUND + 1_024, "{bytes} bytes wait for a client that does not read");
        }
        if metric(cluster.addr(at), "tidings_slow_consumers_total").await > 0.0 {
            return sent * 8;
        }
        assert!(sent < 200, "{} MiB were sent, and no queue is full", sent * 8 * 15 / 1_024);
    }
    unreachable!()
}

async fn a_full_client_that_stops_reading_is_told_to_read_again(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_bob = slow(cluster, 1, bob, false).await;
    let sent = flood(cluster, 1, alice, conversation).await;
    let resync = at_bob.event("resync", "he is told").await;
    assert_eq!(resync.get("conversations"), None, "all of them");
    // And after it events flow again.
    at_bob.read_for(Duration::from_millis(200)).await;
    let marker = cluster.send(0, alice, conversation, "do you read again?").await;
    at_bob.find("a new message", |event| event["payload"]["message"]["id"] == marker["id"]).await;
    let path = format!("/api/v1/conversations/{conversation}/messages?limit=200");
    let history = cluster.rest(1, bob).get(&path).await.body(200);
    let read = history["messages"].as_array().unwrap().len();
    assert_eq!(read, (sent + 1).min(200), "what was not delivered can be read");
}

async fn a_classic_client_that_stops_reading_is_closed(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_bob = slow(cluster, 1, bob, true).await;
    flood(cluster, 1, alice, conversation).await;
    let (code, reason) = at_bob.closed().await;
    assert_eq!(code, 4001);
    let reason: Value = serde_json::from_str(&reason).unwrap();
    assert!(reason["retry_ms"].is_number(), "it may come back: {reason}");
}

async fn what_waits_for_a_client_and_what_gives_way_is_shown(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let mut groups = Vec::new();
    for _ in 0..8 {
        groups.push(cluster.group(0, alice, &[bob]).await);
    }
    let mut at_bob = slow(cluster, 1, bob, false).await;
    let waiting = async || metric(cluster.addr(1), "tidings_socket_queue_bytes").await;
    let content = "x".repeat(15 << 10);
    let rest = cluster.rest(0, alice);
    until_within(Duration::from_secs(60), "something gives way", async || {
        if waiting().await == 0.0 {
            // The kernel takes it still.
            let sends = (0..8).map(|_| cluster.send(0, alice, groups[0], &content));
            join_all(sends).await;
            return None;
        }
        // More events than have room.
        for group in &groups {
            let path = format!("/api/v1/conversations/{group}/typing");
            for is_typing in [false, true, false] {
                let told = rest.post(&path, json!({ "is_typing": is_typing })).await;
                assert_eq!(told.status, 204, "{told:?}");
            }
        }
        let dropped = metric(cluster.addr(1), "tidings_socket_queue_dropped_total").await;
        (dropped > 0.0).then_some(())
    })
    .await;
    until("he has read all", async || {
        at_bob.read_for(Duration::from_millis(100)).await;
        (waiting().await == 0.0).then_some(())
    })
    .await;
}

async fn one_slow_client_does_not_hold_up_the_others(cluster: &Cluster) {
    let (alice, bob, carol) = (user(), user(), user());
    let conversation = cluster.group(0, alice, &[bob, carol]).await;
    let _stuck = slow(cluster, 1, bob, false).await;
    let mut at_carol = cluster.connect(1, carol).await;
    let mut at_alice = cluster.connect(0, alice).await;
    let content = "x".repeat(15 << 10);
    for _ in 0..150 {
        let sent = at_alice.command("send_message", text(conversation, &content)).await.ok();
        let arrived = at_carol.new_message().await;
        assert_eq!(arrived["seq"], sent["message"]["seq"]);
    }
    let rest = at_carol.drain().await;
    assert!(rest.iter().all(|event| event["type"] == "conversation_updated"), "{rest:?}");
}

/// The answers of a whole batch come at once, and more of them than the queue may hold.
async fn a_client_that_sends_many_at_once_is_not_slow(cluster: &Cluster) {
    send_at_once(cluster, 100, "a batch").await;
}

async fn a_client_that_sends_large_messages_at_once_is_not_slow(cluster: &Cluster) {
    send_at_once(cluster, 100, &"x".repeat(15 << 10)).await;
}

/// Reads nothing until all is sent, and then everything.
async fn send_at_once(cluster: &Cluster, count: usize, content: &str) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_alice = slow(cluster, 0, alice, false).await;
    for _ in 0..3 {
        let mut refs = Vec::new();
        for _ in 0..count {
            refs.push(at_alice.submit("send_message", text(conversation, content)).await);
        }
        for reference in refs {
            at_alice.answer(&reference).await.ok();
        }
    }
}
