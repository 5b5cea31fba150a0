//! Messages as they are sent and edited.

use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{MAX_CLIENT_MESSAGE_ID_BYTES, MAX_MENTIONS, check_text, given};
use crate::ids::{ConversationId, MessageId};
use crate::protocol::code::Code;
use crate::protocol::event::Limits;
use crate::protocol::model::{Mention, Message, MessageType};
use crate::protocol::problem::Problem;

/// A message to be sent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct SendMessage {
    pub conversation_id: ConversationId,
    /// A text must have one; at most `limits.max_content_bytes` of the event `hello`.
    #[serde(default)]
    pub content: Option<String>,
    pub message_type: MessageType,
    /// The client's own name for it: the same again gives the first message. At most 128 bytes.
    #[serde(default)]
    #[schemars(length(min = 1, max = MAX_CLIENT_MESSAGE_ID_BYTES))]
    pub client_message_id: Option<String>,
    /// The message it replies to, in the same conversation.
    #[serde(default)]
    pub parent_message_id: Option<MessageId>,
    /// Members only, inside the content.
    #[serde(default)]
    #[schemars(length(max = MAX_MENTIONS))]
    pub mentions: Option<Vec<Mention>>,
    /// At most `limits.max_metadata_bytes`. Image, video, audio and file have a `media_url` (http
    /// or https), a location has `latitude` and `longitude`.
    #[serde(default)]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub metadata: Option<serde_json::Value>,
}

impl SendMessage {
    /// Checks all that can be judged without the store.
    pub fn checked(mut self, limits: &Limits) -> Result<Self, Problem> {
        if let Some(id) = &self.client_message_id {
            check_client_message_id("client_message_id", id)?;
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
        let metadata = self.metadata.clone().map(|mut metadata| {
            metadata.sort_all_objects();
            metadata
        });
        let values = serde_json::to_vec(&(
            self.conversation_id,
            &self.content,
            self.message_type,
            self.parent_message_id,
            &self.mentions,
            metadata,
        ));
        Sha256::digest(values.expect("strings, numbers and what was JSON")).into()
    }
}

/// What a message is to become.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct EditMessage {
    /// At most `limits.max_content_bytes` of the event `hello`.
    pub content: String,
    /// Left out, they are dropped.
    #[serde(default)]
    #[schemars(length(max = MAX_MENTIONS))]
    pub mentions: Option<Vec<Mention>>,
    /// Left out, it is kept; null takes it away.
    // None if it was left out, an inner None if it is null.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub metadata: Option<Option<serde_json::Value>>,
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

/// `field` is where the id was given: in the body, or as a header of REST.
pub fn check_client_message_id(field: &'static str, id: &str) -> Result<(), Problem> {
    if id.is_empty() || id.len() > MAX_CLIENT_MESSAGE_ID_BYTES {
        return Err(Problem::invalid(
            field,
            format!("{field} has 1 to {MAX_CLIENT_MESSAGE_ID_BYTES} bytes"),
        ));
    }
    check_text(field, id)
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
