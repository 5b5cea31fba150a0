//! Promises, tested on real services and on the embedded ones.
#![expect(clippy::unwrap_used, reason = "a test that finds nothing where something must be fails")]

mod bus;
mod harness;
mod offline;
mod own_redis;
mod presence;
mod store;
