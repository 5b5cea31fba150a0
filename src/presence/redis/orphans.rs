//! Counts the entries of nodes that are no more, for an operator.

use std::collections::HashMap;

use redis::AsyncConnectionConfig;

use super::super::{Orphans, PresenceError, Result};
use super::pool::STEP_TIMEOUT;
use super::stored::Found;
use crate::config::RedisConfig;
use crate::ids::NodeId;

/// Keys asked for at a time.
const SCAN: usize = 1_000;

pub(in crate::presence) async fn count(config: &RedisConfig) -> Result<Orphans> {
    let unavailable = |error: redis::RedisError| PresenceError::Unavailable(error.to_string());
    let rejected = |error: redis::RedisError| PresenceError::Rejected(error.to_string());
    let client = redis::Client::open(config.connection_info().map_err(rejected)?);
    let timeouts = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(STEP_TIMEOUT))
        .set_response_timeout(Some(STEP_TIMEOUT));
    let mut connection = client
        .map_err(rejected)?
        .get_multiplexed_async_connection_with_config(&timeouts)
        .await
        .map_err(unavailable)?;
    let mut orphans = Orphans { entries: 0, of_dead_nodes: 0 };
    let mut alive: HashMap<NodeId, bool> = HashMap::new();
    let mut cursor = 0u64;
    loop {
        let (next, keys): (u64, Vec<String>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(format!("{}:{{p*}}:presence:*", escaped(&config.prefix)))
            .arg("COUNT")
            .arg(SCAN)
            .query_async(&mut connection)
            .await
            .map_err(unavailable)?;
        let mut pipeline = redis::pipe();
        for key in &keys {
            pipeline.hgetall(key);
        }
        let hashes: Vec<Vec<(String, String)>> = match keys.is_empty() {
            true => Vec::new(),
            false => pipeline.query_async(&mut connection).await.map_err(unavailable)?,
        };
        for entry in hashes.into_iter().flat_map(|hash| Found::read(hash).entries) {
            orphans.entries += 1;
            let is_alive = match alive.get(&entry.node) {
                Some(is_alive) => *is_alive,
                None => {
                    let key = super::lease::key(&config.prefix, entry.node);
                    let exists: bool = redis::cmd("EXISTS")
                        .arg(key)
                        .query_async(&mut connection)
                        .await
                        .map_err(unavailable)?;
                    alive.insert(entry.node, exists);
                    exists
                }
            };
            orphans.of_dead_nodes += u64::from(!is_alive);
        }
        cursor = next;
        if cursor == 0 {
            return Ok(orphans);
        }
    }
}

/// As a part of a pattern that means itself.
fn escaped(prefix: &str) -> String {
    prefix.chars().flat_map(|c| ['\\', c]).collect()
}
