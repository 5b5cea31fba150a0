//! What stands in the frames: the few fields that the generator reads, and the commands it sends.

use std::fmt::{self, Display, Write};
use std::str::FromStr;

use serde::Deserialize;
pub use tidings_client::wire::{Frame, Problem, kind};
use uuid::Uuid;

/// Bytes in a chat message.
const CONTENT_BYTES: usize = 120;
const FILLER: &str = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen \
                      liquor jugs. How vexingly quick daft zebras jump.";

/// The payload of `new_message`, and of the `ok` to a `send_message`.
#[derive(Deserialize)]
pub struct MessagePayload<'a> {
    #[serde(borrow)]
    pub message: Message<'a>,
}

#[derive(Deserialize)]
pub struct Message<'a> {
    pub conversation_id: Uuid,
    pub seq: u64,
    pub client_message_id: Option<&'a str>,
}

/// Which message of which conversation of the run: what its `client_message_id` and its `ref` say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub room: usize,
    pub number: usize,
}

impl Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.room, self.number)
    }
}

impl FromStr for Key {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (room, number) = text.split_once('.').ok_or(())?;
        let count = |text: &str| text.parse().map_err(|_| ());
        Ok(Self { room: count(room)?, number: count(number)? })
    }
}

impl Message<'_> {
    pub fn key(&self) -> Option<Key> {
        self.client_message_id?.parse().ok()
    }

    /// The number that our `client_message_id` is.
    pub fn number(&self) -> Option<usize> {
        self.client_message_id?.parse().ok()
    }
}

/// Writes the command that sends a message, whose `ref` and `client_message_id` are `key`.
pub fn send_message(into: &mut String, conversation: Uuid, key: impl Display) {
    into.clear();
    let content = &FILLER[..CONTENT_BYTES];
    write!(
        into,
        r#"{{"type":"send_message","ref":"{key}","payload":{{"conversation_id":"{conversation}","message_type":"text","client_message_id":"{key}","content":"{content}"}}}}"#
    )
    .expect("a string takes whatever is written");
}

/// A `ping` padded to `size` bytes.
pub fn padded_ping(size: usize) -> String {
    let (head, tail) = (r#"{"type":"ping","payload":{"pad":""#, r#""}}"#);
    let pad = "x".repeat(size.saturating_sub(head.len() + tail.len()));
    format!("{head}{pad}{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_valid_json_with_the_content_in_full() {
        let mut text = String::new();
        send_message(&mut text, Uuid::from_u128(7), Key { room: 4, number: 2 });
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["ref"], "4.2");
        assert_eq!(json["payload"]["client_message_id"], "4.2");
        assert_eq!("4.2".parse(), Ok(Key { room: 4, number: 2 }));
        assert_eq!("42".parse::<Key>(), Err(()));
        assert_eq!(json["payload"]["content"].as_str().unwrap().len(), CONTENT_BYTES);
        let ping = padded_ping(6_000);
        assert_eq!(ping.len(), 6_000);
        assert_eq!(kind(ping.as_bytes()), "ping");
    }

    #[test]
    fn frames_are_read_in_any_order_of_keys() {
        let text = br#"{"payload":{"message":{"seq":3,"content":"a\"b","client_message_id":"9",
            "conversation_id":"00000000-0000-0000-0000-000000000007"},"timestamp":"x"},
            "type":"new_message","later":[1]}"#;
        let frame = Frame::read(text).unwrap();
        assert_eq!((frame.kind, frame.number()), ("new_message", None));
        let payload: MessagePayload<'_> = frame.payload().unwrap();
        assert_eq!((payload.message.seq, payload.message.number()), (3, Some(9)));
        let text = br#"{"type":"error","ref":"5","payload":{"code":"busy","retry_ms":500}}"#;
        let frame = Frame::read(text).unwrap();
        let problem: Problem = frame.payload().unwrap();
        assert_eq!((frame.number(), problem.retry_ms), (Some(5), Some(500)));
    }
}
