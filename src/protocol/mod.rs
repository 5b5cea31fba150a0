//! The wire: what stands in frames and bodies. Pure: no tokio, no I/O; knows only ids and time.

pub mod answer;
pub mod code;
pub mod command;
pub mod event;
pub mod model;
pub mod number;
pub mod problem;
pub mod sync;
