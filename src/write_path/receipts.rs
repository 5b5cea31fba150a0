//! Tells senders how far others are with their messages, and a reader's other devices what he read.
//!
//! Full clients get one event for a run of messages, classic ones one for each message of it. What
//! is lost on the way stands in the conversation's watermarks.

use std::collections::BTreeMap;

use bytes::Bytes;
use uuid::Uuid;

use crate::bus::{Bus, Class, Classic, Envelope, Head};
use crate::clock::Timestamp;
use crate::ids::{ConversationId, MessageId, Seq, SessionId, UserId};
use crate::protocol::event::{Event, ReceiptEvent};
use crate::protocol::model::ReceiptKind;
use crate::store::Store;
use crate::store::types::Moved;
use crate::telemetry::Metrics;

/// Stretches looked up in one statement.
const STRETCHES: usize = 1_000;

#[derive(Clone)]
pub struct Receipts {
    pub store: Store,
    pub bus: Bus,
    pub metrics: Metrics,
}

/// What one reader's other devices hear.
pub struct OwnRead {
    pub moved: Moved,
    /// The message that was read last.
    pub message_id: MessageId,
    /// The session that told it.
    pub origin: Option<SessionId>,
}

impl Receipts {
    /// Tells the senders of the messages in these stretches.
    pub async fn tell(&self, moved: &[Moved]) {
        let told: Vec<Moved> = moved.iter().filter(|moved| moved.is_told).copied().collect();
        for moved in told.chunks(STRETCHES) {
            let stretches: Vec<(ConversationId, UserId, Seq, Seq)> =
                moved.iter().map(|m| (m.conversation_id, m.user_id, m.from, m.up_to)).collect();
            let told = match self.store.told(&stretches).await {
                Ok(told) => told,
                Err(error) => {
                    tracing::warn!(%error, runs = moved.len(), "receipts were not told");
                    continue;
                }
            };
            let mut senders: BTreeMap<(usize, UserId), Vec<(MessageId, Seq)>> = BTreeMap::new();
            for told in told {
                let messages = senders.entry((told.stretch, told.sender_id)).or_default();
                messages.push((told.message_id, told.seq));
            }
            let now = Timestamp::now();
            let publishes: Vec<(UserId, Bytes)> = senders
                .into_iter()
                .map(|((stretch, sender), messages)| {
                    (sender, envelope(&moved[stretch], &messages, None, now).encode())
                })
                .collect();
            self.metrics.dispatch.receipts_told.increment(publishes.len() as u64);
            self.bus.publish(&publishes).await;
        }
    }

    /// Tells readers' other devices, so that their unread counts agree.
    pub async fn tell_own(&self, reads: &[OwnRead]) {
        let now = Timestamp::now();
        let publishes: Vec<(UserId, Bytes)> = reads
            .iter()
            .map(|read| {
                let last = [(read.message_id, read.moved.up_to)];
                (read.moved.user_id, envelope(&read.moved, &last, read.origin, now).encode())
            })
            .collect();
        self.bus.publish(&publishes).await;
    }
}

/// `messages`: those of the stretch that the receiver is told of, in order; never empty.
fn envelope(
    moved: &Moved,
    messages: &[(MessageId, Seq)],
    origin: Option<SessionId>,
    now: Timestamp,
) -> Envelope {
    let event = |message_id, from_seq, up_to_seq| {
        let receipt = ReceiptEvent {
            message_id,
            conversation_id: moved.conversation_id,
            user_id: moved.user_id,
            from_seq,
            up_to_seq,
            timestamp: now,
        };
        match moved.kind {
            ReceiptKind::Delivered => Event::MessageDelivered(receipt).encode(),
            ReceiptKind::Read => Event::MessageRead(receipt).encode(),
        }
    };
    let last = messages.last().map_or(MessageId(Uuid::nil()), |message| message.0);
    let classic = match messages {
        [(_, seq)] if moved.from == *seq && moved.up_to == *seq => Classic::Same,
        _ => Classic::Own(messages.iter().map(|(id, seq)| event(*id, *seq, *seq)).collect()),
    };
    let head = Head {
        class: Class::Stored,
        conversation_id: moved.conversation_id,
        sender_id: moved.user_id,
        origin,
        // No place in the log: nothing to prove.
        lo: 0,
        hi: 0,
        sent_at: now,
    };
    Envelope { head, full: event(last, moved.from, moved.up_to), classic }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    #[test]
    fn a_run_is_one_event_for_full_clients_and_one_a_message_for_classic_ones() {
        let moved = Moved {
            conversation_id: ConversationId(id(1)),
            user_id: UserId(id(2)),
            kind: ReceiptKind::Delivered,
            from: 3,
            up_to: 6,
            is_told: true,
        };
        let now = Timestamp::from_millis(0);
        let messages = [(MessageId(id(4)), 4), (MessageId(id(6)), 6)];
        let text = |bytes: &Bytes| serde_json::from_slice::<Value>(bytes).unwrap();
        let told = envelope(&moved, &messages, None, now);
        let payload = |message: u128, from: i64, up_to: i64| {
            json!({
                "type": "message_delivered",
                "payload": {
                    "message_id": id(message), "conversation_id": id(1), "user_id": id(2),
                    "from_seq": from, "up_to_seq": up_to, "timestamp": "1970-01-01T00:00:00.000Z",
                }
            })
        };
        assert_eq!(text(&told.full), payload(6, 3, 6));
        let Classic::Own(frames) = told.classic else { panic!("they differ") };
        let frames: Vec<Value> = frames.iter().map(text).collect();
        assert_eq!(frames, [payload(4, 4, 4), payload(6, 6, 6)]);

        let one = Moved { from: 6, ..moved };
        assert_eq!(envelope(&one, &messages[1..], None, now).classic, Classic::Same);
    }
}
