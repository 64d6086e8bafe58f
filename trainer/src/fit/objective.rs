//! The loss of a batch: the terms that the task file weights.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::config::{Config, LossWeights};
use crate::data::{Batch, Weighting};
use crate::loss::{
    absolute_error, cross_entropy, fcrc_image_to_text, fcrc_text_to_image, kl_text_to_image,
};
use crate::model::numclip::Output;

/// Weighted sum of the loss terms.
pub struct Objective {
    weights: LossWeights,
    /// Weight of each bin, where the task file asks for it.
    bin_weights: Option<Vec<f32>>,
}

impl Objective {
    /// The objective for training images of which `counts` fall into each bin.
    pub fn new(config: &Config, counts: &[usize]) -> Self {
        let weighting = config.train.weighting;
        let bin_weights = (weighting != Weighting::None).then(|| weighting.weights(counts));
        Self {
            weights: config.train.loss,
            bin_weights,
        }
    }

    /// The loss of `output` against the labels of `batch`: `[1]`.
    pub fn loss(&self, output: Output, batch: &Batch, device: &Device) -> Tensor<1> {
        let Output { logits, values } = output;
        let bins: Vec<i32> = batch.bins.iter().map(|&bin| bin as i32).collect();
        let bins = Tensor::<1, Int>::from_data(TensorData::new(bins, [batch.len()]), device);
        let labels = vector(&batch.labels, device);
        let per_bin = self.bin_weights.as_ref();
        let per_image = per_bin.map(|w| batch.bins.iter().map(|&bin| w[bin]).collect::<Vec<_>>());
        let weights = &self.weights;
        let terms: [(f64, &dyn Fn() -> Tensor<1>); 5] = [
            (weights.image_to_text, &|| {
                fcrc_image_to_text(logits.clone(), bins.clone())
            }),
            (weights.text_to_image, &|| {
                fcrc_text_to_image(logits.clone(), bins.clone())
            }),
            (weights.cross_entropy, &|| {
                cross_entropy(
                    logits.clone(),
                    bins.clone(),
                    per_bin.map(|w| vector(w, device)),
                )
            }),
            (weights.kl, &|| {
                kl_text_to_image(logits.clone(), bins.clone())
            }),
            (weights.value, &|| {
                let per_image = per_image.as_ref().map(|w| vector(w, device));
                absolute_error(values.clone(), labels.clone(), per_image)
            }),
        ];
        let used = terms.into_iter().filter(|(weight, _)| *weight > 0.0);
        used.map(|(weight, term)| term().mul_scalar(weight))
            .reduce(|sum, term| sum + term)
            .unwrap_or_else(|| Tensor::zeros([1], device))
    }
}

fn vector(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}
