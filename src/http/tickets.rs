//! Tickets for sockets of pages, which can set no headers on them.

use hyper::StatusCode;
use serde_json::json;

use super::Call;
use super::answer::{self, Answer};

/// 201 with a ticket for `/ws?ticket=`.
pub async fn issue(call: Call<'_>) -> Answer {
    let (ticket, life) = call.node.auth.issue_ticket(call.identity).await?;
    let body = json!({ "ticket": ticket, "expires_in": life.as_secs() });
    Ok(answer::json(StatusCode::CREATED, &body))
}
