//! Redis beyond one server, over TLS and as a user of few rights: sentinels, and a cluster whose masters
//! die and whose slots move, all under traffic.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tidings::bus::{Partitions, Receivers};
use tidings::ids::UserId;
use tidings::presence::Status;
use tidings::shards::{Shards, ShardsError};
use tidings::shutdown::Stage;
use tidings::telemetry::Metrics;

use crate::bus::{Node as Bus, envelope, user};
use crate::check::check;
use crate::harness::client::{Client, Opening};
use crate::harness::cluster::{Kind, run};
use crate::harness::http::Rest;
use crate::own_redis::until;
use crate::presence::{Node as Presence, entry};
use crate::redises::Redises;

const LIMIT: Duration = Duration::from_secs(60);

/// Publishes to all in turn until told to stop; what arrived nowhere is somebody's to notice.
async fn talk(bus: &Bus, users: &[UserId], stop: &AtomicBool) -> usize {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let bytes = envelope(0).encode();
        let batch: Vec<_> = users.iter().map(|user| (*user, bytes.clone())).collect();
        bus.bus.publish(&batch).await;
        sent += 1;
    }
    sent
}

/// All that is promised, by real nodes: who is there gets it at once, who is not is known to be away.
async fn serves(redis: &Redises) {
    let config = redis.config();
    let ca = config.ca_file.unwrap().display().to_string();
    let settings = [
        ("REDIS_URL", config.url.as_str()),
        ("REDIS_CA_FILE", ca.as_str()),
        ("REDIS_PREFIX", config.prefix.as_str()),
    ];
    run(Kind::Cluster, &settings, async |cluster| {
        let (alice, bob) = (crate::harness::cluster::user(), crate::harness::cluster::user());
        let conversation = cluster.group(0, alice, &[bob]).await;
        let mut at_alice = cluster.connect(0, alice).await;
        let mut at_bob = cluster.connect(1, bob).await;
        let sent = at_alice.send(conversation, "hello").await;
        assert_eq!(at_bob.new_message().await, sent);
        let rest = Rest::new(cluster.addr(0), Some(bob));
        let ticket = rest.post("/api/v1/ws-tickets", json!({})).await.body(201);
        let query = format!("?ticket={}", ticket["ticket"].as_str().unwrap());
        let opening = Opening { query, ..Opening::new(bob) };
        Client::open(cluster.addr(1), opening).await.expect("a ticket of the other node opens");
        cluster.settled().await;

        let told = check(&cluster.ground.settings("0")).await;
        assert_eq!(told.problems(), 0, "{told:?}");
        told.expect("redis", "tls", "ok", "encrypted");
        let masters = redis.masters().len();
        for name in ["reachable", "version", "commands", "channels"] {
            let of_each = told.all("redis", name);
            assert_eq!(of_each.len(), masters, "{name}: {told:?}");
            assert!(of_each.iter().all(|found| found["grade"] == "ok"), "{told:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_a_user_of_few_rights_are_enough() {
    let Some(redis) = Redises::one().await else { return };
    serves(&redis).await;
    let mut config = redis.config();
    let shards = Shards::connect(&config, Metrics::new().0).await.unwrap();
    tidings::presence::orphans(&shards).await.unwrap();
    // Another authority's word is not taken, nor a wrong password.
    let connect = async |config| {
        let shards = Shards::connect(config, Metrics::new().0).await?;
        let inbox: std::sync::Arc<crate::bus::Received> = Default::default();
        let stage = Stage::new("bus", Default::default());
        let bus = tidings::bus::Bus::connect(Some(&shards), inbox, &stage).await;
        Ok::<_, ShardsError>(bus.err().expect("it must be refused").to_string())
    };
    config.ca_file = None;
    let text = connect(&config).await.unwrap();
    assert!(text.to_lowercase().contains("certificate"), "{text}");
    let mut config = redis.config();
    config.url = config.url.replace("geheim", "falsch");
    let text = connect(&config).await.unwrap();
    assert!(text.contains("cannot be used as it is set") && !text.contains("falsch"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_name_a_new_master_and_the_node_follows() {
    let Some(mut redis) = Redises::sentinels().await else { return };
    let config = redis.config();
    let bus = Bus::on(&config).await;
    let presence = Presence::on(&config).await.certain().await;
    let users: Vec<UserId> = (0..300).map(|_| user()).collect();
    join_all(users.iter().map(|user| bus.bus.subscribe(*user))).await;
    let (here, away, old) = (user(), user(), presence.presence.node_id());
    presence.presence.register(here, entry("phone", 0)).await.unwrap();
    assert_eq!(presence.status(away).await, Status::Offline { last_seen: None });

    let stop = AtomicBool::new(false);
    let fails_over = async {
        redis.lose_master().await;
        until("the loss is noticed", LIMIT, async || !bus.bus.is_whole()).await;
        redis.replaced(1).await;
        until("the gap is told", LIMIT, async || bus.received.gaps() > 0).await;
        stop.store(true, Ordering::Relaxed);
    };
    let (sent, ()) = tokio::join!(talk(&bus, &users, &stop), fails_over);
    assert!(sent > 1);
    until("publishing works", LIMIT, async || {
        bus.publish(users[0], 1).await == Receivers::Count(1)
    })
    .await;
    bus.delivers_to(&users, 2).await;
    // The replica may lack the last that was registered: a new lease, and nobody is called offline.
    until("there is a new lease", LIMIT, async || presence.presence.node_id() != old).await;
    assert_eq!(presence.status(away).await, Status::Unknown { last_seen: None });
    presence.presence.register(here, entry("phone", 1)).await.unwrap();
    assert!(matches!(presence.status(here).await, Status::Online(_)));
    let presence = presence.certain().await;
    assert_eq!(presence.status(away).await, Status::Offline { last_seen: None });
    presence.stop().await;
    bus.stop().await;
    serves(&redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_loses_a_master_and_moves_slots_and_all_is_found() {
    let Some(mut redis) = Redises::cluster().await else { return };
    let config = redis.config();
    let bus = Bus::on(&config).await;
    let presence = Presence::on(&config).await.certain().await;
    let users: Vec<UserId> = (0..600).map(|_| user()).collect();
    for result in join_all(users.iter().map(|user| bus.bus.subscribe(*user))).await {
        result.unwrap();
    }
    bus.delivers_to(&users, 1).await;
    let (here, away) = users.split_at(300);
    let register = |user: &UserId| presence.presence.register(*user, entry("phone", 0));
    for registered in join_all(here.iter().map(register)).await {
        registered.unwrap();
    }
    let online = async |users: &[UserId]| {
        let statuses = presence.presence.status(users).await;
        statuses.iter().filter(|status| matches!(status, Status::Online(_))).count()
    };
    assert_eq!((online(here).await, online(away).await), (300, 0));

    // Slots move, and with them the users of some partitions: these alone may have missed something.
    let stop = AtomicBool::new(false);
    let moves = async {
        tokio::task::block_in_place(|| redis.move_slots(2_000));
        until("the gap is told", LIMIT, async || bus.received.gaps() > 0 && bus.bus.is_whole())
            .await;
        stop.store(true, Ordering::Relaxed);
    };
    let (_, ()) = tokio::join!(talk(&bus, &users, &stop), moves);
    bus.delivers_to(&users, 2).await;
    assert_eq!((online(here).await, online(away).await), (300, 0));
    let of_gap = |user: &&UserId| bus.received.partitions.lock().unwrap().unwrap().contain(**user);
    let missed = users.iter().filter(of_gap).count();
    println!("{missed} of {} users are told to read again", users.len());
    assert!(missed > 0 && missed < users.len() * 2 / 3);
    assert!(presence.presence.absence_is_certain(), "nothing was lost");

    // A master dies. Who lies elsewhere is known about, and its users are nobody's word for offline.
    let old = presence.presence.node_id();
    *bus.received.partitions.lock().unwrap() = Some(Partitions::NONE);
    let gaps = bus.received.gaps();
    let stop = AtomicBool::new(false);
    let dies = async {
        redis.lose_master().await;
        until("the loss is noticed", LIMIT, async || !bus.bus.is_whole()).await;
        let statuses = presence.presence.status(away).await;
        let unknown = statuses.iter().filter(|status| !status.is_known()).count();
        println!("{unknown} of {} users are not known about", away.len());
        assert!(unknown > 0);
        redis.replaced(3).await;
        until("the gap is told", LIMIT, async || bus.received.gaps() > gaps && bus.bus.is_whole())
            .await;
        stop.store(true, Ordering::Relaxed);
    };
    let (_, ()) = tokio::join!(talk(&bus, &users, &stop), dies);
    until("publishing works", LIMIT, async || {
        let counts = users.iter().map(|user| (*user, envelope(3).encode())).collect::<Vec<_>>();
        bus.bus.publish(&counts).await == vec![Receivers::Count(1); users.len()]
    })
    .await;
    bus.delivers_to(&users, 4).await;
    let missed: HashSet<_> = users.iter().filter(of_gap).collect();
    println!("{} of {} users are told to read again", missed.len(), users.len());
    assert!(missed.len() < users.len() * 2 / 3, "only those of the master that died");
    until("there is a new lease", LIMIT, async || presence.presence.node_id() != old).await;

    // A master without slots, as before it is taken out: its two tasks end, which is no fault.
    let gaps = bus.received.gaps();
    tokio::task::block_in_place(|| redis.move_slots(16_384));
    until("the gap is told", LIMIT, async || bus.received.gaps() > gaps && bus.bus.is_whole())
        .await;
    bus.delivers_to(&users, 5).await;
    presence.certain().await.stop().await;
    bus.stop().await;
    serves(&redis).await;
}
