//! Frames in. A reader with its buffers exists only while there is something to read: an idle
//! socket holds neither.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::{Buf, Bytes};
use fastwebsockets::OpCode;

use super::Node;
use super::commands::{self, Faults};
use super::frames::{Frames, Received};
use super::handle::Session;
use super::outbound::Item;
use super::wire::{Incoming, Wire};
use crate::protocol::code::CloseCode;
use crate::telemetry::metrics::Direction;

/// A masked pong that answers a ping of [`super::barrier`].
const PONG_BYTES: usize = 10;
/// Read at once to see whether there is anything; most commands fit.
const FIRST_READ: usize = 1024;

/// Until the client or the session ends; returns why. Nobody else reads.
#[expect(
    clippy::manual_async_fn,
    reason = "an async fn holds its arguments twice, for as long as it runs"
)]
pub fn run<'a, W: Wire>(
    wire: &'a W,
    mut early: Bytes,
    session: &'a Arc<Session>,
    node: &'a Arc<Node>,
) -> impl Future<Output = CloseCode> + Send + 'a {
    async move {
        let mut faults = Faults::default();
        loop {
            if early.is_empty() {
                // Not `readable()`, whose future is five times as large.
                if poll_fn(|cx| wire.poll_readable(cx)).await.is_err() {
                    return CloseCode::Lost;
                }
                match first_bytes(wire) {
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
            if let Err(code) = Box::pin(burst(wire, bytes, session, node, &mut faults)).await {
                return code;
            }
        }
    }
}

/// What is there to read now. Not async, so that its buffer lives on the stack only.
fn first_bytes(wire: &impl Wire) -> io::Result<Bytes> {
    let mut buffer = [0u8; FIRST_READ];
    let read = wire.try_read(&mut buffer)?;
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
async fn burst<W: Wire>(
    wire: &W,
    early: Bytes,
    session: &Arc<Session>,
    node: &Arc<Node>,
    faults: &mut Faults,
) -> Result<(), CloseCode> {
    let given = AtomicU64::new(0);
    let received = node.metrics.sockets.bytes.of(Direction::In);
    let mut frames =
        Frames::new(Incoming(wire), early, node.limits.max_frame_bytes, &given, received);
    loop {
        let frame = frames.next().await?;
        node.metrics.sockets.frames.of(Direction::In).increment(1);
        session.hear();
        match frame {
            Received::Ping(payload) => {
                let pong = Item::control(OpCode::Pong, payload.freeze());
                session.push(pong);
            }
            Received::Pong(payload) => session.on_pong(&payload, &node.write_path.proofs),
            Received::Message(message) => {
                commands::on_message(message, session, node, faults).await?;
            }
            Received::Part => {}
        }
        if frames.is_between_messages() {
            return Ok(());
        }
    }
}
