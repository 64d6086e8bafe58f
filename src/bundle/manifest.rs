//! What `bundle.toml` says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bins::Bin;
use crate::estimate::{Calibration, Regressor};
use crate::metrics::Metrics;
use crate::preprocess::Plan;

/// The newest manifest schema that this version reads and writes.
pub const SCHEMA: u32 = 1;

/// The manifest of a bundle. Unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Schema version, see [`SCHEMA`].
    pub schema: u32,
    /// Scale of the cosines ahead of the softmax over bins.
    pub logit_scale: f32,
    /// Name and version of the model.
    pub model: ModelSection,
    /// What is estimated.
    pub task: TaskSection,
    /// From frame to tensor.
    pub preprocess: Plan,
    /// From bin logits to a number.
    pub regressor: Regressor,
    /// Interval around the number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Calibration>,
    /// The encoders, best first.
    pub encoder: Vec<EncoderFile>,
    /// The bins and the width of their embeddings.
    pub bins: BinsSection,
    /// What was measured, by split and precision.
    #[serde(default)]
    pub report: Vec<Report>,
    /// Where the model comes from.
    pub provenance: Provenance,
    /// SHA-256 of every other file of the bundle, lower-case hexadecimal.
    pub files: BTreeMap<String, String>,
}

/// Name and version of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// Name: letters, digits, `-` and `_`.
    pub name: String,
    /// Semantic version.
    pub version: String,
}

/// What is estimated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSection {
    /// Name of the quantity.
    pub name: String,
    /// Unit of the quantity; may be empty.
    #[serde(default)]
    pub unit: String,
    /// Lowest and highest value.
    pub range: [f32; 2],
}

/// The bins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BinsSection {
    /// Width of a bin embedding, and of the encoder's output.
    pub dim: usize,
    /// The bins in ascending order.
    pub bin: Vec<Bin>,
}

/// One encoder file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderFile {
    /// File name within the bundle.
    pub path: String,
    /// File format.
    pub format: EncoderFormat,
    /// Arithmetic of the network.
    pub precision: Precision,
}

/// Formats of an encoder file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncoderFormat {
    /// ONNX.
    Onnx,
    /// TensorFlow Lite.
    Tflite,
}

/// Arithmetic of an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// 8-bit integers: unsigned activations, symmetric signed weights per channel.
    Int8,
}

/// Measures of one encoder on one split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Name of the split.
    pub split: String,
    /// Arithmetic that was measured.
    pub precision: Precision,
    /// What was measured.
    pub metrics: Metrics,
}

/// Where a model comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// What the network learned from, for a person to read.
    pub data: String,
    /// SHA-256 over paths, labels and contents of the data set.
    pub data_digest: String,
    /// The text tower that gave the bin embeddings.
    pub text_tower: String,
    /// What the encoder's weights started from.
    pub weights: String,
    /// The model that it learned from, if it had a teacher.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub teacher: String,
    /// Architecture of the encoder.
    pub architecture: String,
    /// How the encoder became integers, if it did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub quantization: String,
    /// What the interval was fitted on, where it was not the run's validation images.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub interval: String,
    /// Seed of the run.
    pub seed: u64,
    /// Revision of the source that trained it, where known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// Version of the trainer.
    pub trainer: String,
    /// Licence of the model, with its attributions.
    pub licence: String,
}
