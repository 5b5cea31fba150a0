//! What people write, prove themselves by and come from stays between them: a run with a mark in every
//! input looks for it in logs, metrics and what others are answered.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};
use tidings::config::Config;
use uuid::Uuid;

use crate::harness::client::{Client, Opening};
use crate::harness::cluster::{Ground, Kind, id, on_ground, user};
use crate::harness::free_port;
use crate::harness::http::Rest;
use crate::harness::process::{Process, Signal};
use crate::identity::token;

/// In contents, titles, metadata, names, ids that clients choose, queries and headers.
const MARK: &str = "Schnurr";
/// Where the client comes from, as the proxy says.
const ADDRESS: &str = "203.0.113.77";

const SETTINGS: &[(&str, &str)] = &[
    ("AUTH_MODE", "jwt"),
    ("JWT_KEY", "an HMAC secret of exactly 34 bytes"),
    ("TRUSTED_PROXIES", "127.0.0.1"),
    ("ADMIN_ADDR", "127.0.0.1:0"),
    ("LOG_LEVEL", "trace"),
    ("LOG_FORMAT", "json"),
    ("OFFLINE_AFTER", "1s"),
];

#[tokio::test(flavor = "multi_thread")]
async fn embedded_tells_nobody() {
    on_ground(Kind::Embedded, SETTINGS, nothing_is_told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_tells_nobody() {
    on_ground(Kind::Cluster, SETTINGS, nothing_is_told).await;
}

/// A caller whose every header has a mark.
fn caller(addr: std::net::SocketAddr, bearer: &str) -> Rest {
    Rest::new(addr, None)
        .with("authorization", &format!("Bearer {bearer}"))
        .with("user-agent", &format!("{MARK}-agent"))
        .with("x-forwarded-for", ADDRESS)
        .with("cookie", &format!("session={MARK}-cookie"))
        .with("x-device-id", &format!("{MARK}-device"))
}

async fn socket(addr: std::net::SocketAddr, who: Uuid, bearer: &str) -> Client {
    let headers = vec![
        ("authorization", format!("Bearer {bearer}")),
        ("x-forwarded-for", ADDRESS.to_owned()),
        ("x-platform", format!("{MARK}-platform")),
        ("x-app-version", format!("{MARK}-version")),
    ];
    let opening =
        Opening { headers, device: format!("{MARK}-{}", Uuid::new_v4()), ..Opening::new(who) };
    Client::open(addr, opening).await.expect("the socket opens")
}

async fn nothing_is_told(ground: &Arc<Ground>) {
    let mut settings = ground.settings("0");
    // A port that is known: the node says only where its main listener is.
    let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
    settings.insert("ADMIN_ADDR".into(), admin.to_string());
    let secrets = secrets_of(&settings);
    let (mut node, addr) = Process::node(&settings).await;
    let (alice, bob, carol, stranger) = (user(), user(), user(), user());
    let (at_alice, at_bob, foreign) = (token(alice), token(bob), token(stranger));
    let rest = caller(addr, &at_alice);

    let body = json!({
        "kind": "group", "title": format!("{MARK} title"), "participants": [bob, carol],
    });
    let group = id(&rest.post("/api/v1/conversations", body).await.body(201)["id"]);
    let mut alice_socket = socket(addr, alice, &at_alice).await;
    let mut bob_socket = socket(addr, bob, &at_bob).await;
    let said = |n: u32| {
        json!({
            "conversation_id": group, "message_type": "text", "content": format!("{MARK} said {n}"),
            "client_message_id": format!("{MARK}-{n}"),
            "metadata": { "note": format!("{MARK} note") },
            "mentions": [{ "user_id": bob, "offset": 0, "length": 3 }],
        })
    };
    let sent = alice_socket.command("send_message", said(1)).await.ok();
    let message = format!("/api/v1/messages/{}", sent["message"]["id"].as_str().unwrap());
    bob_socket.new_message().await;
    rest.post("/api/v1/messages", said(2)).await.body(201);
    let edit = json!({ "content": format!("{MARK} edited") });
    rest.call("PUT", &message, &edit.to_string()).await.body(200);
    let title = json!({ "title": format!("{MARK} other title") });
    let path = format!("/api/v1/conversations/{group}");
    rest.patch(&path, title).await.body(200);
    let typing = json!({ "conversation_id": group, "is_typing": true });
    bob_socket.command("typing", typing).await.ok();
    bob_socket.command("read_receipt", json!({ "message_id": sent["message"]["id"] })).await.ok();
    bob_socket.command("sync", json!({ "conversations": {} })).await.ok();
    bob_socket.command("refresh_token", json!({ "token": token(bob) })).await.ok();
    let ticket = rest.post("/api/v1/ws-tickets", json!({})).await.body(201);
    let ticket = ticket["ticket"].as_str().unwrap().to_owned();
    let by_ticket = Opening { query: format!("?ticket={ticket}"), ..Opening::new(alice) };
    let _by_ticket = Client::open(addr, by_ticket).await.expect("the ticket is good");

    // And where things go wrong.
    let mut answers = Vec::new();
    let mut wrong = said(1);
    wrong["content"] = format!("{MARK} is something else").into();
    rest.post("/api/v1/messages", wrong).await.refused(
        422,
        "idempotency_mismatch",
        Some("client_message_id"),
    );
    let by_stranger = Rest::new(addr, None).with("authorization", &format!("Bearer {foreign}"));
    for path in [&path, &format!("{path}/messages"), &format!("{path}/participants"), &message] {
        answers.push(by_stranger.get(path).await.text);
    }
    let edits = format!("{message}/edits");
    answers.push(by_stranger.get(&edits).await.text);
    answers.push(by_stranger.get(&format!("/api/v1/presence?user_ids={alice},{bob}")).await.text);
    let cursors = json!({ "conversations": { group.to_string(): 1 } });
    answers.push(by_stranger.post("/api/v1/sync", cursors).await.text);
    let broken = format!("{}x", token(alice));
    let refused = caller(addr, &broken).get("/api/v1/conversations").await;
    assert_eq!(refused.status, 401);
    let again = Opening { query: format!("?ticket={ticket}"), ..Opening::new(alice) };
    let refused = Client::handshake(addr, again).await.err().expect("each is good once");
    assert_eq!(refused.status, 401);
    rest.get(&format!("/api/v1/{MARK}?q={MARK}")).await.refused(404, "not_found", None);
    rest.call("POST", "/api/v1/messages", &format!("{{{MARK}")).await.body(400);
    bob_socket.send_text(&format!("{{\"type\":\"{MARK}\",\"ref\":\"{MARK}\"}}")).await;
    bob_socket.send_text(MARK).await;
    bob_socket.drain().await;
    let kick = json!({ "user_id": bob }).to_string();
    let kicked = Rest::new(admin, None).call("POST", "/admin/v1/disconnect", &kick).await;
    assert_eq!(kicked.status, 204, "{}", kicked.text);
    assert_eq!(bob_socket.closed().await.0, 4403);
    // Carol never came: her records are handed over before the end.
    let store = ground.store().await;
    crate::harness::until("all is settled", async || {
        let left = (store.outbox_state().await.ok()?.0, store.laggards_state().await.ok()?.0);
        (left == (0, 0)).then_some(())
    })
    .await;
    store.close().await;
    let metrics = Rest::new(admin, None).get("/metrics").await.text;
    assert!(metrics.contains("tidings_sends_accepted_total 2"), "{metrics}");
    drop(alice_socket);
    node.signal(Signal::TERM);
    assert_eq!(node.exit().await.code(), Some(0), "{}", node.errors());

    assert!(node.logs().len() > 20, "it says what it does: {}", node.errors());
    let mut secrets = secrets;
    secrets.extend([MARK.to_owned(), ADDRESS.to_owned(), ticket]);
    for bearer in [at_alice, at_bob, foreign, broken] {
        secrets.extend(bearer.split('.').skip(1).map(str::to_owned));
    }
    let places = [("logs", node.errors()), ("output", node.output()), ("metrics", metrics)];
    for secret in &secrets {
        for (place, text) in &places {
            let line = text.lines().find(|line| line.contains(secret.as_str()));
            assert_eq!(line, None, "{secret} stands in the {place}");
        }
        for answer in &answers {
            assert!(!answer.contains(secret.as_str()), "{secret} is told to a stranger: {answer}");
        }
    }
    // Nor who these people are, where figures are added up.
    for who in [alice, bob, carol] {
        assert!(!places[2].1.contains(&who.to_string()), "metrics are about nobody");
    }
    let _: Vec<Value> = node.logs();
}

/// What the settings keep secret.
fn secrets_of(settings: &crate::harness::cluster::Settings) -> Vec<String> {
    let config = Config::from_lookup(|name| settings.get(name).cloned()).expect("they are good");
    let shown = format!("{config:?}");
    let key = settings["JWT_KEY"].clone();
    assert!(!shown.contains(&key), "the settings are logged");
    vec![key]
}
