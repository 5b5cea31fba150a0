//! Which messages and commands are refused, with which status, code and field: the same by REST and
//! on the socket.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::cluster::{Cluster, text, user};
use crate::harness::scenarios;

scenarios! {
    a_message_outside_its_limits_is_refused_and_names_the_field,
    what_is_just_within_the_limits_is_taken,
    a_command_that_is_none_is_answered_and_the_socket_stays,
    one_who_may_not_send_is_told_so,
    metadata_that_was_taken_can_be_read,
}

/// A change of a good message, and how it is refused.
struct Refusal {
    changes: Vec<(&'static str, Value)>,
    status: u16,
    code: &'static str,
    field: Option<&'static str>,
}

fn refusal(
    changes: &[(&'static str, Value)],
    status: u16,
    code: &'static str,
    field: &'static str,
) -> Refusal {
    Refusal { changes: changes.to_vec(), status, code, field: Some(field) }
}

fn mention(who: Uuid, offset: i64, length: i64) -> Value {
    json!({ "user_id": who, "offset": offset, "length": length })
}

/// What a message must not be; some need a foreign parent, a stranger or a member.
fn refusals(parent: &Value, stranger: Uuid, member: Uuid) -> Vec<Refusal> {
    let many: Vec<_> = (0..101).map(|_| mention(member, 0, 1)).collect();
    let mut all = vec![
        refusal(&[("content", json!("x".repeat(16 * 1024 + 1)))], 413, "too_large", "content"),
        refusal(&[("content", json!("é".repeat(8 * 1024 + 1)))], 413, "too_large", "content"),
        refusal(&[("content", json!(""))], 422, "invalid", "content"),
        refusal(&[("content", json!(" \n\t"))], 422, "invalid", "content"),
        refusal(&[("content", Value::Null)], 422, "invalid", "content"),
        refusal(&[("content", json!("a\0b"))], 422, "invalid", "content"),
        refusal(&[("content", json!(7))], 400, "malformed", "content"),
        refusal(
            &[("metadata", json!({ "a": "x".repeat(8 * 1024) }))],
            413,
            "too_large",
            "metadata",
        ),
        refusal(&[("metadata", json!([1]))], 422, "invalid", "metadata"),
        refusal(&[("metadata", json!({ "a": "\0" }))], 422, "invalid", "metadata"),
        refusal(&[("mentions", json!(many))], 422, "invalid", "mentions"),
        refusal(&[("mentions", json!([mention(member, 0, 6)]))], 422, "invalid", "mentions[0]"),
        refusal(
            &[
                ("content", json!("a😀")),
                ("mentions", json!([mention(member, 0, 1), mention(member, 2, 2)])),
            ],
            422,
            "invalid",
            "mentions[1]",
        ),
        refusal(&[("mentions", json!([mention(member, 0, 0)]))], 422, "invalid", "mentions[0]"),
        refusal(
            &[("mentions", json!([mention(member, 4_294_967_295, 4_294_967_295)]))],
            422,
            "invalid",
            "mentions[0]",
        ),
        refusal(
            &[("mentions", json!([mention(member, -1, 1)]))],
            400,
            "malformed",
            "mentions[0].offset",
        ),
        refusal(&[("mentions", json!([mention(stranger, 0, 1)]))], 422, "invalid", "mentions"),
        refusal(&[("message_type", json!("poem"))], 400, "malformed", "message_type"),
        refusal(&[("message_type", Value::Null)], 400, "malformed", "message_type"),
        refusal(&[("parent_message_id", parent.clone())], 422, "invalid", "parent_message_id"),
        refusal(&[("parent_message_id", json!(user()))], 422, "invalid", "parent_message_id"),
        refusal(&[("parent_message_id", json!("me"))], 400, "malformed", "parent_message_id"),
        refusal(
            &[("client_message_id", json!("x".repeat(129)))],
            422,
            "invalid",
            "client_message_id",
        ),
        refusal(&[("client_message_id", json!(""))], 422, "invalid", "client_message_id"),
        refusal(&[("client_message_id", json!("a\0"))], 422, "invalid", "client_message_id"),
        refusal(&[("conversation_id", json!("here"))], 400, "malformed", "conversation_id"),
        refusal(&[("conversation_id", Value::Null)], 400, "malformed", "conversation_id"),
    ];
    for kind in ["image", "video", "audio", "file"] {
        for url in
            [Value::Null, json!("ftp://x/y"), json!("javascript:alert(1)"), json!("https://")]
        {
            let changes =
                [("message_type", json!(kind)), ("metadata", json!({ "media_url": url }))];
            all.push(refusal(&changes, 422, "invalid", "metadata.media_url"));
        }
        let changes = [("message_type", json!(kind))];
        all.push(refusal(&changes, 422, "invalid", "metadata.media_url"));
    }
    for (place, field) in [
        (json!({}), "metadata.latitude"),
        (json!({ "latitude": 90.1, "longitude": 0 }), "metadata.latitude"),
        (json!({ "latitude": "90", "longitude": 0 }), "metadata.latitude"),
        (json!({ "latitude": 0 }), "metadata.longitude"),
        (json!({ "latitude": 0, "longitude": -180.5 }), "metadata.longitude"),
    ] {
        let changes = [("message_type", json!("location")), ("metadata", place)];
        all.push(refusal(&changes, 422, "invalid", field));
    }
    all
}

async fn a_message_outside_its_limits_is_refused_and_names_the_field(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let elsewhere = cluster.group(0, alice, &[]).await;
    let foreign = cluster.send(0, alice, elsewhere, "a parent elsewhere").await;
    let mut socket = cluster.connect(1, alice).await;
    let rest = cluster.rest(0, alice);
    for Refusal { changes, status, code, field } in refusals(&foreign["id"], user(), bob) {
        let mut body = text(conversation, "hello");
        for (name, value) in changes {
            body[name] = value;
        }
        println!("{status} {code} {field:?}: {:.200}", body.to_string());
        rest.post("/api/v1/messages", body.clone()).await.refused(status, code, field);
        socket.command("send_message", body).await.refused(status, code, field);
    }
    // Left out is told like null.
    for name in ["conversation_id", "message_type"] {
        let mut body = text(conversation, "hello");
        body.as_object_mut().unwrap().remove(name);
        let refused = rest.post("/api/v1/messages", body.clone()).await;
        refused.refused(400, "malformed", Some(name));
        socket.command("send_message", body).await.refused(400, "malformed", Some(name));
    }
    socket.send(conversation, "the socket is as good as before").await;
}

async fn what_is_just_within_the_limits_is_taken(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut socket = cluster.connect(0, alice).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let many: Vec<_> = (0..100).map(|_| mention(bob, 4, 2)).collect();
    for (name, value) in [
        ("content", json!("x".repeat(16 * 1024))),
        ("content", json!("\u{1}".repeat(10 * 1024))),
        ("metadata", json!({ "a": "x".repeat(8 * 1024 - 8) })),
        ("client_message_id", json!("é".repeat(64))),
        ("mentions", json!(many)),
    ] {
        let mut body = text(conversation, "oh, 😀");
        body[name] = value.clone();
        let sent = socket.command("send_message", body).await.ok();
        assert_eq!(sent["message"][name], value);
        assert_eq!(at_bob.new_message().await[name], value);
    }
}

async fn a_command_that_is_none_is_answered_and_the_socket_stays(cluster: &Cluster) {
    let mut socket = cluster.connect(0, user()).await;
    for (frame, code, field, reference) in [
        ("", "malformed", None, None),
        ("{", "malformed", None, None),
        ("[]", "malformed", None, None),
        ("7", "malformed", None, None),
        (r#""ping""#, "malformed", None, None),
        (r#"{"type":"ping"} x"#, "malformed", None, None),
        (r#"{"payload":{}}"#, "malformed", Some("type"), None),
        (r#"{"type":7}"#, "malformed", Some("type"), None),
        (r#"{"type":"fly","ref":"a"}"#, "unknown_command", None, Some("a")),
        (r#"{"type":"new_message","payload":{}}"#, "unknown_command", None, None),
        (r#"{"type":"ping","ref":7}"#, "invalid", Some("ref"), None),
        (r#"{"type":"send_message","ref":"b"}"#, "malformed", Some("conversation_id"), Some("b")),
        (r#"{"type":"send_message","ref":"c","payload":[]}"#, "malformed", None, Some("c")),
        (r#"{"type":"send_message","ref":"d","payload":"x"}"#, "malformed", None, Some("d")),
    ] {
        socket.send_text(frame).await;
        let error = socket.find(frame, |event| event["type"] == "error").await;
        assert_eq!(error["payload"]["code"], code, "{frame}: {error}");
        let named = error["payload"].get("field").and_then(Value::as_str);
        // A body that is no object at all has no field to be named.
        if field.is_some() || !frame.contains("payload\":") {
            assert_eq!(named, field, "{frame}: {error}");
        }
        assert_eq!(error.get("ref").and_then(Value::as_str), reference, "{frame}: {error}");
    }
    let long = "x".repeat(129);
    socket.send_text(&json!({ "type": "ping", "ref": long }).to_string()).await;
    let error = socket.event("error", "a ref that is too long").await;
    assert_eq!((&error["code"], &error["field"]), (&json!("invalid"), &json!("ref")));
    assert!(socket.drain().await.is_empty());
    // With a ref a ping has its ok, too.
    let reference = socket.submit("ping", json!({})).await;
    assert_eq!(socket.answer(&reference).await.ok(), json!({}));
    socket.event("pong", "its pong").await;
    // Unknown fields are no fault, and text in a binary frame is text.
    socket.send_binary(br#"{"type":"ping","later":{"than":["us"]},"payload":null}"#).await;
    socket.event("pong", "its pong").await;
}

async fn one_who_may_not_send_is_told_so(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let path = format!("/api/v1/conversations/{conversation}/participants/{bob}");
    let mut socket = cluster.connect(1, bob).await;
    let allow = async |allowed: bool| {
        let body = json!({ "can_send_messages": allowed });
        cluster.rest(0, alice).patch(&path, body).await.body(200);
    };
    allow(false).await;
    let body = text(conversation, "may I?");
    let refused = cluster.rest(1, bob).post("/api/v1/messages", body.clone()).await;
    refused.refused(403, "forbidden", None);
    socket.command("send_message", body.clone()).await.refused(403, "forbidden", None);
    allow(true).await;
    socket.command("send_message", body).await.ok();
}

/// What the parser of requests takes, the one that reads the database must take, too.
async fn metadata_that_was_taken_can_be_read(cluster: &Cluster) {
    let alice = user();
    let deep = |depth: usize| format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
    for (metadata, what) in [
        (deep(100), "100 levels"),
        (deep(130), "130 levels"),
        (deep(1_000), "1,000 levels"),
        (r#"{"n":18446744073709551615,"m":-9223372036854775808}"#.into(), "large numbers"),
        (r#"{"n":123456789012345678901234567890}"#.into(), "a number beyond 64 bits"),
        (r#"{"n":1e308,"m":5e-324,"o":-0.0}"#.into(), "extreme numbers"),
        (r#"{"n":1e400}"#.into(), "a number that is none"),
        (r#"{"a":1,"a":2}"#.into(), "a key twice"),
        (r#"{"":"","\u00e9\ud83d\ude00":"\\u0000"}"#.into(), "odd keys"),
        (r#"{"a":"\ud800"}"#.into(), "half a character"),
    ] {
        let conversation = cluster.group(0, alice, &[]).await;
        let body = format!(
            r#"{{"conversation_id":"{conversation}","message_type":"text","content":"x","metadata":{metadata}}}"#
        );
        let reply = cluster.rest(0, alice).call("POST", "/api/v1/messages", &body).await;
        println!("{what}: {}", reply.status);
        assert!([201, 400, 422].contains(&reply.status), "{what}: {}", reply.text);
        let path = format!("/api/v1/conversations/{conversation}/messages");
        let history = cluster.rest(0, alice).get(&path).await;
        assert_eq!(history.status, 200, "{what}, answered {}: {}", reply.status, history.text);
        if reply.status == 201 {
            let stored = history.json()["messages"][0]["metadata"].clone();
            assert_eq!(stored, reply.json()["metadata"], "{what}");
        }
    }
}
