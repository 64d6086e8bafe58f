//! A run's state in one file: written beside its place, synced, renamed.

use std::collections::HashMap;
use std::path::Path;

use burn::module::Module;
use burn::store::ModuleRecord;
use burn::tensor::Bytes;
use burn_pack::{Reader, Tensor, Writer};
use numclip::metrics::Metrics;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use serde::{Deserialize, Serialize};

use super::{FitError, Run, State};
use crate::checkpoint::Checkpoint;
use crate::config::Train;
use crate::file::write_whole;
use crate::model::numclip::NumClip;
use crate::optim::Ema;

const MODEL: &str = "model";
const OPTIMIZER: &str = "optimizer";
const AVERAGE: &str = "average";
const COUNTERS: &str = "counters";

/// Which weights of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Those of the epoch with the least validation error, averaged where the
    /// task asks for it.
    Best,
    /// Those of the last checkpoint, averaged where the task asks for it.
    Last,
}

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    /// Epochs completed.
    pub epoch: usize,
    /// Steps done of the epoch under way.
    pub step: usize,
    /// Epoch with the least validation error, counted from 1; 0 for none.
    pub best_epoch: usize,
    /// Validation measures of that epoch.
    pub best: Option<Metrics>,
    /// Length of the measurements written so far, in bytes.
    pub metrics_bytes: u64,
    /// Of the epoch under way.
    pub sums: Sums,
}

/// Sums over the steps of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sums {
    loss: f64,
    steps: u64,
    error: f64,
    images: u64,
}

impl Counters {
    /// Steps done since the run began.
    pub fn global_step(&self, steps_per_epoch: u64) -> u64 {
        self.epoch as u64 * steps_per_epoch + self.step as u64
    }

    /// Whether nothing is left to do of `train`: all epochs are done, or its patience is at an end.
    pub fn is_over(&self, train: &Train) -> bool {
        let is_stale = |patience: usize| self.epoch - self.best_epoch >= patience.max(1);
        let stale = self.best.is_some() && train.patience.is_some_and(is_stale);
        self.step == 0 && (self.epoch >= train.epochs || stale)
    }

    /// Notes the epoch just completed if it is the best so far.
    pub fn update_best(&mut self, metrics: Option<Metrics>) -> bool {
        let Some(metrics) = metrics else { return false };
        let better = self.best.as_ref().is_none_or(|best| metrics.mae < best.mae);
        if better {
            self.best_epoch = self.epoch;
            self.best = Some(metrics);
        }
        better
    }
}

impl Sums {
    /// Adds a step.
    pub fn add(&mut self, loss: f64, values: &[f32], labels: &[f32]) {
        let error = |(value, label): (&f32, &f32)| f64::from((value - label).abs());
        self.loss += loss;
        self.steps += 1;
        self.error += values.iter().zip(labels).map(error).sum::<f64>();
        self.images += labels.len() as u64;
    }

    /// Mean loss of the steps.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.steps.max(1) as f64
    }

    /// Mean absolute error of the images, in the task's unit.
    pub fn mean_error(&self) -> f64 {
        self.error / self.images.max(1) as f64
    }
}

impl State {
    /// The state that the run's checkpoint holds.
    pub(super) fn restore(self, run: &Run) -> Result<Self, FitError> {
        let path = run.checkpoint();
        let bytes = std::fs::read(&path).map_err(|error| file_error(&path, &error))?;
        let fail = |message: String| file_error(&path, &message);
        let file = SafeTensors::deserialize(&bytes).map_err(|error| fail(error.to_string()))?;
        let part = |name: &str| {
            file.tensor(name)
                .map(|tensor| tensor.data().to_vec())
                .map_err(|error| fail(error.to_string()))
        };
        let ema = match self.ema {
            Some(ema) => Some(ema.restore(&part(AVERAGE)?)?),
            None => None,
        };
        Ok(Self {
            model: load_model(self.model, part(MODEL)?).map_err(fail)?,
            optimizer: self.optimizer.restore(part(OPTIMIZER)?)?,
            ema,
            counters: read_counters(&part(COUNTERS)?).map_err(fail)?,
        })
    }
}

impl Run {
    /// Writes the run's checkpoint.
    pub(super) fn save(&self, state: &State) -> Result<(), FitError> {
        let path = self.checkpoint();
        let fail = |message: String| file_error(&path, &message);
        let counters = toml::to_string(&state.counters).map_err(|error| fail(error.to_string()))?;
        let mut parts = vec![
            (MODEL, model_bytes(&state.model).map_err(fail)?),
            (OPTIMIZER, state.optimizer.to_bytes()?),
            (COUNTERS, counters.into_bytes()),
        ];
        if let Some(ema) = &state.ema {
            parts.push((AVERAGE, ema.to_bytes()?));
        }
        write_parts(&path, &parts)
    }

    /// Whether the run in `folder` is trained to its end.
    pub fn is_trained(folder: &Path) -> bool {
        let counters = |run: &Self| {
            let file = Checkpoint::open(&run.checkpoint()).ok()?;
            read_counters(&file.raw(COUNTERS).ok()?).ok()
        };
        Self::read(folder)
            .is_ok_and(|(run, config, _)| counters(&run).is_some_and(|c| c.is_over(&config.train)))
    }

