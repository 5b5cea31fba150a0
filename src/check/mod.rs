//! `tidings check`: connects to every part that the settings name, and says what is right and what
//! to fix. Leaves nothing behind, waits for nobody longer than [`PART_LIMIT`], shows no secret.

mod host;

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;

use crate::auth;
use crate::build_info::VERSION_AND_COMMIT;
use crate::bus;
use crate::config::{AuthMode, Config, ConfigFaults, OfflineConfig, StoreConfig};
use crate::finding::{Finding, Findings, Grade};
use crate::http::tls::Tls;
use crate::offline;
use crate::store::{self, Demand};
use crate::telemetry::traces;

/// All of one part's checks together; the parts are looked at side by side.
const PART_LIMIT: Duration = Duration::from_secs(20);
/// Beside lanes and pool: `tidings migrate`, or the lock of a single node.
const SPARE_CONNECTIONS: u32 = 1;

#[derive(Debug, Serialize)]
pub struct Report {
    version: &'static str,
    problems: usize,
    warnings: usize,
    findings: Vec<Finding>,
}

/// Never fails: what cannot be looked at is a finding.
pub async fn run(config: &Config) -> Report {
    let (host, traces, store, bus, offline, auth) = tokio::join!(
        check_host(config),
        check_traces(config),
        check_store(config),
        check_bus(config),
        check_offline(config),
        check_auth(config),
    );
    let parts = [host, traces, store, bus, offline, auth];
    Report::of(parts.into_iter().flat_map(|found| found.list).collect())
}

async fn check_host(config: &Config) -> Findings {
    let check = async |found: &mut Findings| {
        host::check(config, found);
        let Some(files) = &config.http.tls else { return };
        match Tls::open(files).await {
            Ok(_) => found.ok("certificate", "TLS_CERT_FILE and TLS_KEY_FILE go together"),
            Err(error) => {
                let fix = "a chain of certificates and the key of its first one, as PEM";
                found.problem("certificate", format!("{error:#}"), fix);
            }
        }
    };
    bounded(Findings::of("host"), check).await
}

async fn check_traces(config: &Config) -> Findings {
    let check = async |found: &mut Findings| {
        if let Some(traces) = &config.traces {
            traces::check(traces, found).await;
        }
    };
    bounded(Findings::of("traces"), check).await
}

async fn check_store(config: &Config) -> Findings {
    match &config.store {
        StoreConfig::Postgres(postgres) => {
            let demand = Demand {
                connections: config.write_lanes as u32 + postgres.pool_size + SPARE_CONNECTIONS,
                migrates: config.migrate_on_start,
                single_node: config.redis.is_none(),
            };
            let check =
                async |found: &mut Findings| store::check_postgres(postgres, demand, found).await;
            bounded(Findings::of("postgres"), check).await
        }
        StoreConfig::Sqlite(sqlite) => {
            let check = async |found: &mut Findings| {
                if host::check_folder(&config.data_dir, found) {
                    store::check_sqlite(sqlite, config.migrate_on_start, found).await;
                }
            };
            bounded(Findings::of("sqlite"), check).await
        }
    }
}

async fn check_bus(config: &Config) -> Findings {
    match &config.redis {
        Some(redis) => {
            let check = async |found: &mut Findings| bus::check_redis(redis, found).await;
            bounded(Findings::of("redis"), check).await
        }
        None => {
            let mut found = Findings::of("redis");
            found.ok("use", "not set: this is the only node");
            found
        }
    }
}

async fn check_offline(config: &Config) -> Findings {
    match &config.offline {
        OfflineConfig::Kafka { .. } => {
            let largest = config.limits.frame_bytes;
            let check = async |found: &mut Findings| {
                offline::check_kafka(&config.offline, largest, found).await;
            };
            bounded(Findings::of("kafka"), check).await
        }
        OfflineConfig::File { path } => {
            let mut found = Findings::of("offline");
            // With SQLite the folder has been looked at.
            if matches!(config.store, StoreConfig::Postgres(_)) {
                host::check_folder(&config.data_dir, &mut found);
            }
            let detail = format!("records for absent users go to {}", path.display());
            match config.redis {
                None => found.ok("file", detail),
                Some(_) => {
                    let detail = format!("{detail}, on each node for itself");
                    found.warning("file", detail, "set KAFKA_BROKERS");
                }
            }
            found
        }
    }
}

async fn check_auth(config: &Config) -> Findings {
    let check = async |found: &mut Findings| match &config.auth.mode {
        AuthMode::Dev => found.warning(
            "mode",
            "dev: everyone is who he says he is",
            "for a laptop this is right; else AUTH_MODE=gateway or jwt",
        ),
        AuthMode::Gateway { .. } => found.ok("mode", "gateway: X-User-ID from TRUSTED_PROXIES"),
        AuthMode::Jwt(jwt) => {
            found.ok("mode", "jwt: a signed token names the user");
            auth::check_jwt(jwt, found).await;
        }
    };
    bounded(Findings::of("identity"), check).await
}

/// What was found until the limit stands in any case.
async fn bounded<F>(mut found: Findings, check: F) -> Findings
where
    F: AsyncFnOnce(&mut Findings),
{
    if timeout(PART_LIMIT, check(&mut found)).await.is_err() {
        let detail = format!("the checks were not done within {} s", PART_LIMIT.as_secs());
        found.problem("time", detail, "see what holds it up: it answers, and too slowly");
    }
    found
}

impl Report {
    fn of(findings: Vec<Finding>) -> Self {
        let count = |grade| findings.iter().filter(|finding| finding.grade == grade).count();
        Self {
            version: VERSION_AND_COMMIT,
            problems: count(Grade::Problem),
            warnings: count(Grade::Warning),
            findings,
        }
    }

    /// Settings that cannot be used: nothing else was looked at.
    pub fn of_faults(faults: &ConfigFaults) -> Self {
        let mut found = Findings::of("settings");
        for fault in &faults.0 {
            let value = fault.value.as_ref().map_or("not set".into(), |value| format!("{value:?}"));
            found.problem(fault.setting, value, format!("expected {}", fault.expected));
        }
        Self::of(found.list)
    }

    /// Warnings alone are no reason not to start.
    pub fn is_sound(&self) -> bool {
        self.problems == 0
    }

    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |of: fn(&Finding) -> &str| self.findings.iter().map(|one| of(one).len()).max();
        let part = width(|one| one.part).unwrap_or(0);
        let check = width(|one| one.check).unwrap_or(0);
        for one in &self.findings {
            let grade = match one.grade {
                Grade::Ok => "ok",
                Grade::Warning => "WARNING",
                Grade::Problem => "PROBLEM",
            };
            writeln!(f, "{grade:7}  {:part$}  {:check$}  {}", one.part, one.check, one.detail)?;
            if let Some(fix) = &one.fix {
                writeln!(f, "{:7}  {:part$}  {:check$}  -> {fix}", "", "", "")?;
            }
        }
        let count = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            _ => format!("{count} {what}s"),
        };
        writeln!(
            f,
            "tidings {}: {}, {}",
            self.version,
            count(self.problems, "problem"),
            count(self.warnings, "warning")
        )
    }
}
