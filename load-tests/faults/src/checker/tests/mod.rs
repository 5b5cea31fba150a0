//! The checker sees each kind of wrong: a sound run is doctored, one thing at a time.

mod course;

use tidings_client::history::{Entry, How, Line, Outcome, State, hash};
use uuid::Uuid;

use super::evidence::{Conversation, Evidence, Message, Participant, Record, settled};
use super::judge;

const LOG: Uuid = Uuid::from_u128(100);
const ADA: Uuid = Uuid::from_u128(1);
const GRACE: Uuid = Uuid::from_u128(2);
/// Was never connected before the end.
const LINUS: Uuid = Uuid::from_u128(3);
const MALLORY: Uuid = Uuid::from_u128(66);
/// Messages, at the places behind the conversation's creation.
const SEQS: [u64; 4] = [2, 3, 4, 5];

fn id(seq: u64) -> Uuid {
    Uuid::from_u128(1_000 + u128::from(seq))
}

fn content(seq: u64) -> String {
    format!("message {seq}")
}

fn state(seq: u64) -> State {
    State {
        id: id(seq),
        seq,
        change_seq: seq,
        sender: ADA,
        client_message_id: Some(format!("a-{seq}")),
        hash: Some(hash(&content(seq))),
    }
}

fn line(user: Uuid, device: &str, entry: Entry) -> Line {
    Line { at: 0, user, device: device.into(), entry }
}

fn told(how: How, seq: u64, cursor: Option<u64>) -> Entry {
    let (kind, message) = match seq {
        1 => ("conversation_updated", None),
        _ => ("new_message", Some(state(seq))),
    };
    Entry::Told { how, kind: kind.into(), conversation: LOG, seq, message, cursor }
}

fn page(since: u64, next_seq: u64, seqs: &[u64]) -> Entry {
    Entry::Page {
        conversation: LOG,
        status: "changed".into(),
        since,
        next_seq,
        more: false,
        messages: seqs.iter().copied().map(state).collect(),
        history_from: None,
        left_seq: None,
        cursor: Some(next_seq),
    }
}

fn holds() -> Entry {
    let messages = SEQS.map(state).to_vec();
    Entry::Holds { conversation: LOG, cursor: 5, gone: false, messages }
}

/// Ada writes four messages; Grace has them live, but for the fourth, which a resume brings; Linus
/// is away, and Kafka has them for him.
fn sound() -> Evidence {
    let mut evidence = Evidence { strikes: 1, ..Evidence::default() };
    let mut lines = vec![line(ADA, "a", told(How::Live, 1, Some(1)))];
    lines.push(line(GRACE, "g", told(How::Live, 1, Some(1))));
    for seq in SEQS {
        let command = format!("a-{seq}");
        let attempt = Entry::Attempt {
            command: command.clone(),
            what: "send".into(),
            conversation: Some(LOG),
            message: None,
        };
        let outcome = Outcome::Acknowledged { message: id(seq), seq, change_seq: seq };
        lines.push(line(ADA, "a", attempt));
        lines.push(line(ADA, "a", Entry::Answered { command, outcome }));
        lines.push(line(ADA, "a", told(How::Answer, seq, Some(seq))));
        if seq < 5 {
            lines.push(line(GRACE, "g", told(How::Live, seq, Some(seq))));
        }
    }
    lines.push(line(GRACE, "g", page(4, 5, &[5])));
    lines.push(line(Uuid::nil(), "run", Entry::Settled));
    lines.push(line(LINUS, "l", page(0, 5, &SEQS)));
    for (user, device) in [(ADA, "a"), (GRACE, "g"), (LINUS, "l")] {
        lines.push(line(user, device, holds()));
        evidence.participants.insert(
            (LOG, user),
            Participant {
                conversation_id: LOG,
                user_id: user,
                joined_seq: 1,
                left_seq: None,
                history_from_seq: 1,
            },
        );
    }
    evidence.conversations.insert(LOG, Conversation { id: LOG, last_seq: 5 });
    for seq in SEQS {
        let message = Message {
            id: id(seq),
            conversation_id: LOG,
            seq,
            change_seq: seq,
            sender_id: ADA,
            client_message_id: Some(format!("a-{seq}")),
            content: Some(content(seq)),
            deleted: false,
        };
        evidence.messages.insert(id(seq), message);
        evidence.records.push(Record {
            key: LOG,
            message: id(seq),
            conversation: LOG,
            seq,
            recipients: vec![LINUS],
        });
    }
    evidence.settled = settled(&lines);
    evidence.lines = lines;
    evidence
}

