//! Counts the entries of nodes that are no more, for an operator.

use std::collections::HashMap;

use redis::{AsyncConnectionConfig, ProtocolVersion, RedisError};

use super::super::{Orphans, PresenceError, Result};
use super::stored::Found;
use crate::ids::NodeId;
use crate::shards::{Call, Pools, STEP_TIMEOUT, Shards};

/// Keys asked for at a time.
const SCAN: usize = 1_000;

pub(in crate::presence) async fn count(shards: &Shards) -> Result<Orphans> {
    let unavailable = |error: RedisError| PresenceError::Unavailable(error.to_string());
    let pools = Pools::new(shards.clone(), 1, |_, _| {});
    let mut orphans = Orphans { entries: 0, of_dead_nodes: 0 };
    let mut alive: HashMap<NodeId, bool> = HashMap::new();
    let pattern = format!("{}:{{p*}}:presence:*", escaped(&shards.config().prefix));
    for addr in shards.layout().masters() {
        let timeouts = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(STEP_TIMEOUT))
            .set_response_timeout(Some(STEP_TIMEOUT));
        let opened = shards.open(addr, ProtocolVersion::RESP2, timeouts).await;
        let mut connection = opened.map_err(unavailable)?;
        let mut cursor = 0u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(SCAN);
            let (next, keys): (u64, Vec<String>) =
                scan.query_async(&mut connection).await.map_err(unavailable)?;
            let mut work = pools.work();
            let calls: Vec<_> =
                keys.into_iter().map(|key| Call::command("HGETALL", key, Vec::new())).collect();
            for hash in work.run::<Vec<(String, String)>>(&calls).await {
                for entry in Found::read(hash?).entries {
                    let is_alive = match alive.get(&entry.node) {
                        Some(is_alive) => *is_alive,
                        None => {
                            let key = super::lease::key(&shards.config().prefix, entry.node);
                            let exists = work.one(Call::command("EXISTS", key, Vec::new())).await?;
                            *alive.entry(entry.node).or_insert(exists)
                        }
                    };
                    orphans.entries += 1;
                    orphans.of_dead_nodes += u64::from(!is_alive);
                }
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    Ok(orphans)
}

/// As a part of a pattern that means itself.
fn escaped(prefix: &str) -> String {
    prefix.chars().flat_map(|c| ['\\', c]).collect()
}
