//! `trainer repro`

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Result, anyhow, bail};
use clap::{Args, builder::PossibleValuesParser};
use numclip_trainer::config::Config;
use numclip_trainer::device::Choice;
use numclip_trainer::eval;
use numclip_trainer::fit::{Options, Run, fit};
use numclip_trainer::repro::{Comparison, Found, PAPERS, Paper, Part, read};
use numclip_trainer::study::{self, Set, collect};

use crate::fit::measure;
use crate::variant::{Leaks, parse_seed};

/// Run a table of the literature on your own copy of the data.
///
/// Prints the published figures beside those obtained. Every fold and seed is a
/// run in a folder of its own; the same command again goes on where an earlier
/// one stopped, and runs that are done are not done again.
#[derive(Args)]
#[command(after_help = "\
Examples:
  trainer repro --list
  trainer repro morph --data ~/MORPH/Album2 --clip ViT-B-16.pt
  trainer repro adience --data ~/adience --clip ViT-B-16.pt --folds 1 --device cuda
  trainer repro hci --data ~/HistoricalColor --set train.epochs=5 --json")]
pub struct Repro {
    /// The table
    #[arg(required_unless_present = "list",
          value_parser = PossibleValuesParser::new(PAPERS.iter().map(|paper| paper.name)))]
    name: Option<String>,
    /// Say what each table measures, what is published and which files it expects
    #[arg(long)]
    list: bool,
    /// Folder of the data set, as its owner publishes it
    #[arg(long, value_name = "DIR", required_unless_present = "list")]
    data: Option<PathBuf>,
    /// CLIP checkpoint to start from, as published (ViT-B/16) [default: a small encoder from scratch]
    #[arg(long, value_name = "FILE")]
    clip: Option<PathBuf>,
    /// Some of the folds, from 1 [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    folds: Vec<usize>,
    /// Seeds
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0",
          value_parser = parse_seed)]
    seeds: Vec<u64>,
    /// What to do about images that splits share; the published runs do not look
    #[arg(long, value_enum, default_value_t = Leaks::Allow)]
    leaks: Leaks,
    /// Any value of the task file by its dotted key; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<Set>,
    /// What to compute on: auto, cpu, cuda, cuda:1
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: Choice,
    /// Folder for table, task file, runs and page
    #[arg(long, value_name = "DIR", default_value = "runs/repro")]
    runs: PathBuf,
    /// The comparison as JSON on stdout
    #[arg(long)]
    json: bool,
}

impl Repro {
    pub fn run(self) -> Result<()> {
        let (Some(name), Some(data), false) = (&self.name, &self.data, self.list) else {
            list(self.json);
            return Ok(());
        };
        let paper = Paper::named(name).ok_or_else(|| anyhow!("no table `{name}`"))?;
        let found = read(paper, data)?;
        tell(paper, &found);
        let folder = self.runs.join(paper.name);
        let part = Part {
            folds: self.folds.clone(),
            seeds: self.seeds.clone(),
            clip: self.clip.clone(),
            set: self.set.clone(),
            leaks: self.leaks.policy(),
        };
        let planned = paper
            .runs(&found, &part, &folder)
            .map_err(anyhow::Error::msg)?;
        let task = paper.write(&found, &folder)?;
        let interrupt = crate::interrupt_flag()?;
        let mut done = Vec::with_capacity(planned.len());
        for (number, (out, variant)) in planned.iter().enumerate() {
            let mut config = variant.read(&task)?;
            config.train.device = self.device.clone();
            eprintln!("run {} of {}: {}", number + 1, planned.len(), out.display());
            if !carry_out(&config, out, &interrupt)? {
                bail!(
                    "stopped with {} of {} runs done; the same command goes on",
                    done.len(),
                    planned.len()
                );
            }
            done.push(out.clone());
        }
        let comparison = self.report(paper, &found, &done, &folder)?;
        match self.json {
            true => println!("{}", serde_json::to_string(&comparison)?),
            false => print!("{}", comparison.text()),
        }
        Ok(())
    }

    fn report(
        &self,
        paper: &Paper,
        found: &Found,
        done: &[PathBuf],
        folder: &Path,
    ) -> Result<Comparison> {
        let study = collect(done)?;
        let page = folder.join("report.html");
        study::write(&page, &study)?;
        eprintln!("report: {}", page.display());
        Ok(paper.compare(&study, found, self.clip.is_some()))
    }
}

/// Starts a run, goes on with it, or leaves it if it is done; says whether it is done now.
fn carry_out(config: &Config, out: &Path, interrupt: &AtomicBool) -> Result<bool> {
    if eval::is_complete(out) {
        let (_, mut begun, _) = Run::read(out)?;
        begun.train.device = config.train.device.clone();
        if begun != *config {
            bail!(
                "{} is a run of other settings; name another folder with --runs",
                out.display()
            );
        }
        return Ok(true);
    }
    let options = Options {
        out,
        resume: Run::is_begun(out),
        listen: None,
        interrupt,
    };
    let outcome = fit(config, &options)?;
    if !outcome.interrupted {
        measure(out, &config.train.device)?;
    }
    Ok(!outcome.interrupted)
}

fn tell(paper: &Paper, found: &Found) {
    eprintln!("{}: {} images", paper.title, found.rows.len());
    for (why, count) in &found.left_out {
        eprintln!("  left out: {count} with {why}");
    }
}

/// What can be run again, and what it needs.
fn list(json: bool) {
    for paper in &PAPERS {
        let figure = |measure: &str, unit: &str, value: Option<f64>| match value {
            Some(value) => format!("{measure} {value} {unit}"),
            None => format!("{measure} not given"),
        };
        let figures = paper.figures.iter();
        let figures: Vec<String> = figures
            .map(|f| figure(f.measure, f.unit, f.reported))
            .collect();
        if json {
            let line = serde_json::json!({
                "name": paper.name,
                "title": paper.title,
                "source": paper.source,
                "figures": figures,
                "folds": paper.folds,
                "files": paper.files.replace('\n', " "),
                "protocol": paper.protocol.replace('\n', " "),
            });
            println!("{line}");
            continue;
        }
        let indented = |text: &str| text.replace('\n', "\n             ");
        println!("{}: {}", paper.name, paper.title);
        println!("  published  {} ({})", figures.join(", "), paper.source);
        println!("  files      {}", indented(paper.files));
        println!("  protocol   {}", indented(paper.protocol));
    }
}
