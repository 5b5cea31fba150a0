//! What devices did and saw, one JSON object a line, in the order in which each device saw it. The
//! checker reads these lines and nothing else of a device.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Milliseconds since the run began.
    pub at: u64,
    pub user: Uuid,
    pub device: String,
    #[serde(flatten)]
    pub entry: Entry,
}

/// How something reached a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// By an event.
    Live,
    /// By a page of a sync.
    Resume,
    /// As the answer to its own command.
    Answer,
}

/// A message's state, as far as it can be compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub id: Uuid,
    pub seq: u64,
    pub change_seq: u64,
    pub sender: Uuid,
    pub client_message_id: Option<String>,
    /// Of the content; None of a deleted one.
    pub hash: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    Acknowledged {
        message: Uuid,
        seq: u64,
        change_seq: u64,
    },
    /// For good: nothing was stored.
    Refused {
        code: String,
    },
    /// Not now; the same is sent again.
    Later {
        code: String,
    },
    /// The connection ended, or no answer came in time; the same is sent again.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    Connected {
        session: Uuid,
        node: Uuid,
        /// Of the store: another one after a restore that may have lost commits.
        epoch: Uuid,
    },
    NotConnected {
        why: String,
    },
    /// `code` is None for a connection that was cut.
    Closed {
        code: Option<u16>,
        why: String,
    },
    /// A command goes out. `command` is the device's number of it; a send's client_message_id too.
    Attempt {
        command: String,
        what: String,
        conversation: Option<Uuid>,
        message: Option<Uuid>,
    },
    Answered {
        command: String,
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// An event or an answer told of a change. `cursor` is where the conversation's cursor went.
    Told {
        how: How,
        kind: String,
        conversation: Uuid,
        seq: u64,
        message: Option<State>,
        cursor: Option<u64>,
    },
    /// An event of this kind that tells of no change, for the first time.
    Heard {
        kind: String,
        conversation: Uuid,
    },
    /// What a page of a sync said of a conversation.
    Page {
        conversation: Uuid,
        status: String,
        since: u64,
        next_seq: u64,
        more: bool,
        messages: Vec<State>,
        /// Nothing before it is this member's to see any more.
        history_from: Option<u64>,
        left_seq: Option<u64>,
        cursor: Option<u64>,
    },
    /// More of the conversation than before is the member's to see: it is read from the beginning.
    Again {
        conversation: Uuid,
    },
    /// An event lies beyond cursor + 1, and did for as long as one waits.
    Gap {
        conversation: Uuid,
        cursor: u64,
        next: u64,
    },
    Resync,
    Reconnect {
        after_ms: u64,
    },
    /// The server did what it must not.
    Fault {
        what: String,
    },
    /// All devices are as far as they get without asking: what follows is the final resume.
    Settled,
    /// What the device holds in the end.
    Holds {
        conversation: Uuid,
        cursor: u64,
        gone: bool,
        messages: Vec<State>,
    },
}

/// A writer that all devices of a run share.
#[derive(Clone)]
pub struct History(Arc<Inner>);

struct Inner {
    begun: Instant,
    file: Mutex<BufWriter<File>>,
}

impl History {
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = Mutex::new(BufWriter::new(File::create(path)?));
        Ok(Self(Arc::new(Inner { begun: Instant::now(), file })))
    }

    pub fn elapsed_ms(&self) -> u64 {
        self.0.begun.elapsed().as_millis() as u64
    }

    /// A disk that is full ends the run: a history with holes proves nothing.
    pub fn note(&self, user: Uuid, device: &str, entry: Entry) {
        let mut file = self.0.file.lock().unwrap_or_else(PoisonError::into_inner);
        let line = Line { at: self.elapsed_ms(), user, device: device.to_owned(), entry };
        serde_json::to_writer(&mut *file, &line).expect("the history can be written");
        file.write_all(b"\n").expect("the history can be written");
    }

    pub fn flush(&self) -> io::Result<()> {
        self.0.file.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}

/// FNV-1a. Written out, for the checker computes it of what the database holds.
pub fn hash(content: &str) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", content.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written() {
        let entries = [
            Entry::Settled,
            Entry::Answered {
                command: "1".into(),
                outcome: Outcome::Acknowledged { message: Uuid::nil(), seq: 3, change_seq: 3 },
            },
            Entry::Answered { command: "2".into(), outcome: Outcome::Unknown },
            Entry::Gap { conversation: Uuid::nil(), cursor: 3, next: 5 },
        ];
        for entry in entries {
            let line = Line { at: 7, user: Uuid::nil(), device: "d".into(), entry };
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line, "{text}");
        }
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(hash(""), "cbf29ce484222325");
        assert_eq!(hash("a"), "af63dc4c8601ec8c");
    }
}
