//! `tidings verify`: what it says of sound stores, and that it sees what is broken.

use std::process::ExitStatus;
use std::time::Duration;

use crate::harness::client::{Client, Opening};
use crate::harness::cluster::{Cluster, Ground, user};
use crate::harness::process::{Process, Signal};
use crate::harness::scenarios;

scenarios! {
    a_life_of_changes_is_sound,
    what_is_broken_is_named ["OFFLINE_AFTER" = "1s"],
}

async fn verify(ground: &Ground) -> (ExitStatus, String) {
    let mut process = Process::start(&["verify"], &ground.settings("0"));
    let status = process.exit().await;
    assert_eq!(process.errors(), "");
    (status, process.output())
}

async fn a_life_of_changes_is_sound(cluster: &Cluster) {
    let (alice, bob, carol) = (user(), user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let path = format!("/api/v1/conversations/{conversation}");
    let message = cluster.send(0, alice, conversation, "one").await;
    let body = serde_json::json!({ "user_ids": [carol] });
    cluster.rest(0, alice).post(&format!("{path}/participants"), body).await.body(200);
    let body = serde_json::json!({ "title": "Another" });
    cluster.rest(1, alice).patch(&path, body).await.body(200);
    let of = format!("/api/v1/messages/{}", message["id"].as_str().unwrap());
    let edit = serde_json::json!({ "content": "two" }).to_string();
    cluster.rest(1, alice).call("PUT", &of, &edit).await.body(200);
    at_bob.new_message().await;
    cluster.rest(0, bob).call("POST", &format!("{of}/read"), "").await;
    cluster.rest(0, bob).delete(&format!("{path}/participants/{bob}")).await;
    cluster.send(1, carol, conversation, "three").await;
    cluster.settled().await;
    let (status, output) = verify(&cluster.ground).await;
    assert_eq!(status.code(), Some(0), "{output}");
    assert!(output.lines().all(|line| line.starts_with("ok ") || line.starts_with("note ")));
    if !cluster.is_embedded() {
        assert!(output.contains("0 of 1 presence entries"), "{output}");
        // One of a node that died is counted, and is no fault.
        let (mut dying, addr) = Process::node(&cluster.ground.settings("2")).await;
        let _at_carol = Client::open(addr, Opening::new(carol)).await.unwrap();
        dying.signal(Signal::KILL);
        dying.exit().await;
        crate::harness::until("its lease ran out", async || {
            let (status, output) = verify(&cluster.ground).await;
            assert_eq!(status.code(), Some(0), "{output}");
            output.contains("1 of 2 presence entries").then_some(())
        })
        .await;
    }
}

async fn what_is_broken_is_named(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    for text in ["one", "two", "three"] {
        cluster.send(0, alice, conversation, text).await;
    }
    cluster.settled().await;
    let broken = async |change: &str, rule: &str, repair: &str| {
        cluster.ground.sql(change).await;
        let store = cluster.ground.store().await;
        let verdicts = store.verify(Duration::ZERO).await.unwrap();
        store.close().await;
        let broken: Vec<_> = verdicts.iter().filter(|verdict| !verdict.broken.is_empty()).collect();
        assert!(broken.iter().any(|verdict| verdict.rule == rule), "{change}: {broken:?}");
        assert!(broken.iter().all(|verdict| verdict.broken[0].contains('-')), "{broken:?}");
        cluster.ground.sql(repair).await;
    };
    broken(
        "update conversations set last_seq = last_seq + 1",
        "the head of each log is a change that is there",
        "update conversations set last_seq = last_seq - 1",
    )
    .await;
    broken(
        "update conversations set last_seq = last_seq - 1",
        "no message is above the head of its log",
        "update conversations set last_seq = last_seq + 1",
    )
    .await;
    broken(
        "update messages set seq = 9, change_seq = 9 where seq = 3;
         update conversations set last_seq = 9",
        "a log in which only messages were sent has no gap",
        "update messages set seq = 3, change_seq = 3 where seq = 9;
         update conversations set last_seq = 4",
    )
    .await;
    broken(
        "update messages set change_seq = 1 where seq = 2",
        "no message changed before it was sent",
        "update messages set change_seq = 2 where seq = 2",
    )
    .await;
    broken(
        "update conversations set member_count = 7",
        "conversations count their members",
        "update conversations set member_count = 2",
    )
    .await;
    broken(
        "update participants set read_seq = 4, delivered_seq = 3",
        "members read no more than was delivered to them, and nothing above the head",
        "update participants set read_seq = 3",
    )
    .await;
    broken(
        "update participants set change_seq = 99",
        "members join, change and leave within the log",
        "update participants set change_seq = 1",
    )
    .await;
    broken(
        "update participants set settled_seq = 99",
        "members are settled from where they joined up to the head",
        "update participants set settled_seq = 4",
    )
    .await;
    broken(
        "update participants set settled_seq = 2",
        "who lacks a message for long is known as a laggard",
        "update participants set settled_seq = 4",
    )
    .await;
    // And the program says so.
    cluster.ground.sql("update conversations set last_message_id = null").await;
    let (status, output) = verify(&cluster.ground).await;
    assert_eq!(status.code(), Some(1), "{output}");
    let line = "BROKEN  the last message is the one shown as such";
    assert!(output.lines().any(|found| found == line), "{output}");
    assert!(output.contains(&conversation.to_string()), "{output}");
    cluster
        .ground
        .sql("update conversations set last_message_id = (select id from messages where seq = 4)")
        .await;
}
