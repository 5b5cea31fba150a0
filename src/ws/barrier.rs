//! What was written to one socket and is not proven yet.
//!
//! Behind events the writer sends a ping that carries a number; its pong, which every WebSocket
//! stack sends, proves all that was written before it. One ping is under way at a time: what is
//! written meanwhile waits for the next, which goes out when the pong arrives. An idle session
//! holds nothing here.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::outbound::Place;

/// Places of each half. A client that never answers costs no more; what is beyond is found again
/// by Reconcile.
const MAX_PLACES: usize = 512;
/// Conversations among which a new place looks for its neighbour.
const NEIGHBOURS: usize = 8;

#[derive(Debug, Default)]
pub struct Barrier {
    /// The number of the last ping; never that of an earlier one of this session.
    last: AtomicU32,
    state: Mutex<Option<Box<State>>>,
}

#[derive(Debug)]
struct State {
    number: u32,
    asked_at: Instant,
    /// Written before the ping under way.
    asked: Vec<Place>,
    /// Written after it.
    later: Vec<Place>,
}

/// What a pong proves.
#[derive(Debug, Default)]
pub struct Proven {
    pub places: Vec<Place>,
    /// From the write to the pong.
    pub asked_at: Option<Instant>,
    /// The ping to send next.
    pub next: Option<u32>,
}

impl Barrier {
    fn lock(&self) -> MutexGuard<'_, Option<Box<State>>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> u32 {
        self.last.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// These are about to be written. Returns the number of the ping to write behind them, if none
    /// is under way.
    pub fn enter(&self, places: impl IntoIterator<Item = Place>) -> Option<u32> {
        let mut places = places.into_iter().peekable();
        places.peek()?;
        let mut state = self.lock();
        if let Some(state) = state.as_mut() {
            places.for_each(|place| add(&mut state.later, place));
            return None;
        }
        let mut asked = Vec::new();
        places.for_each(|place| add(&mut asked, place));
        let number = self.next();
        *state =
            Some(Box::new(State { number, asked_at: Instant::now(), asked, later: Vec::new() }));
        Some(number)
    }

    /// A pong that is not the answer to the ping under way proves nothing.
    pub fn pong(&self, number: u32) -> Proven {
        let mut held = self.lock();
        let Some(state) = held.as_mut().filter(|state| state.number == number) else {
            return Proven::default();
        };
        let later = std::mem::take(&mut state.later);
        let places = std::mem::replace(&mut state.asked, later);
        let asked_at = std::mem::replace(&mut state.asked_at, Instant::now());
        let mut next = None;
        if state.asked.is_empty() {
            *held = None;
        } else {
            state.number = self.next();
            next = Some(state.number);
        }
        Proven { places, asked_at: Some(asked_at), next }
    }

    /// Whether something was written that is not proven.
    pub fn is_open(&self) -> bool {
        self.lock().is_some()
    }
}

/// Joins a place to its neighbour in the log, or keeps it beside.
fn add(places: &mut Vec<Place>, new: Place) {
    let before = places.iter_mut().rev().take(NEIGHBOURS);
    let mut before = before.filter(|place| place.conversation_id == new.conversation_id);
    if let Some(place) = before.next()
        && place.hi + 1 == new.lo
    {
        place.hi = new.hi;
    } else if places.len() < MAX_PLACES {
        places.push(new);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::clock::Timestamp;
    use crate::ids::ConversationId;

    fn place(conversation: u128, lo: i64, hi: i64) -> Place {
        let conversation_id = ConversationId(Uuid::from_u128(conversation));
        Place { conversation_id, lo, hi, sent_at: Timestamp::from_millis(0) }
    }

    fn seqs(places: &[Place]) -> Vec<(i64, i64)> {
        places.iter().map(|place| (place.lo, place.hi)).collect()
    }

    #[test]
    fn a_pong_proves_what_was_written_before_its_ping_and_nothing_after() {
        let barrier = Barrier::default();
        assert_eq!(barrier.enter([]), None);
        let first = barrier.enter([place(1, 2, 2), place(1, 3, 3), place(2, 9, 9)]).unwrap();
        assert_eq!(barrier.enter([place(1, 4, 4)]), None, "one ping is under way");
        assert_eq!(barrier.enter([place(1, 5, 5), place(1, 7, 7)]), None);
        assert!(barrier.pong(first.wrapping_add(1)).places.is_empty(), "another number");
        let proven = barrier.pong(first);
        assert_eq!(seqs(&proven.places), [(2, 3), (9, 9)]);
        let second = proven.next.unwrap();
        assert_ne!(first, second);
        assert!(barrier.pong(first).places.is_empty(), "the same pong again");
        let proven = barrier.pong(second);
        assert_eq!(seqs(&proven.places), [(4, 5), (7, 7)]);
        assert_eq!(proven.next, None);
        assert!(!barrier.is_open());
    }

    #[test]
    fn a_client_that_never_answers_costs_a_bounded_amount() {
        let barrier = Barrier::default();
        for n in 0..10_000 {
            barrier.enter([place(n, 1, 1)]);
        }
        let state = barrier.lock();
        let state = state.as_ref().unwrap();
        assert_eq!((state.asked.len(), state.later.len()), (1, MAX_PLACES));
    }
}
