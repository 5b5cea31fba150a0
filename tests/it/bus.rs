//! The bus: what is promised of either implementation, and what Redis may do to it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use tidings::bus::{Bus, BusError, Class, Classic, Envelope, Head, Inbox, Partitions, Receivers};
use tidings::clock::Timestamp;
use tidings::config::RedisConfig;
use tidings::ids::{ConversationId, Seq, SessionId, UserId};
use tidings::shards::{Shards, ShardsError};
use tidings::shutdown::Stage;
use tidings::telemetry::Metrics;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::own_redis::{OwnRedis, named, shared, until};

const SOON: Duration = Duration::from_secs(10);

/// An inbox that keeps what arrives.
#[derive(Default)]
pub struct Received {
    seqs: Mutex<HashMap<UserId, Vec<Seq>>>,
    last: Mutex<Option<Envelope>>,
    gaps: AtomicUsize,
    /// Of all gaps.
    pub partitions: Mutex<Option<Partitions>>,
}

impl Inbox for Received {
    fn deliver(&self, user: UserId, envelope: Envelope) {
        self.seqs.lock().unwrap().entry(user).or_default().push(envelope.head.hi);
        *self.last.lock().unwrap() = Some(envelope);
    }

    fn on_gap(&self, partitions: Partitions) {
        let mut all = self.partitions.lock().unwrap();
        *all.get_or_insert(Partitions::NONE) |= partitions;
        self.gaps.fetch_add(1, Ordering::SeqCst);
    }
}

impl Received {
    pub fn of(&self, user: UserId) -> Vec<Seq> {
        self.seqs.lock().unwrap().get(&user).cloned().unwrap_or_default()
    }

    pub fn gaps(&self) -> usize {
        self.gaps.load(Ordering::SeqCst)
    }
}

/// One node's bus.
pub struct Node {
    pub bus: Bus,
    pub received: Arc<Received>,
    stage: Stage,
    /// A task ended that was not asked to.
    fault: CancellationToken,
}

impl Node {
    async fn start(redis: Option<&RedisConfig>) -> Self {
        let (received, fault) = (Arc::new(Received::default()), CancellationToken::new());
        let stage = Stage::new("bus", fault.clone());
        let shards = match redis {
            Some(redis) => Some(Shards::connect(redis, Metrics::new().0).await.unwrap()),
            None => None,
        };
        if let Some(shards) = &shards {
            stage.spawn("shards", shards.clone().watch(stage.stop.clone()));
        }
        let shards = shards.as_ref();
        let bus = Bus::connect(shards, received.clone(), &stage).await.unwrap();
        let node = Self { bus, received, stage, fault };
        node.whole().await;
        node
    }

    pub async fn on(redis: &RedisConfig) -> Self {
        Self::start(Some(redis)).await
    }

    pub async fn publish(&self, user: UserId, seq: Seq) -> Receivers {
        self.bus.publish(&[(user, envelope(seq).encode())]).await[0]
    }

    pub async fn whole(&self) {
        until("the bus is whole", SOON, async || self.bus.is_whole()).await;
    }

    /// All of `users` get what is published, each once.
    pub async fn delivers_to(&self, users: &[UserId], seq: Seq) {
        let bytes = envelope(seq).encode();
        let batch: Vec<_> = users.iter().map(|user| (*user, bytes.clone())).collect();
        assert_eq!(self.bus.publish(&batch).await, vec![Receivers::Count(1); users.len()]);
        until("every user got the event", SOON, async || {
            users.iter().all(|user| self.received.of(*user).last() == Some(&seq))
        })
        .await;
        for user in users {
            assert_eq!(self.received.of(*user).iter().filter(|got| **got == seq).count(), 1);
        }
    }

    pub async fn stop(self) {
        assert!(!self.fault.is_cancelled(), "a task ended unasked");
        assert!(self.stage.end(SOON).await, "all tasks end");
    }
}

pub fn user() -> UserId {
    UserId(Uuid::new_v4())
}

