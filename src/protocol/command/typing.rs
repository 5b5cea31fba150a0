//! Whether someone is writing just now.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::ids::ConversationId;

/// Whether one is writing in a conversation just now.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub struct Typing {
    pub conversation_id: ConversationId,
    pub is_typing: bool,
}

/// The same where the path names the conversation.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub struct TypingState {
    pub is_typing: bool,
}
