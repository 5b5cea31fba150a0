//! Promises, tested on real services and on the embedded ones.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

mod bus;
mod delivery;
mod edits;
mod faults;
mod handed;
mod identity;
mod lifecycle;
mod limits;
mod members;
mod messaging;
mod metrics;
mod offline;
mod once;
mod online;
mod own_redis;
mod presence;
mod protocol;
mod receipts;
mod requests;
mod resume;
mod slow;
mod startup;
mod store;
mod verify;
