//! What the node tells about itself: log lines on stderr, the metrics and their upkeep,
//! and traces for a collector, if there is one.
//!
//! `main` calls [`init_logs`] once; `app` keeps [`run_upkeep`] running. Standard output is left to
//! the results of commands.

mod logs;
pub mod metrics;
pub mod traces;

use std::path::Path;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

pub use logs::{LogError, init_logs};
pub use metrics::Metrics;

/// Histograms keep 8 bytes per sample until then: about 1 MB at 25,000 samples a second.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How often it is seen how late a task wakes.
const LAG_INTERVAL: Duration = Duration::from_millis(500);

/// Folds the samples of histograms into their buckets and samples the process, for ever; it may be
/// dropped at any time.
pub async fn run_upkeep(metrics: Metrics, exporter: PrometheusHandle) {
    let mut upkeep = tokio::time::interval(UPKEEP_INTERVAL);
    let mut ticks = tokio::time::interval(LAG_INTERVAL);
    loop {
        tokio::select! {
            _ = upkeep.tick() => {
                exporter.run_upkeep();
                sample_process(&metrics);
            }
            due = ticks.tick() => metrics.runtime.lag.record(due.elapsed()),
        }
    }
}

/// Reads `/proc`, which takes microseconds and no disk, but for many files milliseconds; elsewhere
/// than on Linux the gauges stay 0.
pub fn sample_process(metrics: &Metrics) {
    let process = &metrics.process;
    let resident = kib_of("/proc/self/status", "VmRSS:");
    if let Some(bytes) = resident {
        process.resident.set(bytes as f64);
    }
    let machine = resident.zip(kib_of("/proc/meminfo", "MemTotal:"));
    // No limit is a word, or larger than any machine.
    let cgroup = cgroup_memory(Path::new("/sys/fs/cgroup"))
        .filter(|(_, limit)| machine.is_none_or(|(_, all)| *limit < all));
    if let Some((used, limit)) = cgroup.or(machine) {
        process.memory_used.set(used as f64);
        process.memory_limit.set(limit as f64);
    }
    if let Ok(fds) = std::fs::read_dir("/proc/self/fd") {
        // Less the one that lists them.
        process.open_fds.set(fds.count().saturating_sub(1) as f64);
    }
    if let Some(limit) = getrlimit(Resource::Nofile).current {
        process.fd_limit.set(limit as f64);
    }
}

/// What is always there for the asking: it is taken whenever somebody wants to know.
pub fn sample_runtime(metrics: &Metrics) {
    let now = tokio::runtime::Handle::current().metrics();
    let runtime = &metrics.runtime;
    runtime.workers.set(now.num_workers() as f64);
    runtime.busy.set((0..now.num_workers()).map(|at| now.worker_total_busy_duration(at)).sum());
    runtime.tasks.set(now.num_alive_tasks() as f64);
    runtime.queued.set(now.global_queue_depth() as f64);
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    metrics.process.cpu.set(Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32));
}

/// What is used, sockets' buffers in the kernel with it, and what may be, in bytes. A process that is
/// alone in its container sees its own cgroup here, of the second version or the first.
fn cgroup_memory(root: &Path) -> Option<(u64, u64)> {
    let read = |file: &str| std::fs::read_to_string(root.join(file)).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let (limit, used, stat, cache) = match number("memory.max") {
        Some(limit) => (limit, number("memory.current")?, "memory.stat", "inactive_file "),
        None => (
            number("memory/memory.limit_in_bytes")?,
            number("memory/memory.usage_in_bytes")?,
            "memory/memory.stat",
            "total_inactive_file ",
        ),
    };
    // Pages of files that were read once are let go first.
    let stat = read(stat)?;
    let cache = stat.lines().find_map(|line| line.strip_prefix(cache)?.parse().ok()).unwrap_or(0);
    Some((used.saturating_sub(cache), limit))
}

/// The value of a line such as `VmRSS:  1234 kB`, in bytes.
fn kib_of(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn upkeep_samples_the_process() {
        let (metrics, exporter) = Metrics::new();
        let upkeep = run_upkeep(metrics, exporter.clone());
        let seen = async {
            let value = |name: &str| {
                let output = exporter.render();
                let line = output.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
                line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
            };
            while value("tidings_process_resident_bytes ") < 1e6 {
                tokio::task::yield_now().await;
            }
            let open = value("tidings_process_open_fds ");
            assert!(open >= 3.0 && open <= value("tidings_process_fd_limit "));
            let resident = value("tidings_process_resident_bytes ");
            let used = value("tidings_process_memory_used_bytes ");
            assert!(resident > 0.0 && used > 0.0);
            assert!(used < value("tidings_process_memory_limit_bytes "));
            while value("tidings_runtime_lag_seconds_count ") < 1.0 {
                tokio::task::yield_now().await;
            }
            assert!(value("tidings_process_start_time_seconds ") > 1.7e9);
        };
        let seen = tokio::time::timeout(Duration::from_secs(5), seen);
        tokio::select! {
            () = upkeep => unreachable!("it runs for ever"),
            seen = seen => seen.expect("sampled at once"),
        }
    }

    #[test]
    fn a_cgroup_says_what_counts_against_its_limit() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let file = root.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        assert_eq!(cgroup_memory(root.path()), None);
        write("memory/memory.limit_in_bytes", "4000\n");
        write("memory/memory.usage_in_bytes", "900\n");
        write("memory/memory.stat", "cache 7\ninactive_file 1\ntotal_inactive_file 200\n");
        assert_eq!(cgroup_memory(root.path()), Some((700, 4000)));
        write("memory.max", "max\n");
        assert_eq!(cgroup_memory(root.path()), Some((700, 4000)), "no limit");
        write("memory.max", "5000\n");
        write("memory.current", "1000\n");
        write("memory.stat", "anon 1\ninactive_file 300\nactive_file 100\n");
        assert_eq!(cgroup_memory(root.path()), Some((700, 5000)));
    }

    #[tokio::test]
    async fn tasks_that_wait_for_a_thread_are_seen() {
        let (metrics, exporter) = Metrics::new();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let handle = runtime.handle().clone();
        let (busy, free) = std::sync::mpsc::sync_channel::<()>(1);
        let (begun, begins) = std::sync::mpsc::sync_channel(1);
        runtime.spawn(async move {
            begun.send(()).unwrap();
            free.recv().unwrap_err();
        });
        begins.recv().unwrap();
        for _ in 0..3 {
            runtime.spawn(async {});
        }
        std::thread::spawn(move || {
            let _guard = handle.enter();
            sample_runtime(&metrics);
        })
        .join()
        .unwrap();
        drop(busy);
        runtime.shutdown_background();
        assert!(exporter.render().contains("tidings_runtime_queued_tasks 3\n"));
    }
}
