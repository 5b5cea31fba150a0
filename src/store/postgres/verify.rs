//! The checks of `tidings verify`, on a connection that may take its time.

use std::time::Duration;

use sqlx::Connection;

use super::error::failed;
use super::{Postgres, connect, millis};
use crate::store::Result;
use crate::store::verify::{CHECKS, Row, Verdict};

impl Postgres {
    pub async fn verify(&self, grace: Duration) -> Result<Vec<Verdict>> {
        // Whole tables are read: by whatever plan is best for that.
        let options = sqlx::postgres::PgConnectOptions::clone(&self.options)
            .application_name("tidings verify")
            .options([
                ("statement_timeout", "0"),
                ("idle_in_transaction_session_timeout", "0"),
                ("plan_cache_mode", "auto"),
                ("enable_seqscan", "on"),
                ("enable_hashjoin", "on"),
                ("enable_mergejoin", "on"),
                ("enable_bitmapscan", "on"),
                ("default_transaction_isolation", "repeatable read"),
                ("default_transaction_read_only", "on"),
            ]);
        let mut connection = connect(&options).await?;
        let broken = |error| failed(error, false);
        let mut tx = connection.begin().await.map_err(broken)?;
        let before: (time::OffsetDateTime,) =
            sqlx::query_as("select now() - $1 * interval '1 millisecond'")
                .bind(millis(grace) as f64)
                .fetch_one(&mut *tx)
                .await
                .map_err(broken)?;
        let mut verdicts = Vec::with_capacity(CHECKS.len());
        for check in CHECKS {
            let mut query = sqlx::query_as::<_, Row>(check.sql);
            if check.timed {
                query = query.bind(before.0);
            }
            verdicts.push(check.verdict(query.fetch_all(&mut *tx).await.map_err(broken)?));
        }
        tx.rollback().await.map_err(broken)?;
        drop(connection.close().await);
        Ok(verdicts)
    }
}
