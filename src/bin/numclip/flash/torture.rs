//! `numclip torture`: the power cut at every step of an update.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use numclip::flash::torture::{Report, samples, torture};
use numclip::flash::{Folder, Lie, intact, state};
use serde_json::json;

use crate::exit::Exit;
use crate::table::aligned;

/// Cut the power at every step of an update and look at the device.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    Flash(FlashArgs),
}

/// Cut every step of an installation, an update and a rollback.
///
/// On a simulated medium, which loses, tears and reorders what was not synced,
/// as POSIX allows; with --dir on a real one, by killing the process.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  numclip torture flash
  numclip torture flash --lie folders      a medium that does not sync: it must be found out
  numclip torture flash --dir /media/card")]
struct FlashArgs {
    /// What is drawn at random follows from this.
    #[arg(long, default_value = "1")]
    seed: u64,
    /// Let the simulated medium pretend to sync.
    #[arg(long, conflicts_with = "dir")]
    lie: Option<LieChoice>,
    /// Use a new folder here instead, and kill a process at every step.
    #[arg(long, value_name = "PATH")]
    dir: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Install this sample and die at a step: the process that is killed.
    #[arg(long, hide = true, requires = "dir")]
    sample: Option<usize>,
    /// The step at which it dies.
    #[arg(long, hide = true, requires = "sample")]
    die_at: Option<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
enum LieChoice {
    Files,
    Folders,
}

/// Runs the command.
///
/// # Errors
/// When the folder cannot be used.
pub fn run(args: &Args) -> Result<Exit> {
    let Action::Flash(args) = &args.action;
    let report = match (&args.dir, args.sample) {
        (Some(dir), Some(sample)) => return install_here(dir, sample, args.die_at),
        (Some(dir), None) => on_folder(dir)?,
        (None, _) => torture(args.seed, args.lie.map(Into::into)),
    };
    let text = match args.json {
        true => format!("{}\n", json(&report)),
        false => described(&report),
    };
    anstream::stdout().lock().write_all(text.as_bytes())?;
    Ok(match report.bricked.is_empty() {
        true => Exit::Done,
        false => Exit::Failed,
    })
}

impl From<LieChoice> for Lie {
    fn from(lie: LieChoice) -> Self {
        match lie {
            LieChoice::Files => Self::Files,
            LieChoice::Folders => Self::Folders,
        }
    }
}

/// Updates one sample to the other in a folder, killed at step after step,
/// until the update is through before it can be killed.
fn on_folder(parent: &Path) -> Result<Report> {
    let folder = tempfile::Builder::new()
        .prefix("numclip-torture-")
        .tempdir_in(parent)
        .with_context(|| parent.display().to_string())?;
    let digests = samples().map(|sample| sample.digest());
    let mut report = Report::default();
    loop {
        install_in_child(folder.path(), 0, None)?;
        let step = report.steps;
        if install_in_child(folder.path(), 1, Some(step))?.success() {
            return Ok(report);
        }
        report.steps += 1;
        report.cuts += 1;
        match served(folder.path()) {
            Ok(Some(digest)) if digest == digests[0] => report.old += 1,
            Ok(Some(digest)) if digest == digests[1] => report.new += 1,
            Ok(_) => report
                .bricked
                .push(format!("killed at step {step}: nothing serves")),
            Err(error) => report
                .bricked
                .push(format!("killed at step {step}: {error}")),
        }
        if !install_in_child(folder.path(), 1, None)?.success() {
            let place = format!("killed at step {step}, tried again: refused");
            report.bricked.push(place);
        }
    }
}

fn served(root: &Path) -> Result<Option<String>> {
    let folder = Folder::new(root);
    let serving = state(&folder)?.serving;
    if let Some(digest) = &serving {
        intact(&folder, digest)?;
    }
    Ok(serving)
}

fn install_in_child(dir: &Path, sample: usize, die_at: Option<usize>) -> Result<ExitStatus> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.args(["torture", "flash", "--dir"]).arg(dir);
    command.args(["--sample", &sample.to_string()]);
    if let Some(step) = die_at {
        command.args(["--die-at", &step.to_string()]);
    }
    Ok(command.status()?)
}

fn install_here(dir: &Path, sample: usize, die_at: Option<usize>) -> Result<Exit> {
    let samples = samples();
    let Some(sample) = samples.get(sample) else {
        bail!("there are {} samples", samples.len());
    };
    let mut folder = Folder::new(dir);
    if let Some(step) = die_at {
        folder = folder.dying_at(step);
    }
    sample.install(&mut folder)?;
    Ok(Exit::Done)
}

fn json(report: &Report) -> serde_json::Value {
    json!({
        "steps": report.steps,
        "cuts": report.cuts,
        "three_in_a_row": report.triples,
        "old": report.old,
        "new": report.new,
        "bricked": report.bricked,
    })
}

fn described(report: &Report) -> String {
    let lines = [
        ("steps cut", report.steps.to_string()),
        ("media after a cut", report.cuts.to_string()),
        ("three cuts in a row", report.triples.to_string()),
        ("old model serves", report.old.to_string()),
        ("new model serves", report.new.to_string()),
        ("bricked", report.bricked.len().to_string()),
    ];
    let lines = lines.map(|(name, value)| (name.to_owned(), value));
    let mut text = aligned(&lines);
    for fault in report.bricked.iter().take(5) {
        text += &format!("\x1b[1;31mbricked:\x1b[0m {fault}\n");
    }
    text
}
