//! What a client's bytes mean by the protocol: frames, put together to messages. Reads a stream and
//! judges it; what is in a message is nothing to it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use fastwebsockets::{
    Frame, OpCode, Payload, Role, WebSocketError, WebSocketRead, after_handshake_split,
};
use tokio::io::{AsyncRead, ReadBuf};

use crate::protocol::code::CloseCode;

/// A message up to so many times the limit is whole, to be refused; beyond, the socket is closed.
const OVERSIZE: usize = 4;
const MAX_CONTROL: usize = 125;

/// One frame, as far as it is more than a frame.
#[derive(Debug, PartialEq)]
pub enum Received {
    /// A whole message. Only text in a single frame is known to be UTF-8.
    Message(BytesMut),
    /// A message goes on.
    Part,
    Ping(BytesMut),
    Pong(BytesMut),
}

/// Frames out of a stream, the early bytes first.
pub struct Frames<'a, S> {
    reader: WebSocketRead<Counted<'a, S>>,
    /// Bytes that the stream has given, and those of whole frames.
    given: &'a AtomicU64,
    used: u64,
    open: Option<BytesMut>,
    max_message: usize,
}

impl<'a, S: AsyncRead + Unpin> Frames<'a, S> {
    /// `given` counts from zero; messages up to a few times `limit` are whole.
    pub fn new(
        stream: S,
        early: Bytes,
        limit: usize,
        given: &'a AtomicU64,
        received: &'a metrics::Counter,
    ) -> Self {
        let counted = Counted { stream, early, given, received };
        let (mut reader, _) = after_handshake_split(counted, tokio::io::sink(), Role::Server);
        let max_message = limit * OVERSIZE;
        // Control frames are answered through the write queue, in its order.
        reader.set_auto_close(false);
        reader.set_auto_pong(false);
        reader.set_max_message_size(max_message + 1);
        Self { reader, given, used: 0, open: None, max_message }
    }

    /// Not cancel safe. After an error there is nothing more to read.
    pub async fn next(&mut self) -> Result<Received, CloseCode> {
        // Nothing is ever sent on the reader's behalf: both automatic answers are off.
        let mut never = |_: Frame<'_>| std::future::ready(Ok::<(), io::Error>(()));
        let frame = self.reader.read_frame(&mut never).await;
        let mut frame = frame.map_err(|error| close_code(&error))?;
        let mut head = [0u8; 16];
        let head_size = frame.fmt_head(&mut head);
        if head[1] & 0x80 == 0 {
            return Err(CloseCode::ProtocolError);
        }
        self.used += (head_size + frame.payload.len()) as u64;
        let Payload::Bytes(payload) = frame.payload else {
            unreachable!("this reader gives its own bytes")
        };
        let message = match frame.opcode {
            OpCode::Ping | OpCode::Pong | OpCode::Close if payload.len() > MAX_CONTROL => {
                return Err(CloseCode::ProtocolError);
            }
            OpCode::Ping => return Ok(Received::Ping(payload)),
            OpCode::Pong => return Ok(Received::Pong(payload)),
            OpCode::Close => return Err(answer_to_close(&payload)),
            OpCode::Text | OpCode::Binary if self.open.is_some() => {
                return Err(CloseCode::ProtocolError);
            }
            OpCode::Text | OpCode::Binary => payload,
            OpCode::Continuation => {
                let mut message = self.open.take().ok_or(CloseCode::ProtocolError)?;
                if message.len() + payload.len() > self.max_message {
                    return Err(CloseCode::TooBig);
                }
                message.extend_from_slice(&payload);
                message
            }
        };
        if frame.fin {
            return Ok(Received::Message(message));
        }
        self.open = Some(message);
        Ok(Received::Part)
    }

    /// Exactly the bytes received so far are used up, and no message is open.
    pub fn is_between_messages(&self) -> bool {
        self.used == self.given.load(Ordering::Relaxed) && self.open.is_none()
    }
}

fn close_code(error: &WebSocketError) -> CloseCode {
    match error {
        WebSocketError::InvalidUTF8 => CloseCode::InvalidUtf8,
        WebSocketError::FrameTooLarge => CloseCode::TooBig,
        WebSocketError::IoError(_) | WebSocketError::UnexpectedEOF => CloseCode::Lost,
        _ => CloseCode::ProtocolError,
    }
}

/// The client closes: its code is judged as the RFC says and answered with a close.
fn answer_to_close(payload: &[u8]) -> CloseCode {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { CloseCode::Normal } else { CloseCode::ProtocolError };
    };
    if std::str::from_utf8(reason).is_err() {
        return CloseCode::InvalidUtf8;
    }
    match u16::from_be_bytes(*code) {
        1000..=1003 | 1007..=1011 | 3000..=4999 => CloseCode::Normal,
        // Registered later than the RFC: service restart, try again later, bad gateway.
        1012..=1014 => CloseCode::Normal,
        _ => CloseCode::ProtocolError,
    }
}

/// Counts the bytes it hands over, the early ones first.
struct Counted<'a, S> {
    stream: S,
    early: Bytes,
    given: &'a AtomicU64,
    received: &'a metrics::Counter,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if self.early.is_empty() {
            std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        } else {
            let size = self.early.len().min(buffer.remaining());
            buffer.put_slice(&self.early[..size]);
            self.early.advance(size);
        }
        let given = (buffer.filled().len() - before) as u64;
        self.given.fetch_add(given, Ordering::Relaxed);
        self.received.increment(given);
        Poll::Ready(Ok(()))
    }
}
