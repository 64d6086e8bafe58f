//! `numclip manual`: pages for man and completions for shells, for packages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_complete::aot::generate_to;

use crate::exit::Exit;

/// Shells, each with the folder that packages put its completions into.
const SHELLS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash"),
    (Shell::Zsh, "zsh"),
    (Shell::Fish, "fish"),
];

/// Write manual pages and shell completions into a folder.
#[derive(clap::Args)]
#[command(after_help = "Example:
  numclip manual out && man out/man/numclip-run.1 && source out/bash/numclip.bash")]
pub struct Args {
    /// The folder, which is made if need be.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// When a file cannot be written.
pub fn run(args: &Args) -> Result<Exit> {
    for (shell, folder) in SHELLS {
        let folder = made(&args.folder.join(folder))?;
        generate_to(shell, &mut crate::Cli::command(), "numclip", &folder)
            .with_context(|| folder.display().to_string())?;
    }
    let folder = made(&args.folder.join("man"))?;
    clap_mangen::generate_to(crate::Cli::command(), &folder)
        .with_context(|| folder.display().to_string())?;
    Ok(Exit::Done)
}

fn made(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    Ok(folder.into())
}
