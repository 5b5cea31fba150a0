//! Commands on keys, wherever they lie: pooled connections to each master, one pipeline for each, a
//! bound for every wait. What has moved meanwhile is asked for again where it went.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool_redis::{Connection, Hook, HookError, Manager, Pool, PoolError, Runtime};
use futures_util::future::join_all;
use redis::{
    ErrorKind, FromRedisValue, Pipeline, ProtocolVersion, RedisError, RedisResult, ServerErrorKind,
};
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

use super::{Run, Shards, timeouts};
use crate::config::Addr;

/// For each step: a free connection, a new one, a reply.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(2);
/// For one piece of work; in bulk for each chunk.
const WORK_TIMEOUT: Duration = Duration::from_secs(3);
/// How often what has moved is looked for.
const ATTEMPTS: usize = 4;

/// Told of each new connection: the master and its run.
type OnRun = dyn Fn(&Addr, Run) + Send + Sync;

pub struct Pools {
    shards: Shards,
    size: usize,
    on_run: Arc<OnRun>,
    pools: Mutex<HashMap<Addr, Pool>>,
}

/// Why a call was not done, or not seen to be done, and by which master; None: by nobody.
#[derive(Clone, Debug, Error)]
#[error("{why}")]
pub struct Failed {
    pub addr: Option<Addr>,
    pub why: Failure,
}

#[derive(Clone, Debug, Error)]
pub enum Failure {
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("{0}")]
    Pool(String),
    #[error("no answer within {WORK_TIMEOUT:?}")]
    Late,
    #[error("no master is known to hold the key")]
    Nobody,
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => Self::Redis(error),
            error => Self::Pool(error.to_string()),
        }
    }
}

pub struct Script {
    code: &'static str,
    hash: String,
}

impl Script {
    pub fn new(code: &'static str) -> Self {
        Self { code, hash: redis::Script::new(code).get_hash().into() }
    }
}

/// One command, or script, on one key.
pub struct Call<'a> {
    key: String,
    what: What<'a>,
    arguments: Vec<String>,
}

#[derive(Clone, Copy)]
enum What<'a> {
    /// The key follows its name.
    Command(&'static str),
    Script(&'a Script),
}

impl<'a> Call<'a> {
    pub fn command(name: &'static str, key: String, arguments: Vec<String>) -> Self {
        Self { key, what: What::Command(name), arguments }
    }

    pub fn script(script: &'a Script, key: String, arguments: Vec<String>) -> Self {
        Self { key, what: What::Script(script), arguments }
    }

    /// Of scripts the first call brings the code, by which the server knows it in those that follow.
    fn add_to(&self, pipeline: &mut Pipeline, is_first: bool) {
        match self.what {
            What::Command(name) => pipeline.cmd(name),
            What::Script(script) if is_first => pipeline.cmd("EVAL").arg(script.code).arg(1),
            What::Script(script) => pipeline.cmd("EVALSHA").arg(&script.hash).arg(1),
        };
        pipeline.arg(&self.key).arg(&self.arguments);
    }
}

impl Pools {
    /// `size`: connections to one master at most.
    pub fn new(
        shards: Shards,
        size: usize,
        on_run: impl Fn(&Addr, Run) + Send + Sync + 'static,
    ) -> Self {
        Self { shards, size, on_run: Arc::new(on_run), pools: Mutex::default() }
    }

    pub fn shards(&self) -> &Shards {
        &self.shards
    }

    /// Its steps share connections, each checked once, and the time there is for them.
    pub fn work(&self) -> Work<'_> {
        Work { pools: self, held: HashMap::new(), deadline: Instant::now() + WORK_TIMEOUT }
    }

    /// A restart of a server ends all connections. So asking each new one which run it reached tells
    /// of every restart before anything is concluded from what the new run has.
    fn pool(&self, addr: &Addr) -> Result<Pool, Failure> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(addr) {
            return Ok(pool.clone());
        }
        let layout = self.shards.layout();
        pools.retain(|addr, _| layout.masters().contains(addr));
        let (place, ca) = (&self.shards.0.place, self.shards.0.ca.as_deref());
        let client = place.server(addr, ProtocolVersion::RESP2, ca)?;
        let manager =
            Manager::new_with_config(client.get_connection_info().clone(), timeouts(STEP_TIMEOUT))?;
        let (on_run, shards, master) = (self.on_run.clone(), self.shards.clone(), addr.clone());
        let ask_run = Hook::async_fn(move |connection, _| {
            let (on_run, shards, master) = (on_run.clone(), shards.clone(), master.clone());
            Box::pin(async move {
                let run = Run::of(connection).await.inspect_err(|_| shards.hint());
                on_run(&master, run.map_err(HookError::Backend)?);
                Ok(())
            })
        });
        let pool = Pool::builder(manager)
            .runtime(Runtime::Tokio1)
            .max_size(self.size)
            .wait_timeout(Some(STEP_TIMEOUT))
            .create_timeout(Some(STEP_TIMEOUT))
            .recycle_timeout(Some(STEP_TIMEOUT))
            .post_create(ask_run)
            .build()
            .map_err(|error| Failure::Pool(error.to_string()))?;
        pools.insert(addr.clone(), pool.clone());
        Ok(pool)
    }
}

