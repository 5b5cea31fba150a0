//! What a run costs, read from `/proc`: CPU time, memory and file descriptors of the processes
//! that were named, and of the machine as a whole. Only differences of two samples mean anything.

use std::collections::BTreeMap;
use std::fs;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use serde::Serialize;

/// Ticks of `/proc/PID/stat` and `/proc/stat` in a second: fixed by the kernel's interface.
const TICKS: f64 = 100.0;
/// The unit of the kernel's own figures, on the machines that this is made for.
const PAGE: u64 = 4096;
/// Descriptors a process needs besides the load's sockets.
const SPARE_FDS: usize = 64;

/// `NAME=PID[,PID...]`: a process, or several that count together, each with its descendants (as
/// Postgres with its backends).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub name: String,
    pub pids: Vec<u32>,
}

impl FromStr for Named {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let Some((name, pids)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            bail!("expected NAME=PID or NAME=PID,PID");
        };
        let pids: Result<Vec<u32>, _> = pids.split(',').map(str::parse).collect();
        Ok(Self { name: name.to_owned(), pids: pids.context("a pid is a number")? })
    }
}

/// Seconds of CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    pub user: f64,
    pub system: f64,
}

impl Cpu {
    pub fn total(self) -> f64 {
        self.user + self.system
    }

    /// What was used between `earlier` and this.
    pub fn since(self, earlier: Self) -> Self {
        Self { user: self.user - earlier.user, system: self.system - earlier.system }
    }
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Memory {
    /// Resident; memory that several processes share is counted in each.
    pub rss_bytes: u64,
    /// Resident; shared memory is divided among those who share it.
    pub pss_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu: Cpu,
    pub memory: Memory,
    pub fds: usize,
}

/// Seconds that the machine's CPUs spent, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Machine {
    pub busy: f64,
    pub idle: f64,
    /// Of `busy`: packets between loopback sockets, mostly; not charged to any process.
    pub softirq: f64,
}

impl Machine {
    pub fn since(self, earlier: Self) -> Self {
        Self {
            busy: self.busy - earlier.busy,
            idle: self.idle - earlier.idle,
            softirq: self.softirq - earlier.softirq,
        }
    }
}

/// What the kernel holds, of the whole machine, for both ends of each connection on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kernel {
    pub tcp_sockets: u64,
    /// In sockets' buffers, of whole pages.
    pub tcp_buffer_bytes: u64,
    /// Its own objects: sockets, files, timers and all else.
    pub slab_bytes: u64,
}

pub struct Sample {
    pub usage: BTreeMap<String, Usage>,
    pub machine: Machine,
    pub kernel: Kernel,
}

/// The processes of a run; the generator itself is always among them.
pub struct Watch {
    named: Vec<Named>,
}

pub const SELF: &str = "loadgen";

impl Watch {
    pub fn new(mut named: Vec<Named>) -> anyhow::Result<Self> {
        for Named { name, pids } in &named {
            ensure!(name != SELF, "--pid {name}: that name is the generator's own");
            for pid in pids {
                fs::metadata(format!("/proc/{pid}"))
                    .with_context(|| format!("--pid {name}={pid}: no such process"))?;
            }
        }
        named.push(Named { name: SELF.to_owned(), pids: vec![std::process::id()] });
        Ok(Self { named })
    }

