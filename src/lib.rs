//! Tidings.

pub mod clock;
pub mod config;
pub mod ids;
pub mod protocol;
pub mod store;
