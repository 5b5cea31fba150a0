//! How the run went: the contract, drains, storms, and what is left in the end.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tidings_client::history::{Entry, Outcome};
use uuid::Uuid;

use super::super::Faults;
use super::super::evidence::Evidence;
use super::stored;
use crate::nodes::DRAIN_TIME;

/// Of a node with fewer sockets, a run with fewer drains, or a storm with fewer sends (at the end of
/// the traffic), little can be said.
const ENOUGH_SOCKETS: usize = 20;
const ENOUGH_DRAINS: usize = 3;
const ENOUGH_SENDS: usize = 4;
/// How long after it was given up a connection may still take the place of its device's next one.
const GIVEN_UP_MS: u64 = 60_000;

/// Of two that follow different logs one is told to read anew; and nobody else.
pub fn servers_keep_to_the_contract(evidence: &Evidence, faults: &mut Faults<'_>) {
    let mut first: HashMap<&str, usize> = HashMap::new();
    let mut gave_up: HashMap<&str, u64> = HashMap::new();
    for (era, line) in evidence.with_eras() {
        match &line.entry {
            Entry::Connected { .. } => {
                first.entry(&line.device).or_insert(era);
            }
            Entry::NotConnected { .. } | Entry::Closed { code: None, .. } => {
                gave_up.insert(&line.device, line.at);
            }
            // Once, by what was left of a connection that it gave up.
            Entry::Closed { code: Some(4409), .. }
                if gave_up.remove(&*line.device).is_some_and(|at| line.at - at < GIVEN_UP_MS) => {}
            Entry::Fault { what } => faults.add(format!("{} at {}: {what}", line.device, line.at)),
            Entry::Closed {
                code: Some(code @ (1002 | 1007 | 1009 | 1011 | 4400..=4499)), ..
            } => {
                faults.add(format!("{} at {} was closed with {code}", line.device, line.at));
            }
            Entry::Page { status, conversation, since, .. }
                if status == "reset" && first.get(&*line.device).is_none_or(|at| *at == era) =>
            {
                faults.add(format!("{} at {since} of {conversation}: reset", line.device));
            }
            _ => {}
        }
    }
}

/// A node that is drained sends its sockets away evenly. When that reached the devices says little
/// of one drain on a busy machine: the middle one of all drains is judged, by half of what it takes.
pub fn a_drain_is_spread(evidence: &Evidence, faults: &mut Faults<'_>) {
    let mut nodes: HashMap<&str, Uuid> = HashMap::new();
    let mut drains: BTreeMap<Uuid, Vec<u64>> = BTreeMap::new();
    for line in &evidence.lines {
        match &line.entry {
            Entry::Connected { node, .. } => {
                nodes.insert(&line.device, *node);
            }
            Entry::Reconnect { .. } => {
                if let Some(node) = nodes.get(&*line.device) {
                    drains.entry(*node).or_default().push(line.at);
                }
            }
            _ => {}
        }
    }
    // From when a tenth was sent away until nine tenths were.
    let spans = drains.into_values().filter(|at| at.len() >= ENOUGH_SOCKETS).map(|mut at| {
        at.sort_unstable();
        at[at.len() * 9 / 10] - at[at.len() / 10]
    });
    let mut spans: Vec<u64> = spans.collect();
    spans.sort_unstable();
    let even = DRAIN_TIME.as_millis() as u64 * 8 / 10;
    if spans.len() >= ENOUGH_DRAINS && spans[spans.len() / 2] < even / 2 {
        faults.add(format!("eight tenths of the sockets were sent away within {spans:?} ms"));
    }
}

/// Of each storm, the messages that were sent in it, and of these those acknowledged in it.
pub fn sent_in_storms(evidence: &Evidence) -> impl Iterator<Item = (usize, u64)> {
    let commands = stored::commands(evidence);
    evidence.storms.iter().map(move |(from, to)| {
        let within = evidence.lines.iter().filter(|line| (from..to).contains(&&line.at));
        let mut sent: BTreeSet<&str> = BTreeSet::new();
        let mut acknowledged = 0;
        for line in within {
            match &line.entry {
                Entry::Attempt { command, .. } if commands[&**command].is_send() => {
                    sent.insert(command);
                }
                Entry::Answered { command, outcome: Outcome::Acknowledged { .. } } => {
                    acknowledged += u64::from(sent.contains(&**command));
                }
                _ => {}
            }
        }
        (sent.len(), acknowledged)
    })
}

pub fn sends_go_on(evidence: &Evidence, faults: &mut Faults<'_>) {
    for (storm, (sent, acknowledged)) in evidence.storms.iter().zip(sent_in_storms(evidence)) {
        if sent >= ENOUGH_SENDS && acknowledged == 0 {
            faults.add(format!(
                "{sent} sent while all came back, in {storm:?} ms, none acknowledged"
            ));
        }
    }
}

pub fn nothing_is_left_over(evidence: &Evidence, faults: &mut Faults<'_>) {
    evidence.leftovers.iter().for_each(|what| faults.add(what.clone()));
    if evidence.settled.is_none() {
        faults.add("the run did not come to rest".into());
    }
}
