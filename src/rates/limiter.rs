//! A rate for each of many keys, in bounded memory.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};

/// What may come at once after silence, in seconds of the rate.
const BURST: u32 = 5;
const SHARDS: usize = 16;
/// Keys remembered, over all shards 65,536. A key matters only until its burst is full again, a few
/// seconds after it was last used, so these are the keys of the last seconds.
const KEYS: usize = 4_096;

/// None: the limit is off.
pub struct Limiter<K: Hash + Eq + Clone>(Option<RateLimiter<K, Keys<K>, MonotonicClock>>);

impl<K: Hash + Eq + Clone> Limiter<K> {
    pub fn new(per_second: u32) -> Self {
        Self(NonZeroU32::new(per_second).map(|rate| {
            let burst = rate.saturating_mul(NonZeroU32::MIN.saturating_add(BURST - 1));
            let quota = Quota::per_second(rate).allow_burst(burst);
            RateLimiter::new(quota, Keys::new(KEYS), MonotonicClock)
        }))
    }

    /// Takes one of what the key may; an error tells how long to wait for the next.
    pub fn check(&self, key: &K) -> Result<(), Duration> {
        let Some(limiter) = &self.0 else { return Ok(()) };
        limiter.check_key(key).map_err(|until| until.wait_time_from(limiter.clock().now()))
    }
}

/// The state of each key: when it will have used nothing.
struct Keys<K> {
    shards: [Mutex<Shard<K>>; SHARDS],
    /// Seeded, so that nobody can choose keys that meet in one shard.
    hasher: RandomState,
    /// Of one shard.
    most: usize,
}

struct Shard<K> {
    known: HashMap<K, Nanos>,
    /// Shared by all who come while as many as there is room for are busy.
    others: Option<Nanos>,
}

impl<K> Keys<K> {
    fn new(most: usize) -> Self {
        let shard = |_| Mutex::new(Shard { known: HashMap::new(), others: None });
        Self { shards: std::array::from_fn(shard), hasher: RandomState::new(), most }
    }
}

impl<K: Hash + Eq + Clone> StateStore for Keys<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, judge: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let shard = &self.shards[self.hasher.hash_one(key) as usize % SHARDS];
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = shard.known.get_mut(key) {
            let (outcome, next) = judge(Some(*held))?;
            *held = next;
            return Ok(outcome);
        }
        let (outcome, first) = judge(None)?;
        if shard.known.len() >= self.most {
            // Who has used no more than the newcomer does now is forgotten: it costs one use.
            shard.known.retain(|_, next| *next > first);
        }
        if shard.known.len() < self.most {
            shard.known.insert(key.clone(), first);
            return Ok(outcome);
        }
        let (outcome, next) = judge(shard.others)?;
        shard.others = Some(next);
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;
    use governor::middleware::NoOpMiddleware;

    use super::*;

    type Fake = RateLimiter<u32, Keys<u32>, FakeRelativeClock, NoOpMiddleware<Nanos>>;

    fn limiter(most: usize) -> (Fake, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        let second = NonZeroU32::MIN;
        let burst = second.saturating_add(BURST - 1);
        let quota = Quota::per_second(second).allow_burst(burst);
        (RateLimiter::new(quota, Keys::new(most), clock.clone()), clock)
    }

    fn taken(limiter: &Fake, key: u32) -> usize {
        (0..100).take_while(|_| limiter.check_key(&key).is_ok()).count()
    }

    #[test]
    fn each_key_has_its_burst_and_then_its_rate() {
        let (limiter, clock) = limiter(KEYS);
        assert_eq!((taken(&limiter, 1), taken(&limiter, 2)), (5, 5));
        clock.advance(Duration::from_secs(2));
        assert_eq!((taken(&limiter, 1), taken(&limiter, 2)), (2, 2));
        clock.advance(Duration::from_secs(60));
        assert_eq!(taken(&limiter, 1), 5, "no more than the burst, however long it was silent");
    }

    #[test]
    fn keys_beyond_the_bound_share_one_rate_until_others_are_silent() {
        let (limiter, clock) = limiter(4);
        let busy: usize = (0..1_000).map(|key| taken(&limiter, key)).sum();
        // Each shard has room for four, and one rate for all others.
        assert_eq!(busy, SHARDS * (4 + 1) * 5);
        clock.advance(Duration::from_secs(60));
        let (used, again) = (taken(&limiter, 5_000), taken(&limiter, 5_000));
        assert_eq!((used, again), (5, 0), "there is room again");
        let state = limiter.into_state_store();
        let held = |shard: &Mutex<Shard<u32>>| shard.lock().unwrap().known.len();
        assert!(state.shards.iter().all(|shard| held(shard) <= 4));
    }
}
