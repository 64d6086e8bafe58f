//! `trainer eval`

use std::path::PathBuf;

use anyhow::{Result, bail};
use burn::tensor::Device;
use clap::Args;
use numclip_trainer::data::Columns;
use numclip_trainer::device::Choice;
use numclip_trainer::eval::{self, Evaluation, Images, Part, Subject, evaluate};

/// Measure a run, its weights or a bundle on labelled images.
///
/// Prints measures with 95 % bootstrap intervals (whole groups are resampled
/// where there are groups) and errors by bin; writes a page with charts, errors
/// by range and group, and the worst images.
#[derive(Args)]
#[command(after_help = "\
Examples:
  trainer eval runs/gauge                              (its own test images)
  trainer eval runs/gauge/checkpoint.safetensors --split val
  trainer eval models/gauge --data data/gauge-test/labels.csv --out evaluation
  trainer eval models/tomato-freshness --data labels.csv --split-column fold --split 3 \\
      --group-column tomato_id")]
pub struct Eval {
    /// Folder of a run, a weights file in it, or a bundle
    #[arg(value_name = "RUN|WEIGHTS|BUNDLE")]
    subject: PathBuf,
    /// Table of other images than the run's own
    #[arg(long, value_name = "CSV")]
    data: Option<PathBuf>,
    /// train, val or test; with --data a value of the split column [default: test, or all of --data]
    #[arg(long, value_name = "SPLIT")]
    split: Option<String>,
    /// Column of --data with the split
    #[arg(long, value_name = "NAME", requires = "data")]
    split_column: Option<String>,
    /// Column of --data with the group
    #[arg(long, value_name = "NAME", requires = "data")]
    group_column: Option<String>,
    /// Folder for page, measures and single estimates [default: eval in the run's folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seed of the bootstrap
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What to run the weights of a run on: auto, cpu, cuda, cuda:1 [default: auto]. A bundle is
    /// run as a device runs it, on the processor
    #[arg(long, value_name = "DEVICE")]
    device: Option<Choice>,
    /// All measures as one JSON object on stdout
    #[arg(long)]
    json: bool,
}

impl Eval {
    pub fn run(self) -> Result<()> {
        let subject = Subject::at(&self.subject)?;
        let columns =
            (self.split_column.is_some() || self.group_column.is_some()).then(|| Columns {
                split: self.split_column.clone(),
                group: self.group_column.clone(),
                ..Columns::default()
            });
        let images = Images {
            table: self.data.clone(),
            columns,
            split: self.split.clone(),
        };
        let device = self.device(&subject)?;
        let evaluation = evaluate(&subject, &images, self.seed, &device)?;
        for warning in &evaluation.warnings {
            eprintln!("warning: {warning}");
        }
        match self.json {
            true => println!("{}", serde_json::to_string(&evaluation)?),
            false => print(&evaluation),
        }
        if let Some(folder) = self.folder(&subject) {
            let page = evaluation.write(&folder, &images.stem(&subject, &evaluation.images))?;
            eprintln!("report: {}", page.display());
        }
        match evaluation.skipped.as_slice() {
            [] => Ok(()),
            [first, ..] => bail!(
                "{} images could not be read, the first: {first}",
                evaluation.skipped.len()
            ),
        }
    }

    fn folder(&self, subject: &Subject) -> Option<PathBuf> {
        match (&self.out, subject) {
            (Some(folder), _) => Some(folder.clone()),
            (None, Subject::Run { folder, .. }) => Some(folder.join(eval::FOLDER)),
            (None, Subject::Bundle(_)) => None,
        }
    }

    fn device(&self, subject: &Subject) -> Result<Device> {
        match (subject, &self.device) {
            (Subject::Bundle(_), None) => Ok(Device::flex()),
            (Subject::Bundle(folder), Some(_)) => bail!(
                "--device is for the weights of a run; {} is a bundle, which runs on the \
                 processor: leave the flag out",
                folder.display()
            ),
            (Subject::Run { .. }, choice) => {
                let opened = choice.clone().unwrap_or_default().open()?;
                opened
                    .note
                    .iter()
                    .for_each(|note| eprintln!("warning: {note}"));
                Ok(opened.first().clone())
            }
        }
    }
}

/// The measures for a terminal.
pub fn print(evaluation: &Evaluation) {
    println!(
        "{}: {} images, {}",
        evaluation.subject, evaluation.count, evaluation.images
    );
    for measure in &evaluation.measures {
        let interval = measure.interval.map_or(String::new(), |[low, high]| {
            format!("[{}, {}]", measure.text(low), measure.text(high))
        });
        println!(
            "  {:<28} {:>9}  {interval}",
            measure.name(&evaluation.unit),
            measure.text(measure.value)
        );
    }
    let names = evaluation
        .by_bin
        .iter()
        .map(|part| part.name.chars().count());
    let width = names.max().unwrap_or(0).max(6);
    println!();
    println!(
        "  {:<width$} {:>7} {:>8} {:>8} {:>10}",
        "bin", "images", "mae", "bias", "bin right"
    );
    for Part {
        name,
        count,
        mae,
        bias,
        accuracy,
        ..
    } in &evaluation.by_bin
    {
        let right = format!("{:.1} %", accuracy * 100.0);
        println!("  {name:<width$} {count:>7} {mae:>8.3} {bias:>+8.3} {right:>10}");
    }
}
