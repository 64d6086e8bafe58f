//! `trainer fit`

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use numclip_trainer::config::Config;
use numclip_trainer::fit::{Options, Outcome, fit};
use numclip_trainer::report;


/// Train the model that a task file describes.
///
/// Everything about the run is kept in its folder: the resolved task file, what
/// it was made from, the measurements, the last state and the best weights.
#[derive(Args)]
#[command(after_help = "\
Examples:
  trainer fit trainer/tasks/gauge.toml
  trainer fit task.toml --out runs/second-try
  trainer fit task.toml --resume")]
pub struct Fit {
    /// Task file
    #[arg(value_name = "TASK.toml")]
    task: PathBuf,
    /// Folder of the run [default: runs/NAME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on where the run in that folder stopped
    #[arg(long)]
    resume: bool,
    /// What to compute on
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    device: Device,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Device {
    /// The fastest there is
    Auto,
    /// The processor
    Cpu,
}

impl Fit {
    pub fn run(self) -> Result<()> {
        let config = Config::read(&self.task)?;
        let out = self.out.unwrap_or_else(|| Path::new("runs").join(&config.task.name));
        let interrupt = crate::interrupt_flag()?;
        let options = Options { out: &out, resume: self.resume, interrupt: &interrupt };
        let outcome = fit(&config, &options)?;
        if outcome.interrupted {
            bail!("stopped in epoch {}; go on with: trainer fit {} --out {} --resume", outcome.epochs + 1, self.task.display(), out.display());
        }
        
        let page = report::of_run(&out, report::measure_best(&out)?)?;
        eprintln!("{}", summary(&config, &outcome));
        eprintln!("report: {}", page.display());
        eprintln!("next:   trainer export {} --out models/{}", out.display(), config.task.name);
        Ok(())
    }
}

fn summary(config: &Config, outcome: &Outcome) -> String {
    match &outcome.best {
        Some(metrics) => format!(
            "best:   epoch {}, validation mae {:.4} {} over {} images",
            outcome.best_epoch, metrics.mae, config.task.unit, metrics.count
        ),
        None => format!("done:   {} epochs, without validation images", outcome.epochs),
    }
}
