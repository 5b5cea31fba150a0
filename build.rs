//! The migrations are compiled in: a new file alone is reason enough to build again.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
