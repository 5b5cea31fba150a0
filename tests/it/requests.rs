//! Which requests are refused, with which status, code and field; and who is told what.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::client::{Answer, Client, Opening};
use crate::harness::cluster::{Cluster, text, user};
use crate::harness::http::Rest;
use crate::harness::raw::Raw;
use crate::harness::scenarios;

scenarios! {
    requests_outside_their_limits_are_refused ["MAX_GROUP_SIZE" = "4"],
    what_is_foreign_looks_like_what_is_not_there,
    who_asks_must_be_known,
    paths_and_methods_are_told_apart,
    a_body_that_is_too_large_is_not_read,
    a_body_that_drips_is_given_up,
}

async fn requests_outside_their_limits_are_refused(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let group = cluster.group(0, alice, &[bob]).await;
    let direct = json!({ "kind": "direct", "participants": [bob] });
    let direct = cluster.rest(0, alice).post("/api/v1/conversations", direct).await.body(201);
    let rest = cluster.rest(1, alice);
    let users = |count: usize| (0..count).map(|_| user()).collect::<Vec<_>>();
    let conversations = "/api/v1/conversations".to_owned();
    let of = format!("{conversations}/{group}");
    let members = format!("{of}/participants");
    let member = format!("{members}/{bob}");
    let history = format!("{of}/messages");
    let in_direct = format!("{conversations}/{}", direct["id"].as_str().unwrap());
    let long = "x".repeat(257);
    let ids = users(101).iter().map(Uuid::to_string).collect::<Vec<_>>().join(",");
    let group_with = |participants: Value| json!({ "kind": "group", "participants": participants });
    for (method, path, body, status, code, field) in [
        ("POST", &conversations, group_with(json!(users(4))), 422, "invalid", Some("participants")),
        ("POST", &conversations, group_with(json!("x")), 400, "malformed", Some("participants")),
        (
            "POST",
            &conversations,
            group_with(json!(["x"])),
            400,
            "malformed",
            Some("participants[0]"),
        ),
        (
            "POST",
            &conversations,
            json!({ "kind": "group" }),
            400,
            "malformed",
            Some("participants"),
        ),
        (
            "POST",
            &conversations,
            json!({ "kind": "party", "participants": [] }),
            400,
            "malformed",
            Some("kind"),
        ),
        (
            "POST",
            &conversations,
            json!({ "kind": "direct", "participants": users(2) }),
            422,
            "invalid",
            Some("participants"),
        ),
        (
            "POST",
            &conversations,
            json!({ "kind": "direct", "participants": [alice] }),
            422,
            "invalid",
            Some("participants"),
        ),
        (
            "POST",
            &conversations,
            json!({ "kind": "direct", "participants": [bob], "title": "x" }),
            422,
            "invalid",
            Some("title"),
        ),
        (
            "POST",
            &conversations,
            json!({ "kind": "group", "participants": [], "title": long }),
            422,
            "invalid",
            Some("title"),
        ),
        ("PATCH", &of, json!({ "title": long }), 422, "invalid", Some("title")),
        ("PATCH", &of, json!({ "title": " " }), 422, "invalid", Some("title")),
        ("PATCH", &of, json!({ "title": "a\0" }), 422, "invalid", Some("title")),
        ("POST", &members, json!({ "user_ids": users(101) }), 422, "invalid", Some("user_ids")),
        ("POST", &members, json!({ "user_ids": [] }), 422, "invalid", Some("user_ids")),
        ("POST", &members, json!({ "user_ids": users(3) }), 422, "invalid", Some("user_ids")),
        ("POST", &members, json!({}), 400, "malformed", Some("user_ids")),
        ("PATCH", &member, json!({}), 422, "invalid", Some("role")),
        ("PATCH", &member, json!({ "role": "king" }), 400, "malformed", Some("role")),
        ("DELETE", &format!("{members}/bob"), Value::Null, 422, "invalid", Some("user_id")),
        ("PATCH", &in_direct, json!({ "title": "x" }), 409, "conflict", None),
        (
            "POST",
            &format!("{in_direct}/participants"),
            json!({ "user_ids": users(1) }),
            409,
            "conflict",
            None,
        ),
        ("DELETE", &format!("{in_direct}/participants/{bob}"), Value::Null, 409, "conflict", None),
        ("GET", &format!("{history}?limit=0"), Value::Null, 422, "invalid", Some("limit")),
        ("GET", &format!("{history}?limit=201"), Value::Null, 422, "invalid", Some("limit")),
        ("GET", &format!("{history}?limit=ten"), Value::Null, 422, "invalid", Some("limit")),
        ("GET", &format!("{history}?limit=-1"), Value::Null, 422, "invalid", Some("limit")),
        ("GET", &format!("{history}?before_id=x"), Value::Null, 422, "invalid", Some("before_id")),
        (
            "GET",
            &format!("{history}?before_id={bob}"),
            Value::Null,
            404,
            "not_found",
            Some("before_id"),
        ),
        ("GET", &format!("{members}?limit=201"), Value::Null, 422, "invalid", Some("limit")),
        ("GET", &format!("{members}?cursor=x"), Value::Null, 422, "invalid", Some("cursor")),
        ("GET", &format!("{conversations}?limit=201"), Value::Null, 422, "invalid", Some("limit")),
        (
            "GET",
            &format!("{conversations}?cursor=1.x"),
            Value::Null,
            422,
            "invalid",
            Some("cursor"),
        ),
        (
            "GET",
            &format!("{conversations}?cursor=99999999999999999.{bob}"),
            Value::Null,
            422,
            "invalid",
            Some("cursor"),
        ),
        (
            "GET",
            &format!("/api/v1/presence?user_ids={ids}"),
            Value::Null,
            422,
            "invalid",
            Some("user_ids"),
        ),
        (
            "GET",
            &"/api/v1/presence?user_ids=x".to_owned(),
            Value::Null,
            422,
            "invalid",
            Some("user_ids"),
        ),
        ("GET", &"/api/v1/presence".to_owned(), Value::Null, 422, "invalid", Some("user_ids")),
    ] {
        println!("{status} {code} {field:?}: {method} {path:.150} {:.100}", body.to_string());
        let body = if body.is_null() { String::new() } else { body.to_string() };
        rest.call(method, path, &body).await.refused(status, code, field);
    }
    for body in ["", "{", "\u{feff}{}", "nothing", r#"{"kind":"group","participants":[]}}"#] {
        rest.call("POST", &conversations, body).await.refused(400, "malformed", None);
    }
    for size in [64 * 1024 + 1, 1 << 20] {
        let large = format!("{{\"kind\":\"{}\"}}", "x".repeat(size));
        rest.call("POST", &conversations, &large).await.refused(413, "too_large", None);
    }
    rest.get(&format!("{history}?limit=200")).await.body(200);
    let list = rest.get(&conversations).await.body(200);
    assert_eq!(list["conversations"].as_array().unwrap().len(), 2, "nothing was made");
}

