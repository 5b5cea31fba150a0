//! When something is due: each kind of action at its own rate, by chance from a seed.

use std::time::Duration;

use tidings_client::dice::Dice;
use tokio::time::Instant;

use super::Life;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    Send,
    Typing,
    Read,
    Reconnect,
    Page,
    Sync,
}

pub struct Schedule {
    pub dice: Dice,
    /// By action, its rate and when it is due next.
    next: Vec<(Action, f64, Instant)>,
}

impl Schedule {
    pub fn new(life: &Life, start: Instant) -> Self {
        let rates = [
            (Action::Send, life.sends),
            (Action::Typing, life.typing),
            (Action::Read, life.reads),
            (Action::Reconnect, life.reconnects),
            (Action::Page, life.pages),
            (Action::Sync, life.syncs),
        ];
        let mut dice = Dice::of(life.seed, 1);
        let rates = rates.into_iter().filter(|(_, rate)| *rate > 0.0);
        let next = rates.map(|(action, rate)| (action, rate, start + pause(&mut dice, rate)));
        Self { next: next.collect(), dice }
    }

    /// The next thing that is due until then, and when.
    pub fn next_before(&mut self, end: Instant) -> Option<(Instant, Action)> {
        let (action, rate, due) = self.next.iter_mut().min_by_key(|(_, _, due)| *due)?;
        if *due >= end {
            return None;
        }
        let now = (*due, *action);
        *due += pause(&mut self.dice, *rate);
        Some(now)
    }
}

/// To the next of events that know nothing of each other.
fn pause(dice: &mut Dice, rate: f64) -> Duration {
    let chance = (dice.below(1 << 30) + 1) as f64 / f64::from(1 << 30);
    Duration::from_secs_f64(-chance.ln() / rate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        life: Life,
    }

    #[test]
    fn the_rates_are_kept_and_a_seed_repeats() {
        let life = Cli::parse_from(["", "--sends", "50", "--pages", "0", "--typing", "10"]).life;
        let start = Instant::now();
        let times = || {
            let mut schedule = Schedule::new(&life, start);
            let mut until = |seconds| {
                std::iter::from_fn(|| schedule.next_before(start + Duration::from_secs(seconds)))
                    .collect::<Vec<_>>()
            };
            // In two parts, as a day goes on from where it was.
            [until(40), until(100)].concat()
        };
        let count = |wanted| times().iter().filter(|(_, action)| *action == wanted).count();
        assert!((4_500..5_500).contains(&count(Action::Send)), "{}", count(Action::Send));
        assert!((850..1_150).contains(&count(Action::Typing)), "{}", count(Action::Typing));
        assert_eq!(count(Action::Page), 0);
        assert!(times().is_sorted());
        assert_eq!(times(), times());
    }
}
