//! What the tables hold, against what was sent and answered.

use std::collections::{BTreeSet, HashMap, HashSet};

use tidings_client::history::{Entry, Outcome};
use uuid::Uuid;

use super::super::Faults;
use super::super::evidence::Evidence;

/// What a device asked for.
pub struct Command<'a> {
    pub what: &'a str,
    pub user: Uuid,
    pub conversation: Option<Uuid>,
}

impl Command<'_> {
    pub fn is_send(&self) -> bool {
        self.what == "send"
    }
}

/// By their names; a send's is its `client_message_id`, too.
pub fn commands(evidence: &Evidence) -> HashMap<&str, Command<'_>> {
    let attempts = evidence.lines.iter().filter_map(|line| match &line.entry {
        Entry::Attempt { command, what, conversation, .. } => {
            Some((&**command, Command { what, user: line.user, conversation: *conversation }))
        }
        _ => None,
    });
    attempts.collect()
}

/// Where each message is, by the tables and by what devices were told.
fn conversations(evidence: &Evidence) -> HashMap<Uuid, Uuid> {
    let told = evidence.lines.iter().flat_map(|line| {
        let (conversation, states) = Evidence::brought(&line.entry);
        states.iter().filter_map(move |state| Some((state.id, conversation?)))
    });
    told.chain(evidence.messages.values().map(|m| (m.id, m.conversation_id))).collect()
}

/// The acknowledgements, and whether what they tell of was lost later.
pub fn acknowledged(evidence: &Evidence) -> Vec<(bool, &str, Uuid, u64, u64)> {
    let conversations = conversations(evidence);
    let answers = evidence.with_eras().filter_map(|(era, line)| match &line.entry {
        Entry::Answered {
            command,
            outcome: Outcome::Acknowledged { message, seq, change_seq },
        } => {
            let conversation = conversations.get(message).copied().unwrap_or_default();
            let lost = evidence.is_lost(era, conversation, *change_seq);
            Some((lost, &**command, *message, *seq, *change_seq))
        }
        _ => None,
    });
    answers.collect()
}

pub fn acknowledged_is_stored(evidence: &Evidence, faults: &mut Faults<'_>) {
    let commands = commands(evidence);
    for (_, name, message, seq, change_seq) in
        acknowledged(evidence).into_iter().filter(|(lost, ..)| !lost)
    {
        let Some(stored) = evidence.messages.get(&message) else {
            faults.add(format!("{name} was acknowledged as {message}, which is not stored"));
            continue;
        };
        let Some(command) = commands.get(name) else {
            faults.add(format!("{name} was acknowledged, and nobody asked for it"));
            continue;
        };
        let other_place = command.conversation.is_some_and(|id| id != stored.conversation_id);
        let other_name = command.is_send() && stored.client_message_id.as_deref() != Some(name);
        if other_place || other_name || stored.sender_id != command.user {
            faults.add(format!("{name} was acknowledged as {message}, which is another"));
        }
        if stored.seq != seq || stored.change_seq < change_seq {
            faults.add(format!(
                "{name} was acknowledged at {seq}, {change_seq}, and stands at {}, {}",
                stored.seq, stored.change_seq
            ));
        }
        if command.what == "delete" && !stored.deleted {
            faults.add(format!("{name} was acknowledged, and {message} is not deleted"));
        }
    }
}

pub fn refused_is_not_stored(evidence: &Evidence, faults: &mut Faults<'_>) {
    let commands = commands(evidence);
    let ids = evidence.messages.values().filter_map(|m| m.client_message_id.as_deref());
    let stored: HashSet<&str> = ids.collect();
    for line in &evidence.lines {
        if let Entry::Answered { command, outcome: Outcome::Refused { code } } = &line.entry
            && commands.get(&**command).is_some_and(Command::is_send)
            && stored.contains(&**command)
        {
            faults.add(format!("{command} was refused ({code}) and is stored"));
        }
    }
    for message in evidence.messages.values() {
        let name = message.client_message_id.as_deref();
        if !name.and_then(|name| commands.get(name)).is_some_and(Command::is_send) {
            faults.add(format!("{} ({name:?}) is stored, and nobody sent it", message.id));
        }
    }
}

pub fn each_command_has_an_outcome(evidence: &Evidence, faults: &mut Faults<'_>) {
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

/// Neither two changes at one place nor a message at two, in the tables and in what devices were
/// told; and each `client_message_id` of a sender once. A place that was lost is given away again.
pub fn one_message_one_place(evidence: &Evidence, faults: &mut Faults<'_>) {
    /// What stands at a place of a log: a message's creation or change, or the conversation's.
    type Change = Option<Uuid>;
    let last = evidence.losses.len();
    let log = |era, conversation, seq| {
        if evidence.is_lost(era, conversation, seq) { era } else { last }
    };
    let mut places: HashMap<(usize, Uuid, u64), Change> = HashMap::new();
    let mut put = |era, conversation: Uuid, seq: u64, change: Change, faults: &mut Faults<'_>| {
        let place = (log(era, conversation, seq), conversation, seq);
        let there = *places.entry(place).or_insert(change);
        if there != change {
            faults.add(format!("{conversation} {seq} is {there:?} and {change:?}"));
        }
    };
    let mut ids: HashMap<(Uuid, &str), Uuid> = HashMap::new();
    let mut seqs: HashMap<Uuid, u64> = HashMap::new();
    for message in evidence.messages.values() {
        let conversation = message.conversation_id;
        put(last, conversation, message.seq, Some(message.id), faults);
        put(last, conversation, message.change_seq, Some(message.id), faults);
        seqs.insert(message.id, message.seq);
        if let Some(id) = message.client_message_id.as_deref()
            && let Some(other) = ids.insert((message.sender_id, id), message.id)
        {
            faults.add(format!("{id} is stored as {other} and as {}", message.id));
        }
        let head = evidence.conversations.get(&conversation).map(|c| c.last_seq);
        if head.is_none_or(|head| message.seq.max(message.change_seq) > head) {
            faults.add(format!("{} stands beyond its log's head, {head:?}", message.id));
        }
    }
    for edit in &evidence.edits {
        if let Some(message) = evidence.messages.get(&edit.message_id) {
            put(last, message.conversation_id, edit.seq, Some(message.id), faults);
        }
    }
    let mut states: HashMap<(usize, Uuid, u64), (u64, Option<&str>)> = HashMap::new();
    for (era, line) in evidence.with_eras() {
        if let Entry::Told { conversation, seq, message, .. } = &line.entry {
            put(era, *conversation, *seq, message.as_ref().map(|state| state.id), faults);
        }
        let (conversation, brought) = match &line.entry {
            // What he held when he was removed, perhaps of a log that was lost.
            Entry::Holds { gone: true, .. } => continue,
            entry => Evidence::brought(entry),
        };
        for state in brought {
            let (id, at) = (state.id, state.change_seq);
            let stands = *seqs.entry(id).or_insert(state.seq);
            if stands != state.seq {
                faults.add(format!("{id} is at {} to {}, else {stands}", state.seq, line.device));
            }
            let told = (state.seq, state.hash.as_deref());
            let era = log(era, conversation.unwrap_or_default(), at);
            let there = *states.entry((era, id, at)).or_insert(told);
            if there != told {
                faults.add(format!("{id} of {at} is {told:?} to {}, else {there:?}", line.device));
            }
        }
    }
}
