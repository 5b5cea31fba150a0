//! What the devices must hold in the end, and whether they do.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;
use tidings_client::target::Target;
use uuid::Uuid;

use super::Run;
use crate::proc::Sample;
use crate::report::{self, Cost, Latencies, Report, Table, round};

/// Violations that are written out; all are counted.
const SHOWN: usize = 10;

/// A conversation of the run.
pub struct Group {
    pub id: Uuid,
    /// The log's head when the members had joined: every change after it is one of our messages.
    pub joined_seq: u64,
    /// Indexes of users.
    pub members: Vec<usize>,
}

/// One message at one device.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    pub group: usize,
    pub seq: u64,
    /// Ours, of the whole run.
    pub number: usize,
    /// By the acknowledgement of the device's own send, not by an event.
    pub own: bool,
}

/// All that a device received, in that order.
#[derive(Default)]
pub struct Device {
    pub received: Vec<Received>,
    /// (group, seq) of these.
    pub seen: HashSet<(usize, u64)>,
    /// Messages that are none of ours.
    pub foreign: u64,
}

#[derive(Default)]
struct Violations {
    by_kind: BTreeMap<String, u64>,
    shown: Vec<String>,
}

impl Violations {
    fn add(&mut self, kind: &str, text: impl FnOnce() -> String) {
        super::count(&mut self.by_kind, kind);
        if self.shown.len() < SHOWN {
            self.shown.push(format!("{kind}: {}", text()));
        }
    }
}

/// Judges the devices (of user N: 2N, which sent, and 2N + 1). `truth` is by the acknowledgements
/// alone, so that a message must be everywhere once its sender was told that it is durable.
fn judge(groups: &[Group], devices: &[&Device]) -> Violations {
    let mut violations = Violations::default();
    let truth = truth(groups, devices, &mut violations);
    for (at, device) in devices.iter().enumerate() {
        let name = || format!("user {} device {}", at / 2, at % 2);
        if device.foreign > 0 {
            violations.add("foreign", || format!("{}: {} messages", name(), device.foreign));
        }
        let mut held: Vec<HashMap<u64, u32>> = vec![HashMap::new(); groups.len()];
        for Received { group, seq, number, .. } in &device.received {
            *held[*group].entry(*seq).or_default() += 1;
            if !groups[*group].members.contains(&(at / 2)) {
                violations.add("not a member", || format!("{} in group {group}", name()));
            }
            if truth[*group].get(seq).is_some_and(|acked| acked != number) {
                violations.add("two messages under one seq", || {
                    format!("{}: group {group}, seq {seq}", name())
                });
            }
        }
        for (index, group) in groups.iter().enumerate() {
            if !group.members.contains(&(at / 2)) {
                continue;
            }
            for seq in truth[index].keys().filter(|seq| !held[index].contains_key(seq)) {
                violations.add("missing", || format!("{}: group {index}, seq {seq}", name()));
            }
            for (seq, times) in held[index].iter().filter(|(_, times)| **times > 1) {
                violations.add("doubled", || {
                    format!("{}: group {index}, seq {seq}, {times} times", name())
                });
            }
            // In the client's order the log goes on where the member joined, step by step.
            let head = group.joined_seq + held[index].len() as u64;
            let gap = (group.joined_seq + 1..=head).find(|seq| !held[index].contains_key(seq));
            if let Some(seq) = gap {
                violations.add("gap", || format!("{}: group {index} at seq {seq}", name()));
            }
        }
    }
    violations
}

/// By group: seq to message, as it was acknowledged.
fn truth(
    groups: &[Group],
    devices: &[&Device],
    violations: &mut Violations,
) -> Vec<HashMap<u64, usize>> {
    let mut truth = vec![HashMap::new(); groups.len()];
    let own = devices.iter().flat_map(|device| &device.received).filter(|message| message.own);
    for Received { group, seq, number, .. } in own {
        if truth[*group].insert(*seq, *number).is_some() {
            violations.add("one seq acknowledged twice", || format!("group {group}, seq {seq}"));
        }
    }
    truth
}

#[derive(Serialize)]
struct Figures {
    urls: Vec<String>,
    senders: usize,
    conversations: usize,
    members: usize,
    messages: usize,
    acked: usize,
    received: usize,
    /// Events that the acknowledged messages had to cause.
    expected: usize,
    seconds: f64,
    acked_per_second: f64,
    /// Among them `repeat`, from the sending to the second and later receipts at a device, which
    /// a healthy run does not have.
    latency: Latencies,
    cost: Cost,
    us_per_message: BTreeMap<String, f64>,
    violations: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    events: BTreeMap<String, u64>,
    ends: BTreeMap<String, u64>,
}

