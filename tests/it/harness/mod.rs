//! What the scenarios stand on.
//!
//! A scenario is a function of a [`cluster::Cluster`]. [`scenarios!`] makes two tests of it, on one
//! node with nothing but a folder and on two nodes with real services, and ends each by looking at
//! what is left over.

pub mod certs;
pub mod client;
pub mod cluster;
pub mod contract;
pub mod http;
pub mod metrics;
pub mod own_kafka;
pub mod own_postgres;
pub mod process;
pub mod raw;
pub mod services;

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

/// How long anything may take that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Waits for what must come.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}

/// Waits until something that other tasks bring about is there.
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, look).await
}

pub async fn until_within<T>(
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Below the range of outgoing connections: there, a client that reconnects while the server is down
/// could occupy its port, or even connect to itself.
pub fn free_port() -> u16 {
    let mut candidates =
        std::iter::repeat_with(|| 20_000 + uuid::Uuid::new_v4().as_u128() as u16 % 12_000);
    candidates.find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// Makes the tests of a file: each scenario on the embedded parts and on a cluster, each with its
/// own settings beside the harness's.
macro_rules! scenarios {
    ($($name:ident $([$($setting:literal = $value:literal),+ $(,)?])?),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                use crate::harness::cluster::{Kind, run};
                run(Kind::Embedded, &[$($(($setting, $value)),+)?], super::$name).await;
            })+
        }

        mod cluster {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                use crate::harness::cluster::{Kind, run};
                run(Kind::Cluster, &[$($(($setting, $value)),+)?], super::$name).await;
            })+
        }
    };
}
pub(crate) use scenarios;

/// As [`scenarios!`], for what only several nodes can show.
macro_rules! cluster_scenarios {
    ($($name:ident $([$($setting:literal = $value:literal),+ $(,)?])?),+ $(,)?) => {
        mod cluster_only {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                use crate::harness::cluster::{Kind, run};
                run(Kind::Cluster, &[$($(($setting, $value)),+)?], super::$name).await;
            })+
        }
    };
}
pub(crate) use cluster_scenarios;