/// The rules that this breaks.
fn broken(doctor: impl FnOnce(&mut Evidence)) -> Vec<String> {
    let mut evidence = sound();
    doctor(&mut evidence);
    evidence.settled = settled(&evidence.lines);
    let mut rules: Vec<String> = judge(&evidence)
        .faults
        .iter()
        .filter_map(|fault| fault.split_once(':').map(|(rule, _)| rule.to_owned()))
        .collect();
    rules.dedup();
    rules
}

/// Takes out the lines of this device that tell of this place.
fn forget(evidence: &mut Evidence, device: &str, place: u64) {
    evidence.lines.retain(|line| {
        !(line.device == device && matches!(&line.entry, Entry::Told { seq, .. } if *seq == place))
    });
}

fn held<'a>(evidence: &'a mut Evidence, device: &str) -> &'a mut Vec<State> {
    let found = evidence.lines.iter_mut().find_map(|line| match &mut line.entry {
        Entry::Holds { messages, .. } if line.device == device => Some(messages),
        _ => None,
    });
    found.expect("it holds something")
}

#[test]
fn a_sound_run_holds() {
    let verdict = judge(&sound());
    assert_eq!(verdict.faults, [""; 0]);
    let counts = verdict.counts;
    assert_eq!((counts.acknowledged, counts.owed), (4, 8));
    assert_eq!((counts.live, counts.resumed, counts.offline), (3, 1, 4));
}

#[test]
fn a_lost_message_is_seen() {
    // It is in the tables, and the final resume brings it; but nobody had told of it.
    let lost = broken(|evidence| evidence.records.retain(|record| record.seq != 3));
    assert_eq!(lost, ["nobody is forgotten"]);
    let lost = broken(|evidence| {
        evidence
            .lines
            .retain(|line| !matches!(&line.entry, Entry::Page { .. } if line.device == "g"));
    });
    assert_eq!(lost, ["nobody is forgotten"]);
    let lost = broken(|evidence| {
        held(evidence, "g").retain(|state| state.seq != 3);
    });
    assert_eq!(lost, ["what clients hold is what is stored"]);
    let lost = broken(|evidence| {
        evidence.messages.remove(&id(5));
        evidence.records.pop();
    });
    assert_eq!(lost, ["acknowledged is stored", "what clients hold is what is stored"]);
}

#[test]
fn who_is_connected_and_not_told_is_seen() {
    let connected = |evidence: &mut Evidence| {
        evidence.tells_all = true;
        let (session, node, epoch) = (id(0), id(0), id(0));
        evidence.lines.insert(0, line(GRACE, "g", Entry::Connected { session, node, epoch }));
    };
    assert_eq!(broken(connected), [""; 0]);
    // Kafka has the last message for her, but she is there, and only the final resume brings it.
    let silent = |evidence: &mut Evidence| {
        let settled = settled(&evidence.lines).unwrap();
        evidence.lines.swap(settled - 1, settled);
        evidence.records[3].recipients.push(GRACE);
    };
    let left = |evidence: &mut Evidence| {
        let closed = Entry::Closed { code: None, why: "goes away".into() };
        evidence.lines.insert(1, line(GRACE, "g", closed));
    };
    let not_told = |evidence: &mut Evidence| {
        silent(evidence);
        connected(evidence);
    };
    assert_eq!(broken(not_told), ["who is connected is told"]);
    let away = |evidence: &mut Evidence| {
        not_told(evidence);
        left(evidence);
    };
    assert_eq!(broken(away), [""; 0]);
    assert_eq!(broken(silent), [""; 0], "an edit's loss may go unnoticed in this run");
}

