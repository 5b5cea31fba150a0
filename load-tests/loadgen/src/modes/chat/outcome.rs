//! What the pairs of a run make in sum, and whether it is as promised.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;
use tidings_client::target::Target;

use super::{Args, Log, Run};
use crate::report::{Cost, LatencySummary, Report, Table, round};

#[derive(Serialize)]
pub struct Figures {
    url: String,
    receiver_url: Option<String>,
    pairs: usize,
    in_flight: Option<usize>,
    rate: Option<f64>,
    /// Of the measured window; the figures below it are of this window.
    seconds: f64,
    durable_per_second: f64,
    ack: LatencySummary,
    delivery: LatencySummary,
    cost: Cost,
    us_per_message: BTreeMap<String, f64>,
    softirq_us_per_message: f64,
    /// Of the whole run, warm-up included, like all below.
    sent: usize,
    acked: usize,
    delivered: usize,
    /// Acknowledged and never received.
    missing: usize,
    /// Received more than once.
    doubled: usize,
    /// Neither acknowledged nor refused.
    unanswered: usize,
    /// From the last send to the last first receipt; 0 if that was earlier.
    complete_after_ms: u64,
    errors: BTreeMap<String, u64>,
    events: BTreeMap<String, u64>,
    ends: BTreeMap<String, u64>,
}

/// Reads the logs of the pairs; all tasks have ended.
pub fn figures(
    run: &Run,
    logs: &[Log],
    cost: Cost,
    seconds: f64,
    ends: BTreeMap<String, u64>,
) -> Figures {
    let (mut missing, mut doubled) = (0, 0);
    for log in logs {
        for entry in log.lock().expect("no holder panics").iter() {
            missing += usize::from(entry.acked && entry.delivered == 0);
            doubled += usize::from(entry.delivered > 1);
        }
    }
    let stats = run.stats();
    let measured = run.acked_in_window.load(Relaxed);
    let (sent, acked) = (run.sent.load(Relaxed), run.acked.load(Relaxed));
    let refused: u64 = stats.errors.values().sum();
    let complete = stats.last.map(|last| last.saturating_duration_since(run.plan().end));
    let url = |target: &Target| format!("http://{}", target.host);
    Figures {
        url: url(&run.args.url),
        receiver_url: run.args.receiver_url.as_ref().map(url),
        pairs: run.args.pairs,
        in_flight: run.args.rate.is_none().then_some(run.args.in_flight),
        rate: run.args.rate,
        seconds: round(seconds, 3),
        durable_per_second: round(measured as f64 / seconds, 1),
        ack: stats.ack.summary(),
        delivery: stats.delivery.summary(),
        us_per_message: cost.us_per(measured as f64),
        softirq_us_per_message: round(cost.machine.softirq * 1e6 / measured.max(1) as f64, 3),
        cost,
        sent,
        acked,
        delivered: run.delivered.load(Relaxed),
        missing,
        doubled,
        unanswered: sent.saturating_sub(acked + refused as usize),
        complete_after_ms: complete.unwrap_or_default().as_millis() as u64,
        errors: stats.errors.clone(),
        events: stats.events.clone(),
        ends,
    }
}

/// Judges, reports; true if there is nothing to object to.
pub fn publish(args: &Args, figures: Figures) -> anyhow::Result<bool> {
    let faults = faults(args, &figures);
    let report = Report { mode: "chat", passed: faults.is_empty(), faults, figures };
    report.publish(&table(&report.figures), args.common.json.as_deref())
}

fn faults(args: &Args, figures: &Figures) -> Vec<String> {
    let mut faults = Vec::new();
    if figures.missing > 0 {
        faults.push(format!("{} acknowledged messages were not delivered", figures.missing));
    }
    if figures.doubled > 0 {
        faults.push(format!("{} messages were delivered more than once", figures.doubled));
    }
    if figures.unanswered > 0 {
        faults.push(format!("{} messages were never answered", figures.unanswered));
    }
    if figures.acked == 0 {
        faults.push("nothing was acknowledged".to_owned());
    }
    if !figures.ends.is_empty() {
        faults.push(format!("sockets ended: {:?}", figures.ends));
    }
    if let Some(min) = args.min_rate.filter(|min| figures.durable_per_second < *min) {
        let rate = figures.durable_per_second;
        faults.push(format!("{rate} durable messages a second, at least {min} wanted"));
    }
    faults
}

fn table(figures: &Figures) -> Table {
    let mut table = Table::default();
    let to = figures.receiver_url.as_ref().map_or(String::new(), |url| format!(" to {url}"));
    table.row("target", format!("{}{to}", figures.url));
    let load = match (figures.rate, figures.in_flight) {
        (Some(rate), _) => format!("{rate} messages a second on schedule"),
        (None, in_flight) => format!("{} in flight each", in_flight.unwrap_or_default()),
    };
    table.row("load", format!("{} pairs, {load}", figures.pairs));
    table.row(
        "durable messages a second",
        format!("{} over {} s", figures.durable_per_second, figures.seconds),
    );
    table.row("send to ack", figures.ack.to_string());
    table.row("send to delivery", figures.delivery.to_string());
    table.cost(&figures.cost);
    table.by_process("  µs of CPU per message", &figures.us_per_message);
    table.row("  µs of softirq per message", figures.softirq_us_per_message.to_string());
    let Figures { sent, acked, delivered, missing, doubled, unanswered, .. } = figures;
    table.row("whole run", format!("{sent} sent, {acked} acknowledged, {delivered} delivered"));
    table.row(
        "  of these",
        format!(
            "{missing} missing, {doubled} doubled, {unanswered} unanswered; complete {} ms after \
             the last send",
            figures.complete_after_ms
        ),
    );
    table.counts("errors", &figures.errors);
    table.counts("other events", &figures.events);
    table.counts("sockets ended", &figures.ends);
    table
}
