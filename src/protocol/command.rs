//! Client to server: commands on the socket and the bodies of REST calls, decoded and checked, so
//! that later code sees only valid values.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};
use simd_json::OwnedValue;
use simd_json::prelude::{ValueAsScalar, ValueBuilder, ValueObjectAccess};

use super::code::Code;
use super::event::Limits;
use super::model::{Kind, Mention, Message, MessageType, Role};
use super::problem::Problem;
use crate::ids::{ConversationId, MessageId, UserId};

pub const MAX_CLIENT_MESSAGE_ID_BYTES: usize = 128;
pub const MAX_TITLE_BYTES: usize = 256;
pub const MAX_MENTIONS: usize = 100;
pub const MAX_USER_IDS: usize = 100;
pub const MAX_PAGE: u32 = 200;
pub const MESSAGE_ID_FORM: &str = "a message id is a UUID";
const MAX_REF_BYTES: usize = 128;
/// Of objects and lists in each other.
const MAX_DEPTH: usize = 32;

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
    Ping,
}

impl Command {
    pub fn name(&self) -> &'static str {
        match self {
            Self::SendMessage(_) => "send_message",
            Self::EditMessage(..) => "edit_message",
            Self::DeleteMessage(_) => "delete_message",
            Self::Ping => "ping",
        }
    }
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
        "send_message" => from_value::<SendMessage>(payload)
            .and_then(|send| send.checked(limits))
            .map(Command::SendMessage),
        "edit_message" => message_id(&payload).and_then(|id| {
            let edit = from_value::<EditMessage>(payload)?.checked(limits)?;
            Ok(Command::EditMessage(id, edit))
        }),
        "delete_message" => message_id(&payload).map(Command::DeleteMessage),
        "ping" => Ok(Command::Ping),
        _ => {
            let known = "send_message, edit_message, delete_message, ping";
            let detail = format!("the type is none of: {known}");
            Err(Problem::new(Code::UnknownCommand, detail))
        }
    };
    Frame { reference, is_send: outer.kind == "send_message", command }
}

