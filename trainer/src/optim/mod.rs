//! Optimisers, schedules, gradient clipping, weight averaging.
//!
//! One [`GroupedOptimizer`] steps the whole model; parameters under a given path have their own
//! learning rate, from a given epoch on, or are frozen up to one ([`Freeze`]). The [`Schedule`] is a pure function of the step, so it has no state to save.

pub mod clip;
pub mod ema;
pub mod freeze;
mod rates;
pub mod rule;
pub mod schedule;

pub(crate) use clip::read_together;
pub use clip::{clip_gradients, scale_gradients};
pub use ema::Ema;
pub use freeze::Freeze;
pub use rule::Method;
pub use schedule::{Decay, Schedule};

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsParams, ModuleOptimizer, OptimizerRecord};
use burn::store::RecordError;
use burn::tensor::{Bytes, Tensor};
use rates::Rates;
use rule::Rule;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The `[optimizer]` table of a task file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// Which update rule.
    pub method: Method,
    /// Learning rate of the parameters in no group, before the schedule's factor.
    pub lr: f64,
    /// Decoupled weight decay; applies to parameters of two dimensions or more, so neither to
    /// biases nor to normalisation layers.
    pub weight_decay: f64,
    /// Decay rates of the two moments, each at least 0 and below 1.
    pub betas: [f64; 2],
    /// Added to the denominator, above 0.
    pub epsilon: f64,
    /// Parts of the model with a learning rate of their own; the last that fits and has begun wins.
    pub groups: Vec<LrGroup>,
    /// Learning rate of each layer of the image encoder as a share of the next layer's, above 0
    /// and up to 1: below 1 the early layers, which know the most general things, learn slowest.
    ///
    /// A layer is a numbered block, or what stands between two of them, in the order of the
    /// network; the last one (the head) has the full rate.
    pub layer_decay: f64,
}

/// A part of the model and its learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LrGroup {
    /// Module path, such as `encoder` or `encoder.features.blocks.0`: the parameters at and below
    /// it. Names of kinds (`MobileNetV2`) may be left out.
    pub path: String,
    /// Learning rate, before the schedule's factor. With 0 the weights stay, but gradients are
    /// computed all the same: [`Freeze`] saves that work.
    pub lr: f64,
    /// The first epoch, counted from 1, in which it holds; several groups of the same path make
    /// stages.
    #[serde(default = "first_epoch")]
    pub from_epoch: usize,
}

/// What went wrong with an optimiser, a schedule or the averaged weights.
#[derive(Debug, Error)]
pub enum OptimError {
    /// A number in the configuration is out of range.
    #[error("`{field}` is {got}, expected {expected}")]
    OutOfRange {
        /// The offending field.
        field: &'static str,
        /// Its value.
        got: f64,
        /// What it may be.
        expected: &'static str,
    },
    /// A group's path leads to no parameter.
    #[error("`{path}` matches no parameter; {within} has: {parts}")]
    EmptyGroup {
        /// The path in the configuration.
        path: String,
        /// How far it leads.
        within: String,
        /// What there is.
        parts: String,
    },
    /// All parameters are frozen.
    #[error("train.freeze leaves nothing to train in epoch 1")]
    NothingToTrain,
    /// The saved state cannot be read or written.
    #[error("training state: {0}")]
    Record(#[from] RecordError),
    /// The saved state belongs to another model or is cut short.
    #[error("training state does not fit: {0}; resume with the task file the run began with")]
    Mismatch(String),
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            method: Method::AdamW,
            lr: 1e-3,
            weight_decay: 0.01,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            groups: Vec::new(),
            layer_decay: 1.0,
        }
    }
}

fn first_epoch() -> usize {
    1
}

/// Steps a whole model with one update rule and a learning rate per group.
#[derive(Clone)]
pub struct GroupedOptimizer {
    inner: ModuleOptimizer,
    rates: Rates,
}

impl GroupedOptimizer {
    /// An optimiser for `module`, without state yet.
    ///
    /// # Errors
    ///
    /// [`OptimError::OutOfRange`] for a number that makes no sense, [`OptimError::EmptyGroup`] for
    /// a path that fits no parameter of `module`.
    pub fn new<M: Module>(config: &OptimConfig, module: &M) -> Result<Self, OptimError> {
        config.validate()?;
        Ok(Self {
            inner: ModuleOptimizer::from(Rule::new(config)),
            rates: Rates::new(config, parameter_paths(module))?,
        })
    }

    /// Takes up the learning rates of an epoch, counted from 1; those of the first hold until
    /// then.
    pub fn begin_epoch(&mut self, epoch: usize) {
        self.rates.begin_epoch(epoch);
    }

