//! What reached whom, and how.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use tidings_client::history::{Entry, How, State, hash};
use uuid::Uuid;

use super::super::Faults;
use super::super::evidence::{Evidence, Message, Participant};

/// Who is to have a message: its members when it was stored who still are, but its sender; once it
/// is deleted, nobody.
pub fn owed(evidence: &Evidence) -> impl Iterator<Item = (&Message, &Participant)> {
    let mut members: BTreeMap<Uuid, Vec<&Participant>> = BTreeMap::new();
    for participant in evidence.participants.values().filter(|p| p.left_seq.is_none()) {
        members.entry(participant.conversation_id).or_default().push(participant);
    }
    evidence.messages.values().filter(|message| !message.deleted).flat_map(move |message| {
        let members = members.get(&message.conversation_id).cloned().unwrap_or_default();
        let there = members.into_iter().filter(|member| {
            member.joined_seq < message.seq && member.user_id != message.sender_id
        });
        there.map(move |member| (message, member))
    })
}

/// How each user first got each message, before the final resume.
pub fn first_received(evidence: &Evidence) -> HashMap<(Uuid, Uuid), How> {
    let mut first = HashMap::new();
    let before = evidence.settled.unwrap_or(evidence.lines.len());
    for line in &evidence.lines[..before] {
        let how = match &line.entry {
            Entry::Told { how, .. } => *how,
            Entry::Page { .. } => How::Resume,
            _ => continue,
        };
        for state in Evidence::brought(&line.entry).1 {
            first.entry((line.user, state.id)).or_insert(how);
        }
    }
    first
}

pub fn handed_over(evidence: &Evidence) -> HashSet<(Uuid, Uuid)> {
    let records = evidence.records.iter();
    records.flat_map(|r| r.recipients.iter().map(|user| (*user, r.message))).collect()
}

/// The closed loop: each recipient of a stored message has it on a device, or Kafka has it for him,
/// before anybody asks for what he missed.
pub fn nobody_is_forgotten(evidence: &Evidence, faults: &mut Faults<'_>) {
    let (received, handed) = (first_received(evidence), handed_over(evidence));
    for (message, member) in owed(evidence) {
        let pair = (member.user_id, message.id);
        if !received.contains_key(&pair) && !handed.contains(&pair) {
            faults.add(format!(
                "{} {} ({}) reached {} neither on a device nor by Kafka",
                message.conversation_id,
                message.seq,
                message.client_message_id.as_deref().unwrap_or_default(),
                member.user_id
            ));
        }
    }
}

/// What a device has seen of a conversation, since it began to read it.
#[derive(Default)]
struct Seen {
    era: usize,
    cursor: u64,
    /// From where on the log was the member's to see, as he was told last.
    history_from: u64,
    held: HashSet<Uuid>,
    /// Told of, by events and answers.
    places: HashSet<u64>,
}

/// Before the final resume: a device that is connected has the whole log of each conversation, edits,
/// deletions and changes of members too, which nobody proves.
pub fn who_is_connected_is_told(evidence: &Evidence, faults: &mut Faults<'_>) {
    let Some(settled) = evidence.settled.filter(|_| evidence.tells_all) else { return };
    let mut connected: BTreeSet<(Uuid, &str)> = BTreeSet::new();
    let mut cursors: HashMap<(&str, Uuid), u64> = HashMap::new();
    for line in &evidence.lines[..settled] {
        let device = (line.user, &*line.device);
        match &line.entry {
            Entry::Connected { .. } => {
                connected.insert(device);
            }
            Entry::Closed { .. } => {
                connected.remove(&device);
            }
            Entry::Told { conversation, cursor: Some(cursor), .. }
            | Entry::Page { conversation, cursor: Some(cursor), .. } => {
                cursors.insert((&line.device, *conversation), *cursor);
            }
            _ => {}
        }
    }
    for (user, device) in connected {
        let rows = evidence.participants.values();
        for row in rows.filter(|row| row.user_id == user && row.left_seq.is_none()) {
            let conversation = row.conversation_id;
            let head = evidence.conversations.get(&conversation).map_or(0, |c| c.last_seq);
            let cursor = cursors.get(&(device, conversation)).copied().unwrap_or_default();
            if cursor != head {
                faults.add(format!("{device} is at {cursor} of {head} in {conversation}"));
            }
        }
    }
}

