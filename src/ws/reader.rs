//! Frames in. A reader with its buffers exists only while there is something to read: an idle
//! socket holds neither.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use fastwebsockets::{Frame, OpCode, Role, WebSocketError, after_handshake_split};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::ReadHalf;

use super::Node;
use super::commands::{self, Faults};
use super::handle::Session;
use super::outbound::Item;
use crate::protocol::code::CloseCode;
use crate::telemetry::metrics::Direction;

/// A message up to so many times the limit is refused with an `error` and the session goes on;
/// beyond, the socket is closed.
const OVERSIZE: usize = 4;
const MAX_CONTROL: usize = 125;
/// A masked pong that answers a ping of [`super::barrier`].
const PONG_BYTES: usize = 10;
/// Read at once to see whether there is anything; most commands fit.
const FIRST_READ: usize = 1024;

/// Until the client or the session ends; returns why. Owns the read half: nobody else reads.
#[expect(
    clippy::manual_async_fn,
    reason = "an async fn holds its arguments twice, for as long as it runs"
)]
pub fn run<'a>(
    mut half: ReadHalf<'a>,
    mut early: Bytes,
    session: &'a Arc<Session>,
    node: &'a Arc<Node>,
) -> impl Future<Output = CloseCode> + Send + 'a {
    async move {
        let mut faults = Faults::default();
        loop {
            if early.is_empty() {
                // Not `readable()`, whose future is five times as large.
                if poll_fn(|cx| half.as_ref().poll_read_ready(cx)).await.is_err() {
                    return CloseCode::Lost;
                }
                match first_bytes(&half) {
                    Ok(bytes) if bytes.is_empty() => return CloseCode::Lost,
                    Ok(bytes) => early = bytes,
                    // Readiness may be stale; this read has cleared it.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(_) => return CloseCode::Lost,
                }
            }
            on_pongs(&mut early, session, node);
            if early.is_empty() {
                continue;
            }
            // Boxed, so that its reader and buffers go when the input is used up.
            let bytes = std::mem::take(&mut early);
            if let Err(code) = Box::pin(burst(&mut half, bytes, session, node, &mut faults)).await {
                return code;
            }
        }
    }
}

/// What is there to read now. Not async, so that its buffer lives on the stack only.
fn first_bytes(half: &ReadHalf<'_>) -> io::Result<Bytes> {
    let mut buffer = [0u8; FIRST_READ];
    let read = half.try_read(&mut buffer)?;
    Ok(Bytes::copy_from_slice(&buffer[..read]))
}

/// Takes the whole pongs of ours off the front: most of what many clients send, and no need for a
/// reader.
fn on_pongs(bytes: &mut Bytes, session: &Session, node: &Node) {
    while let Some((frame, _)) = bytes.split_first_chunk::<PONG_BYTES>()
        && let [0x8a, 0x84, k0, k1, k2, k3, p0, p1, p2, p3] = *frame
    {
        session.on_pong(&[p0 ^ k0, p1 ^ k1, p2 ^ k2, p3 ^ k3], &node.write_path.proofs);
        session.hear();
        node.metrics.sockets.frames.of(Direction::In).increment(1);
        node.metrics.sockets.bytes.of(Direction::In).increment(PONG_BYTES as u64);
        bytes.advance(PONG_BYTES);
    }
}

/// Reads frames until exactly the bytes received so far are used up and no message is open.
async fn burst(
    half: &mut ReadHalf<'_>,
    early: Bytes,
    session: &Arc<Session>,
    node: &Arc<Node>,
    faults: &mut Faults,
) -> Result<(), CloseCode> {
    let given = AtomicU64::new(0);
    let received = node.metrics.sockets.bytes.of(Direction::In);
    let counted = Counted { half, early, given: &given, received };
    let (mut reader, _) = after_handshake_split(counted, tokio::io::sink(), Role::Server);
    let limit = node.limits.max_frame_bytes;
    // Control frames are answered through the write queue, in its order.
    reader.set_auto_close(false);
    reader.set_auto_pong(false);
    reader.set_max_message_size(limit * OVERSIZE + 1);
    let mut open: Option<BytesMut> = None;
    let mut used = 0u64;
    loop {
        // Nothing is ever sent on the reader's behalf: both automatic answers are off.
        let mut never = |_: Frame<'_>| std::future::ready(Ok::<(), io::Error>(()));
        let mut frame = reader.read_frame(&mut never).await.map_err(|error| close_code(&error))?;
        let mut head = [0u8; 16];
        let head_size = frame.fmt_head(&mut head);
        if head[1] & 0x80 == 0 {
            return Err(CloseCode::ProtocolError);
        }
        used += (head_size + frame.payload.len()) as u64;
        node.metrics.sockets.frames.of(Direction::In).increment(1);
        session.hear();
        let fastwebsockets::Payload::Bytes(payload) = frame.payload else {
            unreachable!("this reader gives its own bytes")
        };
        match frame.opcode {
            OpCode::Ping | OpCode::Pong | OpCode::Close if payload.len() > MAX_CONTROL => {
                return Err(CloseCode::ProtocolError);
            }
            OpCode::Ping => {
                let pong = Item::control(OpCode::Pong, payload.freeze());
                session.push(pong);
            }
            OpCode::Pong => session.on_pong(&payload, &node.write_path.proofs),
            OpCode::Close => return Err(answer_to_close(&payload)),
            OpCode::Text | OpCode::Binary => {
                if open.is_some() {
                    return Err(CloseCode::ProtocolError);
                }
                if frame.fin {
                    commands::on_message(payload, session, node, faults).await?;
                } else {
                    open = Some(payload);
                }
            }
            OpCode::Continuation => {
                let mut message = open.take().ok_or(CloseCode::ProtocolError)?;
                if message.len() + payload.len() > limit * OVERSIZE {
                    return Err(CloseCode::TooBig);
                }
                message.extend_from_slice(&payload);
                if frame.fin {
                    commands::on_message(message, session, node, faults).await?;
                } else {
                    open = Some(message);
                }
            }
        }
        let given = given.load(Ordering::Relaxed);
        if used == given && open.is_none() {
            return Ok(());
        }
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
struct Counted<'a, 'b> {
    half: &'a mut ReadHalf<'b>,
    early: Bytes,
    given: &'a AtomicU64,
    received: &'a metrics::Counter,
}

impl AsyncRead for Counted<'_, '_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if self.early.is_empty() {
            std::task::ready!(Pin::new(&mut *self.half).poll_read(cx, buffer))?;
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
