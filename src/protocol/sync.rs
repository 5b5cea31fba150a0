//! The answer to a `sync`, on the socket and by REST alike.

use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

use super::model::{Conversation, Message};
use crate::ids::{ConversationId, Seq};

/// A page of what was missed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SyncAnswer {
    pub store_epoch: Uuid,
    /// In order of id.
    pub conversations: Vec<SyncEntry>,
    /// The `after` of the next call; null when the range is done.
    pub next_after: Option<ConversationId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SyncStatus {
    /// Nothing changed.
    UpToDate,
    /// The log went on, or is new to the client.
    Changed,
    /// The user is no member.
    Gone,
    /// The client's copy is of another log: it is dropped and read anew from the newest page, and
    /// the cursor is then `next_seq`.
    Reset,
}

/// What changed in one conversation.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SyncEntry {
    pub id: ConversationId,
    pub status: SyncStatus,
    /// If members, rights or title changed, or the client does not know it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation: Option<Box<Conversation>>,
    /// Stands beside `conversation`: what lies before it is not the user's to see any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub history_from_seq: Option<Seq>,
    /// Those whose latest change lies in (cursor, `next_seq`], in that order.
    pub messages: Vec<Message>,
    /// Where the client's cursor is now.
    #[schemars(range(min = 0))]
    pub next_seq: Seq,
    /// The log goes on after `next_seq`.
    pub more: bool,
    /// Of a former member.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub left_seq: Option<Seq>,
    /// The cursor the client named.
    #[serde(skip)]
    pub since: Seq,
    /// Undeleted messages in (`since`, `next_seq`] whose latest change lies after `next_seq`, so
    /// that a later page brings them.
    #[serde(skip)]
    pub pending: Vec<Seq>,
}

impl SyncEntry {
    /// Without messages, at this cursor.
    pub fn bare(id: ConversationId, status: SyncStatus, since: Seq, next_seq: Seq) -> Self {
        Self {
            id,
            status,
            conversation: None,
            history_from_seq: None,
            messages: Vec::new(),
            next_seq,
            more: false,
            left_seq: None,
            since,
            pending: Vec::new(),
        }
    }
}

/// The stretches of logs that the client holds once it has this answer: each from its cursor to
/// `next_seq`, less what a later page brings, and with what an earlier page left to this one.
pub fn covered(answer: &SyncAnswer) -> Vec<(ConversationId, Seq, Seq)> {
    let mut runs = Vec::new();
    for entry in answer.conversations.iter().filter(|e| e.status == SyncStatus::Changed) {
        let mut run = |lo: Seq, hi: Seq| {
            if lo <= hi {
                runs.push((entry.id, lo, hi));
            }
        };
        let mut earlier: Vec<Seq> =
            entry.messages.iter().map(|m| m.seq).filter(|seq| *seq <= entry.since).collect();
        earlier.sort_unstable();
        earlier.into_iter().for_each(|seq| run(seq, seq));
        let mut lo = entry.since + 1;
        for seq in &entry.pending {
            run(lo, seq - 1);
            lo = seq + 1;
        }
        run(lo, entry.next_seq);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::ids::{MessageId, UserId};
    use crate::protocol::model::MessageType;

    fn message(seq: Seq, change_seq: Seq) -> Message {
        Message {
            id: MessageId(Uuid::from_u128(seq as u128)),
            conversation_id: ConversationId(Uuid::from_u128(1)),
            seq,
            change_seq,
            sender_id: UserId(Uuid::from_u128(2)),
            client_message_id: None,
            message_type: MessageType::Text,
            content: None,
            parent_message_id: None,
            reply_count: 0,
            mentions: None,
            metadata: None,
            created_at: Timestamp::from_millis(0),
            edited_at: None,
            deleted_at: None,
        }
    }

    #[test]
    fn a_page_covers_what_it_brings_and_nothing_it_leaves_for_later() {
        let entry = |n: u128, status, since, next_seq| {
            SyncEntry::bare(ConversationId(Uuid::from_u128(n)), status, since, next_seq)
        };
        let mut cut = entry(1, SyncStatus::Changed, 4, 12);
        cut.messages = vec![message(6, 6), message(2, 9), message(1, 10), message(8, 12)];
        cut.pending = vec![5, 9, 12];
        let mut quiet = entry(2, SyncStatus::Changed, 4, 9);
        quiet.messages = vec![message(3, 7)];
        let answer = SyncAnswer {
            store_epoch: Uuid::nil(),
            conversations: vec![
                entry(0, SyncStatus::UpToDate, 4, 4),
                cut,
                quiet,
                entry(3, SyncStatus::Gone, 4, 4),
                entry(4, SyncStatus::Reset, 40, 4),
            ],
            next_after: None,
        };
        let runs: Vec<_> =
            covered(&answer).into_iter().map(|(id, lo, hi)| (id.0.as_u128(), lo, hi)).collect();
        let of_cut = [(1, 1, 1), (1, 2, 2), (1, 6, 8), (1, 10, 11)];
        assert_eq!(runs, [&of_cut[..], &[(2, 3, 3), (2, 5, 9)]].concat());
    }

    #[test]
    fn an_answer_has_its_golden_form() {
        let id = ConversationId(Uuid::from_u128(1));
        let gone = SyncEntry { left_seq: Some(3), ..SyncEntry::bare(id, SyncStatus::Gone, 2, 2) };
        let answer = SyncAnswer {
            store_epoch: Uuid::nil(),
            conversations: vec![gone, SyncEntry::bare(id, SyncStatus::UpToDate, 7, 7)],
            next_after: Some(id),
        };
        let expected = concat!(
            r#"{"store_epoch":"00000000-0000-0000-0000-000000000000","conversations":["#,
            r#"{"id":"00000000-0000-0000-0000-000000000001","status":"gone","messages":[],"#,
            r#""next_seq":2,"more":false,"left_seq":3},"#,
            r#"{"id":"00000000-0000-0000-0000-000000000001","status":"up_to_date","messages":[],"#,
            r#""next_seq":7,"more":false}],"#,
            r#""next_after":"00000000-0000-0000-0000-000000000001"}"#,
        );
        assert_eq!(serde_json::to_string(&answer).unwrap(), expected);
    }
}
