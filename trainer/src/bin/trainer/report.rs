//! `trainer report`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use numclip_trainer::study::{self, collect};

/// Merge runs (folds, seeds, alternatives) into one table and one page.
///
/// Runs that differ only in seed and fold are repetitions of one setting. A
/// setting is listed with the mean over its repetitions and the 95 % interval
/// of that mean, and compared with the first setting on the folds and seeds
/// that both have. Data and weights are not needed: every run keeps its
/// estimates (in its folder `eval`).
#[derive(Args)]
#[command(after_help = "\
Example:
  trainer report runs/age-* --out age.html")]
pub struct Report {
    /// Folders of runs
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// The page
    #[arg(long, value_name = "FILE", default_value = "study.html")]
    out: PathBuf,
    /// The table as JSON on stdout
    #[arg(long)]
    json: bool,
}

impl Report {
    pub fn run(self) -> Result<()> {
        let study = collect(&self.runs)?;
        match self.json {
            true => println!("{}", serde_json::to_string(&study)?),
            false => print!("{}", study.text()),
        }
        study::write(&self.out, &study)?;
        eprintln!("report: {}", self.out.display());
        Ok(())
    }
}
