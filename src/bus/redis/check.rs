//! What a node needs of Redis, looked at one by one, for `tidings check`: not only what the bus
//! does, but presence and tickets, too. Leaves nothing behind.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, PushKind, RedisError, Value};
use tokio::sync::mpsc;
use tokio::time::timeout;
use uuid::Uuid;

use super::connection::Connector;
use crate::clock::Timestamp;
use crate::config::{Addr, RedisConfig};
use crate::finding::Findings;
use crate::ids::UserId;
use crate::shards::{Layout, Shards, ShardsError};
use crate::telemetry::Metrics;

const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// Scripts with conditional expiry, `GETDEL` and sharded pub/sub.
const OLDEST: u32 = 7;
/// Of one node: two of the bus, and the pools of presence and tickets.
const CONNECTIONS: u64 = 22;
/// The server's own defaults for subscribers, hard and soft, in bytes: a node's subscription carries
/// all that its users get.
const PUBSUB_LIMITS: (u64, u64) = (32 << 20, 8 << 20);
/// Should this process end before its keys are deleted.
const KEY_LIFE: &str = "10000";

pub async fn check(config: &RedisConfig, found: &mut Findings) {
    let shards = match Shards::connect(config, Metrics::new().0).await {
        Ok(shards) => shards,
        Err(error) => {
            let fix = match &error {
                ShardsError::Rejected(_) => "put the right user and password into REDIS_URL",
                ShardsError::Unavailable(_) => {
                    "start it, and see that REDIS_URL and the way to it are right"
                }
            };
            return found.problem("reachable", format!("{config:?}: {error}"), fix);
        }
    };
    private(config, found);
    let layout = shards.layout();
    for addr in layout.masters() {
        found.place = shards.is_cluster().then(|| format!("{addr:?}"));
        check_master(&shards, &layout, addr, found).await;
    }
    found.place = None;
}

async fn check_master(shards: &Shards, layout: &Layout, addr: &Addr, found: &mut Findings) {
    let (pushed, mut pushes) = mpsc::channel(16);
    let connector = Connector::new(shards, addr, ANSWER_LIMIT, move |push| {
        let _ = pushed.try_send(push);
    });
    let started = Instant::now();
    let mut connection = match connector.open().await {
        Ok(live) => live.connection,
        Err(error) => {
            let fix = "start it, and see that the way to it is right";
            return found.problem("reachable", format!("{addr:?}: {error}"), fix);
        }
    };
    found.ok("reachable", format!("{addr:?} answers, in {} ms", started.elapsed().as_millis()));
    let own = Own { layout, addr };
    server(&mut connection, found).await;
    commands(&mut connection, shards.config(), &own, found).await;
    channels(&mut connection, shards, &own, &mut pushes, found).await;
    clock(&mut connection, found).await;
    subscriber_limits(&mut connection, found).await;
}

/// Which names lie on the master that is looked at.
struct Own<'a> {
    layout: &'a Layout,
    addr: &'a Addr,
}

impl Own<'_> {
    /// A throw-away name that does.
    fn name(&self, make: impl Fn(Uuid) -> String) -> String {
        let mut names = std::iter::repeat_with(|| make(Uuid::new_v4())).take(1 << 16);
        names.find(|name| self.layout.owner(name) == Some(self.addr)).unwrap_or_default()
    }
}

fn private(config: &RedisConfig, found: &mut Findings) {
    let encrypted = config.url.starts_with("rediss");
    match encrypted {
        true => found.ok("tls", "encrypted"),
        false => {
            let detail =
                "the connection is not encrypted: whoever is in between reads all messages";
            found.warning("tls", detail, "rediss://, unless Redis is on this machine");
        }
    }
}

