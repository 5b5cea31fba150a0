//! What a run left behind, read from its folder.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tidings_client::history::{Entry, Line, State};
use uuid::Uuid;

use crate::run::{Circumstances, Loss};

/// A row of messages.
#[derive(Clone, Debug, Deserialize)]
pub struct Message {
    pub id: Uuid,
    pub conversation_id: Uuid,
    pub seq: u64,
    pub change_seq: u64,
    pub sender_id: Uuid,
    pub client_message_id: Option<String>,
    pub content: Option<String>,
    pub deleted: bool,
}

/// A row of participants.
#[derive(Clone, Debug, Deserialize)]
pub struct Participant {
    pub conversation_id: Uuid,
    pub user_id: Uuid,
    pub joined_seq: u64,
    pub left_seq: Option<u64>,
    pub history_from_seq: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Conversation {
    pub id: Uuid,
    pub last_seq: u64,
}

/// An earlier version of a message.
#[derive(Clone, Debug, Deserialize)]
pub struct Edit {
    pub message_id: Uuid,
    pub seq: u64,
}

/// A record of the offline topic.
#[derive(Clone, Debug)]
pub struct Record {
    pub key: Uuid,
    pub message: Uuid,
    pub conversation: Uuid,
    pub seq: u64,
    pub recipients: Vec<Uuid>,
}

#[derive(Default)]
pub struct Evidence {
    pub lines: Vec<Line>,
    pub messages: HashMap<Uuid, Message>,
    pub participants: BTreeMap<(Uuid, Uuid), Participant>,
    pub conversations: BTreeMap<Uuid, Conversation>,
    pub edits: Vec<Edit>,
    pub records: Vec<Record>,
    /// Who was let in later: his row tells of his last stay only.
    pub added: BTreeSet<(Uuid, Uuid)>,
    /// Whether who is connected must have been told of every change.
    pub tells_all: bool,
    /// In their order.
    pub losses: Vec<Loss>,
    /// From when until when all sockets were down or on their way back.
    pub storms: Vec<(u64, u64)>,
    pub leftovers: Vec<String>,
    pub strikes: u64,
    /// Of the final resume's beginning, in `lines`.
    pub settled: Option<usize>,
}

#[derive(Deserialize)]
struct RawRecord {
    key: Uuid,
    payload: String,
}

#[derive(Deserialize)]
struct Payload {
    message: PayloadMessage,
    recipients: Vec<Recipient>,
}

#[derive(Deserialize)]
struct PayloadMessage {
    id: Uuid,
    conversation_id: Uuid,
    seq: u64,
}

#[derive(Deserialize)]
struct Recipient {
    user_id: Uuid,
}

impl Evidence {
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let circumstances = std::fs::read(folder.join("circumstances.json"))?;
        let circumstances: Circumstances = serde_json::from_slice(&circumstances)?;
        let lines: Vec<Line> = rows(folder, "history")?;
        let messages: Vec<Message> = rows(folder, "messages")?;
        let participants: Vec<Participant> = rows(folder, "participants")?;
        let conversations: Vec<Conversation> = rows(folder, "conversations")?;
        let records: Vec<RawRecord> = rows(folder, "offline")?;
        let record = |raw: RawRecord| {
            let payload: Payload = serde_json::from_str(&raw.payload)?;
            anyhow::Ok(Record {
                key: raw.key,
                message: payload.message.id,
                conversation: payload.message.conversation_id,
                seq: payload.message.seq,
                recipients: payload.recipients.into_iter().map(|r| r.user_id).collect(),
            })
        };
        Ok(Self {
            settled: settled(&lines),
            lines,
            messages: messages.into_iter().map(|row| (row.id, row)).collect(),
            participants: participants
                .into_iter()
                .map(|row| ((row.conversation_id, row.user_id), row))
                .collect(),
            conversations: conversations.into_iter().map(|row| (row.id, row)).collect(),
            edits: rows(folder, "edits")?,
            records: records.into_iter().map(record).collect::<Result<_, _>>()?,
            added: circumstances.added.into_iter().collect(),
            tells_all: circumstances.tells_all,
            losses: circumstances.losses,
            storms: circumstances.storms,
            leftovers: circumstances.leftovers,
            strikes: circumstances.strikes,
        })
    }

    /// The lines, and how many losses lay behind the node that the device was connected to.
    pub fn with_eras(&self) -> impl Iterator<Item = (usize, &Line)> {
        let mut eras: HashMap<&str, usize> = HashMap::new();
        self.lines.iter().map(move |line| {
            if let Entry::Connected { epoch, .. } = &line.entry {
                let ended = self.losses.iter().position(|loss| loss.epoch == *epoch);
                eras.insert(&line.device, ended.unwrap_or(self.losses.len()));
            }
            (eras.get(&*line.device).copied().unwrap_or_default(), line)
        })
    }

    /// Whether what stood at this place in that era was lost later.
    pub fn is_lost(&self, era: usize, conversation: Uuid, seq: u64) -> bool {
        let later = self.losses.iter().skip(era);
        later.into_iter().any(|loss| loss.heads.get(&conversation).is_none_or(|head| seq > *head))
    }

    /// The messages' states that a line brings, and the conversation they are of.
    pub fn brought(entry: &Entry) -> (Option<Uuid>, &[State]) {
        match entry {
            Entry::Told { conversation, message, .. } => (Some(*conversation), message.as_slice()),
            Entry::Page { conversation, messages, .. } => (Some(*conversation), messages),
            Entry::Holds { conversation, messages, .. } => (Some(*conversation), messages),
            _ => (None, &[]),
        }
    }
}

pub fn settled(lines: &[Line]) -> Option<usize> {
    lines.iter().position(|line| line.entry == Entry::Settled)
}

fn rows<T: DeserializeOwned>(folder: &Path, name: &str) -> anyhow::Result<Vec<T>> {
    let path = folder.join(format!("{name}.jsonl"));
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            serde_json::from_str(line)
                .with_context(|| format!("{} line {}", path.display(), number + 1))
        })
        .collect()
}
