//! Judges a run by what it left behind: the devices' histories, the tables, the offline topic. It
//! shares nothing with the server, and of the client only the form of its history.
//!
//! What must hold stands in `rules`, one function each; `evidence` reads.

mod evidence;
mod rules;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde::Serialize;

use evidence::Evidence;

/// Of one kind, more than so many are counted and not told.
const TOLD: usize = 8;

#[derive(Default, Serialize)]
pub struct Verdict {
    pub counts: Counts,
    pub faults: Vec<String>,
}

#[derive(Default, Serialize)]
pub struct Counts {
    pub strikes: u64,
    /// Messages acknowledged to their senders.
    pub acknowledged: u64,
    /// Messages and the recipients who were to have them.
    pub owed: u64,
    /// Of these, first received by an event, by a resume, and had by Kafka only.
    pub live: u64,
    pub resumed: u64,
    pub offline: u64,
    /// Events of what a device held already.
    pub repeated: u64,
    pub offline_records: u64,
    pub connects: u64,
    pub gaps: u64,
    pub resyncs: u64,
    /// Answers that said to read anew, after commits were lost.
    pub resets: u64,
    /// Acknowledged, and not on the standby that took the primary's place.
    pub lost: u64,
    /// Messages acknowledged while all sockets were down or on their way back.
    pub in_storms: u64,
    /// Commands whose outcome was unknown, and that were sent again.
    pub unknown: u64,
    pub refused: u64,
    pub faults: u64,
}

/// Faults by the rule they break.
struct Faults<'a> {
    rule: &'static str,
    found: usize,
    into: &'a mut Vec<String>,
}

impl Faults<'_> {
    fn add(&mut self, what: String) {
        self.found += 1;
        if self.found <= TOLD {
            self.into.push(format!("{}: {what}", self.rule));
        }
    }
}

pub fn check(folder: &Path) -> anyhow::Result<Verdict> {
    Ok(judge(&Evidence::read(folder)?))
}

fn judge(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let mut all = 0;
    for (rule, check) in rules::ALL {
        let mut faults = Faults { rule, found: 0, into: &mut verdict.faults };
        check(evidence, &mut faults);
        all += faults.found;
        if faults.found > TOLD {
            let more = faults.found - TOLD;
            verdict.faults.push(format!("{rule}: and {more} more"));
        }
    }
    verdict.counts = rules::count(evidence);
    verdict.counts.faults = all as u64;
    verdict
}
