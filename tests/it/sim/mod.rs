//! A seeded simulation of a single node and its clients in virtual time, against a model.
//!
//! Real: the store (a SQLite file), the lanes, the dispatcher, the outbox with its sweeper, the hub
//! with its queues and barriers, the proofs, the laggards, the offline file, the heartbeat and the
//! syncs, all as `App` builds them; after a crash they are built again on the same folder. In place
//! of sockets the clients hold the sessions' queues themselves; the rest of `ws::session` is for the
//! other tests, as are classic clients, Postgres, Redis and Kafka.
//!
//! Time stands still while something happens and is moved by hand: a task that never ends keeps
//! tokio's clock from running ahead of the store's threads, and as the store judges by its own clock,
//! its rows are made older instead. What is decided is so the same for the same seed; in which moment
//! a crash cuts the store's threads off is not.
//!
//! Held against the model, after each passing of time: nobody gets what is not his to see; nothing
//! counts as settled or delivered that no device holds, nobody has read and the offline file does not
//! have; reads and unread counts are what was told; a repeated send gives the first message. At rest
//! each message is with each of its recipients, and who then reads what he missed holds exactly what
//! there is.
//!
//! `TIDINGS_SIM_SEEDS=7..8` takes other seeds. A failure tells the seed and the few steps that it
//! takes to see it.

mod client;
mod world;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::fuzz::Random;
use world::World;

const STEPS: usize = 70;
/// Histories tried to find a shorter one that fails, too.
const SHORTER: usize = 60;

/// What happens next. Which of those that are there is told by two numbers, so that a part of a
/// history is a history.
#[derive(Clone, Copy, Debug)]
struct Step(What, usize, usize);

#[derive(Clone, Copy, Debug)]
enum What {
    Group,
    Say,
    /// A send is repeated, perhaps with another body.
    Again,
    Edit,
    Delete,
    Join,
    Leave,
    Title,
    Rights,
    Read,
    Delivered,
    Open,
    /// Its client ends it, or is gone without a word.
    Close,
    /// Nothing can be written to it any more, or it takes something again.
    Stall,
    /// It reads a frame now and then, or all again.
    Slow,
    /// It does not answer pings any more, or does again.
    Mute,
    /// What is published does not come to it any more, or does again.
    Lose,
    /// A page of what it missed.
    Sync,
    /// Committed by a node that died before it told anyone.
    Orphan,
    Pass,
    /// The node dies with sends under way, and is started again.
    Crash,
    /// The node is stopped, and started again.
    Stop,
}

const OFTEN: [(What, usize); 22] = [
    (What::Group, 2),
    (What::Say, 22),
    (What::Again, 3),
    (What::Edit, 4),
    (What::Delete, 3),
    (What::Join, 3),
    (What::Leave, 3),
    (What::Title, 1),
    (What::Rights, 1),
    (What::Read, 3),
    (What::Delivered, 1),
    (What::Open, 10),
    (What::Close, 3),
    (What::Stall, 3),
    (What::Slow, 4),
    (What::Mute, 3),
    (What::Lose, 4),
    (What::Sync, 6),
    (What::Orphan, 3),
    (What::Pass, 14),
    (What::Crash, 1),
    (What::Stop, 1),
];

fn history(seed: u64) -> Vec<Step> {
    let mut random = Random(seed);
    let sum = OFTEN.iter().map(|(_, often)| often).sum();
    let step = |random: &mut Random| {
        let mut at = random.below(sum);
        let what = OFTEN.iter().find(|(_, often)| {
            let found = at < *often;
            at = at.saturating_sub(*often);
            found
        });
        Step(what.expect("below the sum").0, random.below(1_000), random.below(1_000))
    };
    let begin = [Step(What::Group, 7, 0), Step(What::Open, 1, 0), Step(What::Open, 2, 0)];
    begin.into_iter().chain((0..STEPS).map(|_| step(&mut random))).collect()
}

/// What is wrong with it.
fn fault(seed: u64, steps: &[Step]) -> Option<String> {
    let run = || {
        let mut world = World::new(seed);
        steps.iter().for_each(|step| world.step(*step));
        world.end();
    };
    let panic = catch_unwind(AssertUnwindSafe(run)).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(
        text.or_else(|| panic.downcast_ref().map(|text: &&str| (*text).into())).unwrap_or_default(),
    )
}

/// Leaves out what it does not take to fail, the larger parts first.
fn shortened(seed: u64, mut steps: Vec<Step>) -> Vec<Step> {
    let (mut part, mut tries) = (steps.len() / 2, 0);
    while part > 0 {
        let mut at = 0;
        while at < steps.len() && tries < SHORTER {
            let without = [&steps[..at], &steps[(at + part).min(steps.len())..]].concat();
            tries += 1;
            if fault(seed, &without).is_some() {
                steps = without;
            } else {
                at += part;
            }
        }
        part /= 2;
    }
    steps
}

fn seeds() -> Range<u64> {
    #[expect(clippy::disallowed_methods, reason = "asks for the tests, not for the service")]
    let given = std::env::var("TIDINGS_SIM_SEEDS");
    given.map_or(1..25, |text| {
        let (from, to) = text.split_once("..").expect("seeds are FROM..TO");
        from.parse().expect("a number")..to.parse().expect("a number")
    })
}

#[test]
fn whatever_happens_the_model_holds() {
    for seed in seeds() {
        let steps = history(seed);
        if let Some(fault) = fault(seed, &steps) {
            let steps = shortened(seed, steps);
            panic!("seed {seed}: {fault}\n{} steps are enough: {steps:?}", steps.len());
        }
    }
}
