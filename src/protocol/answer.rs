//! What calls and commands are answered with, where that is more than one of the model's types.

use schemars::JsonSchema;
use serde::Serialize;

use super::model::{Conversation, Member, Message, MessageReceipt, UserPresence, Version};
use crate::clock::Timestamp;
use crate::ids::{NodeId, UserId};

/// A page of one's conversations, newest activity first.
#[derive(Serialize, JsonSchema)]
pub struct ConversationList {
    pub conversations: Vec<Conversation>,
    /// For the next page; null on the last one.
    pub next_cursor: Option<String>,
}

/// A page of a conversation's members, in order of user id.
#[derive(Serialize, JsonSchema)]
pub struct ParticipantList {
    pub participants: Vec<Member>,
    /// For the next page; null on the last one.
    pub next_cursor: Option<UserId>,
}

/// A page of a conversation's messages, newest first.
#[derive(Serialize, JsonSchema)]
pub struct MessageList {
    pub messages: Vec<Message>,
    /// Whether there are more in the direction that was asked for; around a message, older ones.
    pub has_more: bool,
    /// Around a message: whether there are newer ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub has_more_after: Option<bool>,
}

/// What a message was before its edits, oldest first; nothing of a deleted one.
#[derive(Serialize, JsonSchema)]
pub struct EditList {
    pub edits: Vec<Version>,
    /// For the next page; null on the last one.
    pub next_cursor: Option<String>,
}

/// A page of how far a message's recipients are with it, in order of user id.
#[derive(Serialize, JsonSchema)]
pub struct ReceiptList {
    pub receipts: Vec<MessageReceipt>,
    /// For the next page; null on the last one.
    pub next_cursor: Option<UserId>,
}

/// Stands for who asked for it, once, at `/ws?ticket=`.
#[derive(Serialize, JsonSchema)]
pub struct Ticket {
    pub ticket: String,
    /// In seconds.
    pub expires_in: u64,
}

/// Until when the socket's identity holds now.
#[derive(Serialize, JsonSchema)]
pub struct TokenRefreshed {
    pub expires_at: Timestamp,
}

/// Of those asked for, the ones with whom one shares a conversation.
#[derive(Serialize, JsonSchema)]
pub struct PresenceList {
    pub presence: Vec<UserPresence>,
}

/// The process runs its loop.
#[derive(Serialize, JsonSchema)]
pub struct Health {
    #[schemars(extend("enum" = ["ok"]))]
    pub status: &'static str,
}

/// Whether the node takes requests, and the state of its parts.
#[derive(Serialize, JsonSchema)]
pub struct Readiness {
    pub status: Ready,
    pub stopping: bool,
    pub node_id: NodeId,
    pub store: PartState,
    pub bus: PartState,
    pub offline: PartState,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// It cannot store messages, or is stopping: the answer's status is 503.
    NotReady,
    /// Bus or offline sink are away: nothing acknowledged is lost.
    Degraded,
    Ready,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PartState {
    Up,
    Down,
}

impl From<bool> for PartState {
    fn from(up: bool) -> Self {
        if up { Self::Up } else { Self::Down }
    }
}
