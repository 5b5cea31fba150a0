//! Server to client: each event is encoded once, whoever receives it.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

use super::model::{ChangeKind, Conversation, Message};
use super::problem::Problem;
use crate::clock::Timestamp;
use crate::ids::{ConversationId, DeviceId, MessageId, NodeId, Seq, SessionId, UserId};

#[derive(Serialize, JsonSchema)]
#[serde(tag = "type", content = "payload", rename_all = "snake_case")]
pub enum Event<'a> {
    /// The first on each socket.
    Hello(Hello<'a>),
    /// A message was sent to a conversation of yours.
    NewMessage(MessageEvent<'a>),
    /// Its sender edited a message.
    MessageUpdated(MessageEvent<'a>),
    /// Its sender deleted a message: its place is left, without content.
    MessageDeleted(MessageEvent<'a>),
    /// Created, renamed, or its members or their rights changed; also to those who left or were
    /// removed, without members. Not sent to classic clients.
    ConversationUpdated {
        conversation: &'a Conversation,
        #[schemars(range(min = 1))]
        seq: Seq,
        timestamp: Timestamp,
    },
    /// The messages from `from_seq` to `up_to_seq` reached a device of `user_id`.
    MessageDelivered(ReceiptEvent),
    /// `user_id` read the messages from `from_seq` to `up_to_seq`.
    MessageRead(ReceiptEvent),
    /// Someone begins to write, or stops; stored nowhere.
    Typing {
        conversation_id: ConversationId,
        user_id: UserId,
        is_typing: bool,
        timestamp: Timestamp,
    },
    /// A user one watches came online with his first device, or went with his last.
    Presence { user_id: UserId, online: bool, last_seen: Option<Timestamp> },
    /// Answers the command `ping`.
    Pong { timestamp: Timestamp },
    /// Stored events were not delivered: read again what was missed, in these conversations or,
    /// if none are named, in all. Not sent to classic clients, which are closed with 4003.
    Resync {
        #[serde(skip_serializing_if = "Option::is_none")]
        conversations: Option<&'a [ConversationId]>,
    },
    /// This node is going away: come back after this time.
    Reconnect { after_ms: u64 },
}

#[derive(Serialize, JsonSchema)]
pub struct Hello<'a> {
    pub session_id: SessionId,
    pub node_id: NodeId,
    pub user_id: UserId,
    pub device_id: &'a DeviceId,
    /// Silence after which the node asks for life.
    pub heartbeat_seconds: u64,
    pub limits: Limits,
    /// Changes if the store was put back to an earlier state: drop local copies then.
    pub store_epoch: Uuid,
    pub server_time: Timestamp,
}

/// What a client may send, in bytes and counts.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Limits {
    pub max_frame_bytes: usize,
    pub max_content_bytes: usize,
    pub max_metadata_bytes: usize,
    pub max_group_size: usize,
}

/// The type stands inside too: clients of the service this one follows read it there.
#[derive(Serialize, JsonSchema)]
pub struct MessageEvent<'a> {
    #[serde(rename = "type")]
    #[schemars(extend("enum" = ["new_message", "message_updated", "message_deleted"]))]
    pub kind: &'static str,
    pub message: &'a Message,
    /// The change's place in the conversation.
    #[schemars(range(min = 1))]
    pub seq: Seq,
    pub timestamp: Timestamp,
}

#[derive(Serialize, JsonSchema)]
pub struct ReceiptEvent {
    /// The last message of the run that is the receiver's own.
    pub message_id: MessageId,
    pub conversation_id: ConversationId,
    pub user_id: UserId,
    #[schemars(range(min = 1))]
    pub from_seq: Seq,
    #[schemars(range(min = 1))]
    pub up_to_seq: Seq,
    pub timestamp: Timestamp,
}

impl<'a> Event<'a> {
    /// Of the message as it is now; see [`Message::told`].
    pub fn message(kind: ChangeKind, message: &'a Message, timestamp: Timestamp) -> Self {
        let (kind, seq) = message.told(kind);
        let event = |kind| MessageEvent { kind, message, seq, timestamp };
        match kind {
            ChangeKind::MessageEdited => Self::MessageUpdated(event("message_updated")),
            ChangeKind::MessageDeleted => Self::MessageDeleted(event("message_deleted")),
            _ => Self::NewMessage(event("new_message")),
        }
    }

    pub fn encode(&self) -> Bytes {
        encode(self)
    }
}

/// What answers a command that makes or changes a message.
#[derive(Serialize, JsonSchema)]
pub struct MessageAnswer<'a> {
    pub message: &'a Message,
}

/// The answer to a command that carried a `ref`.
#[derive(Serialize)]
struct Answer<'a, T: Serialize> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    reference: Option<&'a str>,
    payload: T,
}

pub fn ok<T: Serialize>(reference: &str, payload: T) -> Bytes {
    encode(&Answer { kind: "ok", reference: Some(reference), payload })
}

/// An error without `ref` answers a command that had none.
pub fn error(reference: Option<&str>, problem: &Problem) -> Bytes {
    encode(&Answer { kind: "error", reference, payload: problem })
}

