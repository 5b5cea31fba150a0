//! Tidings: a horizontally sharded real-time messaging service.
//!
//! A message's way: `http` or `ws` takes it in, `write_path` commits it to the `store`, answers,
//! and dispatches it: by the `bus` to members who are online on any node, whose `ws` hub delivers
//! it, or to the `offline` sink for those who are not, as `presence` tells. What was delivered is
//! proven back into the `store`. `app` builds the parts and decides their order of death.
//!
//! Who was away reads by `resume` what he missed.
//!
//! Direction: `main -> app -> http -> ws -> {write_path, resume} -> {store, bus, presence, offline}`,
//! `{bus, presence, auth} -> shards` (where Redis is), and all `-> {protocol, ids, clock, config, finding, shutdown,
//! telemetry, sabotage}`; never back, never sideways.

// Whether a connection's future may go from thread to thread is asked of all futures within it.
#![recursion_limit = "256"]

pub mod app;
pub mod auth;
pub mod build_info;
pub mod bus;
pub mod check;
pub mod clock;
pub mod config;
pub mod finding;
pub mod health;
pub mod http;
pub mod ids;
pub mod offline;
pub mod presence;
pub mod protocol;
pub mod rates;
pub mod resume;
pub mod sabotage;
pub mod shards;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod typing;
pub mod verify;
pub mod write_path;
pub mod ws;
