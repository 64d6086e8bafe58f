//! Batch normalisation over the statistics of the batch, and activation.
//!
//! `y = clamp((x − μ)·γ/√(σ² + ε) + β)` per channel, with mean μ and biased variance σ² over
//! images, rows and columns (Ioffe & Szegedy, ICML 2015).

use rayon::prelude::*;

use super::simd::{self, MaskedAffine, MaskedMoments, Moments, Scaled};

/// Sizes of a batch normalisation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Norm {
    /// Number of channels.
    pub channels: usize,
    /// Height × width.
    pub area: usize,
    /// Added to the variance.
    pub epsilon: f64,
    /// What the activation clamps to.
    pub bounds: [f32; 2],
}

/// What the forward pass computes.
#[derive(Debug, Clone)]
pub(super) struct Normalised {
    /// Like the input.
    pub output: Vec<f32>,
    /// Mean of each channel.
    pub mean: Vec<f32>,
    /// Biased variance of each channel.
    pub variance: Vec<f32>,
}

/// Gradients of a batch normalisation.
#[derive(Debug, Clone)]
pub(super) struct Gradients {
    /// Like the input.
    pub input: Vec<f32>,
    /// Of the scale γ.
    pub gamma: Vec<f32>,
    /// Of the offset β.
    pub beta: Vec<f32>,
}

impl Norm {
    /// Normalises `x` `[N, C, H, W]` with scale `gamma` and offset `beta` `[C]`.
    pub(super) fn forward(&self, x: &[f32], gamma: &[f32], beta: &[f32]) -> Normalised {
        let count = self.count(x);
        let channels = (0..self.channels).into_par_iter();
        let moments: Vec<[f32; 2]> = channels.map(|c| self.moments(x, c, count)).collect();
        let (mean, variance): (Vec<f32>, Vec<f32>) = moments.iter().map(|&[m, v]| (m, v)).unzip();
        let mut output = vec![0.0; x.len()];
        let planes = output
            .par_chunks_mut(self.area)
            .zip(x.par_chunks(self.area))
            .enumerate();
        planes
            .with_min_len(MIN_PLANES)
            .for_each(|(plane, (result, x))| {
                let c = plane % self.channels;
                let scale = gamma[c] * self.inverse_deviation(variance[c]);
                let shift = beta[c] - mean[c] * scale;
                simd::run(Scaled {
                    x,
                    scale,
                    shift,
                    bounds: self.bounds,
                    result,
                });
            });
        Normalised {
            output,
            mean,
            variance,
        }
    }

    /// The gradients for the gradient of the output, of which `y` is the value.
    pub(super) fn backward(
        &self,
        x: &[f32],
        gamma: &[f32],
        [mean, variance]: [&[f32]; 2],
        y: &[f32],
        gradient: &[f32],
    ) -> Gradients {
        let count = self.count(x);
        let sums: Vec<[f32; 2]> = (0..self.channels)
            .into_par_iter()
            .map(|c| self.masked_moments(x, y, gradient, c, mean[c]))
            .collect();
        let mut input = vec![0.0; x.len()];
        input
            .par_chunks_mut(self.area)
            .zip(x.par_chunks(self.area))
            .zip(y.par_chunks(self.area).zip(gradient.par_chunks(self.area)))
            .enumerate()
            .with_min_len(MIN_PLANES)
            .for_each(|(plane, ((result, x), (output, gradient)))| {
                let c = plane % self.channels;
                let inverse = self.inverse_deviation(variance[c]);
                let scale = gamma[c] * inverse;
                let [sum, product] = sums[c].map(|sum| sum / count as f32);
                simd::run(MaskedAffine {
                    gradient,
                    output,
                    x,
                    bounds: self.bounds,
                    center: mean[c],
                    scale,
                    slope: -scale * inverse * inverse * product,
                    shift: -scale * sum,
                    result,
                });
            });
        let scaled = |(&[_, product], &v): (&[f32; 2], &f32)| product * self.inverse_deviation(v);
        let gamma = sums.iter().zip(variance).map(scaled).collect();
        Gradients {
            input,
            gamma,
            beta: sums.iter().map(|&[sum, _]| sum).collect(),
        }
    }

    /// Mean and variance of one channel; the variance around the mean, in a second pass.
    fn moments(&self, x: &[f32], channel: usize, count: usize) -> [f32; 2] {
        let total = |center: f32, power: usize| -> f64 {
            let planes = self.planes(x, channel);
            planes
                .map(|x| f64::from(simd::run(Moments { x, center })[power]))
                .sum()
        };
        let mean = total(0.0, 0) / count as f64;
        [mean as f32, (total(mean as f32, 1) / count as f64) as f32]
    }

    fn masked_moments(
        &self,
        x: &[f32],
        y: &[f32],
        gradient: &[f32],
        channel: usize,
        center: f32,
    ) -> [f32; 2] {
        let [x, y, gradient] = [x, y, gradient].map(|values| self.planes(values, channel));
        let mut sums = [0.0; 2];
        for ((x, output), gradient) in x.zip(y).zip(gradient) {
            let bounds = self.bounds;
            let plane = simd::run(MaskedMoments {
                gradient,
                output,
                x,
                center,
                bounds,
            });
            sums = [0, 1].map(|i| sums[i] + f64::from(plane[i]));
        }
        sums.map(|sum| sum as f32)
    }

    /// One channel of every image.
    fn planes<'a>(&self, values: &'a [f32], channel: usize) -> impl Iterator<Item = &'a [f32]> {
        values
            .chunks_exact(self.area)
            .skip(channel)
            .step_by(self.channels)
    }

    fn inverse_deviation(&self, variance: f32) -> f32 {
        (f64::from(variance) + self.epsilon).sqrt().recip() as f32
    }

    /// Values per channel.
    fn count(&self, x: &[f32]) -> usize {
        x.len() / self.channels
    }
}

/// Planes that a thread takes at a time, at least.
const MIN_PLANES: usize = 16;