/// What `INFO` tells, which a node asks for, too.
async fn server(connection: &mut MultiplexedConnection, found: &mut Findings) {
    let info = match ask::<String>(connection, &redis::cmd("INFO")).await {
        Ok(info) => info,
        Err(error) => {
            let fix = "let this user use INFO: by it a node sees that the server was restarted";
            return found.problem("version", error.to_string(), fix);
        }
    };
    let told = |name: &str| -> Option<&str> {
        info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    let number = |name| told(name).and_then(|text| text.parse::<u64>().ok());
    let version = told("redis_version").unwrap_or("unknown");
    let major = version.split('.').next().and_then(|text| text.parse::<u32>().ok());
    match major.is_some_and(|major| major >= OLDEST) {
        true => found.ok("version", format!("Redis {version}")),
        false => found.problem("version", format!("Redis {version}"), "Redis 7 or later"),
    }
    if told("role") == Some("slave") {
        found.problem("role", "it is a replica, which takes no writes", "name the primary");
    }
    let policy = told("maxmemory_policy").unwrap_or("noeviction");
    match number("maxmemory").unwrap_or_default() {
        0 => found.ok("memory", "nothing is evicted (maxmemory 0)"),
        limit if policy == "noeviction" => {
            let used = number("used_memory").unwrap_or_default();
            let detail =
                format!("{} of {} MiB are used, nothing is evicted", used >> 20, limit >> 20);
            match used > limit / 10 * 9 {
                false => found.ok("memory", detail),
                true => {
                    found.warning("memory", detail, "raise maxmemory: a full one takes no writes")
                }
            }
        }
        // All our keys carry an end, so the volatile policies take them first of all.
        _ => found.warning(
            "memory",
            format!("maxmemory-policy {policy} may evict leases and presence: users seem absent"),
            "maxmemory-policy noeviction, and a Redis of its own",
        ),
    }
    if let (Some(limit), Some(taken)) = (number("maxclients"), number("connected_clients")) {
        let detail = format!("a node takes {CONNECTIONS}; {taken} of {limit} are taken");
        match taken + CONNECTIONS <= limit {
            true => found.ok("connections", detail),
            false => found.problem("connections", detail, "raise maxclients"),
        }
    }
}

/// Each command that a node uses, on keys as it makes them.
async fn commands(
    connection: &mut MultiplexedConnection,
    config: &RedisConfig,
    own: &Own<'_>,
    found: &mut Findings,
) {
    let hash = own.name(|id| config.user_key("presence", UserId(id)));
    let lease = own.name(|id| format!("{}:node:{id}", config.prefix));
    let ticket = own.name(|id| format!("{}:ticket:{}", config.prefix, id.simple()));
    let script = "redis.call('HSET', KEYS[1], 'a', '1') \
                  \
                  redis.call('EXPIRE', KEYS[1], 10) \
                  redis.call('HGET', KEYS[1], 'a') \
                  redis.call('HDEL', KEYS[1], 'b') \
                  return redis.call('HGETALL', KEYS[1])";
    let sha = redis::Script::new(script).get_hash().to_owned();
    let calls: [&[&str]; 11] = [
        // The pool's, before a connection is used again.
        &["UNWATCH"],
        &["SET", &lease, "1", "NX", "PX", KEY_LIFE],
        &["SET", &lease, "1", "XX", "PX", KEY_LIFE],
        &["EXISTS", &lease],
        &["EVAL", script, "1", &hash],
        &["EVALSHA", &sha, "1", &hash],
        &["HGETALL", &hash],
        &["SET", &ticket, "1", "PX", KEY_LIFE],
        &["GETDEL", &ticket],
        &["DEL", &lease],
        &["DEL", &hash],
    ];
    let mut refused: Vec<String> = Vec::new();
    for words in calls {
        let mut command = redis::cmd(words[0]);
        words[1..].iter().for_each(|word| {
            command.arg(*word);
        });
        if let Err(error) = ask::<Value>(connection, &command).await {
            let line = format!("{}: {error}", words[0]);
            if !refused.contains(&line) {
                refused.push(line);
            }
        }
    }
    if refused.is_empty() {
        return found
            .ok("commands", format!("all that a node uses, on keys of {}:", config.prefix));
    }
    let fix =
        format!("give this user the keys ~{}:* and these commands (ACL SETUSER)", config.prefix);
    found.problem("commands", refused.join("; "), fix);
}

/// A message to a channel that only this check hears.
async fn channels(
    connection: &mut MultiplexedConnection,
    shards: &Shards,
    own: &Own<'_>,
    pushes: &mut mpsc::Receiver<redis::PushInfo>,
    found: &mut Findings,
) {
    let config = shards.config();
    let channel = own.name(|id| config.user_key("user", UserId(id)));
    let fix = format!(
        "give this user the channels &{}:*, and PUBLISH and SUBSCRIBE (SPUBLISH and SSUBSCRIBE on a Cluster)",
        config.prefix
    );
    let names = match shards.is_cluster() {
        true => ["SSUBSCRIBE", "SPUBLISH", "SUNSUBSCRIBE"],
        false => ["SUBSCRIBE", "PUBLISH", "UNSUBSCRIBE"],
    };
    let [subscribe, publish, unsubscribe] = names.map(|name| {
        let mut command = redis::cmd(name);
        command.arg(&channel);
        command
    });
    let mut publish = publish;
    publish.arg("");
    for (name, command) in [(names[0], &subscribe), (names[1], &publish)] {
        if let Err(error) = ask::<Value>(connection, command).await {
            return found.problem("channels", format!("{name}: {error}"), fix);
        }
    }
    let heard = async {
        while let Some(push) = pushes.recv().await {
            if matches!(push.kind, PushKind::Message | PushKind::SMessage) {
                return true;
            }
        }
        false
    };
    match timeout(ANSWER_LIMIT, heard).await {
        Ok(true) => {
            found.ok("channels", format!("what is published to {}: arrives", config.prefix))
        }
        _ => found.problem("channels", "what was published was not heard", fix),
    }
    let _ = ask::<Value>(connection, &unsubscribe).await;
}

async fn clock(connection: &mut MultiplexedConnection, found: &mut Findings) {
    let (sent, from) = (Instant::now(), Timestamp::now());
    // One that may not be asked is no fault: leases are counted by the server alone.
    if let Ok((seconds, micros)) = ask::<(i64, i64)>(connection, &redis::cmd("TIME")).await {
        let way = sent.elapsed() / 2;
        let theirs = seconds * 1_000 + micros / 1_000;
        found.clock(theirs - from.millis() - way.as_millis() as i64, way);
    }
}

async fn subscriber_limits(connection: &mut MultiplexedConnection, found: &mut Findings) {
    let mut get = redis::cmd("CONFIG");
    get.arg("GET").arg("client-output-buffer-limit");
    let Ok(answer) = ask::<Vec<(String, String)>>(connection, &get).await else {
        return found.ok("buffers", "client-output-buffer-limit may not be asked for here");
    };
    let text = answer.into_iter().next().map(|(_, text)| text).unwrap_or_default();
    let Some((hard, soft)) = pubsub_limits(&text) else {
        return found.ok("buffers", "client-output-buffer-limit has no limit for subscribers");
    };
    let detail =
        format!("a subscriber may lag by {} MiB, or {} for a while", hard >> 20, soft >> 20);
    let small = |limit: u64, usual: u64| limit > 0 && limit < usual;
    match small(hard, PUBSUB_LIMITS.0) || small(soft, PUBSUB_LIMITS.1) {
        false => found.ok("buffers", detail),
        true => found.warning(
            "buffers",
            detail,
            "client-output-buffer-limit pubsub 32mb 8mb 60 or more: a node that is cut off for it \
             has all its clients read anew",
        ),
    }
}

/// The hard and the soft limit out of `normal 0 0 0 slave … pubsub 33554432 8388608 60`.
fn pubsub_limits(text: &str) -> Option<(u64, u64)> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "pubsub")?;
    Some((words.get(at + 1)?.parse().ok()?, words.get(at + 2)?.parse().ok()?))
}

async fn ask<T: redis::FromRedisValue>(
    connection: &mut MultiplexedConnection,
    command: &Cmd,
) -> Result<T, RedisError> {
    match timeout(ANSWER_LIMIT, command.query_async(connection)).await {
        Ok(answer) => answer,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_subscribers_are_found() {
        let text = "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60";
        assert_eq!(pubsub_limits(text), Some(PUBSUB_LIMITS));
        assert_eq!(pubsub_limits("normal 0 0 0"), None);
    }
}
