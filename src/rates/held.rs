//! How many of something each address holds.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

pub struct Held {
    /// Of one address; 0 is without a limit.
    most: u32,
    /// None is zero.
    counts: Mutex<HashMap<IpAddr, u32>>,
}

impl Held {
    pub fn new(most: u32) -> Self {
        Self { most, counts: Mutex::default() }
    }

    /// One more, which [`Self::give_back`] takes back; false if there is none to be had.
    #[must_use]
    pub fn take(&self, source: Option<IpAddr>) -> bool {
        let Some(source) = source.filter(|_| self.most > 0) else { return true };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let held = counts.entry(source).or_insert(0);
        let free = *held < self.most;
        *held += u32::from(free);
        free
    }

    pub fn give_back(&self, source: Option<IpAddr>) {
        let Some(source) = source else { return };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut held) = counts.entry(source) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_address_holds_is_counted_until_it_goes() {
        let held = Held::new(2);
        let source = Some("203.0.113.7".parse().unwrap());
        assert!(held.take(source) && held.take(source));
        assert!(!held.take(source));
        assert!(held.take(Some("203.0.113.8".parse().unwrap())));
        held.give_back(source);
        assert!(held.take(source));
        held.give_back(source);
        held.give_back(source);
        assert_eq!(held.counts.lock().unwrap().len(), 1, "nobody is remembered who holds none");
    }

    #[test]
    fn nothing_is_limited_that_is_off_or_has_no_source() {
        let (off, one) = (Held::new(0), Held::new(1));
        for _ in 0..1_000 {
            assert!(off.take(Some("203.0.113.7".parse().unwrap())));
            assert!(one.take(None));
        }
    }
}
