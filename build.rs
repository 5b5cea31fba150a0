//! What the compiler cannot see: the migrations, and the commit that a release is built from.
//!
//! The same sources give the same binary. `TIDINGS_COMMIT` names the commit where there is no
//! repository (an image's build); else a release asks git, and a build outside of one does without.

#![expect(clippy::disallowed_methods, reason = "cargo tells a build script everything that way")]

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    // Compiled in, so a new file alone is reason enough to build again.
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-env-changed=TIDINGS_COMMIT");
    let commit = commit().unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=TIDINGS_BUILD_COMMIT={commit}");
}

fn commit() -> Option<String> {
    if let Ok(given) = env::var("TIDINGS_COMMIT") {
        return Some(given.trim().to_owned()).filter(|given| !given.is_empty());
    }
    // A debug build would be made anew after every commit.
    if env::var("PROFILE").as_deref() != Ok("release") {
        return None;
    }
    // Not the repository of somebody who has this source among his own.
    let root = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&root) != Path::new(&env::var_os("CARGO_MANIFEST_DIR")?) {
        return None;
    }
    let head = git(&["rev-parse", "--short=12", "HEAD"])?;
    // Moves with every commit, whichever branch it is on.
    println!("cargo:rerun-if-changed={}", git(&["rev-parse", "--git-path", "logs/HEAD"])?);
    let built_from = ["src", "Cargo.toml", "Cargo.lock"];
    for path in built_from {
        println!("cargo:rerun-if-changed={path}");
    }
    let changed = git(&[&["status", "--porcelain", "--"], &built_from[..]].concat())?;
    Some(if changed.is_empty() { head } else { format!("{head}+changes") })
}

/// What git says; None if there is no git, no repository, or no such thing in it.
fn git(args: &[&str]) -> Option<String> {
    let said = Command::new("git").args(args).output().ok().filter(|said| said.status.success())?;
    Some(String::from_utf8(said.stdout).ok()?.trim().to_owned())
}
