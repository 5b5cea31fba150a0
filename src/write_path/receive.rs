//! What devices tell of messages: delivered, read. Taken together as it comes (no timer), stored in
//! one statement, answered, and told to the senders.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::proofs::Proofs;
use super::receipts::{OwnRead, Receipts};
use super::store_problem;
use crate::ids::SessionId;
use crate::protocol::model::ReceiptKind;
use crate::protocol::problem::Problem;
use crate::store::types::{Moved, Proof, Receipt, Received, Run};

/// Receipts that may wait; beyond, they are refused at once.
pub const RECEIVE_QUEUE: usize = 4_096;
/// Receipts in one statement.
const MAX_BATCH: usize = 512;

/// Called once, with what became of a receipt; must not wait.
pub type ReceiptReply = Box<dyn FnOnce(Result<(), Problem>) + Send>;

pub struct PendingReceipt {
    pub receipt: Receipt,
    /// The session it came by.
    pub origin: Option<SessionId>,
    pub reply: ReceiptReply,
}

/// Until `stop`, and then until all that waits is stored.
pub async fn run(
    receipts: Arc<Receipts>,
    proofs: Proofs,
    max_members: u32,
    mut waiting: mpsc::Receiver<PendingReceipt>,
    stop: CancellationToken,
) {
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            received = waiting.recv_many(&mut batch, MAX_BATCH) => {
                if received == 0 {
                    return stop.cancelled().await;
                }
            }
            () = stop.cancelled(), if !waiting.is_closed() => {
                waiting.close();
                continue;
            }
        }
        let asked: Vec<Receipt> = batch.iter().map(|pending| pending.receipt).collect();
        match receipts.store.receive(&asked, max_members).await {
            Ok(received) => {
                let own = own_reads(&batch, &received);
                answer(batch.drain(..), &received, &proofs);
                receipts.tell(&told(&received.moved)).await;
                receipts.tell_own(&own).await;
            }
            Err(error) => {
                tracing::warn!(%error, receipts = batch.len(), "receipts were not stored");
                for pending in batch.drain(..) {
                    (pending.reply)(Err(store_problem(&error)));
                }
            }
        }
    }
}

fn answer(batch: impl Iterator<Item = PendingReceipt>, received: &Received, proofs: &Proofs) {
    for (pending, place) in batch.zip(&received.places) {
        let Some(place) = place else {
            (pending.reply)(Err(Problem::message_not_found()));
            continue;
        };
        // The device holds this message; of those before it, it says what people see, and no more.
        if !place.is_settled {
            proofs.add(Run {
                conversation_id: place.conversation_id,
                user_id: pending.receipt.user_id,
                lo: place.seq,
                hi: place.seq,
                proof: Proof::Device,
            });
        }
        (pending.reply)(Ok(()));
    }
}

/// Read implies delivered, and is told alone.
fn told(moved: &[Moved]) -> Vec<Moved> {
    let is_covered = |delivered: &Moved| {
        moved.iter().any(|read| {
            read.kind == ReceiptKind::Read
                && (read.conversation_id, read.user_id)
                    == (delivered.conversation_id, delivered.user_id)
                && read.up_to >= delivered.up_to
        })
    };
    let told = moved.iter().filter(|m| m.kind == ReceiptKind::Read || !is_covered(m));
    told.copied().collect()
}

/// The reads that moved something, with the message and the session they came by.
fn own_reads(batch: &[PendingReceipt], received: &Received) -> Vec<OwnRead> {
    let reads = received.moved.iter().filter(|moved| moved.kind == ReceiptKind::Read);
    let reads = reads.filter_map(|moved| {
        let mut told = batch.iter().zip(&received.places);
        let (pending, _) = told.find(|(pending, place)| {
            pending.receipt.user_id == moved.user_id
                && pending.receipt.kind == ReceiptKind::Read
                && place.is_some_and(|place| {
                    (place.conversation_id, place.seq) == (moved.conversation_id, moved.up_to)
                })
        })?;
        Some(OwnRead {
            moved: *moved,
            message_id: pending.receipt.message_id,
            origin: pending.origin,
        })
    });
    reads.collect()
}
