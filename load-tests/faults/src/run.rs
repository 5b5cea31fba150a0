//! One run: services, nodes, people, faults; then peace, the final resume, the end of all, and what
//! is left over. All that the checker wants to see is written to the run's folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tidings_client::dice::Dice;
use tidings_client::history::{Entry, History};
use tidings_client::target::Target;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::nodes::{Common, Node};
use crate::proxy::Proxy;
use crate::scenario::{Scenario, UPGRADE};
use crate::services::{self, Service, Services};
use crate::stage::Stage;
use crate::world::{Plan, World, until};

/// For each of the steps that follow the faults. They are short unless something is wrong.
const STEP: Duration = Duration::from_secs(150);
const NODES: usize = 3;
/// Users beyond whom a door before each node would need more files than one process may open.
const MANY: usize = 3_000;
/// Three leases of a node, and a slow machine.
const PRESENCE_LIMIT: Duration = Duration::from_secs(60);

/// From the last proof to its line in the history.
const NOTED_WITHIN: Duration = Duration::from_millis(300);
/// From a gap to the page that fills it: nodes tell of it over three seconds.
const TOLD_WITHIN: Duration = Duration::from_secs(6);

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    services: services::Addresses,
    /// The binary of the nodes.
    #[arg(long)]
    binary: PathBuf,
    /// What all that happens by chance follows from.
    #[arg(long)]
    pub seed: u64,
    /// How long there is traffic; at most ten minutes.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: Option<u64>,
    /// The binary that the nodes of an upgrade start with.
    #[arg(long)]
    older: Option<PathBuf>,
    /// What nodes that can be told so do wrong on purpose.
    #[arg(long)]
    sabotage: Option<String>,
    /// Else as many as suit the scenario.
    #[arg(long)]
    users: Option<usize>,
    /// Messages a second, all together.
    #[arg(long, default_value_t = 50)]
    rate: u64,
    /// For histories, logs and what was found.
    #[arg(long)]
    pub folder: PathBuf,
}

/// What the checker cannot see in histories and stores.
#[derive(Default, Serialize, Deserialize)]
pub struct Circumstances {
    pub strikes: u64,
    /// Conversation and user of whom was let in later: perhaps not for the first time.
    pub added: Vec<(Uuid, Uuid)>,
    /// Whether who is connected must have been told of every change.
    pub tells_all: bool,
    pub losses: Vec<Loss>,
    /// From when until when all sockets were down or on their way back, in the history's time.
    pub storms: Vec<(u64, u64)>,
    /// What should be gone, and is not.
    pub leftovers: Vec<String>,
}

/// Commits that a standby did not have when it took the primary's place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Loss {
    /// Of the store until then.
    pub epoch: Uuid,
    /// Where each conversation's log stood on the standby.
    pub heads: BTreeMap<Uuid, u64>,
}

