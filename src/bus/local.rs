//! The bus of a single node: publishing is delivering.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use super::{Envelope, Inbox, Receivers};
use crate::ids::UserId;

#[derive(Clone)]
pub struct LocalBus(Arc<Inner>);

struct Inner {
    inbox: Arc<dyn Inbox>,
    /// How often each user is subscribed to; never zero.
    subscribed: RwLock<HashMap<UserId, u32>>,
}

impl LocalBus {
    pub(super) fn new(inbox: Arc<dyn Inbox>) -> Self {
        Self(Arc::new(Inner { inbox, subscribed: RwLock::default() }))
    }

    pub(super) fn subscribe(&self, user: UserId) {
        *self.write().entry(user).or_insert(0) += 1;
    }

    pub(super) fn unsubscribe(&self, user: UserId) {
        if let Entry::Occupied(mut count) = self.write().entry(user) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    pub(super) fn publish(&self, batch: &[(UserId, Bytes)]) -> Vec<Receivers> {
        // One lock for the batch, released before anyone is woken.
        let counts: Vec<u32> = {
            let subscribed = self.read();
            batch.iter().map(|(user, _)| u32::from(subscribed.contains_key(user))).collect()
        };
        // A batch is mostly one event for many users, encoded once: its head is read once.
        let mut last: Option<(&Bytes, Option<Envelope>)> = None;
        let mut receivers = Vec::with_capacity(batch.len());
        for ((user, bytes), count) in batch.iter().zip(counts) {
            let known = last.as_ref().is_some_and(|(previous, _)| {
                (previous.as_ptr(), previous.len()) == (bytes.as_ptr(), bytes.len())
            });
            if !known {
                last = Some((bytes, Envelope::decode(bytes.clone()).ok()));
            }
            receivers.push(match &last {
                Some((_, Some(envelope))) => {
                    if count > 0 {
                        self.0.inbox.deliver(*user, envelope.clone());
                    }
                    Receivers::Count(count)
                }
                _ => Receivers::Unknown,
            });
        }
        receivers
    }

    pub(super) fn subscriptions(&self) -> usize {
        self.read().len()
    }

    // A panic elsewhere leaves the map as whole as it was.
    fn read(&self) -> RwLockReadGuard<'_, HashMap<UserId, u32>> {
        self.0.subscribed.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<UserId, u32>> {
        self.0.subscribed.write().unwrap_or_else(PoisonError::into_inner)
    }
}
