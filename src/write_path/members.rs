//! Who gets a conversation's events: members by version, so that a change of members is never
//! overlooked and a read of the store is rare.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tokio::time::Instant;

use crate::ids::ConversationId;
use crate::store::types::Members;
use crate::store::{Result, Store};

/// Member entries held over all conversations; about 64 bytes each.
const MAX_ENTRIES: u64 = 1_000_000;

#[derive(Clone)]
pub struct MembersCache {
    store: Store,
    cache: Cache<ConversationId, Held>,
}

#[derive(Clone)]
struct Held {
    members: Arc<Members>,
    /// When their version was still the store's.
    checked: Instant,
}

impl MembersCache {
    pub fn new(store: Store) -> Self {
        let cache = Cache::builder()
            .max_capacity(MAX_ENTRIES)
            .weigher(|_, held: &Held| {
                u32::try_from(held.members.members.len()).unwrap_or(u32::MAX).saturating_add(2)
            })
            .build();
        Self { store, cache }
    }

    /// The members at `version` or later; who joined or left since is told apart by seq. None if
    /// there is no such conversation.
    pub async fn get(&self, id: ConversationId, version: i64) -> Result<Option<Arc<Members>>> {
        if let Some(held) = self.cache.get(&id).filter(|held| held.members.version >= version) {
            return Ok(Some(held.members));
        }
        self.read(id).await
    }

    /// The members as they were no longer than `age` ago. What is held for longer costs a look at
    /// the version, and is read anew only if that has changed.
    pub async fn recent(&self, id: ConversationId, age: Duration) -> Result<Option<Arc<Members>>> {
        let Some(held) = self.cache.get(&id) else { return self.read(id).await };
        if held.checked.elapsed() < age {
            return Ok(Some(held.members));
        }
        let checked = Instant::now();
        match self.store.members_version(id).await? {
            None => Ok(None),
            Some(version) if version <= held.members.version => {
                self.keep(id, Held { members: held.members.clone(), checked });
                Ok(Some(held.members))
            }
            Some(_) => self.read(id).await,
        }
    }

    async fn read(&self, id: ConversationId) -> Result<Option<Arc<Members>>> {
        let checked = Instant::now();
        let Some(members) = self.store.members(id).await? else { return Ok(None) };
        let members = Arc::new(members);
        self.keep(id, Held { members: members.clone(), checked });
        Ok(Some(members))
    }

    /// A slower read of an older version does not replace a newer one.
    fn keep(&self, id: ConversationId, new: Held) {
        let age = |held: &Held| (held.members.version, held.checked);
        self.cache.entry(id).and_compute_with(|held| match held {
            Some(held) if age(held.value()) > age(&new) => moka::ops::compute::Op::Nop,
            _ => moka::ops::compute::Op::Put(new),
        });
    }
}
