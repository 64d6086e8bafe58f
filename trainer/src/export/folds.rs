//! The interval of a model that learned from all labelled images, by the runs of a
//! cross-validation: each on the images that it was tested on.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use burn::module::Module as _;
use burn::tensor::Device;
use numclip::estimate::{Calibration, Estimator, calibrate_across};

use super::ExportError;
use super::measure::labelled;
use crate::config::Config;
use crate::data::Unreadable;
use crate::fit::{Embedded, Prepared, Run, Weights, embed_all, loader, prepare, untrained};

/// What a run makes of its test images.
struct Fold {
    prepared: Prepared,
    estimator: Estimator,
    embedded: Embedded,
}

/// The interval for the model of `config`, and a line that says what it was fitted on. Copies of
/// images that another run was tested on, or this one, are left out.
///
/// # Errors
/// [`ExportError::Interval`] when a run is of another task, or has no test images of its own.
pub fn interval(
    runs: &[PathBuf],
    (config, prepared): (&Config, &Prepared),
    weights: Weights,
) -> Result<(Option<Calibration>, String), ExportError> {
    let mut seen: HashSet<[u8; 32]> = digests(prepared, &prepared.splits.test).collect();
    let mut folds = Vec::with_capacity(runs.len());
    for run in runs {
        let fail = |message: String| ExportError::Interval {
            run: run.clone(),
            message,
        };
        let mut fold = Fold::of(run, config, weights).map_err(&fail)?;
        let tested: Vec<[u8; 32]> = digests(&fold.prepared, &fold.embedded.indices).collect();
        let new: Vec<bool> = tested.iter().map(|image| !seen.contains(image)).collect();
        if !new.contains(&true) {
            let message = "its test images are those of the exported run or of another run named \
                           here";
            return Err(fail(message.into()));
        }
        fold.embedded = only(fold.embedded, &new);
        seen.extend(tested);
        folds.push(fold);
    }
    let tried: Vec<_> = folds
        .iter()
        .map(|fold| labelled(&fold.prepared.dataset, &fold.embedded))
        .collect();
    let tried: Vec<(&Estimator, &[_])> = folds
        .iter()
        .zip(&tried)
        .map(|(fold, labelled)| (&fold.estimator, &labelled[..]))
        .collect();
    let images: usize = folds.iter().map(|fold| fold.embedded.labels.len()).sum();
    let line = format!(
        "{images} images that {} runs of a cross-validation were tested on",
        folds.len()
    );
    Ok((calibrate_across(&tried, config.export.coverage), line))
}

/// The images that are `wanted`.
fn only(embedded: Embedded, wanted: &[bool]) -> Embedded {
    fn keep<T>(all: Vec<T>, wanted: &[bool]) -> Vec<T> {
        let all = all.into_iter().zip(wanted);
        all.filter_map(|(one, wanted)| wanted.then_some(one))
            .collect()
    }
    Embedded {
        embeddings: keep(embedded.embeddings, wanted),
        labels: keep(embedded.labels, wanted),
        indices: keep(embedded.indices, wanted),
    }
}

fn digests<'a>(prepared: &'a Prepared, images: &'a [usize]) -> impl Iterator<Item = [u8; 32]> + 'a {
    images.iter().map(|&image| prepared.sha256[image])
}

impl Fold {
    fn of(folder: &Path, exported: &Config, weights: Weights) -> Result<Self, String> {
        let told = |error: &dyn std::fmt::Display| error.to_string();
        let (run, config, recorded) = Run::read(folder).map_err(|e| told(&e))?;
        if (&config.bin, config.task.range) != (&exported.bin, exported.task.range) {
            return Err("its task has other bins or another range".into());
        }
        let device = Device::flex();
        let prepared = prepare(&config, &device).map_err(|e| told(&e))?;
        let [expected, got] = recorded.digests(&config, &prepared).map_err(|e| told(&e))?;
        if expected != got {
            let message = "its images, labels or splits are not those it was trained on";
            return Err(format!("{message} (digest {got}, expected {expected})"));
        }
        if prepared.splits.test.is_empty() {
            return Err("it has no test images".into());
        }
        let model = untrained(&config, &prepared, &device)
            .and_then(|model| run.load(model, weights))
            .map_err(|e| told(&e))?
            .valid();
        let test = &prepared.splits.test;
        let embedded = loader(&config, &prepared, test, Unreadable::Stop)
            .and_then(|loader| embed_all(&config, &model, &loader))
            .map_err(|e| told(&e))?;
        let estimator = prepared
            .estimator(&config, &model, None)
            .map_err(|e| told(&e))?;
        Ok(Self {
            prepared,
            estimator,
            embedded,
        })
    }
}
