//! How far members are with a message: to tell it, and to ask.

use super::Call;
use super::answer::{self, Answer, CURSOR_FORM, next_cursor, outcome};
use crate::protocol::answer::ReceiptList;
use crate::protocol::model::ReceiptKind;
use crate::protocol::problem::Problem;
use crate::store::types::Receipt;
use crate::write_path::store_problem;

/// All up to this message was delivered or read. 204, also when that was known.
pub async fn note(call: Call<'_>, kind: ReceiptKind) -> Answer {
    call.node.rates.receipt(call.user)?;
    let receipt = Receipt { user_id: call.user, message_id: call.message_id()?, kind };
    outcome(|reply| call.node.write_path.receive(receipt, None, reply)).await?;
    answer::no_content()
}

/// In order of user id; the cursor is the last one's.
pub async fn list(call: Call<'_>) -> Answer {
    let limit = call.limit()?;
    let after = call.parsed("cursor", CURSOR_FORM)?;
    let receipts = call.node.store.receipts(call.user, call.message_id()?, limit, after).await;
    let receipts =
        receipts.map_err(|error| store_problem(&error))?.ok_or_else(Problem::message_not_found)?;
    let next_cursor = next_cursor(&receipts, limit, |receipt| receipt.user_id);
    answer::ok(&ReceiptList { receipts, next_cursor })
}
