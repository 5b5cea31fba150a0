//! Where strikes are carried out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::ensure;
use rustix::process::Signal;
use tidings_client::device::Order;
use tidings_client::dice::Dice;
use tidings_client::history::History;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::nodes::Node;
use crate::proxy::{Direction, Mode, Proxy, Strike};
use crate::run::Loss;
use crate::scenario::Kind;
use crate::services::Service::{self, Kafka, Postgres, Redis};
use crate::services::Services;
use crate::world::World;

/// Until all are back. Ten thousand handshakes take a busy machine their time.
const STORM_LIMIT: Duration = Duration::from_secs(120);

/// What strikes work on.
pub struct Stage<'a> {
    pub nodes: &'a [Node],
    pub services: &'a Services,
    pub world: &'a World,
    /// Before Kafka, for all nodes.
    pub kafka: &'a Proxy,
    pub history: &'a History,
    pub struck: AtomicU64,
    /// The run's database.
    pub database: &'a str,
    pub losses: Mutex<Vec<Loss>>,
    /// From when until when all were away or on their way back.
    pub storms: Mutex<Vec<(u64, u64)>>,
}

impl Stage<'_> {
    /// Until then; the last strike may take longer.
    pub async fn play(
        &self,
        strikes: &[Kind],
        until: Instant,
        mut dice: Dice,
    ) -> anyhow::Result<()> {
        let (mut turn, mut round) = (0, dice.below(strikes.len().max(1)));
        while Instant::now() < until {
            sleep(Duration::from_millis(dice.between(500, 2_000))).await;
            let kind = strikes[round % strikes.len()];
            (turn, round) = (turn + 1, round + 1);
            eprintln!("faults: {:>6} ms {kind:?}", self.history.elapsed_ms());
            self.struck.fetch_add(1, Ordering::Relaxed);
            self.strike(kind, turn, &mut dice).await?;
        }
        Ok(())
    }

    async fn strike(&self, kind: Kind, turn: usize, dice: &mut Dice) -> anyhow::Result<()> {
        let node = &self.nodes[dice.below(self.nodes.len())];
        let mut pause = async |from, to| sleep(Duration::from_millis(dice.between(from, to))).await;
        match kind {
            Kind::KillNode => {
                node.kill().await?;
                pause(100, 4_000).await;
                node.start().await?;
            }
            Kind::PauseNode => {
                node.signal(Signal::STOP).await?;
                pause(2_000, 5_000).await;
                node.signal(Signal::CONT).await?;
                pause(500, 1_500).await;
            }
            Kind::DrainNode => {
                let node = &self.nodes[turn % self.nodes.len()];
                node.drain().await?;
                pause(0, 1_000).await;
                node.start().await?;
            }
            // The tables first, under all the nodes that still run; on the way back that is nothing.
            Kind::ChangeRelease => {
                let node = &self.nodes[(turn - 1) % self.nodes.len()];
                node.change_release();
                node.migrate().await?;
                node.drain().await?;
                node.start().await?;
            }
            Kind::RedisEmpty | Kind::RedisSaved => {
                self.services.save_redis(kind == Kind::RedisSaved).await?;
                self.services.call("kill", Redis).await?;
                pause(0, 4_000).await;
                self.services.call("up", Redis).await?;
                pause(500, 3_000).await;
            }
            Kind::Kill(service) => {
                self.services.call("kill", service).await?;
                pause(0, 3_000).await;
                self.services.call("up", service).await?;
                pause(500, 2_000).await;
            }
            Kind::FailOver => {
                self.services.call("kill", Postgres).await?;
                pause(0, 3_000).await;
                self.services.fail_over().await?;
                self.lead_to_primary()?;
                pause(1_000, 3_000).await;
                self.services.new_standby().await?;
                pause(0, 2_000).await;
            }
            Kind::LoseCommits => {
                self.services.part_from_standby().await?;
                pause(1_000, 3_000).await;
                self.lose_commits().await?;
                pause(1_000, 3_000).await;
            }
            Kind::Pause(service) => {
                self.services.call("pause", service).await?;
                pause(1_000, 6_000).await;
                self.services.call("resume", service).await?;
                pause(500, 2_000).await;
            }
            Kind::LoseMaster => {
                self.services.lose_master(dice).await?;
                sleep(Duration::from_millis(dice.between(1_000, 4_000))).await;
            }
            Kind::MoveSlots => {
                self.services.move_slots(dice).await?;
                sleep(Duration::from_millis(dice.between(500, 3_000))).await;
            }
            Kind::KafkaAway => {
                self.services.call("kill", Kafka).await?;
                pause(8_000, 15_000).await;
                self.services.call("up", Kafka).await?;
            }
            Kind::KillSubscriber => {
                self.services.redis(&["client", "kill", "type", "pubsub"]).await?;
                pause(200, 2_500).await;
            }
            Kind::Cut(service) => self.ways(service, node).for_each(|way| way.strike(Strike::Cut)),
            Kind::HalfClose(service) => {
                self.ways(service, node).for_each(|way| way.strike(Strike::HalfClose));
                pause(500, 2_000).await;
                // What then still stands there half open is a client's leak, and would be for ever.
            }
            Kind::Truncate(service) => {
                let direction =
                    if dice.percent(50) { Direction::ToServer } else { Direction::ToClient };
                let strike = Strike::After(direction, dice.between(1, 3_000) as usize);
                self.ways(service, node).for_each(|way| way.strike(strike));
                sleep(Duration::from_millis(dice.between(500, 2_000))).await;
            }
            Kind::Delay(service) => {
                let mode = Mode::Delay(Duration::from_millis(dice.between(20, 400)));
                self.for_a_while(service, node, mode, dice.between(1_000, 4_000)).await;
            }
            Kind::Hold(service) => {
                self.for_a_while(service, node, Mode::Hold, dice.between(1_000, 6_000)).await;
            }
            Kind::Refuse(service) => {
                self.for_a_while(service, node, Mode::Refuse, dice.between(500, 4_000)).await;
            }
            Kind::SlowClients => {
                for device in self.world.present() {
                    if dice.percent(15) {
                        let time = Duration::from_millis(dice.between(4_000, 9_000));
                        let _ = device.orders.try_send(Order::Stall(time));
                    }
                }
                sleep(Duration::from_millis(dice.between(5_000, 8_000))).await;
            }
            Kind::DropSockets => {
                for device in self.world.present() {
                    let _ = device.orders.try_send(Order::Drop);
                }
                pause(1_000, 3_000).await;
            }
            Kind::Storm => {
                let from = self.history.elapsed_ms();
                self.world.drop_all_and_wait(STORM_LIMIT).await?;
                self.storms.lock().await.push((from, self.history.elapsed_ms()));
                pause(1_000, 3_000).await;
            }
            Kind::HoldClients => {
                node.door.set(Mode::Hold);
                pause(2_000, 9_000).await;
                node.door.set(Mode::Pass);
            }
            Kind::CutClients => node.door.strike(Strike::Cut),
        }
        Ok(())
    }

    fn lead_to_primary(&self) -> anyhow::Result<()> {
        let primary = self.services.addr(Postgres)?;
        let ways = self.nodes.iter().filter_map(|node| node.way_to(Postgres));
        ways.for_each(|way| way.lead_to(primary));
        Ok(())
    }

    /// As docs/reliability.md tells whoever has to: no node may meet the store with the old epoch.
    async fn lose_commits(&self) -> anyhow::Result<()> {
        let epoch = self.services.sql(self.database, "select store_epoch from store_meta").await?;
        self.services.call("kill", Postgres).await?;
        for node in self.nodes {
            node.kill().await?;
        }
        self.services.fail_over().await?;
        let heads = "select json_object_agg(id, last_seq) from conversations";
        let heads = serde_json::from_str(&self.services.sql(self.database, heads).await?)?;
        self.losses.lock().await.push(Loss { epoch: epoch.trim().parse()?, heads });
        let renew = "update store_meta set store_epoch = gen_random_uuid()";
        self.services.sql(self.database, renew).await?;
        self.lead_to_primary()?;
        for node in self.nodes {
            node.start().await?;
        }
        self.services.new_standby().await
    }

    /// The ways from one node to the service, or of all nodes at once where they are shared.
    fn ways<'a>(&'a self, service: Service, node: &'a Node) -> impl Iterator<Item = &'a Proxy> {
        std::iter::once(node.way_to(service).unwrap_or(self.kafka))
    }

    async fn for_a_while(&self, service: Service, node: &Node, mode: Mode, ms: u64) {
        self.ways(service, node).for_each(|way| way.set(mode));
        sleep(Duration::from_millis(ms)).await;
        self.ways(service, node).for_each(|way| way.set(Mode::Pass));
    }

    /// Everything works again, whatever was broken.
    pub async fn heal(&self) -> anyhow::Result<()> {
        self.kafka.set(Mode::Pass);
        for service in Service::ALL {
            self.services.call("up", service).await?;
        }
        for node in self.nodes {
            node.door.set(Mode::Pass);
            for way in [Postgres, Redis].into_iter().filter_map(|part| node.way_to(part)) {
                way.set(Mode::Pass);
            }
            node.start().await?;
        }
        ensure!(self.nodes.len() > 1, "a cluster has more than one node");
        Ok(())
    }
}
