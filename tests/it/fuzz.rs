//! Random and mutated frames and commands against the real binary: it does not panic, stays ready,
//! and a session ends only where the protocol says so.
//!
//! Seeds are fixed, so that a failure comes again. `TIDINGS_FUZZ_SEEDS=100..300` takes others.

use std::ops::Range;

use serde_json::{Map, Value, json};
use tidings::http::docs::asyncapi_document;
use uuid::Uuid;

use crate::harness::client::{Client, Opening};
use crate::harness::cluster::{Kind, on_ground, user};
use crate::harness::http::Rest;
use crate::harness::process::{Process, Signal};
use crate::harness::raw::{BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, Raw, TEXT, frame};

/// Of commands that make no sense, in a minute; the next one ends the session.
const FAULTS: usize = 20;
const COMMANDS_PER_SEED: usize = 60;
const STREAMS_PER_SEED: usize = 12;

pub fn seeds() -> Range<u64> {
    #[expect(clippy::disallowed_methods, reason = "asks for the tests, not for the service")]
    let given = std::env::var("TIDINGS_FUZZ_SEEDS");
    given.map_or(1..9, |text| {
        let (from, to) = text.split_once("..").expect("seeds are FROM..TO");
        from.parse().expect("a number")..to.parse().expect("a number")
    })
}

/// SplitMix64: the same numbers everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    pub fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    pub fn one<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| *self.of(all))
    }

    fn text(&mut self) -> String {
        let parts = [
            "",
            "a",
            "\0",
            "\u{fffd}",
            "\u{10ffff}",
            "é",
            "😀",
            "\"",
            "\\",
            "\u{202e}",
            "{",
            "\n",
            " ",
        ];
        (0..self.below(12)).map(|_| *self.of(&parts)).collect()
    }

    fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth > 3 { 9 } else { 11 }) {
            0 => Value::Null,
            1 => json!(self.next().is_multiple_of(2)),
            2 => json!(self.next() as i64),
            3 => json!(self.next()),
            4 => json!(f64::MAX),
            5 => json!(-0.0),
            6 => Uuid::from_u128(u128::from(self.next()) << 64 | u128::from(self.next()))
                .to_string()
                .into(),
            7 => self.text().into(),
            8 => "x".repeat(self.below(20_000)).into(),
            9 => (0..self.below(5)).map(|_| self.value(depth + 1)).collect(),
            _ => (0..self.below(5))
                .map(|_| (self.text(), self.value(depth + 1)))
                .collect::<Map<_, _>>()
                .into(),
        }
    }

    /// Changes one place in it.
    fn mutate(&mut self, value: &mut Value) {
        match value {
            Value::Object(map) if !map.is_empty() && self.below(4) > 0 => {
                let keys: Vec<_> = map.keys().cloned().collect();
                let key = self.of(&keys).clone();
                match self.below(5) {
                    0 => drop(map.remove(&key)),
                    1 => drop(map.insert(self.text(), self.value(0))),
                    _ => self.mutate(map.get_mut(&key).expect("it is there")),
                }
            }
            Value::Array(list) if !list.is_empty() && self.below(4) > 0 => {
                let at = self.below(list.len());
                match self.below(4) {
                    0 => drop(list.remove(at)),
                    1 => *list = vec![list[at].clone(); self.below(150)],
                    _ => self.mutate(&mut list[at]),
                }
            }
            value => *value = self.value(0),
        }
    }

    /// Changes characters of it: mostly no JSON any more.
    fn garble(&mut self, text: &str) -> String {
        let mut all: Vec<char> = text.chars().collect();
        for _ in 0..=self.below(3) {
            let at = self.below(all.len());
            match self.below(4) {
                0 => all.truncate(at),
                1 => all.insert(at, *self.of(&['{', '[', '"', '\\', ',', '\0', '9', 'e', '😀'])),
                2 if !all.is_empty() => drop(all.remove(at)),
                _ => all.splice(at..at, "[".repeat(self.below(60)).chars()).for_each(drop),
            }
        }
        all.into_iter().collect()
    }
}

/// One valid command of each kind, about what is there.
fn commands(conversation: Uuid, message: &Value) -> Vec<Value> {
    let messages = asyncapi_document()["components"]["messages"].as_object().unwrap();
    let commands = asyncapi_document()["operations"].as_object().unwrap().values();
    let commands = commands.filter(|operation| operation["action"] == "receive");
    let examples = commands.map(|command| {
        let name = command["title"].as_str().unwrap();
        let mut frame = messages[&format!("{name}_command")]["examples"][0]["payload"].clone();
        for (field, value) in
            [("conversation_id", json!(conversation)), ("message_id", message["id"].clone())]
        {
            if frame["payload"].get(field).is_some() {
                frame["payload"][field] = value;
            }
        }
        frame
    });
    examples.collect()
}

