//! What a storm makes in sum, and whether it is as promised.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;

use super::{Args, Crowd};
use crate::proc::Sample;
use crate::report::{self, Cost, Latencies, Latency, Report, Table, growth, round, rss};
use crate::traffic::{Ledger, Measured, Outcome, Stretch};

/// All that was seen. Samples: before the first socket, with all open, before the talk that is
/// measured, before the cut, with all back, at the end.
pub struct Run<'a> {
    pub crowd: &'a Crowd,
    pub ledger: &'a Ledger,
    pub samples: &'a [Sample],
    pub connect_seconds: f64,
    /// Of the talk: before the storm, and in it.
    pub phases: [usize; 2],
    pub seconds: [f64; 2],
    pub peak: Sample,
    pub ends: BTreeMap<String, u64>,
    pub talk: Outcome,
}

#[derive(Serialize)]
struct Figures {
    url: String,
    jwt: bool,
    sockets: usize,
    conversations: usize,
    missed: usize,
    connect_seconds: f64,
    connect_cost: Cost,
    /// Of the first opening, at its rate: handshake, authentication, subscription, presence, hello.
    us_per_connect: BTreeMap<String, f64>,
    bytes_per_socket: BTreeMap<String, f64>,
    /// Until all were back and held what they missed.
    back_seconds: f64,
    returned: usize,
    resumed: usize,
    caught_up: usize,
    expected: usize,
    /// Of the storm: `handshake` and `resume` of the attempt that succeeded, `connected` and `back`
    /// from the cut; of the talk: `ack` and `delivery`, before and in the storm.
    latency: Latencies,
    return_cost: Cost,
    /// As a connect, and the end of the old socket, and the sync; without the talk, as measured
    /// before.
    us_per_return: BTreeMap<String, f64>,
    retries: BTreeMap<String, u64>,
    rss_before: BTreeMap<String, u64>,
    rss_open: BTreeMap<String, u64>,
    rss_peak: BTreeMap<String, u64>,
    rss_after: BTreeMap<String, u64>,
    talk_before: Measured,
    talk_storm: Measured,
    ends: BTreeMap<String, u64>,
    outcome: Outcome,
}

pub fn publish(run: Run<'_>) -> anyhow::Result<bool> {
    let args = &run.crowd.args;
    let figures = figures(run);
    Report::new("storm", faults(args, &figures), figures).publish(table, &args.common)
}

fn figures(run: Run<'_>) -> Figures {
    let Run { crowd, ledger, samples, .. } = run;
    let Args { sockets, conversations, missed, .. } = crowd.args;
    let counts = &crowd.counts;
    let connect_cost = Cost::between(&samples[0], &samples[1]);
    let (before, storm) =
        (Cost::between(&samples[2], &samples[3]), Cost::between(&samples[3], &samples[4]));
    let [before_seconds, storm_seconds] = run.seconds;
    let talk_share = storm_seconds / before_seconds;
    let us_per_return = storm.cpu.iter().map(|(name, cpu)| {
        let talk = before.cpu.get(name).map_or(0.0, |cpu| cpu.total()) * talk_share;
        (name.clone(), round((cpu.total() - talk) * 1e6 / sockets as f64, 1))
    });
    let us_per_return = us_per_return.collect();
    let load = |when| format!("{} messages a second {when}", crowd.args.rate);
    let [talk_before, talk_storm] = [
        (run.phases[0], load("before"), before_seconds, before),
        (run.phases[1], load("in the storm"), storm_seconds, storm),
    ]
    .map(|(phase, load, seconds, cost)| Stretch { phase, load, seconds, cost }.measured(ledger));
    let stats = crowd.stats();
    let named: [(&str, &Latency); 4] = [
        ("handshake", &stats.handshake),
        ("connected", &stats.connected),
        ("resume", &stats.resume),
        ("back", &stats.back),
    ];
    let expected: usize = crowd.users.iter().map(|user| user.cursors.len() * missed).sum();
    Figures {
        url: crowd.args.url.to_string(),
        jwt: crowd.args.url.key.is_some(),
        sockets,
        conversations,
        missed,
        connect_seconds: round(run.connect_seconds, 2),
        us_per_connect: connect_cost.us_per(sockets as f64),
        bytes_per_socket: growth(&samples[0], &samples[1], sockets as f64),
        connect_cost,
        back_seconds: round(storm_seconds, 2),
        returned: counts.returned.load(Relaxed),
        resumed: counts.resumed.load(Relaxed),
        caught_up: counts.caught_up.load(Relaxed),
        expected,
        latency: report::latencies(named),
        return_cost: Cost::between(&samples[3], &samples[4]),
        us_per_return,
        retries: stats.retries.clone(),
        rss_before: rss(&samples[0]),
        rss_open: rss(&samples[1]),
        rss_peak: rss(&run.peak),
        rss_after: rss(&samples[5]),
        talk_before,
        talk_storm,
        ends: run.ends,
        outcome: run.talk,
    }
}

fn faults(args: &Args, figures: &Figures) -> Vec<String> {
    let mut faults = figures.outcome.faults();
    let Figures { sockets, resumed, caught_up, expected, .. } = figures;
    if resumed < sockets {
        faults.push(format!("{resumed} of {sockets} were back in time"));
    } else if caught_up != expected {
        faults.push(format!("the syncs brought {caught_up} messages, {expected} were missed"));
    }
    if !figures.ends.is_empty() {
        faults.push(format!("sockets of the crowd ended: {:?}", figures.ends));
    }
    if let Some(max) = args.max_back.filter(|max| figures.back_seconds > max.as_secs_f64()) {
        faults.push(format!(
            "it took {} s, at most {} s allowed",
            figures.back_seconds,
            max.as_secs()
        ));
    }
    faults
}

fn table(figures: &Figures) -> Table {
    let mut table = Table::default();
    let Figures { sockets, conversations, missed, caught_up, expected, .. } = figures;
    table.row("target", format!("{}{}", figures.url, if figures.jwt { ", by tokens" } else { "" }));
    table.row(
        "crowd",
        format!("{sockets} sockets, {conversations} conversations each, {missed} messages unread"),
    );
    table.row("connect", format!("{} s", figures.connect_seconds));
    table.cost(&figures.connect_cost);
    table.by_process("  µs of CPU per connect", &figures.us_per_connect);
    table.by_process("  bytes per socket", &figures.bytes_per_socket);
    table.row(
        "all back",
        format!("after {} s, {} of {sockets}", figures.back_seconds, figures.resumed),
    );
    table.row("  caught up", format!("{caught_up} of {expected} messages"));
    table.latency(&figures.latency);
    table.cost(&figures.return_cost);
    table.by_process("  µs of CPU per return", &figures.us_per_return);
    table.counts("tried again", &figures.retries);
    table.memory("memory before", &figures.rss_before);
    table.memory("  with all open", &figures.rss_open);
    table.memory("  peak of the storm", &figures.rss_peak);
    table.memory("  after it", &figures.rss_after);
    figures.talk_before.rows(&mut table);
    figures.talk_storm.rows(&mut table);
    table.outcome(&figures.outcome);
    table.counts("the crowd's sockets ended", &figures.ends);
    table
}