/// Except for the number of the request.
async fn refused(rest: &Rest, method: &str, path: &str, body: &Value) -> Value {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let mut problem = rest.call(method, path, &body).await.refused(404, "not_found", None);
    problem["request_id"].take();
    problem
}

async fn what_is_foreign_looks_like_what_is_not_there(cluster: &Cluster) {
    let (alice, bob, eve) = (user(), user(), user());
    let foreign = cluster.group(0, alice, &[bob]).await;
    let parent = cluster.send(0, alice, foreign, "secret").await;
    let unknown = Uuid::now_v7();
    let rest = cluster.rest(1, eve);
    let mut socket = cluster.connect(0, eve).await;
    for (method, path, body) in [
        ("GET", "", Value::Null),
        ("PATCH", "", json!({ "title": "mine" })),
        ("GET", "/messages", Value::Null),
        ("GET", "/messages?before_id=ID", Value::Null),
        ("GET", "/participants", Value::Null),
        ("POST", "/participants", json!({ "user_ids": [eve] })),
        ("PATCH", "/participants/BOB", json!({ "can_send_messages": false })),
        ("DELETE", "/participants/BOB", Value::Null),
    ] {
        let path = path.replace("ID", parent["id"].as_str().unwrap());
        let path = path.replace("BOB", &bob.to_string());
        let of = |id: Uuid| format!("/api/v1/conversations/{id}{path}");
        let there = refused(&rest, method, &of(foreign), &body).await;
        let nowhere = refused(&rest, method, &of(unknown), &body).await;
        assert_eq!(there, nowhere, "{method} {path}");
    }
    let path = "/api/v1/conversations/nothing/messages";
    let no_id = refused(&rest, "GET", path, &Value::Null).await;
    assert_eq!(no_id["code"], "not_found");
    let mut sends = Vec::new();
    let mentioned = json!([{ "user_id": bob, "offset": 0, "length": 1 }]);
    for conversation in [foreign, unknown] {
        for mentions in [json!([]), mentioned.clone()] {
            for parent in [Value::Null, parent["id"].clone()] {
                let mut body = text(conversation, "let me in");
                body["parent_message_id"] = parent;
                body["mentions"] = mentions.clone();
                sends.push(refused(&rest, "POST", "/api/v1/messages", &body).await);
                let mut answer = socket.command("send_message", body).await;
                let Answer::Error(problem) = &mut answer else { panic!("accepted: {answer:?}") };
                problem["request_id"].take();
                sends.push(problem.take());
            }
        }
    }
    assert!(sends.iter().all(|problem| *problem == sends[0]), "{sends:#?}");
    let path = format!("/api/v1/presence?user_ids={alice},{bob}");
    assert_eq!(rest.get(&path).await.body(200), json!({ "presence": [] }));
}

