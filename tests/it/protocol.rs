//! The WebSocket protocol as the RFC has it, against clients that break it; and who is let in.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::client::{Client, Opening};
use crate::harness::cluster::{Cluster, user};
use crate::harness::raw::{BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, Raw, TEXT, frame, head};
use crate::harness::{scenarios, until};

scenarios! {
    what_breaks_the_protocol_is_closed_with_its_code,
    a_fragmented_message_is_put_together_and_answered,
    frames_arrive_in_any_pieces,
    a_frame_above_the_limit_is_answered_and_one_far_above_closes,
    commands_that_make_no_sense_end_the_session_after_twenty,
    a_close_is_answered_and_judged,
    a_foreign_page_opens_no_socket ["ALLOWED_ORIGINS" = "https://chat.example"],
    no_more_sockets_than_allowed_are_open ["MAX_CONNECTIONS" = "3"],
    a_handshake_that_is_none_is_refused,
    a_client_that_says_nothing_does_not_stay,
    a_silent_client_is_asked_for_life_and_closed
        ["HEARTBEAT_INTERVAL" = "500ms", "HEARTBEAT_TIMEOUT" = "500ms"],
}

const PING_COMMAND: &[u8] = br#"{"type":"ping"}"#;

/// A limit of the defaults.
const MAX_FRAME: usize = 64 * 1024;

async fn what_breaks_the_protocol_is_closed_with_its_code(cluster: &Cluster) {
    let unmasked = [head(FIN | TEXT, PING_COMMAND.len(), 0), PING_COMMAND.to_vec()].concat();
    let announced = |size| [head(FIN | TEXT, size, 0x80), vec![0; 4]].concat();
    let far_too_long = announced(16 << 20);
    let endless = announced(usize::MAX >> 1);
    let nonsense = [0xff; 32].to_vec();
    let long_control = |opcode| frame(FIN | opcode, &[b'x'; 126]);
    let pair = |first: Vec<u8>, second: Vec<u8>| [first, second].concat();
    for (what, bytes, code) in [
        ("text that is not UTF-8", frame(FIN | TEXT, b"\xff\xfe"), 1007),
        ("text that is cut in a character", frame(FIN | TEXT, b"\"\xf0\x9f\x98"), 1007),
        (
            "fragments that are not UTF-8 together",
            pair(frame(TEXT, b"\"\xf0\x9f"), frame(FIN | CONTINUATION, b"\"")),
            1007,
        ),
        ("an encoded surrogate", frame(FIN | TEXT, b"\"\xed\xa0\x80\""), 1007),
        ("an unmasked frame", unmasked, 1002),
        ("the first reserved bit", frame(FIN | 0x40 | TEXT, PING_COMMAND), 1002),
        ("the second reserved bit", frame(FIN | 0x20 | TEXT, PING_COMMAND), 1002),
        ("the third reserved bit", frame(FIN | 0x10 | TEXT, PING_COMMAND), 1002),
        ("a reserved data opcode", frame(FIN | 0x3, b""), 1002),
        ("a reserved control opcode", frame(FIN | 0xb, b""), 1002),
        ("a ping above 125 bytes", long_control(PING), 1002),
        ("a pong above 125 bytes", long_control(PONG), 1002),
        ("a close above 125 bytes", long_control(CLOSE), 1002),
        ("a fragmented ping", frame(PING, b"a"), 1002),
        ("a fragmented close", frame(CLOSE, b""), 1002),
        ("a continuation of nothing", frame(FIN | CONTINUATION, b"x"), 1002),
        (
            "a message within a message",
            pair(frame(TEXT, b"{"), frame(FIN | TEXT, PING_COMMAND)),
            1002,
        ),
        ("a frame far above the limit", far_too_long, 1009),
        ("a frame of no sensible length", endless, 1009),
        ("nonsense", nonsense, 1002),
    ] {
        println!("{what}");
        let mut raw = Raw::upgraded(cluster.addr(0)).await;
        raw.send(&bytes).await;
        assert_eq!(raw.closed().await, Some(code), "{what}");
        assert!(raw.ends_within(Duration::from_secs(5)).await, "{what}: the connection ends");
    }
}

