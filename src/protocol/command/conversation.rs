//! Conversations and members as they are made and changed.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{MAX_TITLE_BYTES, MAX_USER_IDS, check_text, given};
use crate::clock::Timestamp;
use crate::ids::UserId;
use crate::protocol::model::{Kind, Role};
use crate::protocol::problem::Problem;

/// A conversation to be created.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct CreateConversation {
    pub kind: Kind,
    /// Of a group; at most 256 bytes, and not blank.
    #[serde(default)]
    #[schemars(length(min = 1, max = MAX_TITLE_BYTES))]
    pub title: Option<String>,
    /// The other members: exactly one of a direct conversation; of a group less than
    /// `limits.max_group_size` of the event `hello`.
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

/// Who is to become a member.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct AddParticipants {
    #[schemars(length(min = 1, max = MAX_USER_IDS))]
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

/// A member's rights; what is left out stays as it is, and one at least is given.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct PatchParticipant {
    #[serde(default)]
    pub role: Option<Role>,
    #[serde(default)]
    pub can_send_messages: Option<bool>,
    /// One's own; null ends it.
    // None if it was left out, an inner None if it is null.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "Option<Timestamp>")]
    pub muted_until: Option<Option<Timestamp>>,
}

impl PatchParticipant {
    pub fn checked(self) -> Result<Self, Problem> {
        if self.role.is_none() && self.can_send_messages.is_none() && self.muted_until.is_none() {
            let detail = "name role, can_send_messages or muted_until to change";
            return Err(Problem::invalid("role", detail));
        }
        Ok(self)
    }
}

/// What of a group is to change.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["title"]))]
pub struct PatchConversation {
    /// At most 256 bytes, and not blank; null takes it away.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schemars(length(min = 1, max = MAX_TITLE_BYTES))]
    pub title: Option<String>,
}
