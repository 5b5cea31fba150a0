//! Forgets what is kept for a time only: when receipts were given.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// How often it looks. Each node does, and takes what the others have not.
const EVERY: Duration = Duration::from_secs(600);
/// Rows in one statement, so that none takes long.
const ROWS: u32 = 10_000;
/// Between two statements, for those who write.
const PAUSE: Duration = Duration::from_millis(100);

/// Until `stop`.
pub async fn run(store: Store, receipts_retention: Duration, stop: CancellationToken) {
    let work = async {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            loop {
                match store.expire_receipts(receipts_retention, ROWS).await {
                    Ok(rows) if rows < u64::from(ROWS) => break,
                    Ok(_) => tokio::time::sleep(PAUSE).await,
                    Err(error) => {
                        tracing::warn!(%error, "old receipts were not forgotten");
                        break;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}
