//! Telling that one is typing.

use super::Call;
use super::answer::{self, Answer, outcome};
use crate::protocol::command::{Typing, TypingState};

/// 204 once it is known that he may.
pub async fn tell(mut call: Call<'_>) -> Answer {
    call.node.rates.typing(call.user)?;
    let conversation_id = call.conversation_id()?;
    let TypingState { is_typing } = call.decode()?;
    let command = Typing { conversation_id, is_typing };
    outcome(|reply| call.node.typing.tell(call.user, command, reply)).await?;
    answer::no_content()
}
