//! What others may ask about the connections.

use std::sync::atomic::AtomicU64;

#[derive(Default)]
pub(super) struct Gauges {
    /// Of all connections there were, also to masters that are none any more: a counter never falls.
    pub reconnects: AtomicU64,
    pub undecodable: AtomicU64,
}