async fn who_asks_must_be_known(cluster: &Cluster) {
    let addr = cluster.addr(0);
    let nobody = Rest::new(addr, None);
    for rest in [
        nobody.clone(),
        nobody.clone().with("x-user-id", "alice"),
        nobody.clone().with("x-user-id", ""),
    ] {
        rest.get("/api/v1/conversations").await.refused(401, "unauthenticated", None);
        let body = text(user(), "hello");
        rest.post("/api/v1/messages", body).await.refused(401, "unauthenticated", None);
    }
    // On REST calls the query names nobody.
    let path = format!("/api/v1/conversations?user_id={}", user());
    nobody.get(&path).await.refused(401, "unauthenticated", None);
    for (name, value) in [("x-user-id", "alice".to_owned()), ("x-user-id", String::new())] {
        let opening = Opening { headers: vec![(name, value)], ..Opening::new(user()) };
        let refused = Client::handshake(addr, opening).await.err().expect("it is refused");
        assert_eq!((refused.status, &refused.problem["code"]), (401, &json!("unauthenticated")));
    }
    for (name, value, field) in [
        ("x-device-id", "x".repeat(129), "device_id"),
        ("x-platform", "x".repeat(33), "platform"),
        ("x-app-version", "x".repeat(33), "app_version"),
    ] {
        let opening = Opening { headers: vec![(name, value)], ..Opening::new(user()) };
        let refused = Client::handshake(addr, opening).await.err().expect("it is refused");
        assert_eq!(refused.status, 422, "{field}");
        assert_eq!(refused.problem["field"], field);
    }
}

async fn paths_and_methods_are_told_apart(cluster: &Cluster) {
    let rest = cluster.rest(0, user());
    for path in
        ["/api", "/api/v1", "/api/v1/nothing", "/api/v2/messages", "/ws/x", "/metrics/x", "//"]
    {
        rest.get(path).await.refused(404, "not_found", None);
    }
    let of = format!("/api/v1/conversations/{}", user());
    for (method, path, allow) in [
        ("GET", "/api/v1/messages", "POST"),
        ("DELETE", "/api/v1/conversations", "GET, POST"),
        ("DELETE", &of, "GET, PATCH"),
        ("POST", &format!("{of}/messages"), "GET"),
        ("PUT", &format!("{of}/participants"), "GET, POST"),
        ("GET", &format!("{of}/participants/{}", user()), "PATCH, DELETE"),
        ("POST", "/api/v1/presence", "GET"),
        ("POST", "/ws", "GET"),
        ("POST", "/health", "GET"),
        ("BREW", "/ready", "GET"),
    ] {
        let reply = rest.call(method, path, "").await;
        assert_eq!(reply.header("allow"), Some(allow), "{method} {path}");
        reply.refused(405, "method_not_allowed", None);
    }
    let reply = rest.get("/ws").await;
    assert_eq!(reply.header("upgrade").map(str::to_lowercase).as_deref(), Some("websocket"));
    reply.refused(426, "upgrade_required", None);
    // A number that the caller gave is kept.
    let given = rest.clone().with("x-request-id", "req-7").get("/nothing").await;
    assert_eq!(given.header("x-request-id"), Some("req-7"));
    let nobody = Rest::new(cluster.addr(0), None);
    assert_eq!(nobody.get("/health").await.body(200), json!({ "status": "ok" }));
    let ready = nobody.get("/ready").await.body(200);
    assert_eq!((&ready["status"], &ready["store"]), (&json!("ready"), &json!("up")), "{ready}");
}

/// The head of a send, up to what says how long its body is.
fn send_head(cluster: &Cluster) -> String {
    let (addr, user) = (cluster.addr(0), user());
    format!("POST /api/v1/messages HTTP/1.1\r\nHost: {addr}\r\nX-User-ID: {user}\r\n")
}

async fn a_body_that_is_too_large_is_not_read(cluster: &Cluster) {
    // As it is announced, and piece by piece: what comes beyond is not waited for.
    let large = "x".repeat(64 * 1024 + 1);
    let announced = format!("Content-Length: 1000000000\r\n\r\n{large}");
    let pieces = format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n", large.len());
    for body in [announced, pieces] {
        let mut raw = Raw::connect(cluster.addr(0)).await;
        raw.send(format!("{}{body}", send_head(cluster)).as_bytes()).await;
        let head = raw.head().await;
        assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
        assert!(raw.ends_within(Duration::from_secs(5)).await, "nothing is read after it");
    }
    let just_fits = text(user(), &"x".repeat(16 * 1024)).to_string();
    let spaces = " ".repeat(64 * 1024 - just_fits.len());
    let (rest, body) = (cluster.rest(0, user()), just_fits + &spaces);
    let reply = rest.call("POST", "/api/v1/messages", &body).await;
    reply.refused(404, "not_found", None);
}

async fn a_body_that_drips_is_given_up(cluster: &Cluster) {
    let mut raw = Raw::connect(cluster.addr(0)).await;
    raw.send(format!("{}Content-Length: 1000\r\n\r\n{{", send_head(cluster)).as_bytes()).await;
    let started = Instant::now();
    // A byte each second keeps nothing alive.
    while !raw.ends_within(Duration::from_secs(1)).await {
        assert!(started.elapsed() < Duration::from_secs(25), "it stays for ever");
        raw.send(b" ").await;
    }
    assert!(started.elapsed() > Duration::from_secs(10), "slow networks have their time");
    let head = raw.head().await;
    assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
}
