//! The real binary: how it is asked to stop, what a crash leaves, what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::handed::{Handed, users};
use crate::harness::client::{Client, Opening};
use crate::harness::cluster::{Ground, Kind, id, on_ground, text, user};
use crate::harness::http::Rest;
use crate::harness::metrics::metric;
use crate::harness::process::{Process, Signal};
use crate::harness::{free_port, until};

/// Makes tests of what starts its nodes by itself, on a folder and on real services.
macro_rules! on_both {
    ($($name:ident $([$($setting:literal = $value:literal),+ $(,)?])?),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                use crate::harness::cluster::{Kind, on_ground};
                on_ground(Kind::Embedded, &[$($(($setting, $value)),+)?], super::$name).await;
            })+
        }

        mod cluster {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                use crate::harness::cluster::{Kind, on_ground};
                on_ground(Kind::Cluster, &[$($(($setting, $value)),+)?], super::$name).await;
            })+
        }
    };
}

on_both! {
    a_node_that_is_told_to_stop_says_goodbye_and_exits_in_order ["DRAIN_TIME" = "500ms"],
    a_node_that_drains_is_not_ready_and_still_serves ["DRAIN_GRACE" = "3s"],
    a_drain_can_be_watched_to_its_end ["DRAIN_GRACE" = "0s", "DRAIN_TIME" = "3s"],
    a_second_signal_ends_it_at_once ["DRAIN_GRACE" = "60s"],
    what_was_acknowledged_survives_a_crash,
    tables_are_laid_by_several_at_once ["MIGRATE_ON_START" = "false"],
    logs_are_json_and_hold_no_content ["LOG_LEVEL" = "debug"],
    deep_nesting_does_not_bring_it_down,
}

async fn group(rest: &Rest, members: &[Uuid]) -> Uuid {
    let body = json!({ "kind": "group", "participants": members });
    id(&rest.post("/api/v1/conversations", body).await.body(201)["id"])
}

async fn history(rest: &Rest, conversation: Uuid) -> Vec<Value> {
    let (mut all, mut query) = (Vec::new(), String::from("?limit=200"));
    loop {
        let path = format!("/api/v1/conversations/{conversation}/messages{query}");
        let page = rest.get(&path).await.body(200);
        all.extend_from_slice(page["messages"].as_array().unwrap());
        if page["has_more"] == false {
            return all;
        }
        query = format!("?limit=200&before_id={}", all.last().unwrap()["id"].as_str().unwrap());
    }
}

async fn a_node_that_is_told_to_stop_says_goodbye_and_exits_in_order(ground: &Arc<Ground>) {
    for signal in [Signal::TERM, Signal::INT] {
        let (mut node, addr) = Process::node(&ground.settings("0")).await;
        let (alice, bob) = (user(), user());
        let conversation = group(&Rest::new(addr, Some(alice)), &[bob]).await;
        let mut at_alice = Client::open(addr, Opening::new(alice)).await.unwrap();
        let classic = Opening { classic: true, ..Opening::new(bob) };
        let mut at_bob = Client::open(addr, classic).await.unwrap();
        at_alice.send(conversation, "before the end").await;
        at_bob.new_message().await;
        node.signal(signal);
        let told = at_alice.event("reconnect", "one who knows it is told when").await;
        assert!(told["after_ms"].is_number(), "{told}");
        for client in [&mut at_alice, &mut at_bob] {
            let (code, reason) = client.closed().await;
            assert_eq!(code, 1012);
            let reason: Value = serde_json::from_str(&reason).unwrap();
            assert!(reason["retry_ms"].is_number(), "they are to come back: {reason}");
        }
        let status = node.exit().await;
        assert_eq!(status.code(), Some(0), "{}", node.errors());
    }
    let store = ground.store().await;
    assert_eq!(store.outbox_state().await.unwrap().0, 0, "nothing is left behind");
    assert_eq!(store.laggards_state().await.unwrap().0, 0, "nothing is left behind");
    store.close().await;
}

