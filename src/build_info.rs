//! Which build this is; see build.rs.

pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit it was built from, with `+changes` if the sources were not quite those; `unknown` in a
/// debug build, and where there was neither a repository nor `TIDINGS_COMMIT`.
pub const COMMIT: &str = env!("TIDINGS_BUILD_COMMIT");

/// Both, as `tidings --version` tells them: `0.1.0 (ac0a87a9d8f1)`.
pub const VERSION_AND_COMMIT: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("TIDINGS_BUILD_COMMIT"), ")");
