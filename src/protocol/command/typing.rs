//! Whether someone is writing just now.

use serde::Deserialize;

use crate::ids::ConversationId;

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Typing {
    pub conversation_id: ConversationId,
    pub is_typing: bool,
}

/// The same where the path names the conversation.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct TypingState {
    pub is_typing: bool,
}