pub fn envelope(seq: Seq) -> Envelope {
    let head = Head {
        class: Class::Stored,
        conversation_id: ConversationId::random(),
        sender_id: user(),
        origin: Some(SessionId::random()),
        lo: seq,
        hi: seq,
        sent_at: Timestamp::now(),
    };
    let classic = Classic::Own(vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")]);
    Envelope { head, full: Bytes::from_static(b"{}"), classic }
}

/// The same body on each implementation.
async fn on_each(body: impl AsyncFn(Node)) {
    body(Node::start(None).await).await;
    if let Some(redis) = shared() {
        body(Node::on(&redis).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_is_confirmed_when_the_call_returns() {
    on_each(async |node| {
        for n in 1..=50 {
            let user = user();
            assert_eq!(node.publish(user, n).await, Receivers::Count(0));
            node.bus.subscribe(user).await.unwrap();
            assert_eq!(node.publish(user, n).await, Receivers::Count(1));
        }
        assert_eq!(node.bus.subscriptions(), 50);
        node.bus.ping().await.unwrap();
        node.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envelope_arrives_as_it_was_published() {
    on_each(async |node| {
        let (user, sent) = (user(), envelope(7));
        node.bus.subscribe(user).await.unwrap();
        node.bus.publish(&[(user, sent.encode())]).await;
        until("it arrives", SOON, async || {
            node.received.last.lock().unwrap().as_ref() == Some(&sent)
        })
        .await;
        node.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_are_counted_per_user() {
    on_each(async |node| {
        let user = user();
        node.bus.subscribe(user).await.unwrap();
        node.bus.subscribe(user).await.unwrap();
        assert_eq!(node.bus.subscriptions(), 1);
        node.bus.unsubscribe(user);
        assert_eq!(node.publish(user, 1).await, Receivers::Count(1));
        node.bus.unsubscribe(user);
        node.bus.unsubscribe(user); // one too many changes nothing
        assert_eq!(node.bus.subscriptions(), 0);
        until("nobody is subscribed", SOON, async || {
            node.publish(user, 2).await == Receivers::Count(0)
        })
        .await;
        node.bus.subscribe(user).await.unwrap();
        assert_eq!(node.publish(user, 3).await, Receivers::Count(1));
        node.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_ten_thousand_is_kept() {
    on_each(async |node| {
        let users = [user(), user(), user()];
        for user in users {
            node.bus.subscribe(user).await.unwrap();
        }
        // Batches larger than one pipeline, and small ones.
        let events: Vec<(UserId, Seq)> =
            (1..=10_000).flat_map(|seq| users.map(|user| (user, seq))).collect();
        let mut sizes = [1, 5000, 7, 333].into_iter().cycle();
        let mut rest = events.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(sizes.next().unwrap().min(rest.len()));
            rest = later;
            let batch: Vec<_> =
                now.iter().map(|(user, seq)| (*user, envelope(*seq).encode())).collect();
            let receivers = node.bus.publish(&batch).await;
            assert_eq!(receivers, vec![Receivers::Count(1); batch.len()]);
        }
        for user in users {
            until("all arrived", SOON, async || node.received.of(user).len() == 10_000).await;
            assert!(node.received.of(user).into_iter().eq(1..=10_000), "out of order");
        }
        node.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_dropped() {
    let Some(redis) = shared() else { return };
    let node = Node::on(&redis).await;
    let user = user();
    node.bus.subscribe(user).await.unwrap();
    let torn = envelope(1).encode().slice(..40);
    assert_eq!(node.bus.publish(&[(user, torn)]).await, [Receivers::Count(1)]);
    node.publish(user, 2).await;
    until("the next one arrives", SOON, async || node.received.of(user) == [2]).await;
    assert_eq!(node.bus.undecodable(), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_counts_the_nodes() {
    let Some(redis) = shared() else { return };
    let (one, two) = (Node::on(&redis).await, Node::on(&redis).await);
    let user = user();
    assert_eq!(one.publish(user, 1).await, Receivers::Count(0));
    one.bus.subscribe(user).await.unwrap();
    assert_eq!(two.publish(user, 2).await, Receivers::Count(1));
    two.bus.subscribe(user).await.unwrap();
    assert_eq!(two.publish(user, 3).await, Receivers::Count(2));
    until("both got it", SOON, async || {
        one.received.of(user) == [2, 3] && two.received.of(user) == [3]
    })
    .await;
    one.stop().await;
    until("only one is left", SOON, async || two.publish(user, 4).await == Receivers::Count(1))
        .await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_who_come_and_go_at_once_end_as_they_should() {
    let Some(redis) = shared() else { return };
    let node = Node::on(&redis).await;
    let users: Vec<UserId> = (0..40).map(|_| user()).collect();
    let come_and_go = |user: UserId, stays: bool| {
        let bus = node.bus.clone();
        async move {
            for round in 0..30 {
                bus.subscribe(user).await.unwrap();
                if round % 3 == 0 {
                    // The confirmed subscription is there although the one before was just ended.
                    let receivers = bus.publish(&[(user, envelope(1).encode())]).await;
                    assert_eq!(receivers, [Receivers::Count(1)]);
                }
                bus.unsubscribe(user);
            }
            if stays {
                bus.subscribe(user).await.unwrap();
            }
        }
    };
    // Four sessions of each user at once; of half of the users one stays.
    let sessions = users
        .iter()
        .enumerate()
        .flat_map(|(n, user)| (0..4).map(move |session| (*user, n % 2 == 0 && session == 0)));
    let sessions: JoinSet<()> = sessions.map(|(user, stays)| come_and_go(user, stays)).collect();
    sessions.join_all().await;
    assert_eq!(node.bus.subscriptions(), 20);
    for (n, user) in users.iter().enumerate() {
        let expected = Receivers::Count(u32::from(n % 2 == 0));
        until("the server has what is held", SOON, async || {
            node.publish(*user, 2).await == expected
        })
        .await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_subscriptions_take_few_commands() {
    let Some(redis) = OwnRedis::start().await else {
        return;
    };
    let node = Node::on(&redis.config()).await;
    let users: Vec<UserId> = (0..10_000).map(|_| user()).collect();
    for result in join_all(users.iter().map(|user| node.bus.subscribe(*user))).await {
        result.unwrap();
    }
    let stats: String = redis.command(&["INFO", "commandstats"]).await;
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_subscribe:calls="));
    let calls: u32 = calls.unwrap().split(',').next().unwrap().parse().unwrap();
    assert!(calls <= 100, "{calls} commands");
    node.delivers_to(&users, 1).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_subscriber_connection_is_a_gap_and_comes_back() {
    let Some(redis) = OwnRedis::start().await else {
        return;
    };
    let node = Node::on(&redis.config()).await;
    let users: Vec<UserId> = (0..100).map(|_| user()).collect();
    join_all(users.iter().map(|user| node.bus.subscribe(*user))).await;
    for round in 1..=3 {
        let killed: usize = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        assert_eq!(killed, 1);
        until("the gap is told", SOON, async || node.received.gaps() == round).await;
        assert!(node.bus.is_whole());
        node.delivers_to(&users, round as Seq).await;
        assert_eq!(node.bus.reconnects(), round as u64);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_publisher_connection_comes_back_without_a_gap() {
    let Some(redis) = OwnRedis::start().await else {
        return;
    };
    let node = Node::on(&redis.config()).await;
    let user = user();
    node.bus.subscribe(user).await.unwrap();
    let killed: usize = redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    assert_eq!(killed, 1);
    until("the loss is noticed", SOON, async || node.bus.reconnects() == 1).await;
    assert_eq!(node.publish(user, 1).await, Receivers::Count(1));
    assert_eq!(node.received.gaps(), 0);
    node.stop().await;
}

/// A server that is stopped, not dead, keeps its connections: only what does not come back shows it.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_redis_is_noticed_and_nobody_waits_for_long() {
    let Some(redis) = OwnRedis::start().await else {
        return;
    };
    let node = Node::on(&redis.config()).await;
    let users: Vec<UserId> = (0..100).map(|_| user()).collect();
    join_all(users.iter().map(|user| node.bus.subscribe(*user))).await;
    until("a probe came back", SOON, async || node.bus.probe_lag().is_some()).await;

    redis.pause();
    let paused = Instant::now();
    let batch: Vec<_> = (0..2_000).map(|seq| (users[0], envelope(seq).encode())).collect();
    assert_eq!(node.bus.publish(&batch).await, vec![Receivers::Unknown; 2_000]);
    assert!(paused.elapsed() < Duration::from_secs(3), "took {:?}", paused.elapsed());
    until("the loss is noticed", Duration::from_secs(5), async || !node.bus.is_whole()).await;

    // Once it is known to be away, a publish does not wait at all.
    let known = Instant::now();
    assert_eq!(node.publish(users[0], 1).await, Receivers::Unknown);
    assert!(known.elapsed() < Duration::from_secs(1), "took {:?}", known.elapsed());
    assert!(node.bus.ping().await.is_err());
    // A call that fails, and one that is dropped, leave nothing behind.
    let (failing, dropped) = (user(), user());
    let one_second = Duration::from_secs(1);
    assert!(tokio::time::timeout(one_second, node.bus.subscribe(dropped)).await.is_err());
    let asked = Instant::now();
    let failed = node.bus.subscribe(failing).await;
    assert!(matches!(failed, Err(BusError::Unavailable(_))), "{failed:?}");
    assert!(asked.elapsed() < Duration::from_secs(6), "took {:?}", asked.elapsed());
    assert_eq!((node.bus.subscriptions(), node.received.gaps()), (100, 0));

    redis.resume();
    until("the gap is told", SOON, async || node.received.gaps() == 1).await;
    assert!(node.bus.is_whole());
    until("publishing works", SOON, async || node.bus.ping().await.is_ok()).await;
    // What the server was sent before may still be delivered, through the old connections.
    let settled = async || node.publish(users[0], 5_000).await == Receivers::Count(1);
    until("the old connections are gone", SOON, settled).await;
    node.delivers_to(&users, 10_000).await;
    assert_eq!(node.publish(failing, 1).await, Receivers::Count(0));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_all_subscriptions_are_back() {
    let Some(mut redis) = OwnRedis::start().await else {
        return;
    };
    let node = Node::on(&redis.config()).await;
    let users: Vec<UserId> = (0..7_000).map(|_| user()).collect();
    join_all(users.iter().map(|user| node.bus.subscribe(*user))).await;

    redis.kill();
    until("the loss is noticed", SOON, async || !node.bus.is_whole()).await;
    assert_eq!(node.publish(users[0], 1).await, Receivers::Unknown);
    // Changes made meanwhile hold; this one waits for the server.
    node.bus.unsubscribe(users[0]);
    let late = user();
    let (subscribed, ()) = tokio::join!(node.bus.subscribe(late), redis.start_again());
    subscribed.unwrap();
    until("the gap is told", SOON, async || node.received.gaps() == 1).await;
    until("publishing works", SOON, async || node.bus.ping().await.is_ok()).await;
    assert_eq!(node.publish(users[0], 2).await, Receivers::Count(0));
    let held: Vec<_> = users[1..].iter().copied().chain([late]).collect();
    node.delivers_to(&held, 3).await;
    assert_eq!(held.iter().collect::<HashSet<_>>().len(), node.bus.subscriptions());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_stop_nothing_works_and_nothing_waits() {
    let Some(redis) = shared() else { return };
    let node = Node::on(&redis).await;
    let user = user();
    node.bus.subscribe(user).await.unwrap();
    let bus = node.bus.clone();
    node.stop().await;
    let stopped = Instant::now();
    assert!(bus.subscribe(user).await.is_err());
    assert_eq!(bus.publish(&[(user, envelope(1).encode())]).await, [Receivers::Unknown]);
    assert!(!bus.is_whole());
    bus.unsubscribe(user);
    assert!(stopped.elapsed() < Duration::from_secs(1), "took {:?}", stopped.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_not_there_or_wrongly_named_is_an_error() {
    let connect = async |url: &str| {
        let shards = Shards::connect(&named(url.into()), Metrics::new().0).await?;
        let stage = Stage::new("bus", CancellationToken::new());
        let bus = Bus::connect(Some(&shards), Arc::new(Received::default()), &stage).await;
        let error = bus.err().expect("there is no such Redis");
        assert!(matches!(error, BusError::Unavailable(_)), "{error}");
        Err::<Shards, _>(ShardsError::Unavailable(error.to_string()))
    };
    for url in [
        "redis://:secret@127.0.0.1:1",
        "redis-sentinel://:secret@127.0.0.1:1/main",
        "redis-cluster://:secret@127.0.0.1:1,127.0.0.1:2",
    ] {
        let away = connect(url).await.err().unwrap();
        assert!(matches!(away, ShardsError::Unavailable(_)), "{url}: {away}");
        assert!(!away.to_string().contains("secret"));
    }
    let wrong = connect("http://:secret@127.0.0.1").await.err().unwrap();
    assert!(matches!(wrong, ShardsError::Rejected(_)), "{wrong}");
    assert!(!wrong.to_string().contains("secret"));
}