fn encode<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).expect("frames have string keys and no failing parts").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::code::Code;
    use crate::protocol::model::MessageType;

    fn message() -> Message {
        Message {
            id: "018bcfe5-6807-7abc-8000-000000000001".parse().unwrap(),
            conversation_id: "018bcfe5-6807-7abc-8000-000000000002".parse().unwrap(),
            seq: 7,
            change_seq: 7,
            sender_id: "018bcfe5-6807-7abc-8000-000000000003".parse().unwrap(),
            client_message_id: None,
            message_type: MessageType::Text,
            content: Some("hi \"there\"".into()),
            parent_message_id: None,
            reply_count: 0,
            mentions: None,
            metadata: None,
            created_at: Timestamp::from_millis(1_700_000_000_007),
            edited_at: None,
            deleted_at: None,
        }
    }

    #[test]
    fn new_message_has_its_golden_form() {
        let at = Timestamp::from_millis(1_700_000_000_008);
        let bytes = Event::message(ChangeKind::MessageCreated, &message(), at).encode();
        let expected = concat!(
            r#"{"type":"new_message","payload":{"type":"new_message","message":{"#,
            r#""id":"018bcfe5-6807-7abc-8000-000000000001","#,
            r#""conversation_id":"018bcfe5-6807-7abc-8000-000000000002","seq":7,"change_seq":7,"#,
            r#""sender_id":"018bcfe5-6807-7abc-8000-000000000003","client_message_id":null,"#,
            r#""message_type":"text","content":"hi \"there\"","parent_message_id":null,"#,
            r#""reply_count":0,"mentions":null,"metadata":null,"#,
            r#""created_at":"2023-11-14T22:13:20.007Z","edited_at":null,"deleted_at":null},"#,
            r#""seq":7,"timestamp":"2023-11-14T22:13:20.008Z"}}"#,
        );
        assert_eq!(std::str::from_utf8(&bytes).unwrap(), expected);
    }

    #[test]
    fn message_updated_and_message_deleted_have_their_golden_form() {
        let at = Timestamp::from_millis(1_700_000_000_010);
        let edited_at = Some(Timestamp::from_millis(1_700_000_000_009));
        let edited = Message { change_seq: 9, edited_at, reply_count: 1, ..message() };
        let bytes = Event::message(ChangeKind::MessageEdited, &edited, at).encode();
        let expected = concat!(
            r#"{"type":"message_updated","payload":{"type":"message_updated","message":{"#,
            r#""id":"018bcfe5-6807-7abc-8000-000000000001","#,
            r#""conversation_id":"018bcfe5-6807-7abc-8000-000000000002","seq":7,"change_seq":9,"#,
            r#""sender_id":"018bcfe5-6807-7abc-8000-000000000003","client_message_id":null,"#,
            r#""message_type":"text","content":"hi \"there\"","parent_message_id":null,"#,
            r#""reply_count":1,"mentions":null,"metadata":null,"#,
            r#""created_at":"2023-11-14T22:13:20.007Z","edited_at":"2023-11-14T22:13:20.009Z","#,
            r#""deleted_at":null},"seq":9,"timestamp":"2023-11-14T22:13:20.010Z"}}"#,
        );
        assert_eq!(std::str::from_utf8(&bytes).unwrap(), expected);

        let deleted = edited.deleted(11, at);
        let expected = concat!(
            r#"{"type":"message_deleted","payload":{"type":"message_deleted","message":{"#,
            r#""id":"018bcfe5-6807-7abc-8000-000000000001","#,
            r#""conversation_id":"018bcfe5-6807-7abc-8000-000000000002","seq":7,"change_seq":11,"#,
            r#""sender_id":"018bcfe5-6807-7abc-8000-000000000003","client_message_id":null,"#,
            r#""message_type":"text","content":null,"parent_message_id":null,"#,
            r#""reply_count":1,"mentions":null,"metadata":null,"#,
            r#""created_at":"2023-11-14T22:13:20.007Z","edited_at":"2023-11-14T22:13:20.009Z","#,
            r#""deleted_at":"2023-11-14T22:13:20.010Z"},"#,
            r#""seq":11,"timestamp":"2023-11-14T22:13:20.010Z"}}"#,
        );
        // Once deleted, nothing else is told of it.
        for kind in
            [ChangeKind::MessageCreated, ChangeKind::MessageEdited, ChangeKind::MessageDeleted]
        {
            let bytes = Event::message(kind, &deleted, at).encode();
            assert_eq!(std::str::from_utf8(&bytes).unwrap(), expected);
        }
    }

    #[test]
    fn answers_carry_the_ref_and_errors_the_problem() {
        let bytes = ok("a1", serde_json::json!({}));
        assert_eq!(&bytes[..], br#"{"type":"ok","ref":"a1","payload":{}}"#);
        let problem = Problem::new(Code::NotFound, "no such thing");
        let text = String::from_utf8(error(None, &problem).to_vec()).unwrap();
        assert!(
            text.starts_with(
                r#"{"type":"error","payload":{"type":"urn:tidings:problem:not_found""#
            )
        );
        assert!(text.contains(r#""status":404"#), "{text}");
    }
}
