//! `trainer export`

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};
use numclip::bundle::Precision;
use numclip_trainer::export::{
    Budget, Evidence, ExportError, Exported, Options, Wanted, export, page,
};
use numclip_trainer::fit::{Run, Weights};
use numclip_trainer::quantize::range::RangeMethod;
use numclip_trainer::quantize::recipe::Changes;
use numclip_trainer::report;
use serde_json::json;

use crate::tflite;

/// Turn a run's weights into a bundle for numclip.
///
/// Folds the network, quantises it, measures float and int8 on the validation
/// and test images, and reads the bundle back before it gets its name. CLIP's
/// residual networks have a float form only.
///
/// How ranges, weights and biases become integers is said by `[export]` of the
/// task file or by the flags here. With `--budget-mae` or `--search` other ways
/// are tried too, from the cheapest to the dearest, on the validation images:
/// the first within the budget is taken, without one the best. An encoder that
/// breaks its budget is written only with `--force`; else the exit code is 1.
/// Where no way of quantising the whole network is within `--budget-mae`, the
/// most sensitive layers stay in 32-bit floats, as few as the budget lets.
#[derive(Args)]
#[command(after_help = "\
Examples:
  trainer export runs/gauge --out models/gauge
  trainer export runs/gauge --out models/gauge --search --report
  trainer export runs/gauge --out models/gauge --budget-mae 0.05 --budget-ms 30
  trainer export runs/gauge --out models/gauge --range percentile=0.9999 --equalize
  trainer export runs/gauge --out models/gauge --float-layers 2
  trainer export runs/gauge --out models/gauge --qat-epochs 3
  trainer export runs/age --out models/age --interval-from runs/age-fold*")]
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
    /// Most that the mean absolute error may grow by on validation images, in the task's unit
    #[arg(long, value_name = "ERROR", value_parser = amount)]
    budget_mae: Option<f64>,
    /// Most milliseconds for one picture, on one thread of this machine
    #[arg(long, value_name = "MS", value_parser = amount)]
    budget_ms: Option<f64>,
    /// Write the bundle even if it breaks the budget
    #[arg(long)]
    force: bool,
    /// Try all methods and take the best
    #[arg(long)]
    search: bool,
    /// Epochs of fine-tuning with the rounding inside, after the methods above
    #[arg(long, value_name = "N", default_value_t = 0)]
    qat_epochs: usize,
    /// Leave the N most sensitive layers in 32-bit floats
    #[arg(long, value_name = "N")]
    float_layers: Option<usize>,
    /// Measure every layer and engine, and write the page RUN/quantization.html
    #[arg(long)]
    report: bool,
    /// Fit the interval on the test images of these runs, one for each fold of a
    /// cross-validation; for a run that kept no validation images
    #[arg(long, value_name = "RUN", num_args = 1..)]
    interval_from: Vec<PathBuf>,
    /// Add the encoder in TensorFlow Lite's format too
    #[arg(long)]
    tflite: bool,
    #[command(flatten)]
    recipe: Recipe,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(next_help_heading = "How int8 is made (default: as the task file says)")]
