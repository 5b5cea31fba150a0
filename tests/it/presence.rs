//! Presence: what is promised of either implementation, and what Redis and the nodes may do to it.

use std::time::{Duration, Instant};

use tidings::clock::Timestamp;
use tidings::config::{PresenceConfig, RedisConfig};
use tidings::ids::{DeviceId, NodeId, SessionId, UserId};
use tidings::presence::{Entry, Presence, Registered, Status};
use tidings::shards::Shards;
use tidings::shutdown::Stage;
use tidings::telemetry::Metrics;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::own_redis::{OwnRedis, shared, until};

const SOON: Duration = Duration::from_secs(10);
/// Long enough that a busy machine does not lose it by accident.
const LEASE: Duration = Duration::from_secs(2);

pub struct Node {
    pub presence: Presence,
    stage: Stage,
    /// A task ended that was not asked to.
    fault: CancellationToken,
}

impl Node {
    async fn start(redis: Option<RedisConfig>, lease: Duration) -> Self {
        let config = PresenceConfig { last_seen: None, lease, max_devices: 3 };
        let fault = CancellationToken::new();
        let stage = Stage::new("presence", fault.clone());
        let shards = match &redis {
            Some(redis) => Some(Shards::connect(redis, Metrics::new().0).await.unwrap()),
            None => None,
        };
        if let Some(shards) = &shards {
            stage.spawn("shards", shards.clone().watch(stage.stop.clone()));
        }
        let presence = Presence::connect(&config, shards.as_ref(), &stage).await.unwrap();
        Self { presence, stage, fault }
    }

    pub async fn on(redis: &RedisConfig) -> Self {
        Self::start(Some(redis.clone()), LEASE).await
    }

    /// Waits until absence means something here.
    pub async fn certain(self) -> Self {
        until("absence is certain", SOON, async || self.presence.absence_is_certain()).await;
        self
    }

    pub async fn status(&self, user: UserId) -> Status {
        self.presence.status(&[user]).await.pop().unwrap()
    }

    async fn online(&self, user: UserId) -> Vec<Entry> {
        match self.status(user).await {
            Status::Online(entries) => entries,
            status => panic!("not online but {status:?}"),
        }
    }

    /// When he was seen, as far as it is known.
    async fn unknown(&self, user: UserId) -> Option<Timestamp> {
        match self.status(user).await {
            Status::Unknown { last_seen } => last_seen,
            status => panic!("not unknown but {status:?}"),
        }
    }

    async fn register(&self, user: UserId, entry: &Entry) -> Registered {
        self.presence.register(user, entry.clone()).await.unwrap()
    }

    async fn register_again(&self, user: UserId, entry: &Entry) -> Registered {
        self.presence.register_again(vec![(user, entry.clone())]).await.unwrap().remove(0)
    }

    /// Ends the tasks without a farewell: as others see it, a crash.
    pub async fn stop(&self) {
        assert!(!self.fault.is_cancelled(), "a task ended unasked");
        assert!(self.stage.end(SOON).await, "all tasks end");
    }
}

fn user() -> UserId {
    UserId(Uuid::new_v4())
}

pub fn entry(device: &str, since: i64) -> Entry {
    Entry {
        node: NodeId::random(), // overwritten by the registration
        session: SessionId::random(),
        device: device.parse::<DeviceId>().unwrap(),
        platform: Some("ios".into()),
        app_version: None,
        since: Timestamp::from_millis(1_700_000_000_000 + since),
    }
}

fn first() -> Registered {
    Registered { replaced: None, younger: false, devices: 1 }
}

