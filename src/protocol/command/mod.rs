//! Client to server: commands on the socket and the bodies of REST calls, decoded and checked, so
//! that later code sees only valid values.

mod conversation;
mod message;
mod receipt;
mod sync;
#[cfg(test)]
mod tests;
mod typing;
mod watch;

use std::cell::RefCell;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use simd_json::OwnedValue;
use simd_json::prelude::{ValueAsScalar, ValueBuilder, ValueObjectAccess};

use super::code::Code;
use super::event::Limits;
use super::problem::Problem;
use crate::ids::MessageId;
pub use conversation::{
    AddParticipants, CreateConversation, PatchConversation, PatchParticipant, check_title,
};
pub use message::{EditMessage, SendMessage, check_client_message_id};
pub use receipt::{Ack, MAX_ACKS};
pub use sync::{Sync, SyncRequest};
pub use typing::{Typing, TypingState};
pub use watch::WatchPresence;

pub const MAX_CLIENT_MESSAGE_ID_BYTES: usize = 128;
pub const MAX_TITLE_BYTES: usize = 256;
pub const MAX_MENTIONS: usize = 100;
pub const MAX_USER_IDS: usize = 100;
pub const MAX_PAGE: u32 = 200;
pub const MAX_SYNC_CONVERSATIONS: usize = 1_000;
pub const MESSAGE_ID_FORM: &str = "a message id is a UUID";
pub const MAX_REF_BYTES: usize = 128;
/// Of objects and lists in each other.
const MAX_DEPTH: usize = 32;
/// Bytes of a text that is parsed with buffers that are there already.
const SHORT_TEXT: usize = 8 * 1024;

/// The type of every command: what is not among them is not decoded, nor described.
pub const COMMANDS: [&str; 10] = [
    "send_message",
    "edit_message",
    "delete_message",
    "read_receipt",
    "ack",
    "sync",
    "typing",
    "watch_presence",
    "refresh_token",
    "ping",
];

/// A decoded frame: the command and the `ref` its answer is to carry.
#[derive(Debug)]
pub struct Frame {
    pub reference: Option<String>,
    /// It asked for a message to be sent, whatever became of it.
    pub is_send: bool,
    pub command: Result<Command, Problem>,
}

#[derive(Debug)]
pub enum Command {
    SendMessage(SendMessage),
    EditMessage(MessageId, EditMessage),
    DeleteMessage(MessageId),
    ReadReceipt(MessageId),
    Ack(Ack),
    Typing(Typing),
    WatchPresence(WatchPresence),
    /// The socket is to outlive the token it was opened with.
    RefreshToken(Token),
    Sync(Sync),
    Ping,
}

/// A secret: it never shows.
#[derive(Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Command {
    pub fn name(&self) -> &'static str {
        match self {
            Self::SendMessage(_) => "send_message",
            Self::EditMessage(..) => "edit_message",
            Self::DeleteMessage(_) => "delete_message",
            Self::ReadReceipt(_) => "read_receipt",
            Self::Ack(_) => "ack",
            Self::Typing(_) => "typing",
            Self::WatchPresence(_) => "watch_presence",
            Self::RefreshToken(_) => "refresh_token",
            Self::Sync(_) => "sync",
            Self::Ping => "ping",
        }
    }
}

