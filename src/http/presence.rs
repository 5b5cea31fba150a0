//! Who is online, among those with whom one shares a conversation.

use super::Call;
use super::answer::{self, Answer};
use crate::ids::UserId;
use crate::protocol::answer::PresenceList;
use crate::protocol::command::MAX_USER_IDS;
use crate::protocol::problem::Problem;
use crate::write_path::store_problem;

pub async fn query(call: Call<'_>) -> Answer {
    let text = call.query("user_ids").unwrap_or_default();
    let users: Result<Vec<UserId>, _> = text.split(',').map(|id| id.trim().parse()).collect();
    let mut users = users
        .map_err(|_| Problem::invalid("user_ids", "user_ids are UUIDs with commas between them"))?;
    if users.len() > MAX_USER_IDS {
        let detail = format!("user_ids names at most {MAX_USER_IDS} users");
        return Err(Problem::invalid("user_ids", detail));
    }
    users.sort_unstable();
    users.dedup();
    let known = call.node.store.acquainted(call.user, &users).await;
    let known = known.map_err(|error| store_problem(&error))?;
    let status = call.node.presence.status(&known).await;
    let presence = known.into_iter().zip(status).map(|(user, status)| status.shown(user));
    answer::ok(&PresenceList { presence: presence.collect() })
}
