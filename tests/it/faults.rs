//! What the parts that a node stands on may do to it: go away, hang, cut its connections. What was
//! acknowledged is there and arrives; what was not is refused in a way that can be repeated.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::ConnectOptions;
use tidings::ids::UserId;
use uuid::Uuid;

use crate::handed::{Handed, users};
use crate::harness::client::{Answer, Client, Opening};
use crate::harness::cluster::{Cluster, Ground, Kind, id, on_ground, run, text, user};
use crate::harness::http::Rest;
use crate::harness::metrics::{metric, moves, series, value};
use crate::harness::own_postgres::OwnPostgres;
use crate::harness::process::Process;
use crate::harness::until;
use crate::own_redis::OwnRedis;

/// Longer than any recovery may take.
const RECOVERY: Duration = Duration::from_secs(40);

async fn receives(client: &mut Client, message: &Value) {
    while client.new_message_within(RECOVERY).await["id"] != message["id"] {}
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_away_sends_are_acknowledged_and_nothing_is_lost() {
    let Some(mut redis) = OwnRedis::start().await else { return };
    let url = redis.config().url;
    let settings = [("REDIS_URL", url.as_str()), ("OFFLINE_AFTER", "90s")];
    run(Kind::Cluster, &settings, async |cluster| {
        let (alice, bob, carol) = (user(), user(), user());
        let conversation = cluster.group(0, alice, &[bob, carol]).await;
        let mut at_alice = cluster.connect(0, alice).await;
        let mut at_bob = cluster.connect(1, bob).await;
        let mut classic = cluster.connect_classic(1, carol).await;
        let first = at_alice.send(conversation, "before").await;
        assert_eq!(at_bob.new_message().await, first);
        let at = cluster.addr(1);
        let channel = cluster.ground.config("1").redis.unwrap().user_key("user", UserId(bob));
        assert_eq!(redis.command::<i64>(&["PUBLISH", &channel, "no envelope"]).await, 1);
        moves(at, &["tidings_redis_undecodable_total"]).await;
        redis.kill();
        let mut meanwhile = Vec::new();
        for number in 0..5 {
            meanwhile.push(at_alice.send(conversation, &format!("meanwhile {number}")).await);
        }
        let rest = Rest::new(cluster.addr(1), None);
        let ready = until("the node says that the bus is away", async || {
            let ready = rest.get("/ready").await.body(200);
            (ready["bus"] == "down").then_some(ready)
        })
        .await;
        assert_eq!(ready["status"], "degraded", "it can store messages, so it is of use");
        assert_eq!(metric(at, r#"tidings_part_up{part="bus"}"#).await, 0.0);
        let late = Client::handshake(cluster.addr(0), Opening::new(bob)).await;
        assert_eq!(late.unwrap().closed().await.0, 1013, "a socket needs the bus");
        until("who is there is not known", async || {
            let postponed = r#"tidings_laggards_total{outcome="postponed"}"#;
            (cluster.metric(postponed).await > 0.0).then_some(())
        })
        .await;
        redis.start_again().await;
        at_bob.event("resync", "he may have missed something").await;
        assert_eq!(classic.closed().await.0, 4003);
        let counted = [
            "tidings_bus_gaps_total",
            "tidings_redis_reconnects_total",
            "tidings_redis_lease_losses_total",
        ];
        moves(at, &counted).await;
        moves(at, &[r#"tidings_part_up{part="bus"}"#]).await;
        for message in &meanwhile {
            receives(&mut at_bob, message).await;
        }
        let after = at_alice.send(conversation, "after").await;
        receives(&mut at_bob, &after).await;
        cluster.settled_within(RECOVERY).await;
    })
    .await;
}

/// The connections stay open and nobody answers: the cruel case.
#[tokio::test(flavor = "multi_thread")]
async fn while_redis_hangs_sends_are_acknowledged_and_nothing_is_lost() {
    let Some(redis) = OwnRedis::start().await else { return };
    let url = redis.config().url;
    let settings = [("REDIS_URL", url.as_str()), ("OFFLINE_AFTER", "90s")];
    run(Kind::Cluster, &settings, async |cluster| {
        let (alice, bob) = (user(), user());
        let conversation = cluster.group(0, alice, &[bob]).await;
        let mut at_alice = cluster.connect(0, alice).await;
        let mut at_bob = cluster.connect(1, bob).await;
        redis.pause();
        let mut sent = Vec::new();
        let mut slowest = Duration::ZERO;
        // More batches than may wait for their dispatch, and not so many that he has to read.
        for number in 0..90 {
            let started = Instant::now();
            sent.push(at_alice.send(conversation, &format!("{number}")).await);
            slowest = slowest.max(started.elapsed());
        }
        println!("the slowest answer took {slowest:?}");
        redis.resume();
        assert!(slowest < Duration::from_secs(5), "answers wait for Redis: {slowest:?}");
        let mut wanted: BTreeSet<_> = sent.iter().map(|m| id(&m["id"])).collect();
        while !wanted.is_empty() {
            wanted.remove(&id(&at_bob.new_message_within(RECOVERY).await["id"]));
        }
        let after = at_alice.send(conversation, "after").await;
        receives(&mut at_bob, &after).await;
        cluster.settled_within(RECOVERY).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_stays_away_messages_are_handed_over() {
    let Some(mut redis) = OwnRedis::start().await else { return };
    let url = redis.config().url;
    run(Kind::Cluster, &[("REDIS_URL", &url)], async |cluster| {
        let (alice, bob, carol) = (user(), user(), user());
        let conversation = cluster.group(0, alice, &[bob, carol]).await;
        let _at_bob = cluster.connect(1, bob).await;
        let mut handed = Handed::over(&cluster.ground);
        redis.kill();
        let sent = cluster.send(0, alice, conversation, "by whatever way").await;
        for who in [bob, carol] {
            let record = handed.record_for(&sent, who).await;
            assert_eq!(record["value"]["reason"], "late", "nobody knows who is online");
        }
        redis.start_again().await;
        cluster.settled_within(RECOVERY).await;
    })
    .await;
}

/// Cuts all connections to the test's database, as a fail-over does.
async fn cut_database(ground: &Ground) {
    let options: sqlx::postgres::PgConnectOptions = ground.setting("DATABASE_URL").parse().unwrap();
    let mut connection = options.connect().await.unwrap();
    let statement = "select count(pg_terminate_backend(pid)) from pg_stat_activity
        where datname = current_database() and usename = current_user and pid <> pg_backend_pid()";
    let cut: i64 = sqlx::query_scalar(statement).fetch_one(&mut connection).await.unwrap();
    println!("{cut} connections were cut");
}

/// A commit whose answer is lost may have happened or not: it is looked up, never guessed.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_cuts_connections_each_message_is_stored_once() {
    const SENDERS: usize = 6;
    const EACH: usize = 60;
    let settings = [("SETTLE_GRACE", "3s"), ("OFFLINE_AFTER", "90s")];
    run(Kind::Cluster, &settings, async |cluster: &Cluster| {
        let bob = user();
        let mut at_bob = cluster.connect(0, bob).await;
        let mut senders = Vec::new();
        for at in 0..SENDERS {
            let sender = user();
            let conversation = cluster.group(at, sender, &[bob]).await;
            senders.push((cluster.connect(at, sender).await, conversation));
        }
        // Sends as a client does: the same again until it is answered.
        let send = async |(mut client, conversation): (Client, Uuid)| {
            let mut stored = Vec::new();
            for number in 0..EACH {
                let mut body = text(conversation, &format!("{number}"));
                body["client_message_id"] = format!("c-{number}").into();
                let message = loop {
                    match client.command("send_message", body.clone()).await {
                        Answer::Ok(mut payload) => break payload["message"].take(),
                        Answer::Error(problem) => {
                            assert_eq!(problem["code"], "unavailable", "{problem}");
                            assert!(problem["retry_ms"].is_number(), "{problem}");
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                    }
                };
                stored.push(message);
            }
            stored
        };
        let cuts = async {
            for _ in 0..8 {
                tokio::time::sleep(Duration::from_millis(150)).await;
                cut_database(&cluster.ground).await;
            }
        };
        let (stored, ()) = tokio::join!(join_all(senders.into_iter().map(send)), cuts);
        for of_one in &stored {
            let seqs: Vec<i64> = of_one.iter().map(|m| m["seq"].as_i64().unwrap()).collect();
            assert_eq!(seqs, (2..).take(EACH).collect::<Vec<_>>(), "each took the next seq");
        }
        let mut wanted: BTreeSet<Uuid> = stored.iter().flatten().map(|m| id(&m["id"])).collect();
        assert_eq!(wanted.len(), SENDERS * EACH);
        while !wanted.is_empty() {
            wanted.remove(&id(&at_bob.new_message_within(2 * RECOVERY).await["id"]));
        }
        // What a node had claimed when it was cut off is another's when the claim runs out.
        cluster.settled_within(2 * RECOVERY).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_sends_are_refused_and_can_be_repeated() {
    let Some(mut postgres) = OwnPostgres::start(None).await else { return };
    on_ground(Kind::Cluster, &[], async |ground| {
        let url = postgres.url("postgres");
        let settings = ground.settings_with("0", &[("DATABASE_URL", &url)]);
        let (_node, addr) = Process::node(&settings).await;
        let rest = Rest::new(addr, Some(user()));
        // A standby that is waited for, whether it is there or not.
        for (change, shown) in [("= 'one'", 1.0), ("to default", 0.0)] {
            let change = format!("alter system set synchronous_standby_names {change}");
            postgres.sql(&change).await;
            postgres.sql("select pg_reload_conf()").await;
            until(&change, async || {
                rest.get("/ready").await.body(200);
                let standby = metric(addr, "tidings_store_synchronous_standby").await;
                (standby == shown).then_some(())
            })
            .await;
        }
        let group = json!({ "kind": "group", "participants": [] });
        let group = rest.post("/api/v1/conversations", group).await.body(201);
        let mut body = text(id(&group["id"]), "once");
        body["client_message_id"] = json!("c-1");
        let send = async || rest.post("/api/v1/messages", body.clone()).await;

        postgres.stop();
        send().await.refused(503, "unavailable", None);
        let shown = series(addr).await;
        for name in [
            r#"tidings_sends_refused_total{reason="unavailable"}"#,
            r#"tidings_store_failures_total{reason="unavailable"}"#,
        ] {
            assert!(value(&shown, name) >= 1.0, "{name}");
        }
        assert_eq!(value(&shown, r#"tidings_part_up{part="store"}"#), 0.0);
        assert_eq!(rest.get("/ready").await.status, 503);

        postgres.start_again().await;
        let stored = until("it is stored", async || {
            let reply = send().await;
            (reply.status == 201).then(|| reply.json())
        })
        .await;
        assert_eq!(send().await.body(200), stored, "once");
        moves(addr, &[r#"tidings_part_up{part="store"}"#]).await;
    })
    .await;
}

/// With Postgres alone a node is durable by itself: its bus is in the process, its offline sink a
/// file.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_postgres_alone_closes_the_loop() {
    on_ground(Kind::Cluster, &[], async |ground| {
        let alone = [
            ("REDIS_URL", ""),
            ("REDIS_PREFIX", ""),
            ("KAFKA_BROKERS", ""),
            ("KAFKA_OFFLINE_TOPIC", ""),
        ];
        let (_node, addr) = Process::node(&ground.settings_with("0", &alone)).await;
        let (alice, bob, carol) = (user(), user(), user());
        let rest = Rest::new(addr, Some(alice));
        let body = json!({ "kind": "group", "participants": [bob, carol] });
        let group = rest.post("/api/v1/conversations", body).await.body(201);
        let mut at_bob = Client::open(addr, Opening::new(bob)).await.unwrap();
        let body = text(id(&group["id"]), "hello");
        let sent = rest.post("/api/v1/messages", body).await.body(201);
        assert_eq!(at_bob.new_message().await, sent);
        let file = ground.data_dir("0").join("offline.jsonl");
        let record = until("it is handed over", async || {
            let text = std::fs::read_to_string(&file).unwrap();
            serde_json::from_str::<Value>(text.lines().next()?).ok()
        })
        .await;
        assert_eq!(record["value"]["message"], sent);
        assert_eq!(users(&record), [carol]);
    })
    .await;
}
