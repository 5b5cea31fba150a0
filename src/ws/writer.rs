//! Frames out: all that waits goes out in as few system calls as the kernel takes.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::time::Duration;

use fastwebsockets::{Frame, OpCode, Payload};
use tokio::time::Instant;

use super::Node;
use super::handle::Session;
use super::outbound::{Class, Item};
use super::wire::Wire;
use crate::clock::Timestamp;
use crate::protocol::code::CloseCode;
use crate::sabotage::{self, Mutation};
use crate::telemetry::metrics::{Direction, Stage};

/// Frames in one system call; two slices each, far below the kernel's limit of 1,024.
const FRAMES_PER_WRITE: usize = 64;
/// The longest head of a server's frame.
const MAX_HEAD: usize = 10;
/// A socket that takes not one byte for so long is given up.
const STALL: Duration = Duration::from_secs(30);
/// How long what waits may take to be written once the session is to end.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// Until the queue ends or the socket does. Nobody else writes.
pub async fn run<W: Wire>(wire: &W, session: &Session, node: &Node) {
    loop {
        let mut taken = session.queue.take().await;
        let asks = session.ask_for_proof(&mut taken.items);
        if sabotage::is_on(Mutation::ProveAtWrite)
            && let Some(ping) = taken.items.back().filter(|_| asks)
        {
            session.on_pong(&ping.bytes, &node.write_path.proofs);
        }
        let mut progress = Progress::default();
        let mut written = progress.advance(wire, &taken.items);
        if matches!(written, Ok(false)) {
            // Boxed: an idle session is not to hold what a full socket needs.
            let rest = write_rest(wire, &taken.items, &mut progress, session);
            written = Box::pin(rest).await.map(|()| true);
        }
        if written.is_err() {
            session.queue.end(CloseCode::Lost);
            return;
        }
        progress.count(node);
        if asks {
            taken.items.pop_back();
        }
        measure(&taken.items, node);
        session.release(session.queue.written(&taken.items));
        let Some(code) = taken.end else { continue };
        if code != CloseCode::Lost {
            Box::pin(close(wire, code, session, node)).await;
        }
        return;
    }
}

/// As the client makes room.
async fn write_rest<W: Wire>(
    wire: &W,
    items: &VecDeque<Item>,
    progress: &mut Progress,
    session: &Session,
) -> io::Result<()> {
    let mut deadline = None;
    while !progress.advance(wire, items)? {
        let patience = deadline.unwrap_or_else(|| Instant::now() + STALL);
        tokio::select! {
            ready = tokio::time::timeout_at(patience, poll_fn(|cx| wire.poll_writable(cx))) => ready??,
            // Who does not read cannot hold up the end.
            () = session.queue.ending(), if deadline.is_none() => {
                deadline = Some(Instant::now() + LAST_WRITES);
            }
        }
    }
    Ok(())
}

/// How far a batch of frames is written.
#[derive(Default)]
struct Progress {
    item: usize,
    /// Bytes of that item, head and payload, which are out already.
    offset: usize,
    written: u64,
}

impl Progress {
    /// As far as the kernel takes it; true if all is out.
    fn advance(&mut self, wire: &impl Wire, items: &VecDeque<Item>) -> io::Result<bool> {
        while self.item < items.len() {
            match self.try_write(wire, items) {
                Ok(()) => {}
                // The try has cleared the readiness.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        match wire.try_flush() {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn count(&self, node: &Node) {
        let sockets = &node.metrics.sockets;
        sockets.frames.of(Direction::Out).increment(self.item as u64);
        sockets.bytes.of(Direction::Out).increment(self.written);
    }

    /// One system call. Not async, so that its arrays live on the stack only.
    fn try_write(&mut self, wire: &impl Wire, items: &VecDeque<Item>) -> io::Result<()> {
        let mut heads = [[0u8; MAX_HEAD]; FRAMES_PER_WRITE];
        let mut sizes = [0usize; FRAMES_PER_WRITE];
        let frames = items.range(self.item..).take(FRAMES_PER_WRITE);
        for ((item, head), size) in frames.clone().zip(&mut heads).zip(&mut sizes) {
            let payload = Payload::Borrowed(&item.bytes);
            *size = Frame::new(true, item.opcode, None, payload).fmt_head(head);
        }
        let mut slices = [IoSlice::new(&[]); FRAMES_PER_WRITE * 2];
        let mut filled = 0;
        let mut skip = self.offset;
        for ((item, head), size) in frames.zip(&heads).zip(sizes) {
            for part in [&head[..size], &item.bytes[..]] {
                let skipped = skip.min(part.len());
                skip -= skipped;
                slices[filled] = IoSlice::new(&part[skipped..]);
                filled += 1;
            }
        }
        let mut written = wire.try_write(&slices[..filled])?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written += written as u64;
        written += self.offset;
        for size in sizes.into_iter().take(filled / 2) {
            let whole = size + items[self.item].bytes.len();
            if written < whole {
                break;
            }
            written -= whole;
            self.item += 1;
        }
        self.offset = written;
        Ok(())
    }
}

fn measure(items: &VecDeque<Item>, node: &Node) {
    let written = node.metrics.stages.stage.of(Stage::QueuedWritten);
    let now = Timestamp::now();
    for item in items {
        let Class::Stored(place) = item.class else { continue };
        written.record(item.queued.elapsed());
        let Some(place) = place else { continue };
        node.metrics.stages.end_to_end.record(now.since(place.sent_at));
    }
}

/// Says goodbye, and lets the client read it: a socket closed with unread input is reset, and the
/// reset may overtake the close frame, so the reader drains it until the client ends, or a moment.
async fn close<W: Wire>(wire: &W, code: CloseCode, session: &Session, node: &Node) {
    let mut payload = code.number().to_be_bytes().to_vec();
    payload.extend_from_slice(code.reason().as_bytes());
    let frame = VecDeque::from([Item::control(OpCode::Close, payload.into())]);
    let mut progress = Progress::default();
    if write_rest(wire, &frame, &mut progress, session).await.is_ok() {
        progress.count(node);
        wire.finish();
        let drained = async {
            let mut scrap = [0u8; 256];
            loop {
                if poll_fn(|cx| wire.poll_readable(cx)).await.is_err() {
                    return;
                }
                match wire.try_read(&mut scrap) {
                    Ok(0) => return,
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                    _ => {}
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), drained).await;
    }
}
