//! The wire: what stands in frames and bodies. Pure: no tokio, no I/O.

pub mod model;
