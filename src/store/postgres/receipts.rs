//! Proven runs become watermarks and receipts.

use sqlx::FromRow;

use super::{Postgres, sql, uuids};
use crate::store::Result;
use crate::store::types::{Proof, Run, Settled};

/// In groups above it only watermarks move: each message of a large group would else make as many
/// rows as it has members.
const RECEIPTS_MAX_MEMBERS: i32 = 256;

#[derive(FromRow)]
struct JudgedRow {
    /// The run's place among those given, from 1.
    ord: i64,
    moves: bool,
    delivered_from: Option<i64>,
}

impl Postgres {
    pub async fn settle(&self, runs: &[Run]) -> Result<Vec<Settled>> {
        if runs.is_empty() {
            return Ok(Vec::new());
        }
        let query = sqlx::query_as(sql::SETTLE)
            .bind(uuids(runs, |run| run.conversation_id.0))
            .bind(uuids(runs, |run| run.user_id.0))
            .bind(runs.iter().map(|run| run.lo).collect::<Vec<_>>())
            .bind(runs.iter().map(|run| run.hi).collect::<Vec<_>>())
            .bind(runs.iter().map(|run| run.proof == Proof::Device).collect::<Vec<_>>())
            .bind(RECEIPTS_MAX_MEMBERS);
        let mut outcomes = vec![Settled::Refused; runs.len()];
        for JudgedRow { ord, moves, delivered_from } in self.rows(query).await? {
            if let Some(outcome) = usize::try_from(ord - 1).ok().and_then(|i| outcomes.get_mut(i)) {
                *outcome = if moves { Settled::Moved { delivered_from } } else { Settled::Waits };
            }
        }
        Ok(outcomes)
    }
}
