//! What stands in a user's hash, and what follows from it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::super::{Entry, Status};
use crate::clock::Timestamp;
use crate::ids::{NodeId, SessionId};

const LAST_SEEN: &str = "\u{1}last_seen";

/// An entry as it stands in Redis, under its device's name.
#[derive(Serialize, Deserialize)]
pub(super) struct Stored {
    pub node: NodeId,
    session: SessionId,
    /// Which of its process's leases `node` is: a write that was given up and arrives late, of an
    /// earlier lease, is known by it.
    term: u64,
    platform: Option<Box<str>>,
    app_version: Option<Box<str>>,
    /// Milliseconds since the epoch.
    since: i64,
}

impl Stored {
    pub fn write(entry: &Entry, term: u64) -> String {
        let stored = Self {
            node: entry.node,
            session: entry.session,
            term,
            platform: entry.platform.clone(),
            app_version: entry.app_version.clone(),
            since: entry.since.millis(),
        };
        serde_json::to_string(&stored).expect("a struct of strings and numbers is JSON")
    }

    pub fn read(device: &str, text: &str) -> Option<Entry> {
        let stored: Self = serde_json::from_str(text).ok()?;
        Some(Entry {
            node: stored.node,
            session: stored.session,
            device: device.parse().ok()?,
            platform: stored.platform,
            app_version: stored.app_version,
            since: Timestamp::from_millis(stored.since),
        })
    }
}

/// A user's hash.
pub(super) struct Found {
    pub entries: Vec<Entry>,
    last_seen: Option<Timestamp>,
    /// Something in it is not for this release.
    unreadable: bool,
}

impl Found {
    pub fn read(hash: Vec<(String, String)>) -> Self {
        let mut found = Self { entries: Vec::new(), last_seen: None, unreadable: false };
        for (field, text) in hash {
            if field == LAST_SEEN {
                found.last_seen = text.parse().ok().map(Timestamp::from_millis);
            } else if let Some(entry) = Stored::read(&field, &text) {
                found.entries.push(entry);
            } else {
                found.unreadable = true;
            }
        }
        found
    }

    /// `alive`: which of the entries' leases live; None: not known.
    pub fn judge(self, alive: &HashMap<NodeId, Option<bool>>, absence_is_certain: bool) -> Status {
        let unknown = self.entries.iter().any(|entry| alive[&entry.node].is_none());
        let (online, dead): (Vec<_>, Vec<_>) =
            self.entries.into_iter().partition(|entry| alive[&entry.node] == Some(true));
        if !online.is_empty() {
            return Status::Online(online);
        }
        let begun = dead.into_iter().map(|entry| entry.since).max();
        let last_seen = self.last_seen.max(begun);
        if self.unreadable || unknown || !absence_is_certain {
            Status::Unknown { last_seen }
        } else {
            Status::Offline { last_seen }
        }
    }
}
