//! `numclip config`: settings files for `numclip run`.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use numclip::settings::{Settings, TEMPLATE};

use crate::exit::{Exit, UsageError};
use crate::table::aligned;

/// Write a settings file for `numclip run --config`, or check one.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  numclip config init numclip.toml     every key, with its meaning and default
  numclip config check numclip.toml")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a settings file with every key; without FILE, print it.
    Init {
        /// A file that does not exist yet.
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Check a settings file without starting anything.
    Check {
        /// The settings file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// Runs the command.
///
/// # Errors
/// When the file cannot be written or is not what it should be.
pub fn run(args: &Args) -> Result<Exit> {
    match &args.command {
        Command::Init { file: Some(file) } => init(file)?,
        Command::Init { file: None } => print(TEMPLATE)?,
        Command::Check { file } => print(&summary(&Settings::load(file)?))?,
    }
    Ok(Exit::Done)
}

fn print(text: &str) -> Result<()> {
    Ok(anstream::stdout().lock().write_all(text.as_bytes())?)
}

/// Writes the template, but over nothing.
fn init(file: &Path) -> Result<()> {
    let opened = OpenOptions::new().write(true).create_new(true).open(file);
    let mut opened = match opened {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let message = format!("{}: is there already; nothing was written", file.display());
            return Err(UsageError(message).into());
        }
        opened => opened.with_context(|| file.display().to_string())?,
    };
    opened
        .write_all(TEMPLATE.as_bytes())
        .with_context(|| file.display().to_string())
}

fn summary(settings: &Settings) -> String {
    let missing = || "none, needs a flag".to_owned();
    let (model, source) = (&settings.model.path, &settings.source.address);
    let mut lines = vec![
        (
            "model".to_owned(),
            model
                .as_ref()
                .map_or_else(missing, |path| path.display().to_string()),
        ),
        (
            "source".to_owned(),
            source.as_ref().map_or_else(missing, ToString::to_string),
        ),
    ];
    let sinks = settings.sinks().unwrap_or_default();
    lines.extend(sinks.iter().map(|sink| ("sink".into(), sink.to_string())));
    aligned(&lines)
}