async fn a_node_that_drains_is_not_ready_and_still_serves(ground: &Arc<Ground>) {
    let (mut node, addr) = Process::node(&ground.settings("0")).await;
    let (alice, bob) = (user(), user());
    let rest = Rest::new(addr, Some(alice));
    let conversation = group(&rest, &[bob]).await;
    let mut at_alice = Client::open(addr, Opening::new(alice)).await.unwrap();
    rest.get("/ready").await.body(200);
    node.signal(Signal::TERM);
    let ready = until("it is not ready", async || {
        let ready = rest.get("/ready").await;
        (ready.status == 503).then_some(ready.json())
    })
    .await;
    assert_eq!((&ready["status"], &ready["stopping"]), (&json!("not_ready"), &json!(true)));
    rest.get("/health").await.body(200);
    // Until the load balancer has noticed, requests and commands are served; sockets are not opened.
    rest.post("/api/v1/messages", text(conversation, "by REST")).await.body(201);
    at_alice.send(conversation, "by socket").await;
    let refused = Client::open(addr, Opening::new(bob)).await.err().expect("it is refused");
    assert_eq!((refused.status, &refused.problem["code"]), (503, &json!("unavailable")));
    assert_eq!(at_alice.closed().await.0, 1012);
    assert_eq!(node.exit().await.code(), Some(0), "{}", node.errors());
}

async fn a_drain_can_be_watched_to_its_end(ground: &Arc<Ground>) {
    let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let settings = ground.settings_with("0", &[("ADMIN_ADDR", &admin.to_string())]);
    let (mut node, addr) = Process::node(&settings).await;
    let mut at_alice = Client::open(addr, Opening::new(user())).await.unwrap();
    assert_eq!(metric(admin, "tidings_draining").await, 0.0);
    node.signal(Signal::TERM);
    until("it listens no more", async || {
        tokio::net::TcpStream::connect(addr).await.is_err().then_some(())
    })
    .await;
    assert_eq!(metric(admin, "tidings_draining").await, 1.0, "its metrics outlive its door");
    assert_eq!(at_alice.closed().await.0, 1012);
    assert_eq!(node.exit().await.code(), Some(0), "{}", node.errors());
}

async fn a_second_signal_ends_it_at_once(ground: &Arc<Ground>) {
    let (mut node, addr) = Process::node(&ground.settings("0")).await;
    let (alice, bob) = (user(), user());
    let rest = Rest::new(addr, Some(alice));
    let conversation = group(&rest, &[bob]).await;
    node.signal(Signal::TERM);
    until("it drains", async || (rest.get("/ready").await.status == 503).then_some(())).await;
    let sent = rest.post("/api/v1/messages", text(conversation, "the last one")).await.body(201);
    let started = Instant::now();
    node.signal(Signal::INT);
    let status = node.exit_within(Duration::from_secs(3)).await;
    assert_eq!(status.code(), Some(1), "it says that it did not end in order");
    println!("it took {:?}", started.elapsed());
    let (_node, addr) = Process::node(&ground.settings("0")).await;
    let rest = Rest::new(addr, Some(alice));
    assert_eq!(history(&rest, conversation).await, [sent]);
}

/// What a client heard of until its socket ended.
#[derive(Default)]
struct Heard {
    /// By id.
    acknowledged: BTreeMap<Uuid, Value>,
    received: BTreeSet<Uuid>,
}

async fn heard(mut client: Client) -> Heard {
    let mut heard = Heard::default();
    while let Some(mut event) = client.try_next().await {
        let mut message = event["payload"]["message"].take();
        match event["type"].as_str() {
            Some("ok") => {
                heard.acknowledged.insert(id(&message["id"]), message.take());
            }
            Some("new_message") => {
                heard.received.insert(id(&message["id"]));
            }
            _ => {}
        }
    }
    heard
}

