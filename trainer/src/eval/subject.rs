//! What is measured, and on which images.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use numclip::bundle::Bundle;
use numclip::decode;
use numclip::estimate::{Estimate, Estimator};
use numclip::pipeline::Pipeline;
use rayon::prelude::*;

use super::{EvalError, Evaluation, Ordinality, Row, measures, parts};
use crate::data::{Columns, Dataset};
use crate::device::Choice;
use crate::export::calibrate_interval;
use crate::fit::{
    FitError, Prepared, Run, Weights, embed_all, loader, prepare, prepare_for, untrained,
};

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Weights of a run, in 32-bit floats.
    Run {
        /// Folder of the run.
        folder: PathBuf,
        /// Which weights.
        weights: Weights,
    },
    /// A bundle, run by the runtime's own engine.
    Bundle(PathBuf),
}

/// Which images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images {
    /// Table; the run's own if absent.
    pub table: Option<PathBuf>,
    /// Names of the table's columns; those of the run's task file if absent.
    pub columns: Option<Columns>,
    /// `train`, `val` or `test`, or a value of the table's split column. If
    /// absent: the test images of a run (validation where it has none), or all
    /// images of a table.
    pub split: Option<String>,
}

impl Subject {
    /// What lies at `path`: a run, its weights, or a bundle.
    ///
    /// # Errors
    /// [`EvalError::Subject`] when it is none of them.
    pub fn at(path: &Path) -> Result<Self, EvalError> {
        let run = |folder: &Path, weights| Self::Run {
            folder: folder.into(),
            weights,
        };
        if path.join(numclip::bundle::MANIFEST).is_file() {
            return Ok(Self::Bundle(path.into()));
        }
        if path.join("task.toml").is_file() {
            return Ok(run(path, Weights::Best));
        }
        let folder = path
            .parent()
            .filter(|folder| folder.join("task.toml").is_file());
        match (folder, path.file_name().and_then(|name| name.to_str())) {
            (Some(folder), Some("best.safetensors")) => Ok(run(folder, Weights::Best)),
            (Some(folder), Some("checkpoint.safetensors")) => Ok(run(folder, Weights::Last)),
            _ => Err(EvalError::Subject(path.into())),
        }
    }

    /// Name for a person to read.
    pub fn name(&self) -> String {
        match self {
            Self::Run { folder, weights } => {
                let weights = if *weights == Weights::Best {
                    "best"
                } else {
                    "last"
                };
                format!("{}, {weights} weights", folder.display())
            }
            Self::Bundle(folder) => format!("{}, bundle", folder.display()),
        }
    }
}

/// Measures `subject` on `images`; `seed` draws the bootstrap.
///
/// # Errors
/// [`EvalError`]; single images that cannot be read are only listed.
pub fn evaluate(subject: &Subject, images: &Images, seed: u64) -> Result<Evaluation, EvalError> {
    match subject {
        Subject::Run { folder, weights } => evaluate_run(subject, folder, *weights, images, seed),
        Subject::Bundle(folder) => evaluate_bundle(subject, folder, images, seed),
    }
}

/// What the two kinds of subject have in common once they have estimated.
struct Estimated<'a> {
    subject: &'a Subject,
    task: (&'a str, &'a str),
    range: [f32; 2],
    thresholds: Vec<f32>,
    images: String,
    dataset: &'a Dataset,
    /// Positions in the data set.
    asked: Vec<usize>,
    estimates: Vec<(usize, Estimate)>,
    estimator: &'a Estimator,
    coverage: Option<f32>,
}

impl Estimated<'_> {
    fn evaluation(self, seed: u64) -> Result<Evaluation, EvalError> {
        let samples = self.dataset.samples();
        let done: std::collections::HashSet<usize> = self.estimates.iter().map(|e| e.0).collect();
        let skipped: Vec<String> = self
            .asked
            .iter()
            .filter(|index| !done.contains(index))
            .map(|&index| samples[index].path.display().to_string())
            .collect();
        if self.estimates.is_empty() {
            let first = skipped.into_iter().next().unwrap_or_default();
            return Err(EvalError::Unreadable(self.asked.len(), first));
        }
        let row = |(index, estimate): &(usize, Estimate)| Row {
            path: samples[*index].path.clone(),
            label: samples[*index].label,
            value: estimate.value,
            bin: estimate.bin,
            probability: estimate.probabilities[estimate.bin],
            low: estimate.interval.map(|[low, _]| low),
            high: estimate.interval.map(|[_, high]| high),
            group: samples[*index].group.clone(),
        };
        let rows: Vec<Row> = self.estimates.iter().map(row).collect();
        let bins = self.estimator.bins().as_slice();
        let (measures, resampled) = measures(&rows, bins, &self.thresholds, seed);
        let [by_bin, by_range, by_group] = parts(&rows, bins, self.range);
        Ok(Evaluation {
            subject: self.subject.name(),
            task: self.task.0.into(),
            unit: self.task.1.into(),
            images: self.images,
            bins: bins.to_vec(),
            count: rows.len(),
            skipped,
            meant_coverage: self.coverage,
            resampled: resampled.into(),
            seed,
            measures,
            by_bin,
            by_range,
            by_group,
            ordinality: Ordinality::of(
                bins.iter().map(|bin| bin.label.clone()).collect(),
                self.estimator.bins().embeddings(),
            ),
            rows,
        })
    }
}

