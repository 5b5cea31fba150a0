//! What travels on a user's channel: a fixed binary head, then the frames as the sockets get them.
//!
//! The receiving node reads the head only; the frames go to the sessions unparsed. Integers are
//! big-endian:
//!
//! ```text
//! version u8 | class u8 | classic form u8 | origin present u8
//! conversation 16 bytes | sender 16 | origin 16 (zeros if absent) | lo i64 | hi i64
//! length of the full frame u32 | only in the form "own": number of classic frames u32, each length u32
//! the full frame | the classic frames
//! ```
//!
//! A control envelope holds an [`Order`]: with an origin, that session is to end, for a younger one of
//! its device came; without, the full frame is a byte that names the order, and what belongs to it:
//!
//! ```text
//! 1 | device id (nothing: all devices)      end the user's sessions
//! 2                                         ask presence for the user
//! 3 | session 16 bytes                      end it, its client is to come again
//! ```
//!
//! Orders that a node does not know it leaves alone. Nodes of two releases run side by side during a deploy: a change of this layout takes a new
//! version, which the release before must already have learnt to read.

use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};
use thiserror::Error;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::ids::{ConversationId, DeviceId, Seq, SessionId, UserId};

const VERSION: u8 = 1;
/// Up to and with the length of the full frame.
const HEAD_BYTES: usize = 80;

/// What the receiving node must know of an event without parsing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub class: Class,
    pub conversation_id: ConversationId,
    pub sender_id: UserId,
    /// The session that caused the event and does not get it again.
    pub origin: Option<SessionId>,
    /// The stretch of seqs the event covers, `lo..=hi`; 0 and 0 for events without a place in the log.
    pub lo: Seq,
    pub hi: Seq,
    /// When what caused the event came in, by the clock of the node that published it.
    pub sent_at: Timestamp,
}

/// How an event is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Can be read again from the store; its delivery wants proof.
    Stored,
    /// Typing and presence: dropped first.
    Ephemeral,
    /// For the node, not for clients.
    Control,
}

/// What a node is to do, by a control envelope on the user's channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// This session of the user is replaced.
    Replace(SessionId),
    /// This session of the user lost its place to one whose client had left: it is to come again.
    ComeAgain(SessionId),
    /// The user, or one device of his, is to be cut off.
    Disconnect(Option<DeviceId>),
    /// The user came or went, perhaps: ask presence. The one order that goes to a presence topic.
    Look,
}

const DISCONNECT: u8 = 1;
const LOOK: u8 = 2;
const COME_AGAIN: u8 = 3;

/// What classic clients get of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Classic {
    /// The full frame.
    Same,
    /// Nothing.
    None,
    /// These frames, in this order.
    Own(Vec<Bytes>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub head: Head,
    /// The frame's text for full clients; empty if they get none.
    pub full: Bytes,
    pub classic: Classic,
}

/// The event is lost to this node's sessions; a stored one is found again by their next sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    #[error("the envelope has version {0}, this node reads version {VERSION}")]
    Version(u8),
    #[error("the envelope is torn")]
    Torn,
}

impl From<TryGetError> for DecodeError {
    fn from(_: TryGetError) -> Self {
        Self::Torn
    }
}

impl Envelope {
    pub fn order(user: UserId, order: Order) -> Self {
        let (origin, full) = match order {
            Order::Replace(session) => (Some(session), Bytes::new()),
            Order::ComeAgain(session) => {
                (None, [&[COME_AGAIN], &session.0.as_bytes()[..]].concat().into())
            }
            Order::Disconnect(device) => {
                let device = device.as_ref().map_or("", DeviceId::as_str);
                (None, [&[DISCONNECT], device.as_bytes()].concat().into())
            }
            Order::Look => (None, Bytes::from_static(&[LOOK])),
        };
        let head = Head {
            class: Class::Control,
            conversation_id: ConversationId(Uuid::nil()),
            sender_id: user,
            origin,
            lo: 0,
            hi: 0,
            sent_at: Timestamp::now(),
        };
        Self { head, full, classic: Classic::None }
    }

    /// None if it is no control envelope, or holds an order that this release does not know.
    pub fn as_order(&self) -> Option<Order> {
        if self.head.class != Class::Control {
            return None;
        }
        if let Some(session) = self.head.origin {
            return Some(Order::Replace(session));
        }
        let device = match self.full.split_first()? {
            (&DISCONNECT, device) => device,
            (&LOOK, _) => return Some(Order::Look),
            (&COME_AGAIN, session) => {
                return Some(Order::ComeAgain(SessionId(Uuid::from_slice(session).ok()?)));
            }
            _ => return None,
        };
        if device.is_empty() {
            return Some(Order::Disconnect(None));
        }
        // What is no device's name is nobody's: better nobody is cut off than all.
        Some(Order::Disconnect(Some(std::str::from_utf8(device).ok()?.parse().ok()?)))
    }

