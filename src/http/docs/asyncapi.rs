//! AsyncAPI 3.0, written from the events, the table of commands and the close codes.

use serde_json::{Map, Value, json};

use super::commands::commands;
use super::frames::{self, Framed};
use super::shape::Shapes;
use crate::protocol::code::{CloseCode, Code};

const DESCRIPTION: &str = "\
A WebSocket at `/ws`; REST is described in `/openapi.json`. Frames are JSON in text frames.

A client that offers the subprotocol `tidings.v1.json` gets all events. One that offers none is a \
*classic* client: it gets `hello`, `new_message`, `message_updated`, `message_deleted`, \
`message_delivered`, `message_read`, `typing` (beginnings only), `pong`, `ok` and `error`, and is closed with 4003 where others get a \
`resync`.

Behind events the node sends WebSocket pings, whose pongs prove the delivery. A client that wants to say \
more opens `/ws?features=acks`: then only its `ack` proves it.

A command with a `ref` is answered by `ok` or `error` with the same `ref`; one without is answered \
only if it is refused. Fields and event types that are not known are ignored on both sides. An event's `seq` is its change's \
place in the conversation, without gaps; live order is restored by it.";

pub fn document() -> Value {
    let mut shapes = Shapes::new();
    let given = frames::given(&mut shapes);
    let mut sent = frames::events(&mut shapes);
    let entries = commands();
    let answers: Vec<_> = entries.iter().map(|entry| frames::ok(entry, &mut shapes)).collect();
    let mut messages = Map::new();
    let mut operations = Map::new();
    let error = frames::error(&mut shapes);
    for (frame, answer) in given.into_iter().zip(answers) {
        let mut replies = vec![on_channel("error")];
        if let Some(answer) = answer {
            replies.insert(0, on_channel(&answer.name));
            messages.insert(answer.name.clone(), message(answer));
        }
        // An event may have the same name.
        let key = format!("{}_command", frame.name);
        let operation = json!({
            "action": "receive",
            "title": frame.name,
            "description": frame.description,
            "channel": { "$ref": "#/channels/socket" },
            "messages": [on_channel(&key)],
            "reply": { "channel": { "$ref": "#/channels/socket" }, "messages": replies },
        });
        operations.insert(format!("on_{}", frame.name), operation);
        messages.insert(key, message(frame));
    }
    sent.push(error);
    for frame in sent {
        let operation = json!({
            "action": "send",
            "title": frame.name,
            "description": frame.description,
            "channel": { "$ref": "#/channels/socket" },
            "messages": [on_channel(&frame.name)],
        });
        operations.insert(format!("tell_{}", frame.name), operation);
        messages.insert(frame.name.clone(), message(frame));
    }
    let names: Map<String, Value> = messages
        .keys()
        .map(|name| (name.clone(), json!({ "$ref": format!("#/components/messages/{name}") })))
        .collect();
    let mut document = json!({
        "asyncapi": "3.0.0",
        "id": "urn:tidings:socket",
        "info": {
            "title": "Tidings",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": {
                "name": "Apache-2.0",
                "url": "https://www.apache.org/licenses/LICENSE-2.0",
            },
            "tags": [{ "name": "chat", "description": "Messages, delivered and kept." }],
        },
        "defaultContentType": "application/json",
        "servers": {
            "node": {
                "host": "127.0.0.1:8083",
                "protocol": "ws",
                "description": "A node on a laptop; any node of a cluster will do.",
            },
        },
        "channels": {
            "socket": {
                "address": "/ws",
                "description": "One session of one device.",
                "servers": [{ "$ref": "#/servers/node" }],
                "messages": names,
                "bindings": { "ws": { "method": "GET", "headers": handshake() } },
                "x-close-codes": CloseCode::ALL.map(close_code),
            },
        },
        "operations": operations,
        "components": { "messages": messages },
        "x-problem-codes": Code::ALL.map(|code| json!({
            "code": code.name(),
            "status": code.status(),
            "title": code.title(),
            "retry_ms": code.retry_ms(),
        })),
    });
    let schemas = shapes.finish(&mut document, "#/components/schemas/");
    document["components"]["schemas"] = schemas.into();
    document
}

fn on_channel(name: &str) -> Value {
    json!({ "$ref": format!("#/channels/socket/messages/{name}") })
}

fn message(frame: Framed) -> Value {
    json!({
        "name": frame.name,
        "title": frame.name,
        "summary": frame.description,
        "contentType": "application/json",
        "payload": frame.schema,
        "examples": [{ "name": frame.name, "payload": frame.example }],
    })
}

fn handshake() -> Value {
    json!({
        "type": "object",
        "properties": {
            "X-User-ID": { "type": "string", "format": "uuid", "description": "Who is asking." },
            "X-Device-ID": { "type": "string", "description": "What the user connects from." },
            "X-Platform": { "type": "string", "description": "`ios`, `android`, `web`." },
            "X-App-Version": { "type": "string", "description": "The app's own." },
            "Sec-WebSocket-Protocol": {
                "type": "string",
                "description": "`tidings.v1.json`; none makes a classic client.",
            },
        },
    })
}

fn close_code(code: CloseCode) -> Value {
    json!({
        "code": code.number(),
        "name": code.name(),
        "meaning": code.meaning(),
        "retry_ms": code.retry_ms(),
    })
}
