//! The gradients of one step, over one batch or several.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Tensor, TensorData};

use super::objective::Objective;
use super::teacher::Lesson;
use crate::config::Config;
use crate::data::Batch;
use crate::model::numclip::NumClip;
use crate::optim::{read_together, scale_gradients};

/// What the batches of a step give together, each weighted by its images.
///
/// A loss that is a mean over images (cross-entropy, value) has the gradient of one large batch,
/// but for rounding. Text to image compares the images of a batch with each other: it is the mean
/// over the batches. Nothing of a step outlives it, so a run resumes between steps.
pub struct Pass<'a> {
    config: &'a Config,
    objective: &'a Objective,
    device: &'a Device,
    sum: GradientsAccumulator<NumClip>,
    losses: f64,
    /// Regressed values so far, in the task's unit.
    pub values: Vec<f32>,
    /// Their labels.
    pub labels: Vec<f32>,
}

/// What some batches of a step gave.
pub struct Part {
    /// Sum of the losses of the images.
    pub losses: f64,
    /// Gradients of that sum over the images of a whole step.
    pub gradients: GradientsParams,
    /// Regressed values, in the task's unit.
    pub values: Vec<f32>,
    /// Their labels.
    pub labels: Vec<f32>,
}

impl<'a> Pass<'a> {
    /// Nothing yet.
    pub fn new(config: &'a Config, objective: &'a Objective, device: &'a Device) -> Self {
        Self {
            config,
            objective,
            device,
            sum: GradientsAccumulator::new(),
            losses: 0.0,
            values: Vec::new(),
            labels: Vec::new(),
        }
    }

    /// Adds a batch, forward and backward; with what a teacher says of it and of unlabelled images
    /// that pass through the model together with it.
    pub fn add(&mut self, model: &NumClip, batch: &Batch, lesson: Option<&Lesson>) {
        let size = self.config.preprocess.size as usize;
        let beside = lesson.map_or(&[][..], |lesson| &lesson.images);
        let images = [&batch.images, beside].concat();
        let count = images.len() / (3 * size * size);
        let images = TensorData::new(images, [count, 3, size, size]);
        let output = model.forward(Tensor::from_data(images, self.device));
        let values = output.values.clone().narrow(0, 0, batch.len());
        let loss = self.objective.loss(output, batch, lesson, self.device);
        let share = batch.len() as f64 / self.full() as f64;
        let gradients = loss.clone().mul_scalar(share).backward();
        self.sum
            .accumulate(model, GradientsParams::from_grads(gradients, model));
        // Read last: a GPU has the way back to compute meanwhile.
        self.values
            .extend(values.into_data_as::<f32>().iter::<f32>());
        self.labels.extend(&batch.labels);
        self.losses += f64::from(loss.into_scalar::<f32>()) * batch.len() as f64;
    }

    /// Adds what another device computed of the same step, for the parameters of `model`.
    pub fn merge(&mut self, model: &NumClip, other: Pass<'_>) {
        let part = other.into_part();
        let gradients = part.gradients.to_device(self.device, model);
        self.add_part(model, Part { gradients, ..part });
    }

    /// Adds what another machine computed of the same step, as gradients on this device.
    pub fn add_part(&mut self, model: &NumClip, mut part: Part) {
        self.values.append(&mut part.values);
        self.labels.append(&mut part.labels);
        self.losses += part.losses;
        self.sum.accumulate(model, part.gradients);
    }

    /// What was computed so far, to be added elsewhere.
    pub fn into_part(mut self) -> Part {
        Part {
            losses: self.losses,
            gradients: self.sum.grads(),
            values: self.values,
            labels: self.labels,
        }
    }

    /// Where the gradients are.
    pub fn device(&self) -> &Device {
        self.device
    }

    /// Mean loss over the images so far.
    pub fn loss(&self) -> f64 {
        self.losses / self.labels.len() as f64
    }

    /// Gradients of the mean loss.
    pub fn gradients(&mut self, model: &NumClip) -> GradientsParams {
        let mut gradients = self.sum.grads();
        if self.labels.len() != self.full() {
            let missing = self.full() as f64 / self.labels.len() as f64;
            scale_gradients(model, &mut gradients, missing);
        }
        gradients
    }

    /// Images of a whole step.
    fn full(&self) -> usize {
        self.config.train.batch_size * self.config.train.accumulate
    }
}

/// Whether every weight and statistic is a finite number.
pub fn is_finite(model: &NumClip) -> bool {
    struct Zeros(Vec<Tensor<1>>);
    impl ModuleVisitor for Zeros {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            // 0 times a number is 0, 0 times infinity is not.
            self.0.push(param.val().mul_scalar(0.0).sum());
        }
    }
    let mut zeros = Zeros(Vec::new());
    model.visit(&mut zeros);
    read_together(zeros.0).into_iter().all(|zero| zero == 0.0)
}

#[cfg(test)]
mod tests;
