//! Every operation there is. A test keeps it equal to the routes and their methods.

use serde_json::{Value, json};

use super::examples::{self as example, CONVERSATION, GRACE, MESSAGE};
use super::operation::{Operation, Parameter, Tag, header, query};
use crate::http::Route;
use crate::http::admin::Disconnect;
use crate::http::answer::DEFAULT_PAGE;
use crate::ids::DeviceId;
use crate::protocol::answer::{
    ConversationList, EditList, Health, MessageList, ParticipantList, PresenceList, Readiness,
    ReceiptList, Ticket,
};
use crate::protocol::code::Code;
use crate::protocol::command::{
    AddParticipants, CreateConversation, EditMessage, MAX_CLIENT_MESSAGE_ID_BYTES, MAX_PAGE,
    MAX_USER_IDS, PatchConversation, PatchParticipant, SendMessage, SyncRequest, TypingState,
};
use crate::protocol::model::{Conversation, Message};
use crate::protocol::sync::SyncAnswer;
use crate::ws::upgrade::MAX_NAME_BYTES;

pub fn operations() -> Vec<Operation> {
    let all = [messages(), conversations(), members(), presence(), socket(), node(), documents()];
    all.into_iter().flatten().collect()
}

/// What a member may be refused.
const WRITE: &[Code] = &[Code::NotFound, Code::Forbidden, Code::Invalid, Code::Busy];