pub async fn run(args: Args, scenario: &Scenario) -> anyhow::Result<()> {
    ensure!(
        args.older.is_some() == (scenario.name == UPGRADE),
        "an older release is for {UPGRADE}"
    );
    let folder = args.folder.clone();
    let run = format!("faults_{}_{}", scenario.name.replace('-', "_"), args.seed);
    let mut dice = Dice::of(args.seed, 10);
    let services = Services::new(args.services, scenario.redis);
    services.one_postgres().await?;
    if scenario.needs_standby() {
        services.new_standby().await?;
    }
    services.call("up", Service::Redis).await?;
    services.call("up", Service::Kafka).await?;
    services.save_redis(false).await?;
    services.sql("tidings", &format!("drop database if exists {run} with (force)")).await?;
    services.sql("tidings", &format!("create database {run}")).await?;
    let kafka = Proxy::start(services.kafka_proxy_port(), services.addr(Service::Kafka)?).await?;
    // A topic outlives its run: a run that is repeated takes another.
    let topic = format!("{run}.{}", Uuid::new_v4().simple());
    let plan = plan(scenario, args.users, args.rate);
    let mut extra = Vec::from(match scenario.name {
        "slow-clients" => &[("WS_CLIENT_BUFFER_SIZE", "64")][..],
        // Ten thousand sockets of one process answer more slowly than it takes others.
        "storm" => &[
            ("HEARTBEAT_INTERVAL", "20s"),
            ("HEARTBEAT_TIMEOUT", "20s"),
            ("NODE_LEASE", "5s"),
            ("OFFLINE_AFTER", "10s"),
        ],
        _ => &[],
    });
    if let Some(mutation) = &args.sabotage {
        extra.push(("SABOTAGE", mutation));
    }
    let redis = services.redis_url()?;
    if let Some(url) = &redis {
        extra.push(("REDIS_URL", url));
    }
    let common = Common {
        binary: args.binary.canonicalize().context("the binary")?,
        older: args
            .older
            .map(|older| older.canonicalize())
            .transpose()
            .context("the older binary")?,
        folder: folder.clone(),
        services: &services,
        run: &run,
        topic: &topic,
        kafka: kafka.addr(),
        extra: &extra,
    };
    let mut nodes = Vec::new();
    for number in 1..=NODES {
        nodes.push(Node::prepare(&common, number, &mut dice).await?);
    }
    nodes[0].migrate().await?;
    for node in &nodes {
        node.start().await?;
        says_what_the_store_survives(node, scenario.needs_standby()).await?;
    }
    let history = History::create(&folder.join("history.jsonl"))?;
    let targets: Vec<Target> = nodes.iter().map(Node::target).collect();
    let doors = match plan.users {
        0..MANY => nodes.iter().map(Node::door_target).collect(),
        _ => targets.clone(),
    };
    let mut world = World::create(plan, args.seed, &targets, doors, &history).await?;
    eprintln!("faults: {} conversations, {} devices", world.groups.len(), world.devices().count());
    world.connect().await?;

    let stage = Stage {
        nodes: &nodes,
        services: &services,
        world: &world,
        kafka: &kafka,
        history: &history,
        struck: AtomicU64::new(0),
        database: &run,
        losses: Mutex::default(),
        storms: Mutex::default(),
    };
    let time = Duration::from_secs(args.seconds.unwrap_or(scenario.seconds));
    let until_then = Instant::now() + time;
    let plays = scenario.strikes.iter().enumerate();
    let plays =
        plays.map(|(at, list)| stage.play(list, until_then, Dice::of(args.seed, 20 + at as u64)));
    let (struck, ()) = tokio::join!(all(plays.collect()), world.live(time, args.seed, &targets));
    struck.context("a strike")?;
    stage.heal().await.context("healing")?;
    let strikes = stage.struck.load(Ordering::Relaxed);

    eprintln!("faults: {:>6} ms peace", history.elapsed_ms());
    let Stage { losses, storms, .. } = stage;
    let mut left = Circumstances {
        strikes,
        added: world.added(),
        tells_all: scenario.tells_all(),
        losses: losses.into_inner(),
        storms: storms.into_inner(),
        leftovers: Vec::new(),
    };
    let limits = async {
        world.answered(STEP).await?;
        settled(&services, &run).await?;
        // Whoever is told something now knows it by the time it is noted.
        sleep(if left.tells_all { TOLD_WITHIN } else { NOTED_WITHIN }).await;
        history.note(Uuid::nil(), "run", Entry::Settled);
        eprintln!("faults: {:>6} ms settled", history.elapsed_ms());
        world.resume(STEP).await
    };
    left.note(limits.await);
    left.note(world.end(STEP).await);
    history.flush()?;
    eprintln!("faults: {:>6} ms all have left", history.elapsed_ms());

    left.note(nobody_is_there(&services, &run, &nodes).await);
    left.note(settled(&services, &run).await);
    left.note(nodes[0].verify().await);
    for node in &nodes {
        left.note(node.drain().await);
    }
    left.note(nothing_in_redis(&services, &run).await);
    left.note(nobody_is_connected(&services, &run).await);
    for node in &nodes {
        left.note(read_log(node.log()));
    }
    evidence(&services, &run, &topic, &folder).await?;
    std::fs::write(folder.join("circumstances.json"), serde_json::to_vec_pretty(&left)?)?;
    services.sql("tidings", &format!("drop database if exists {run} with (force)")).await?;
    services.one_postgres().await
}

