//! What waits to be written to one socket: a queue bounded in frames and bytes, with its policy
//! for when it is full.
//!
//! Filled by the hub and by answers to commands, without ever waiting; emptied by the session's
//! writer alone. Frames count until they are written, not until they are taken.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use fastwebsockets::OpCode;
use futures_util::task::AtomicWaker;

use crate::clock::Timestamp;
use crate::ids::{ConversationId, Seq};
use crate::protocol::code::CloseCode;
use crate::protocol::event::Event;

/// The most that may wait, counted with what is being written.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub frames: u32,
    pub bytes: u32,
}

/// What a frame is, and so what becomes of it when the queue is full.
#[derive(Clone, Debug, PartialEq)]
pub enum Class {
    /// An answer, a pong or a ping: never dropped; if it does not fit, the session ends.
    Answer,
    /// An answer that shows these stretches of logs, which it proves as events do.
    Page(Box<[Place]>),
    /// Can be read again from the store: replaced by one `resync`, or ends a classic session.
    Stored(Option<Place>),
    /// Typing, presence: the first to go.
    Ephemeral,
}

/// The stretch of a conversation's log that an event covers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    pub conversation_id: ConversationId,
    pub lo: Seq,
    pub hi: Seq,
    /// By the clock of the node that published it.
    pub sent_at: Timestamp,
}

#[derive(Debug)]
pub struct Item {
    pub opcode: OpCode,
    pub bytes: Bytes,
    pub class: Class,
    /// Room that its command took of the session's `in_flight`; given back once it is written.
    pub reserved: u32,
    pub queued: Instant,
}

impl Item {
    pub fn text(bytes: Bytes, class: Class) -> Self {
        Self { opcode: OpCode::Text, bytes, class, reserved: 0, queued: Instant::now() }
    }

    /// What is proven once the client is known to have this frame.
    pub fn places(&self) -> &[Place] {
        match &self.class {
            Class::Stored(Some(place)) => std::slice::from_ref(place),
            Class::Page(places) => places,
            _ => &[],
        }
    }

    pub fn control(opcode: OpCode, bytes: Bytes) -> Self {
        Self { opcode, bytes, class: Class::Answer, reserved: 0, queued: Instant::now() }
    }
}

/// What a push did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Pushed {
    Queued,
    /// An ephemeral event found no room.
    Dropped,
    /// Stored events gave way to a `resync`, this one among them.
    Resync,
    /// A `resync` that waits stands for it.
    Covered,
    /// The session has ended.
    Ended,
    /// No room: the session ends as a slow consumer.
    Overflow,
}

/// What the writer is to write next.
#[derive(Debug)]
pub struct Taken {
    pub items: VecDeque<Item>,
    /// Close with this after the items.
    pub end: Option<CloseCode>,
}

#[derive(Debug)]
pub struct Outbound {
    state: Mutex<State>,
    /// Of the session's task; the writer alone waits here.
    waker: AtomicWaker,
    bounds: Bounds,
    /// A classic client knows no `resync`: it is closed instead.
    classic: bool,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Item>,
    /// Frames and bytes in the queue and in the writer's hands.
    frames: u32,
    bytes: u32,
    /// A `resync` waits in the queue and stands for every stored event until it is taken.
    resync: bool,
    end: Option<CloseCode>,
}

impl State {
    fn fits(&self, item: &Item, bounds: Bounds) -> bool {
        self.frames < bounds.frames && self.bytes.saturating_add(size(item)) <= bounds.bytes
    }

    fn push(&mut self, item: Item) {
        self.frames += 1;
        self.bytes = self.bytes.saturating_add(size(&item));
        self.queue.push_back(item);
    }

    /// Keeps only the queued items for which `keep` holds.
    fn retain(&mut self, keep: impl Fn(&Item) -> bool) {
        let (mut frames, mut bytes) = (0, 0);
        self.queue.retain(|item| {
            let kept = keep(item);
            if !kept {
                frames += 1;
                bytes += size(item);
            }
            kept
        });
        self.frames -= frames;
        self.bytes -= bytes;
    }
}

fn size(item: &Item) -> u32 {
    u32::try_from(item.bytes.len()).unwrap_or(u32::MAX)
}

