//! The things messages are about, as they stand on the wire: message, conversation, member, presence.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::command::{MAX_CLIENT_MESSAGE_ID_BYTES, MAX_TITLE_BYTES};
use super::number::whole;
use crate::clock::Timestamp;
use crate::ids::{ConversationId, DeviceId, MessageId, Seq, UserId};

/// An enum of words on the wire and of small numbers in the store; neither ever changes its meaning.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $number:literal $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum $name { $(#[serde(rename = $word)] $variant),+ }

        impl $name {
            pub fn code(self) -> i16 {
                match self { $(Self::$variant => $number),+ }
            }

            pub fn from_code(code: i16) -> Option<Self> {
                match code { $($number => Some(Self::$variant),)+ _ => None }
            }

            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

words!(MessageType {
    Text = 0 "text",
    Image = 1 "image",
    Video = 2 "video",
    Audio = 3 "audio",
    File = 4 "file",
    Location = 5 "location",
});

words!(Kind {
    Direct = 0 "direct",
    Group = 1 "group",
});

words!(
    /// Ordered by power: an owner is more than an admin.
    Role {
        Member = 0 "member",
        Admin = 1 "admin",
        Owner = 2 "owner",
    }
);

words!(
    /// What an entry of a conversation's log tells.
    ChangeKind {
        MessageCreated = 0 "message_created",
        MessageEdited = 1 "message_edited",
        MessageDeleted = 2 "message_deleted",
        ConversationUpdated = 3 "conversation_updated",
    }
);

words!(
    /// What a receipt tells.
    ReceiptKind {
        Delivered = 0 "delivered",
        Read = 1 "read",
    }
);

/// A stretch of the content that names a member; `offset` and `length` count UTF-16 units.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mention {
    pub user_id: UserId,
    #[serde(deserialize_with = "whole")]
    #[schemars(range(max = u32::MAX))]
    pub offset: u32,
    #[serde(deserialize_with = "whole")]
    #[schemars(range(min = 1, max = u32::MAX))]
    pub length: u32,
}

/// A message as it is now; a deleted one keeps its place and has no content, mentions or metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Message {
    pub id: MessageId,
    pub conversation_id: ConversationId,
    /// Its place in the conversation's log.
    #[schemars(range(min = 1))]
    pub seq: Seq,
    /// The seq of its latest change; `seq` itself while it was never edited or deleted.
    #[schemars(range(min = 1))]
    pub change_seq: Seq,
    pub sender_id: UserId,
    /// As its sender gave it.
    #[schemars(length(min = 1, max = MAX_CLIENT_MESSAGE_ID_BYTES))]
    pub client_message_id: Option<String>,
    pub message_type: MessageType,
    /// null once it is deleted.
    pub content: Option<String>,
    /// The message it replies to.
    pub parent_message_id: Option<MessageId>,
    /// Replies that are not deleted.
    #[schemars(range(min = 0))]
    pub reply_count: i64,
    pub mentions: Option<Vec<Mention>>,
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub metadata: Option<serde_json::Value>,
    pub created_at: Timestamp,
    pub edited_at: Option<Timestamp>,
    pub deleted_at: Option<Timestamp>,
}

impl Message {
    /// Which change is told of a message that is as it is now, and at which place: of its creation
    /// or its latest edit, but once deleted, only of that.
    pub fn told(&self, kind: ChangeKind) -> (ChangeKind, Seq) {
        match kind {
            _ if self.deleted_at.is_some() => (ChangeKind::MessageDeleted, self.change_seq),
            ChangeKind::MessageCreated => (kind, self.seq),
            _ => (kind, self.change_seq),
        }
    }

    /// What is left of it: its place.
    pub fn deleted(self, change_seq: Seq, at: Timestamp) -> Self {
        let deleted_at = Some(at);
        Self { change_seq, content: None, mentions: None, metadata: None, deleted_at, ..self }
    }
}

/// What a message was before an edit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Version {
    /// The message's `change_seq` while it was so.
    #[schemars(range(min = 1))]
    pub seq: Seq,
    pub content: Option<String>,
    pub mentions: Option<Vec<Mention>>,
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub metadata: Option<serde_json::Value>,
    /// Since when it was so: of the first version, when the message was created.
    pub edited_at: Timestamp,
}

/// A conversation, in answers to a member with `me` and `unread_count`, in events without.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Conversation {
    pub id: ConversationId,
    pub kind: Kind,
    #[schemars(length(min = 1, max = MAX_TITLE_BYTES))]
    pub title: Option<String>,
    pub created_by: UserId,
    pub created_at: Timestamp,
    /// The head of its log.
    #[schemars(range(min = 1))]
    pub last_seq: Seq,
    pub last_message: Option<Message>,
    /// Undeleted messages of others after `me.read_seq`, counted up to 100 (shown as 99+).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub unread_count: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub me: Option<Me>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Left out in lists, except for direct ones, and in large groups: see `/participants`.
    pub members: Option<Vec<Member>>,
}

/// The asking member's own state in a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Me {
    pub role: Role,
    pub can_send_messages: bool,
    /// Up to here, a device has it.
    #[schemars(range(min = 0))]
    pub delivered_seq: Seq,
    /// Up to here, it was read.
    #[schemars(range(min = 0))]
    pub read_seq: Seq,
    pub muted_until: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Member {
    pub user_id: UserId,
    pub role: Role,
    pub can_send_messages: bool,
    pub joined_at: Timestamp,
    /// Up to here, a device has it.
    #[schemars(range(min = 0))]
    pub delivered_seq: Seq,
    /// Up to here, it was read.
    #[schemars(range(min = 0))]
    pub read_seq: Seq,
}

/// How far one member is with one message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MessageReceipt {
    pub user_id: UserId,
    pub delivered: bool,
    /// null also if it was so long ago, or in so large a group, that no time is kept.
    pub delivered_at: Option<Timestamp>,
    pub read: bool,
    pub read_at: Option<Timestamp>,
}

/// Whether a user is connected, as those are shown it with whom he shares a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct UserPresence {
    pub user_id: UserId,
    pub online: bool,
    pub devices: Vec<Device>,
    /// Of one who is not online, if it is known; else null.
    pub last_seen: Option<Timestamp>,
}

/// What a user is connected from.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Device {
    pub device_id: DeviceId,
    pub platform: Option<Box<str>>,
}
