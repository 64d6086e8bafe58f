//! The report of a run, from what its folder holds and what was measured last.

use std::path::{Path, PathBuf};

use numclip::estimate::Estimate;

use super::{EpochPoint, EstimatePoint, NamedMetrics, RunReport, StepPoint, write_html};
use crate::config::Config;
use crate::fit::{EpochRecord, FitError, Prepared, Provenance, Run, StepRecord};

/// What a trained or exported model was measured on.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Measures by name, such as "test, int8".
    pub results: Vec<NamedMetrics>,
    /// Which images the single estimates are of.
    pub estimates_of: String,
    /// Single estimates.
    pub estimates: Vec<EstimatePoint>,
}

/// Writes the report into the folder of `run` and returns its path.
///
/// # Errors
/// [`FitError::File`] when the run cannot be read or the page not written.
pub fn of_run(folder: &Path, measured: Measured) -> Result<PathBuf, FitError> {
    let (run, config, provenance) = Run::read(folder)?;
    let (steps, epochs) = run.history()?;
    let fail = |error: &dyn std::fmt::Display| FitError::File {
        path: folder.into(),
        message: error.to_string(),
    };
    let report = RunReport {
        title: config.task.name.clone(),
        subtitle: provenance.text.to_string(),
        unit: config.task.unit.clone(),
        bins: config.bin.clone(),
        steps: step_points(&steps),
        epochs: epochs.iter().map(epoch_point).collect(),
        results: measured.results,
        estimates_of: measured.estimates_of,
        coverage: measured
            .estimates
            .iter()
            .any(|e| e.interval.is_some())
            .then_some(config.export.coverage),
        estimates: measured.estimates,
        provenance: facts(&config, &provenance),
        config: toml::to_string(&config).map_err(|error| fail(&error))?,
    };
    write_html(folder, &report).map_err(|error| fail(&error))
}

/// Estimates of the images at `indices` as points of the report.
pub fn points(
    prepared: &Prepared,
    indices: &[usize],
    estimates: &[Estimate],
) -> Vec<EstimatePoint> {
    let samples = prepared.dataset.samples();
    let point = |(&index, estimate): (&usize, &Estimate)| EstimatePoint {
        name: samples[index].name.clone(),
        label: samples[index].label,
        value: estimate.value,
        interval: estimate.interval,
    };
    indices.iter().zip(estimates).map(point).collect()
}

fn step_points(steps: &[StepRecord]) -> Vec<StepPoint> {
    let per_epoch = steps.iter().map(|step| step.step).max().unwrap_or(1) as f64;
    let point = |step: &StepRecord| StepPoint {
        epoch: (step.epoch - 1) as f64 + step.step as f64 / per_epoch,
        loss: step.loss,
        learning_rate: step.learning_rate,
    };
    steps.iter().map(point).collect()
}

fn epoch_point(epoch: &EpochRecord) -> EpochPoint {
    EpochPoint {
        epoch: epoch.epoch,
        train_loss: epoch.train_loss,
        val_loss: None,
        train_mae: epoch.train_mae,
        val_mae: epoch.validation.as_ref().map(|metrics| metrics.mae),
    }
}

fn facts(config: &Config, provenance: &Provenance) -> Vec<(String, String)> {
    let [train, val, test] = provenance.images;
    let warnings = provenance
        .warnings
        .iter()
        .map(|line| ("Warning", line.clone()));
    let pairs = [
        ("Trainer", provenance.trainer.clone()),
        ("Data", config.data.description.clone()),
        ("Data digest", provenance.data_digest.clone()),
        (
            "Images",
            format!("{train} for training, {val} for validation, {test} for test"),
        ),
        ("Bin embeddings", provenance.text.to_string()),
        (
            "Ordinality of the bin embeddings",
            format!("{:.2}", provenance.ordinality),
        ),
        ("Seed", config.train.seed.to_string()),
    ];
    let teacher = provenance.teacher.iter();
    let teacher = teacher.map(|teacher| ("Teacher", teacher.to_string()));
    let all = pairs.into_iter().chain(teacher).chain(warnings);
    all.map(|(name, value)| (name.to_owned(), value)).collect()
}
