//! What is measured, and on which images.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use numclip::bundle::Bundle;
use numclip::decode;
use numclip::estimate::{Estimate, Estimator};
use numclip::pipeline::Pipeline;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::{EvalError, Evaluation, Ordinality, Row, measures, parts};
use crate::config::{Config, default_thresholds};
use crate::data::digest::hexadecimal;
use crate::data::{Columns, Dataset, Unreadable};
use crate::export::calibrate_interval;
use crate::fit::{
    Prepared, Provenance, Run, Weights, embed_all, loader, prepare, prepare_for, untrained,
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

impl Images {
    /// Name of the files about `subject` on these images, of which `measured` were measured: the
    /// split of a run's own, or that of another table with a mark of its place, so that neither a
    /// table called `test` nor two of one name take the place of others.
    pub fn stem(&self, subject: &Subject, measured: &str) -> String {
        let last = match subject {
            Subject::Run {
                weights: Weights::Last,
                ..
            } => "-last",
            _ => "",
        };
        let Some(table) = &self.table else {
            return format!("{measured}{last}");
        };
        let name = table.file_stem().unwrap_or_default().to_string_lossy();
        let place = std::path::absolute(table).unwrap_or_else(|_| table.clone());
        let mut mark = Sha256::new_with_prefix(place.as_os_str().as_encoded_bytes());
        let mut split = String::new();
        if let Some(value) = &self.split {
            mark.update(value);
            split = format!("-{value}").replace(|c: char| !c.is_alphanumeric(), "-");
        }
        let mark = &hexadecimal(&mark.finalize())[..8];
        format!("data-{name}{split}{last}-{mark}")
    }
}

/// Measures `subject` on `images`; `seed` draws the bootstrap. The weights of a run are run on
/// `device`, a bundle by the runtime on the processor.
///
/// # Errors
/// [`EvalError`]; single images that cannot be read are only listed.
pub fn evaluate(
    subject: &Subject,
    images: &Images,
    seed: u64,
    device: &Device,
) -> Result<Evaluation, EvalError> {
    match subject {
        Subject::Run { folder, weights } => {
            evaluate_run(subject, (folder, *weights), images, seed, device)
        }
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
            warnings: Vec::new(),
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

/// What is asked about a run.
struct Asked {
    measured: Prepared,
    /// Positions in `measured`.
    indices: Vec<usize>,
    /// What these images are called.
    name: String,
    /// Whether they are the run's own.
    is_own: bool,
    /// The run's own, where others are measured; none if they are gone.
    beside: Option<Prepared>,
}

impl Asked {
    fn new(config: &Config, images: &Images) -> Result<Self, EvalError> {
        let device = Device::flex();
        let own = prepare(config, &device);
        let Some(table) = &images.table else {
            let measured = own?;
            let (name, indices) = own_split(&measured, images.split.as_deref())?;
            return Ok(Self {
                measured,
                indices,
                name,
                is_own: true,
                beside: None,
            });
        };
        let columns = images.columns.as_ref().unwrap_or(&config.data.columns);
        let dataset = Dataset::open(table, columns, config.task.range)?;
        let (name, indices) = rows_of(&dataset, images.split.as_deref());
        Ok(Self {
            measured: prepare_for(config, dataset, &device)?,
            indices,
            name,
            is_own: false,
            beside: own.ok(),
        })
    }

    /// The run's own images, if they are still there.
    fn own(&self) -> Option<&Prepared> {
        match self.is_own {
            true => Some(&self.measured),
            false => self.beside.as_ref(),
        }
    }
}

fn evaluate_run(
    subject: &Subject,
    (folder, weights): (&Path, Weights),
    images: &Images,
    seed: u64,
    device: &Device,
) -> Result<Evaluation, EvalError> {
    let (run, config, recorded) = Run::read(folder)?;
    let asked = Asked::new(&config, images)?;
    if asked.indices.is_empty() {
        return Err(EvalError::NoImages(asked.name));
    }
    let measured = &asked.measured;
    let model = run.load(untrained(&config, measured, device)?, weights)?;
    let embed = |prepared: &Prepared, indices: &[usize]| {
        let loader = loader(&config, prepared, indices, Unreadable::List)?;
        embed_all(&config, &model, &loader)
    };
    // The run's own images give the interval; without them there is none.
    let interval = match asked.own() {
        Some(own) if !own.splits.val.is_empty() => {
            let plain = measured.estimator(&config, &model, None)?;
            let val = embed(own, &own.splits.val)?;
            calibrate_interval(&plain, &own.dataset, &val, config.export.coverage)
        }
        _ => None,
    };
    let estimator = measured.estimator(&config, &model, interval.clone())?;
    let embedded = embed(measured, &asked.indices)?;
    let estimates = embedded.indices.iter().zip(&embedded.embeddings);
    let warnings = match asked.is_own {
        true => moved(&recorded, &config, measured)?,
        false => Vec::new(),
    };
    let evaluation = Estimated {
        subject,
        task: (&config.task.name, &config.task.unit),
        range: config.task.range,
        thresholds: config.thresholds(),
        images: asked.name,
        dataset: &measured.dataset,
        asked: asked.indices,
        estimates: estimates
            .map(|(&i, e)| (i, estimator.estimate(e)))
            .collect(),
        estimator: &estimator,
        coverage: interval.map(|interval| interval.coverage),
    }
    .evaluation(seed)?;
    Ok(Evaluation {
        warnings,
        ..evaluation
    })
}

/// What is to be said when the run's images are not those that it was made from.
fn moved(recorded: &Provenance, config: &Config, own: &Prepared) -> Result<Vec<String>, EvalError> {
    let [begun, now] = recorded.digests(config, own)?;
    let warning = || {
        format!(
            "images, labels or splits changed since this run began ({now}, then {begun}): it may \
             have been trained on some of these images"
        )
    };
    Ok((begun != now).then(warning).into_iter().collect())
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
            None => default_thresholds(manifest.task.range),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_on_other_tables_have_names_of_their_own() {
        let run = |weights| Subject::Run {
            folder: "runs/age".into(),
            weights,
        };
        let of = |table: Option<&str>, split: Option<&str>, weights| {
            let images = Images {
                table: table.map(PathBuf::from),
                columns: None,
                split: split.map(String::from),
            };
            images.stem(&run(weights), "test")
        };
        assert_eq!(of(None, None, Weights::Best), "test");
        assert_eq!(of(None, None, Weights::Last), "test-last");
        let stems = [
            of(Some("test.csv"), None, Weights::Best),
            of(Some("other/test.csv"), None, Weights::Best),
            of(Some("test.csv"), Some("3"), Weights::Best),
            of(Some("test.csv"), None, Weights::Last),
        ];
        let different: std::collections::BTreeSet<&String> = stems.iter().collect();
        assert_eq!(different.len(), 4, "{stems:?}");
        assert!(stems.iter().all(|stem| stem.starts_with("data-test")));
        assert!(stems[2].starts_with("data-test-3-"), "{stems:?}");
        assert!(stems[3].starts_with("data-test-last-"), "{stems:?}");
    }
}