impl Outbound {
    pub fn new(bounds: Bounds, classic: bool) -> Self {
        Self { state: Mutex::default(), waker: AtomicWaker::new(), bounds, classic }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, item: Item) -> Pushed {
        let mut state = self.state();
        if state.end.is_some() {
            return Pushed::Ended;
        }
        let pushed = self.admit(&mut state, item);
        if pushed == Pushed::Overflow {
            state.end = Some(CloseCode::SlowConsumer);
            state.retain(|_| false);
        }
        // Released before the writer wakes, or it would run into the lock.
        drop(state);
        if matches!(pushed, Pushed::Queued | Pushed::Resync | Pushed::Overflow) {
            self.waker.wake();
        }
        pushed
    }

    fn admit(&self, state: &mut State, item: Item) -> Pushed {
        let stored = matches!(item.class, Class::Stored(_));
        if stored && state.resync {
            return Pushed::Covered;
        }
        // An answer that took its room beforehand has it, however much else is being written: a
        // large one would find none beside a queue full of events.
        if item.reserved > 0 || state.fits(&item, self.bounds) {
            state.push(item);
            return Pushed::Queued;
        }
        if item.class == Class::Ephemeral {
            return Pushed::Dropped;
        }
        state.retain(|queued| queued.class != Class::Ephemeral);
        if state.fits(&item, self.bounds) {
            state.push(item);
            return Pushed::Queued;
        }
        if self.classic {
            return Pushed::Overflow;
        }
        if !state.resync {
            state.retain(|queued| !matches!(queued.class, Class::Stored(_)));
            let resync = Event::Resync { conversations: None }.encode();
            // Not proof of anything: what it stands for is proven by the sync that follows. Goes
            // in whatever the bound says, for the writer may hold all that the bound allows.
            state.push(Item::text(resync, Class::Answer));
            state.resync = true;
        }
        if stored {
            return Pushed::Resync;
        }
        if state.fits(&item, self.bounds) {
            state.push(item);
            return Pushed::Queued;
        }
        Pushed::Overflow
    }

    /// Puts the first frame of a session before those that were queued while it joined.
    pub fn push_first(&self, item: Item) {
        let mut state = self.state();
        state.frames += 1;
        state.bytes = state.bytes.saturating_add(size(&item));
        state.queue.push_front(item);
        drop(state);
        self.waker.wake();
    }

    /// Ends the session once all that waits is written. The first reason stands.
    pub fn end(&self, code: CloseCode) {
        self.state().end.get_or_insert(code);
        self.waker.wake();
    }

    /// Ends a session that never began: what was queued for it is not written.
    pub fn refuse(&self, code: CloseCode) {
        let mut state = self.state();
        state.retain(|_| false);
        state.end.get_or_insert(code);
        drop(state);
        self.waker.wake();
    }

    pub fn ended(&self) -> Option<CloseCode> {
        self.state().end
    }

    /// Waits for something to write. Cancel safe; called by the writer alone.
    pub async fn take(&self) -> Taken {
        self.wait_for(|state| {
            let something = !state.queue.is_empty() || state.end.is_some();
            something.then(|| {
                state.resync = false;
                // Taken whole, so that an idle session keeps no buffer.
                Taken { items: std::mem::take(&mut state.queue), end: state.end }
            })
        })
        .await
    }

    /// Resolves when the session is to end. Cancel safe; called by the writer alone.
    pub async fn ending(&self) {
        self.wait_for(|state| state.end.map(drop)).await;
    }

