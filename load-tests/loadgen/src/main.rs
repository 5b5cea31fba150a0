//! Load for a node or cluster of Tidings, and what it costs there. A black-box client of the wire
//! contract: it knows nothing of the server's code.
//!
//! Lean on purpose, for it shares its machine with the server: one thread unless told otherwise,
//! one task per socket, one read buffer for all of them. Everything is bounded in time and count.

mod metrics;
mod modes;
mod proc;
mod report;
mod traffic;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tidings_client::key::Key;

use crate::modes::{chat, day, group, history, idle, overload, scatter, soak, storm};
use crate::proc::Named;

/// Load generator for Tidings. Loopback only; exit code 1 if what was promised did not hold.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Threads to generate the load on.
    #[arg(long, global = true, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    threads: u8,
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// Open many sockets that say nothing: memory and CPU of each.
    Idle(idle::Args),
    /// Pairs of users that write to each other: durable messages a second, latency, CPU of each.
    Chat(chat::Args),
    /// All that users do, each at its own rate, by chance from a seed.
    Day(day::Args),
    /// Writers in groups of many sizes: deliveries a second, latency, CPU of each.
    Group(group::Args),
    /// Pages of a long history, and syncs: latency, CPU and the database's time.
    History(history::Args),
    /// More than the server takes: does it refuse, and stay fast?
    Overload(overload::Args),
    /// Groups spread over nodes: does everybody receive everything exactly once, without a gap?
    Scatter(scatter::Args),
    /// The mixed day for long: does the node's memory rise, or anything else?
    Soak(soak::Args),
    /// A crowd that loses its connections and comes back, while others talk.
    Storm(storm::Args),
}

/// What all modes take.
#[derive(clap::Args)]
struct Shared {
    /// A process to account for, with its descendants; may be given several times. The server's
    /// is to be called "node".
    #[arg(long = "pid", value_name = "NAME=PID[,PID]")]
    pids: Vec<Named>,
    /// The node's secret (HS256), where it runs with AUTH_MODE=jwt: all prove themselves with tokens.
    #[arg(long, value_name = "SECRET")]
    jwt_key: Option<Key>,
    /// Also write the report here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("loadgen: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// True if what was promised held.
fn run(cli: Cli) -> anyhow::Result<bool> {
    let runtime = match cli.threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        threads => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.into())
            .enable_all()
            .build(),
    };
    runtime.context("the runtime")?.block_on(async {
        match cli.mode {
            Mode::Idle(args) => idle::run(args).await,
            Mode::Chat(args) => chat::run(args).await,
            Mode::Day(args) => day::run(args).await,
            Mode::Group(args) => group::run(args).await,
            Mode::History(args) => history::run(args).await,
            Mode::Overload(args) => overload::run(args).await,
            Mode::Scatter(args) => scatter::run(args).await,
            Mode::Soak(args) => soak::run(args).await,
            Mode::Storm(args) => storm::run(args).await,
        }
    })
}

/// `30`, `30s`, `500ms` or `2m`; at most a day.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        _ => return Err("expected a time such as 30s, 500ms or 2m".to_owned()),
    };
    let ms = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    let bounded = ms.filter(|ms| *ms <= 86_400_000).map(Duration::from_millis);
    bounded.ok_or_else(|| "expected a time of at most a day".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn times_are_read() {
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "s", "1h", "-1s", "99999999999999999999", "2000m"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
