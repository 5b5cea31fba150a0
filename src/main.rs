//! Allocator, settings, logs, runtime, `App::build`, `App::run`, exit code; nothing else.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tidings::app::{self, App};
use tidings::config::Config;
use tidings::{shutdown, telemetry, verify};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A wrong setting, as in sysexits.h.
const EXIT_USAGE: u8 = 64;

/// A horizontally sharded real-time messaging service. Settings come from the environment; see
/// .env.example.
#[derive(Parser)]
#[command(version, about)]
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
    /// Check what must hold of the stored data and of presence; exit code 1 if something does not.
    Verify,
}

fn main() -> ExitCode {
    let command = Cli::parse().command.unwrap_or(Command::Serve);
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("{faults}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if let Err(error) = telemetry::init_logs(&config.log) {
        eprintln!("tidings: {error}");
        return ExitCode::from(EXIT_USAGE);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(command, config)),
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

/// True if all went as asked.
async fn run(command: Command, config: Config) -> anyhow::Result<bool> {
    if let Command::Migrate = command {
        app::migrate(&config).await?;
        println!("the tables are those of this release");
        return Ok(true);
    }
    if let Command::Verify = command {
        let report = verify::run(&config).await?;
        print!("{report}");
        return Ok(report.is_sound());
    }
    tracing::info!(?config, "settings");
    #[cfg(feature = "sabotage")]
    tidings::sabotage::begin(tidings::config::sabotage()?);
    let mut stop = std::pin::pin!(shutdown::signals()?);
    let app = tokio::select! {
        app = App::build(config) => app?,
        () = &mut stop => return Ok(true),
    };
    tracing::info!(addr = %app.addr(), "listening");
    if let Some(addr) = app.admin_addr() {
        tracing::info!(%addr, "admin listening");
    }
    println!("tidings {} at {}://{}", env!("CARGO_PKG_VERSION"), app.scheme(), app.addr());
    Ok(app.run(stop).await)
}
