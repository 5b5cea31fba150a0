//! What the generator can do, a file per mode.

pub mod chat;
pub mod day;
pub mod group;
pub mod history;
pub mod idle;
pub mod overload;
pub mod scatter;
pub mod soak;
pub mod storm;

use std::collections::BTreeMap;

/// One more of `what`.
pub fn count(counts: &mut BTreeMap<String, u64>, what: &str) {
    match counts.get_mut(what) {
        Some(count) => *count += 1,
        None => {
            counts.insert(what.to_owned(), 1);
        }
    }
}
