//! `trainer fit`

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{ArgGroup, Args};
use numclip_trainer::config::Config;
use numclip_trainer::device::Choice;
use numclip_trainer::eval;
use numclip_trainer::fit::{Listen, Options, Outcome, Run, fit};
use numclip_trainer::report;

use crate::plan::default_folder;
use crate::variant::{Changes, Single, parse_address};

/// Train the model that a task file describes.
///
/// Everything about the run is kept in its folder: the resolved task file, what
/// it was made from, the measurements, the last state and the best weights.
/// With a `[teacher]` in the task file, the model learns from a run, a bundle, a
/// CLIP checkpoint or any ONNX encoder as well, also of images without labels.
#[derive(Args)]
#[command(
    group(ArgGroup::new("classes").args(["few_shot", "shift"]).multiple(true)),
    group(ArgGroup::new("cross_validation").args(["fold"])),
    after_help = "\
Examples:
  trainer fit trainer/tasks/gauge.toml
  trainer fit trainer/tasks/tomato-student.toml  (a small network, taught by a larger one)
  trainer fit task.toml --out runs/second-try
  trainer fit task.toml --set teacher.run=runs/large --set teacher.unlabelled=photos
  trainer fit task.toml --fold 2/5 --seed 3      (into runs/NAME-fold2of5-seed3)
  trainer fit task.toml --few-shot 4 --set train.epochs=20
  trainer fit task.toml --resume
  trainer fit task.toml --device cuda:0,1 --set train.accumulate=2   (two GPUs)
  trainer fit task.toml --listen 0.0.0.0:29500 --machines 2 --set train.accumulate=2
                                                 (and on another: trainer join HOST:29500)"
)]
pub struct Fit {
    /// Task file
    #[arg(value_name = "TASK.toml")]
    task: PathBuf,
    #[command(flatten)]
    single: Single,
    #[command(flatten)]
    changes: Changes,
    /// Folder of the run [default: runs/NAME, with what the flags change]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on where the run in that folder stopped
    #[arg(long)]
    resume: bool,
    /// Start the run, go on with it, or do nothing if it is done: for queues
    /// that start a job again
    #[arg(long, conflicts_with = "resume")]
    requeue: bool,
    /// What to compute on: auto, cpu, cuda, cuda:1, or cuda:0,1 to share out the batches of a step
    /// (train.accumulate) [default: train.device of the task file, or auto]
    #[arg(long, value_name = "DEVICE")]
    device: Option<Choice>,
    /// Let other machines compute some of the batches of a step: they come with `trainer join` to
    /// this address. Plain TCP without a password, for a network of trusted machines
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_address)]
    listen: Option<String>,
    /// Machines to wait for before the first step, this one among them
    #[arg(long, value_name = "NUMBER", default_value_t = 1, requires = "listen")]
    machines: usize,
}

impl Fit {
    pub fn run(self) -> Result<()> {
        let variant = self.single.variant(&self.changes);
        let mut config = variant.read(&self.task)?;
        if let Some(device) = self.device {
            config.train.device = device;
        }
        let out = self
            .out
            .unwrap_or_else(|| default_folder(&config, &variant));
        if self.requeue && eval::is_complete(&out) {
            eprintln!("done already: {}", out.display());
            return Ok(());
        }
        let listen = self.listen.map(|address| Listen {
            address,
            machines: self.machines,
        });
        let interrupt = crate::interrupt_flag()?;
        let options = Options {
            out: &out,
            resume: self.resume || (self.requeue && Run::is_begun(&out)),
            listen: listen.as_ref(),
            interrupt: &interrupt,
        };
        let outcome = fit(&config, &options)?;
        if outcome.interrupted {
            bail!(
                "stopped in epoch {}; go on with the same command and --resume (folder {})",
                outcome.epochs + 1,
                out.display()
            );
        }

        let page = measure(&out, &config.train.device)?;
        eprintln!("{}", summary(&config, &outcome));
        eprintln!("report: {}", page.display());
        eprintln!(
            "next:   trainer export {} --out models/{}",
            out.display(),
            config.task.name
        );
        Ok(())
    }
}

/// Measures the best weights on the run's test images (validation where there
/// are none), keeps the estimates in the run's folder and writes its report.
pub fn measure(out: &Path, device: &Choice) -> Result<PathBuf> {
    let (_, _, provenance) = Run::read(out)?;
    if provenance.measured_split().is_none() {
        return Ok(report::of_run(out, report::Measured::default())?);
    }
    let subject = eval::Subject::at(out)?;
    let opened = device.open()?;
    let evaluation = eval::evaluate(&subject, &eval::Images::default(), 0, opened.first())?;
    evaluation.write(&out.join(eval::FOLDER), &evaluation.images)?;
    Ok(report::of_run(out, evaluation.measured())?)
}

fn summary(config: &Config, outcome: &Outcome) -> String {
    match &outcome.best {
        Some(metrics) => format!(
            "best:   epoch {}, validation mae {:.4} {} over {} images",
            outcome.best_epoch, metrics.mae, config.task.unit, metrics.count
        ),
        None => format!(
            "done:   {} epochs, without validation images",
            outcome.epochs
        ),
    }
}