async fn what_was_acknowledged_survives_a_crash(ground: &Arc<Ground>) {
    const SENDERS: usize = 8;
    const EACH: usize = 40;
    let (node, addr) = Process::node(&ground.settings("0")).await;
    let senders: Vec<Uuid> = (0..SENDERS).map(|_| user()).collect();
    let conversation = group(&Rest::new(addr, Some(senders[0])), &senders[1..]).await;
    // Many at a time, so that the crash meets batches in all states.
    let mut clients = Vec::new();
    for sender in &senders {
        clients.push(Client::open(addr, Opening::new(*sender)).await.unwrap());
    }
    let body = |n: usize| {
        let mut body = text(conversation, &format!("message {n}"));
        body["client_message_id"] = format!("c-{n}").into();
        body
    };
    for client in &mut clients {
        for n in 0..EACH {
            client.submit("send_message", body(n)).await;
        }
    }
    clients[0].find("an acknowledgement", |event| event["ref"] == "r20").await;
    node.kill();
    let heard = join_all(clients.into_iter().map(heard)).await;
    let acknowledged: BTreeMap<&Uuid, &Value> =
        heard.iter().flat_map(|heard| &heard.acknowledged).collect();
    println!("{} of {} were acknowledged", acknowledged.len(), SENDERS * EACH);

    let (mut node, addr) = Process::node(&ground.settings("0")).await;
    let rest = Rest::new(addr, Some(senders[0]));
    let stored = history(&rest, conversation).await;
    let by_id: BTreeMap<Uuid, &Value> = stored.iter().map(|m| (id(&m["id"]), m)).collect();
    for (id, message) in &acknowledged {
        assert_eq!(by_id.get(id), Some(message), "it was acknowledged");
    }
    let seqs: BTreeSet<i64> = stored.iter().map(|m| m["seq"].as_i64().unwrap()).collect();
    assert_eq!(seqs, (2..).take(stored.len()).collect(), "no gap, nothing twice");
    // Clients that heard nothing send again, and nothing is there twice.
    for n in 0..EACH {
        let reply = rest.post("/api/v1/messages", body(n)).await;
        assert!([200, 201].contains(&reply.status), "{}", reply.text);
    }
    let again = history(&rest, conversation).await;
    let own = again.iter().filter(|m| m["sender_id"] == senders[0].to_string());
    let own: Vec<_> = own.map(|m| m["client_message_id"].as_str().unwrap()).collect();
    assert_eq!((own.len(), own.iter().collect::<BTreeSet<_>>().len()), (EACH, EACH));

    // Nobody came back: what did not reach a member's socket is handed over for him, once the lease
    // of what the dead process left has run out.
    let mut lacking = BTreeSet::new();
    for message in &stored {
        for (member, heard) in senders.iter().zip(&heard) {
            let message_id = id(&message["id"]);
            if message["sender_id"] != member.to_string() && !heard.received.contains(&message_id) {
                lacking.insert((message_id, *member));
            }
        }
    }
    println!("{} are to be handed over", lacking.len());
    let mut handed = Handed::over(ground);
    let what = "what reached no socket is handed over";
    let all = |records: &[Value]| {
        let message = |record: &Value| id(&record["value"]["message"]["id"]);
        let told = records.iter().flat_map(|r| users(r).into_iter().map(move |u| (message(r), u)));
        lacking.is_subset(&told.collect())
    };
    handed.until(what, all).await;
    node.signal(Signal::TERM);
    assert_eq!(node.exit().await.code(), Some(0), "{}", node.errors());
}

