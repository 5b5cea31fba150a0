//! How Redis is reached: pooled connections, a bound for every wait, scripts in pipelines.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use deadpool_redis::{Hook, HookError, Manager, Pool, PoolError, Runtime};
use redis::{AsyncConnectionConfig, Pipeline, RedisError, Script};
use thiserror::Error;

use super::super::{PresenceError, Result};
use super::lease::Lease;
use crate::config::RedisConfig;

const POOL_SIZE: usize = 16;
/// For each step: a free connection, a new one, a reply.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(2);
/// For one piece of work; in bulk for each chunk.
const WORK_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) fn pool(config: &RedisConfig, lease: Arc<Lease>) -> Result<Pool> {
    let rejected = |error: RedisError| PresenceError::Rejected(error.to_string());
    let info = config.connection_info().map_err(rejected)?;
    let timeouts = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(STEP_TIMEOUT))
        .set_response_timeout(Some(STEP_TIMEOUT));
    let manager = Manager::new_with_config(info, timeouts).map_err(rejected)?;
    // A restart of the server ends all connections. So asking each new one which run it reached
    // tells of every restart before anything is concluded from what the new run has.
    let ask_run = Hook::async_fn(move |connection, _| {
        let lease = lease.clone();
        Box::pin(async move {
            let info: String = redis::cmd("INFO")
                .arg("server")
                .query_async(connection)
                .await
                .map_err(HookError::Backend)?;
            let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
            lease.on_connection(run_id.ok_or(HookError::message("INFO names no run_id"))?.trim());
            Ok(())
        })
    });
    Pool::builder(manager)
        .runtime(Runtime::Tokio1)
        .max_size(POOL_SIZE)
        .wait_timeout(Some(STEP_TIMEOUT))
        .create_timeout(Some(STEP_TIMEOUT))
        .recycle_timeout(Some(STEP_TIMEOUT))
        .post_create(ask_run)
        .build()
        .map_err(|error| PresenceError::Rejected(error.to_string()))
}

/// Why a piece of work was not done, or not seen to be done.
#[derive(Debug, Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("{0}")]
    Pool(#[from] PoolError),
    #[error("no answer within {WORK_TIMEOUT:?}")]
    Late,
    #[error("{0}")]
    Other(&'static str),
}

impl From<Failure> for PresenceError {
    fn from(failure: Failure) -> Self {
        Self::Unavailable(failure.to_string())
    }
}

pub(super) type Outcome<T> = std::result::Result<T, Failure>;

pub(super) async fn bounded<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::time::timeout(WORK_TIMEOUT, work).await.unwrap_or(Err(Failure::Late))
}

/// One script, called for many users in one pipeline.
pub(super) struct Step {
    code: &'static str,
    hash: String,
}

impl Step {
    pub fn new(code: &'static str) -> Self {
        Self { code, hash: Script::new(code).get_hash().into() }
    }

    /// The first call brings the code, by which the server knows it in the calls that follow.
    pub fn pipeline(&self, calls: impl Iterator<Item = (String, Vec<String>)>) -> Pipeline {
        let mut pipeline = Pipeline::with_capacity(calls.size_hint().0);
        for (index, (key, arguments)) in calls.enumerate() {
            match index {
                0 => pipeline.cmd("EVAL").arg(self.code),
                _ => pipeline.cmd("EVALSHA").arg(&self.hash),
            };
            pipeline.arg(1).arg(key).arg(arguments);
        }
        pipeline
    }
}
