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

pub use logs::{LogError, init_logs};
pub use metrics::Metrics;

/// Histograms keep 8 bytes per sample until then: about 1 MB at 25,000 samples a second.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Folds the samples of histograms into their buckets and samples the process, for ever; it may be
/// dropped at any time.
pub async fn run_upkeep(metrics: Metrics, exporter: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        exporter.run_upkeep();
        sample_process(&metrics);
    }
}

/// Reads `/proc`, which takes microseconds and no disk; elsewhere than on Linux the gauges stay 0.
pub fn sample_process(metrics: &Metrics) {
    if let Some(bytes) = resident_bytes() {
        metrics.process.resident.set(bytes as f64);
    }
    if let Ok(fds) = std::fs::read_dir("/proc/self/fd") {
        // Less the one that lists them.
        metrics.process.open_fds.set(fds.count().saturating_sub(1) as f64);
    }
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
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
            assert!(value("tidings_process_open_fds ") >= 3.0);
            assert!(value("tidings_process_start_time_seconds ") > 1.7e9);
        };
        let seen = tokio::time::timeout(Duration::from_secs(5), seen);
        tokio::select! {
            () = upkeep => unreachable!("it runs for ever"),
            seen = seen => seen.expect("sampled at once"),
        }
    }
}
