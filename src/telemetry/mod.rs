//! What the node tells about itself: log lines on stderr, the metrics and their upkeep,
//! and traces for a collector, if there is one.
//!
//! `main` calls [`init_logs`] once; `app` keeps [`run_upkeep`] running. Standard output is left to
//! the results of commands.

mod logs;
pub mod metrics;
pub mod traces;

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
    if let Some(bytes) = kib_of("/proc/self/status", "VmRSS:") {
        process.resident.set(bytes as f64);
    }
    if let Some(bytes) = memory_limit() {
        process.memory_limit.set(bytes as f64);
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

/// In bytes. A process that is alone in its container sees its own cgroup here.
fn memory_limit() -> Option<u64> {
    let files =
        ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"].into_iter();
    // No limit is a word, or larger than any machine.
    let limit =
        files.filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok()).min();
    limit.into_iter().chain(kib_of("/proc/meminfo", "MemTotal:")).min()
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
            assert!(resident < value("tidings_process_memory_limit_bytes "));
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
}
