//! What is handed over for users without a socket: one record per change of a message and at most
//! [`MAX_RECIPIENTS`] recipients, as a CloudEvent in binary mode. Pure.
//!
//! `docs/schemas/offline-record.schema.json` describes the result for those who read it.

use std::sync::Arc;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::ids::{ConversationId, Seq, UserId};
use crate::protocol::model::ChangeKind;
use crate::protocol::model::Message;
use crate::telemetry::traces::Trace;

/// Keeps a record far below a broker's usual limit of 1 MB.
pub const MAX_RECIPIENTS: usize = 500;

/// The CloudEvents `source`; ids are unique below it.
const SOURCE: &str = "/tidings";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Recipient {
    pub user_id: UserId,
    pub mentioned: bool,
    pub muted: bool,
}

/// Why a recipient gets it here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// No device was connected at dispatch.
    Absent,
    /// No device has confirmed it in time.
    Late,
}

/// One record. Made by [`Record::split`] only, so it has recipients, not too many, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    kind: ChangeKind,
    message: Arc<Message>,
    recipients: Vec<Recipient>,
    reason: Reason,
    /// What it is a part of; a retry is a part of nothing.
    trace: Trace,
}

impl Record {
    /// The records that tell `recipients` of a change; none of a change that is no message's.
    ///
    /// `message` is as it stands now: once deleted, only the deletion is told. The same recipients,
    /// in any order, are split in the same way, so that a retry has the same ids.
    pub fn split(
        kind: ChangeKind,
        message: &Arc<Message>,
        mut recipients: Vec<Recipient>,
        reason: Reason,
    ) -> Vec<Record> {
        let kind = match kind {
            ChangeKind::ConversationUpdated => return Vec::new(),
            kind => message.told(kind).0,
        };
        recipients.sort_unstable_by_key(|recipient| recipient.user_id);
        recipients.dedup_by_key(|recipient| recipient.user_id);
        recipients
            .chunks(MAX_RECIPIENTS)
            .map(|part| Record {
                kind,
                message: message.clone(),
                recipients: part.to_vec(),
                reason,
                trace: Trace::default(),
            })
            .collect()
    }

    pub fn traced(self, trace: &Trace) -> Self {
        Self { trace: trace.clone(), ..self }
    }

    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    pub fn recipients(&self) -> &[Recipient] {
        &self.recipients
    }

    /// What keeps the records of a conversation in order.
    pub fn key(&self) -> ConversationId {
        self.message.conversation_id
    }

    /// The same for a retry of this record, another for other recipients.
    pub fn id(&self) -> String {
        let mut hash = Sha256::new();
        // An edited message may be told of as created, late, and as edited: not the same record.
        if self.kind == ChangeKind::MessageEdited {
            hash.update(b"edited");
        }
        for recipient in &self.recipients {
            hash.update(recipient.user_id.0.as_bytes());
        }
        let hash: String = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}.{}.{hash}", self.message.id, self.message.change_seq)
    }

    /// The CloudEvents attributes and the content type, as Kafka headers.
    pub fn headers(&self) -> [(&'static str, String); 6] {
        let (name, time) = match self.kind {
            ChangeKind::MessageEdited => ("tidings.message.edited", self.message.edited_at),
            ChangeKind::MessageDeleted => ("tidings.message.deleted", self.message.deleted_at),
            _ => ("tidings.message.created", None),
        };
        let time: Timestamp = time.unwrap_or(self.message.created_at);
        [
            ("ce_specversion", "1.0".into()),
            ("ce_id", self.id()),
            ("ce_source", SOURCE.into()),
            ("ce_type", name.into()),
            ("ce_time", time.to_string()),
            ("content-type", "application/json".into()),
        ]
    }

    pub fn value(&self) -> Vec<u8> {
        serde_json::to_vec(&self.body()).expect("strings, numbers and maps with string keys")
    }

    /// Key, headers and value as one line of JSON, with its newline.
    pub fn line(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Line<'a> {
            key: ConversationId,
            headers: std::collections::BTreeMap<&'static str, String>,
            value: Body<'a>,
        }
        let line = Line { key: self.key(), headers: self.headers().into(), value: self.body() };
        let mut text =
            serde_json::to_vec(&line).expect("strings, numbers and maps with string keys");
        text.push(b'\n');
        text
    }

    fn body(&self) -> Body<'_> {
        Body {
            message: &self.message,
            change_seq: self.message.change_seq,
            recipients: &self.recipients,
            reason: self.reason,
        }
    }
}

