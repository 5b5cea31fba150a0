//! What a check found, for people and for programs. Pure.

use std::time::Duration;

use serde::Serialize;

/// Clocks that differ by more are told of: tokens and "last seen" are judged by the nodes' own.
const CLOCK_SPARE: Duration = Duration::from_secs(1);
/// Beyond this, tokens that are good are refused.
const CLOCK_LIMIT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    Ok,
    /// It works, and could hurt.
    Warning,
    /// A node would not start, or would not keep its promises.
    Problem,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `postgres`, `redis`, …
    pub part: &'static str,
    pub check: &'static str,
    pub grade: Grade,
    pub detail: String,
    /// What to do; None if all is well.
    pub fix: Option<String>,
}

/// What was found of one part, in the order in which it was looked at.
#[derive(Debug)]
pub struct Findings {
    part: &'static str,
    /// Which of several servers is looked at.
    pub place: Option<String>,
    pub list: Vec<Finding>,
}

impl Findings {
    pub fn of(part: &'static str) -> Self {
        Self { part, place: None, list: Vec::new() }
    }

    pub fn ok(&mut self, check: &'static str, detail: impl Into<String>) {
        self.add(check, Grade::Ok, detail.into(), None);
    }

    pub fn warning(
        &mut self,
        check: &'static str,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add(check, Grade::Warning, detail.into(), Some(fix.into()));
    }

    pub fn problem(
        &mut self,
        check: &'static str,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add(check, Grade::Problem, detail.into(), Some(fix.into()));
    }

    /// `offset`: the other clock less this one, in milliseconds; `spare`: by how much the question's
    /// own way may have moved it.
    pub fn clock(&mut self, offset: i64, spare: Duration) {
        let behind = Duration::from_millis(offset.unsigned_abs()).saturating_sub(spare);
        let detail = format!(
            "its clock is {} ms {} this machine's, give or take {} ms",
            offset.unsigned_abs(),
            if offset < 0 { "behind" } else { "ahead of" },
            spare.as_millis()
        );
        let fix = "let NTP (chrony, systemd-timesyncd) keep the clocks of both machines";
        match behind {
            behind if behind > CLOCK_LIMIT => self.problem("clock", detail, fix),
            behind if behind > CLOCK_SPARE => self.warning("clock", detail, fix),
            _ => self.ok("clock", detail),
        }
    }

    fn add(&mut self, check: &'static str, grade: Grade, detail: String, fix: Option<String>) {
        let detail = match &self.place {
            Some(place) => format!("{place}: {detail}"),
            None => detail,
        };
        self.list.push(Finding { part: self.part, check, grade, detail, fix });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_judged_by_what_is_certain() {
        let graded = |offset, spare| {
            let mut found = Findings::of("x");
            found.clock(offset, Duration::from_millis(spare));
            found.list.remove(0).grade
        };
        assert_eq!(graded(-900, 0), Grade::Ok);
        assert_eq!(graded(1_500, 600), Grade::Ok);
        assert_eq!(graded(-1_500, 100), Grade::Warning);
        assert_eq!(graded(5_500, 600), Grade::Warning);
        assert_eq!(graded(-60_000, 100), Grade::Problem);
    }
}
