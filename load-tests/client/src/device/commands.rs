//! What a device wants of the server: each command goes out until its outcome is known.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::dice::Dice;
use crate::history::{Entry, Outcome};

/// Commands on their way at a time.
const IN_FLIGHT: usize = 32;
/// Its own messages that a device remembers, to edit or delete one.
const OWN: usize = 64;
/// The server answers each command; one that stays unanswered so long is a fault of the connection.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// Where a refusal names no time.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
enum What {
    Send { conversation: Uuid, content: String },
    Edit { message: Uuid, content: String },
    Delete { message: Uuid },
}

#[derive(Clone, Debug)]
struct Command {
    /// Its `ref`, and of a send the `client_message_id`.
    name: String,
    what: What,
}

pub struct Commands {
    device: String,
    made: u64,
    queue: VecDeque<Command>,
    in_flight: BTreeMap<String, (Command, Instant)>,
    later: Vec<(Instant, Command)>,
    own: VecDeque<Uuid>,
}

impl Commands {
    pub fn new(device: &str) -> Self {
        Self {
            device: device.to_owned(),
            made: 0,
            queue: VecDeque::new(),
            in_flight: BTreeMap::new(),
            later: Vec::new(),
            own: VecDeque::new(),
        }
    }

    pub fn waiting(&self) -> usize {
        self.queue.len() + self.in_flight.len() + self.later.len()
    }

    pub fn send(&mut self, conversation: Uuid, bytes: usize) {
        let content = self.content(bytes);
        self.push(What::Send { conversation, content });
    }

    /// Nothing, as long as it has sent nothing.
    pub fn edit(&mut self, dice: &mut Dice) {
        let content = self.content(40);
        if let Some(message) = dice.pick(self.own.make_contiguous()).copied() {
            self.push(What::Edit { message, content });
        }
    }

    pub fn delete(&mut self, dice: &mut Dice) {
        if let Some(message) = dice.pick(self.own.make_contiguous()).copied() {
            self.own.retain(|own| *own != message);
            self.push(What::Delete { message });
        }
    }

    /// Different each time.
    fn content(&self, bytes: usize) -> String {
        let head = format!("{} {} ", self.device, self.made);
        let filler = "the quick brown fox ".chars().cycle();
        head.chars().chain(filler).take(bytes.max(head.len())).collect()
    }

    fn push(&mut self, what: What) {
        let name = format!("{}-{}", self.device, self.made);
        self.made += 1;
        self.queue.push_back(Command { name, what });
    }

    /// The frames that may go out now.
    pub fn take(&mut self, now: Instant, mut note: impl FnMut(Entry)) -> Vec<String> {
        let due: Vec<_> = self.later.extract_if(.., |(at, _)| *at <= now).collect();
        self.queue.extend(due.into_iter().map(|(_, command)| command));
        let mut frames = Vec::new();
        while self.in_flight.len() < IN_FLIGHT
            && let Some(command) = self.queue.pop_front()
        {
            note(command.attempt());
            frames.push(command.frame().to_string());
            self.in_flight.insert(command.name.clone(), (command, now));
        }
        frames
    }

    /// When to call `take` again, and when an answer is overdue.
    pub fn next(&self) -> Option<Instant> {
        let later = self.later.iter().map(|(at, _)| *at).min();
        later.into_iter().chain(self.overdue_at()).min()
    }

    pub fn overdue_at(&self) -> Option<Instant> {
        self.in_flight.values().map(|(_, since)| *since + PATIENCE).min()
    }

    /// The answer to the command of this name; false if there is none.
    pub fn on_ok(
        &mut self,
        name: &str,
        message: Uuid,
        seq: u64,
        change_seq: u64,
        note: impl FnOnce(Entry),
    ) -> Option<&'static str> {
        let (command, _) = self.in_flight.remove(name)?;
        let kind = match command.what {
            What::Send { .. } => "new_message",
            What::Edit { .. } => "message_updated",
            What::Delete { .. } => "message_deleted",
        };
        if matches!(command.what, What::Send { .. }) {
            if self.own.len() == OWN {
                self.own.pop_front();
            }
            self.own.push_back(message);
        }
        let outcome = Outcome::Acknowledged { message, seq, change_seq };
        note(Entry::Answered { command: command.name, outcome });
        Some(kind)
    }

    pub fn on_error(
        &mut self,
        name: &str,
        code: String,
        retry_ms: Option<u64>,
        note: impl FnOnce(Entry),
    ) -> bool {
        let Some((command, _)) = self.in_flight.remove(name) else { return false };
        let again = matches!(&*code, "busy" | "unavailable" | "rate_limited" | "internal");
        let outcome = if again { Outcome::Later { code } } else { Outcome::Refused { code } };
        note(Entry::Answered { command: command.name.clone(), outcome });
        if again {
            let pause = retry_ms.map_or(PAUSE, Duration::from_millis);
            self.later.push((Instant::now() + pause, command));
        }
        true
    }

    /// The connection is gone: what was on its way may have happened or not, and goes out again.
    pub fn on_lost(&mut self, mut note: impl FnMut(Entry)) {
        let in_flight = std::mem::take(&mut self.in_flight);
        let mut commands: Vec<_> = in_flight.into_values().collect();
        commands.sort_by_key(|(_, since)| *since);
        for (command, _) in commands.into_iter().rev() {
            let outcome = Outcome::Unknown;
            note(Entry::Answered { command: command.name.clone(), outcome });
            self.queue.push_front(command);
        }
    }
}

impl Command {
    fn attempt(&self) -> Entry {
        let (what, conversation, message) = match &self.what {
            What::Send { conversation, .. } => ("send", Some(*conversation), None),
            What::Edit { message, .. } => ("edit", None, Some(*message)),
            What::Delete { message } => ("delete", None, Some(*message)),
        };
        Entry::Attempt { command: self.name.clone(), what: what.into(), conversation, message }
    }

    fn frame(&self) -> Value {
        let (kind, payload) = match &self.what {
            What::Send { conversation, content } => (
                "send_message",
                json!({
                    "conversation_id": conversation, "message_type": "text",
                    "content": content, "client_message_id": self.name,
                }),
            ),
            What::Edit { message, content } => {
                ("edit_message", json!({ "message_id": message, "content": content }))
            }
            What::Delete { message } => ("delete_message", json!({ "message_id": message })),
        };
        json!({ "type": kind, "ref": self.name, "payload": payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(commands: &mut Commands) -> Vec<Value> {
        let frames = commands.take(Instant::now(), |_| {});
        frames.iter().map(|frame| serde_json::from_str(frame).unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_goes_out_again_as_it_was_until_its_outcome_is_known() {
        let mut commands = Commands::new("d");
        (0..3).for_each(|_| commands.send(Uuid::nil(), 30));
        let first = sent(&mut commands);
        assert_eq!(first.len(), 3);
        assert_eq!(first[0]["ref"], first[0]["payload"]["client_message_id"]);
        assert_eq!(commands.on_ok("d-1", Uuid::nil(), 1, 1, |_| {}), Some("new_message"));
        commands.on_lost(|_| {});
        assert_eq!(sent(&mut commands), [first[0].clone(), first[2].clone()]);
        assert!(commands.on_error("d-0", "busy".into(), Some(700), |_| {}));
        assert!(commands.on_error("d-2", "forbidden".into(), None, |_| {}));
        assert_eq!((commands.waiting(), sent(&mut commands).len()), (1, 0));
        tokio::time::advance(Duration::from_millis(701)).await;
        assert_eq!(sent(&mut commands), [first[0].clone()]);
    }
}