    async fn wait_for<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        poll_fn(|cx| {
            // Registered before it looks: what changes after the look wakes.
            self.waker.register(cx.waker());
            look(&mut self.state()).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Makes room again for what [`Self::take`] gave; returns what commands had reserved for it.
    pub fn written(&self, items: &VecDeque<Item>) -> u32 {
        let mut state = self.state();
        state.frames -= items.len() as u32;
        state.bytes -= items.iter().map(size).sum::<u32>();
        items.iter().map(|item| item.reserved).sum()
    }

    /// Bytes that wait or are being written.
    pub fn bytes(&self) -> u32 {
        self.state().bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { frames: 4, bytes: 1_000 };

    fn item(class: Class, bytes: usize) -> Item {
        Item::text(vec![b'x'; bytes].into(), class)
    }

    fn stored() -> Item {
        item(Class::Stored(None), 100)
    }

    fn classes(queue: &Outbound) -> Vec<Class> {
        queue.state().queue.iter().map(|item| item.class.clone()).collect()
    }

    #[test]
    fn ephemeral_events_go_first() {
        let queue = Outbound::new(BOUNDS, false);
        for _ in 0..2 {
            assert_eq!(queue.push(item(Class::Ephemeral, 10)), Pushed::Queued);
            assert_eq!(queue.push(stored()), Pushed::Queued);
        }
        assert_eq!(queue.push(item(Class::Ephemeral, 10)), Pushed::Dropped);
        assert_eq!(queue.push(stored()), Pushed::Queued);
        assert_eq!(classes(&queue), vec![Class::Stored(None); 3]);
    }

    #[tokio::test]
    async fn stored_events_give_way_to_one_resync_until_it_is_taken() {
        let queue = Outbound::new(BOUNDS, false);
        assert_eq!(queue.push(item(Class::Answer, 10)), Pushed::Queued);
        for _ in 0..3 {
            assert_eq!(queue.push(stored()), Pushed::Queued);
        }
        assert_eq!(queue.push(stored()), Pushed::Resync);
        assert_eq!(queue.push(stored()), Pushed::Covered);
        assert_eq!(queue.push(item(Class::Answer, 10)), Pushed::Queued);
        let taken = queue.take().await;
        assert_eq!(taken.items.len(), 3, "the two answers and the resync between them");
        assert!(taken.items[1].bytes.starts_with(b"{\"type\":\"resync\""));
        assert_eq!(queue.push(stored()), Pushed::Queued, "after the resync events flow again");
    }

    #[tokio::test]
    async fn the_bound_holds_until_frames_are_written() {
        let queue = Outbound::new(BOUNDS, true);
        assert_eq!(queue.push(item(Class::Stored(None), 900)), Pushed::Queued);
        let taken = queue.take().await;
        assert_eq!(queue.bytes(), 900);
        assert_eq!(queue.push(item(Class::Ephemeral, 101)), Pushed::Dropped);
        queue.written(&taken.items);
        assert_eq!(queue.bytes(), 0);
        assert_eq!(queue.push(item(Class::Ephemeral, 101)), Pushed::Queued);
    }

    #[tokio::test]
    async fn a_resync_finds_room_while_the_writer_holds_all_there_is() {
        let queue = Outbound::new(BOUNDS, false);
        for _ in 0..4 {
            assert_eq!(queue.push(stored()), Pushed::Queued);
        }
        let taken = queue.take().await;
        assert_eq!(queue.push(stored()), Pushed::Resync);
        queue.written(&taken.items);
        assert_eq!(queue.take().await.items.len(), 1);
    }

    #[tokio::test]
    async fn an_answer_has_the_room_it_took_beforehand() {
        let queue = Outbound::new(BOUNDS, true);
        assert_eq!(queue.push(item(Class::Stored(None), 900)), Pushed::Queued);
        let taken = queue.take().await;
        let answer = Item { reserved: 2, ..item(Class::Answer, 500) };
        assert_eq!(queue.push(answer), Pushed::Queued);
        assert_eq!(queue.written(&taken.items), 0);
        assert_eq!(queue.bytes(), 500);
        assert_eq!(queue.push(item(Class::Answer, 501)), Pushed::Overflow);
    }

    #[tokio::test]
    async fn a_classic_session_that_is_too_slow_is_closed() {
        let queue = Outbound::new(BOUNDS, true);
        for _ in 0..4 {
            assert_eq!(queue.push(stored()), Pushed::Queued);
        }
        assert_eq!(queue.push(stored()), Pushed::Overflow);
        let taken = queue.take().await;
        assert_eq!(taken.end, Some(CloseCode::SlowConsumer));
        assert!(taken.items.is_empty());
        assert_eq!(queue.push(stored()), Pushed::Ended, "nothing after the end");
    }

    #[tokio::test]
    async fn the_first_reason_to_end_stands() {
        let queue = Outbound::new(BOUNDS, false);
        queue.end(CloseCode::Restart);
        queue.end(CloseCode::Lost);
        assert_eq!(queue.take().await.end, Some(CloseCode::Restart));
    }

    #[tokio::test]
    async fn hello_stands_before_what_was_queued_while_joining() {
        let queue = Outbound::new(BOUNDS, false);
        assert_eq!(queue.push(stored()), Pushed::Queued);
        queue.push_first(item(Class::Answer, 1));
        assert_eq!(classes(&queue), [Class::Answer, Class::Stored(None)]);
    }
}
