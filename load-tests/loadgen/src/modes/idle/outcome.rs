//! What idle sockets cost in sum.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Args;
use crate::proc::{Kernel, Sample};
use crate::report::{Cost, Report, Table, growth, round, rss};

#[derive(Serialize)]
pub struct Figures {
    pub url: String,
    pub sockets: usize,
    pub opened: usize,
    pub steps: Vec<Step>,
    /// Resident bytes by process: before the first socket, after the hold, after the close.
    pub rss_before: BTreeMap<String, u64>,
    pub rss_held: BTreeMap<String, u64>,
    pub rss_closed: BTreeMap<String, u64>,
    /// Growth of the resident bytes from before to after the hold.
    pub bytes_per_socket: BTreeMap<String, f64>,
    pub kernel: PerSocket,
    pub fds_held: BTreeMap<String, usize>,
    pub hold_seconds: f64,
    pub cost: Cost,
    /// CPU of one idle socket in a second.
    pub us_per_socket_second: BTreeMap<String, f64>,
    /// Of it what the processes did not need before the first socket, if that was watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub us_per_socket_second_more: Option<BTreeMap<String, f64>>,
    pub after_traffic: Option<AfterTraffic>,
    pub ends: BTreeMap<String, u64>,
}

/// So many sockets are open.
#[derive(Serialize)]
pub struct Step {
    pub sockets: usize,
    pub seconds: f64,
    pub cost: Cost,
    /// Handshake, subscription, presence and `hello`, of those that were opened in this step.
    pub us_per_connect: BTreeMap<String, f64>,
    pub rss: BTreeMap<String, u64>,
    /// Since before the first socket, and since the step before.
    pub bytes_per_socket: BTreeMap<String, f64>,
    pub bytes_per_socket_more: BTreeMap<String, f64>,
    pub kernel: PerSocket,
}

/// Growth of the kernel's memory, of both ends: the generator's are on the same machine.
#[derive(Serialize)]
pub struct PerSocket {
    pub buffer_bytes_per_socket: f64,
    pub slab_bytes_per_socket: f64,
}

impl PerSocket {
    pub fn between(before: &Kernel, after: &Kernel, sockets: f64) -> Self {
        let each = |before: u64, after: u64| round((after as f64 - before as f64) / sockets, 0);
        Self {
            buffer_bytes_per_socket: each(before.tcp_buffer_bytes, after.tcp_buffer_bytes),
            slab_bytes_per_socket: each(before.slab_bytes, after.slab_bytes),
        }
    }

    fn row(&self, table: &mut Table) {
        let Self { buffer_bytes_per_socket: buffers, slab_bytes_per_socket: slab } = self;
        table.row("  kernel's bytes per socket", format!("buffers {buffers}, slab {slab}"));
    }
}

#[derive(Serialize)]
pub struct AfterTraffic {
    /// Messages that each socket received.
    pub received: usize,
    pub received_in_all: usize,
    /// That it sent.
    pub command_bytes: u32,
    pub answered: usize,
    pub rest_seconds: f64,
    pub rss: BTreeMap<String, u64>,
    pub bytes_per_socket: BTreeMap<String, f64>,
    pub kernel: PerSocket,
    pub cost: Cost,
    /// Of one delivery, or one command.
    pub us_per_frame: BTreeMap<String, f64>,
}

impl Step {
    /// `start` is before the first socket; `before` with the sockets of the step before, and so
    /// many.
    pub fn new(
        (sockets, more): (usize, usize),
        seconds: f64,
        start: &Sample,
        before: &Sample,
        connected: &Sample,
        open: &Sample,
    ) -> Self {
        let cost = Cost::between(before, connected);
        Self {
            sockets,
            seconds: round(seconds, 2),
            us_per_connect: cost.us_per(more as f64),
            cost,
            rss: rss(open),
            bytes_per_socket: growth(start, open, sockets as f64),
            bytes_per_socket_more: growth(before, open, more as f64),
            kernel: PerSocket::between(&start.kernel, &open.kernel, sockets as f64),
        }
    }
}

pub fn publish(args: &Args, figures: Figures) -> anyhow::Result<bool> {
    Report::new("idle", faults(args, &figures), figures).publish(table, &args.common)
}

fn faults(args: &Args, figures: &Figures) -> Vec<String> {
    let mut faults = Vec::new();
    if figures.opened < figures.sockets {
        faults.push(format!("{} of {} sockets opened", figures.opened, figures.sockets));
    }
    if !figures.ends.is_empty() {
        faults.push(format!("sockets ended: {:?}", figures.ends));
    }
    if let Some(after) = &figures.after_traffic {
        let expected = after.received * figures.opened;
        if after.received_in_all < expected {
            faults.push(format!("{} of {expected} messages received", after.received_in_all));
        }
        if after.answered < figures.opened {
            faults.push(format!("{} of {} commands answered", after.answered, figures.opened));
        }
    }
    if let Some(max) = args.max_bytes_per_socket {
        match figures.bytes_per_socket.get("node") {
            Some(bytes) if *bytes <= max => {}
            Some(bytes) => faults.push(format!("{bytes} bytes per socket, at most {max} allowed")),
            None => faults.push("--max-bytes-per-socket needs --pid node=PID".to_owned()),
        }
    }
    faults
}

fn table(figures: &Figures) -> Table {
    let mut table = Table::default();
    table.row("target", &figures.url);
    table.row("sockets", format!("{} of {}", figures.opened, figures.sockets));
    table.counts("ended or failed", &figures.ends);
    table.memory("memory before", &figures.rss_before);
    for step in &figures.steps {
        table.row(format!("{} open", step.sockets), format!("after {} s", step.seconds));
        table.cost(&step.cost);
        table.by_process("  µs of CPU per connect", &step.us_per_connect);
        table.memory("  memory", &step.rss);
        table.by_process("  bytes per socket", &step.bytes_per_socket);
        if figures.steps.len() > 1 {
            table.by_process("  bytes per socket more", &step.bytes_per_socket_more);
        }
        step.kernel.row(&mut table);
    }
    table.row("hold", format!("{} s", figures.hold_seconds));
    table.cost(&figures.cost);
    table.by_process("  µs of CPU per socket and second", &figures.us_per_socket_second);
    if let Some(more) = &figures.us_per_socket_second_more {
        table.by_process("  of it more than without sockets", more);
    }
    table.memory("  memory", &figures.rss_held);
    table.by_process("  bytes per socket", &figures.bytes_per_socket);
    figures.kernel.row(&mut table);
    if let Some(after) = &figures.after_traffic {
        let AfterTraffic { received, command_bytes, rest_seconds, .. } = after;
        table.row(
            "after traffic",
            format!("{received} messages to each, one of {command_bytes} bytes from it"),
        );
        table.cost(&after.cost);
        table.by_process("  µs of CPU per frame", &after.us_per_frame);
        table.memory(format!("  memory {rest_seconds} s later"), &after.rss);
        table.by_process("  bytes per socket", &after.bytes_per_socket);
        after.kernel.row(&mut table);
    }
    table.memory("memory after the close", &figures.rss_closed);
    table
}