pub struct Work<'a> {
    pools: &'a Pools,
    held: HashMap<Addr, Connection>,
    deadline: Instant,
}

impl Work<'_> {
    /// One answer each, at the same place; what lies on one master is done in the order of the calls.
    pub async fn run<T: FromRedisValue>(&mut self, calls: &[Call<'_>]) -> Vec<Result<T, Failed>> {
        let mut answers: Vec<Result<T, Failed>> = Vec::with_capacity(calls.len());
        let nobody = || Err(Failed { addr: None, why: Failure::Nobody });
        answers.extend(calls.iter().map(|_| nobody()));
        let mut left: Vec<usize> = (0..calls.len()).collect();
        for attempt in 1..=ATTEMPTS {
            let (mut again, mut elsewhere) = (Vec::new(), Vec::new());
            for (addr, places, replies) in self.on_masters(calls, left).await {
                let failed = |why: Failure| Failed { addr: Some(addr.clone()), why };
                match replies {
                    Ok(replies) => {
                        for (at, reply) in places.into_iter().zip(replies) {
                            match reply.as_ref().err().map_or(Next::Done, next) {
                                Next::Done => {}
                                Next::Ask(to) => elsewhere.push((at, to)),
                                Next::Again => again.push(at),
                            }
                            answers[at] = reply.map_err(|error| failed(error.into()));
                        }
                    }
                    Err(why) => {
                        for at in places {
                            answers[at] = Err(failed(why.clone()));
                        }
                        self.pools.shards.hint();
                    }
                }
            }
            // Seldom, and few at a time: of the one slot that is under way.
            for (at, to) in elsewhere {
                match self.ask(&to, &calls[at]).await {
                    Ok(answer) => answers[at] = Ok(answer),
                    Err(_) => again.push(at),
                }
            }
            again
                .extend((0..calls.len()).filter(|at| {
                    matches!(&answers[*at], Err(Failed { why: Failure::Nobody, .. }))
                }));
            if again.is_empty() || attempt == ATTEMPTS || Instant::now() >= self.deadline {
                break;
            }
            again.sort_unstable();
            left = again;
            self.pools.shards.look_again().await;
        }
        answers
    }

    pub async fn one<T: FromRedisValue>(&mut self, call: Call<'_>) -> Result<T, Failed> {
        let mut answers = self.run(&[call]).await;
        answers.pop().expect("an answer for each call")
    }

    /// `PING` of every master.
    pub async fn ping(&mut self) -> Vec<(Addr, Result<(), Failure>)> {
        let layout = self.pools.shards.layout();
        let (pools, deadline) = (self.pools, self.deadline);
        let pings = layout.masters().iter().map(|addr| {
            let held = self.held.remove(addr);
            async move {
                // A pooled connection was checked by the pool; one that is held is older.
                let ping = async {
                    let mut connection = connection(pools, addr, held).await?;
                    redis::cmd("PING").exec_async(&mut connection).await?;
                    Ok::<_, Failure>(connection)
                };
                (addr.clone(), timeout_at(deadline, ping).await.unwrap_or(Err(Failure::Late)))
            }
        });
        let mut answers = Vec::new();
        for (addr, answer) in join_all(pings).await {
            let answer = answer.map(|connection| {
                self.held.insert(addr.clone(), connection);
            });
            answers.push((addr, answer));
        }
        answers
    }

    /// Each master's part in one pipeline, side by side.
    async fn on_masters<T: FromRedisValue>(
        &mut self,
        calls: &[Call<'_>],
        which: Vec<usize>,
    ) -> Vec<(Addr, Vec<usize>, Result<Vec<RedisResult<T>>, Failure>)> {
        let layout = self.pools.shards.layout();
        let mut parts: HashMap<&Addr, Vec<usize>> = HashMap::new();
        for at in which {
            if let Some(addr) = layout.owner(&calls[at].key) {
                parts.entry(addr).or_default().push(at);
            }
        }
        let (pools, deadline) = (self.pools, self.deadline);
        let parts = parts.into_iter().map(|(addr, places)| {
            let held = self.held.remove(addr);
            async move {
                let mut pipeline = Pipeline::with_capacity(places.len());
                for (number, at) in places.iter().enumerate() {
                    calls[*at].add_to(&mut pipeline, number == 0);
                }
                let replies = async {
                    let mut connection = connection(pools, addr, held).await?;
                    let replies = pipeline.ignore_errors().query_async(&mut connection).await?;
                    Ok::<_, Failure>((connection, replies))
                };
                let began = Instant::now();
                let replies = timeout_at(deadline, replies).await.unwrap_or(Err(Failure::Late));
                pools.shards.0.metrics.redis.command.record(began.elapsed());
                (addr, places, replies)
            }
        });
        let mut done = Vec::new();
        for (addr, places, replies) in join_all(parts).await {
            let replies = replies.map(|(connection, replies)| {
                self.held.insert(addr.clone(), connection);
                replies
            });
            done.push((addr.clone(), places, replies));
        }
        done
    }

    /// At a master that is taking the key's slot over.
    async fn ask<T: FromRedisValue>(&mut self, addr: &Addr, call: &Call<'_>) -> Result<T, Failure> {
        let held = self.held.remove(addr);
        let asked = async {
            let mut connection = connection(self.pools, addr, held).await?;
            let mut pipeline = redis::pipe();
            pipeline.cmd("ASKING").ignore();
            call.add_to(&mut pipeline, true);
            let (answer,) = pipeline.query_async(&mut connection).await?;
            Ok::<_, Failure>((connection, answer))
        };
        let asked = timeout_at(self.deadline, asked).await.unwrap_or(Err(Failure::Late));
        let (connection, answer) = asked?;
        self.held.insert(addr.clone(), connection);
        Ok(answer)
    }
}

async fn connection(
    pools: &Pools,
    addr: &Addr,
    held: Option<Connection>,
) -> Result<Connection, Failure> {
    match held {
        Some(connection) => Ok(connection),
        None => Ok(pools.pool(addr)?.get().await?),
    }
}

enum Next {
    Done,
    Again,
    Ask(Addr),
}

/// What to do about an error of one command.
fn next(error: &RedisError) -> Next {
    use ServerErrorKind as K;
    match error.kind() {
        ErrorKind::Server(K::Ask) => {
            let to = error.redirect_node().and_then(|(addr, _)| addr.rsplit_once(':'));
            let to = to.and_then(|(host, port)| {
                Some(Addr { host: host.into(), port: port.parse().ok()? })
            });
            to.map_or(Next::Again, Next::Ask)
        }
        // A script is not known where the call that would have brought it has moved.
        ErrorKind::Server(
            K::Moved
            | K::TryAgain
            | K::NoScript
            | K::ReadOnly
            | K::ClusterDown
            | K::MasterDown
            | K::BusyLoading,
        ) => Next::Again,
        _ => Next::Done,
    }
}
