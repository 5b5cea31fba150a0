//! Tickets: what a page that cannot set headers shows when it opens a socket. Each is good once,
//! for a short time, on any node.
//!
//! Only a ticket's hash is kept, so that whoever reads the store's memory holds no ticket. With
//! Redis it is the key `<prefix>:ticket:<hash>`, else it is in this process.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::Identity;
use crate::clock::Timestamp;
use crate::ids::UserId;
use crate::protocol::code::Code;
use crate::protocol::problem::Problem;
use crate::shards::{Call, Failed, Pools, Shards};

/// From its answer to the handshake: a page asks for it when it is about to connect.
pub const TICKET_LIFE: Duration = Duration::from_secs(30);
const TICKET_BYTES: usize = 32;
/// In this process, at a time: some megabytes.
const MAX_TICKETS: usize = 50_000;
/// Connections to one master.
const POOL_SIZE: usize = 4;

pub enum Tickets {
    Local(Mutex<Kept>),
    Redis(Pools),
}

#[derive(Default)]
pub struct Kept {
    tickets: HashMap<String, Identity>,
    /// All there were, oldest first, with their end; those that were used stand here, too.
    ends: VecDeque<(Instant, String)>,
}

impl Tickets {
    /// Connects to nothing yet: bus and presence have shown that Redis is there.
    pub fn new(shards: Option<&Shards>) -> Self {
        match shards {
            None => Self::Local(Mutex::default()),
            Some(shards) => Self::Redis(Pools::new(shards.clone(), POOL_SIZE, |_, _| {})),
        }
    }

    /// A new ticket, which carries the user and the end of his token.
    pub async fn issue(&self, identity: Identity) -> Result<String, Problem> {
        let mut secret = [0u8; TICKET_BYTES];
        getrandom::fill(&mut secret).map_err(|error| {
            tracing::error!(%error, "the system gives no random numbers");
            Problem::new(Code::Internal, "no ticket could be made")
        })?;
        let ticket = hex(&secret);
        let hash = hash(&ticket);
        match self {
            Self::Local(kept) => {
                if !lock(kept).put(hash, identity, Instant::now()) {
                    let detail = "this node holds as many tickets as it may";
                    return Err(Problem::new(Code::Busy, detail));
                }
            }
            Self::Redis(pools) => {
                let life = TICKET_LIFE.as_millis().to_string();
                let arguments = vec![write(identity), "PX".into(), life];
                let set = Call::command("SET", key(pools, &hash), arguments);
                let () = pools.work().one(set).await.map_err(unavailable)?;
            }
        }
        Ok(ticket)
    }

    /// Whose it is, once; None if there is no such ticket, or not any more.
    pub async fn redeem(&self, ticket: &str) -> Result<Option<Identity>, Problem> {
        if ticket.len() != TICKET_BYTES * 2 {
            return Ok(None);
        }
        let hash = hash(ticket);
        match self {
            Self::Local(kept) => Ok(lock(kept).take(&hash, Instant::now())),
            Self::Redis(pools) => {
                let take = Call::command("GETDEL", key(pools, &hash), Vec::new());
                let found: Option<String> = pools.work().one(take).await.map_err(unavailable)?;
                Ok(found.and_then(|text| read(&text)))
            }
        }
    }
}

impl Kept {
    /// False if there is no room.
    fn put(&mut self, hash: String, identity: Identity, now: Instant) -> bool {
        self.forget_old(now);
        if self.ends.len() >= MAX_TICKETS {
            return false;
        }
        self.ends.push_back((now + TICKET_LIFE, hash.clone()));
        self.tickets.insert(hash, identity);
        true
    }

    fn take(&mut self, hash: &str, now: Instant) -> Option<Identity> {
        self.forget_old(now);
        self.tickets.remove(hash)
    }

    fn forget_old(&mut self, now: Instant) {
        while self.ends.front().is_some_and(|(end, _)| *end <= now) {
            if let Some((_, hash)) = self.ends.pop_front() {
                self.tickets.remove(&hash);
            }
        }
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    // Nothing in here panics half-way through a change.
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unavailable(failure: Failed) -> Problem {
    tracing::warn!(%failure, "tickets cannot be reached");
    Problem::new(Code::Unavailable, "tickets cannot be reached just now; ask for a new one")
}

fn key(pools: &Pools, hash: &str) -> String {
    format!("{}:ticket:{hash}", pools.shards().config().prefix)
}

fn hash(ticket: &str) -> String {
    hex(&Sha256::digest(ticket.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The user, and the milliseconds at which the token ends, if there is one.
fn write(identity: Identity) -> String {
    match identity.expires_at {
        Some(at) => format!("{} {}", identity.user_id, at.millis()),
        None => identity.user_id.to_string(),
    }
}

fn read(text: &str) -> Option<Identity> {
    let (user, expires) = match text.split_once(' ') {
        Some((user, millis)) => (user, Some(Timestamp::from_millis(millis.parse().ok()?))),
        None => (text, None),
    };
    Some(Identity { user_id: user.parse::<UserId>().ok()?, expires_at: expires })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(expires_at: Option<i64>) -> Identity {
        let user_id = UserId(uuid::Uuid::from_u128(7));
        Identity { user_id, expires_at: expires_at.map(Timestamp::from_millis) }
    }

    #[tokio::test]
    async fn a_ticket_is_good_once_and_only_as_it_was_given() {
        let tickets = Tickets::new(None);
        let first = tickets.issue(identity(Some(5))).await.unwrap();
        let second = tickets.issue(identity(None)).await.unwrap();
        assert_eq!(first.len(), 64);
        assert_ne!(first, second);
        for wrong in ["", "0", &"0".repeat(64), &first.to_uppercase(), &hash(&first)] {
            assert_eq!(tickets.redeem(wrong).await.unwrap(), None, "{wrong}");
        }
        assert_eq!(tickets.redeem(&first).await.unwrap(), Some(identity(Some(5))));
        assert_eq!(tickets.redeem(&first).await.unwrap(), None, "twice");
        assert_eq!(tickets.redeem(&second).await.unwrap(), Some(identity(None)));
    }

    #[test]
    fn tickets_end_and_there_is_room_for_so_many() {
        let mut kept = Kept::default();
        let start = Instant::now();
        for at in 0..MAX_TICKETS {
            assert!(kept.put(at.to_string(), identity(None), start));
        }
        // Those that were used are within the bound, too.
        assert!(kept.take("7", start).is_some());
        assert!(!kept.put("more".into(), identity(None), start));
        let late = start + TICKET_LIFE;
        assert!(kept.take("8", late - Duration::from_millis(1)).is_some());
        assert_eq!(kept.take("9", late), None, "late");
        assert!(kept.tickets.is_empty() && kept.ends.is_empty());
        assert!(kept.put("more".into(), identity(None), late));
    }

    #[test]
    fn what_redis_keeps_is_read_as_it_was_written() {
        for identity in
            [identity(None), identity(Some(1_700_000_000_000)), identity(Some(i64::MAX))]
        {
            assert_eq!(read(&write(identity)), Some(identity));
        }
        for broken in ["", "x", "x 5", "00000000-0000-0000-0000-000000000007 soon"] {
            assert_eq!(read(broken), None, "{broken}");
        }
    }
}