#[derive(Serialize)]
struct Body<'a> {
    message: &'a Message,
    change_seq: Seq,
    recipients: &'a [Recipient],
    reason: Reason,
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::ids::MessageId;
    use crate::protocol::model::MessageType;

    fn message() -> Message {
        let conversation_id = ConversationId(Uuid::from_u128(1));
        Message {
            id: MessageId(Uuid::from_u128(2)),
            conversation_id,
            seq: 7,
            change_seq: 9,
            sender_id: UserId(Uuid::from_u128(3)),
            client_message_id: None,
            message_type: MessageType::Text,
            content: Some("hello".into()),
            parent_message_id: None,
            reply_count: 0,
            mentions: None,
            metadata: None,
            created_at: Timestamp::from_millis(1_700_000_000_000),
            edited_at: Some(Timestamp::from_millis(1_700_000_001_000)),
            deleted_at: None,
        }
    }

    fn recipients(numbers: impl IntoIterator<Item = u128>) -> Vec<Recipient> {
        let recipient = |number| Recipient {
            user_id: UserId(Uuid::from_u128(number)),
            mentioned: false,
            muted: false,
        };
        numbers.into_iter().map(recipient).collect()
    }

    fn split(
        kind: ChangeKind,
        message: Message,
        numbers: impl IntoIterator<Item = u128>,
    ) -> Vec<Record> {
        Record::split(kind, &Arc::new(message), recipients(numbers), Reason::Absent)
    }

    #[test]
    fn too_many_recipients_become_several_records() {
        let sizes = |count: u128| -> Vec<usize> {
            let records = split(ChangeKind::MessageCreated, message(), 0..count);
            records.iter().map(|record| record.recipients.len()).collect()
        };
        assert_eq!(sizes(0), [0; 0]);
        assert_eq!(sizes(1), [1]);
        assert_eq!(sizes(500), [500]);
        assert_eq!(sizes(501), [500, 1]);
        assert_eq!(sizes(1_001), [500, 500, 1]);
    }

    #[test]
    fn a_retry_has_the_same_ids_and_nothing_else_has() {
        let ids =
            |records: Vec<Record>| -> Vec<String> { records.iter().map(Record::id).collect() };
        let kind = ChangeKind::MessageCreated;
        let first = ids(split(kind, message(), 0..700));
        assert_eq!(ids(split(kind, message(), (0..700).rev())), first);
        assert_eq!(ids(split(kind, message(), (0..700).chain(0..10))), first);
        assert_ne!(first[0], first[1]);
        assert_ne!(ids(split(kind, message(), 0..701))[1], first[1]);
        let edited = Message { change_seq: 10, ..message() };
        assert_ne!(ids(split(kind, edited.clone(), 0..700)), first);
        assert_ne!(
            ids(split(ChangeKind::MessageEdited, edited.clone(), 0..700)),
            ids(split(kind, edited, 0..700))
        );
        // Fixed: a consumer that remembers ids must know them after our next release, too.
        assert_eq!(
            ids(split(kind, message(), [1, 2])),
            ["00000000-0000-0000-0000-000000000002.9.78d68721debb423c"]
        );
    }

    #[test]
    fn the_type_follows_the_change_and_the_message() {
        let told = |kind, message| -> Option<(String, String)> {
            let record = split(kind, message, [1]).pop()?;
            let headers = std::collections::BTreeMap::from(record.headers());
            Some((headers["ce_type"].clone(), headers["ce_time"].clone()))
        };
        let is = |name: &str, time: &str| Some((name.to_owned(), time.to_owned()));
        assert_eq!(
            told(ChangeKind::MessageCreated, message()),
            is("tidings.message.created", "2023-11-14T22:13:20.000Z")
        );
        assert_eq!(
            told(ChangeKind::MessageEdited, message()),
            is("tidings.message.edited", "2023-11-14T22:13:21.000Z")
        );
        let deleted =
            Message { deleted_at: Some(Timestamp::from_millis(1_700_000_002_000)), ..message() };
        for kind in
            [ChangeKind::MessageCreated, ChangeKind::MessageEdited, ChangeKind::MessageDeleted]
        {
            assert_eq!(
                told(kind, deleted.clone()),
                is("tidings.message.deleted", "2023-11-14T22:13:22.000Z")
            );
        }
        assert_eq!(told(ChangeKind::ConversationUpdated, message()), None);
    }

    #[test]
    fn a_line_holds_what_a_kafka_record_holds() {
        let record = split(ChangeKind::MessageCreated, message(), [5]).pop().unwrap();
        let line = record.line();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(line["key"], record.key().to_string());
        for (name, value) in record.headers() {
            assert_eq!(line["headers"][name], value);
        }
        let value: serde_json::Value = serde_json::from_slice(&record.value()).unwrap();
        assert_eq!(line["value"], value);
        assert_eq!(value["reason"], "absent");
        assert_eq!(value["change_seq"], 9);
    }
}