/// Without a synchronous standby a warning is in the log, with one the gauge is 1.
async fn says_what_the_store_survives(node: &Node, standby: bool) -> anyhow::Result<()> {
    let gauge = node.metric("tidings_store_synchronous_standby").await?;
    let warned = std::fs::read_to_string(node.log())?.contains("no synchronous standby");
    let right = (gauge == 1.0, warned) == (standby, !standby);
    ensure!(right, "{}: standby {standby}, gauge {gauge}, warned {warned}", node.name);
    Ok(())
}

fn plan(scenario: &Scenario, users: Option<usize>, rate: u64) -> Plan {
    let usual = Plan { users: 220, absent_percent: 12, conversations: 73, rate, big: false };
    let plan = match scenario.name {
        // What a slow client is to miss must be much for each, or the kernel keeps it for him.
        "slow-clients" => Plan { users: 55, conversations: 8, big: true, ..usual },
        // With a second device of some: ten thousand sockets.
        "storm" => Plan { users: 9_000, absent_percent: 2, conversations: 450, ..usual },
        _ => usual,
    };
    let users = users.unwrap_or(plan.users);
    Plan { users, conversations: (plan.conversations * users / plan.users).max(1), ..plan }
}

impl Circumstances {
    fn note(&mut self, outcome: anyhow::Result<()>) {
        if let Err(error) = outcome {
            eprintln!("faults: {error:#}");
            self.leftovers.push(format!("{error:#}"));
        }
    }
}

async fn all(plays: Vec<impl Future<Output = anyhow::Result<()>>>) -> anyhow::Result<()> {
    let mut running: Vec<_> = plays.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        let mut failed = None;
        running.retain_mut(|play| match play.as_mut().poll(cx) {
            std::task::Poll::Pending => true,
            std::task::Poll::Ready(outcome) => {
                failed = failed.take().or(outcome.err());
                false
            }
        });
        match failed {
            Some(error) => std::task::Poll::Ready(Err(error)),
            None if running.is_empty() => std::task::Poll::Ready(Ok(())),
            None => std::task::Poll::Pending,
        }
    })
    .await
}

/// No batch waits for its dispatch or its grace, and nobody lacks anything.
async fn settled(services: &Services, run: &str) -> anyhow::Result<()> {
    let mut last = String::new();
    let none = until("outbox and laggards are empty", STEP, async || {
        let count = "select (select count(*) from outbox) || ' outbox rows, '
            || (select count(*) from laggards) || ' laggards'";
        last = services.sql(run, count).await?.trim().to_owned();
        Ok(last == "0 outbox rows, 0 laggards")
    });
    none.await.with_context(|| format!("left over: {last}"))
}

/// Neither a socket nor presence nor a subscription is left while the nodes still run.
async fn nobody_is_there(services: &Services, run: &str, nodes: &[Node]) -> anyhow::Result<()> {
    for node in nodes {
        let mut open = 0.0;
        let none = until("no socket is open", PRESENCE_LIMIT, async || {
            open = node.metric("tidings_sockets_open").await?;
            Ok(open == 0.0)
        });
        none.await.with_context(|| format!("left over: {open} sockets of {}", node.name))?;
    }
    let mut last = Vec::new();
    let none = until("no channel of a user is subscribed", PRESENCE_LIMIT, async || {
        let channels =
            services.redis(&["pubsub", services.topology.channels(), &format!("{run}:*")]).await?;
        last = channels.lines().filter(|name| name.contains(":user:")).map(str::to_owned).collect();
        Ok(last.is_empty())
    });
    none.await.with_context(|| format!("left over: {} subscriptions", last.len()))?;
    let mut last = Vec::new();
    let none = until("nobody is present", PRESENCE_LIMIT, async || {
        last = present(services, run).await?;
        Ok(last.is_empty())
    });
    none.await.with_context(|| format!("left over: presence of {last:?}"))
}

