//! What must hold, whatever went wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use tidings_client::history::{Entry, How, Outcome, State, hash};
use uuid::Uuid;

use super::evidence::{Evidence, Message, Participant};
use super::{Counts, Faults};

type Rule = fn(&Evidence, &mut Faults<'_>);

pub const ALL: [(&str, Rule); 11] = [
    ("acknowledged is stored", acknowledged_is_stored),
    ("refused is not stored", refused_is_not_stored),
    ("each command has an outcome", each_command_has_an_outcome),
    ("one message, one place", one_message_one_place),
    ("nobody is forgotten", nobody_is_forgotten),
    ("who is connected is told", who_is_connected_is_told),
    ("no gap, no step back", no_gap_no_step_back),
    ("no event to a stranger", no_event_to_a_stranger),
    ("what clients hold is what is stored", held_is_stored),
    ("servers keep to the contract", servers_keep_to_the_contract),
    ("nothing is left over", nothing_is_left_over),
];

/// The sends, by what their `client_message_id` and `ref` is.
fn sends(evidence: &Evidence) -> HashSet<&str> {
    let send = evidence.lines.iter().filter_map(|line| match &line.entry {
        Entry::Attempt { command, what, .. } if what == "send" => Some(&**command),
        _ => None,
    });
    send.collect()
}

fn outcomes(evidence: &Evidence) -> impl Iterator<Item = (&str, &Outcome)> {
    evidence.lines.iter().filter_map(|line| match &line.entry {
        Entry::Answered { command, outcome } => Some((&**command, outcome)),
        _ => None,
    })
}

fn acknowledged_is_stored(evidence: &Evidence, faults: &mut Faults<'_>) {
    let sends = sends(evidence);
    for (command, outcome) in outcomes(evidence) {
        let Outcome::Acknowledged { message, seq, change_seq } = outcome else { continue };
        let Some(stored) = evidence.messages.get(message) else {
            faults.add(format!("{command} was acknowledged as {message}, which is not stored"));
            continue;
        };
        if sends.contains(command) && stored.client_message_id.as_deref() != Some(command) {
            faults.add(format!("{command} was acknowledged as {message}, which is another"));
        }
        if stored.seq != *seq || stored.change_seq < *change_seq {
            faults.add(format!(
                "{command} was acknowledged at {seq}, {change_seq}, and stands at {}, {}",
                stored.seq, stored.change_seq
            ));
        }
    }
}

fn refused_is_not_stored(evidence: &Evidence, faults: &mut Faults<'_>) {
    let sends = sends(evidence);
    let ids = evidence.messages.values().filter_map(|m| m.client_message_id.as_deref());
    let stored: HashSet<&str> = ids.collect();
    for (command, outcome) in outcomes(evidence) {
        if let Outcome::Refused { code } = outcome
            && sends.contains(command)
            && stored.contains(command)
        {
            faults.add(format!("{command} was refused ({code}) and is stored"));
        }
    }
    for id in stored.difference(&sends) {
        faults.add(format!("{id} is stored, and nobody sent it"));
    }
}

fn each_command_has_an_outcome(evidence: &Evidence, faults: &mut Faults<'_>) {
    let mut open: BTreeSet<&str> = BTreeSet::new();
    for line in &evidence.lines {
        match &line.entry {
            Entry::Attempt { command, .. } => {
                open.insert(command);
            }
            Entry::Answered {
                command,
                outcome: Outcome::Acknowledged { .. } | Outcome::Refused { .. },
            } => {
                open.remove(&**command);
            }
            _ => {}
        }
    }
    open.iter().for_each(|command| faults.add(format!("{command} has none")));
}

/// Neither two messages at one place nor one at two, in the tables and in what devices were told;
/// and each `client_message_id` of a sender once.
fn one_message_one_place(evidence: &Evidence, faults: &mut Faults<'_>) {
    /// What stands at a place of a log: a message's creation or change, or the conversation's.
    type Change = Option<Uuid>;
    let mut places: HashMap<(Uuid, u64), Change> = HashMap::new();
    let mut put = |conversation: Uuid, seq: u64, change: Change, faults: &mut Faults<'_>| {
        let there = *places.entry((conversation, seq)).or_insert(change);
        if there != change {
            faults.add(format!("{conversation} {seq} is {there:?} and {change:?}"));
        }
    };
    let mut ids: HashMap<(Uuid, &str), Uuid> = HashMap::new();
    for message in evidence.messages.values() {
        let conversation = message.conversation_id;
        put(conversation, message.seq, Some(message.id), faults);
        put(conversation, message.change_seq, Some(message.id), faults);
        if let Some(id) = message.client_message_id.as_deref()
            && let Some(other) = ids.insert((message.sender_id, id), message.id)
        {
            faults.add(format!("{id} is stored as {other} and as {}", message.id));
        }
        let last = evidence.conversations.get(&conversation).map(|c| c.last_seq);
        if last.is_none_or(|last| message.seq.max(message.change_seq) > last) {
            faults.add(format!("{} stands beyond its log's head, {last:?}", message.id));
        }
    }
    for edit in &evidence.edits {
        if let Some(message) = evidence.messages.get(&edit.message_id) {
            put(message.conversation_id, edit.seq, Some(message.id), faults);
        }
    }
    let mut states: HashMap<(Uuid, u64), (u64, Option<&str>)> = HashMap::new();
    for line in &evidence.lines {
        if let Entry::Told { conversation, seq, message, .. } = &line.entry {
            put(*conversation, *seq, message.as_ref().map(|state| state.id), faults);
        }
        for state in Evidence::brought(&line.entry).1 {
            let told = (state.seq, state.hash.as_deref());
            let there = *states.entry((state.id, state.change_seq)).or_insert(told);
            if there != told {
                let (id, at) = (state.id, state.change_seq);
                faults.add(format!("{id} of {at} is {told:?} to {}, else {there:?}", line.device));
            }
        }
    }
}

