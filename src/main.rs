//! Allocator, settings, logs, runtime, `App::build`, `App::run`, exit code; nothing else.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tidings::app::{self, App};
use tidings::build_info::{VERSION, VERSION_AND_COMMIT};
use tidings::config::{self, Config};
use tidings::{check, health, shutdown, telemetry, verify};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A wrong setting, as in sysexits.h.
const EXIT_USAGE: u8 = 64;

/// A horizontally sharded real-time messaging service. Settings come from the environment; see
/// .env.example.
#[derive(Parser)]
#[command(version = VERSION_AND_COMMIT, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Copy, Subcommand)]
enum Command {
    /// Run a node (the default).
    Serve,
    /// Lay or renew the tables of the store, and exit.
    Migrate,
    /// Ask the node on this machine with these settings if it serves; exit code 1 if it does not.
    Health,
    /// Check what must hold of the stored data and of presence; exit code 1 if something does not.
    Verify,
    /// Connect to every part that the settings name, and say what is right and what to fix; exit
    /// code 1 if a node would not start or not keep its promises.
    Check {
        /// For programs: one JSON object.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let command = Cli::parse().command.unwrap_or(Command::Serve);
    // Before the settings are read: what MAX_CONNECTIONS is by default follows from it.
    config::raise_open_files();
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(faults) => {
            if let Command::Check { json } = command {
                return told(&check::Report::of_faults(&faults), json);
            }
            eprintln!("{faults}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    // The report tells all there is to tell.
    let silent = matches!(command, Command::Check { .. });
    if !silent && let Err(error) = telemetry::init_logs(&config.log) {
        eprintln!("tidings: {error}");
        return ExitCode::from(EXIT_USAGE);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => match command {
            Command::Check { json } => return told(&runtime.block_on(check::run(&config)), json),
            command => runtime.block_on(run(command, config)),
        },
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tidings: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn told(report: &check::Report, json: bool) -> ExitCode {
    match json.then(|| report.json()) {
        Some(Ok(json)) => println!("{json}"),
        _ => print!("{report}"),
    }
    if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// True if all went as asked.
async fn run(command: Command, config: Config) -> anyhow::Result<bool> {
    if let Command::Migrate = command {
        app::migrate(&config).await?;
        println!("the tables are those of this release");
        return Ok(true);
    }
    if let Command::Health = command {
        health::ask(&config).await?;
        println!("ok");
        return Ok(true);
    }
    if let Command::Verify = command {
        let report = verify::run(&config).await?;
        print!("{report}");
        return Ok(report.is_sound());
    }
    tracing::info!(version = VERSION_AND_COMMIT, ?config, "settings");
    #[cfg(feature = "sabotage")]
    tidings::sabotage::begin(tidings::config::sabotage()?);
    let traces = telemetry::traces::init(config.traces.as_ref()).context("traces")?;
    let mut stop = std::pin::pin!(shutdown::signals()?);
    let app = tokio::select! {
        app = App::build(config) => app?,
        () = &mut stop => return Ok(true),
    };
    tracing::info!(addr = %app.addr(), "listening");
    if let Some(addr) = app.admin_addr() {
        tracing::info!(%addr, "admin listening");
    }
    println!("tidings {VERSION} at {}://{}", app.scheme(), app.addr());
    let sound = app.run(stop).await;
    if let Some(traces) = traces {
        traces.close().await;
    }
    Ok(sound)
}