struct Recipe {
    /// Ranges of activations: min-max, moving-average[=M], percentile[=P], entropy or mse
    #[arg(long, value_name = "METHOD")]
    range: Option<RangeMethod>,
    /// Equalise channels across layers
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    equalize: Option<bool>,
    /// Round weights together instead of each to its nearest level
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    adaptive_rounding: Option<bool>,
    /// Let biases take up the mean error
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    bias_correction: Option<bool>,
    /// Move this much of a transformer's outliers into its weights, 0 to 1
    #[arg(long, value_name = "STRENGTH", value_parser = share)]
    smoothing: Option<f64>,
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
        if let (Kind::F32, Some(flag)) = (self.precision, self.asks_for_int8()) {
            let message = format!(
                "{flag} says how int8 is made, and --precision f32 makes none; leave one of them out"
            );
            crate::usage_error("export", &message).exit();
        }
        let precision = match self.precision {
            Kind::Int8 => Precision::Int8,
            Kind::F32 => Precision::F32,
        };
        let weights = match self.weights {
            Which::Best => Weights::Best,
            Which::Last => Weights::Last,
        };
        let exported = export(&Options {
            run: &self.run,
            out: &self.out,
            precision,
            weights,
            int8: self.wanted(),
            interval_from: &self.interval_from,
            stage: &|name| eprintln!("{name} …"),
        });
        if let Err(ExportError::Budget(evidence)) = &exported {
            match self.json {
                true => println!("{}", json!({ "quantization": evidence })),
                false => print!("{}", evidence_text(evidence)),
            }
        }
        let exported = exported?;
        if self.tflite {
            tflite::add(&self.out)?;
        }
        match self.json {
            true => println!("{}", self.to_json(&exported)),
            false => print!("{}{}", evidence_text(&exported.evidence), text(&exported)),
        }
        if self.report {
            let (_, config, _) = Run::read(&self.run)?;
            say("quantisation", &page::write(&self.run, &config, &exported)?);
        }
        exported
            .evidence
            .broken
            .iter()
            .for_each(|line| eprintln!("warning: {line}"));
        say("report", &report::of_run(&self.run, exported.measured)?);
        say("bundle", &self.out);
        Ok(())
    }

    /// A flag that only int8 makes sense of.
    fn asks_for_int8(&self) -> Option<&'static str> {
        let recipe = &self.recipe;
        let flags = [
            ("--search", self.search),
            ("--budget-mae", self.budget_mae.is_some()),
            ("--qat-epochs", self.qat_epochs > 0),
            ("--float-layers", self.float_layers.is_some()),
            ("--range", recipe.range.is_some()),
            ("--equalize", recipe.equalize.is_some()),
            ("--adaptive-rounding", recipe.adaptive_rounding.is_some()),
            ("--bias-correction", recipe.bias_correction.is_some()),
            ("--smoothing", recipe.smoothing.is_some()),
        ];
        let given = flags.into_iter().find(|(_, given)| *given);
        given.map(|(flag, _)| flag)
    }

    fn wanted(&self) -> Wanted {
        let recipe = &self.recipe;
        Wanted {
            changes: Changes {
                range: recipe.range,
                equalize: recipe.equalize,
                adaptive_rounding: recipe.adaptive_rounding,
                bias_correction: recipe.bias_correction,
                smoothing: recipe.smoothing,
            },
            search: self.search || self.budget_mae.is_some(),
            aware_epochs: self.qat_epochs,
            float_layers: self.float_layers,
            budget: Budget {
                mae: self.budget_mae,
                milliseconds: self.budget_ms,
            },
            force: self.force,
            details: self.report,
        }
    }

    fn to_json(&self, exported: &Exported) -> serde_json::Value {
        json!({
            "bundle": self.out,
            "reports": exported.reports,
            "encoder_bytes": exported.encoder_bytes,
            "macs": exported.macs,
            "lowest_cosine": exported.lowest_cosine,
            "quantization": exported.evidence,
        })
    }
}

fn amount(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
        _ => Err("expected a number, 0 or more".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("expected a number from 0 to 1".into()),
    }
}

fn say(what: &str, path: &Path) {
    eprintln!("{what}: {}", path.display());
}

/// What was tried, and how fast the engines are.
fn evidence_text(evidence: &Evidence) -> String {
    let mut text = String::new();
    const TITLE: &str = "tried on validation images";
    let methods = evidence.tried.iter().map(|tried| tried.method.as_str());
    let lengths = methods.chain([TITLE]).map(|name| name.chars().count());
    let width = lengths.max().unwrap_or(0);
    if !evidence.tried.is_empty() {
        let _ = writeln!(
            text,
            "  {TITLE:<width$} {:>8} {:>9} {:>8} {:>8}",
            "mae", "increase", "drift", "cosine"
        );
    }
    for tried in &evidence.tried {
        let score = &tried.score;
        let mark = if tried.chosen { '*' } else { ' ' };
        let _ = writeln!(
            text,
            "{mark} {:<width$} {:>8.4} {:>+9.4} {:>8.4} {:>8.5}",
            tried.method, score.mae, score.mae_increase, score.drift, score.lowest_cosine
        );
    }
    for latency in &evidence.latencies {
        let precision = format!("{:?}", latency.precision).to_lowercase();
        let _ = writeln!(
            text,
            "{:.2} ms for one picture by {} ({precision}), one thread",
            latency.milliseconds, latency.engine
        );
    }
    text
}

fn text(exported: &Exported) -> String {
    let mut text = format!(
        "{:<6} {:<9} {:>6} {:>8} {:>8} {:>9}\n",
        "split", "precision", "images", "mae", "rmse", "accuracy"
    );
    for report in &exported.reports {
        let metrics = &report.metrics;
        let precision = format!("{:?}", report.precision).to_lowercase();
        let _ = writeln!(
            text,
            "{:<6} {:<9} {:>6} {:>8.4} {:>8.4} {:>9.4}",
            report.split,
            precision,
            metrics.count,
            metrics.mae,
            metrics.rmse,
            metrics.accuracy_expectation
        );
    }
    let _ = writeln!(
        text,
        "encoder {:.2} MB, {:.0} million multiply-accumulates",
        exported.encoder_bytes as f64 / 1e6,
        exported.macs as f64 / 1e6,
    );
    if let Some(cosine) = exported.lowest_cosine {
        let _ = writeln!(text, "int8 against float: cosine at least {cosine:.4}");
    }
    text
}
