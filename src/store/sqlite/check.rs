//! What a node needs of its database file, looked at one by one: for `tidings check`.

use std::os::unix::fs::PermissionsExt;

use super::{MIGRATOR, Schema, Sqlite};
use crate::config::SqliteConfig;
use crate::finding::Findings;

/// The folder has been looked at by the caller. A file that is not there yet stays so.
pub async fn check(config: &SqliteConfig, migrates: bool, found: &mut Findings) {
    let path = config.path.display();
    let Ok(metadata) = std::fs::metadata(&config.path) else {
        match migrates {
            true => found.ok("file", format!("{path} is made at the first start")),
            false => found.problem(
                "file",
                format!("{path} is not there"),
                "run `tidings migrate`, or leave MIGRATE_ON_START as it is",
            ),
        }
        return;
    };
    match metadata.permissions().mode() & 0o077 {
        0 => found.ok("file", format!("{path}, {} KiB", metadata.len() >> 10)),
        mode => found.warning(
            "file",
            format!("{path} can be used by others (mode {mode:03o} beyond its owner's)"),
            format!("chmod 600 {path}"),
        ),
    }
    let store = match Sqlite::connect(config).await {
        Ok(store) => store,
        Err(error) => {
            let fix = "it must be a database of Tidings that this user can write; keep a copy, then restore a backup";
            return found.problem("open", error.to_string(), fix);
        }
    };
    match store.schema().await {
        Ok(Schema::Current) => {
            let known = MIGRATOR.iter().count();
            found.ok("schema", format!("the {known} migrations of this release"));
        }
        Ok(Schema::Ahead) => {
            found.ok("schema", "of a later release, which this one can work with");
        }
        Ok(Schema::Behind { missing }) if migrates => {
            let detail = format!("{missing} migrations are missing; the node lays them");
            found.ok("schema", detail);
        }
        Ok(Schema::Behind { missing }) => found.problem(
            "schema",
            format!("{missing} migrations are missing"),
            "run `tidings migrate`, or set MIGRATE_ON_START=true",
        ),
        Err(error) => found.problem("schema", error.to_string(), "restore a backup"),
    }
    match store.lock_single_node().await {
        Ok(true) => found.ok("alone", "no other node works on it"),
        Ok(false) => found.warning(
            "alone",
            "a node works on it, and a second one does not start",
            "stop that one first, or give this one another DATA_DIR",
        ),
        Err(error) => found.problem("alone", error.to_string(), "let this user write the folder"),
    }
    store.close().await;
}
