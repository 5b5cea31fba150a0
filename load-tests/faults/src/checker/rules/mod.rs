//! What must hold, whatever went wrong.

mod course;
mod received;
mod stored;

use std::collections::HashSet;

use tidings_client::history::{Entry, How, Outcome};
use uuid::Uuid;

use super::evidence::Evidence;
use super::{Counts, Faults};

type Rule = fn(&Evidence, &mut Faults<'_>);

pub const ALL: [(&str, Rule); 13] = [
    ("acknowledged is stored", stored::acknowledged_is_stored),
    ("refused is not stored", stored::refused_is_not_stored),
    ("each command has an outcome", stored::each_command_has_an_outcome),
    ("one message, one place", stored::one_message_one_place),
    ("nobody is forgotten", received::nobody_is_forgotten),
    ("who is connected is told", received::who_is_connected_is_told),
    ("no gap, no step back", received::no_gap_no_step_back),
    ("no event to a stranger", received::no_event_to_a_stranger),
    ("what clients hold is what is stored", received::held_is_stored),
    ("servers keep to the contract", course::servers_keep_to_the_contract),
    ("a drain is spread", course::a_drain_is_spread),
    ("sends go on", course::sends_go_on),
    ("nothing is left over", course::nothing_is_left_over),
];

pub fn count(evidence: &Evidence) -> Counts {
    let mut counts = Counts { strikes: evidence.strikes, ..Counts::default() };
    let (received, handed) = (received::first_received(evidence), received::handed_over(evidence));
    for (message, member) in received::owed(evidence) {
        let pair = (member.user_id, message.id);
        counts.owed += 1;
        match received.get(&pair) {
            Some(How::Resume) => counts.resumed += 1,
            Some(How::Live | How::Answer) => counts.live += 1,
            None => counts.offline += u64::from(handed.contains(&pair)),
        }
    }
    let commands = stored::commands(evidence);
    let mut told: HashSet<(&str, Uuid, u64)> = HashSet::new();
    for line in &evidence.lines {
        match &line.entry {
            Entry::Connected { .. } => counts.connects += 1,
            Entry::Gap { .. } => counts.gaps += 1,
            Entry::Resync => counts.resyncs += 1,
            Entry::Page { status, .. } if status == "reset" => counts.resets += 1,
            Entry::Told { how: How::Live, conversation, seq, .. }
                if !told.insert((&line.device, *conversation, *seq)) =>
            {
                counts.repeated += 1;
            }
            Entry::Answered { command, outcome } => match outcome {
                Outcome::Acknowledged { .. } if commands[&**command].is_send() => {
                    counts.acknowledged += 1;
                }
                Outcome::Refused { .. } => counts.refused += 1,
                Outcome::Unknown => counts.unknown += 1,
                Outcome::Acknowledged { .. } | Outcome::Later { .. } => {}
            },
            _ => {}
        }
    }
    let acknowledged = stored::acknowledged(evidence);
    counts.lost = acknowledged.iter().filter(|(lost, ..)| *lost).count() as u64;
    counts.in_storms = course::sent_in_storms(evidence).map(|(_, count)| count).sum();
    counts.offline_records = evidence.records.len() as u64;
    counts
}
