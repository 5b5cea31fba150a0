//! Ways to go wrong on purpose, so that the fault suite can be seen to find each of them.
//!
//! Only a build with the feature `sabotage` can be told to, by the variable `SABOTAGE`; a release
//! never is one, and of the questions asked here nothing is left in it. What each breaks, and what
//! finds it, stands in load-tests/README.md.

/// What goes wrong. Each is asked for at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The outbox row of a batch of messages is gone as soon as it is committed.
    ForgetOutbox,
    /// Nobody takes over the outbox rows of a node that died.
    LeaveOutbox,
    /// A send whose commit failed is acknowledged all the same.
    AckUncommitted,
    /// A message that is sent again is refused, though it is stored.
    RefuseRepeats,
    /// Nobody is told that events may have been lost.
    DropResync,
    /// What is written to a socket counts as delivered.
    ProveAtWrite,
    /// A proof settles all that lies before it, too.
    SettlePastGap,
    /// What is for Kafka counts as confirmed, and is dropped.
    SkipKafka,
    /// Events go to former members, too.
    TellLeavers,
    /// A page of a sync lacks its last message, and the cursor goes past it.
    CutPages,
}

#[cfg(not(feature = "sabotage"))]
pub const fn is_on(_: Mutation) -> bool {
    false
}

#[cfg(feature = "sabotage")]
pub use chosen::{begin, is_on};

#[cfg(feature = "sabotage")]
mod chosen {
    use std::str::FromStr;
    use std::sync::OnceLock;

    use super::Mutation;

    const NAMES: [(&str, Mutation); 10] = [
        ("forget-outbox", Mutation::ForgetOutbox),
        ("leave-outbox", Mutation::LeaveOutbox),
        ("ack-uncommitted", Mutation::AckUncommitted),
        ("refuse-repeats", Mutation::RefuseRepeats),
        ("drop-resync", Mutation::DropResync),
        ("prove-at-write", Mutation::ProveAtWrite),
        ("settle-past-gap", Mutation::SettlePastGap),
        ("skip-kafka", Mutation::SkipKafka),
        ("tell-leavers", Mutation::TellLeavers),
        ("cut-pages", Mutation::CutPages),
    ];

    static CHOSEN: OnceLock<Mutation> = OnceLock::new();

    impl FromStr for Mutation {
        type Err = String;

        fn from_str(text: &str) -> Result<Self, String> {
            let found = NAMES.into_iter().find(|(name, _)| *name == text);
            found
                .map(|(_, mutation)| mutation)
                .ok_or_else(|| NAMES.map(|(name, _)| name).join(", "))
        }
    }

    /// From now on this goes wrong.
    pub fn begin(mutation: Option<Mutation>) {
        let what = mutation.map_or_else(|| "nothing yet".into(), |what| format!("{what:?}"));
        tracing::error!("THIS BUILD BREAKS ITS PROMISES ON PURPOSE: {what}");
        if let Some(mutation) = mutation {
            let _ = CHOSEN.set(mutation);
        }
    }

    pub fn is_on(mutation: Mutation) -> bool {
        CHOSEN.get() == Some(&mutation)
    }
}
