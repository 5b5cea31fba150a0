//! Messages under way between the members of conversations, the same for each mode that sends:
//!
//! | module | is |
//! |---|---|
//! | `ledger` | what was sent and what became of it, by phase of the run |
//! | `member` | the task of a socket: receives, and writes at its pace if it is a sender |
//! | `measure` | a stretch of it, and what it cost |
//! | `prepare` | many conversations and sockets at a time, before the run |
//!
//! The clocks of all ends are the same process's, so a message's way is measured without any
//! timestamp on the wire: its `ref` and its `client_message_id` say which entry of the ledger it is.

mod ledger;
mod measure;
mod member;
pub mod prepare;

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

pub use ledger::{Ledger, Outcome, Room};
pub use measure::{Measured, Stretch, Window, measure, window};
pub use member::{Member, Writer};

use crate::report::Progress;

const TICK: Duration = Duration::from_millis(200);

/// What the members do; told to all at once.
#[derive(Clone, Copy, Debug)]
pub enum Stage {
    Listen,
    Send(Sending),
    /// Nothing more is due; what was due before `end` still leaves.
    Settle {
        end: Instant,
    },
    Close,
}

#[derive(Clone, Copy, Debug)]
pub struct Sending {
    pub from: Instant,
    pub pace: Pace,
    /// Sends on after a refusal, and does not come back when it says: what overload looks like.
    pub heedless: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Each sender keeps so many messages without an answer: as fast as the server goes.
    Unanswered(usize),
    /// The same, and a message counts until its last recipient has it: as fast as it delivers.
    Undelivered(usize),
    /// So many a second, all senders together, on a fixed schedule: a message that could not leave
    /// in time is late, not left out.
    Rate(f64),
}

impl Pace {
    /// By the options of the same names.
    pub fn of(rate: Option<f64>, in_flight: usize) -> Self {
        rate.map_or(Self::Unanswered(in_flight), Self::Rate)
    }
}

impl std::fmt::Display for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unanswered(count) => write!(f, "{count} unanswered each"),
            Self::Undelivered(count) => write!(f, "{count} undelivered each"),
            Self::Rate(rate) => write!(f, "{rate} messages a second on schedule"),
        }
    }
}

/// Waits, and tells how it goes.
pub async fn follow(ledger: &Ledger, until: Instant, progress: &mut Progress) {
    while Instant::now() < until {
        sleep_until(until.min(Instant::now() + TICK)).await;
        progress.tell(|| ledger.told());
    }
}
