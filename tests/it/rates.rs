//! Who is too fast is told when to come back, by REST and on the socket; nothing of it is done.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::harness::client::{Answer, Client, Opening, Refused};
use crate::harness::cluster::{Cluster, text, user};
use crate::harness::http::Rest;
use crate::harness::metrics::metric;
use crate::harness::raw::{CLOSE, FIN, Raw, TEXT, frame};
use crate::harness::{scenarios, until};

scenarios! {
    sends_above_the_rate_are_refused_until_the_time_told ["RATE_SENDS_PER_USER" = "2"],
    typing_has_a_rate_of_its_own ["RATE_TYPING_PER_USER" = "1", "RATE_SENDS_PER_USER" = "1"],
    one_who_keeps_hammering_is_closed ["RATE_TYPING_PER_USER" = "1"],
    this_machine_and_its_proxy_open_as_many_sockets_as_they_like
        ["RATE_HANDSHAKES_PER_IP" = "1", "MAX_CONNECTIONS_PER_IP" = "1"],
    handshakes_are_counted_by_the_clients_own_address
        ["RATE_HANDSHAKES_PER_IP" = "1", "TRUSTED_PROXIES" = "127.0.0.1"],
    sockets_are_counted_by_the_clients_own_address
        ["MAX_CONNECTIONS_PER_IP" = "2", "TRUSTED_PROXIES" = "127.0.0.1"],
    identities_that_are_refused_too_often_are_told_so ["TRUSTED_PROXIES" = "127.0.0.1"],
}

fn wait_of(problem: &Value) -> Duration {
    Duration::from_millis(problem["retry_ms"].as_u64().expect("it tells when to come back"))
}

/// From a client behind the proxy, which this machine is.
fn from(address: &str, user: Uuid) -> Opening {
    let headers = vec![("x-forwarded-for", format!("198.51.100.66, {address}"))];
    Opening { headers, ..Opening::new(user) }
}

async fn refused(cluster: &Cluster, opening: Opening) -> Refused {
    match Client::handshake(cluster.addr(0), opening).await {
        Ok(_) => panic!("the socket opened"),
        Err(refused) => refused,
    }
}

async fn limited(cluster: &Cluster, limit: &str) -> u64 {
    let name = format!("tidings_rate_limited_total{{limit=\"{limit}\"}}");
    metric(cluster.addr(0), &name).await as u64
}

async fn sends_above_the_rate_are_refused_until_the_time_told(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let group = cluster.group(0, alice, &[bob]).await;
    let mut at_alice = cluster.connect(0, alice).await;
    // Five times the rate at once, of every kind that writes, by either way.
    let first = at_alice.send(group, "one").await;
    let message = format!("/api/v1/messages/{}", first["id"].as_str().unwrap());
    let rest = cluster.rest(0, alice);
    let edit = json!({ "content": "edited" }).to_string();
    let (mut accepted, started) = (1, Instant::now());
    let problem = loop {
        let reply = match accepted % 3 {
            0 => rest.call("PUT", &message, &edit).await,
            1 => rest.post("/api/v1/messages", text(group, "again")).await,
            _ => match at_alice.command("send_message", text(group, "again")).await {
                Answer::Ok(_) => {
                    accepted += 1;
                    continue;
                }
                Answer::Error(problem) => break problem,
            },
        };
        if reply.status == 429 {
            let after: u64 = reply.header("retry-after").unwrap().parse().unwrap();
            let problem = reply.refused(429, "rate_limited", None);
            assert_eq!(after, wait_of(&problem).as_millis().div_ceil(1_000) as u64);
            break problem;
        }
        accepted += 1;
    };
    let time = started.elapsed().as_secs_f64();
    assert!(accepted >= 10 && f64::from(accepted) <= 11.0 + 2.0 * time, "{accepted} in {time} s");
    assert_eq!((&problem["status"], &problem["code"]), (&json!(429), &json!("rate_limited")));
    let wait = wait_of(&problem);
    assert!(wait <= Duration::from_millis(500), "{wait:?}");
    // The same on the socket, and nothing of it is stored.
    let stored = async || {
        let path = format!("/api/v1/conversations/{group}");
        cluster.rest(1, alice).get(&path).await.body(200)["last_seq"].clone()
    };
    let before = stored().await;
    let refusal = at_alice.command("delete_message", json!({ "message_id": first["id"] })).await;
    let wait = match refusal {
        Answer::Error(problem) => {
            assert_eq!(problem["code"], "rate_limited");
            assert_eq!(stored().await, before);
            wait_of(&problem)
        }
        // On a slow machine the time has passed, and this took the room there was: two in a second.
        Answer::Ok(_) => Duration::from_millis(500),
    };
    // Others are not held up, and after the time told it goes on.
    at_alice.read_for(wait).await;
    at_alice.send(group, "in time").await;
    cluster.connect(0, bob).await.send(group, "hello").await;
    assert!(limited(cluster, "sends").await >= 1);
}

