//! The second Postgres: it follows the primary, takes its place, and the other one follows it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::services::{Services, psql};
use crate::world::until;

const LIMIT: Duration = Duration::from_secs(60);

impl Services {
    pub fn primary(&self) -> &'static str {
        if self.standby_leads.load(Ordering::Relaxed) { "standby" } else { "postgres" }
    }

    fn follower(&self) -> &'static str {
        if self.standby_leads.load(Ordering::Relaxed) { "postgres" } else { "standby" }
    }

    /// One Postgres, as it is without a standby. What a run left that failed over and was cut short is
    /// of no more use.
    pub async fn one_postgres(&self) -> anyhow::Result<()> {
        if self.state("standby").exists() {
            self.script(&["down", "--wipe", "standby", "postgres"]).await?;
        }
        self.standby_leads.store(false, Ordering::Relaxed);
        self.script(&["up", "postgres"]).await
    }

    /// Whoever is not the primary is made anew, as its synchronous standby.
    pub async fn new_standby(&self) -> anyhow::Result<()> {
        self.script(&["down", "--wipe", self.follower()]).await?;
        self.script(&["up", self.follower()]).await
    }

    /// From now on the primary waits for nobody, and the standby hears nothing more: what is
    /// acknowledged stands on the primary only.
    pub async fn part_from_standby(&self) -> anyhow::Result<()> {
        let alone = "alter system reset synchronous_standby_names";
        self.settle(self.primary(), alone).await?;
        self.settle(self.follower(), "alter system set primary_conninfo = ''").await?;
        until("the standby hears nothing", LIMIT, async || {
            let walreceivers = "select count(*) from pg_stat_wal_receiver";
            Ok(self.superuser(self.follower(), walreceivers).await?.trim() == "0")
        })
        .await
    }

    /// The primary is dead. Whoever still leads to it is to be led to the other.
    pub async fn fail_over(&self) -> anyhow::Result<()> {
        self.script(&["promote", self.follower()]).await?;
        self.standby_leads.fetch_xor(true, Ordering::Relaxed);
        Ok(())
    }

    async fn settle(&self, server: &str, setting: &str) -> anyhow::Result<()> {
        self.superuser(server, setting).await?;
        self.superuser(server, "select pg_reload_conf()").await?;
        Ok(())
    }

    async fn superuser(&self, server: &str, statement: &str) -> anyhow::Result<String> {
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port(server)?);
        psql(url, statement).await
    }
}