async fn on_each(body: impl AsyncFn(Node)) {
    body(Node::start(None, LEASE).await).await;
    if let Some(redis) = shared() {
        body(Node::on(&redis).await.certain().await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registered_session_is_online_and_a_removed_one_was_seen() {
    on_each(async |node| {
        let user = user();
        assert_eq!(node.status(user).await, Status::Offline { last_seen: None });
        let mut phone = entry("a \"phone\" {é}", 0);
        phone.app_version = Some("1.2 \u{1F600}\\".into());
        assert_eq!(node.register(user, &phone).await, first());
        phone.node = node.presence.node_id();
        assert_eq!(node.online(user).await, [phone.clone()]);

        let before = Timestamp::now();
        node.presence.remove(user, &phone.device, phone.session).await;
        let Status::Offline { last_seen: Some(seen) } = node.status(user).await else {
            panic!("{:?}", node.status(user).await)
        };
        assert!(before <= seen && seen <= Timestamp::now());
        node.presence.ping().await.unwrap();
        node.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_younger_session_replaces_the_older_one_of_its_device() {
    on_each(async |node| {
        let (user, old, new) = (user(), entry("phone", 0), entry("phone", 1));
        node.register(user, &old).await;
        let registered = node.register(user, &new).await;
        assert_eq!(registered.replaced.unwrap().session, old.session);
        assert_eq!((registered.younger, registered.devices), (false, 1));
        assert_eq!(node.online(user).await[0].session, new.session);
        // Again, as after a new lease: nobody is replaced.
        assert_eq!(node.register(user, &new).await, first());
        // Begun within the same millisecond: the one that comes later.
        let twin = entry("phone", 1);
        assert_eq!(node.register(user, &twin).await.replaced.unwrap().session, new.session);
        node.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_younger_session_stays() {
    on_each(async |node| {
        let (user, old, new) = (user(), entry("phone", 0), entry("phone", 1));
        node.register(user, &new).await;
        node.register(user, &entry("tablet", 5)).await;
        let registered = node.register_again(user, &old).await;
        assert_eq!(registered, Registered { replaced: None, younger: true, devices: 2 });
        assert!(node.online(user).await.iter().any(|held| held.session == new.session));
        node.stop().await;
    })
    .await;
}

/// A reconnect to a node whose clock is behind must not be refused for it.
#[tokio::test(flavor = "multi_thread")]
async fn who_joins_is_the_younger_whatever_the_clocks_say() {
    on_each(async |node| {
        let (user, ahead, behind) = (user(), entry("phone", 60), entry("phone", 0));
        node.register(user, &ahead).await;
        let registered = node.register(user, &behind).await;
        assert_eq!(registered.replaced.unwrap().session, ahead.session);
        assert!(!registered.younger);
        assert!(node.register_again(user, &ahead).await.younger);
        assert_eq!(node.online(user).await[0].session, behind.session);
        node.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_compares_the_session() {
    on_each(async |node| {
        let (user, old, new) = (user(), entry("phone", 0), entry("phone", 1));
        node.register(user, &old).await;
        node.register(user, &new).await;
        node.presence.remove(user, &old.device, old.session).await;
        node.presence.remove(user, &"tablet".parse().unwrap(), new.session).await;
        assert_eq!(node.online(user).await[0].session, new.session);
        node.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_beyond_the_limit_are_not_registered() {
    on_each(async |node| {
        let user = user();
        for (n, device) in ["one", "two", "three"].into_iter().enumerate() {
            assert_eq!(node.register(user, &entry(device, 0)).await.devices, n + 1);
        }
        let fourth = entry("four", 0);
        assert_eq!(node.register(user, &fourth).await.devices, 4);
        assert_eq!(node.online(user).await.len(), 3);
        // A device that is online already comes back, and one that went makes room.
        assert_eq!(node.register(user, &entry("two", 1)).await.devices, 3);
        let gone = node.online(user).await.remove(0);
        node.presence.remove(user, &gone.device, gone.session).await;
        assert_eq!(node.register(user, &fourth).await.devices, 3);
        node.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_are_answered_in_their_order() {
    on_each(async |node| {
        let users: Vec<UserId> = (0..2_500).map(|_| user()).collect();
        let entries: Vec<_> = users.iter().map(|user| (*user, entry("phone", 0))).collect();
        // One of them has a younger session already, one an older.
        node.register(users[1], &entry("phone", 1)).await;
        node.register(users[2_400], &entry("phone", -1)).await;
        let registered = node.presence.register_again(entries.clone()).await.unwrap();
        for (n, registered) in registered.iter().enumerate() {
            assert_eq!(registered.devices, 1);
            assert_eq!((registered.younger, registered.replaced.is_some()), (n == 1, n == 2_400));
        }
        let asked: Vec<UserId> = users.iter().flat_map(|known| [*known, user()]).collect();
        for (n, status) in node.presence.status(&asked).await.into_iter().enumerate() {
            match status {
                Status::Online(held) if n == 2 => assert_ne!(held[0].session, entries[1].1.session),
                Status::Online(held) => assert_eq!(held[0].session, entries[n / 2].1.session),
                status => assert_eq!((status, n % 2), (Status::Offline { last_seen: None }, 1)),
            }
        }
        let sessions =
            entries.into_iter().map(|(user, entry)| (user, entry.device, entry.session)).collect();
        node.presence.remove_many(sessions).await;
        let online = node.presence.status(&users).await;
        let online = online.iter().filter(|status| matches!(status, Status::Online(_))).count();
        assert_eq!(online, 1, "only the younger one stays");
        assert!(node.presence.register_again(vec![]).await.unwrap().is_empty());
        assert!(node.presence.status(&[]).await.is_empty());
        node.stop().await;
    })
    .await;
}

/// Who joins shares a batch with others: what stands in one user's hash is not to fail them all.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_names_no_node_fails_nobody() {
    let Some(redis) = shared() else { return };
    let (node, user) = (Node::on(&redis).await, user());
    let mut connection = connection(&redis).await;
    let mut set = redis::cmd("HSET");
    set.arg(redis.user_key("presence", user)).arg("tablet").arg(r#"{"session":"x"}"#);
    set.exec_async(&mut connection).await.unwrap();
    assert_eq!(node.register(user, &entry("phone", 0)).await.devices, 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_nodes_sessions_are_void_when_its_lease_runs_out() {
    let Some(redis) = shared() else { return };
    let (alive, dead) = (Node::on(&redis).await.certain().await, Node::on(&redis).await);
    let (user, phone) = (user(), entry("phone", 0));
    dead.register(user, &phone).await;
    dead.register(user, &entry("tablet", 0)).await;
    dead.stop().await;
    assert_eq!(alive.online(user).await.len(), 2);
    let begun = Status::Offline { last_seen: Some(phone.since) };
    until("the lease runs out", LEASE + SOON, async || alive.status(user).await == begun).await;
    // They count no more, not even against a session that is older, and are cleaned up.
    assert_eq!(alive.register(user, &entry("phone", -1)).await, first());
    assert_eq!(alive.online(user).await.len(), 1);
    let mut connection = connection(&redis).await;
    let key = redis.user_key("presence", user);
    let fields: Vec<String> =
        redis::cmd("HKEYS").arg(&key).query_async(&mut connection).await.unwrap();
    assert_eq!(fields.len(), 2, "{fields:?}");
    let days = |seconds: i64| (seconds + 3600) / 86_400;
    let ttl: i64 = redis::cmd("TTL").arg(&key).query_async(&mut connection).await.unwrap();
    assert_eq!(days(ttl), 30, "the hash is not kept for ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_given_back_ends_at_once() {
    let Some(redis) = shared() else { return };
    let staying = Node::on(&redis).await.certain().await;
    let leaving = Node::start(Some(redis), Duration::from_secs(60)).await;
    let user = user();
    leaving.register(user, &entry("phone", 0)).await;
    assert_eq!(staying.online(user).await.len(), 1);
    leaving.presence.close().await;
    assert!(matches!(staying.status(user).await, Status::Offline { .. }));
    assert!(!leaving.presence.absence_is_certain());
    leaving.stop().await;
}

/// As after a pause of the node: others may have acted on the end of its lease.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_is_not_revived() {
    let Some(redis) = shared() else { return };
    let node = Node::on(&redis).await.certain().await;
    let other = Node::on(&redis).await.certain().await;
    let (user, phone, old) = (user(), entry("phone", 0), node.presence.node_id());
    node.register(user, &phone).await;
    let mut changes = node.presence.lease_changes();
    assert!(!changes.has_changed().unwrap());

    let mut connection = connection(&redis).await;
    let key = format!("{}:node:{old}", redis.prefix);
    let deleted: usize = redis::cmd("DEL").arg(&key).query_async(&mut connection).await.unwrap();
    assert_eq!(deleted, 1);
    // Whether it has noticed already or does so now: what is not there means nothing any more.
    node.unknown(UserId(Uuid::new_v4())).await;
    assert!(matches!(other.status(user).await, Status::Offline { .. }));
    tokio::time::timeout(SOON, changes.changed()).await.expect("a new lease").unwrap();
    let new = *changes.borrow_and_update();
    assert_ne!(new, old);
    assert_eq!((node.presence.node_id(), node.presence.lease_losses()), (new, 1));
    assert!(!node.presence.absence_is_certain());

    assert_eq!(node.register(user, &phone).await, first());
    assert_eq!(other.online(user).await[0].node, new);
    // The new one is renewed, the old one stays dead.
    let node = node.certain().await;
    assert_eq!(other.online(user).await[0].node, new);
    let exists: bool = redis::cmd("EXISTS").arg(&key).query_async(&mut connection).await.unwrap();
    assert!(!exists && !changes.has_changed().unwrap());
    node.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn absence_is_unknown_until_it_is_certain() {
    let Some(redis) = shared() else { return };
    let started = Instant::now();
    let node = Node::on(&redis).await;
    let (here, away) = (user(), user());
    node.register(here, &entry("phone", 0)).await;
    assert_eq!(node.unknown(away).await, None);
    assert_eq!(node.online(here).await.len(), 1);
    // When somebody was seen is known even so.
    let (seen, phone) = (user(), entry("phone", 0));
    node.register(seen, &phone).await;
    node.presence.remove(seen, &phone.device, phone.session).await;
    assert!(node.unknown(seen).await.is_some_and(|at| at > phone.since));
    let node = node.certain().await;
    assert!(started.elapsed() >= LEASE + LEASE / 3, "certain after {:?}", started.elapsed());
    assert_eq!(node.status(away).await, Status::Offline { last_seen: None });
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_absence_is_unknown_and_sessions_want_a_new_lease() {
    let Some(mut redis) = OwnRedis::start().await else {
        return;
    };
    let node = Node::on(&redis.config()).await.certain().await;
    let (user, phone, old) = (user(), entry("phone", 0), node.presence.node_id());
    node.register(user, &phone).await;
    let mut changes = node.presence.lease_changes();

    redis.kill();
    node.unknown(user).await;
    assert!(!node.presence.absence_is_certain());
    assert!(node.presence.register(user, phone.clone()).await.is_err());
    assert!(node.presence.ping().await.is_err());

    redis.start_again().await;
    // Whether it still waits for its new lease or has it: nobody is called offline.
    node.unknown(user).await;
    tokio::time::timeout(SOON, changes.changed()).await.expect("a new lease").unwrap();
    assert_ne!(node.presence.node_id(), old);
    node.unknown(user).await;
    node.register(user, &phone).await;
    assert_eq!(node.online(user).await.len(), 1);
    node.certain().await.stop().await;
}

/// Restored from a snapshot, the server still has the leases, but not what came after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_from_a_snapshot_is_noticed_though_the_lease_lives() {
    let Some(mut redis) = OwnRedis::start().await else {
        return;
    };
    let node = Node::start(Some(redis.config()), Duration::from_secs(60)).await;
    let (user, old) = (user(), node.presence.node_id());
    let mut changes = node.presence.lease_changes();
    redis.command::<()>(&["SAVE"]).await;
    node.register(user, &entry("phone", 0)).await;
    redis.kill();
    redis.start_again().await;
    let key = format!("test:node:{old}");
    assert!(redis.command::<bool>(&["EXISTS", &key]).await, "the snapshot has the lease");
    node.unknown(user).await;
    tokio::time::timeout(SOON, changes.changed()).await.expect("a new lease").unwrap();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_redis_makes_nobody_wait_for_long_and_failed_writes_are_repaired() {
    let Some(redis) = OwnRedis::start().await else {
        return;
    };
    // Longer than the pause: the lease itself is not lost.
    let node = Node::start(Some(redis.config()), Duration::from_secs(60)).await;
    let (user, phone) = (user(), entry("phone", 0));
    node.register(user, &phone).await;
    let mut changes = node.presence.lease_changes();

    redis.pause();
    let paused = Instant::now();
    node.unknown(user).await;
    assert!(paused.elapsed() < Duration::from_secs(4), "took {:?}", paused.elapsed());
    let paused = Instant::now();
    node.presence.remove(user, &phone.device, phone.session).await;
    assert!(paused.elapsed() < Duration::from_secs(4), "took {:?}", paused.elapsed());
    assert!(!changes.has_changed().unwrap());

    redis.resume();
    tokio::time::timeout(SOON, changes.changed()).await.expect("a new lease").unwrap();
    node.stop().await;
}

/// A registration that was given up while Redis hung may run later, when the session has been
/// registered again under a new lease: it would put the session back under the dead one.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_registration_of_an_earlier_lease_changes_nothing() {
    let Some(redis) = shared() else { return };
    let node = Node::on(&redis).await;
    let (user, phone, old) = (user(), entry("phone", 0), node.presence.node_id());
    let mut connection = connection(&redis).await;
    let key = redis.user_key("presence", user);
    node.register(user, &phone).await;
    let late: String =
        redis::cmd("HGET").arg(&key).arg("phone").query_async(&mut connection).await.unwrap();
    assert!(late.contains(&old.to_string()));

    let mut changes = node.presence.lease_changes();
    let lease = format!("{}:node:{old}", redis.prefix);
    redis::cmd("DEL").arg(lease).exec_async(&mut connection).await.unwrap();
    tokio::time::timeout(SOON, changes.changed()).await.expect("a new lease").unwrap();
    node.register(user, &phone).await;
    redis::Script::new(include_str!("../../src/presence/redis/register.lua"))
        .key(&key)
        .arg(&["phone", &late, "3", "1000"])
        .invoke_async::<()>(&mut connection)
        .await
        .unwrap();
    assert_eq!(node.online(user).await[0].node, node.presence.node_id());
    node.stop().await;
}

async fn connection(redis: &RedisConfig) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(redis.url.as_str()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}
