//! When users of a single node were last seen, beyond its restart: a small file beside its data.
//!
//! Written whole each minute, and at the stop: a line per user, an id and milliseconds since the
//! epoch. Who is online then is written as seen then, so that a crash costs a minute of truth.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::clock::Timestamp;
use crate::ids::UserId;

/// Who was where is nobody else's business.
const MODE: u32 = 0o600;

/// What the file says; nothing if there is none. Lines that are none of ours are passed over.
pub fn read(path: &Path) -> io::Result<Vec<(UserId, Timestamp)>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut seen = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        let entry = line.split_once(' ').and_then(|(user, at)| {
            Some((user.parse().ok()?, Timestamp::from_millis(at.parse().ok()?)))
        });
        seen.extend(entry);
    }
    Ok(seen)
}

/// Replaces the file in one step, so that a crash leaves the old one.
pub fn write(path: &Path, seen: &[(UserId, Timestamp)]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let new = path.with_extension("new");
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&new)?;
    file.set_permissions(Permissions::from_mode(MODE))?;
    let mut out = BufWriter::new(file);
    for (user, at) in seen {
        writeln!(out, "{user} {}", at.millis())?;
    }
    out.into_inner()?.sync_all()?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_it_was_written_and_foreign_lines_are_passed_over() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("data").join("last_seen");
        assert_eq!(read(&path).unwrap(), []);
        let user = |n| UserId(uuid::Uuid::from_u128(n));
        let seen = [(user(1), Timestamp::from_millis(5)), (user(2), Timestamp::from_millis(-7))];
        write(&path, &seen).unwrap();
        write(&path, &seen[..1]).unwrap();
        assert_eq!(read(&path).unwrap(), seen[..1]);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        let mut torn = fs::read(&path).unwrap();
        torn.extend(b"nobody 7\n\n00000000-0000-0000-0000-0000000000");
        fs::write(&path, torn).unwrap();
        assert_eq!(read(&path).unwrap(), seen[..1]);
    }
}
