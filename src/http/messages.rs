//! Sending a message, changing and reading one.

use hyper::StatusCode;

use super::Call;
use super::answer::{self, Answer, CURSOR_FORM, next_cursor, outcome};
use crate::ids::Seq;
use crate::protocol::answer::EditList;
use crate::protocol::command::{EditMessage, SendMessage, check_client_message_id};
use crate::protocol::problem::Problem;
use crate::store::types::Amendment;
use crate::write_path::{Sent, store_problem};

/// 201 with the message; 200 with the first one for a repeat.
pub async fn send(mut call: Call<'_>) -> Answer {
    let send = read(&mut call).inspect_err(|problem| {
        call.node.metrics.sends.refused.of(problem.code).increment(1);
    })?;
    let sent = outcome(|reply| {
        call.node.write_path.send(call.user, None, send, &call.trace, reply);
    })
    .await?;
    let status = match sent {
        Sent::Created(_) => StatusCode::CREATED,
        Sent::Repeated(_) => StatusCode::OK,
    };
    Ok(answer::json(status, sent.message()))
}

fn read(call: &mut Call<'_>) -> Result<SendMessage, Problem> {
    call.node.rates.send(call.user)?;
    let mut send: SendMessage = call.decode()?;
    let key = idempotency_key(call)?;
    send.client_message_id = send.client_message_id.or(key);
    send.checked(&call.node.limits)
}

/// The header's, checked also where the body has an id of its own, which goes before it.
fn idempotency_key(call: &Call<'_>) -> Result<Option<String>, Problem> {
    let Some(key) = call.headers.get("idempotency-key") else { return Ok(None) };
    let key = key.to_str().map_err(|_| {
        Problem::invalid("Idempotency-Key", "the key holds characters outside ASCII")
    })?;
    check_client_message_id("Idempotency-Key", key)?;
    Ok(Some(key.to_owned()))
}

pub async fn edit(mut call: Call<'_>) -> Answer {
    let message_id = call.message_id()?;
    let edit = call.decode::<EditMessage>()?.checked(&call.node.limits)?;
    amend(&call, Amendment { by: call.user, message_id, edit: Some(edit) }).await
}

/// 200 with what is left, also when it was deleted before.
pub async fn delete(call: Call<'_>) -> Answer {
    let message_id = call.message_id()?;
    amend(&call, Amendment { by: call.user, message_id, edit: None }).await
}

async fn amend(call: &Call<'_>, amendment: Amendment) -> Answer {
    call.node.rates.send(call.user)?;
    let message = outcome(|reply| {
        call.node.write_path.amend(amendment, None, &call.trace, reply);
    })
    .await?;
    answer::ok(&*message)
}

pub async fn get(call: Call<'_>) -> Answer {
    let message = call.node.store.message(call.user, call.message_id()?).await;
    let message = message.map_err(|error| store_problem(&error))?;
    answer::ok(&message.ok_or_else(Problem::message_not_found)?)
}

/// What it was before its edits, oldest first; nothing of a deleted one.
pub async fn edits(call: Call<'_>) -> Answer {
    let limit = call.limit()?;
    let after: Option<u64> = call.parsed("cursor", CURSOR_FORM)?;
    let after = Seq::try_from(after.unwrap_or_default());
    let after = after.map_err(|_| Problem::invalid("cursor", CURSOR_FORM))?;
    let edits = call.node.store.edits(call.user, call.message_id()?, limit, after).await;
    let edits = edits.map_err(|error| store_problem(&error))?;
    let edits = edits.ok_or_else(Problem::message_not_found)?;
    let next_cursor = next_cursor(&edits, limit, |version| version.seq.to_string());
    answer::ok(&EditList { edits, next_cursor })
}