/// Runs `attack` on the real binary and sees that it is well afterwards.
async fn survives(attack: impl AsyncFnOnce(std::net::SocketAddr)) {
    on_ground(Kind::Embedded, &[("LOG_FORMAT", "json")], async |ground| {
        let (mut process, addr) = Process::node(&ground.settings("0")).await;
        attack(addr).await;
        assert_eq!(Rest::new(addr, None).get("/ready").await.body(200)["status"], "ready");
        process.signal(Signal::TERM);
        assert!(process.exit().await.success());
        let errors = process.errors();
        assert!(!errors.contains("panicked"), "{errors}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mutated_commands_are_answered_and_end_no_session() {
    survives(async |addr| {
        let ada = user();
        let rest = Rest::new(addr, Some(ada));
        let group = json!({ "kind": "group", "participants": [user()] });
        let group = rest.post("/api/v1/conversations", group).await.body(201);
        let group: Uuid = serde_json::from_value(group["id"].clone()).unwrap();
        let text = crate::harness::cluster::text(group, "Hello");
        let message = rest.post("/api/v1/messages", text).await.body(201);
        let commands = commands(group, &message);
        for seed in seeds() {
            let mut random = Random(seed);
            let mut client = Client::open(addr, Opening::new(ada)).await.unwrap();
            let mut faults = 0;
            for at in 0..COMMANDS_PER_SEED {
                let mut command = random.of(&commands).clone();
                command["ref"] = "fuzzed".into();
                for _ in 0..=random.below(2) {
                    random.mutate(&mut command);
                }
                let text = command.to_string();
                let text = if random.below(4) == 0 { random.garble(&text) } else { text };
                let what = || format!("seed {seed}, command {at}: {text:.500}");
                client.send_text(&text).await;
                let mark = format!("mark-{at}");
                client.try_send_text(&json!({ "type": "ping", "ref": mark }).to_string()).await;
                loop {
                    let Some(event) = client.try_next().await else {
                        assert!(faults > FAULTS, "closed too early, {}", what());
                        assert_eq!(client.closed().await.0, 4400, "{}", what());
                        client = Client::open(addr, Opening::new(ada)).await.unwrap();
                        faults = 0;
                        break;
                    };
                    if event["ref"] == mark.as_str() {
                        assert!(faults <= FAULTS, "open too long, {}", what());
                        break;
                    }
                    let code =
                        event["payload"]["code"].as_str().filter(|_| event["type"] == "error");
                    assert!(
                        !matches!(code, Some("internal" | "unavailable")),
                        "{event}, {}",
                        what()
                    );
                    faults += usize::from(matches!(code, Some("malformed" | "unknown_command")));
                }
            }
            client.close().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mutated_frames_end_with_a_code_of_the_protocol() {
    survives(async |addr| {
        for seed in seeds() {
            let mut random = Random(seed);
            for at in 0..STREAMS_PER_SEED {
                let mut bytes = Vec::new();
                for _ in 0..=random.below(6) {
                    let opcodes = [TEXT, BINARY, CONTINUATION, PING, PONG, CLOSE, 0x3, 0xf];
                    let mut first = *random.of(&opcodes);
                    if random.below(5) > 0 {
                        first |= FIN;
                    }
                    if random.below(12) == 0 {
                        first |= *random.of(&[0x10, 0x20, 0x40]);
                    }
                    let payload = match random.below(4) {
                        0 => random.text().into_bytes(),
                        1 => (0..random.below(200)).map(|_| random.next() as u8).collect(),
                        _ => br#"{"type":"ping"}"#.to_vec(),
                    };
                    bytes.extend(frame(first, &payload));
                }
                for _ in 0..random.below(3) {
                    let place = random.below(bytes.len());
                    bytes[place] ^= 1 << random.below(8);
                }
                let mut raw = Raw::upgraded(addr).await;
                raw.send(&bytes).await;
                for (first, payload) in raw.finish().await {
                    let what = format!("seed {seed}, stream {at}: {first:#x} {payload:?}");
                    match first ^ FIN {
                        TEXT => drop(serde_json::from_slice::<Value>(&payload).expect(&what)),
                        PONG | PING => assert!(payload.len() <= 125, "{what}"),
                        CLOSE => {
                            let code = u16::from_be_bytes([payload[0], payload[1]]);
                            assert!(matches!(code, 1000 | 1002 | 1007 | 1009), "{what}");
                        }
                        _ => panic!("{what}"),
                    }
                }
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mutated_requests_are_refused_or_cut() {
    survives(async |addr| {
        let body = json!({ "kind": "group", "participants": [] }).to_string();
        for seed in seeds() {
            let mut random = Random(seed);
            for at in 0..STREAMS_PER_SEED {
                let request = format!(
                    "{} {} HTTP/1.1\r\nHost: x\r\nX-User-ID: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    random.of(&["POST", "GET", "PUT", "PATCH", "DELETE", "TRACE", "PRI", "OPTIONS"]),
                    random.of(&["/api/v1/conversations", "/ws", "/docs", "/", "*", "/%00", "/api/v1/messages/%ff"]),
                    user(),
                    body.len(),
                );
                let mut bytes = request.into_bytes();
                for _ in 0..random.below(4) {
                    let place = random.below(bytes.len());
                    match random.below(3) {
                        0 => bytes[place] ^= 1 << random.below(8),
                        1 => drop(bytes.remove(place)),
                        _ => bytes.insert(place, random.next() as u8),
                    }
                }
                let mut raw = Raw::connect(addr).await;
                raw.send(&bytes).await;
                let answer = raw.finish_text().await;
                let what = format!("seed {seed}, request {at}: {answer:.300}");
                assert!(answer.is_empty() || answer.starts_with("HTTP/1."), "{what}");
                assert!(!answer.starts_with("HTTP/1.1 5"), "{what}");
            }
        }
    })
    .await;
}