async fn a_fragmented_message_is_put_together_and_answered(cluster: &Cluster) {
    let mut raw = Raw::upgraded(cluster.addr(0)).await;
    raw.frame(TEXT, b"{\"type\":\"ping\",\"ref\":\"\xf0\x9f").await;
    raw.frame(FIN | PING, b"in between").await;
    raw.frame(CONTINUATION, b"").await;
    assert_eq!(raw.read_frame().await, Some((FIN | PONG, b"in between".to_vec())));
    raw.frame(CONTINUATION, b"\x98\x80").await;
    raw.frame(FIN | PONG, b"unasked").await;
    raw.frame(FIN | CONTINUATION, b"\"}").await;
    assert_eq!(raw.event().await["type"], "pong");
    assert_eq!(raw.event().await, json!({ "type": "ok", "ref": "😀", "payload": {} }));
    // One byte a frame; and the same in binary frames.
    for opcode in [TEXT, BINARY] {
        raw.frame(opcode, b"").await;
        for byte in PING_COMMAND {
            raw.frame(CONTINUATION, &[*byte]).await;
        }
        raw.frame(FIN | CONTINUATION, b"").await;
        assert_eq!(raw.event().await["type"], "pong");
    }
    // Fragments are bounded together as a frame is.
    raw.frame(TEXT, b"\"").await;
    for _ in 0..6 {
        raw.frame(CONTINUATION, &vec![b'x'; MAX_FRAME]).await;
    }
    assert_eq!(raw.closed().await, Some(1009));
}

async fn frames_arrive_in_any_pieces(cluster: &Cluster) {
    let mut raw = Raw::upgraded(cluster.addr(0)).await;
    let payload = vec![b'p'; 125];
    let mut bytes = frame(FIN | TEXT, PING_COMMAND);
    bytes.extend(frame(FIN | PING, &payload));
    for byte in &bytes {
        raw.send(&[*byte]).await;
    }
    assert_eq!(raw.event().await["type"], "pong");
    assert_eq!(raw.read_frame().await, Some((FIN | PONG, payload)));
    // Many at once.
    raw.send(&bytes.repeat(50)).await;
    for _ in 0..50 {
        assert_eq!(raw.event().await["type"], "pong");
        assert_eq!(raw.read_frame().await.unwrap().0, FIN | PONG);
    }
    // Before the handshake was answered.
    let mut raw = Raw::connect(cluster.addr(0)).await;
    let mut early = format!(
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         X-User-ID: {}\r\n\r\n",
        user()
    )
    .into_bytes();
    early.extend(&bytes);
    raw.send(&early).await;
    assert!(raw.head().await.starts_with("HTTP/1.1 101 "));
    assert_eq!(raw.event().await["type"], "hello");
    assert_eq!(raw.event().await["type"], "pong");
}

async fn a_frame_above_the_limit_is_answered_and_one_far_above_closes(cluster: &Cluster) {
    for fragments in [1, 2] {
        let mut raw = Raw::upgraded(cluster.addr(0)).await;
        let large = vec![b' '; (MAX_FRAME + 2) / fragments];
        for at in 0..fragments {
            let first = if at == 0 { TEXT } else { CONTINUATION };
            let fin = if at + 1 == fragments { FIN } else { 0 };
            raw.frame(fin | first, &large).await;
        }
        let error = raw.event().await;
        assert_eq!(
            (&error["type"], &error["payload"]["code"]),
            (&json!("error"), &json!("too_large"))
        );
        raw.frame(FIN | TEXT, PING_COMMAND).await;
        assert_eq!(raw.event().await["type"], "pong", "the socket stays open");
        // A full frame is within the limit.
        let mut full = PING_COMMAND.to_vec();
        full.resize(MAX_FRAME, b' ');
        raw.frame(FIN | TEXT, &full).await;
        assert_eq!(raw.event().await["type"], "pong");
    }
}

async fn commands_that_make_no_sense_end_the_session_after_twenty(cluster: &Cluster) {
    let mut raw = Raw::upgraded(cluster.addr(0)).await;
    for at in 0..20 {
        let nonsense: &[u8] = if at % 2 == 0 { b"{" } else { br#"{"type":"fly"}"# };
        raw.frame(FIN | TEXT, nonsense).await;
        assert_eq!(raw.event().await["type"], "error");
    }
    raw.frame(FIN | TEXT, PING_COMMAND).await;
    assert_eq!(raw.event().await["type"], "pong", "twenty are borne");
    raw.frame(FIN | TEXT, b"nonsense").await;
    assert_eq!(raw.event().await["type"], "error", "the last one is answered, too");
    assert_eq!(raw.closed().await, Some(4400));
}

async fn a_close_is_answered_and_judged(cluster: &Cluster) {
    for (payload, code) in [
        (&b""[..], 1000),
        (b"\x03\xe8", 1000),
        (b"\x03\xe9bye", 1000),
        (b"\x0f\xa0my own", 1000),
        (b"\x03", 1002),
        (b"\x03\xe7", 1002),
        (b"\x03\xed", 1002),
        (b"\x03\xee", 1002),
        (b"\x13\x88", 1002),
        (b"\x03\xe8\xff", 1007),
    ] {
        let mut raw = Raw::upgraded(cluster.addr(0)).await;
        raw.frame(FIN | CLOSE, payload).await;
        assert_eq!(raw.closed().await, Some(code), "{payload:?}");
        assert!(raw.ends_within(Duration::from_secs(5)).await, "{payload:?}");
    }
    cluster.connect(0, user()).await.close().await;
}

async fn a_foreign_page_opens_no_socket(cluster: &Cluster) {
    let addr = cluster.addr(0);
    let open = async |origin: &str| {
        let headers = vec![("origin", origin.to_owned())];
        Client::open(addr, Opening { headers, ..Opening::new(user()) }).await
    };
    for origin in
        ["https://evil.example", "null", "http://chat.example", "https://chat.example.evil"]
    {
        let refused = open(origin).await.err().expect("it is refused");
        assert_eq!((refused.status, &refused.problem["code"]), (403, &json!("foreign_origin")));
    }
    assert!(open("https://chat.example").await.is_ok(), "it is on the list");
    assert!(open(&format!("http://{addr}")).await.is_ok(), "our own page");
}

async fn no_more_sockets_than_allowed_are_open(cluster: &Cluster) {
    let addr = cluster.addr(0);
    let open = async || Client::open(addr, Opening::new(user())).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(open().await.expect("there is room"));
    }
    for _ in 0..3 {
        let refused = open().await.err().expect("there is no room");
        assert_eq!((refused.status, &refused.problem["code"]), (503, &json!("busy")));
        assert!(refused.retry_after.is_some() && refused.problem["retry_ms"].is_number());
    }
    held[0].drain().await;
    held.pop().unwrap().close().await;
    let again = until("the place of one who left is free", async || open().await.ok()).await;
    // Also of one who left without a word.
    drop(again);
    until("the place of one who vanished is free", async || open().await.ok()).await;
}

