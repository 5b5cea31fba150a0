//! The values that the documents' examples are made of: Ada writes to Grace.

use serde_json::{Value, json};

pub const ADA: &str = "11111111-1111-4111-8111-111111111111";
pub const GRACE: &str = "22222222-2222-4222-8222-222222222222";
pub const CONVERSATION: &str = "019ab3e2-7f10-7a41-9c55-3b1f0c8d2e01";
pub const MESSAGE: &str = "019ab3e2-8a02-7c3d-8b7e-5d2a9f4c6b02";
const AT: &str = "2026-11-22T09:30:00.123Z";
const LATER: &str = "2026-11-22T09:31:00.456Z";

/// An example for an id in a path.
pub fn path_id(template: &str, name: &str) -> &'static str {
    match name {
        "user_id" => GRACE,
        _ if template.contains("/messages/{id}") => MESSAGE,
        _ => CONVERSATION,
    }
}

pub fn send() -> Value {
    json!({
        "conversation_id": CONVERSATION,
        "message_type": "text",
        "content": "Hello @Grace",
        "client_message_id": "a-1",
        "mentions": [{ "user_id": GRACE, "offset": 6, "length": 6 }],
    })
}

pub fn edit() -> Value {
    json!({ "content": "Hello Grace" })
}

pub fn message() -> Value {
    json!({
        "id": MESSAGE,
        "conversation_id": CONVERSATION,
        "seq": 2,
        "change_seq": 2,
        "sender_id": ADA,
        "client_message_id": "a-1",
        "message_type": "text",
        "content": "Hello @Grace",
        "parent_message_id": null,
        "reply_count": 0,
        "mentions": [{ "user_id": GRACE, "offset": 6, "length": 6 }],
        "metadata": null,
        "created_at": AT,
        "edited_at": null,
        "deleted_at": null,
    })
}

pub fn edited() -> Value {
    let mut message = message();
    message["change_seq"] = 3.into();
    message["content"] = "Hello Grace".into();
    message["mentions"] = Value::Null;
    message["edited_at"] = LATER.into();
    message
}

pub fn deleted() -> Value {
    let mut message = edited();
    message["change_seq"] = 4.into();
    message["content"] = Value::Null;
    message["deleted_at"] = LATER.into();
    message
}

pub fn version() -> Value {
    let message = message();
    json!({
        "seq": 2,
        "content": message["content"],
        "mentions": message["mentions"],
        "metadata": null,
        "edited_at": AT,
    })
}

pub fn receipts() -> Value {
    json!([{
        "user_id": GRACE,
        "delivered": true,
        "delivered_at": AT,
        "read": true,
        "read_at": LATER,
    }])
}

fn member(user: &str, role: &str) -> Value {
    json!({
        "user_id": user,
        "role": role,
        "can_send_messages": true,
        "joined_at": AT,
        "delivered_seq": 2,
        "read_seq": 1,
    })
}

pub fn members() -> Value {
    json!([member(ADA, "owner"), member(GRACE, "member")])
}

/// As a member sees it.
pub fn conversation() -> Value {
    json!({
        "id": CONVERSATION,
        "kind": "group",
        "title": "Compilers",
        "created_by": ADA,
        "created_at": AT,
        "last_seq": 2,
        "last_message": message(),
        "unread_count": 0,
        "me": {
            "role": "owner",
            "can_send_messages": true,
            "delivered_seq": 2,
            "read_seq": 2,
            "muted_until": null,
        },
        "members": members(),
    })
}

/// As events tell it.
pub fn conversation_event() -> Value {
    let mut conversation = conversation();
    let fields = conversation.as_object_mut().expect("it is an object");
    fields.remove("unread_count");
    fields.remove("me");
    json!({ "conversation": conversation, "seq": 1, "timestamp": AT })
}

pub fn sync() -> Value {
    json!({ "conversations": { CONVERSATION: 1 }, "limit": 200 })
}

pub fn synced() -> Value {
    json!({
        "store_epoch": "c1d2e3f4-a5b6-4c7d-8e9f-0a1b2c3d4e5f",
        "conversations": [{
            "id": CONVERSATION,
            "status": "changed",
            "messages": [message()],
            "next_seq": 2,
            "more": false,
        }],
        "next_after": null,
    })
}

pub fn presence() -> Value {
    json!([{
        "user_id": GRACE,
        "online": true,
        "devices": [{ "device_id": "laptop", "platform": "web" }],
        "last_seen": null,
    }])
}

pub fn readiness() -> Value {
    json!({
        "status": "ready",
        "stopping": false,
        "node_id": "5f0a9c1e-6d7b-4e2f-8a3c-9b1d2e4f6a70",
        "store": "up",
        "bus": "up",
        "offline": "up",
    })
}

/// The payload of an event by its type; null for one that has none yet, which a test refuses.
pub fn event(kind: &str) -> Value {
    let of = |message: Value| json!({ "type": kind, "seq": message["change_seq"], "message": message, "timestamp": LATER });
    match kind {
        "hello" => json!({
            "session_id": "8d3b6c52-0f1e-4a7d-b2c9-6e5f4a3b2c1d",
            "node_id": "5f0a9c1e-6d7b-4e2f-8a3c-9b1d2e4f6a70",
            "user_id": GRACE,
            "device_id": "laptop",
            "heartbeat_seconds": 25,
            "limits": {
                "max_frame_bytes": 65_536,
                "max_content_bytes": 16_384,
                "max_metadata_bytes": 8_192,
                "max_group_size": 1_000,
            },
            "store_epoch": "c1d2e3f4-a5b6-4c7d-8e9f-0a1b2c3d4e5f",
            "server_time": AT,
        }),
        "new_message" => of(message()),
        "message_updated" => of(edited()),
        "message_deleted" => of(deleted()),
        "conversation_updated" => conversation_event(),
        "message_delivered" | "message_read" => json!({
            "message_id": MESSAGE,
            "conversation_id": CONVERSATION,
            "user_id": GRACE,
            "from_seq": 2,
            "up_to_seq": 2,
            "timestamp": LATER,
        }),
        "typing" => json!({
            "conversation_id": CONVERSATION,
            "user_id": GRACE,
            "is_typing": true,
            "timestamp": AT,
        }),
        "presence" => json!({ "user_id": GRACE, "online": false, "last_seen": AT }),
        "pong" => json!({ "timestamp": AT }),
        "resync" => json!({ "conversations": [CONVERSATION] }),
        "reconnect" => json!({ "after_ms": 1_500 }),
        _ => Value::Null,
    }
}
