//! What a device says it holds.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::ids::{ConversationId, Seq};
use crate::protocol::number::{MAX_SEQ, seqs, seqs_schema};
use crate::protocol::problem::Problem;

pub const MAX_ACKS: usize = 1_000;

/// All up to these seqs is held.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Ack {
    /// Seqs by the ids of their conversations, at most 1,000.
    #[serde(deserialize_with = "seqs")]
    #[schemars(schema_with = "seqs_schema::<MAX_ACKS, 1>")]
    pub conversations: BTreeMap<ConversationId, Seq>,
}

impl Ack {
    pub fn checked(self) -> Result<Self, Problem> {
        if self.conversations.len() > MAX_ACKS {
            let detail = format!("at most {MAX_ACKS} conversations are acknowledged at once");
            return Err(Problem::invalid("conversations", detail));
        }
        if self.conversations.values().any(|seq| !(1..=MAX_SEQ).contains(seq)) {
            return Err(Problem::invalid("conversations", "a seq is a number from 1 to 2^53 - 1"));
        }
        Ok(self)
    }
}
