//! Promises, tested on real services and on the embedded ones.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

mod bus;
mod contract;
mod corpus;
mod delivery;
mod edits;
mod faults;
mod fuzz;
mod handed;
mod history;
mod identity;
mod leaks;
mod lifecycle;
mod limits;
mod members;
mod messaging;
mod metrics;
mod model;
mod mute;
mod offline;
mod once;
mod online;
mod own_redis;
mod presence;
mod protocol;
mod rates;
mod receipts;
mod redises;
mod requests;
mod resume;
mod rights;
mod sim;
mod slow;
mod startup;
mod store;
mod topologies;
mod typing;
mod verify;
mod watch;