/// Who is to have a message: its members when it was stored who still are, but its sender; once it
/// is deleted, nobody.
fn owed(evidence: &Evidence) -> impl Iterator<Item = (&Message, &Participant)> {
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
fn first_received(evidence: &Evidence) -> HashMap<(Uuid, Uuid), How> {
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

fn handed_over(evidence: &Evidence) -> HashSet<(Uuid, Uuid)> {
    let records = evidence.records.iter();
    records.flat_map(|r| r.recipients.iter().map(|user| (*user, r.message))).collect()
}

/// The closed loop: each recipient of a stored message has it on a device, or Kafka has it for him,
/// before anybody asks for what he missed.
fn nobody_is_forgotten(evidence: &Evidence, faults: &mut Faults<'_>) {
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

/// Before the final resume: a device that is connected has the whole log of each conversation, edits,
/// deletions and changes of members too, which nobody proves.
fn who_is_connected_is_told(evidence: &Evidence, faults: &mut Faults<'_>) {
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

/// A cursor goes up, by an event at the next place or by a page; and by then all messages up to it
/// are held. Only of messages that were never changed is it known from when on they were to be seen.
fn no_gap_no_step_back(evidence: &Evidence, faults: &mut Faults<'_>) {
    let mut logs: BTreeMap<Uuid, BTreeMap<u64, &Message>> = BTreeMap::new();
    for message in evidence.messages.values().filter(|m| m.change_seq == m.seq) {
        logs.entry(message.conversation_id).or_default().insert(message.seq, message);
    }
    let mut held: HashMap<(&str, Uuid), HashSet<Uuid>> = HashMap::new();
    let mut cursors: HashMap<(&str, Uuid), u64> = HashMap::new();
    // From where on the log was the member's to see, as he was told last.
    let mut histories: HashMap<(&str, Uuid), u64> = HashMap::new();
    for line in &evidence.lines {
        if let Entry::Again { conversation } = &line.entry {
            cursors.remove(&(&*line.device, *conversation));
        }
        let (Some(conversation), states) = Evidence::brought(&line.entry) else { continue };
        let key = (&*line.device, conversation);
        held.entry(key).or_default().extend(states.iter().map(|state| state.id));
        if let Entry::Page { history_from: Some(from), .. } = &line.entry {
            histories.insert(key, *from);
        }
        let cursor = match &line.entry {
            Entry::Told { cursor, .. } | Entry::Page { cursor, .. } => *cursor,
            _ => continue,
        };
        let Some(cursor) = cursor else { continue };
        let before = cursors.insert(key, cursor).unwrap_or(0);
        if cursor <= before {
            faults.add(format!("{} {conversation}: from {before} to {cursor}", line.device));
            continue;
        }
        let row = evidence.participants.get(&(conversation, line.user));
        let from = row.map_or(u64::MAX, |row| row.history_from_seq.max(before + 1));
        let from = from.max(histories.get(&key).copied().unwrap_or_default());
        let Some(log) = logs.get(&conversation).filter(|_| from <= cursor) else { continue };
        for (seq, message) in log.range(from..=cursor) {
            if !held[&key].contains(&message.id) {
                let (device, id) = (&line.device, message.id);
                faults.add(format!("{device} {conversation}: at {cursor} without {seq}, {id}"));
            }
        }
    }
}

/// Whoever is told of a change is a member at that place. Of those who were let in again, the tables
/// know the last stay only.
fn no_event_to_a_stranger(evidence: &Evidence, faults: &mut Faults<'_>) {
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
    for line in &evidence.lines {
        match &line.entry {
            Entry::Told { how: How::Live, conversation, seq, .. } => {
                told(line.user, *conversation, *seq, "an event");
            }
            Entry::Page { conversation, messages, .. } => {
                // What was before he came is his to see if he was granted it.
                for state in messages {
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
        for user in &record.recipients {
            told(*user, record.conversation, record.seq, "Kafka");
        }
    }
}

/// After the final resume each device of a member holds the log as it is stored, up to its head.
fn held_is_stored(evidence: &Evidence, faults: &mut Faults<'_>) {
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

fn servers_keep_to_the_contract(evidence: &Evidence, faults: &mut Faults<'_>) {
    for line in &evidence.lines {
        match &line.entry {
            Entry::Fault { what } => faults.add(format!("{} at {}: {what}", line.device, line.at)),
            Entry::Closed {
                code: Some(code @ (1002 | 1007 | 1009 | 1011 | 4400..=4499)), ..
            } => {
                faults.add(format!("{} at {} was closed with {code}", line.device, line.at));
            }
            Entry::Page { status, conversation, since, .. } if status == "reset" => {
                faults.add(format!("{} at {since} of {conversation}: reset", line.device));
            }
            _ => {}
        }
    }
}

fn nothing_is_left_over(evidence: &Evidence, faults: &mut Faults<'_>) {
    evidence.leftovers.iter().for_each(|what| faults.add(what.clone()));
    if evidence.settled.is_none() {
        faults.add("the run did not come to rest".into());
    }
}

pub fn count(evidence: &Evidence) -> Counts {
    let mut counts = Counts { strikes: evidence.strikes, ..Counts::default() };
    let (received, handed) = (first_received(evidence), handed_over(evidence));
    for (message, member) in owed(evidence) {
        let pair = (member.user_id, message.id);
        counts.owed += 1;
        match received.get(&pair) {
            Some(How::Resume) => counts.resumed += 1,
            Some(How::Live | How::Answer) => counts.live += 1,
            None => counts.offline += u64::from(handed.contains(&pair)),
        }
    }
    let sends = sends(evidence);
    let mut told: HashSet<(&str, Uuid, u64)> = HashSet::new();
    for line in &evidence.lines {
        match &line.entry {
            Entry::Connected { .. } => counts.connects += 1,
            Entry::Gap { .. } => counts.gaps += 1,
            Entry::Resync => counts.resyncs += 1,
            Entry::Told { how: How::Live, conversation, seq, .. }
                if !told.insert((&line.device, *conversation, *seq)) =>
            {
                counts.repeated += 1;
            }
            Entry::Answered { command, outcome } => match outcome {
                Outcome::Acknowledged { .. } if sends.contains(&**command) => {
                    counts.acknowledged += 1;
                }
                Outcome::Refused { .. } => counts.refused += 1,
                Outcome::Unknown => counts.unknown += 1,
                Outcome::Acknowledged { .. } | Outcome::Later { .. } => {}
            },
            _ => {}
        }
    }
    counts.offline_records = evidence.records.len() as u64;
    counts
}
