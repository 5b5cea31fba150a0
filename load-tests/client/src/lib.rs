//! A reference client of Tidings, written from the wire contract: it shares no code with the server.
//!
//! | module | is |
//! |---|---|
//! | `frame`, `socket` | a WebSocket on a bare TCP stream, lean enough for ten thousand of them |
//! | `rest`, `target`, `wire` | requests, addresses, what stands in frames |
//! | `key` | tokens that users prove themselves with |
//! | `copy` | what a device holds of its conversations, and the rules by which that grows. Pure |
//! | `device` | a device's life: connects, resumes, acknowledges, sends once, comes back |
//! | `history` | what devices did and saw, as JSON lines for a checker |
//! | `dice` | chance from a seed |

pub mod copy;
pub mod device;
pub mod dice;
pub mod frame;
pub mod history;
pub mod key;
pub mod rest;
pub mod socket;
pub mod target;
pub mod wire;
