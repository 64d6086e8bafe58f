//! `trainer synth`

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use numclip_trainer::synth::gauge;

/// Render a labelled data set.
#[derive(Args)]
pub struct Synth {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Subcommand)]
enum Kind {
    Gauge(Gauge),
}

/// Analogue gauges, labelled with the reading in percent of the scale.
///
/// The same seed gives the same pictures; picture i does not depend on how many
/// there are.
#[derive(Args)]
#[command(after_help = "\
Example:
  trainer synth gauge --out data/gauge -n 6000 --seed 1")]
struct Gauge {
    /// Folder to write; must not hold anything
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number of pictures
    #[arg(short, value_name = "N")]
    n: u64,
    /// Seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Side of a picture in pixels
    #[arg(long, default_value_t = 160)]
    size: u32,
}

impl Synth {
    pub fn run(self) -> Result<()> {
        let Kind::Gauge(gauge) = self.kind;
        gauge.run()
    }
}

impl Gauge {
    fn run(self) -> Result<()> {
        let set = gauge::GaugeSet {
            count: self.n,
            seed: self.seed,
            size: self.size,
            format: gauge::ImageFormat::default(),
        };
        let bar = ProgressBar::new(self.n);
        if let Ok(style) =
            ProgressStyle::with_template("{bar:40} {pos}/{len} ({per_sec}, {eta} left)")
        {
            bar.set_style(style);
        }
        gauge::write_dataset(&self.out, &set, || bar.inc(1))?;
        bar.finish_and_clear();
        eprintln!(
            "{} pictures with their labels: {}",
            self.n,
            self.out.join("labels.csv").display()
        );
        Ok(())
    }
}