/// Judges, reports; true if there is nothing to object to.
pub fn publish(
    run: &Run,
    before: &Sample,
    after: &Sample,
    seconds: f64,
    ends: BTreeMap<String, u64>,
) -> anyhow::Result<bool> {
    let devices: Vec<_> = (0..run.devices.len()).map(|index| run.device(index)).collect();
    let devices: Vec<&Device> = devices.iter().map(|device| &**device).collect();
    let Violations { by_kind, shown } = judge(&run.groups, &devices);
    let stats = run.stats();
    let acked = run.acked.load(std::sync::atomic::Ordering::Relaxed);
    let cost = Cost::between(before, after);
    let named = [("ack", &stats.ack), ("delivery", &stats.delivery), ("repeat", &stats.repeat)];
    let latency = report::latencies(named);
    let figures = Figures {
        urls: run.args.urls.iter().map(Target::to_string).collect(),
        senders: run.args.senders,
        conversations: run.args.conversations,
        members: run.args.members,
        messages: run.args.messages,
        acked,
        received: run.received.load(std::sync::atomic::Ordering::Relaxed),
        expected: acked * (run.args.members * 2 - 1),
        seconds: round(seconds, 3),
        acked_per_second: round(acked as f64 / seconds, 1),
        latency,
        us_per_message: cost.us_per(acked as f64),
        cost,
        violations: by_kind,
        errors: stats.errors.clone(),
        events: stats.events.clone(),
        ends,
    };
    let mut faults = shown;
    let hidden = figures.violations.values().sum::<u64>() as usize - faults.len();
    if hidden > 0 {
        faults.push(format!("and {hidden} more violations"));
    }
    if acked < run.args.messages {
        faults.push(format!("{acked} of {} messages were acknowledged", run.args.messages));
    }
    if !figures.ends.is_empty() {
        faults.push(format!("sockets ended: {:?}", figures.ends));
    }
    Report::new("scatter", faults, figures).publish(table, &run.args.common)
}

fn table(figures: &Figures) -> Table {
    let Figures { senders, conversations, members, acked, messages, .. } = figures;
    let mut table = Table::default();
    table.row("targets", figures.urls.join(", "));
    table.row(
        "load",
        format!("{senders} users with 2 devices each, {conversations} conversations of {members}"),
    );
    table.row(
        "acknowledged",
        format!(
            "{acked} of {messages} in {} s, {} a second",
            figures.seconds, figures.acked_per_second
        ),
    );
    table.row("received", format!("{} of {} events", figures.received, figures.expected));
    table.latency(&figures.latency);
    table.cost(&figures.cost);
    table.by_process("  µs of CPU per message", &figures.us_per_message);
    table.counts("violations", &figures.violations);
    table.counts("errors", &figures.errors);
    table.counts("other events", &figures.events);
    table.counts("sockets ended", &figures.ends);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Users 0 and 1 in one conversation that they joined at seq 1; user 2 is in another one.
    fn groups() -> Vec<Group> {
        let group = |members: &[usize]| Group {
            id: Uuid::new_v4(),
            joined_seq: 1,
            members: members.to_vec(),
        };
        vec![group(&[0, 1]), group(&[2])]
    }

    fn message(seq: u64, own: bool) -> Received {
        Received { group: 0, seq, number: seq as usize + 10, own }
    }

    /// User 0 sent seq 2 and 3, and everything arrived, out of order.
    fn devices() -> Vec<Device> {
        let held = |seqs: [u64; 2], own| Device {
            received: seqs.iter().map(|seq| message(*seq, own)).collect(),
            ..Device::default()
        };
        let [a, b, c, d] =
            [held([2, 3], true), held([2, 3], false), held([3, 2], false), held([2, 3], false)];
        vec![a, b, c, d, Device::default(), Device::default()]
    }

    fn kinds(devices: &[Device]) -> Vec<String> {
        let devices: Vec<&Device> = devices.iter().collect();
        judge(&groups(), &devices).by_kind.into_keys().collect()
    }

    #[test]
    fn a_whole_run_has_no_violations() {
        assert!(kinds(&devices()).is_empty());
    }

    #[test]
    fn each_violation_is_named() {
        let mut lost_at_end = devices();
        lost_at_end[2].received.remove(0);
        assert_eq!(kinds(&lost_at_end), ["missing"]);

        let mut lost_between = devices();
        lost_between[3].received.remove(0);
        assert_eq!(kinds(&lost_between), ["gap", "missing"]);

        let mut doubled = devices();
        doubled[3].received.push(message(3, false));
        assert_eq!(kinds(&doubled), ["doubled"]);

        let mut echoed = devices();
        echoed[0].received.push(message(3, false));
        assert_eq!(kinds(&echoed), ["doubled"], "the sending device gets no event");

        let mut other = devices();
        other[1].received[0].number = 99;
        assert_eq!(kinds(&other), ["two messages under one seq"]);

        let mut leaked = devices();
        leaked[4].received.push(message(2, false));
        assert_eq!(kinds(&leaked), ["not a member"]);

        let mut stray = devices();
        stray[5].foreign = 1;
        assert_eq!(kinds(&stray), ["foreign"]);

        let mut same_seq = devices();
        same_seq[2].received.push(message(3, true));
        assert!(kinds(&same_seq).contains(&"one seq acknowledged twice".to_owned()));

        // A change that nobody was told of: the log goes on at 5.
        let mut hole = devices();
        for device in &mut hole[..4] {
            let own = device.received[0].own;
            device.received.push(message(5, own));
        }
        assert_eq!(kinds(&hole), ["gap"]);
    }
}
