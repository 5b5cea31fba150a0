//! Promises, tested on real services and on the embedded ones.

mod harness;
mod store;
