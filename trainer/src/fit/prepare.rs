//! What a run needs before its first step.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use numclip::bins::Bins;
use numclip::estimate::{Calibration, Estimator};
use serde::{Deserialize, Serialize};

use super::FitError;
use crate::checkpoint::Checkpoint;
use crate::clip::ClipFile;
use crate::clip::transformer::Precision;
use crate::config::Config;
use crate::data::{Dataset, Splits};
use crate::model::numclip::NumClip;
use crate::model::{Architecture, ConvEncoder, ImageEncoder, weights};
use crate::text::{
    BinEmbeddings, Prompt, TextTower, bin_embeddings, load_bin_embeddings, ordinality,
};

/// Data, splits and bin embeddings of a task.
pub struct Prepared {
    /// All labelled images.
    pub dataset: Dataset,
    /// Which of them are for what.
    pub splits: Splits,
    /// SHA-256 over paths, labels and images.
    pub digest: String,
    /// The bins as the text side sees them.
    pub embeddings: BinEmbeddings,
    /// How well the embeddings follow the order of the bins, 0 to 1.
    pub ordinality: f64,
    /// The weights that the encoder starts from; none if it starts from random ones.
    pub init: Option<WeightsSource>,
}

/// A weight file, told apart from any other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightsSource {
    /// Its name, without its folder.
    pub file: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

/// Opens the data set, divides it and embeds the bins.
///
/// # Errors
/// [`FitError`] names the file, and the line where there is one.
pub fn prepare(config: &Config, device: &Device) -> Result<Prepared, FitError> {
    let dataset = Dataset::open(&config.data.table, &config.data.columns, config.task.range)?;
    let splits = Splits::new(&dataset, &config.data.split)?;
    let embeddings = embeddings(config, device)?;
    let digest = dataset.digest()?;
    Ok(Prepared {
        ordinality: ordinality(&embeddings),
        init: init(config)?,
        dataset,
        splits,
        digest,
        embeddings,
    })
}

/// The model at the start of training.
///
/// # Errors
/// [`FitError`] when the configuration describes no network, or the weights
/// to start from do not fit it.
pub fn untrained(
    config: &Config,
    prepared: &Prepared,
    device: &Device,
) -> Result<NumClip, FitError> {
    device.seed(config.train.seed);
    let encoder = match (config.model.architecture, &config.model.init) {
        (Architecture::Clip, Some(path)) => clip(config, prepared, path, device)?,
        _ => conv(config, prepared, device)?.into(),
    };
    Ok(config.model.head.build(encoder, &config.bin, device))
}

fn conv(config: &Config, prepared: &Prepared, device: &Device) -> Result<ConvEncoder, FitError> {
    let encoder = config
        .encoder(prepared.embeddings.dim)
        .init(config.train.seed, device)?;
    match &config.model.init {
        Some(path) => Ok(weights::load(encoder, path)?.0),
        None => Ok(encoder),
    }
}

fn clip(
    config: &Config,
    prepared: &Prepared,
    path: &Path,
    device: &Device,
) -> Result<ImageEncoder, FitError> {
    let file = ClipFile::open(path, &config.clip)?;
    let encoder = ImageEncoder::clip(&file, config.preprocess.size as usize, device)?;
    let (image, bins) = (encoder.dim(), prepared.embeddings.dim);
    if image != bins {
        return Err(FitError::Width { image, bins });
    }
    match (encoder, config.train.precision) {
        (ImageEncoder::Vit(vit), precision) => Ok(vit.with_precision(precision).into()),
        (encoder, Precision::F32) => Ok(encoder),
        (_, Precision::Bf16) => Err(FitError::Precision),
    }
}

fn init(config: &Config) -> Result<Option<WeightsSource>, FitError> {
    let Some(path) = &config.model.init else {
        return Ok(None);
    };
    let file = Checkpoint::open(path)?;
    let name = path.file_name().unwrap_or(path.as_os_str());
    Ok(Some(WeightsSource {
        file: name.to_string_lossy().into_owned(),
        sha256: file.sha256().map_err(|kind| file.error(kind))?,
    }))
}

fn embeddings(config: &Config, device: &Device) -> Result<BinEmbeddings, FitError> {
    let text = &config.text;
    let labels: Vec<String> = config.bin.iter().map(|bin| bin.label.clone()).collect();
    if let Some(path) = &text.embeddings {
        return Ok(load_bin_embeddings(path, &labels)?);
    }
    let tower = match &text.weights {
        Some(path) => TextTower::load(path, &config.clip, device)?,
        None => TextTower::random(&text.tower, device)?,
    };
    let prompt = Prompt {
        context: text.context.clone(),
        bins: labels,
        placement: text.placement,
    };
    Ok(bin_embeddings(&tower, &prompt)?)
}

impl Prepared {
    /// The bin embeddings as a tensor: `[M, D]`.
    pub fn bin_tensor(&self, device: &Device) -> Tensor<2> {
        let shape = [self.embeddings.labels.len(), self.embeddings.dim];
        Tensor::from_data(
            TensorData::new(self.embeddings.values.clone(), shape),
            device,
        )
    }

    /// The runtime's estimator for `model`, by which it is measured too.
    ///
    /// # Errors
    /// [`FitError::Estimator`] when a trained value is not finite.
    pub fn estimator(
        &self,
        config: &Config,
        model: &NumClip,
        calibration: Option<Calibration>,
    ) -> Result<Estimator, FitError> {
        let fail = |error: &dyn std::fmt::Display| FitError::Estimator(error.to_string());
        let bins =
            Bins::new(config.bin.clone(), self.embeddings.values.clone()).map_err(|e| fail(&e))?;
        let scale = config.model.head.logit_scale as f32;
        Estimator::new(
            bins,
            model.plain_regressor(),
            scale,
            config.task.range,
            calibration,
        )
        .map_err(|e| fail(&e))
    }
}