    /// One buffer, to be made once however many users get it.
    pub fn encode(&self) -> Bytes {
        let own = match &self.classic {
            Classic::Own(frames) => frames.as_slice(),
            Classic::Same | Classic::None => &[],
        };
        let frames_bytes: usize = own.iter().map(|frame| 4 + frame.len()).sum();
        let mut out = BytesMut::with_capacity(HEAD_BYTES + 4 + self.full.len() + frames_bytes);
        out.put_u8(VERSION);
        out.put_u8(match self.head.class {
            Class::Stored => 0,
            Class::Ephemeral => 1,
            Class::Control => 2,
        });
        out.put_u8(match self.classic {
            Classic::Same => 0,
            Classic::None => 1,
            Classic::Own(_) => 2,
        });
        out.put_u8(u8::from(self.head.origin.is_some()));
        out.put_slice(self.head.conversation_id.0.as_bytes());
        out.put_slice(self.head.sender_id.0.as_bytes());
        out.put_slice(self.head.origin.map_or(Uuid::nil(), |session| session.0).as_bytes());
        out.put_i64(self.head.lo);
        out.put_i64(self.head.hi);
        out.put_i64(self.head.sent_at.millis());
        out.put_u32(length(self.full.len()));
        if let Classic::Own(frames) = &self.classic {
            out.put_u32(length(frames.len()));
            for frame in frames {
                out.put_u32(length(frame.len()));
            }
        }
        out.put_slice(&self.full);
        for frame in own {
            out.put_slice(frame);
        }
        out.freeze()
    }

    /// The frames are slices of `bytes`, which stays in memory as long as one of them does.
    pub fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        let version = bytes.try_get_u8()?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let class = match bytes.try_get_u8()? {
            0 => Class::Stored,
            1 => Class::Ephemeral,
            2 => Class::Control,
            _ => return Err(DecodeError::Torn),
        };
        let form = bytes.try_get_u8()?;
        let has_origin = bytes.try_get_u8()? == 1;
        let conversation_id = ConversationId(Uuid::from_u128(bytes.try_get_u128()?));
        let sender_id = UserId(Uuid::from_u128(bytes.try_get_u128()?));
        let origin = SessionId(Uuid::from_u128(bytes.try_get_u128()?));
        let lo = bytes.try_get_i64()?;
        let hi = bytes.try_get_i64()?;
        let sent_at = Timestamp::from_millis(bytes.try_get_i64()?);
        let full_length = bytes.try_get_u32()?;
        let lengths = match form {
            0 | 1 => Bytes::new(),
            2 => {
                let number = bytes.try_get_u32()?;
                take(&mut bytes, u64::from(number) * 4)?
            }
            _ => return Err(DecodeError::Torn),
        };
        let full = take(&mut bytes, u64::from(full_length))?;
        let classic = match form {
            0 => Classic::Same,
            1 => Classic::None,
            _ => Classic::Own(
                lengths
                    .chunks_exact(4)
                    .map(|mut length| take(&mut bytes, u64::from(length.get_u32())))
                    .collect::<Result<_, _>>()?,
            ),
        };
        if !bytes.is_empty() {
            return Err(DecodeError::Torn);
        }
        let origin = has_origin.then_some(origin);
        let head = Head { class, conversation_id, sender_id, origin, lo, hi, sent_at };
        Ok(Self { head, full, classic })
    }
}

fn length(n: usize) -> u32 {
    u32::try_from(n).expect("frames are bounded far below 4 GiB")
}