/// Entries whose node's lease lives.
async fn present(services: &Services, run: &str) -> anyhow::Result<Vec<String>> {
    let leases = services.redis(&["--scan", "--pattern", &format!("{run}:node:*")]).await?;
    let keys = services.redis(&["--scan", "--pattern", &format!("{run}:*:presence:*")]).await?;
    let mut present = Vec::new();
    for key in keys.lines() {
        let entries = services.redis(&["hvals", key]).await?;
        for entry in entries.lines() {
            let entry: serde_json::Value = serde_json::from_str(entry).unwrap_or_default();
            let node = entry["node"].as_str().unwrap_or_default();
            if !node.is_empty() && leases.lines().any(|lease| lease.ends_with(node)) {
                present.push(key.to_owned());
            }
        }
    }
    Ok(present)
}

/// After the nodes stopped.
async fn nothing_in_redis(services: &Services, run: &str) -> anyhow::Result<()> {
    let pattern = format!("{run}:*");
    let channels = services.redis(&["pubsub", services.topology.channels(), &pattern]).await?;
    ensure!(channels.trim().is_empty(), "left over: subscriptions {channels}");
    let leases =
        || async { services.redis(&["--scan", "--pattern", &format!("{run}:node:*")]).await };
    until("leases have ended", PRESENCE_LIMIT, async || Ok(leases().await?.trim().is_empty()))
        .await?;
    // What a node that was killed left there forgets itself.
    let lasting = "local lasting = {}
        for _, key in ipairs(redis.call('keys', ARGV[1])) do
            if redis.call('ttl', key) == -1 then table.insert(lasting, key) end
        end
        return lasting";
    let lasting = services.redis(&["eval", lasting, "0", &format!("{run}:*")]).await?;
    ensure!(lasting.trim().is_empty(), "left over for ever: {lasting}");
    Ok(())
}

/// No connection to the store is left, nor what it would lock.
async fn nobody_is_connected(services: &Services, run: &str) -> anyhow::Result<()> {
    let mut last = String::new();
    let none = until("nobody is connected to the store", STEP, async || {
        let count = "select count(*) from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid()";
        last = services.sql(run, count).await?.trim().to_owned();
        Ok(last == "0")
    });
    none.await.with_context(|| format!("left over: {last} connections"))
}

fn read_log(log: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(log)?;
    let panicked = text.lines().find(|line| line.contains("panicked"));
    ensure!(panicked.is_none(), "{}: {}", log.display(), panicked.unwrap_or_default());
    Ok(())
}

async fn evidence(
    services: &Services,
    run: &str,
    topic: &str,
    folder: &Path,
) -> anyhow::Result<()> {
    for (name, statement) in [
        (
            "messages",
            "select id, conversation_id, seq, change_seq, sender_id, client_message_id, content,
            deleted_at is not null as deleted from messages order by conversation_id, seq",
        ),
        (
            "participants",
            "select conversation_id, user_id, joined_seq, left_seq, history_from_seq, settled_seq
            from participants order by conversation_id, user_id",
        ),
        ("conversations", "select id, last_seq from conversations order by id"),
        ("edits", "select message_id, seq from message_edits order by message_id, seq"),
    ] {
        let rows =
            services.sql(run, &format!("select row_to_json(t) from ({statement}) t")).await?;
        std::fs::write(folder.join(format!("{name}.jsonl")), rows)?;
    }
    std::fs::write(folder.join("offline.jsonl"), services.records(topic).await?)?;
    Ok(())
}
