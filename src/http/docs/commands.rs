//! Every command there is, and what it is answered with.

use schemars::JsonSchema;
use serde_json::{Value, json};

use super::examples::{self as example, CONVERSATION, GRACE, MESSAGE};
use super::shape::{Shape, given, sent};
use crate::ids::MessageId;
use crate::protocol::answer::{PresenceList, TokenRefreshed};
use crate::protocol::command::{Ack, EditMessage, SendMessage, SyncRequest, Typing, WatchPresence};
use crate::protocol::model::Message;
use crate::protocol::sync::SyncAnswer;

pub struct CommandEntry {
    pub name: &'static str,
    pub description: &'static str,
    pub payload: Option<(Shape, Value)>,
    /// What an `ok` carries; None if the command is never answered by one.
    pub answer: Option<(Shape, Value)>,
}

/// Edits the message it names.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "the shape of what `protocol::command` reads in two steps")]
struct EditMessageCommand {
    message_id: MessageId,
    #[serde(flatten)]
    edit: EditMessage,
}

/// Names a message.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "the shape of what `protocol::command` reads by itself")]
struct MessageCommand {
    message_id: MessageId,
}

/// Brings a token.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "the shape of what `protocol::command` keeps secret")]
struct RefreshCommand {
    token: String,
}

/// A message as it was made or changed.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "the shape of `protocol::event::MessageAnswer`, which borrows")]
struct MessageAnswer {
    message: Message,
}

/// Nothing besides that it was done.
#[derive(JsonSchema)]
#[schemars(extend("properties" = {}))]
struct Done {}

pub fn commands() -> Vec<CommandEntry> {
    let message = |message: Value| Some((sent::<MessageAnswer>(), json!({ "message": message })));
    let mut edit = example::edit();
    edit["message_id"] = MESSAGE.into();
    vec![
        CommandEntry {
            name: "send_message",
            description: "Sends a message; answered when it is committed. The same \
                `client_message_id` with the same body gives the first message again.",
            payload: Some((given::<SendMessage>(), example::send())),
            answer: message(example::message()),
        },
        CommandEntry {
            name: "edit_message",
            description: "Edits one's own message.",
            payload: Some((given::<EditMessageCommand>(), edit)),
            answer: message(example::edited()),
        },
        CommandEntry {
            name: "delete_message",
            description: "Deletes one's own message: its place is left, without content.",
            payload: Some((given::<MessageCommand>(), json!({ "message_id": MESSAGE }))),
            answer: message(example::deleted()),
        },
        CommandEntry {
            name: "read_receipt",
            description: "All up to this message was read.",
            payload: Some((given::<MessageCommand>(), json!({ "message_id": MESSAGE }))),
            answer: Some((sent::<Done>(), json!({}))),
        },
        CommandEntry {
            name: "ack",
            description: "All up to these seqs is held. For sockets opened with \
                `/ws?features=acks`, which promises it.",
            payload: Some((given::<Ack>(), json!({ "conversations": { CONVERSATION: 2 } }))),
            answer: Some((sent::<Done>(), json!({}))),
        },
        CommandEntry {
            name: "sync",
            description: "What was missed since one held the logs up to these seqs: of all of one's \
                conversations whose ids are in (`after`, `to`], page by page. One at a time.",
            payload: Some((given::<SyncRequest>(), example::sync())),
            answer: Some((sent::<SyncAnswer>(), example::synced())),
        },
        CommandEntry {
            name: "typing",
            description: "Tells the other members that one begins to write, or stops.",
            payload: Some((
                given::<Typing>(),
                json!({ "conversation_id": CONVERSATION, "is_typing": true }),
            )),
            answer: Some((sent::<Done>(), json!({}))),
        },
        CommandEntry {
            name: "watch_presence",
            description: "From now on, the event `presence` tells who of these comes or goes, and \
                of nobody else. Not for classic clients.",
            payload: Some((given::<WatchPresence>(), json!({ "user_ids": [GRACE] }))),
            answer: Some((sent::<PresenceList>(), json!({ "presence": example::presence() }))),
        },
        CommandEntry {
            name: "refresh_token",
            description: "The socket is to outlive the token it was opened with: one of the same \
                user that ends later.",
            payload: Some((
                given::<RefreshCommand>(),
                json!({ "token": "eyJhbGciOiJFUzI1NiJ9..." }),
            )),
            answer: Some((
                sent::<TokenRefreshed>(),
                json!({ "expires_at": "2026-11-22T10:30:00.000Z" }),
            )),
        },
        CommandEntry {
            name: "ping",
            description: "Asks for a sign of life: the event `pong`; and with a `ref` an `ok`, too.",
            payload: None,
            answer: Some((sent::<Done>(), json!({}))),
        },
    ]
}
