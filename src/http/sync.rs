//! What a client missed, for those without a socket.

use super::Call;
use super::answer::{self, Answer, outcome};
use crate::protocol::command::SyncRequest;
use crate::resume::{self, ANSWER_BYTES};
use crate::write_path::Yields;

/// The same answer as the `sync` command's.
pub async fn sync(mut call: Call<'_>) -> Answer {
    let sync = call.decode::<SyncRequest>()?.checked()?;
    if call.node.write_path.is_pressed(Yields::Sync) {
        return Err(resume::busy());
    }
    call.node.rates.sync(call.user)?;
    let submit = |reply| call.node.syncs.submit(call.user, sync, ANSWER_BYTES, reply);
    answer::ok(&outcome(submit).await?)
}
