//! Whether something rises, told from samples that jump.
//!
//! Only the second half of the run is looked at: in the first, caches fill, pools open their
//! connections, and the allocator finds its size. Through its points goes a line by Theil and Sen:
//! its slope is the median of the slopes between all pairs of points, which a quarter of the points
//! may disturb as they like. A burst or a checkpoint in the middle thus moves nothing, while a leak
//! moves all pairs.
//!
//! It *rises* if both hold:
//!
//! - the slope is above the limit per hour: a leak of 100 bytes a message, at 100 messages a second,
//!   is 34 MiB in an hour;
//! - slope × length of the half is at least the smallest rise that counts: in a run of minutes a step
//!   of one page of the allocator would look like many MiB an hour. So a short run finds only large
//!   leaks: in ten minutes, with 4 MiB at least, those of 48 MiB an hour and more.

use std::fmt;

use serde::Serialize;

/// Points that are compared, each with each; of more, every second, third and so on is taken.
const MAX_POINTS: usize = 500;
const HOUR: f64 = 3_600.0;

#[derive(Debug, Serialize)]
pub struct Trend {
    pub name: &'static str,
    /// Seconds since the beginning, and what it was then.
    pub points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub per_hour: f64,
    /// Within the half that is judged.
    pub least: f64,
}

#[derive(Debug, Serialize)]
pub struct Verdict {
    pub name: &'static str,
    pub first: f64,
    pub last: f64,
    pub per_hour: f64,
    /// Of the line, over the second half.
    pub growth: f64,
    pub limit_per_hour: f64,
    pub least_growth: f64,
    pub rises: bool,
}

impl Trend {
    pub fn new(name: &'static str) -> Self {
        Self { name, points: Vec::new() }
    }

    /// None where nothing was sampled.
    pub fn judge(&self, limit: Limit) -> Option<Verdict> {
        let (first, last) = (self.points.first()?, self.points.last()?);
        let half = &self.points[self.points.len() / 2..];
        let slope = slope(half);
        let growth = slope * (last.0 - half.first()?.0);
        let per_hour = slope * HOUR;
        Some(Verdict {
            name: self.name,
            first: first.1,
            last: last.1,
            per_hour,
            growth,
            limit_per_hour: limit.per_hour,
            least_growth: limit.least,
            rises: per_hour > limit.per_hour && growth >= limit.least,
        })
    }
}

/// The median of the slopes between any two points; 0 of less than two.
fn slope(points: &[(f64, f64)]) -> f64 {
    let points: Vec<_> = points.iter().step_by(points.len().div_ceil(MAX_POINTS).max(1)).collect();
    let mut slopes = Vec::new();
    for (at, (x, y)) in points.iter().enumerate() {
        slopes.extend(points[..at].iter().map(|(before, was)| (y - was) / (x - before)));
    }
    slopes.sort_unstable_by(f64::total_cmp);
    slopes.get(slopes.len() / 2).copied().unwrap_or_default()
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last, per_hour, growth, .. } = self;
        let (limit, least) = (self.limit_per_hour, self.least_growth);
        let word = if self.rises { "rises" } else { "holds" };
        write!(
            f,
            "{word}: {first:.1} to {last:.1}, in the second half {growth:+.1} ({per_hour:+.1} \
             an hour; allowed {limit} an hour, or below {least} in all)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An hour, a sample every five seconds, with noise from a fixed sequence.
    fn verdict(value: impl Fn(f64) -> f64) -> Verdict {
        let mut noise = tidings_client::dice::Dice::new(3);
        let mut trend = Trend::new("x");
        for at in 0..720 {
            let at = f64::from(at) * 5.0;
            trend.points.push((at, value(at) + noise.below(100) as f64 / 50.0));
        }
        trend.judge(Limit { per_hour: 24.0, least: 4.0 }).unwrap()
    }

    #[test]
    fn a_leak_rises_and_noise_does_not() {
        assert!(!verdict(|_| 80.0).rises);
        let leak = verdict(|at| 80.0 + at * 30.0 / HOUR);
        assert!(leak.rises && (leak.per_hour - 30.0).abs() < 1.0, "{leak}");
        assert!((leak.growth - 15.0).abs() < 0.6, "{leak}");
        let slow = verdict(|at| 80.0 + at * 10.0 / HOUR);
        assert!(!slow.rises && (slow.per_hour - 10.0).abs() < 1.0, "{slow}");
    }

    #[test]
    fn what_fills_in_the_first_half_is_no_leak() {
        assert!(!verdict(|at| 80.0 + (at / 1_500.0).min(1.0) * 200.0).rises);
    }

    #[test]
    fn a_burst_moves_nothing() {
        let burst = verdict(|at| if (2_400.0..2_700.0).contains(&at) { 300.0 } else { 80.0 });
        assert!(!burst.rises && burst.per_hour.abs() < 1.0, "{burst}");
    }

    #[test]
    fn a_short_run_must_grow_by_something() {
        let mut trend = Trend::new("x");
        trend.points.extend((0..24).map(|at| (f64::from(at) * 5.0, f64::from(at) * 0.1)));
        let verdict = trend.judge(Limit { per_hour: 24.0, least: 4.0 }).unwrap();
        assert!(verdict.per_hour > 24.0 && !verdict.rises, "{verdict}");
        assert!(Trend::new("x").judge(Limit { per_hour: 1.0, least: 1.0 }).is_none());
    }
}
