//! The task file: what is estimated, from which data, by which model, trained how.
//!
//! Only `[task]`, `[[bin]]` and `[data]` are needed; everything else has a
//! default. Unknown keys are refused. The resolved file is kept beside the
//! weights, so a run can be repeated from its folder.

mod check;
mod clip;
mod teacher;
mod training;
mod unused;

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use numclip::bins::Bin;
use numclip::preprocess::{Plan, Resize};
use serde::{Deserialize, Serialize};

use crate::clip::Hints;
use crate::clip::transformer::Precision;
use crate::data::{
    Augment, Columns, LeakPolicy, Protocol, Sampling, SplitPlan, Unreadable, Weighting,
};
use crate::device;
use crate::model::numclip::HeadConfig;
use crate::model::{Architecture, EncoderConfig, Norm, Padding, tiny};
use crate::optim::{Freeze, OptimConfig, Schedule};
use crate::quantize::range::RangeMethod;
use crate::quantize::recipe::Recipe;
use crate::text::{Placement, TextConfig, Tuning};
pub use check::{ConfigError, ConfigErrorKind};
pub use teacher::{Clean, Teacher, TeacherKind, TeacherLoss, ViewPlan};

/// Everything a run depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What is estimated.
    pub task: Task,
    /// The common-language bins in ascending order.
    pub bin: Vec<Bin>,
    /// Labelled images.
    pub data: Data,
    /// Where the bin embeddings come from.
    #[serde(default)]
    pub text: Text,
    /// What CLIP checkpoints do not say of themselves.
    #[serde(default)]
    pub clip: Hints,
    /// The image encoder and what stands behind it.
    #[serde(default)]
    pub model: Model,
    /// From image to tensor.
    #[serde(default = "default_plan")]
    pub preprocess: Plan,
    /// Random changes of training images.
    #[serde(default)]
    pub augment: Augment,
    /// The training itself.
    #[serde(default)]
    pub train: Train,
    /// A trained model to learn from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<Teacher>,
    /// What becomes of the trained model.
    #[serde(default)]
    pub export: Export,
}

/// What is estimated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Name of the task and of its model: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Version of the model.
    #[serde(default = "first_version")]
    pub version: String,
    /// Unit of the quantity; may be empty.
    #[serde(default)]
    pub unit: String,
    /// Lowest and highest value.
    pub range: [f32; 2],
    /// Errors counted as right in the cumulative scores, in the unit.
    #[serde(default)]
    pub thresholds: Vec<f32>,
}

/// Labelled images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// CSV table or list, relative to the task file.
    pub table: PathBuf,
    /// Names of the table's columns.
    #[serde(default)]
    pub columns: Columns,
    /// How the images are divided.
    #[serde(default)]
    pub split: SplitPlan,
    /// Folds, few-shot and other changes to that division.
    #[serde(default)]
    pub protocol: Protocol,
    /// What to do about images and groups that splits share.
    #[serde(default)]
    pub leaks: LeakPolicy,
    /// What the images are, for the bundle's provenance.
    #[serde(default)]
    pub description: String,
    /// Unreadable training images, unlabelled ones among them, that are skipped with a warning
    /// before the run stops. One of validation or test always stops it: what is measured would
    /// change in silence.
    #[serde(default)]
    pub max_unreadable: usize,
}

/// Where the bin embeddings come from: a file of embeddings, a text tower's
/// weights, or (without either) a random tower.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Text {
    /// The words around a bin's name.
    pub context: String,
    /// Where the bin's name stands among them.
    pub placement: Placement,
    /// Checkpoint with a CLIP text tower, relative to the task file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
    /// File with ready embeddings, relative to the task file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embeddings: Option<PathBuf>,
    /// Shape of the random tower.
    pub tower: TextConfig,
    /// What of the text side learns with the images; nothing by default.
    pub tune: Tuning,
}

/// The image encoder and what stands behind it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// The network.
    pub architecture: Architecture,
    /// Multiplies all channel counts.
    pub width: f64,
    /// Where strided convolutions put their zeros.
    pub padding: Padding,
    /// Batch normalisation, or none because it is folded in.
    pub norm: Norm,
    /// Branches of a MobileOne block while training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branches: Option<usize>,
    /// Side of a patch of `vit-tiny` in pixels, 16 or 32; 16 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch: Option<usize>,
    /// Checkpoint to start from, relative to the task file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Adapter, logit scale and regressor.
    pub head: HeadConfig,
}