async fn typing_has_a_rate_of_its_own(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let group = cluster.group(0, alice, &[bob]).await;
    let mut at_alice = cluster.connect(0, alice).await;
    let typing = json!({ "conversation_id": group, "is_typing": true });
    let mut answers = Vec::new();
    for _ in 0..12 {
        answers.push(at_alice.submit("typing", typing.clone()).await);
    }
    let mut refused = 0;
    for reference in answers {
        if let Answer::Error(problem) = at_alice.answer(&reference).await {
            assert_eq!(problem["code"], "rate_limited");
            assert!(wait_of(&problem) <= Duration::from_secs(1), "{problem}");
            refused += 1;
        }
    }
    assert!((1..=7).contains(&refused), "{refused}");
    let path = format!("/api/v1/conversations/{group}/typing");
    let reply = cluster.rest(0, alice).post(&path, json!({ "is_typing": true })).await;
    assert!([204, 429].contains(&reply.status), "{reply:?}");
    at_alice.send(group, "which does not use up what he may send").await;
    assert!(limited(cluster, "typing").await >= refused);
}

async fn one_who_keeps_hammering_is_closed(cluster: &Cluster) {
    // Bare, for the end comes while this client still sends.
    let mut raw = Raw::upgraded(cluster.addr(0)).await;
    let typing = json!({ "conversation_id": user(), "is_typing": true });
    let command = json!({ "type": "typing", "payload": typing }).to_string();
    let burst = frame(FIN | TEXT, command.as_bytes()).repeat(50);
    let (mut refused, mut waiting) = (0, 0);
    loop {
        // As many as are answered before more are sent.
        if waiting == 0 {
            raw.send(&burst).await;
            waiting = 50;
        }
        let (first, payload) = raw.read_frame().await.expect("it is told why it ends");
        if first == FIN | CLOSE {
            let reason: Value = serde_json::from_slice(&payload[2..]).unwrap();
            assert_eq!(u16::from_be_bytes([payload[0], payload[1]]), 4029);
            assert_eq!(reason["reason"], "too_fast");
            assert!(reason["retry_ms"].is_u64(), "{reason}");
            break;
        }
        let answer: Value = serde_json::from_slice(&payload).unwrap();
        waiting -= 1;
        refused += u32::from(answer["payload"]["code"] == "rate_limited");
        assert!(refused < 3_000, "it goes on for ever");
    }
    assert_eq!(refused, 1_001, "not at the first haste, and not for ever");
}

async fn this_machine_and_its_proxy_open_as_many_sockets_as_they_like(cluster: &Cluster) {
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(cluster.connect(0, user()).await);
    }
    // Nobody is believed to forward for others.
    for _ in 0..20 {
        let opening = from("203.0.113.7", user());
        open.push(Client::open(cluster.addr(0), opening).await.unwrap());
    }
}

async fn handshakes_are_counted_by_the_clients_own_address(cluster: &Cluster) {
    let open = async |address: &str| Client::open(cluster.addr(0), from(address, user())).await;
    for n in 0..5 {
        assert!(open("2001:db8::1").await.is_ok(), "{n}");
    }
    let refusal = refused(cluster, from("2001:db8::2", user())).await;
    assert_eq!((refusal.status, &refusal.problem["code"]), (429, &json!("rate_limited")));
    let wait = wait_of(&refusal.problem);
    assert!(wait <= Duration::from_secs(1), "{wait:?}");
    assert_eq!(refusal.retry_after.as_deref(), Some("1"));
    assert!(open("2001:db8:0:1::1").await.is_ok(), "another network");
    until("there is room again", async || open("2001:db8::3").await.ok().map(drop)).await;
    assert!(limited(cluster, "handshakes").await >= 1);
}

async fn sockets_are_counted_by_the_clients_own_address(cluster: &Cluster) {
    let open = async || Client::open(cluster.addr(0), from("203.0.113.7", user())).await;
    let first = open().await.unwrap();
    let _second = open().await.unwrap();
    let refusal = refused(cluster, from("203.0.113.7", user())).await;
    assert_eq!((refusal.status, &refusal.problem["code"]), (429, &json!("rate_limited")));
    assert!(refusal.retry_after.is_some());
    let other = Client::open(cluster.addr(0), from("203.0.113.8", user())).await;
    assert!(other.is_ok());
    first.close().await;
    until("there is room again", async || open().await.ok().map(drop)).await;
    assert!(limited(cluster, "connections").await >= 1);
}

async fn identities_that_are_refused_too_often_are_told_so(cluster: &Cluster) {
    let ask = async |address: &str, who: &str| {
        let rest = Rest::new(cluster.addr(0), None).with("x-forwarded-for", address);
        rest.with("x-user-id", who).get("/api/v1/conversations").await
    };
    let mut refused = 0;
    until("there were too many", async || {
        let reply = ask("203.0.113.7", "nobody").await;
        refused += 1;
        (reply.status == 429).then(|| reply.refused(429, "rate_limited", None))
    })
    .await;
    assert!(refused > 25, "{refused}");
    assert!(limited(cluster, "identities").await >= 1);
    assert_eq!(ask("203.0.113.8", "nobody").await.status, 401, "another address");
    // Who is known is not held up by those who are not.
    assert_eq!(ask("203.0.113.7", &user().to_string()).await.status, 200);
}
