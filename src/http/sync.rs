//! What a client missed, for those without a socket.

use tokio::sync::oneshot;

use super::Call;
use super::answer::{self, Answer};
use crate::protocol::code::Code;
use crate::protocol::command::SyncRequest;
use crate::protocol::problem::Problem;
use crate::resume::ANSWER_BYTES;

/// The same answer as the `sync` command's.
pub async fn sync(mut call: Call<'_>) -> Answer {
    let sync = call.decode::<SyncRequest>()?.checked()?;
    let (reply, outcome) = oneshot::channel();
    let reply = Box::new(move |result| {
        // The client may have gone; nothing was changed.
        let _ = reply.send(result);
    });
    call.node.syncs.submit(call.user, sync, ANSWER_BYTES, reply);
    let answer = outcome.await.map_err(|_| {
        Problem::new(Code::Unavailable, "the node stopped before it had the answer; use another")
    })??;
    answer::ok(&answer)
}
