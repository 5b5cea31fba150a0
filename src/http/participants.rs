//! A conversation's members: list, add, change rights, remove, leave.

use super::Call;
use super::answer::{self, Answer, CURSOR_FORM, next_cursor};
use super::conversations::shown;
use crate::protocol::answer::ParticipantList;
use crate::protocol::command::{AddParticipants, PatchParticipant};
use crate::protocol::problem::Problem;
use crate::store::types::Change;
use crate::write_path::store_problem;

/// In order of user id; the cursor is the last one's.
pub async fn list(call: Call<'_>) -> Answer {
    let id = call.conversation_id()?;
    let limit = call.limit()?;
    let after = call.parsed("cursor", CURSOR_FORM)?;
    let members = call.node.store.participants(call.user, id, limit, after).await;
    let members = members
        .map_err(|error| store_problem(&error))?
        .ok_or_else(Problem::conversation_not_found)?;
    let next_cursor = next_cursor(&members, limit, |member| member.user_id);
    answer::ok(&ParticipantList { participants: members, next_cursor })
}

/// 200 with the conversation.
pub async fn add(mut call: Call<'_>) -> Answer {
    let id = call.conversation_id()?;
    let AddParticipants { user_ids, with_history } = call.decode::<AddParticipants>()?.checked()?;
    let change = Change::AddMembers { by: call.user, user_ids, with_history };
    call.node.write_path.change(id, change).await?;
    answer::ok(&shown(&call, id).await?)
}

pub async fn patch(mut call: Call<'_>) -> Answer {
    let (id, user_id) = (call.conversation_id()?, call.member_id()?);
    let PatchParticipant { role, can_send_messages, muted_until } =
        call.decode::<PatchParticipant>()?.checked()?;
    let by = call.user;
    let change = Change::SetMember { by, user_id, role, can_send_messages, muted_until };
    call.node.write_path.change(id, change).await?;
    answer::ok(&shown(&call, id).await?)
}

/// 204, also for oneself, who sees the conversation no more.
pub async fn remove(call: Call<'_>) -> Answer {
    let (id, user_id) = (call.conversation_id()?, call.member_id()?);
    let change = Change::RemoveMember { by: call.user, user_id };
    call.node.write_path.change(id, change).await?;
    answer::no_content()
}