/// Decodes a JSON body; what does not fit is refused with the path of the field. The bytes are
/// used up.
pub fn from_json<T: DeserializeOwned>(text: &mut [u8]) -> Result<T, Problem> {
    check_depth(text)?;
    let mut json = simd_json::Deserializer::from_slice(text).map_err(|error| {
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

/// A message to be sent.
#[derive(Clone, Debug, Deserialize)]
pub struct SendMessage {
    pub conversation_id: ConversationId,
    #[serde(default)]
    pub content: Option<String>,
    pub message_type: MessageType,
    #[serde(default)]
    pub client_message_id: Option<String>,
    #[serde(default)]
    pub parent_message_id: Option<MessageId>,
    #[serde(default)]
    pub mentions: Option<Vec<Mention>>,
    #[serde(default)]
    pub metadata: Option<serde_json::Value>,
}

impl SendMessage {
    /// Checks all that can be judged without the store.
    pub fn checked(mut self, limits: &Limits) -> Result<Self, Problem> {
        if let Some(id) = &self.client_message_id {
            check_client_message_id(id)?;
        }
        let content = self.content.get_or_insert_default();
        check_content(content, limits)?;
        if let Some(mentions) = &self.mentions {
            check_mentions(mentions, content)?;
        }
        // An empty list is no list, so that both are stored and hashed alike.
        self.mentions = self.mentions.filter(|mentions| !mentions.is_empty());
        self.metadata = self.metadata.filter(|metadata| !metadata.is_null());
        check_metadata(self.metadata.as_ref(), limits)?;
        check_content_of(self.message_type, content)?;
        check_metadata_of(self.message_type, self.metadata.as_ref())?;
        Ok(self)
    }

    /// SHA-256 of what is sent, the same for the same values in any order of keys.
    pub fn body_hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let value = serde_json::json!([
            self.conversation_id,
            self.content,
            self.message_type,
            self.parent_message_id,
            self.mentions,
            self.metadata,
        ]);
        hash.update(value.to_string());
        hash.finalize().into()
    }
}

/// What a message is to become.
#[derive(Clone, Debug, Deserialize)]
pub struct EditMessage {
    pub content: String,
    #[serde(default)]
    pub mentions: Option<Vec<Mention>>,
    /// None if it was left out, an inner None if it is null.
    #[serde(default, deserialize_with = "given")]
    pub metadata: Option<Option<serde_json::Value>>,
}

fn given<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<serde_json::Value>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl EditMessage {
    /// Checks all that can be judged without the message.
    pub fn checked(mut self, limits: &Limits) -> Result<Self, Problem> {
        check_content(&self.content, limits)?;
        if let Some(mentions) = &self.mentions {
            check_mentions(mentions, &self.content)?;
        }
        self.mentions = self.mentions.filter(|mentions| !mentions.is_empty());
        check_metadata(self.metadata.iter().flatten().next(), limits)?;
        Ok(self)
    }

    /// Checks what depends on the type of the message. Metadata that is kept suited it before.
    pub fn check_for(&self, message_type: MessageType) -> Result<(), Problem> {
        check_content_of(message_type, &self.content)?;
        match &self.metadata {
            Some(metadata) => check_metadata_of(message_type, metadata.as_ref()),
            None => Ok(()),
        }
    }

    /// The message with its new contents, its place and times as they were.
    pub fn applied_to(&self, message: Message) -> Message {
        Message {
            content: Some(self.content.clone()),
            mentions: self.mentions.clone(),
            metadata: self.metadata.clone().unwrap_or(message.metadata),
            ..message
        }
    }
}

pub fn check_client_message_id(id: &str) -> Result<(), Problem> {
    let field = "client_message_id";
    if id.is_empty() || id.len() > MAX_CLIENT_MESSAGE_ID_BYTES {
        return Err(Problem::invalid(
            field,
            format!("client_message_id has 1 to {MAX_CLIENT_MESSAGE_ID_BYTES} bytes"),
        ));
    }
    check_text(field, id)
}

/// NUL cannot be stored by every database.
fn check_text(field: &'static str, text: &str) -> Result<(), Problem> {
    if text.contains('\0') {
        return Err(Problem::invalid(field, format!("{field} holds a NUL character")));
    }
    Ok(())
}

fn check_content(content: &str, limits: &Limits) -> Result<(), Problem> {
    if content.len() > limits.max_content_bytes {
        return Err(Problem {
            field: Some("content".into()),
            ..Problem::new(
                Code::TooLarge,
                format!(
                    "content has {} bytes, at most {} are allowed",
                    content.len(),
                    limits.max_content_bytes
                ),
            )
        });
    }
    check_text("content", content)
}

fn check_content_of(message_type: MessageType, content: &str) -> Result<(), Problem> {
    if message_type == MessageType::Text && content.trim().is_empty() {
        return Err(Problem::invalid("content", "a text message has a content"));
    }
    Ok(())
}

fn check_mentions(mentions: &[Mention], content: &str) -> Result<(), Problem> {
    if mentions.len() > MAX_MENTIONS {
        return Err(Problem::invalid(
            "mentions",
            format!("{} mentions, at most {MAX_MENTIONS} are allowed", mentions.len()),
        ));
    }
    let units = content.encode_utf16().count() as u64;
    for (at, mention) in mentions.iter().enumerate() {
        if mention.length == 0 || u64::from(mention.offset) + u64::from(mention.length) > units {
            return Err(Problem::invalid(
                format!("mentions[{at}]"),
                format!("reaches outside the content, which has {units} UTF-16 units"),
            ));
        }
    }
    Ok(())
}

fn check_metadata(metadata: Option<&serde_json::Value>, limits: &Limits) -> Result<(), Problem> {
    if let Some(value) = metadata {
        if !value.is_object() {
            return Err(Problem::invalid("metadata", "metadata is an object"));
        }
        let text = value.to_string();
        if text.len() > limits.max_metadata_bytes {
            return Err(Problem {
                field: Some("metadata".into()),
                ..Problem::new(
                    Code::TooLarge,
                    format!(
                        "metadata has {} bytes, at most {} are allowed",
                        text.len(),
                        limits.max_metadata_bytes
                    ),
                )
            });
        }
        if text.contains("\\u0000") {
            return Err(Problem::invalid("metadata", "metadata holds a NUL character"));
        }
    }
    Ok(())
}

fn check_metadata_of(
    message_type: MessageType,
    metadata: Option<&serde_json::Value>,
) -> Result<(), Problem> {
    match message_type {
        MessageType::Text => Ok(()),
        MessageType::Image | MessageType::Video | MessageType::Audio | MessageType::File => {
            let url = metadata.and_then(|m| m.get("media_url")).and_then(|url| url.as_str());
            let scheme = url.and_then(|url| url.split_once("://"));
            match scheme {
                Some(("http" | "https", rest)) if !rest.is_empty() => Ok(()),
                _ => Err(Problem::invalid(
                    "metadata.media_url",
                    format!(
                        "a message of type {} has a media_url (http or https)",
                        message_type.word()
                    ),
                )),
            }
        }
        MessageType::Location => {
            for (name, bound) in [("latitude", 90.0), ("longitude", 180.0)] {
                let value = metadata.and_then(|m| m.get(name)).and_then(|value| value.as_f64());
                if !value.is_some_and(|value| value.abs() <= bound) {
                    return Err(Problem::invalid(
                        format!("metadata.{name}"),
                        format!("a location has a {name} from -{bound} to {bound}"),
                    ));
                }
            }
            Ok(())
        }
    }
}

/// A conversation to be created.
#[derive(Clone, Debug, Deserialize)]
pub struct CreateConversation {
    pub kind: Kind,
    #[serde(default)]
    pub title: Option<String>,
    pub participants: Vec<UserId>,
}

impl CreateConversation {
    /// `creator` is taken out of the participants, and each is named once.
    pub fn checked(mut self, creator: UserId, max_group_size: usize) -> Result<Self, Problem> {
        check_title(self.title.as_deref())?;
        self.participants.sort_unstable();
        self.participants.dedup();
        self.participants.retain(|user| *user != creator);
        match self.kind {
            Kind::Direct if self.participants.len() != 1 => Err(Problem::invalid(
                "participants",
                "a direct conversation has exactly one participant besides yourself",
            )),
            Kind::Direct if self.title.is_some() => {
                Err(Problem::invalid("title", "a direct conversation has no title"))
            }
            Kind::Group if self.participants.len() >= max_group_size => Err(Problem::invalid(
                "participants",
                format!("a group has at most {max_group_size} members"),
            )),
            _ => Ok(self),
        }
    }
}

pub fn check_title(title: Option<&str>) -> Result<(), Problem> {
    let Some(title) = title else { return Ok(()) };
    if title.len() > MAX_TITLE_BYTES || title.trim().is_empty() {
        return Err(Problem::invalid("title", format!("a title has 1 to {MAX_TITLE_BYTES} bytes")));
    }
    check_text("title", title)
}

#[derive(Clone, Debug, Deserialize)]
pub struct AddParticipants {
    pub user_ids: Vec<UserId>,
    /// Whether they see what was said before they came.
    #[serde(default = "yes")]
    pub with_history: bool,
}

fn yes() -> bool {
    true
}

impl AddParticipants {
    pub fn checked(mut self) -> Result<Self, Problem> {
        if self.user_ids.is_empty() || self.user_ids.len() > MAX_USER_IDS {
            return Err(Problem::invalid(
                "user_ids",
                format!("user_ids names 1 to {MAX_USER_IDS} users"),
            ));
        }
        self.user_ids.sort_unstable();
        self.user_ids.dedup();
        Ok(self)
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct PatchParticipant {
    #[serde(default)]
    pub role: Option<Role>,
    #[serde(default)]
    pub can_send_messages: Option<bool>,
}

impl PatchParticipant {
    pub fn checked(self) -> Result<Self, Problem> {
        if self.role.is_none() && self.can_send_messages.is_none() {
            return Err(Problem::invalid("role", "name role or can_send_messages to change"));
        }
        Ok(self)
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct PatchConversation {
    pub title: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        max_frame_bytes: 65_536,
        max_content_bytes: 100,
        max_metadata_bytes: 100,
        max_group_size: 4,
    };
    const ID: &str = "018bcfe5-6807-7abc-8000-000000000002";

    fn decode_text(text: &str) -> Frame {
        decode(&mut text.as_bytes().to_vec(), &LIMITS)
    }

    fn refused(text: &str) -> Problem {
        decode_text(text).command.expect_err("it is refused")
    }

    fn send(payload: &str) -> Result<Command, Problem> {
        decode_text(&format!(
            r#"{{"type":"send_message","payload":{{"conversation_id":"{ID}",{payload}}}}}"#
        ))
        .command
    }

    #[test]
    fn a_send_is_decoded_with_its_ref() {
        let frame = decode_text(&format!(
            r#"{{"type":"send_message","ref":"r1","payload":{{"conversation_id":"{ID}","content":"hé","message_type":"text","extra":1}}}}"#
        ));
        assert_eq!(frame.reference.as_deref(), Some("r1"));
        let Ok(Command::SendMessage(send)) = frame.command else { panic!("{:?}", frame.command) };
        assert_eq!(send.content.as_deref(), Some("hé"));
        assert!(matches!(decode_text(r#"{"type":"ping"}"#).command, Ok(Command::Ping)));
    }

    #[test]
    fn faults_name_the_field() {
        assert_eq!(refused("{").code, Code::Malformed);
        assert_eq!(refused("[]").code, Code::Malformed);
        assert_eq!(refused(r#"{"type":"fly"}"#).code, Code::UnknownCommand);
        assert_eq!(refused(r#"{"payload":{}}"#).field.as_deref(), Some("type"));
        assert_eq!(refused(r#"{"type":"ping","ref":7}"#).field.as_deref(), Some("ref"));
        let field = |payload| send(payload).expect_err("refused").field.map(|f| f.into_owned());
        assert_eq!(field(r#""message_type":"text","content":7"#).as_deref(), Some("content"));
        assert_eq!(field(r#""content":"x""#).as_deref(), Some("message_type"));
        assert_eq!(
            field(r#""message_type":"poem","content":"x""#).as_deref(),
            Some("message_type")
        );
        assert_eq!(field(r#""message_type":"text","content":"  ""#).as_deref(), Some("content"));
        assert_eq!(
            field(r#""message_type":"text","content":"a\u0000""#).as_deref(),
            Some("content")
        );
        assert_eq!(
            field(r#""message_type":"image","content":"","metadata":{"media_url":"ftp://x"}"#)
                .as_deref(),
            Some("metadata.media_url")
        );
        assert_eq!(
            field(r#""message_type":"location","metadata":{"latitude":91,"longitude":0}"#)
                .as_deref(),
            Some("metadata.latitude")
        );
        let mention = format!(
            r#""message_type":"text","content":"a😀","mentions":[{{"user_id":"{ID}","offset":1,"length":3}}]"#
        );
        assert_eq!(field(&mention).as_deref(), Some("mentions[0]"));
        let long = format!(r#""message_type":"text","content":"{}""#, "x".repeat(101));
        assert_eq!(send(&long).expect_err("refused").code, Code::TooLarge);
        let id = format!(
            r#""message_type":"text","content":"x","client_message_id":"{}""#,
            "x".repeat(129)
        );
        assert_eq!(field(&id).as_deref(), Some("client_message_id"));
    }

    #[test]
    fn nesting_is_bounded_before_the_parser_recurses() {
        let nested = |levels: usize| {
            let (open, close) = ("[".repeat(levels), "]".repeat(levels));
            send(&format!(
                r#""message_type":"text","content":"]\"[{{","metadata":{{"a":{open}{close}}}"#
            ))
        };
        assert!(nested(MAX_DEPTH - 3).is_ok());
        assert_eq!(nested(MAX_DEPTH - 2).expect_err("too deep").code, Code::Malformed);
        assert_eq!(nested(30_000).expect_err("too deep").code, Code::Malformed);
    }

    #[test]
    fn mentions_count_utf_16_units() {
        let mention = format!(
            r#""message_type":"text","content":"a😀","mentions":[{{"user_id":"{ID}","offset":1,"length":2}}]"#
        );
        assert!(send(&mention).is_ok());
    }

    #[test]
    fn the_body_hash_tells_bodies_apart_and_not_spellings() {
        let hash = |payload| match send(payload) {
            Ok(Command::SendMessage(send)) => send.body_hash(),
            other => panic!("{other:?}"),
        };
        let first =
            hash(r#""message_type":"text","content":"a","client_message_id":"1","mentions":[]"#);
        assert_eq!(first, hash(r#""content":"a","message_type":"text","client_message_id":"2""#));
        assert_ne!(first, hash(r#""content":"b","message_type":"text""#));
    }

    #[test]
    fn an_edit_is_decoded_and_checked_for_the_type_of_its_message() {
        let decode = |payload: &str| {
            let text =
                format!(r#"{{"type":"edit_message","payload":{{"message_id":"{ID}",{payload}}}}}"#);
            match decode_text(&text).command {
                Ok(Command::EditMessage(id, edit)) => {
                    assert_eq!(id.to_string(), ID);
                    Ok(edit)
                }
                Ok(other) => panic!("{other:?}"),
                Err(problem) => Err(problem),
            }
        };
        let kept = decode(r#""content":"a","mentions":[]"#).unwrap();
        assert_eq!((&kept.mentions, &kept.metadata), (&None, &None));
        assert!(kept.check_for(MessageType::Text).is_ok());
        assert!(kept.check_for(MessageType::Image).is_ok());
        let emptied = decode(r#""content":"","metadata":null"#).unwrap();
        assert_eq!(emptied.metadata, Some(None));
        let field = |kind| emptied.check_for(kind).expect_err("refused").field.unwrap();
        assert_eq!(field(MessageType::Text), "content");
        assert_eq!(field(MessageType::Image), "metadata.media_url");
        let media = decode(r#""content":"","metadata":{"media_url":"https://x"}"#).unwrap();
        assert!(media.check_for(MessageType::Video).is_ok());
        assert!(media.check_for(MessageType::Location).is_err());

        let field = |payload| decode(payload).expect_err("refused").field.map(|f| f.into_owned());
        assert_eq!(field(r#""metadata":{}"#).as_deref(), Some("content"));
        assert_eq!(field(r#""content":"a\u0000""#).as_deref(), Some("content"));
        assert_eq!(field(r#""content":"a","metadata":7"#).as_deref(), Some("metadata"));
        let long = format!(r#""content":"{}""#, "x".repeat(101));
        assert_eq!(decode(&long).expect_err("refused").code, Code::TooLarge);
        for frame in [
            r#"{"type":"edit_message","payload":{"content":"a"}}"#,
            r#"{"type":"delete_message","payload":{"message_id":"x"}}"#,
            r#"{"type":"delete_message","payload":7}"#,
        ] {
            assert_eq!(refused(frame).field.as_deref(), Some("message_id"), "{frame}");
        }
    }

    #[test]
    fn conversations_are_checked() {
        let me = UserId(uuid::Uuid::from_u128(1));
        let other = UserId(uuid::Uuid::from_u128(2));
        let create = |kind, participants: &[UserId], title: Option<&str>| {
            CreateConversation {
                kind,
                title: title.map(str::to_owned),
                participants: participants.to_vec(),
            }
            .checked(me, 3)
        };
        let direct = create(Kind::Direct, &[other, me, other], None).unwrap();
        assert_eq!(direct.participants, [other]);
        assert!(create(Kind::Direct, &[me], None).is_err());
        assert!(create(Kind::Direct, &[other], Some("x")).is_err());
        assert!(create(Kind::Group, &[], Some(" ")).is_err());
        let many: Vec<_> = (2..5).map(|n| UserId(uuid::Uuid::from_u128(n))).collect();
        assert!(create(Kind::Group, &many[..2], Some("ok")).is_ok());
        assert!(create(Kind::Group, &many, None).is_err());
    }
}