/// A cursor goes up, by events of each place or by a page; and by then all messages up to it are
/// held. Only of messages that were never changed is it known from when on they were to be seen. A
/// copy of a log of which a part was lost says nothing until it is dropped.
pub fn no_gap_no_step_back(evidence: &Evidence, faults: &mut Faults<'_>) {
    let mut logs: BTreeMap<Uuid, BTreeMap<u64, &Message>> = BTreeMap::new();
    for message in evidence.messages.values().filter(|m| m.change_seq == m.seq) {
        logs.entry(message.conversation_id).or_default().insert(message.seq, message);
    }
    let mut copies: HashMap<(&str, Uuid), Seen> = HashMap::new();
    for (era, line) in evidence.with_eras() {
        let device = &*line.device;
        if let Entry::Again { conversation } = &line.entry {
            copies.entry((device, *conversation)).or_default().cursor = 0;
        }
        let (Some(conversation), states) = Evidence::brought(&line.entry) else { continue };
        let copy = copies.entry((device, conversation));
        let copy = copy.or_insert_with(|| Seen { era, ..Seen::default() });
        if copy.era != era {
            if !begins_anew(&line.entry) {
                continue;
            }
            *copy = Seen { era, ..Seen::default() };
        }
        copy.held.extend(states.iter().map(|state| state.id));
        // Up to where a page takes the cursor by itself.
        let (cursor, paged) = match &line.entry {
            Entry::Told { cursor, seq, .. } => {
                copy.places.insert(*seq);
                (*cursor, 0)
            }
            Entry::Page { cursor, history_from, next_seq, .. } => {
                copy.history_from = history_from.unwrap_or(copy.history_from);
                (*cursor, *next_seq)
            }
            _ => continue,
        };
        let Some(cursor) = cursor else { continue };
        let before = std::mem::replace(&mut copy.cursor, cursor);
        if cursor <= before {
            faults.add(format!("{device} {conversation}: from {before} to {cursor}"));
            continue;
        }
        if let Some(seq) = (before.max(paged) + 1..=cursor).find(|seq| !copy.places.contains(seq)) {
            faults.add(format!("{device} {conversation}: at {cursor}, never told of {seq}"));
        }
        let row = evidence.participants.get(&(conversation, line.user));
        let from = row.map_or(u64::MAX, |row| row.history_from_seq.max(before + 1));
        let from = from.max(copy.history_from);
        let Some(log) = logs.get(&conversation).filter(|_| from <= cursor) else { continue };
        for (seq, message) in log.range(from..=cursor) {
            if !copy.held.contains(&message.id) && !evidence.is_lost(era, conversation, *seq) {
                let id = message.id;
                faults.add(format!("{device} {conversation}: at {cursor} without {seq}, {id}"));
            }
        }
    }
}

/// The device has dropped what it held.
fn begins_anew(entry: &Entry) -> bool {
    matches!(entry, Entry::Page { status, since, .. }
        if *since == 0 || status == "reset" || status == "gone")
}

