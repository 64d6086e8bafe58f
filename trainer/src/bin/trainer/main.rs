//! `trainer`: fine-tunes a NumCLIP image encoder and exports it for `numclip`.

mod eval;
mod export;
mod fit;
mod inspect;
mod join;
mod plan;
mod report;
mod repro;
mod synth;
mod tflite;
mod variant;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser};

/// Fine-tunes a NumCLIP image encoder and exports it as a quantised bundle.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  trainer synth gauge --out data/gauge -n 6000 --seed 1
  trainer fit trainer/tasks/gauge.toml
  trainer export runs/gauge --out models/gauge
  numclip predict --model models/gauge photo.jpg"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Synth(synth::Synth),
    Fit(fit::Fit),
    Join(join::Join),
    Plan(plan::Plan),
    Eval(eval::Eval),
    Report(report::Report),
    Repro(repro::Repro),
    Export(export::Export),
    Tflite(tflite::Tflite),
    Inspect(inspect::Inspect),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Synth(command) => command.run(),
        Command::Fit(command) => command.run(),
        Command::Join(command) => command.run(),
        Command::Plan(command) => command.run(),
        Command::Eval(command) => command.run(),
        Command::Report(command) => command.run(),
        Command::Repro(command) => command.run(),
        Command::Export(command) => command.run(),
        Command::Tflite(command) => command.run(),
        Command::Inspect(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The error of flags of a subcommand that do not go together.
fn usage_error(subcommand: &str, message: &str) -> clap::Error {
    let mut command = Cli::command().bin_name("trainer");
    command.build();
    let command = command.find_subcommand_mut(subcommand).cloned();
    let mut command = command.unwrap_or_else(Cli::command);
    command.error(ErrorKind::ArgumentConflict, message)
}

/// A flag that the first Ctrl-C sets; the second one ends the program.
fn interrupt_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    ctrlc::set_handler(move || {
        if set.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("stopping after this step; press Ctrl-C again to stop at once");
    })?;
    Ok(flag)
}
