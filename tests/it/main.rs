//! Promises, tested on real services and on the embedded ones.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

mod bus;
mod check;
mod contract;
mod corpus;
mod delivery;
mod edits;
mod faults;
mod flows;
mod fuzz;
mod handed;
mod history;
mod identity;
mod kafka_tls;
mod leaks;
mod lifecycle;
mod limits;
mod listener_tls;
mod members;
mod messaging;
mod metrics;
mod model;
mod mute;
mod offline;
mod once;
mod online;
mod own_redis;
mod pooler;
mod postgres_tls;
mod presence;
mod protocol;
mod rates;
mod receipts;
mod redises;
mod replica;
mod requests;
mod restore;
mod resume;
mod rights;
mod sim;
mod slow;
mod startup;
mod store;
mod topologies;
mod traces;
mod typing;
mod verify;
mod watch;