/// Whoever is told of a change is a member at that place, and of anything else was one some time. Of
/// those who were let in again, the tables know the last stay only.
pub fn no_event_to_a_stranger(evidence: &Evidence, faults: &mut Faults<'_>) {
    let mut told = |user: Uuid, conversation: Uuid, seq: u64, what: &str| {
        let Some(row) = evidence.participants.get(&(conversation, user)) else {
            faults.add(format!("{user}, never a member of {conversation}, has {seq} by {what}"));
            return;
        };
        let returned = evidence.added.contains(&(conversation, user));
        let early = seq < row.joined_seq && !returned;
        if early || row.left_seq.is_some_and(|left| seq > left) {
            let (joined, left) = (row.joined_seq, row.left_seq);
            faults
                .add(format!("{user}, in {conversation} {joined}..{left:?}, has {seq} by {what}"));
        }
    };
    let lost = |era, conversation, seq| evidence.is_lost(era, conversation, seq);
    for (era, line) in evidence.with_eras() {
        match &line.entry {
            Entry::Told { how: How::Live, conversation, seq, .. }
                if !lost(era, *conversation, *seq) =>
            {
                told(line.user, *conversation, *seq, "an event");
            }
            Entry::Heard { conversation, kind } if era == evidence.losses.len() => {
                let row = evidence.participants.get(&(*conversation, line.user));
                told(line.user, *conversation, row.map_or(0, |row| row.joined_seq), kind);
            }
            // That he was let in, and might look back, may have been lost.
            Entry::Page { conversation, .. }
                if era < evidence.losses.len()
                    && evidence.added.contains(&(*conversation, line.user)) => {}
            Entry::Page { conversation, messages, .. } => {
                // What was before he came is his to see if he was granted it.
                for state in messages.iter().filter(|s| !lost(era, *conversation, s.change_seq)) {
                    let from = evidence.participants.get(&(*conversation, line.user));
                    let joined = from.map_or(0, |row| row.joined_seq);
                    told(line.user, *conversation, state.change_seq.max(joined), "a page");
                }
            }
            _ => {}
        }
    }
    for record in &evidence.records {
        if record.key != record.conversation {
            told(Uuid::nil(), record.key, record.seq, "a record under a foreign key");
        }
        // Nobody can say whether a record is of a log that was lost.
        let lost = |user| {
            let let_in = evidence.added.contains(&(record.conversation, user));
            !evidence.losses.is_empty()
                && (let_in || !evidence.messages.contains_key(&record.message))
        };
        for user in record.recipients.iter().filter(|user| !lost(**user)) {
            told(*user, record.conversation, record.seq, "Kafka");
        }
    }
}

/// After the final resume each device of a member holds the log as it is stored, up to its head.
pub fn held_is_stored(evidence: &Evidence, faults: &mut Faults<'_>) {
    /// Of each conversation: the cursor, whether the device takes itself for removed, the messages.
    type Copies<'a> = BTreeMap<Uuid, (u64, bool, &'a [State])>;
    let mut logs: BTreeMap<Uuid, Vec<&Message>> = BTreeMap::new();
    for message in evidence.messages.values() {
        logs.entry(message.conversation_id).or_default().push(message);
    }
    let mut holds: BTreeMap<(Uuid, &str), Copies<'_>> = BTreeMap::new();
    for line in &evidence.lines {
        if line.user != Uuid::nil() {
            let device = holds.entry((line.user, &line.device)).or_default();
            if let Entry::Holds { conversation, cursor, gone, messages } = &line.entry {
                device.insert(*conversation, (*cursor, *gone, messages));
            }
        }
    }
    for ((user, device), copies) in &holds {
        for (conversation, (.., messages)) in copies {
            for state in messages.iter().filter(|s| !evidence.messages.contains_key(&s.id)) {
                faults.add(format!("{device} holds {} of {conversation}, not stored", state.id));
            }
        }
        let rows = evidence.participants.values();
        for row in rows.filter(|row| row.user_id == *user && row.left_seq.is_none()) {
            let conversation = row.conversation_id;
            let head = evidence.conversations.get(&conversation).map_or(0, |c| c.last_seq);
            let Some((cursor, gone, messages)) = copies.get(&conversation) else {
                faults.add(format!("{device} does not know of {conversation}"));
                continue;
            };
            if *gone || *cursor != head {
                faults.add(format!(
                    "{device} is at {cursor} of {head} in {conversation}{}",
                    if *gone { ", and takes itself for removed" } else { "" }
                ));
            }
            let mut held: HashMap<Uuid, &State> =
                messages.iter().map(|state| (state.id, state)).collect();
            let log = logs.get(&conversation).into_iter().flatten();
            for message in log.filter(|message| message.seq >= row.history_from_seq) {
                let hash = message.content.as_deref().map(hash);
                match held.remove(&message.id) {
                    None => faults.add(format!("{device} lacks {conversation} {}", message.seq)),
                    Some(state)
                        if (state.seq, state.change_seq, &state.hash)
                            != (message.seq, message.change_seq, &hash) =>
                    {
                        faults.add(format!(
                            "{device} has {conversation} {} as of {}, not of {}",
                            message.seq, state.change_seq, message.change_seq
                        ));
                    }
                    Some(_) => {}
                }
            }
        }
    }
}
