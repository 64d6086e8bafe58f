//! `numclip calibrate`: the interval fitted to pictures of one's own.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use numclip::import::Draft;
use numclip::pipeline::Pipeline;
use serde_json::json;

use crate::exit::{Exit, UsageError};
use crate::import::look;
use crate::labels::LabelsArgs;
use crate::table;

/// Fit a bundle's interval, and what it takes for usual, to labelled pictures.
///
/// An interval holds what it promises for pictures like those that it was
/// fitted on: so fit it where the camera hangs. One half of the pictures (whole
/// groups, where there are groups) fits it, the other half measures it. The
/// network and its estimates stay the same.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder of the model bundle.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// Folder of the new bundle; may be the same.
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Share of labels that the interval is to hold [default: the bundle's].
    #[arg(long, value_name = "SHARE", value_parser = share)]
    coverage: Option<f32>,
    #[command(flatten)]
    labels: LabelsArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Example:
  numclip calibrate models/gauge --labels boiler-room.csv --coverage 0.95 --out boiler-room";

fn share(text: &str) -> Result<f32, String> {
    let share = text.parse().ok();
    let share = share.filter(|share: &f32| (0.01..=0.999).contains(share));
    share.ok_or_else(|| "expected a share from 0.01 to 0.999".into())
}

/// Runs the command.
///
/// # Errors
/// When the bundle or the labels cannot be used, or the bundle cannot be written.
pub fn run(args: &Args) -> Result<Exit> {
    let Some(csv) = &args.labels.csv else {
        return Err(UsageError("no labelled pictures: name a table with --labels".into()).into());
    };
    let mut draft = Draft::of_bundle(&args.model, args.coverage)?;
    let task = draft.bundle().manifest().task.clone();
    let inputs = args.labels.read(csv, task.range)?;
    let seen = look(&Pipeline::new(draft.bundle().clone(), None)?, &inputs)?;
    let missed = inputs.len() - seen.len();
    let Some(report) = draft.measure(&seen).cloned() else {
        anyhow::bail!("{} pictures are too few to measure anything", seen.len());
    };
    let Some(interval) = draft.interval().cloned() else {
        anyhow::bail!("{} pictures are too few for an interval", seen.len());
    };
    draft.write(&args.out)?;
    let text = match args.json {
        true => format!(
            "{}\n",
            json!({"bundle": args.out, "report": report, "interval": interval, "failed": missed})
        ),
        false => table::metrics(&task, &report.metrics),
    };
    anstream::stdout().lock().write_all(text.as_bytes())?;
    Ok(if missed == 0 {
        Exit::Done
    } else {
        Exit::Failed
    })
}