/// The message of this place comes after all.
fn late(place: u64) -> Entry {
    let mut entry = page(place - 1, place, &[place]);
    if let Entry::Page { cursor, .. } = &mut entry {
        *cursor = None;
    }
    entry
}

#[test]
fn a_gap_and_a_step_back_are_seen() {
    // The cursor went on to 3 and 4 though 3 never came; a page that comes later does not excuse it.
    let gap = broken(|evidence| {
        forget(evidence, "g", 3);
        let at = evidence.settled.unwrap();
        evidence.lines.insert(at - 1, line(GRACE, "g", late(3)));
    });
    assert_eq!(gap, ["no gap, no step back"]);
    let back = broken(|evidence| {
        let at = evidence.settled.unwrap();
        evidence.lines.insert(at, line(GRACE, "g", told(How::Live, 3, Some(3))));
    });
    assert_eq!(back, ["no gap, no step back"]);
    let untold = broken(|evidence| {
        let at = evidence.settled.unwrap();
        evidence.lines.insert(at - 1, line(GRACE, "g", told(How::Live, 8, Some(8))));
    });
    assert!(untold.contains(&"no gap, no step back".to_owned()), "{untold:?}");
    let skipped = broken(|evidence| {
        let late = page(0, 5, &[2, 3, 5]);
        let at = evidence.lines.iter().position(|line| line.device == "l").unwrap();
        evidence.lines[at].entry = late;
    });
    assert_eq!(skipped, ["no gap, no step back"]);
}

#[test]
fn doubles_are_seen() {
    let two_places = broken(|evidence| {
        let twice = State { seq: 4, ..state(3) };
        let entry = Entry::Told {
            how: How::Live,
            kind: "new_message".into(),
            conversation: LOG,
            seq: 4,
            message: Some(twice),
            cursor: None,
        };
        let at = evidence.settled.unwrap();
        evidence.lines.insert(at, line(GRACE, "g", entry));
    });
    assert_eq!(two_places, ["one message, one place"]);
    let twice = broken(|evidence| {
        let message = evidence.messages.get_mut(&id(5)).unwrap();
        message.client_message_id = Some("a-4".into());
    });
    assert!(twice.contains(&"one message, one place".to_owned()), "{twice:?}");
    let refused = broken(|evidence| {
        let command = "a-4".to_owned();
        let outcome = Outcome::Refused { code: "forbidden".into() };
        let at = evidence.settled.unwrap();
        evidence.lines.insert(at, line(ADA, "a", Entry::Answered { command, outcome }));
    });
    assert_eq!(refused, ["refused is not stored"]);
    let other_content = broken(|evidence| {
        held(evidence, "l")[0].hash = Some(hash("something else"));
    });
    assert_eq!(other_content, ["one message, one place", "what clients hold is what is stored"]);
    let moved = broken(|evidence| {
        let mut entry = page(4, 5, &[4]);
        if let Entry::Page { messages, cursor, .. } = &mut entry {
            (messages[0].seq, messages[0].change_seq, *cursor) = (9, 9, None);
        }
        let at = evidence.settled.unwrap();
        evidence.lines.insert(at, line(GRACE, "g", entry));
    });
    assert_eq!(moved, ["one message, one place"]);
    let nameless = broken(|evidence| {
        evidence.messages.get_mut(&id(5)).unwrap().client_message_id = None;
    });
    assert_eq!(nameless, ["acknowledged is stored", "refused is not stored"]);
    let of_another = broken(|evidence| {
        evidence.messages.get_mut(&id(5)).unwrap().sender_id = MALLORY;
    });
    assert_eq!(of_another[0], "acknowledged is stored");
    // The same once more, at the same place, is no fault: it may come twice.
    let repeated = broken(|evidence| {
        let at = evidence.settled.unwrap();
        evidence.lines.insert(at, line(GRACE, "g", told(How::Live, 3, None)));
    });
    assert_eq!(repeated, [""; 0]);
}