fn evaluate_run(
    subject: &Subject,
    folder: &Path,
    weights: Weights,
    images: &Images,
    seed: u64,
) -> Result<Evaluation, EvalError> {
    let device = Device::flex();
    let (run, mut config, _) = Run::read(folder)?;
    config.data.max_unreadable = usize::MAX;
    let own = prepare(&config, &device);
    let (prepared, name, asked) = match &images.table {
        None => {
            let own = own.as_ref().ok();
            let (name, asked) = match own {
                Some(own) => own_split(own, images.split.as_deref())?,
                None => (String::new(), Vec::new()),
            };
            (None, name, asked)
        }
        Some(table) => {
            let columns = images.columns.as_ref().unwrap_or(&config.data.columns);
            let dataset = Dataset::open(table, columns, config.task.range)?;
            let (name, asked) = rows_of(&dataset, images.split.as_deref());
            (Some(prepare_for(&config, dataset, &device)?), name, asked)
        }
    };
    // The run's own images give the interval; without them there is none.
    let (own, prepared) = match (own, prepared) {
        (Ok(own), other) => (Some(own), other),
        (Err(_), Some(other)) => (None, Some(other)),
        (Err(error), None) => return Err(error.into()),
    };
    let measured = prepared
        .as_ref()
        .or(own.as_ref())
        .ok_or(EvalError::NoData)?;
    if asked.is_empty() {
        return Err(EvalError::NoImages(name));
    }
    let fastest = Choice::Auto.open().map_err(FitError::from)?;
    let model = untrained(&config, measured, &fastest.devices[0])?;
    let model = run.load(model, weights)?;
    let plain = measured.estimator(&config, &model, None)?;
    let interval = match &own {
        Some(own) if !own.splits.val.is_empty() => {
            let val = embed_all(&config, &model, &loader(&config, own, &own.splits.val)?)?;
            calibrate_interval(&plain, &own.dataset, &val, config.export.coverage)
        }
        _ => None,
    };
    let estimator = measured.estimator(&config, &model, interval.clone())?;
    let embedded = embed_all(&config, &model, &loader(&config, measured, &asked)?)?;
    let estimates = embedded.indices.iter().zip(&embedded.embeddings);
    Estimated {
        subject,
        task: (&config.task.name, &config.task.unit),
        range: config.task.range,
        thresholds: config.thresholds(),
        images: name,
        dataset: &measured.dataset,
        asked,
        estimates: estimates
            .map(|(&i, e)| (i, estimator.estimate(e)))
            .collect(),
        estimator: &estimator,
        coverage: interval.map(|interval| interval.coverage),
    }
    .evaluation(seed)
}

fn evaluate_bundle(
    subject: &Subject,
    folder: &Path,
    images: &Images,
    seed: u64,
) -> Result<Evaluation, EvalError> {
    let table = images.table.as_deref().ok_or(EvalError::NoData)?;
    let pipeline = Pipeline::new(Bundle::open(folder)?, None)?;
    let manifest = pipeline.bundle().manifest();
    let columns = images.columns.clone().unwrap_or_default();
    let dataset = Dataset::open(table, &columns, manifest.task.range)?;
    let (name, asked) = rows_of(&dataset, images.split.as_deref());
    if asked.is_empty() {
        return Err(EvalError::NoImages(name));
    }
    let chunk = asked.len().div_ceil(rayon::current_num_threads()).max(1);
    let estimate = |chunk: &[usize]| -> Result<Vec<(usize, Estimate)>, EvalError> {
        let mut worker = pipeline.worker()?;
        let mut estimates = Vec::with_capacity(chunk.len());
        for &index in chunk {
            if let Ok(frame) = decode::open(&dataset.samples()[index].path) {
                estimates.push((index, worker.estimate(&frame)?.estimate));
            }
        }
        Ok(estimates)
    };
    let estimates: Vec<Vec<_>> = asked
        .par_chunks(chunk)
        .map(estimate)
        .collect::<Result<_, _>>()?;
    let [low, high] = manifest.task.range;
    let known = manifest
        .report
        .first()
        .map(|report| &report.metrics.cumulative_score);
    Estimated {
        subject,
        task: (&manifest.task.name, &manifest.task.unit),
        range: manifest.task.range,
        thresholds: match known {
            Some(scores) => scores.iter().map(|score| score.k).collect(),
            None => [0.01, 0.02, 0.05, 0.1]
                .map(|share| share * (high - low))
                .to_vec(),
        },
        images: name,
        dataset: &dataset,
        asked,
        estimates: estimates.into_iter().flatten().collect(),
        estimator: pipeline.bundle().estimator(),
        coverage: manifest.interval.as_ref().map(|interval| interval.coverage),
    }
    .evaluation(seed)
}

fn own_split(prepared: &Prepared, split: Option<&str>) -> Result<(String, Vec<usize>), EvalError> {
    let splits = &prepared.splits;
    let (name, indices) = match split {
        Some("train") => ("train", &splits.train),
        Some("val") => ("val", &splits.val),
        Some("test") => ("test", &splits.test),
        Some(other) => return Err(EvalError::NoImages(format!("split `{other}`"))),
        None if splits.test.is_empty() => ("val", &splits.val),
        None => ("test", &splits.test),
    };
    Ok((name.into(), indices.clone()))
}

/// Rows of a table whose split is `split`; all of them without one.
fn rows_of(dataset: &Dataset, split: Option<&str>) -> (String, Vec<usize>) {
    let samples = dataset.samples().iter().enumerate();
    let wanted = samples.filter(|(_, s)| split.is_none() || s.split.as_deref() == split);
    let table = dataset.table().display();
    let name = split.map_or_else(
        || table.to_string(),
        |split| format!("{table}, split {split}"),
    );
    (name, wanted.map(|(index, _)| index).collect())
}
