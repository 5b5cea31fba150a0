//! Whose comings and goings a session wants to be told of.

use schemars::JsonSchema;
use serde::Deserialize;

use super::MAX_USER_IDS;
use crate::ids::UserId;
use crate::protocol::problem::Problem;

/// Who is watched from now on; the list before is forgotten.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct WatchPresence {
    #[schemars(length(max = MAX_USER_IDS))]
    pub user_ids: Vec<UserId>,
}

impl WatchPresence {
    /// Each is named once; nobody at all ends the watching.
    pub fn checked(mut self) -> Result<Self, Problem> {
        if self.user_ids.len() > MAX_USER_IDS {
            let detail = format!("user_ids names at most {MAX_USER_IDS} users");
            return Err(Problem::invalid("user_ids", detail));
        }
        self.user_ids.sort_unstable();
        self.user_ids.dedup();
        Ok(self)
    }
}
