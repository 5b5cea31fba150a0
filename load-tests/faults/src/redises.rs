//! Redis beyond one server: a cluster of three masters with a replica each, or a master and its replica
//! under three sentinels.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tidings_client::dice::Dice;

use crate::services::Services;
use crate::world::until;

/// Until another has taken the place of a master that is gone.
const FAIL_OVER_LIMIT: Duration = Duration::from_secs(60);
/// Of a cluster's 16,384: some five of the 128 by which users are divided.
const SLOTS_MOVED: u64 = 600;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    One,
    Cluster,
    Sentinel,
}

impl Topology {
    /// As the script calls all of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "redis",
            Self::Cluster => "redis-cluster",
            Self::Sentinel => "redis-sentinel",
        }
    }

    /// Servers, masters or not.
    fn servers(self) -> &'static [&'static str] {
        match self {
            Self::One => &["redis"],
            Self::Cluster => {
                &["cluster-1", "cluster-2", "cluster-3", "cluster-4", "cluster-5", "cluster-6"]
            }
            Self::Sentinel => &["main-1", "main-2"],
        }
    }

    /// What lists the channels that somebody is subscribed to.
    pub fn channels(self) -> &'static str {
        if self == Self::Cluster { "shardchannels" } else { "channels" }
    }
}

impl Services {
    /// None: it is reached by a proxy of each node.
    pub fn redis_url(&self) -> anyhow::Result<Option<String>> {
        let (scheme, names, service): (_, &[&str], _) = match self.topology {
            Topology::One => return Ok(None),
            Topology::Cluster => ("redis-cluster", self.topology.servers(), ""),
            Topology::Sentinel => {
                ("redis-sentinel", &["sentinel-1", "sentinel-2", "sentinel-3"], "/main")
            }
        };
        let hosts = names.iter().map(|name| Ok(format!("127.0.0.1:{}", self.port(name)?)));
        let hosts = hosts.collect::<anyhow::Result<Vec<_>>>()?.join(",");
        Ok(Some(format!("{scheme}://{hosts}{service}")))
    }

    /// What all masters say, one after the other.
    pub async fn redis(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut said = String::new();
        for name in self.masters().await? {
            said += &self.redis_at(name, arguments).await?;
        }
        Ok(said)
    }

    async fn masters(&self) -> anyhow::Result<Vec<&'static str>> {
        let mut masters = Vec::new();
        for name in self.topology.servers() {
            if self.is_master(name).await? {
                masters.push(*name);
            }
        }
        ensure!(!masters.is_empty(), "no master answers");
        Ok(masters)
    }

    /// False, too, if it does not answer. A master without slots is none.
    async fn is_master(&self, name: &str) -> anyhow::Result<bool> {
        if self.topology == Topology::Cluster {
            let nodes = self.redis_at(name, &["cluster", "nodes"]).await.unwrap_or_default();
            let own = nodes.lines().find(|line| line.contains("myself,master"));
            return Ok(own.is_some_and(|line| line.split(' ').count() > 8));
        }
        let role = self.redis_at(name, &["role"]).await.unwrap_or_default();
        Ok(role.starts_with("master"))
    }

    /// A master dies, and is back once another has taken its place.
    pub async fn lose_master(&self, dice: &mut Dice) -> anyhow::Result<()> {
        let masters = self.masters().await?;
        let lost = masters[dice.below(masters.len())];
        self.script(&["kill", lost]).await?;
        until("another master takes over", FAIL_OVER_LIMIT, async || {
            let now = self.masters().await.unwrap_or_default();
            Ok(now.len() == masters.len() && self.all_served(&now).await?)
        })
        .await?;
        tokio::time::sleep(Duration::from_millis(dice.between(0, 2_000))).await;
        self.script(&["up", lost]).await?;
        until("the old master follows the new one", FAIL_OVER_LIMIT, async || {
            let info = self.redis_at(lost, &["info", "replication"]).await?;
            Ok(info.contains("role:slave") && info.contains("master_link_status:up"))
        })
        .await
    }

    async fn all_served(&self, masters: &[&str]) -> anyhow::Result<bool> {
        if self.topology != Topology::Cluster {
            return Ok(true);
        }
        for name in masters {
            let info = self.redis_at(name, &["cluster", "info"]).await?;
            if !info.contains("cluster_state:ok") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// From one master to another, as operators do.
    pub async fn move_slots(&self, dice: &mut Dice) -> anyhow::Result<()> {
        let masters = self.masters().await?;
        ensure!(masters.len() > 1, "there is no other master");
        let from = dice.below(masters.len());
        let to = (from + 1 + dice.below(masters.len() - 1)) % masters.len();
        let id = async |at: usize| {
            let id = self.redis_at(masters[at], &["cluster", "myid"]).await?;
            anyhow::Ok(id.trim().to_owned())
        };
        let (from_id, to_id) = (id(from).await?, id(to).await?);
        let at = format!("127.0.0.1:{}", self.port(masters[from])?);
        let slots = SLOTS_MOVED.to_string();
        let said = self
            .redis_cli(&[
                "--cluster",
                "reshard",
                &at,
                "--cluster-from",
                &from_id,
                "--cluster-to",
                &to_id,
                "--cluster-slots",
                &slots,
                "--cluster-yes",
            ])
            .await?;
        if said.contains("[ERR]") {
            let error = said.lines().find(|line| line.contains("[ERR]"));
            bail!("slots were not moved: {}", error.unwrap_or_default());
        }
        until("all masters agree", FAIL_OVER_LIMIT, async || {
            self.all_served(&self.masters().await?).await
        })
        .await
        .context("after slots were moved")
    }
}
