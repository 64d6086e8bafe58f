//! Fine-tuning with the rounding of int8 inside.
//!
//! The float network is the teacher: on augmented training images the quantised one learns to give
//! the same embeddings and the same distribution over the bins. Labels are not needed, and what the
//! float network learned of them is not learned twice.

use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};

use super::ExportError;
use crate::config::Config;
use crate::data::Batch;
use crate::fit::{FitError, Prepared, training_loader};
use crate::loss::{embedding_distance, softened_divergence};
use crate::model::head::cosine_logits;
use crate::model::numclip::NumClip;
use crate::optim::{GroupedOptimizer, LrGroup, OptimConfig};
use crate::quantize::aware::AwareNet;
use crate::quantize::quantized::Quantized;

/// Learning rate of weights and biases at the start, in levels; it falls to zero.
const LEVELS: f64 = 5e-3;
/// Learning rate of the steps' logarithms.
const STEPS: f64 = 2e-4;

/// What the network is trained by.
pub struct Lessons<'a> {
    /// Task of the run.
    pub config: &'a Config,
    /// Its data.
    pub prepared: &'a Prepared,
    /// The float network.
    pub teacher: &'a NumClip,
}

impl Lessons<'_> {
    /// Trains `start` for some epochs; `seen` gets the network after each of them.
    ///
    /// # Errors
    /// [`ExportError`] when images cannot be loaded, or what `seen` says.
    pub fn fine_tune(
        &self,
        start: Quantized,
        epochs: usize,
        mut seen: impl FnMut(usize, Quantized) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let (config, prepared) = (self.config, self.prepared);
        let images = (config.train.batch_size, config.train.seed);
        let loader = training_loader(config, prepared, &prepared.splits.train, images, None)?;
        let mut net = AwareNet::new(start, &Device::flex().autodiff());
        let mut optimizer = GroupedOptimizer::new(&rates(), &net).map_err(FitError::from)?;
        let steps = (epochs * loader.steps()).max(1) as f64;
        let mut step = 0;
        for epoch in 0..epochs {
            for batch in loader.epoch(epoch as u64, 0) {
                let loss = self.loss(&net, batch.map_err(FitError::from)?)?;
                let gradients = GradientsParams::from_grads(loss.backward(), &net);
                net = optimizer.step(1.0 - f64::from(step) / steps, net, gradients);
                step += 1;
            }
            seen(epoch + 1, net.quantized())?;
        }
        Ok(())
    }

    fn loss(&self, net: &AwareNet, batch: Batch) -> Result<Tensor<1>, ExportError> {
        let (learning, plain) = (Device::flex().autodiff(), Device::flex());
        let size = self.config.preprocess.size as usize;
        let images = TensorData::new(batch.images, [batch.labels.len(), 3, size, size]);
        let teacher = self
            .teacher
            .embed(Tensor::from_data(images.clone(), &plain));
        let teacher: Tensor<2> = Tensor::from_data(teacher.into_data(), &learning);
        let student = net.forward(Tensor::from_data(images, &learning));
        let bins = self.prepared.bin_embeddings(self.teacher)?;
        let shape = [bins.labels.len(), bins.dim];
        let bins: Tensor<2> = Tensor::from_data(TensorData::new(bins.values, shape), &learning);
        let scale = self.config.model.head.logit_scale;
        let logits = |rows: &Tensor<2>| cosine_logits(rows.clone(), bins.clone(), scale);
        let divergence = softened_divergence(logits(&student), logits(&teacher), 1.0);
        Ok(embedding_distance(student, teacher) + divergence)
    }
}

fn rates() -> OptimConfig {
    OptimConfig {
        lr: STEPS,
        weight_decay: 0.0,
        groups: vec![LrGroup {
            path: "convs".into(),
            lr: LEVELS,
            from_epoch: 1,
        }],
        ..OptimConfig::default()
    }
}