    /// One update: every learning rate is multiplied by `factor`, the [`Schedule`]'s value.
    ///
    /// Parameters without a gradient stay as they are.
    pub fn step<M: Module>(&mut self, factor: f64, module: M, gradients: GradientsParams) -> M {
        self.inner
            .step(self.rates.scaled(factor), module, gradients)
    }

    /// The state, exactly: continuing from it gives the same weights bit for bit.
    ///
    /// The parameters are known by the ids that the model's own record carries, so save and
    /// restore both together.
    ///
    /// # Errors
    ///
    /// [`OptimError::Record`] when the state cannot be serialised.
    pub fn to_bytes(&self) -> Result<Vec<u8>, OptimError> {
        Ok(self.inner.into_bytes()?.to_vec())
    }

    /// Continues from what [`to_bytes`](Self::to_bytes) gave.
    ///
    /// # Errors
    ///
    /// [`OptimError::Record`] for bytes that are no record, [`OptimError::Mismatch`] for one that
    /// lacks part of the state.
    pub fn restore(self, bytes: Vec<u8>) -> Result<Self, OptimError> {
        let record = OptimizerRecord::from_bytes(Bytes::from_bytes_vec(bytes))?;
        let expected = record.len();
        let inner = self.inner.load_record(record);
        let got = inner.to_record().len();
        if got != expected {
            let text = format!("{got} of {expected} optimiser tensors are usable");
            return Err(OptimError::Mismatch(text));
        }
        Ok(Self { inner, ..self })
    }
}

impl OptimConfig {
    /// Whether every number makes sense.
    ///
    /// # Errors
    ///
    /// [`OptimError::OutOfRange`] naming the field.
    pub fn validate(&self) -> Result<(), OptimError> {
        let rates = self.groups.iter().map(|group| ("groups.lr", group.lr));
        for (field, got) in rates.chain([("lr", self.lr), ("weight_decay", self.weight_decay)]) {
            in_range(field, got, got >= 0.0 && got.is_finite(), "0 or more")?;
        }
        for got in self.betas {
            in_range("betas", got, (0.0..1.0).contains(&got), "0 to below 1")?;
        }
        let decay = self.layer_decay;
        in_range(
            "layer_decay",
            decay,
            decay > 0.0 && decay <= 1.0,
            "above 0, up to 1",
        )?;
        let epsilon = self.epsilon;
        let fits = epsilon > 0.0 && epsilon.is_finite();
        in_range("epsilon", epsilon, fits, "above 0")
    }
}

fn in_range(
    field: &'static str,
    got: f64,
    fits: bool,
    expected: &'static str,
) -> Result<(), OptimError> {
    let error = OptimError::OutOfRange {
        field,
        got,
        expected,
    };
    if fits { Ok(()) } else { Err(error) }
}

/// Whether a parameter lies at or below a module path.
fn is_under(parameter: &str, path: &str) -> bool {
    let mut parts = fields(parameter);
    fields(path).all(|part| parts.next() == Some(part))
}

/// The names of fields and indices in a path. Between them a module of several kinds has the name
/// of its kind, in capitals, which says nothing that the task file does not.
fn fields(path: &str) -> impl Iterator<Item = &str> + Clone {
    let is_kind = |part: &&str| part.starts_with(|first: char| first.is_ascii_uppercase());
    path.split('.').filter(move |part| !is_kind(part))
}

/// A path that leads nowhere, and what there is where it leaves the model.
fn empty_group(path: &str, paths: &[String]) -> OptimError {
    let parts: Vec<&str> = fields(path).collect();
    let under = |depth: usize| {
        let prefix = parts[..depth].join(".");
        paths
            .iter()
            .filter(move |path| depth == 0 || is_under(path, &prefix))
    };
    let known = (0..parts.len())
        .rev()
        .find(|&depth| under(depth).next().is_some());
    let known = known.unwrap_or(0);
    let mut found: Vec<&str> = under(known)
        .filter_map(|path| fields(path).nth(known))
        .collect();
    found.dedup();
    OptimError::EmptyGroup {
        path: path.to_string(),
        within: match known {
            0 => "the model".into(),
            _ => format!("`{}`", parts[..known].join(".")),
        },
        parts: found.join(", "),
    }
}

fn parameter_paths<M: Module>(module: &M) -> Vec<String> {
    struct Collect {
        path: Vec<String>,
        found: Vec<String>,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_string());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<D>>) {
            self.found.push(self.path.join("."));
        }
    }
    let mut collect = Collect {
        path: Vec::new(),
        found: Vec::new(),
    };
    module.visit(&mut collect);
    collect.found
}

#[cfg(test)]
mod tests;