fn limit() -> Parameter {
    let schema =
        json!({ "type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE });
    query("limit", "The size of the page.", schema, 50.into())
}

fn cursor(schema: Value, example: impl Into<Value>) -> Parameter {
    query("cursor", "The `next_cursor` of an earlier answer.", schema, example.into())
}

fn uuid() -> Value {
    json!({ "type": "string", "format": "uuid" })
}

fn messages() -> Vec<Operation> {
    vec![
        Operation::api(Route::Messages, "POST", Tag::Messages, "sendMessage", "Send a message")
            .description(
                "Answered when it is committed. The same `client_message_id` (or header \
                 `Idempotency-Key`) with the same body gives the first message again; with another \
                 body it is refused with `idempotency_mismatch`. Who stops waiting repeats without \
                 fear.",
            )
            .parameters([header(
                "Idempotency-Key",
                "Stands for a `client_message_id` that the body does not have; the body's own goes \
                 before it. Checked either way.",
                json!({
                    "type": "string",
                    "minLength": 1,
                    "maxLength": MAX_CLIENT_MESSAGE_ID_BYTES,
                    "pattern": "^[!-~]([\\t -~]*[!-~])?$"
                }),
                "a-1".into(),
            )])
            .body::<SendMessage>(example::send())
            .answer::<Message>(201, "Stored.", example::message())
            .answer::<Message>(200, "Stored before, as it is now.", example::message())
            .problems(WRITE)
            .problems(&[Code::IdempotencyMismatch, Code::Conflict]),
        Operation::api(Route::Message, "GET", Tag::Messages, "getMessage", "One message")
            .answer::<Message>(200, "The message as it is now.", example::message())
            .problems(&[Code::NotFound]),
        Operation::api(Route::Message, "PUT", Tag::Messages, "editMessage", "Edit a message")
            .description("By its sender only. What it was before is kept, see `/edits`.")
            .body::<EditMessage>(example::edit())
            .answer::<Message>(200, "The message as it is now.", example::edited())
            .problems(WRITE)
            .problems(&[Code::Conflict]),
        Operation::api(
            Route::Message,
            "DELETE",
            Tag::Messages,
            "deleteMessage",
            "Delete a message",
        )
        .description("By its sender only. Its place is left, without content.")
        .answer::<Message>(200, "What is left of it.", example::deleted())
        .problems(&[Code::NotFound, Code::Forbidden, Code::Busy]),
        Operation::api(
            Route::Edits,
            "GET",
            Tag::Messages,
            "listEdits",
            "What a message was before",
        )
        .parameters([limit(), cursor(json!({ "type": "string", "pattern": "^[0-9]{1,18}$" }), "7")])
        .answer::<EditList>(
            200,
            "Its earlier versions, oldest first.",
            json!({ "edits": [example::version()], "next_cursor": null }),
        )
        .problems(&[Code::NotFound, Code::Invalid]),
        Operation::api(Route::Read, "POST", Tag::Messages, "readMessage", "All up to it was read")
            .description("Read implies delivered. The senders are told.")
            .answer_empty(204, "Noted, or known before.")
            .problems(&[Code::NotFound, Code::Busy]),
        Operation::api(
            Route::Delivered,
            "POST",
            Tag::Messages,
            "deliverMessage",
            "All up to it was delivered",
        )
        .description("For a phone that a push woke and that has no socket.")
        .answer_empty(204, "Noted, or known before.")
        .problems(&[Code::NotFound, Code::Busy]),
        Operation::api(
            Route::Receipts,
            "GET",
            Tag::Messages,
            "listReceipts",
            "How far its recipients are",
        )
        .parameters([limit(), cursor(uuid(), GRACE)])
        .answer::<ReceiptList>(
            200,
            "A page, in order of user id.",
            json!({ "receipts": example::receipts(), "next_cursor": null }),
        )
        .problems(&[Code::NotFound, Code::Invalid]),
        Operation::api(
            Route::History,
            "GET",
            Tag::Messages,
            "listMessages",
            "A conversation's history",
        )
        .description(
            "Newest first, whichever way it goes. At most one of `before_id`, `after_id` and \
             `around_id` says where the page lies; `around_id` does not go with \
             `parent_message_id`.",
        )
        .parameters([
            limit(),
            query("before_id", "Messages older than this one.", uuid(), MESSAGE.into()),
            query("after_id", "Messages newer than this one.", uuid(), Value::Null),
            query("around_id", "This one, and those before and after it.", uuid(), Value::Null),
            query("parent_message_id", "Replies to this one only.", uuid(), Value::Null),
        ])
        .answer::<MessageList>(
            200,
            "A page, newest first.",
            json!({ "messages": [example::message()], "has_more": false }),
        )
        .problems(&[Code::NotFound, Code::Invalid]),
    ]
}

fn conversations() -> Vec<Operation> {
    let tag = Tag::Conversations;
    vec![
        Operation::api(
            Route::Conversations,
            "POST",
            tag,
            "createConversation",
            "Start a conversation",
        )
        .description("The caller becomes its owner. A direct one between two users exists once.")
        .body::<CreateConversation>(json!({
            "kind": "group", "title": "Compilers", "participants": [GRACE],
        }))
        .answer::<Conversation>(201, "Created.", example::conversation())
        .answer::<Conversation>(200, "The direct one there is.", example::conversation())
        .problems(&[Code::Invalid, Code::Busy]),
        Operation::api(
            Route::Conversations,
            "GET",
            tag,
            "listConversations",
            "One's conversations",
        )
        .parameters([
            limit(),
            cursor(
                json!({ "type": "string", "pattern": r"^\d{1,14}\.[0-9a-f-]{36}$" }),
                format!("1795339800123.{CONVERSATION}"),
            ),
        ])
        .answer::<ConversationList>(
            200,
            "A page, newest activity first.",
            json!({ "conversations": [example::conversation()], "next_cursor": null }),
        )
        .problems(&[Code::Invalid]),
        Operation::api(Route::Conversation, "GET", tag, "getConversation", "One conversation")
            .answer::<Conversation>(200, "As the caller sees it.", example::conversation())
            .problems(&[Code::NotFound]),
        Operation::api(Route::Typing, "POST", tag, "tellTyping", "Tell that one is typing")
            .description("Told to the other members, stored nowhere.")
            .body::<TypingState>(json!({ "is_typing": true }))
            .answer_empty(204, "Taken.")
            .problems(WRITE),
        Operation::api(Route::Conversation, "PATCH", tag, "patchConversation", "Rename a group")
            .description("By an owner or admin.")
            .body::<PatchConversation>(json!({ "title": "Compilers and more" }))
            .answer::<Conversation>(200, "As the caller sees it.", example::conversation())
            .problems(WRITE)
            .problems(&[Code::Conflict]),
        Operation::api(Route::Sync, "POST", tag, "sync", "What was missed")
            .description(
                "Of all of one's conversations whose ids are in (`after`, `to`], since one held \
                 their logs up to the seqs named; page by page, as `next_after` tells. As the \
                 command `sync`.",
            )
            .body::<SyncRequest>(example::sync())
            .answer::<SyncAnswer>(200, "A page, in order of id.", example::synced())
            .problems(&[Code::Invalid, Code::Busy]),
    ]
}

fn members() -> Vec<Operation> {
    let tag = Tag::Members;
    vec![
        Operation::api(
            Route::Participants,
            "GET",
            tag,
            "listParticipants",
            "A conversation's members",
        )
        .parameters([limit(), cursor(uuid(), GRACE)])
        .answer::<ParticipantList>(
            200,
            "A page, in order of user id.",
            json!({ "participants": example::members(), "next_cursor": null }),
        )
        .problems(&[Code::NotFound, Code::Invalid]),
        Operation::api(
            Route::Participants,
            "POST",
            tag,
            "addParticipants",
            "Add members to a group",
        )
        .description("By an owner or admin. Who is a member already stays as he is.")
        .body::<AddParticipants>(json!({ "user_ids": [GRACE], "with_history": true }))
        .answer::<Conversation>(200, "As the caller sees it.", example::conversation())
        .problems(WRITE)
        .problems(&[Code::Conflict]),
        Operation::api(
            Route::Participant,
            "PATCH",
            tag,
            "patchParticipant",
            "Change a member's rights",
        )
        .description(
            "By an owner or admin; roles are given, and owners touched, by owners only. \
             `muted_until` by oneself.",
        )
        .body::<PatchParticipant>(json!({ "can_send_messages": true }))
        .answer::<Conversation>(200, "As the caller sees it.", example::conversation())
        .problems(WRITE)
        .problems(&[Code::Conflict]),
        Operation::api(
            Route::Participant,
            "DELETE",
            tag,
            "removeParticipant",
            "Remove a member, or leave",
        )
        .description(
            "By an owner or admin, or oneself. If the last owner leaves, the oldest admin or \
                 else the oldest member becomes owner.",
        )
        .answer_empty(204, "Gone.")
        .problems(WRITE)
        .problems(&[Code::Conflict]),
    ]
}

fn presence() -> Vec<Operation> {
    let users =
        json!({ "type": "array", "items": uuid(), "minItems": 1, "maxItems": MAX_USER_IDS });
    vec![
        Operation::api(Route::Presence, "GET", Tag::Presence, "getPresence", "Who is online")
            .description("Of those with whom one shares a conversation; others are left out.")
            .parameters([
                query("user_ids", "With commas between them.", users, json!([GRACE])).required()
            ])
            .answer::<PresenceList>(
                200,
                "In order of user id.",
                json!({ "presence": example::presence() }),
            )
            .problems(&[Code::Invalid]),
    ]
}

fn socket() -> Vec<Operation> {
    let name = || json!({ "type": "string", "maxLength": MAX_NAME_BYTES, "pattern": "^[!-~]*$" });
    let device =
        json!({ "type": "string", "maxLength": DeviceId::MAX_BYTES, "pattern": "^[!-~]*$" });
    let socket =
        Operation::open(Route::Socket, "GET", Tag::Socket, "openSocket", "Open a WebSocket");
    vec![
        Operation::api(
            Route::Tickets,
            "POST",
            Tag::Socket,
            "createTicket",
            "A ticket for a socket",
        )
        .description(
            "For pages, which can set no headers on a socket: stands for who asked for it, \
                 once, on any node, and ends with the token that made it.",
        )
        .answer::<Ticket>(
            201,
            "For `/ws?ticket=`.",
            json!({ "ticket": "3q2-7wEaLkGvWnJ0rZc5xTtYb8sHd1pQ", "expires_in": 30 }),
        )
        .problems(&[Code::Busy]),
        socket
            .description(
                "Who offers the subprotocol `tidings.v1.json` gets all events; who offers none is \
                 a classic client. Browsers, which cannot set headers, bring a `ticket`, or offer \
                 `bearer.<token>` as a second subprotocol, and give `device_id`, `platform` and \
                 `app_version` in the query; in dev mode `user_id`, too.",
            )
            .parameters([
                header(
                    "X-Device-ID",
                    "What the user connects from; a device that connects again replaces its \
                     older session. Left out, the device is named after the session.",
                    device,
                    "laptop".into(),
                ),
                header("X-Platform", "`ios`, `android`, `web`.", name(), "web".into()),
                header("X-App-Version", "The app's own.", name(), "1.4.2".into()),
                query(
                    "ticket",
                    "From `/api/v1/ws-tickets`, in the place of a header.",
                    json!({ "type": "string" }),
                    "3q2-7wEaLkGvWnJ0rZc5xTtYb8sHd1pQ".into(),
                ),
                query(
                    "features",
                    "What the client promises, with commas between: `acks`, that it will \
                     acknowledge what it holds.",
                    json!({ "type": "string" }),
                    "acks".into(),
                ),
                header(
                    "Sec-WebSocket-Protocol",
                    "The subprotocols offered.",
                    json!({ "type": "string", "pattern": "^[!-~]+$" }),
                    "tidings.v1.json".into(),
                ),
            ])
            .answer_empty(101, "The socket is open; the event `hello` follows.")
            .problems(&[
                Code::UpgradeRequired,
                Code::Malformed,
                Code::Invalid,
                Code::Unauthenticated,
                Code::ForeignOrigin,
                Code::Busy,
                Code::RateLimited,
                Code::Unavailable,
            ]),
    ]
}

fn node() -> Vec<Operation> {
    let tag = Tag::Node;
    let open = |route, id, summary| Operation::open(route, "GET", tag, id, summary);
    vec![
        open(Route::Health, "getHealth", "Is the process alive?").answer::<Health>(
            200,
            "It runs.",
            json!({ "status": "ok" }),
        ),
        open(Route::Ready, "getReady", "Does the node take requests?")
            .answer::<Readiness>(200, "It does.", example::readiness())
            .answer::<Readiness>(503, "It does not: the store is away, or it is stopping.", {
                let mut readiness = example::readiness();
                readiness["status"] = "not_ready".into();
                readiness["stopping"] = true.into();
                readiness
            }),
        open(Route::Metrics, "getMetrics", "Metrics for Prometheus")
            .description("On `ADMIN_ADDR`; without it, on the main port in dev mode.")
            .answer_other(200, "In the text format.", "text/plain", "tidings_sockets_open 2\n")
            .problems(&[Code::NotFound]),
        Operation::open(Route::Disconnect, "POST", tag, "disconnect", "Cut somebody off")
            .description(
                "Ends the sockets of a user, or of one device, on all nodes, with 4403. Until his \
                 token ends he can come back with it: revoke it first. On `ADMIN_ADDR` only.",
            )
            .body::<Disconnect>(json!({ "user_id": GRACE, "device_id": "laptop" }))
            .answer_empty(204, "All nodes that hold one were told.")
            .problems(&[Code::Invalid, Code::NotFound, Code::RequestTimeout])
            .problems(&[Code::TooLarge, Code::Unavailable]),
        open(Route::Page, "getPage", "A page to chat with")
            .description("In dev mode only.")
            .answer_other(200, "HTML.", "text/html", "<!doctype html>")
            .problems(&[Code::NotFound]),
    ]
}

fn documents() -> Vec<Operation> {
    let open = |route, id, summary| Operation::open(route, "GET", Tag::Documents, id, summary);
    vec![
        open(Route::OpenApi, "getOpenApi", "This document").answer_other(
            200,
            "OpenAPI 3.1.",
            "application/json",
            "",
        ),
        open(Route::AsyncApi, "getAsyncApi", "The socket's commands and events").answer_other(
            200,
            "AsyncAPI 3.0.",
            "application/json",
            "",
        ),
        open(Route::Docs, "getDocs", "Both documents, for people").answer_other(
            200,
            "HTML.",
            "text/html",
            "<!doctype html>",
        ),
    ]
}
