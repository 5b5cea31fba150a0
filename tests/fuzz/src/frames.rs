use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tidings::protocol::code::CloseCode;
use tidings::ws::frames::{Frames, Received};
use tokio::io::{AsyncRead, ReadBuf};

use super::now;

const LIMIT: usize = 64;
const MAX_MESSAGE: usize = 4 * LIMIT;
const MAX_CONTROL: usize = 125;

/// What a client sends on its socket, in pieces of any size. The first two bytes say how it is cut.
///
/// A length written in more bytes than it needs, which RFC 6455 forbids, is taken as it is.
pub fn frames(data: &[u8]) {
    let Some(([early, piece], data)) = data.split_first_chunk::<2>() else { return };
    let (expected, end) = by_the_book(data);
    let (early, rest) = data.split_at(data.len().min(usize::from(*early)));
    let stream = Pieces { rest, size: usize::from(*piece).max(1) };
    let (given, counter) = (AtomicU64::new(0), metrics::Counter::noop());
    let early = Bytes::copy_from_slice(early);
    let mut frames = Frames::new(stream, early, LIMIT, &given, &counter);
    for expected in expected {
        let received = now(frames.next()).expect("the frame is good");
        if let Received::Message(message) = &received {
            assert!(message.len() <= MAX_MESSAGE, "{} bytes", message.len());
        }
        assert_eq!(received, expected.received);
        // Who waits for more input may drop the reader, and with it what it holds.
        if frames.is_between_messages() {
            assert!(expected.is_whole, "a message is open");
            let given = given.load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!(given, expected.end as u64, "received bytes would be lost");
        }
    }
    assert_eq!(now(frames.next()), Err(end));
}

struct Expected {
    received: Received,
    /// Where its frame ends.
    end: usize,
    /// No message is open behind it.
    is_whole: bool,
}

/// The frames up to the first that is wrong, and why nothing follows them.
fn by_the_book(data: &[u8]) -> (Vec<Expected>, CloseCode) {
    let mut frames = Vec::new();
    let mut open: Option<BytesMut> = None;
    let mut at = 0;
    let end = loop {
        let (received, size) = match frame(&data[at..], &mut open) {
            Ok(next) => next,
            Err(code) => break code,
        };
        at += size;
        frames.push(Expected { received, end: at, is_whole: open.is_none() });
    };
    (frames, end)
}

/// RFC 6455, section 5, one frame. The bytes end: the client is lost.
fn frame(data: &[u8], open: &mut Option<BytesMut>) -> Result<(Received, usize), CloseCode> {
    let &[first, second, ref rest @ ..] = data else { return Err(CloseCode::Lost) };
    let (fin, opcode, masked) = (first & 0x80 != 0, first & 0x0f, second & 0x80 != 0);
    if first & 0x70 != 0 || !matches!(opcode, 0..=2 | 8..=10) {
        return Err(CloseCode::ProtocolError);
    }
    let extra = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    if rest.len() < extra + if masked { 4 } else { 0 } {
        return Err(CloseCode::Lost);
    }
    let (length, rest) = rest.split_at(extra);
    let length = match extra {
        0 => u64::from(second & 0x7f),
        _ => length.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
    };
    let control = opcode >= 8;
    if control && !fin || opcode == 9 && length > MAX_CONTROL as u64 {
        return Err(CloseCode::ProtocolError);
    }
    if length > MAX_MESSAGE as u64 {
        return Err(CloseCode::TooBig);
    }
    let (mask, rest) = rest.split_at(if masked { 4 } else { 0 });
    let Some(payload) = rest.get(..length as usize) else { return Err(CloseCode::Lost) };
    let mut payload = BytesMut::from(payload);
    if masked {
        payload.iter_mut().enumerate().for_each(|(at, byte)| *byte ^= mask[at % 4]);
    }
    if opcode == 1 && fin && std::str::from_utf8(&payload).is_err() {
        return Err(CloseCode::InvalidUtf8);
    }
    if !masked || control && payload.len() > MAX_CONTROL {
        return Err(CloseCode::ProtocolError);
    }
    let size = 2 + extra + 4 + payload.len();
    let message = match (opcode, open.take()) {
        (8, _) => return Err(closed(&payload)),
        (9, before) => {
            *open = before;
            return Ok((Received::Ping(payload), size));
        }
        (10, before) => {
            *open = before;
            return Ok((Received::Pong(payload), size));
        }
        (0, Some(mut message)) => {
            message.extend_from_slice(&payload);
            message
        }
        (1 | 2, None) => payload,
        _ => return Err(CloseCode::ProtocolError),
    };
    if message.len() > MAX_MESSAGE {
        return Err(CloseCode::TooBig);
    }
    if fin {
        return Ok((Received::Message(message), size));
    }
    *open = Some(message);
    Ok((Received::Part, size))
}

/// Section 7.4, with what was registered since.
fn closed(payload: &[u8]) -> CloseCode {
    match payload {
        [] => CloseCode::Normal,
        [_] => CloseCode::ProtocolError,
        [_, _, reason @ ..] if std::str::from_utf8(reason).is_err() => CloseCode::InvalidUtf8,
        [high, low, ..] => match u16::from_be_bytes([*high, *low]) {
            1004..=1006 | 1015 => CloseCode::ProtocolError,
            1000..=1014 | 3000..=4999 => CloseCode::Normal,
            _ => CloseCode::ProtocolError,
        },
    }
}

/// Gives so many bytes at a time.
struct Pieces<'a> {
    rest: &'a [u8],
    size: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let size = self.size.min(self.rest.len()).min(buffer.remaining());
        let (piece, rest) = self.rest.split_at(size);
        buffer.put_slice(piece);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}