/// The `ref` of a frame that is not carried out, if it can be read. The bytes are used up.
pub fn reference(text: &mut [u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Outer {
        #[serde(rename = "ref")]
        reference: String,
    }
    let outer: Outer = from_json(text).ok()?;
    Some(outer.reference).filter(|text| text.len() <= MAX_REF_BYTES)
}

/// Reads a text frame. The bytes are used up: the parser works in place.
pub fn decode(text: &mut [u8], limits: &Limits) -> Frame {
    #[derive(Deserialize)]
    struct Outer {
        #[serde(rename = "type")]
        kind: String,
        #[serde(rename = "ref", default)]
        reference: Option<OwnedValue>,
        #[serde(default)]
        payload: Option<OwnedValue>,
    }
    let outer: Outer = match from_json(text) {
        Ok(outer) => outer,
        Err(problem) => return Frame { reference: None, is_send: false, command: Err(problem) },
    };
    let reference = match outer.reference {
        None => None,
        Some(value) => match value.as_str() {
            Some(text) if text.len() <= MAX_REF_BYTES => Some(text.to_owned()),
            _ => {
                let detail = format!("ref is a string of at most {MAX_REF_BYTES} bytes");
                let problem = Problem::invalid("ref", detail);
                return Frame { reference: None, is_send: false, command: Err(problem) };
            }
        },
    };
    let payload = outer.payload.unwrap_or_else(OwnedValue::object);
    let command = match outer.kind.as_str() {
        kind if !COMMANDS.contains(&kind) => Err(unknown_command()),
        "send_message" => from_value::<SendMessage>(payload)
            .and_then(|send| send.checked(limits))
            .map(Command::SendMessage),
        "edit_message" => message_id(&payload).and_then(|id| {
            let edit = from_value::<EditMessage>(payload)?.checked(limits)?;
            Ok(Command::EditMessage(id, edit))
        }),
        "delete_message" => message_id(&payload).map(Command::DeleteMessage),
        "read_receipt" => message_id(&payload).map(Command::ReadReceipt),
        "ack" => from_value::<Ack>(payload).and_then(Ack::checked).map(Command::Ack),
        "typing" => from_value::<Typing>(payload).map(Command::Typing),
        "watch_presence" => from_value::<WatchPresence>(payload)
            .and_then(WatchPresence::checked)
            .map(Command::WatchPresence),
        "refresh_token" => {
            #[derive(Deserialize)]
            struct Refresh {
                token: Token,
            }
            from_value::<Refresh>(payload).map(|refresh| Command::RefreshToken(refresh.token))
        }
        "sync" => {
            from_value::<SyncRequest>(payload).and_then(SyncRequest::checked).map(Command::Sync)
        }
        "ping" => Ok(Command::Ping),
        _ => Err(unknown_command()),
    };
    Frame { reference, is_send: outer.kind == "send_message", command }
}

fn unknown_command() -> Problem {
    let detail = format!("the type is none of: {}", COMMANDS.join(", "));
    Problem::new(Code::UnknownCommand, detail)
}

/// Decodes a JSON body; what does not fit is refused with the path of the field. The bytes are
/// used up.
pub fn from_json<T: DeserializeOwned>(text: &mut [u8]) -> Result<T, Problem> {
    use simd_json::Deserializer;
    thread_local! {
        /// What the parser notes on its way, some ten times the text; kept for most texts are short.
        static NOTES: RefCell<simd_json::Buffers> = RefCell::default();
    }
    check_depth(text)?;
    let parsed = if text.len() <= SHORT_TEXT {
        NOTES.with_borrow_mut(|notes| Deserializer::from_slice_with_buffers(text, notes))
    } else {
        Deserializer::from_slice(text)
    };
    let mut json = parsed.map_err(|error| {
        Problem::new(Code::Malformed, format!("not valid JSON: {}", words(&error)))
    })?;
    serde_path_to_error::deserialize(&mut json).map_err(misfit)
}

/// Before it is parsed: the parser recurses, and what is nested deeper than databases' parsers go
/// could be stored and never be read again.
fn check_depth(text: &[u8]) -> Result<(), Problem> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > MAX_DEPTH {
                    let detail = format!("nested deeper than {MAX_DEPTH} levels");
                    return Err(Problem::new(Code::Malformed, detail));
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// Of a field that may be left out: what was given, null too.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Which message a command is about.
fn message_id(payload: &OwnedValue) -> Result<MessageId, Problem> {
    let id = payload.get("message_id").and_then(|id| id.as_str());
    id.and_then(|id| id.parse().ok()).ok_or_else(|| Problem {
        field: Some("message_id".into()),
        ..Problem::new(Code::Malformed, MESSAGE_ID_FORM)
    })
}

fn from_value<T: DeserializeOwned>(value: OwnedValue) -> Result<T, Problem> {
    serde_path_to_error::deserialize(value).map_err(misfit)
}

/// The parser's own words without the offset, which means nothing once it worked in place.
fn words(error: &simd_json::Error) -> String {
    match error.error() {
        simd_json::ErrorType::Serde(text) => text.clone(),
        other => format!("{other:?}"),
    }
}

fn misfit(error: serde_path_to_error::Error<simd_json::Error>) -> Problem {
    let path = error.path().to_string();
    let detail = words(error.inner());
    // Field errors arrive as text made by serde; a missing field is named in the text itself.
    let field = if path == "." { missing_field(&detail) } else { Some(path) };
    Problem { field: field.map(Into::into), ..Problem::new(Code::Malformed, detail) }
}

fn missing_field(detail: &str) -> Option<String> {
    Some(detail.strip_prefix("missing field `")?.split('`').next()?.to_owned())
}

/// NUL cannot be stored by every database.
fn check_text(field: &'static str, text: &str) -> Result<(), Problem> {
    if text.contains('\0') {
        return Err(Problem::invalid(field, format!("{field} holds a NUL character")));
    }
    Ok(())
}