fn take(bytes: &mut Bytes, length: u64) -> Result<Bytes, DecodeError> {
    match usize::try_from(length) {
        Ok(length) if length <= bytes.len() => Ok(bytes.split_to(length)),
        _ => Err(DecodeError::Torn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(class: Class, origin: bool, classic: Classic) -> Envelope {
        let head = Head {
            class,
            conversation_id: ConversationId(Uuid::from_u128(1)),
            sender_id: UserId(Uuid::from_u128(2)),
            origin: origin.then_some(SessionId(Uuid::from_u128(3))),
            lo: 4,
            hi: i64::MAX,
            sent_at: Timestamp::from_millis(5),
        };
        Envelope { head, full: Bytes::from_static(b"{\"type\":\"x\"}"), classic }
    }

    fn samples() -> Vec<Envelope> {
        let frames = vec![Bytes::from_static(b"a"), Bytes::new(), Bytes::from_static(b"bc")];
        let mut all = Vec::new();
        for class in [Class::Stored, Class::Ephemeral, Class::Control] {
            for origin in [false, true] {
                for classic in [Classic::Same, Classic::None, Classic::Own(vec![])] {
                    all.push(envelope(class, origin, classic));
                }
                all.push(envelope(class, origin, Classic::Own(frames.clone())));
            }
        }
        all
    }

    #[test]
    fn comes_back_as_it_went() {
        for sent in samples() {
            assert_eq!(Envelope::decode(sent.encode()), Ok(sent));
        }
    }

    #[test]
    fn frames_are_slices_of_what_arrived() {
        let bytes = envelope(Class::Stored, true, Classic::Same).encode();
        let range = bytes.as_ptr_range();
        let full = Envelope::decode(bytes.clone()).unwrap().full;
        assert!(range.contains(&full.as_ptr()), "the frame was copied");
    }

    /// The bytes are an interface between releases.
    #[test]
    fn the_layout_is_fixed() {
        let frames = vec![Bytes::from_static(b"a")];
        let mut sent = envelope(Class::Ephemeral, true, Classic::Own(frames));
        sent.head.hi = 5;
        let mut expected = vec![1, 1, 2, 1];
        for id in 1..=3_u128 {
            expected.extend(id.to_be_bytes());
        }
        expected.extend(4_i64.to_be_bytes());
        expected.extend(5_i64.to_be_bytes());
        expected.extend(5_i64.to_be_bytes());
        expected.extend([0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 1]);
        expected.extend(b"{\"type\":\"x\"}a");
        assert_eq!(sent.encode(), expected);
    }

    #[test]
    fn orders_come_back_as_they_went_and_unknown_ones_are_none() {
        let user = UserId(Uuid::from_u128(2));
        for order in [
            Order::Replace(SessionId(Uuid::from_u128(3))),
            Order::ComeAgain(SessionId(Uuid::from_u128(3))),
            Order::Disconnect(None),
            Order::Disconnect(Some("phone".parse().unwrap())),
            Order::Look,
        ] {
            let sent = Envelope::order(user, order.clone());
            let came = Envelope::decode(sent.encode()).unwrap();
            assert_eq!(came.as_order(), Some(order));
        }
        for full in [&b""[..], b"\x03", b"\x04", b"\x01\xff", b"\x01a\nb"] {
            let sent =
                Envelope { full: full.into(), ..envelope(Class::Control, false, Classic::None) };
            assert_eq!(sent.as_order(), None, "{full:?}");
        }
        assert_eq!(envelope(Class::Stored, true, Classic::Same).as_order(), None);
        // Bytes are an interface between releases.
        let phone = Envelope::order(user, Order::Disconnect(Some("phone".parse().unwrap())));
        assert_eq!(&phone.full[..], b"\x01phone");
    }

    #[test]
    fn torn_and_foreign_bytes_are_errors() {
        for sent in samples() {
            let whole = sent.encode();
            for end in 0..whole.len() {
                assert_eq!(Envelope::decode(whole.slice(..end)), Err(DecodeError::Torn));
            }
            let longer = Bytes::from([whole.as_ref(), b"!"].concat());
            assert_eq!(Envelope::decode(longer), Err(DecodeError::Torn));
            let mut newer = whole.to_vec();
            newer[0] = 2;
            assert_eq!(Envelope::decode(newer.into()), Err(DecodeError::Version(2)));
        }
    }

    #[test]
    fn random_bytes_never_panic() {
        // A xorshift, so that a failure can be repeated.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let samples = samples();
        for _ in 0..200_000 {
            // Half of them whole envelopes with a few bytes changed, which get further.
            let mut bytes = if random() % 2 == 0 {
                (0..random() % 120).map(|_| random() as u8).collect()
            } else {
                samples[random() as usize % samples.len()].encode().to_vec()
            };
            for _ in 0..random() % 4 {
                if !bytes.is_empty() {
                    let at = random() as usize % bytes.len();
                    bytes[at] = random() as u8;
                }
            }
            if let Ok(envelope) = Envelope::decode(bytes.into()) {
                assert_eq!(Envelope::decode(envelope.encode()), Ok(envelope));
            }
        }
    }
}
