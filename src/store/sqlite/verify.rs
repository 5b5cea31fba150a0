//! The checks of `tidings verify`, in one snapshot.

use std::time::Duration;

use super::outbox::millis;
use super::{Sqlite, error};
use crate::clock::Timestamp;
use crate::store::Result;
use crate::store::verify::{CHECKS, Row, Verdict};

impl Sqlite {
    pub async fn verify(&self, grace: Duration) -> Result<Vec<Verdict>> {
        let mut tx = self.snapshot().await?;
        let before = Timestamp::now().millis() - millis(grace);
        let mut verdicts = Vec::with_capacity(CHECKS.len());
        for check in CHECKS {
            let mut query = sqlx::query_as::<_, Row>(check.sql);
            if check.timed {
                query = query.bind(before);
            }
            verdicts.push(check.verdict(query.fetch_all(&mut *tx).await.map_err(error::of)?));
        }
        Ok(verdicts)
    }
}
