//! What goes wrong, by name. A scenario strikes again and again until its time is over; each strike
//! heals what it broke before it returns ([`crate::stage`]).

use crate::redises::Topology;
use crate::services::Service;

/// One kind of strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    KillNode,
    PauseNode,
    DrainNode,
    /// Drained, and started again as the other of two releases.
    ChangeRelease,
    RedisEmpty,
    RedisSaved,
    Pause(Service),
    KillSubscriber,
    Cut(Service),
    Delay(Service),
    HalfClose(Service),
    Truncate(Service),
    Hold(Service),
    Refuse(Service),
    Kill(Service),
    /// Postgres is killed, and its synchronous standby takes its place.
    FailOver,
    /// As above, with a standby that lacks what was acknowledged.
    LoseCommits,
    KafkaAway,
    /// One of several Redis masters is killed, and a replica takes its place.
    LoseMaster,
    /// Slots of a Redis Cluster go from one master to another.
    MoveSlots,
    SlowClients,
    DropSockets,
    /// As above, and the next strike waits until all are back.
    Storm,
    HoldClients,
    CutClients,
}

impl Kind {
    fn needs_standby(self) -> bool {
        matches!(self, Self::FailOver | Self::LoseCommits)
    }
}

pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    /// Each of these goes on beside the others; of a list, one after the other.
    pub strikes: &'static [&'static [Kind]],
    /// How long there is traffic, unless told otherwise.
    pub seconds: u64,
    /// In the short set.
    pub short: bool,
    pub redis: Topology,
}

impl Scenario {
    pub fn needs_standby(&self) -> bool {
        self.strikes.iter().copied().flatten().any(|kind| kind.needs_standby())
    }
}

use Kind as K;
use Service::{Kafka, Postgres, Redis};

const fn scenario(
    name: &'static str,
    about: &'static str,
    strikes: &'static [&'static [Kind]],
    seconds: u64,
    short: bool,
) -> Scenario {
    Scenario { name, about, strikes, seconds, short, redis: Topology::One }
}

/// The one that needs an older release.
pub const UPGRADE: &str = "upgrade";

