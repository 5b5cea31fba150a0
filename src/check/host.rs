//! What a node needs of its machine, and settings that are legal and unwise.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{StatFs, statfs};
use rustix::process::{Resource, getrlimit};

use crate::config::{AuthMode, Config, IpNet, SPARE_FDS};
use crate::finding::Findings;

/// Below this a busy day may fill the disk.
const ROOM_SPARE: u64 = 1 << 30;
const ROOM_LEAST: u64 = 64 << 20;
/// Fewer sockets than this are more likely a forgotten limit than a wish.
const FEW_SOCKETS: usize = 4_000;
/// Where a file lock or a synced write does not mean what SQLite takes it for: NFS, SMB, CIFS.
const FOREIGN: [u32; 4] = [0x6969, 0x517B, 0xFF53_4D42, 0xFE53_4D42];
/// What is gone with the container or the machine's next start: overlay, tmpfs, ramfs.
const PASSING: [(u32, &str); 3] =
    [(0x794C_7630, "overlay"), (0x0102_1994, "tmpfs"), (0x8584_58F6, "ramfs")];

pub fn check(config: &Config, found: &mut Findings) {
    open_files(config, found);
    port("SERVER_PORT", config.http.addr, found);
    match config.http.admin_addr {
        Some(addr) => port("ADMIN_ADDR", addr, found),
        None if matches!(config.auth.mode, AuthMode::Dev) => {}
        None => {
            let detail = "not set: there are no metrics, and nobody can be cut off";
            found.warning("ADMIN_ADDR", detail, "an address that only operators reach");
        }
    }
    proxies(config, found);
}

fn open_files(config: &Config, found: &mut Findings) {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let sockets = config.ws.max_connections;
    let shown = if limit == u64::MAX { "unlimited".into() } else { limit.to_string() };
    let detail = format!("{sockets} sockets (MAX_CONNECTIONS) of {shown} open files");
    let fix = "ulimit -n (LimitNOFILE= in systemd, --ulimit nofile= in Docker) to the sockets and \
               512 more, or a lower MAX_CONNECTIONS";
    if sockets as u64 >= limit {
        found.problem("open files", detail, fix);
    } else if (sockets as u64).saturating_add(SPARE_FDS) > limit {
        let detail = format!("{detail} leaves less than {SPARE_FDS} for all else");
        found.warning("open files", detail, fix);
    } else if sockets < FEW_SOCKETS {
        found.warning("open files", format!("{detail}: that is few"), fix);
    } else {
        found.ok("open files", detail);
    }
}

fn port(name: &'static str, addr: SocketAddr, found: &mut Findings) {
    match TcpListener::bind(addr) {
        Ok(_) => found.ok(name, format!("{addr} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let fix = "fine if that is this node, already running; else stop what listens there";
            found.warning(name, format!("{addr} is taken"), fix);
        }
        Err(error) => {
            let fix =
                "an address of this machine, and a port above 1023 or the right to lower ones";
            found.problem(name, format!("{addr} cannot be listened on: {error}"), fix);
        }
    }
}

/// Who may say in another's name what his address is, and with `AUTH_MODE=gateway` who he is.
fn proxies(config: &Config, found: &mut Findings) {
    let proxies = &config.rates.trusted_proxies;
    let gateway = matches!(config.auth.mode, AuthMode::Gateway { .. });
    if proxies.is_empty() {
        if !config.http.addr.ip().is_loopback() {
            let detail = "empty: behind a proxy, all clients share its address and its rates";
            found.warning("TRUSTED_PROXIES", detail, "the proxy's address, if there is one");
        }
        return;
    }
    let public =
        [IpAddr::from([8, 8, 8, 8]), IpAddr::from([0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 1])];
    let everyone = |net: &&IpNet| public.iter().any(|addr| net.contains(*addr));
    let believed = if gateway { "who the user is" } else { "what the client's address is" };
    match proxies.iter().find(everyone) {
        Some(net) => {
            let detail =
                format!("{net:?} holds public addresses: strangers are believed {believed}");
            let fix = "the gateway's or proxies' own addresses";
            match gateway {
                true => found.problem("TRUSTED_PROXIES", detail, fix),
                false => found.warning("TRUSTED_PROXIES", detail, fix),
            }
        }
        None => found.ok("TRUSTED_PROXIES", format!("{proxies:?} are believed {believed}")),
    }
}

/// Whether the folder can be used; or, if it is not there yet, made.
pub fn check_folder(folder: &Path, found: &mut Findings) -> bool {
    let fix = "give this user a folder that it can write (DATA_DIR)";
    if !folder.exists() {
        let mut above = folder.ancestors().skip(1).find(|path| path.exists());
        if above.is_none_or(|path| path.as_os_str().is_empty()) {
            above = Some(Path::new("."));
        }
        let above = above.unwrap_or(Path::new("."));
        return match try_write(above) {
            Ok(()) => {
                found.ok("folder", format!("{} is made at the first start", folder.display()));
                room(above, found);
                true
            }
            Err(error) => {
                let detail = format!("{} cannot be made: {error}", folder.display());
                found.problem("folder", detail, fix);
                false
            }
        };
    }
    if let Err(error) = try_write(folder) {
        found.problem("folder", format!("{} cannot be written: {error}", folder.display()), fix);
        return false;
    }
    found.ok("folder", format!("{} can be written", folder.display()));
    room(folder, found);
    true
}

/// Writes a file, has it on the disk, and removes it.
fn try_write(folder: &Path) -> std::io::Result<()> {
    let path = folder.join(format!(".tidings-check-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    let written = file.write_all(b"tidings check").and_then(|()| file.sync_all());
    std::fs::remove_file(&path)?;
    written
}

fn room(folder: &Path, found: &mut Findings) {
    let Ok(StatFs { f_type, f_bsize, f_bavail, .. }) = statfs(folder) else { return };
    let left = f_bavail.saturating_mul(u64::try_from(f_bsize).unwrap_or(1));
    let detail = format!("{} MiB are left", left >> 20);
    match left {
        0..ROOM_LEAST => found.problem("room", detail, "free some: a full disk takes no messages"),
        ROOM_LEAST..ROOM_SPARE => found.warning("room", detail, "free some, or a larger disk"),
        _ => found.ok("room", detail),
    }
    let kind = f_type as u32;
    if FOREIGN.contains(&kind) {
        let detail = "a network's file system: locks and synced writes may not hold";
        found.problem("disk", detail, "a local disk, or a block device");
    } else if let Some((_, name)) = PASSING.iter().find(|(passing, _)| *passing == kind) {
        let detail = format!("{name}: gone with the container or the machine's next start");
        found.warning("disk", detail, "a volume");
    }
}