/// The training itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// Passes over the training images.
    pub epochs: usize,
    /// Images computed together. The batch-wise loss (text to image) and batch normalisation see
    /// these.
    pub batch_size: usize,
    /// Batches whose gradients make one step, weighted by their images: losses that are means
    /// over images then equal those of one large batch.
    pub accumulate: usize,
    /// Seed of weights, order and augmentation.
    pub seed: u64,
    /// Optimiser and learning rates.
    pub optimizer: OptimConfig,
    /// Parts of the model that do not learn, for some epochs or at all.
    pub freeze: Vec<Freeze>,
    /// Learning rate over time.
    pub schedule: Schedule,
    /// Upper bound on the norm of all gradients together; none if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Decay of the averaged weights that are validated and exported; none if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Epochs without a better validation error before the run ends; all are
    /// run if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
    /// Weights of the loss terms.
    pub loss: LossWeights,
    /// Order and frequency of the images.
    pub sampling: Sampling,
    /// Weights of the bins in cross-entropy and value loss.
    pub weighting: Weighting,
    /// Steps between checkpoints; one is also written after every epoch.
    pub checkpoint_steps: usize,
    /// Computes cheap intermediate results again on the way back instead of
    /// keeping them: those of a vision transformer take a third of the memory,
    /// at a tenth more time. The numbers stay the same, bit for bit.
    pub gradient_checkpointing: bool,
    /// Arithmetic of a vision transformer while it trains.
    pub precision: Precision,
    /// What to compute on: `auto`, `cpu`, `cuda`, `cuda:1` or `cuda:0,1`. The flag `--device`
    /// overrides it, and a run may be resumed on another device.
    pub device: device::Choice,
    /// Threads that load images; 0 for one per core.
    pub workers: usize,
    /// Memory for decoded images, in MiB.
    pub cache_mib: usize,
}

/// Weights of the loss terms; a term of weight 0 is not computed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossWeights {
    /// Fine-grained cross-modal ranking, image to text.
    pub image_to_text: f64,
    /// Fine-grained cross-modal ranking, text to image.
    pub text_to_image: f64,
    /// Plain cross-entropy over the bins.
    pub cross_entropy: f64,
    /// Plain Kullback-Leibler, text to image.
    pub kl: f64,
    /// Absolute error of the regressed value, in the task's unit.
    pub value: f64,
}

/// What becomes of the trained model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Export {
    /// Training images that the activation ranges are taken from.
    pub calibration_images: usize,
    /// How a range is chosen.
    pub range: RangeMethod,
    /// Equalises channels across layers.
    pub equalize: bool,
    /// Rounds weights together instead of each to its nearest level.
    pub adaptive_rounding: bool,
    /// Takes the mean error of each output channel, as the calibration images show it, off the
    /// biases.
    pub bias_correction: bool,
    /// How much of a transformer's outliers moves into its weights, 0 to 1.
    pub smoothing: f64,
    /// Share of validation images inside the interval.
    pub coverage: f32,
    /// Pictures of the golden vectors.
    pub golden: GoldenPictures,
    /// Licence of the model, with its attributions.
    pub licence: String,
}

/// Pictures of the golden vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GoldenPictures {
    /// Validation images, scaled down: what the device will see.
    #[default]
    Validation,
    /// Drawn patterns: no photograph leaves with the bundle.
    Patterns,
}

impl Config {
    /// Reads and checks a task file; its relative paths are resolved against
    /// its folder. With `model.architecture = "clip"`, what is absent of
    /// preprocessing, logit scale and text tower follows the checkpoint, and
    /// the learning rate is that of the published method.
    ///
    /// # Errors
    /// [`ConfigError`] names the file and the field.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::read_with(path, |_| {})
    }

    /// As [`Config::read`], with a change to the task file's contents before
    /// they are checked.
    ///
    /// # Errors
    /// [`ConfigError`] names the file and the field.
    pub fn read_with(
        path: &Path,
        change: impl FnOnce(&mut toml::Table),
    ) -> Result<Self, ConfigError> {
        Self::parse(path, change, Self::check_unused)
    }

    /// Reads the task file that a run keeps; one of an older trainer may hold keys without effect.
    pub(crate) fn read_resolved(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(path, |_| {}, |_| Ok(()))
    }

    /// A resolved task file that another machine keeps, with other places of its files. Relative
    /// ones are resolved against the current folder.
    pub(crate) fn from_run(
        text: &str,
        change: impl FnOnce(&mut toml::Table),
    ) -> Result<Self, ConfigError> {
        let path = Path::new("the run's task.toml");
        Self::parse_text(path, || Ok(text.into()), change, |_| Ok(()))
    }

    fn parse(
        path: &Path,
        change: impl FnOnce(&mut toml::Table),
        check_written: impl FnOnce(&Self) -> Result<(), ConfigErrorKind>,
    ) -> Result<Self, ConfigError> {
        Self::parse_text(
            path,
            || std::fs::read_to_string(path),
            change,
            check_written,
        )
    }

    fn parse_text(
        path: &Path,
        read: impl FnOnce() -> std::io::Result<String>,
        change: impl FnOnce(&mut toml::Table),
        check_written: impl FnOnce(&Self) -> Result<(), ConfigErrorKind>,
    ) -> Result<Self, ConfigError> {
        let parse = || -> Result<Self, ConfigErrorKind> {
            let text = read()?;
            // Parsed twice: errors of the text itself keep their line.
            let written: Self = toml::from_str(&text)?;
            let mut table: toml::Table = toml::from_str(&text)?;
            change(&mut table);
            let mut config: Self = table.clone().try_into()?;
            config.check()?;
            config.resolve(path.parent().unwrap_or(Path::new("")))?;
            config.follow_checkpoint(&table)?;
            config.check()?;
            check_written(&written)?;
            Ok(config)
        };
        parse().map_err(|kind| ConfigError {
            path: path.into(),
            kind,
        })
    }

    /// The encoder, for embeddings of width `dim`.
    pub fn encoder(&self, dim: usize) -> EncoderConfig {
        EncoderConfig {
            architecture: self.model.architecture,
            width: self.model.width,
            embedding: dim,
            padding: self.model.padding,
            norm: self.model.norm,
            branches: self.model.branches,
        }
    }

    /// Errors counted as right in the cumulative scores: those of the task
    /// file, or the default ones.
    pub fn thresholds(&self) -> Vec<f32> {
        match self.task.thresholds.is_empty() {
            true => default_thresholds(self.task.range),
            false => self.task.thresholds.clone(),
        }
    }

    /// `device` with gradients, as the task file asks for them.
    pub fn training_device(&self, device: &Device) -> Device {
        let device = device.clone().autodiff();
        match self.train.gradient_checkpointing {
            true => device.gradient_checkpointing(),
            false => device,
        }
    }

    fn resolve(&mut self, folder: &Path) -> std::io::Result<()> {
        let paths = [
            &mut self.text.weights,
            &mut self.text.embeddings,
            &mut self.model.init,
        ];
        let teacher = self.teacher.iter_mut().flat_map(Teacher::paths);
        let paths = paths.into_iter().chain(teacher).flatten();
        for path in paths.chain([&mut self.data.table]) {
            *path = std::path::absolute(folder.join(&path))?;
        }
        Ok(())
    }
}

