//! What strangers, other nodes and operators send, as bytes: each function takes any and panics if
//! the service does with them what it must not do. Two drivers call them: libFuzzer by
//! `fuzz_targets`, and the tests of the service over the corpus and mutations of it.

mod commands;
mod cursors;
mod envelope;
mod frames;
mod identity;
mod settings;
mod sync;

pub use commands::{bodies, commands};
pub use cursors::cursors;
pub use envelope::envelope;
pub use frames::frames;
pub use identity::identity;
pub use settings::settings;
pub use sync::sync;

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// All of them, by the names of their folders in the corpus.
pub const TARGETS: [(&str, Target); 8] = [
    ("bodies", bodies),
    ("commands", commands),
    ("cursors", cursors),
    ("envelope", envelope),
    ("frames", frames),
    ("identity", identity),
    ("settings", settings),
    ("sync", sync),
];

/// Small numbers out of the bytes; zeros when they are used up.
struct Numbers<'a>(std::slice::Iter<'a, u8>);

impl<'a> Numbers<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self(bytes.iter())
    }

    /// From 0, below `end`.
    fn below(&mut self, end: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or(0)) % end.max(1)
    }
}

/// A future that waits for nothing.
fn now<T>(future: impl Future<Output = T>) -> T {
    futures_util::FutureExt::now_or_never(future).expect("there is nothing to wait for")
}
