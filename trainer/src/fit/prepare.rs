//! What a run needs before its first step.

use burn::tensor::{Device, Tensor, TensorData};
use numclip::bins::Bins;
use numclip::estimate::{Calibration, Estimator};

use super::FitError;
use crate::config::Config;
use crate::data::{Dataset, Splits};
use crate::model::numclip::NumClip;
use crate::model::weights;
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
    let mut encoder = config
        .encoder(prepared.embeddings.dim)
        .init(config.train.seed, device)?;
    if let Some(path) = &config.model.init {
        (encoder, _) = weights::load(encoder, path)?;
    }
    Ok(config.model.head.build(encoder, &config.bin, device))
}

fn embeddings(config: &Config, device: &Device) -> Result<BinEmbeddings, FitError> {
    let text = &config.text;
    let labels: Vec<String> = config.bin.iter().map(|bin| bin.label.clone()).collect();
    if let Some(path) = &text.embeddings {
        return Ok(load_bin_embeddings(path, &labels)?);
    }
    let tower = match &text.weights {
        Some(path) => TextTower::load(path, None, text.tower.activation, device)?,
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
