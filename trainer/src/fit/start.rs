//! The image encoder that a run starts from, and the file it comes from.

use std::fmt;
use std::path::Path;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::FitError;
use crate::checkpoint::Checkpoint;
use crate::clip::ClipFile;
use crate::clip::transformer::Precision;
use crate::config::Config;
use crate::model::vit::Vit;
use crate::model::{Architecture, ConvEncoder, ImageEncoder, tiny, weights};

/// A weight file, told apart from any other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightsSource {
    /// Its name, without its folder.
    pub file: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

/// The model that a student learned from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherSource {
    /// What it is, and its name.
    pub name: String,
    /// SHA-256 of its weights or of its manifest, in hexadecimal.
    pub sha256: String,
    /// What it was trained on; empty where it does not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub learned_from: String,
}

impl fmt::Display for TeacherSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (sha256 {})", self.name, self.sha256)?;
        match self.learned_from.is_empty() {
            true => Ok(()),
            false => write!(f, ", which learned from {}", self.learned_from),
        }
    }
}

/// The file that the encoder starts from; none if it starts from random weights.
pub(super) fn source(config: &Config) -> Result<Option<WeightsSource>, FitError> {
    let Some(path) = &config.model.init else {
        return Ok(None);
    };
    let (file, sha256) = Checkpoint::open(path)?.identity()?;
    Ok(Some(WeightsSource { file, sha256 }))
}

/// The encoder, for embeddings of width `dim`.
pub(super) fn encoder(
    config: &Config,
    dim: usize,
    device: &Device,
) -> Result<ImageEncoder, FitError> {
    match (config.model.architecture, &config.model.init) {
        (Architecture::Clip, Some(path)) => clip(config, path, dim, device),
        (Architecture::VitTiny, _) => Ok(vit_tiny(config, dim, device)?.into()),
        _ => Ok(conv(config, dim, device)?.into()),
    }
}

fn vit_tiny(config: &Config, dim: usize, device: &Device) -> Result<Vit, FitError> {
    let (model, train) = (&config.model, &config.train);
    let shape = tiny::shape(config.preprocess.size as usize, model.patch(), dim);
    let net = match &model.init {
        Some(path) => tiny::load(&shape, train.seed, path, device)?,
        None => tiny::init(&shape, train.seed, device),
    };
    Ok(net.with_precision(train.precision))
}

fn conv(config: &Config, dim: usize, device: &Device) -> Result<ConvEncoder, FitError> {
    let encoder = config.encoder(dim).init(config.train.seed, device)?;
    match &config.model.init {
        Some(path) => Ok(weights::load(encoder, path)?.0),
        None => Ok(encoder),
    }
}

fn clip(
    config: &Config,
    path: &Path,
    dim: usize,
    device: &Device,
) -> Result<ImageEncoder, FitError> {
    let file = ClipFile::open(path, &config.clip)?;
    let encoder = ImageEncoder::clip(&file, config.preprocess.size as usize, device)?;
    if encoder.dim() != dim {
        return Err(FitError::Width {
            image: encoder.dim(),
            bins: dim,
        });
    }
    match (encoder, config.train.precision) {
        (ImageEncoder::Vit(vit), precision) => Ok(vit.with_precision(precision).into()),
        (encoder, Precision::F32) => Ok(encoder),
        (_, Precision::Bf16) => Err(FitError::Precision),
    }
}