    /// Reads everything; a few milliseconds of work.
    pub fn sample(&self) -> anyhow::Result<Sample> {
        let parents = parents()?;
        let mut usage = BTreeMap::new();
        for Named { name, pids } in &self.named {
            let mut sum = Usage::default();
            for pid in with_descendants(pids, &parents) {
                // One that ended just now is found in its parent's figures.
                let Some(one) = usage_of(pid) else { continue };
                sum.cpu.user += one.cpu.user;
                sum.cpu.system += one.cpu.system;
                sum.memory.rss_bytes += one.memory.rss_bytes;
                sum.memory.pss_bytes += one.memory.pss_bytes;
                sum.fds += one.fds;
            }
            ensure!(sum.memory.rss_bytes > 0, "{name} has ended");
            usage.insert(name.clone(), sum);
        }
        let stat = fs::read_to_string("/proc/stat")?;
        let machine = parse_machine(&stat).context("/proc/stat")?;
        let sockets = fs::read_to_string("/proc/net/sockstat")?;
        let memory = fs::read_to_string("/proc/meminfo")?;
        let kernel =
            parse_kernel(&sockets, &memory).context("/proc/net/sockstat, /proc/meminfo")?;
        Ok(Sample { usage, machine, kernel })
    }

    /// An error says whose limit does not allow for `sockets` more.
    pub fn check_room(&self, sockets: usize) -> anyhow::Result<()> {
        check_fds(SELF, std::process::id(), sockets)?;
        for Named { name, pids } in self.named.iter().filter(|named| named.name == "node") {
            for pid in pids {
                check_fds(name, *pid, sockets)?;
            }
        }
        Ok(())
    }
}

fn check_fds(name: &str, pid: u32, sockets: usize) -> anyhow::Result<()> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let limit = parse_fd_limit(&limits).context("/proc/PID/limits")?;
    ensure!(
        sockets + SPARE_FDS <= limit,
        "{name} may open {limit} files (ulimit -n); {sockets} sockets and {SPARE_FDS} others do \
         not fit"
    );
    Ok(())
}

fn usage_of(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Exact, unlike the counters of `status`; only our own user's and for root all.
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok();
    let memory = match rollup.as_deref().and_then(parse_rollup) {
        Some(memory) => memory,
        None => parse_status(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)?,
    };
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    Some(Usage { cpu: parse_cpu(&stat)?, memory, fds })
}

/// Child to parent, of all processes.
fn parents() -> anyhow::Result<BTreeMap<u32, u32>> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        if let Some(parent) = stat.ok().and_then(|stat| parse_parent(&stat)) {
            parents.insert(pid, parent);
        }
    }
    Ok(parents)
}

fn with_descendants(pids: &[u32], parents: &BTreeMap<u32, u32>) -> Vec<u32> {
    let mut all = pids.to_vec();
    let mut at = 0;
    while let Some(&parent) = all.get(at) {
        let children = parents.iter().filter(|(_, of)| **of == parent).map(|(pid, _)| *pid);
        for child in children {
            if !all.contains(&child) {
                all.push(child);
            }
        }
        at += 1;
    }
    all
}

/// The fields of `/proc/PID/stat` after the name, which may itself hold blanks and brackets.
fn stat_fields(stat: &str) -> Option<Vec<&str>> {
    Some(stat.rsplit_once(')')?.1.split_ascii_whitespace().collect())
}

fn parse_parent(stat: &str) -> Option<u32> {
    stat_fields(stat)?.get(1)?.parse().ok()
}

/// Together with that of ended children, so that nothing vanishes with a backend that ends.
fn parse_cpu(stat: &str) -> Option<Cpu> {
    let fields = stat_fields(stat)?;
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some(Cpu { user: (ticks(11)? + ticks(13)?) / TICKS, system: (ticks(12)? + ticks(14)?) / TICKS })
}

fn parse_rollup(rollup: &str) -> Option<Memory> {
    Some(Memory { rss_bytes: kib(rollup, "Rss:")?, pss_bytes: kib(rollup, "Pss:")? })
}

fn parse_status(status: &str) -> Option<Memory> {
    let rss_bytes = kib(status, "VmRSS:")?;
    Some(Memory { rss_bytes, pss_bytes: rss_bytes })
}

