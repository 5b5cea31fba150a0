//! Tickets for sockets of pages, which can set no headers on them.

use hyper::StatusCode;

use super::Call;
use super::answer::{self, Answer};
use crate::protocol::answer::Ticket;

/// 201 with a ticket for `/ws?ticket=`.
pub async fn issue(call: Call<'_>) -> Answer {
    let (ticket, life) = call.node.auth.issue_ticket(call.identity).await?;
    let ticket = Ticket { ticket, expires_in: life.as_secs() };
    Ok(answer::json(StatusCode::CREATED, &ticket))
}
