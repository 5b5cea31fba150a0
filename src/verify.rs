//! `tidings verify`: looks at the live stores from outside and says what does not hold.

use std::fmt;
use std::time::Duration;

use anyhow::Context;

use crate::config::{Config, StoreConfig};
use crate::presence::{self, Orphans};
use crate::shards::Shards;
use crate::store::Store;
use crate::store::verify::{SHOWN, Verdict};
use crate::telemetry::Metrics;

/// On top of the settings' own clocks: what is older and not done was forgotten.
const GRACE_SPARE: Duration = Duration::from_secs(120);

pub struct Report {
    verdicts: Vec<Verdict>,
    /// None without Redis.
    orphans: Option<Orphans>,
}

/// Reads everything once; the nodes may be at work.
pub async fn run(config: &Config) -> anyhow::Result<Report> {
    let setting = match config.store {
        StoreConfig::Postgres(_) => "DATABASE_URL",
        StoreConfig::Sqlite(_) => "DATA_DIR",
    };
    let store = Store::connect(&config.store, Metrics::new().0).await.context(setting)?;
    let grace = config.delivery.offline_after + config.delivery.settle_grace + GRACE_SPARE;
    let verdicts = store.verify(grace).await.context("the store could not be checked")?;
    store.close().await;
    let orphans = match &config.redis {
        Some(redis) => {
            let shards = Shards::connect(redis, Metrics::new().0).await.context("REDIS_URL")?;
            Some(presence::orphans(&shards).await.context("REDIS_URL")?)
        }
        None => None,
    };
    Ok(Report { verdicts, orphans })
}

impl Report {
    /// Entries of dead nodes are no fault: nobody believes them.
    pub fn is_sound(&self) -> bool {
        self.verdicts.iter().all(|verdict| verdict.broken.is_empty())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Verdict { rule, broken } in &self.verdicts {
            if broken.is_empty() {
                writeln!(f, "ok      {rule}")?;
                continue;
            }
            writeln!(f, "BROKEN  {rule}")?;
            broken.iter().take(SHOWN).try_for_each(|line| writeln!(f, "        {line}"))?;
            if broken.len() > SHOWN {
                writeln!(f, "        and more")?;
            }
        }
        if let Some(Orphans { entries, of_dead_nodes }) = &self.orphans {
            writeln!(
                f,
                "note    {of_dead_nodes} of {entries} presence entries are of nodes whose lease ran \
                 out; nobody believes them, and they go with the users' next sessions"
            )?;
        }
        Ok(())
    }
}
