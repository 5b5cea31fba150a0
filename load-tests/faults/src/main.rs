//! Breaks a cluster of Tidings while clients talk through it, and checks from outside that what was
//! promised holds. `scripts/faults` is the way to call it.

mod checker;
mod nodes;
mod proxy;
mod redises;
mod run;
mod scenario;
mod services;
mod stage;
mod standby;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// Fault scenarios. Exit code 1: a promise did not hold; 2: the run could not be made.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The scenarios and what each is about.
    List {
        /// Only those of the short set, by name.
        #[arg(long)]
        short: bool,
    },
    /// Runs one, and checks it.
    Run {
        scenario: String,
        #[command(flatten)]
        args: Box<run::Args>,
    },
    /// Checks once more what a run left in its folder.
    Check { folder: PathBuf },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("faults: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// True if all held.
fn run(command: Command) -> anyhow::Result<bool> {
    let folder = match command {
        Command::List { short } => {
            for scenario in scenario::ALL {
                match short {
                    true if scenario.short => println!("{}", scenario.name),
                    true => {}
                    false => println!("{:28} {}", scenario.name, scenario.about),
                }
            }
            return Ok(true);
        }
        Command::Run { scenario, args } => {
            let scenario = scenario::find(&scenario).context("there is no such scenario")?;
            let folder = args.folder.clone();
            std::fs::create_dir_all(&folder)?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?;
            runtime.block_on(run::run(*args, scenario))?;
            folder
        }
        Command::Check { folder } => folder,
    };
    let verdict = checker::check(&folder).context("the checker")?;
    // For the script that keeps the runs.
    println!("{}", serde_json::to_string(&verdict.counts)?);
    for fault in &verdict.faults {
        eprintln!("FAULT {fault}");
    }
    std::fs::write(folder.join("verdict.json"), serde_json::to_vec_pretty(&verdict)?)?;
    Ok(verdict.faults.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