/// The value of a line such as `Rss:   12 kB`, in bytes.
fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn parse_machine(stat: &str) -> Option<Machine> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<f64> = line.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
    let &[user, nice, system, idle, iowait, irq, softirq, steal, ..] = fields.as_slice() else {
        return None;
    };
    Some(Machine {
        busy: (user + nice + system + irq + softirq + steal) / TICKS,
        idle: (idle + iowait) / TICKS,
        softirq: softirq / TICKS,
    })
}

fn parse_kernel(sockets: &str, memory: &str) -> Option<Kernel> {
    let line = sockets.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let value = |key| words.iter().position(|word| *word == key).and_then(|at| words.get(at + 1));
    Some(Kernel {
        tcp_sockets: value("inuse")?.parse().ok()?,
        tcp_buffer_bytes: value("mem")?.parse::<u64>().ok()? * PAGE,
        slab_bytes: kib(memory, "Slab:")?,
    })
}

/// The soft limit; never raised from here.
fn parse_fd_limit(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(usize::MAX),
        limit => limit.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "77 (a (b) c) S 42 77 77 0 -1 4194560 1 2 3 4 1200 34 500 6 20 0 9 0 1 2 3";

    #[test]
    fn cpu_and_parent_are_found_behind_any_name() {
        assert_eq!(parse_parent(STAT), Some(42));
        assert_eq!(parse_cpu(STAT), Some(Cpu { user: 17.0, system: 0.4 }));
        assert_eq!(parse_cpu("77 (x) S 1"), None);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let rollup = "5569d48d6000-7ffc3ba51000 ---p 0 0 0 [rollup]\nRss:    1616 kB\n\
                      Pss:     196 kB\nPss_Dirty:  1 kB\n";
        let memory = parse_rollup(rollup).unwrap();
        assert_eq!((memory.rss_bytes, memory.pss_bytes), (1616 << 10, 196 << 10));
        let status = "VmHWM:\t 9 kB\nVmRSS:\t    8 kB\n";
        assert_eq!(parse_status(status).unwrap().rss_bytes, 8 << 10);
    }

    #[test]
    fn the_machine_is_read() {
        let machine = parse_machine("cpu  100 50 50 700 100 0 200 0 0 0\ncpu0 1 1\n").unwrap();
        assert_eq!(machine, Machine { busy: 4.0, idle: 8.0, softirq: 2.0 });
    }

    #[test]
    fn the_kernels_memory_is_read() {
        let sockets = "sockets: used 9\nTCP: inuse 5 orphan 0 tw 3 alloc 7 mem 2\nUDP: inuse 1\n";
        let kernel = parse_kernel(sockets, "MemTotal: 9 kB\nSlab:    8 kB\n").unwrap();
        assert_eq!(kernel, Kernel { tcp_sockets: 5, tcp_buffer_bytes: 8192, slab_bytes: 8192 });
    }

    #[test]
    fn limits_are_read() {
        let line = "Max open files            1024                 20000                files\n";
        assert_eq!(parse_fd_limit(line), Some(1024));
        assert_eq!(parse_fd_limit("Max open files  unlimited unlimited files"), Some(usize::MAX));
    }

    #[test]
    fn names_and_pids_are_read() {
        let named: Named = "postgres=12,13".parse().unwrap();
        assert_eq!(named, Named { name: "postgres".to_owned(), pids: vec![12, 13] });
        for wrong in ["12", "=12", "node=", "node=x"] {
            assert!(wrong.parse::<Named>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn descendants_count() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 1), (9, 8)]);
        assert_eq!(with_descendants(&[2], &parents), [2, 3]);
        assert_eq!(with_descendants(&[1, 2], &parents), [1, 2, 4, 3]);
    }

    #[test]
    fn this_process_can_be_sampled() {
        let watch = Watch::new(Vec::new()).unwrap();
        let sample = watch.sample().unwrap();
        let usage = sample.usage[SELF];
        assert!(usage.memory.rss_bytes > 100_000 && usage.fds > 2);
        assert!(watch.check_room(1).is_ok());
        assert!(watch.check_room(usize::MAX / 2).is_err());
    }
}