async fn tables_are_laid_by_several_at_once(ground: &Arc<Ground>) {
    for _ in 0..2 {
        let settings = ground.settings("0");
        let mut all: Vec<_> = (0..3).map(|_| Process::start(&["migrate"], &settings)).collect();
        for process in &mut all {
            let status = process.exit().await;
            assert_eq!(status.code(), Some(0), "{}", process.errors());
            assert_eq!(process.output(), "the tables are those of this release");
        }
    }
    let (mut node, addr) = Process::node(&ground.settings("0")).await;
    Rest::new(addr, None).get("/ready").await.body(200);
    node.signal(Signal::TERM);
    assert_eq!(node.exit().await.code(), Some(0), "{}", node.errors());
}

async fn logs_are_json_and_hold_no_content(ground: &Arc<Ground>) {
    let mut settings = ground.settings("0");
    settings.insert("LOG_FORMAT".into(), "json".into());
    let (mut node, addr) = Process::node(&settings).await;
    let (alice, bob, carol) = (user(), user(), user());
    let rest = Rest::new(addr, Some(alice));
    let conversation = group(&rest, &[bob, carol]).await;
    let mut at_alice = Client::open(addr, Opening::new(alice)).await.unwrap();
    let mut at_bob = Client::open(addr, Opening::new(bob)).await.unwrap();
    let secret = "the-cat-is-called-Schnurr";
    let mut body = text(conversation, secret);
    body["metadata"] = json!({ "note": secret });
    body["client_message_id"] = json!("c-1");
    at_alice.command("send_message", body.clone()).await.ok();
    at_bob.new_message().await;
    rest.patch(&format!("/api/v1/conversations/{conversation}"), json!({ "title": secret })).await;
    // Also where things go wrong.
    body["content"] = format!("{secret} and more").into();
    at_alice.command("send_message", body.clone()).await.refused(
        422,
        "idempotency_mismatch",
        Some("client_message_id"),
    );
    body["message_type"] = secret.into();
    rest.post("/api/v1/messages", body).await.refused(400, "malformed", Some("message_type"));
    at_bob.send_text(&format!("{{\"type\":\"{secret}\"}}")).await;
    at_bob.send_text(secret).await;
    at_bob.drain().await;
    rest.get(&format!("/api/v1/{secret}?q={secret}")).await.refused(404, "not_found", None);
    drop((at_alice, at_bob));
    node.signal(Signal::TERM);
    assert_eq!(node.exit().await.code(), Some(0), "{}", node.errors());
    assert!(!node.errors().contains(secret), "{}", node.errors());
    assert!(!node.output().contains(secret));
    let logs = node.logs();
    assert!(logs.len() > 5, "{logs:?}");
    for line in &logs {
        for key in ["level", "ts", "caller", "msg"] {
            assert!(line[key].is_string(), "{key} of {line}");
        }
        let level = line["level"].as_str().unwrap();
        assert!(["debug", "info", "warn", "error"].contains(&level), "{line}");
        // What the node says at its start of a Postgres without a standby, as ours is here.
        let expected = line["msg"].as_str().unwrap().starts_with("no synchronous standby");
        assert!(expected || !["warn", "error"].contains(&level), "nothing went wrong: {line}");
    }
    if ground.kind == Kind::Cluster {
        for secret in ["DATABASE_URL", "REDIS_URL"] {
            assert!(!node.errors().contains(ground.setting(secret)), "{secret} is logged");
        }
        assert!(!node.errors().contains("tidings:tidings"), "the password is logged");
    }
}