#[test]
fn events_to_strangers_are_seen() {
    let stranger = broken(|evidence| {
        let at = evidence.settled.unwrap();
        evidence.lines.insert(at, line(MALLORY, "m", told(How::Live, 3, None)));
    });
    assert_eq!(stranger, ["no event to a stranger"]);
    let leaver = broken(|evidence| {
        evidence.participants.get_mut(&(LOG, GRACE)).unwrap().left_seq = Some(3);
    });
    assert_eq!(leaver, ["no event to a stranger"]);
    let early = |evidence: &mut Evidence| {
        let row = evidence.participants.get_mut(&(LOG, GRACE)).unwrap();
        row.joined_seq = 3;
    };
    assert_eq!(broken(early), ["no event to a stranger"]);
    let again = broken(|evidence| {
        early(evidence);
        evidence.added.insert((LOG, GRACE));
    });
    assert_eq!(again, [""; 0], "he was in before");
    let heard = |user| {
        broken(|evidence| {
            let entry = Entry::Heard { kind: "typing".into(), conversation: LOG };
            evidence.lines.push(line(user, "m", entry));
        })
    };
    assert_eq!(heard(MALLORY), ["no event to a stranger"]);
    let in_kafka = broken(|evidence| evidence.records[0].recipients.push(MALLORY));
    assert_eq!(in_kafka, ["no event to a stranger"]);
}

#[test]
fn what_servers_must_not_do_is_seen() {
    for entry in [
        Entry::Fault { what: "a frame begins with 0x82".into() },
        Entry::Closed { code: Some(4400), why: "bad_protocol".into() },
        Entry::Closed { code: Some(1011), why: "internal".into() },
    ] {
        let at_fault = broken(|evidence| evidence.lines.push(line(GRACE, "g", entry)));
        assert_eq!(at_fault, ["servers keep to the contract"]);
    }
    let replaced = || Entry::Closed { code: Some(4409), why: "replaced".into() };
    let closed_after = |entries: Vec<Entry>| {
        broken(|evidence| evidence.lines.extend(entries.into_iter().map(|e| line(GRACE, "g", e))))
    };
    let gave_up = || Entry::Closed { code: None, why: "drops its connection".into() };
    let late = ["servers keep to the contract"];
    assert_eq!(closed_after(vec![replaced()]), late);
    assert_eq!(closed_after(vec![gave_up(), replaced()]), [""; 0], "by what was left of its own");
    assert_eq!(closed_after(vec![gave_up(), replaced(), replaced()]), late, "once");
    let open = broken(|evidence| {
        evidence.lines.retain(
            |line| !matches!(&line.entry, Entry::Answered { command, .. } if command == "a-3"),
        );
    });
    assert_eq!(open, ["each command has an outcome"]);
    let not_deleted = broken(|evidence| {
        let command = "a-90".to_owned();
        let attempt = Entry::Attempt {
            command: command.clone(),
            what: "delete".into(),
            conversation: None,
            message: Some(id(3)),
        };
        let outcome = Outcome::Acknowledged { message: id(3), seq: 3, change_seq: 3 };
        evidence.lines.push(line(ADA, "a", attempt));
        evidence.lines.push(line(ADA, "a", Entry::Answered { command, outcome }));
    });
    assert_eq!(not_deleted, ["acknowledged is stored"]);
    let left = broken(|evidence| evidence.leftovers.push("3 outbox rows".into()));
    assert_eq!(left, ["nothing is left over"]);
}
