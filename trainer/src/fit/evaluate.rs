//! Measuring a model on labelled images, through the runtime's own estimator.

use burn::module::Module as _;
use burn::tensor::{Device, Tensor, TensorData};
use numclip::estimate::Estimate;
use numclip::metrics::{Metrics, measure};

use super::{FitError, Prepared};
use crate::config::Config;
use crate::data::Loader;
use crate::model::numclip::NumClip;

/// Estimates for a set of images.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// One for each image, in the loader's order.
    pub estimates: Vec<Estimate>,
    /// Labels, in the task's unit.
    pub labels: Vec<f32>,
    /// Positions in the data set.
    pub indices: Vec<usize>,
    /// Measures; none for an empty set.
    pub metrics: Option<Metrics>,
}

/// Embeddings of a set of images.
#[derive(Clone, Debug, Default)]
pub struct Embedded {
    /// `[D]` each, not normalised.
    pub embeddings: Vec<Vec<f32>>,
    /// In the task's unit.
    pub labels: Vec<f32>,
    /// Positions in the data set.
    pub indices: Vec<usize>,
}

/// Runs `model` over all images of `loader`.
///
/// # Errors
/// [`FitError`] when images cannot be loaded or a trained value is not finite.
pub fn evaluate(
    config: &Config,
    prepared: &Prepared,
    model: &NumClip,
    loader: &Loader,
) -> Result<Evaluation, FitError> {
    let estimator = prepared.estimator(config, model, None)?;
    let Embedded {
        embeddings,
        labels,
        indices,
    } = embed_all(config, model, loader)?;
    let estimates: Vec<Estimate> = embeddings
        .iter()
        .map(|embedding| estimator.estimate(embedding))
        .collect();
    let metrics = measure(&config.bin, &estimates, &labels, &config.thresholds());
    Ok(Evaluation {
        estimates,
        labels,
        indices,
        metrics,
    })
}

/// Runs the encoder of `model` over all images of `loader`, on the device that holds it.
///
/// # Errors
/// [`FitError`] when images cannot be loaded.
pub fn embed_all(config: &Config, model: &NumClip, loader: &Loader) -> Result<Embedded, FitError> {
    let holding = model.devices().into_iter().next();
    let device = holding.map_or_else(Device::flex, Device::without_autodiff);
    let size = config.preprocess.size as usize;
    let mut all = Embedded::default();
    for batch in loader.epoch(0, 0) {
        let batch = batch?;
        if batch.is_empty() {
            continue;
        }
        let images = TensorData::new(batch.images, [batch.labels.len(), 3, size, size]);
        let embedded = model.embed(Tensor::from_data(images, &device));
        let [_, dim] = embedded.dims();
        let values: Vec<f32> = embedded.into_data_as::<f32>().iter().collect();
        all.embeddings
            .extend(values.chunks_exact(dim).map(<[f32]>::to_vec));
        all.labels.extend(batch.labels);
        all.indices.extend(batch.indices);
    }
    Ok(all)
}