    /// Writes the weights of the best epoch so far.
    pub(super) fn save_best(&self, model: &NumClip, epoch: usize) -> Result<(), FitError> {
        let path = self.best();
        let model = model_bytes(model).map_err(|message| file_error(&path, &message))?;
        write_parts(
            &path,
            &[(MODEL, model), ("epoch", epoch.to_le_bytes().to_vec())],
        )
    }

    /// Loads weights of the run into `model`.
    ///
    /// # Errors
    /// [`FitError::File`] when there are none, or they are of another model.
    pub fn load(&self, model: NumClip, weights: Weights) -> Result<NumClip, FitError> {
        let path = match weights {
            Weights::Best => self.best(),
            Weights::Last => self.checkpoint(),
        };
        let bytes = std::fs::read(&path).map_err(|error| file_error(&path, &error))?;
        let fail = |message: String| file_error(&path, &message);
        let file = SafeTensors::deserialize(&bytes).map_err(|error| fail(error.to_string()))?;
        let part = |name| file.tensor(name).map(|part| part.data().to_vec());
        let record = match part(AVERAGE) {
            Ok(average) => Ema::<NumClip>::record(&average)?.to_vec(),
            Err(_) => part(MODEL).map_err(|error| fail(error.to_string()))?,
        };
        load_model(model, record).map_err(fail)
    }
}

/// [`write_whole`](crate::file::write_whole), for a file of the run.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), FitError> {
    write_whole(path, bytes).map_err(|error| file_error(path, &error))
}

pub(super) fn file_error(path: &Path, error: &dyn std::fmt::Display) -> FitError {
    FitError::File {
        path: path.into(),
        message: error.to_string(),
    }
}

fn write_parts(path: &Path, parts: &[(&str, Vec<u8>)]) -> Result<(), FitError> {
    let mut views = Vec::with_capacity(parts.len());
    for (name, bytes) in parts {
        let view = TensorView::new(Dtype::U8, vec![bytes.len()], bytes);
        views.push((name, view.map_err(|error| file_error(path, &error))?));
    }
    let bytes = serialize(views, None::<HashMap<String, String>>)
        .map_err(|error| file_error(path, &error))?;
    write(path, &bytes)
}

/// TOML keeps floats to the last bit.
fn read_counters(bytes: &[u8]) -> Result<Counters, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    toml::from_str(text).map_err(|error| error.to_string())
}

/// `valid` applies the last update of running statistics, which burn holds
/// back until the next forward pass.
pub(super) fn model_bytes(model: &NumClip) -> Result<Vec<u8>, String> {
    let record = model
        .valid()
        .into_record()
        .into_bytes()
        .map_err(|error| error.to_string())?;
    Ok(record.to_vec())
}

pub(super) fn load_model(model: NumClip, bytes: Vec<u8>) -> Result<NumClip, String> {
    let bytes = renamed(bytes).map_err(|error| error.to_string())?;
    let record = ModuleRecord::from_bytes(bytes).map_err(|error| error.to_string())?;
    model
        .try_load_record(record)
        .map_err(|error| error.to_string())
}

/// Where parameters stood before there were encoders of several kinds, and where they stand now.
const RENAMED: [(&str, &str); 2] = [
    ("encoder.features.", "encoder.Conv.features."),
    ("encoder.head.", "encoder.Conv.head."),
];

/// A record with today's names.
fn renamed(record: Vec<u8>) -> Result<Bytes, burn_pack::Error> {
    let record = Reader::from_bytes(Bytes::from_bytes_vec(record))?;
    let tensors = record.into_tensors()?.into_iter().map(|tensor| {
        let (name, dtype, shape, id, bytes) = tensor.into_parts()?;
        let old = RENAMED.iter().find_map(|(old, new)| {
            let rest = name.strip_prefix(old)?;
            Some(format!("{new}{rest}"))
        });
        Ok(Tensor::new(old.unwrap_or(name), dtype, shape, id, bytes))
    });
    Writer::new(tensors.collect::<Result<_, burn_pack::Error>>()?).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::DType;

    #[test]
    fn parameters_of_older_runs_are_found() {
        let tensor = |name: &str| {
            let bytes = Bytes::from_bytes_vec(1f32.to_le_bytes().to_vec());
            Tensor::new(name.into(), DType::F32, [1], Some(7), bytes)
        };
        let names = [
            "encoder.features.MobileNetV2.stem.bias",
            "encoder.head.weight",
            "encoder.Vit.class",
            "regressor.Ssr.offset.bias",
        ];
        let record = Writer::new(names.map(tensor).to_vec()).into_bytes();
        let record = renamed(record.unwrap().to_vec()).unwrap();
        let record = Reader::from_bytes(record).unwrap();
        let expected = [
            "encoder.Conv.features.MobileNetV2.stem.bias",
            "encoder.Conv.head.weight",
            "encoder.Vit.class",
            "regressor.Ssr.offset.bias",
        ];
        let mut found = record.tensor_names();
        found.sort_unstable();
        assert_eq!(found, expected);
        assert!(renamed(vec![1, 2, 3]).is_err());
    }
}