async fn a_handshake_that_is_none_is_refused(cluster: &Cluster) {
    let refused = async |request: String| {
        let mut raw = Raw::connect(cluster.addr(0)).await;
        raw.send(request.as_bytes()).await;
        let head = raw.head().await;
        head.split(' ').nth(1).unwrap().to_owned()
    };
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let base = format!("GET /ws HTTP/1.1\r\nHost: localhost\r\nX-User-ID: {}\r\n", user());
    let version = "Sec-WebSocket-Version: 13\r\n";
    assert_eq!(refused(format!("{base}{upgrade}{version}\r\n")).await, "400", "no key");
    let old = refused(format!("{base}{upgrade}{key}Sec-WebSocket-Version: 8\r\n\r\n")).await;
    assert!(old == "400" || old == "426", "an old version: {old}");
    let none = refused(format!("{base}{upgrade}{key}\r\n")).await;
    assert!(none == "400" || none == "426", "no version: {none}");
    assert_eq!(refused(format!("{base}{key}{version}\r\n")).await, "426");
    let large = format!("{base}{upgrade}{key}{version}X-Large: {}\r\n\r\n", "x".repeat(20_000));
    assert_eq!(refused(large).await, "431");
    let many = format!("{base}{}\r\n", "X-Many: 1\r\n".repeat(200));
    assert_eq!(refused(many).await, "431");
    assert_eq!(refused("NONSENSE\r\n\r\n".into()).await, "400");
    assert_eq!(refused(format!("{base}{upgrade}{key}{version}\r\n")).await, "101");
}

async fn a_client_that_says_nothing_does_not_stay(cluster: &Cluster) {
    let started = Instant::now();
    let mut silent = Raw::connect(cluster.addr(0)).await;
    let mut slow = Raw::connect(cluster.addr(0)).await;
    slow.send(b"GET /ws HTTP/1.1\r\nHost: x\r\n").await;
    let mut dripping = Raw::connect(cluster.addr(0)).await;
    dripping.send(b"GET /ws HTTP/1.1\r\nX-Slow: ").await;
    let limit = Duration::from_secs(13);
    let drip = async {
        while !dripping.ends_within(Duration::from_secs(1)).await {
            assert!(started.elapsed() < limit, "a client that sends a byte a second stays");
            dripping.send(b"x").await;
        }
    };
    let (silent, slow, ()) = tokio::join!(silent.ends_within(limit), slow.ends_within(limit), drip);
    assert!(silent, "one that sends nothing is let go");
    assert!(slow, "one that does not end its request is let go");
    assert!(started.elapsed() >= Duration::from_secs(8), "a slow network has its time");
}

async fn a_silent_client_is_asked_for_life_and_closed(cluster: &Cluster) {
    // This one answers pings by itself, as long as it reads.
    let mut lively = cluster.connect(1, user()).await;
    let mut raw = Raw::upgraded(cluster.addr(0)).await;
    let read = lively.read_for(Duration::from_secs(3));
    let silent = async {
        let (first, _) = raw.read_frame().await.expect("it is asked first");
        assert_eq!(first, FIN | PING);
        assert_eq!(raw.closed().await, Some(4000));
    };
    tokio::join!(read, silent);
    assert!(lively.drain().await.is_empty(), "one that lives stays");
}
