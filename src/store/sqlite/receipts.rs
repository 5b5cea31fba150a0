//! The watermarks that proven runs move, and the receipts they leave.

use std::collections::HashMap;

use sqlx::FromRow;

use super::sql::{self, hex, json};
use super::{Sqlite, commit, error};
use crate::ids::{ConversationId, Seq, UserId};
use crate::store::Result;
use crate::store::types::{Proof, Run, Settled};

/// In larger groups only the watermarks move.
const RECEIPTS_MAX_MEMBERS: i64 = 256;

/// A member's watermarks while the runs are applied to them.
#[derive(Clone, Copy)]
struct Marks {
    settled: Seq,
    delivered: Seq,
    moved: bool,
    /// An undeleted message of others lies above `settled` and below the run that was looked at:
    /// nothing later can move either.
    stuck: bool,
}

#[derive(FromRow)]
struct StateRow {
    settled_seq: Option<Seq>,
    delivered_seq: Option<Seq>,
    last_seq: Option<Seq>,
}

/// A stretch between what is settled and a run, or between two runs of one member.
struct Gap {
    run: usize,
    after: Seq,
}

impl Sqlite {
    /// Five statements at most: the members' states, a look into the gaps if there are any, the
    /// receipts, the move, the laggards who lack nothing now.
    pub async fn settle(&self, runs: &[Run]) -> Result<Vec<Settled>> {
        if runs.is_empty() {
            return Ok(Vec::new());
        }
        let mut tx = self.begin().await?;
        let states: Vec<StateRow> = sqlx::query_as(sql::SETTLE_STATES)
            .bind(json(runs.iter().map(|run| (hex(run.conversation_id.0), hex(run.user_id.0)))))
            .fetch_all(&mut *tx)
            .await
            .map_err(error::of)?;
        error::affected(states.len() as u64, runs.len(), "reading members' states")?;

        // The runs of one member in order of place, so that one may continue the other.
        let mut order: Vec<usize> = (0..runs.len()).collect();
        order.sort_unstable_by_key(|&i| (runs[i].conversation_id, runs[i].user_id, runs[i].lo));
        let mut marks: HashMap<(ConversationId, UserId), Marks> = HashMap::new();
        let mut reach: HashMap<(ConversationId, UserId), Seq> = HashMap::new();
        let mut gaps: Vec<Gap> = Vec::new();
        let mut outcomes = vec![Settled::Refused; runs.len()];
        order.retain(|&i| {
            let (run, state) = (&runs[i], &states[i]);
            let (Some(settled), Some(delivered), Some(head)) =
                (state.settled_seq, state.delivered_seq, state.last_seq)
            else {
                return false;
            };
            if run.hi > head || run.lo > run.hi {
                return false;
            }
            marks.insert(member(run), Marks { settled, delivered, moved: false, stuck: false });
            let reach = reach.entry(member(run)).or_insert(settled);
            if run.lo > *reach + 1 {
                gaps.push(Gap { run: i, after: *reach });
            }
            *reach = run.hi.max(*reach);
            true
        });

        let blocked: HashMap<usize, bool> = if gaps.is_empty() {
            HashMap::new()
        } else {
            let looks: Vec<bool> = sqlx::query_scalar(sql::SETTLE_GAPS)
                .bind(json(gaps.iter().map(|gap| {
                    let run = &runs[gap.run];
                    (hex(run.conversation_id.0), hex(run.user_id.0), gap.after, run.lo)
                })))
                .fetch_all(&mut *tx)
                .await
                .map_err(error::of)?;
            gaps.iter().map(|gap| gap.run).zip(looks).collect()
        };
        for &i in &order {
            let run = &runs[i];
            let marks = marks.get_mut(&member(run)).expect("put there for each run of `order`");
            outcomes[i] = marks.apply(run, blocked.get(&i).copied().unwrap_or(false));
        }

        let moved: Vec<_> = marks
            .iter()
            .filter(|(_, marks)| marks.moved)
            .map(|((conversation, user), marks)| {
                (hex(conversation.0), hex(user.0), marks.settled, marks.delivered)
            })
            .collect();
        if moved.is_empty() {
            return Ok(outcomes);
        }
        let delivered: Vec<_> = runs
            .iter()
            .zip(&outcomes)
            .filter_map(|(run, outcome)| match outcome {
                Settled::Moved { delivered_from: Some(from) } => {
                    Some((hex(run.conversation_id.0), hex(run.user_id.0), from, run.hi))
                }
                _ => None,
            })
            .collect();
        if !delivered.is_empty() {
            sqlx::query(sql::RECEIPTS_DELIVERED)
                .bind(json(delivered))
                .bind(RECEIPTS_MAX_MEMBERS)
                .execute(&mut *tx)
                .await
                .map_err(error::of)?;
        }
        let count = moved.len();
        let moved = json(moved);
        let done = sqlx::query(sql::SETTLE_MOVE)
            .bind(&moved)
            .execute(&mut *tx)
            .await
            .map_err(error::of)?;
        error::affected(done.rows_affected(), count, "moving watermarks")?;
        sqlx::query(sql::LAGGARDS_SETTLED)
            .bind(&moved)
            .execute(&mut *tx)
            .await
            .map_err(error::of)?;
        commit(tx).await?;
        Ok(outcomes)
    }
}

impl Marks {
    fn apply(&mut self, run: &Run, gap_blocked: bool) -> Settled {
        self.stuck |= gap_blocked;
        // Below `settled` nothing can be in the way any more.
        if self.stuck && run.hi > self.settled {
            return Settled::Waits;
        }
        let mut delivered_from = None;
        if run.proof == Proof::Device && run.hi > self.delivered {
            delivered_from = Some(run.lo.max(self.delivered + 1));
            self.delivered = run.hi;
            self.moved = true;
        }
        if run.hi > self.settled {
            self.settled = run.hi;
            self.moved = true;
        }
        Settled::Moved { delivered_from }
    }
}

fn member(run: &Run) -> (ConversationId, UserId) {
    (run.conversation_id, run.user_id)
}
