//! `trainer export`

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use numclip::bundle::Precision;
use numclip_trainer::export::{Exported, Options, export};
use numclip_trainer::fit::Weights;
use numclip_trainer::report;

use crate::tflite;

/// Turn a run's weights into a bundle for numclip.
///
/// Folds the network, quantises it, measures float and int8 on the validation
/// and test images, and reads the bundle back before it gets its name. A tower
/// of CLIP has a float form only.
#[derive(Args)]
#[command(after_help = "\
Example:
  trainer export runs/gauge --out models/gauge")]
pub struct Export {
    /// Folder of the run
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Folder of the bundle; an older bundle there is replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Arithmetic of the bundle's encoder
    #[arg(long, value_enum, default_value_t = Kind::Int8)]
    precision: Kind,
    /// Which weights; the last ones where validation images are too few to choose by
    #[arg(long, value_enum, default_value_t = Which::Best)]
    weights: Which,
    /// Add the encoder in TensorFlow Lite's format too
    #[arg(long)]
    tflite: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Kind {
    /// 8-bit integers
    Int8,
    /// 32-bit floats
    F32,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Which {
    /// Of the epoch with the least validation error
    Best,
    /// Of the end of the run
    Last,
}

impl Export {
    pub fn run(self) -> Result<()> {
        let precision = match self.precision {
            Kind::Int8 => Precision::Int8,
            Kind::F32 => Precision::F32,
        };
        let weights = match self.weights {
            Which::Best => Weights::Best,
            Which::Last => Weights::Last,
        };
        let stage = |name: &str| eprintln!("{name} …");
        let exported = export(&Options {
            run: &self.run,
            out: &self.out,
            precision,
            weights,
            stage: &stage,
        })?;
        print(&exported);
        if self.tflite {
            tflite::add(&self.out)?;
        }
        let page = report::of_run(&self.run, exported.measured)?;
        eprintln!("report: {}", page.display());
        eprintln!("bundle: {}", self.out.display());
        Ok(())
    }
}

fn print(exported: &Exported) {
    println!(
        "{:<6} {:<9} {:>6} {:>8} {:>8} {:>9}",
        "split", "precision", "images", "mae", "rmse", "accuracy"
    );
    for report in &exported.reports {
        let metrics = &report.metrics;
        let precision = format!("{:?}", report.precision).to_lowercase();
        println!(
            "{:<6} {:<9} {:>6} {:>8.4} {:>8.4} {:>9.4}",
            report.split,
            precision,
            metrics.count,
            metrics.mae,
            metrics.rmse,
            metrics.accuracy_expectation
        );
    }
    println!(
        "encoder {:.2} MB, {:.0} million multiply-accumulates",
        exported.encoder_bytes as f64 / 1e6,
        exported.macs as f64 / 1e6,
    );
    if let Some(cosine) = exported.lowest_cosine {
        println!("int8 against float: cosine at least {cosine:.4}");
    }
}
