//! `numclip` on the command line. One file per subcommand; data goes to
//! stdout, everything else to stderr.

mod annotate;
mod bench;
#[cfg(feature = "tract")]
mod calibrate;
#[cfg(feature = "live")]
mod cameras;
mod canvas;
#[cfg(feature = "live")]
mod config;
#[cfg(feature = "live")]
mod doctor;
mod exit;
#[cfg(feature = "fleet")]
mod fleet;
#[cfg(feature = "flash")]
mod flash;
#[cfg(feature = "tract")]
mod import;
mod inputs;
mod inspect;
mod labels;
#[cfg(feature = "manual")]
mod manual;
mod predict;
#[cfg(feature = "live")]
mod run;
#[cfg(feature = "live")]
mod settings_args;
mod table;
mod verify;
#[cfg(feature = "live")]
mod view;
#[cfg(feature = "http")]
mod web;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use numclip::encode::Engine;

/// Estimates an ordinal quantity (an age, a grade, a gauge reading) from
/// pictures, with a model bundle made by `trainer`.
#[derive(Parser)]
#[command(version, arg_required_else_help = true, after_help = EXIT_CODES)]
struct Cli {
    /// Say more on stderr: model, engine, time per stage.
    #[arg(short, long, global = true)]
    verbose: bool,
    /// When to use colours.
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: Color,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Predict(predict::Args),
    #[cfg(feature = "live")]
    Run(Box<run::Args>),
    #[cfg(feature = "live")]
    Config(config::Args),
    #[cfg(feature = "live")]
    Doctor(Box<doctor::Args>),
    #[cfg(feature = "live")]
    Cameras(cameras::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Bench(bench::Args),
    #[cfg(feature = "tract")]
    Import(import::Args),
    #[cfg(feature = "tract")]
    Calibrate(calibrate::Args),
    #[cfg(feature = "flash")]
    #[command(flatten)]
    Flash(flash::Command),
    #[cfg(feature = "fleet")]
    #[command(flatten)]
    Fleet(fleet::Command),
    #[cfg(feature = "manual")]
    #[command(hide = true)]
    Manual(manual::Args),
}

#[derive(Clone, Copy, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

/// An engine by name, or the best of this build.
#[derive(Clone, Copy)]
struct EngineChoice(Option<Engine>);

const EXIT_CODES: &str = "Exit codes:
  0  done
  1  failed while running; in a batch, some pictures failed
  2  wrong usage
  3  the model bundle cannot be used
  4  nothing readable among the inputs";

fn main() -> ExitCode {
    let start = Instant::now();
    let cli = Cli::parse();
    cli.color.apply();
    match run(cli, start) {
        Ok(exit) => exit.into(),
        Err(error) if exit::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            exit::report(&error);
            exit::of(&error).into()
        }
    }
}

fn run(cli: Cli, start: Instant) -> Result<exit::Exit> {
    match cli.command {
        Command::Predict(args) => predict::run(&args, cli.verbose),
        #[cfg(feature = "live")]
        Command::Run(args) => run::run(&args, cli.verbose),
        #[cfg(feature = "live")]
        Command::Config(args) => config::run(&args),
        #[cfg(feature = "live")]
        Command::Doctor(args) => doctor::run(&args),
        #[cfg(feature = "live")]
        Command::Cameras(args) => cameras::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Bench(args) => bench::run(&args, start),
        #[cfg(feature = "tract")]
        Command::Import(args) => import::run(&args),
        #[cfg(feature = "tract")]
        Command::Calibrate(args) => calibrate::run(&args),
        #[cfg(feature = "flash")]
        Command::Flash(command) => flash::run(&command),
        #[cfg(feature = "fleet")]
        Command::Fleet(command) => fleet::run(&command),
        #[cfg(feature = "manual")]
        Command::Manual(args) => manual::run(&args),
    }
}

impl Color {
    fn apply(self) {
        match self {
            Self::Auto => anstream::ColorChoice::Auto,
            Self::Always => anstream::ColorChoice::Always,
            Self::Never => anstream::ColorChoice::Never,
        }
        .write_global();
    }
}

impl std::str::FromStr for EngineChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self(None)),
            name => name.parse().map(|engine| Self(Some(engine))),
        }
    }
}
