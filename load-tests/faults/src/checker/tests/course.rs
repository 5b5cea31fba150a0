//! Runs that take a course of their own: commits are lost, nodes are drained, all sockets drop.

use std::collections::BTreeMap;

use tidings_client::history::{Entry, How, Outcome};
use uuid::Uuid;

use super::super::evidence::{Evidence, settled};
use super::super::judge;
use super::{ADA, GRACE, LOG, SEQS, broken, held, id, line, page, sound, state, told};
use crate::run::Loss;

/// The sound run, but Grace was told by event at 6 of a message that the standby did not have.
/// All then read anew.
fn lossy(evidence: &mut Evidence) {
    let [old, new] = [1, 2].map(Uuid::from_u128);
    let connected = |epoch| Entry::Connected { session: Uuid::nil(), node: Uuid::nil(), epoch };
    let devices = [(ADA, "a"), (GRACE, "g")];
    for (user, device) in devices {
        evidence.lines.insert(0, line(user, device, connected(old)));
    }
    evidence.losses.push(Loss { epoch: old, heads: BTreeMap::from([(LOG, 5)]) });
    let command = "a-6".to_owned();
    let attempt = Entry::Attempt {
        command: command.clone(),
        what: "send".into(),
        conversation: Some(LOG),
        message: None,
    };
    let outcome = Outcome::Acknowledged { message: id(6), seq: 6, change_seq: 6 };
    let mut after = vec![
        line(ADA, "a", attempt),
        line(ADA, "a", Entry::Answered { command, outcome }),
        line(ADA, "a", told(How::Answer, 6, Some(6))),
        line(GRACE, "g", told(How::Live, 6, Some(6))),
    ];
    for (user, device) in devices {
        let mut reset = page(6, 5, &[]);
        if let Entry::Page { status, cursor, .. } = &mut reset {
            (*status, *cursor) = ("reset".into(), None);
        }
        after.push(line(user, device, connected(new)));
        after.push(line(user, device, reset));
        after.push(line(user, device, Entry::Again { conversation: LOG }));
        after.push(line(user, device, page(0, 5, &SEQS)));
    }
    let at = settled(&evidence.lines).unwrap();
    evidence.lines.splice(at..at, after);
}

#[test]
fn what_an_asynchronous_standby_lacked_is_counted_and_nothing_else_is_excused() {
    let mut evidence = sound();
    lossy(&mut evidence);
    evidence.settled = settled(&evidence.lines);
    let verdict = judge(&evidence);
    assert_eq!(verdict.faults, [""; 0]);
    assert_eq!((verdict.counts.lost, verdict.counts.resets), (1, 2));

    let kept = broken(|evidence| {
        lossy(evidence);
        held(evidence, "g").push(state(6));
    });
    assert_eq!(kept, ["what clients hold is what is stored"]);
    let more = broken(|evidence| {
        lossy(evidence);
        evidence.losses[0].heads.insert(LOG, 6);
    });
    assert!(more.contains(&"acknowledged is stored".to_owned()), "{more:?}");
    let unasked = broken(|evidence| {
        lossy(evidence);
        evidence.losses.clear();
    });
    assert!(unasked.contains(&"servers keep to the contract".to_owned()), "{unasked:?}");
    let skipped = broken(|evidence| {
        lossy(evidence);
        for line in &mut evidence.lines {
            if let (Entry::Page { messages, since: 0, .. }, "g") = (&mut line.entry, &*line.device)
            {
                messages.retain(|state| state.seq != 3);
            }
        }
    });
    assert_eq!(skipped, ["no gap, no step back"]);
}

#[test]
fn a_drain_at_once_and_a_storm_that_stops_sends_are_seen() {
    let drains = |step: u64| {
        broken(|evidence| {
            for node in 1..=3 {
                for device in 0..40 {
                    let name = format!("d{device}");
                    let (session, node) = (Uuid::nil(), Uuid::from_u128(node));
                    let connected = Entry::Connected { session, node, epoch: Uuid::nil() };
                    evidence.lines.push(line(ADA, &name, connected));
                    let mut told = line(ADA, &name, Entry::Reconnect { after_ms: 0 });
                    told.at = step * device;
                    evidence.lines.push(told);
                }
            }
        })
    };
    assert!(!drains(50).contains(&"a drain is spread".to_owned()));
    assert!(drains(2).contains(&"a drain is spread".to_owned()));
    assert_eq!(broken(|evidence| evidence.storms.push((0, 1))), [""; 0]);
    assert_eq!(broken(|evidence| evidence.storms.push((7, 9))), [""; 0], "nobody sent");
    let stopped = broken(|evidence| {
        let answers = evidence.lines.iter_mut();
        answers
            .filter(|line| matches!(line.entry, Entry::Answered { .. }))
            .for_each(|line| line.at = 9);
        evidence.storms.push((0, 9));
    });
    assert_eq!(stopped, ["sends go on"]);
}