/// Errors counted as right where a task names none: 1, 2, 5 and 10 % of its range.
pub fn default_thresholds([low, high]: [f32; 2]) -> Vec<f32> {
    [0.01, 0.02, 0.05, 0.1]
        .map(|share| share * (high - low))
        .to_vec()
}

/// 160 pixels from the middle of the shorter side; pixel levels become
/// multiples of 1/128, which int8 represents exactly.
fn default_plan() -> Plan {
    let half = 128.0 / 255.0;
    Plan {
        resize: Resize::ShorterSide { to: Some(176) },
        mean: [half; 3],
        std: [half; 3],
        ..Plan::clip(160)
    }
}

impl Export {
    /// How the network is quantised.
    pub fn recipe(&self) -> Recipe {
        Recipe {
            range: self.range,
            equalize: self.equalize,
            adaptive_rounding: self.adaptive_rounding,
            bias_correction: self.bias_correction,
        }
    }
}

impl Data {
    /// What to do about training images that cannot be read.
    pub fn unreadable(&self) -> Unreadable {
        match self.max_unreadable {
            0 => Unreadable::Stop,
            limit => Unreadable::Skip(limit),
        }
    }
}

fn first_version() -> String {
    "0.1.0".into()
}

impl Model {
    /// Side of a patch of `vit-tiny` in pixels.
    pub fn patch(&self) -> usize {
        self.patch.unwrap_or(tiny::PATCH)
    }
}

impl Default for Model {
    fn default() -> Self {
        Self {
            architecture: Architecture::MobileOneS0,
            width: 1.0,
            padding: Padding::default(),
            norm: Norm::default(),
            branches: None,
            patch: None,
            init: None,
            head: HeadConfig::default(),
        }
    }
}

impl Default for Train {
    fn default() -> Self {
        Self {
            epochs: 30,
            batch_size: 32,
            accumulate: 1,
            seed: 0,
            optimizer: OptimConfig::default(),
            freeze: Vec::new(),
            schedule: Schedule::default(),
            clip_norm: Some(5.0),
            ema: None,
            patience: None,
            loss: LossWeights::default(),
            sampling: Sampling::default(),
            weighting: Weighting::default(),
            checkpoint_steps: 200,
            gradient_checkpointing: false,
            precision: Precision::F32,
            device: device::Choice::Auto,
            workers: 0,
            cache_mib: 1024,
        }
    }
}

impl Default for LossWeights {
    fn default() -> Self {
        Self {
            image_to_text: 1.0,
            text_to_image: 1.0,
            cross_entropy: 0.0,
            kl: 0.0,
            value: 1.0,
        }
    }
}

impl Default for Export {
    fn default() -> Self {
        Self {
            calibration_images: 256,
            range: RangeMethod::default(),
            equalize: false,
            adaptive_rounding: false,
            bias_correction: true,
            smoothing: 0.0,
            coverage: 0.9,
            golden: GoldenPictures::default(),
            licence: "all rights reserved".into(),
        }
    }
}