pub static ALL: &[Scenario] = &[
    scenario("calm", "nothing goes wrong but what clients do", &[], 10, false),
    scenario("kill-node", "kill -9 of a node, and its restart", &[&[K::KillNode]], 20, false),
    scenario(
        "pause-node",
        "SIGSTOP of a node beyond its lease, and SIGCONT",
        &[&[K::PauseNode]],
        20,
        false,
    ),
    scenario(
        "drain",
        "each node in turn is drained and started again",
        &[&[K::DrainNode]],
        24,
        false,
    ),
    scenario(
        UPGRADE,
        "nodes go over to this release one after the other, on the same stores, and back again",
        &[&[K::ChangeRelease]],
        45,
        false,
    ),
    scenario(
        "redis-empty",
        "Redis killed, and started without its data",
        &[&[K::RedisEmpty]],
        20,
        true,
    ),
    scenario(
        "redis-saved",
        "Redis killed, and started with its data",
        &[&[K::RedisSaved]],
        20,
        false,
    ),
    scenario(
        "redis-paused",
        "Redis stopped, its connections open",
        &[&[K::Pause(Redis)]],
        20,
        false,
    ),
    scenario(
        "subscriber-killed",
        "CLIENT KILL TYPE pubsub: every node loses its subscriptions",
        &[&[K::KillSubscriber]],
        15,
        false,
    ),
    scenario(
        "redis-network",
        "Redis' TCP is cut, delayed, half-closed, truncated, held",
        &[&[
            K::Cut(Redis),
            K::Delay(Redis),
            K::HalfClose(Redis),
            K::Truncate(Redis),
            K::Hold(Redis),
            K::Refuse(Redis),
        ]],
        30,
        false,
    ),
    Scenario {
        redis: Topology::Sentinel,
        ..scenario(
            "redis-sentinel-failover",
            "kill -9 of Redis' master, and sentinels make one of its replica",
            &[&[K::LoseMaster]],
            25,
            true,
        )
    },
    Scenario {
        redis: Topology::Cluster,
        ..scenario(
            "redis-cluster-master",
            "kill -9 of a master of a Redis Cluster, and its replica takes its place",
            &[&[K::LoseMaster]],
            30,
            false,
        )
    },
    Scenario {
        redis: Topology::Cluster,
        ..scenario(
            "redis-cluster-slots",
            "slots of a Redis Cluster go from master to master",
            &[&[K::MoveSlots]],
            25,
            false,
        )
    },
    Scenario {
        redis: Topology::Cluster,
        ..scenario(
            "redis-cluster-restarts",
            "nodes are drained and started again while masters of a Redis Cluster die and slots move",
            &[&[K::DrainNode], &[K::LoseMaster, K::MoveSlots]],
            32,
            true,
        )
    },
    scenario(
        "postgres-network",
        "Postgres' TCP is cut, delayed, half-closed, truncated, held",
        &[&[
            K::Cut(Postgres),
            K::Delay(Postgres),
            K::HalfClose(Postgres),
            K::Truncate(Postgres),
            K::Hold(Postgres),
            K::Refuse(Postgres),
        ]],
        30,
        false,
    ),
    scenario(
        "kafka-network",
        "Kafka's TCP is cut, delayed, half-closed, truncated, held",
        &[&[
            K::Cut(Kafka),
            K::Delay(Kafka),
            K::HalfClose(Kafka),
            K::Truncate(Kafka),
            K::Hold(Kafka),
            K::Refuse(Kafka),
        ]],
        30,
        false,
    ),
    scenario(
        "kafka-away",
        "Kafka killed, away for a while, and started",
        &[&[K::KafkaAway]],
        40,
        false,
    ),
    scenario(
        "postgres-killed",
        "kill -9 of Postgres, and its restart",
        &[&[K::Kill(Postgres)]],
        24,
        true,
    ),
    scenario(
        "postgres-failover",
        "kill -9 of Postgres, and its synchronous standby takes its place",
        &[&[K::FailOver]],
        30,
        true,
    ),
    scenario(
        "postgres-lost-commits",
        "the same with a standby that lacks commits: store_epoch is renewed, clients read anew",
        &[&[K::LoseCommits]],
        24,
        true,
    ),
    scenario(
        "postgres-paused",
        "Postgres stopped, its connections open",
        &[&[K::Pause(Postgres)]],
        20,
        false,
    ),
    scenario(
        "slow-clients",
        "some clients stop reading while much comes",
        &[&[K::SlowClients]],
        20,
        true,
    ),
    scenario("sockets-dropped", "all sockets drop at once", &[&[K::DropSockets]], 15, false),
    scenario(
        "storm",
        "ten thousand sockets drop at once while sends go on",
        &[&[K::Storm]],
        30,
        false,
    ),
    scenario(
        "client-network",
        "the network before a node swallows all, or cuts: half-open sockets",
        &[&[K::HoldClients, K::CutClients]],
        24,
        false,
    ),
    scenario(
        "networks",
        "the networks of all parts and of clients fail, each in its turn",
        &[
            &[K::KillSubscriber, K::Hold(Redis), K::HalfClose(Redis), K::Truncate(Redis)],
            &[K::Cut(Postgres), K::Refuse(Postgres), K::HalfClose(Postgres), K::Delay(Postgres)],
            &[K::Refuse(Kafka), K::Truncate(Kafka), K::Hold(Kafka)],
            &[K::HoldClients, K::CutClients],
        ],
        30,
        true,
    ),
    scenario(
        "kill-node-redis-empty",
        "a node is killed while Redis loses its data",
        &[&[K::KillNode], &[K::RedisEmpty]],
        24,
        false,
    ),
    scenario(
        "kill-node-postgres-killed",
        "a node is killed while Postgres is",
        &[&[K::KillNode], &[K::Kill(Postgres)]],
        24,
        false,
    ),
    scenario(
        "pause-node-sockets-dropped",
        "a node sleeps beyond its lease while all sockets drop",
        &[&[K::PauseNode], &[K::DropSockets]],
        24,
        true,
    ),
    scenario(
        "drain-networks",
        "nodes are drained while the networks of Redis and Postgres fail",
        &[
            &[K::DrainNode],
            &[K::Cut(Redis), K::Truncate(Postgres), K::Hold(Redis), K::Cut(Postgres)],
        ],
        30,
        true,
    ),
    scenario(
        "kafka-away-kill-node",
        "Kafka is away while nodes are killed",
        &[&[K::KafkaAway], &[K::KillNode]],
        40,
        true,
    ),
];

impl Scenario {
    /// Whether all that is published arrives, or is known to be lost. Then a device that is
    /// connected lacks nothing in the end, not even a change that nobody proves.
    pub fn tells_all(&self) -> bool {
        self.strikes.iter().flat_map(|list| *list).all(|kind| *kind == Kind::KillSubscriber)
    }
}

pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_of_a_kind_and_the_short_set_is_short() {
        for scenario in ALL {
            assert!(std::ptr::eq(find(scenario.name).unwrap(), scenario), "{}", scenario.name);
            assert!(scenario.strikes.iter().all(|list| !list.is_empty()), "{}", scenario.name);
        }
        let short: u64 = ALL.iter().filter(|s| s.short).map(|s| s.seconds).sum();
        assert!((60..=300).contains(&short), "{short} s of traffic");
    }
}
