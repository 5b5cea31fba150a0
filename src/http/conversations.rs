//! Conversations: create, list, get, rename.

use hyper::StatusCode;

use super::Call;
use super::answer::{self, Answer, CURSOR_FORM};
use crate::ids::ConversationId;
use crate::protocol::answer::ConversationList;
use crate::protocol::command::{self, CreateConversation, PatchConversation};
use crate::protocol::model::Conversation;
use crate::protocol::problem::Problem;
use crate::store::types::Change;
use crate::write_path::store_problem;

/// 201 with the conversation; 200 with the one there is for a direct one.
pub async fn create(mut call: Call<'_>) -> Answer {
    let create: CreateConversation = call.decode()?;
    let create = create.checked(call.user, call.node.limits.max_group_size)?;
    let change = Change::Create {
        kind: create.kind,
        title: create.title,
        created_by: call.user,
        members: create.participants,
    };
    let id = ConversationId::random();
    let made = call.node.write_path.change(id, change).await?;
    let status = if made == id { StatusCode::CREATED } else { StatusCode::OK };
    Ok(answer::json(status, &shown(&call, made).await?))
}

pub async fn get(call: Call<'_>) -> Answer {
    answer::ok(&shown(&call, call.conversation_id()?).await?)
}

pub async fn patch(mut call: Call<'_>) -> Answer {
    let id = call.conversation_id()?;
    let patch: PatchConversation = call.decode()?;
    command::check_title(patch.title.as_deref())?;
    let change = Change::SetTitle { by: call.user, title: patch.title };
    call.node.write_path.change(id, change).await?;
    answer::ok(&shown(&call, id).await?)
}

/// The conversation as the caller sees it now.
pub async fn shown(call: &Call<'_>, id: ConversationId) -> Result<Conversation, Problem> {
    let conversation = call.node.store.conversation(call.user, id).await;
    conversation.map_err(|error| store_problem(&error))?.ok_or_else(Problem::conversation_not_found)
}

/// Newest activity first.
pub async fn list(call: Call<'_>) -> Answer {
    let after = call.parsed("cursor", CURSOR_FORM)?;
    let page = call.node.store.conversations(call.user, call.limit()?, after).await;
    let (conversations, next) = page.map_err(|error| store_problem(&error))?;
    let next_cursor = next.map(|next| next.to_string());
    answer::ok(&ConversationList { conversations, next_cursor })
}
