//! Who gets a conversation's events: members by version, so that a change of members is never
//! overlooked and a read of the store is rare.

use std::sync::Arc;

use moka::sync::Cache;

use crate::ids::ConversationId;
use crate::store::types::Members;
use crate::store::{Result, Store};

/// Member entries held over all conversations; about 64 bytes each.
const MAX_ENTRIES: u64 = 1_000_000;

#[derive(Clone)]
pub struct MembersCache {
    store: Store,
    cache: Cache<ConversationId, Arc<Members>>,
}

impl MembersCache {
    pub fn new(store: Store) -> Self {
        let cache = Cache::builder()
            .max_capacity(MAX_ENTRIES)
            .weigher(|_, members: &Arc<Members>| {
                u32::try_from(members.members.len()).unwrap_or(u32::MAX).saturating_add(2)
            })
            .build();
        Self { store, cache }
    }

    /// The members at `version` or later; who joined or left since is told apart by seq. None if
    /// there is no such conversation.
    pub async fn get(&self, id: ConversationId, version: i64) -> Result<Option<Arc<Members>>> {
        if let Some(members) = self.cache.get(&id).filter(|members| members.version >= version) {
            return Ok(Some(members));
        }
        let Some(members) = self.store.members(id).await? else { return Ok(None) };
        let members = Arc::new(members);
        // A slower read of an older version does not replace a newer one.
        self.cache.entry(id).and_compute_with(|held| match held {
            Some(held) if held.value().version > members.version => moka::ops::compute::Op::Nop,
            _ => moka::ops::compute::Op::Put(members.clone()),
        });
        Ok(Some(members))
    }
}
