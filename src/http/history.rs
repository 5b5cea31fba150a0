//! A conversation's history, page by page: back, on, around a message, or of one thread.

use super::Call;
use super::answer::{self, Answer};
use crate::ids::{ConversationId, MessageId};
use crate::protocol::answer::MessageList;
use crate::protocol::code::Code;
use crate::protocol::command::MESSAGE_ID_FORM;
use crate::protocol::model::Message;
use crate::protocol::problem::Problem;
use crate::store::types::{Anchor, History, HistoryPage};
use crate::write_path::store_problem;

const BEFORE: &str = "before_id";
const AFTER: &str = "after_id";
const AROUND: &str = "around_id";
const THREAD: &str = "parent_message_id";

/// Newest first, whichever way it goes. `has_more` tells whether the history goes on in the
/// direction that was asked for: to newer ones after `after_id`, else to older ones.
pub async fn get(call: Call<'_>) -> Answer {
    let id = call.conversation_id()?;
    let before = call.parsed(BEFORE, MESSAGE_ID_FORM)?;
    let after = call.parsed(AFTER, MESSAGE_ID_FORM)?;
    let around: Option<MessageId> = call.parsed(AROUND, MESSAGE_ID_FORM)?;
    let thread = call.parsed(THREAD, MESSAGE_ID_FORM)?;
    let limit = call.limit()?;
    let anchor = match (before, after, around) {
        (None, None, Some(_)) if thread.is_some() => {
            let detail = "a thread is read by before_id and after_id, not by around_id";
            return Err(Problem::invalid(AROUND, detail));
        }
        (None, None, Some(message)) => return around_message(&call, id, message, limit).await,
        (None, None, None) => Anchor::Newest,
        (Some(message), None, None) => Anchor::Before(message),
        (None, Some(message), None) => Anchor::After(message),
        _ => {
            let field = if around.is_some() { AROUND } else { AFTER };
            let detail = "name at most one of before_id, after_id and around_id";
            return Err(Problem::invalid(field, detail));
        }
    };
    let field = if after.is_some() { AFTER } else { BEFORE };
    let page = HistoryPage { anchor, thread, limit };
    let (messages, has_more) = read(&call, id, page, field).await?;
    answer::ok(&MessageList { messages, has_more, has_more_after: None })
}

/// The message itself, as many before it as after it, and one more before it if the limit is even.
async fn around_message(
    call: &Call<'_>,
    id: ConversationId,
    around: MessageId,
    limit: u32,
) -> Answer {
    let message = call.node.store.message(call.user, around).await;
    let message = message.map_err(|error| store_problem(&error))?;
    let message = message.filter(|message| message.conversation_id == id);
    let newer = (limit - 1) / 2;
    let older = limit - 1 - newer;
    let page = |anchor, limit| HistoryPage { anchor, thread: None, limit };
    // Who may not see it is told which of the two is not there: the conversation or the message.
    let before = read(call, id, page(Anchor::Before(around), older), AROUND).await?;
    let message = message.ok_or_else(|| not_found(AROUND))?;
    let after = read(call, id, page(Anchor::After(around), newer), AROUND).await?;
    let messages: Vec<_> = after.0.into_iter().chain([message]).chain(before.0).collect();
    answer::ok(&MessageList { messages, has_more: before.1, has_more_after: Some(after.1) })
}

async fn read(
    call: &Call<'_>,
    id: ConversationId,
    page: HistoryPage,
    field: &'static str,
) -> Result<(Vec<Message>, bool), Problem> {
    let history = call.node.store.history(call.user, id, page).await;
    match history.map_err(|error| store_problem(&error))? {
        History::Page { messages, has_more } => Ok((messages, has_more)),
        History::NotFound => Err(Problem::conversation_not_found()),
        History::MessageNotFound => Err(not_found(field)),
        History::ThreadNotFound => Err(not_found(THREAD)),
    }
}

fn not_found(field: &'static str) -> Problem {
    Problem {
        field: Some(field.into()),
        ..Problem::new(Code::NotFound, "there is no such message in this conversation")
    }
}