/// One client must not be able to end all others: a stack that overflows is the end of the process.
async fn deep_nesting_does_not_bring_it_down(ground: &Arc<Ground>) {
    let (node, addr) = Process::node(&ground.settings("0")).await;
    let (alice, bob) = (user(), user());
    let rest = Rest::new(addr, Some(alice));
    let conversation = group(&rest, &[]).await;
    let mut at_bob = Client::open(addr, Opening::new(bob)).await.unwrap();
    for depth in [1_000, 8_000, 30_000] {
        let list = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let object = format!("{}1{}", r#"{"":"#.repeat(depth / 3), "}".repeat(depth / 3));
        for nested in [&list, &object] {
            for frame in [
                nested.clone(),
                format!(r#"{{"type":"ping","payload":{nested}}}"#),
                format!(r#"{{"type":"ping","ref":{nested}}}"#),
                format!(r#"{{"type":"ping","later":{nested}}}"#),
                "[".repeat(depth),
            ] {
                let mut socket = Client::open(addr, Opening::new(alice)).await.unwrap();
                socket.send_text(&frame).await;
                socket.find("an answer", |_| true).await;
            }
            let body = format!(
                r#"{{"conversation_id":"{conversation}","message_type":"text","content":"x","metadata":{{"a":{nested}}}}}"#
            );
            for path in ["/api/v1/messages", "/api/v1/conversations"] {
                let reply = rest.call("POST", path, &body).await;
                assert!((400..500).contains(&reply.status), "{depth}: {}", reply.status);
            }
        }
    }
    assert!(at_bob.drain().await.is_empty(), "he notices nothing of it");
    node.kill();
}

#[tokio::test]
async fn it_says_what_it_is_and_can_do() {
    let nothing = BTreeMap::new();
    for (arguments, wanted) in [
        (&["--version"][..], env!("CARGO_PKG_VERSION")),
        (&["help"], "migrate"),
        (&["--help"], "migrate"),
        (&["help", "migrate"], "tables"),
    ] {
        let mut process = Process::start(arguments, &nothing);
        assert_eq!(process.exit().await.code(), Some(0), "{arguments:?}");
        assert!(process.output().contains(wanted), "{arguments:?}: {}", process.output());
        assert_eq!(process.errors(), "");
    }
    for arguments in [&["fly"][..], &["--fly"]] {
        let mut process = Process::start(arguments, &nothing);
        assert_ne!(process.exit().await.code(), Some(0), "{arguments:?}");
        assert!(process.errors().contains("fly"), "{arguments:?}: {}", process.errors());
    }
}

/// Two nodes side by side, one of which is replaced: nobody's message is lost or told twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_replaced_without_loss() {
    on_ground(Kind::Cluster, &[("DRAIN_TIME", "500ms"), ("SETTLE_GRACE", "3s")], async |ground| {
        let (_stays, stays_at) = Process::node(&ground.settings("stays")).await;
        let (mut goes, goes_at) = Process::node(&ground.settings("goes")).await;
        let (alice, bob) = (user(), user());
        let rest = Rest::new(stays_at, Some(alice));
        let conversation = group(&rest, &[bob]).await;
        let opening = Opening { device: "phone".into(), ..Opening::new(bob) };
        let mut at_bob = Client::open(goes_at, opening.clone()).await.unwrap();
        let mut received = BTreeSet::new();
        let mut sent = BTreeSet::new();
        for n in 0..30 {
            if n == 10 {
                while received.len() < n {
                    received.insert(id(&at_bob.new_message().await["id"]));
                }
                goes.signal(Signal::TERM);
            }
            let message = rest.post("/api/v1/messages", text(conversation, &format!("{n}"))).await;
            sent.insert(id(&message.body(201)["id"]));
        }
        while let Some(message) = at_bob.try_event("new_message").await {
            received.insert(id(&message["message"]["id"]));
        }
        assert_eq!(at_bob.closed().await.0, 1012);
        let mut at_bob = Client::open(stays_at, opening).await.unwrap();
        // What came meanwhile he reads, and what comes now he gets.
        let stored = history(&Rest::new(stays_at, Some(bob)), conversation).await;
        let stored: BTreeSet<_> = stored.iter().map(|message| id(&message["id"])).collect();
        assert_eq!(stored, sent);
        assert!(received.is_subset(&sent));
        let next = rest.post("/api/v1/messages", text(conversation, "next")).await.body(201);
        at_bob.find("the next", |event| event["payload"]["message"]["id"] == next["id"]).await;
        assert_eq!(goes.exit().await.code(), Some(0), "{}", goes.errors());
    })
    .await;
}
