//! From an embedding to a number with an interval.

mod calibration;
mod conformal;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bins::Bins;

use calibration::matched;
pub use calibration::{Calibration, Doubt, Usual, spread};
pub use conformal::{Labelled, USUAL_SHARE, calibrate, calibrate_across};

/// What one picture says about the quantity.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// The quantity, in the task's unit, within the task's range.
    pub value: f32,
    /// The most probable bin.
    pub bin: usize,
    /// Probability of every bin, summing to 1.
    pub probabilities: Vec<f32>,
    /// Lower and upper end of the calibrated interval around `value`.
    pub interval: Option<[f32; 2]>,
    /// Why it is not to be relied on, where the bundle knows what is usual.
    pub doubt: Option<Doubt>,
}

/// How bin logits become a number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Regressor {
    /// Σ pᵢ·vᵢ over the value that stands for each bin.
    Expectation {
        /// One value for every bin, in the task's unit.
        values: Vec<f32>,
    },
    /// Soft stagewise regression with shifted bin starts, as in NumCLIP:
    /// Σ pᵢ·sᵢ / max(1 + λ·δᵢ, [`SSR_MIN_DENOMINATOR`]), where
    /// δ = tanh(W₂·relu(W₁·logits + b₁) + b₂).
    Ssr {
        /// One start for every bin, in the task's unit.
        starts: Vec<f32>,
        /// Reach of the shift λ, 0 to 1; the published form has 1.
        lambda: f32,
        /// W₁: `[hidden, bins]`, row-major.
        hidden_weight: Vec<f32>,
        /// b₁: `[hidden]`.
        hidden_bias: Vec<f32>,
        /// W₂: `[bins, hidden]`, row-major.
        shift_weight: Vec<f32>,
        /// b₂: `[bins]`.
        shift_bias: Vec<f32>,
    },
}

/// Everything between an embedding and an estimate.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimator {
    bins: Bins,
    regressor: Regressor,
    logit_scale: f32,
    range: [f32; 2],
    calibration: Option<Calibration>,
}

/// Memory that estimates use one after the other.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    logits: Vec<f32>,
    hidden: Vec<f32>,
    matched: Vec<f32>,
    probabilities: Vec<f32>,
}

/// Parts that do not make an estimator.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{field}: expected {expected}, got {got}")]
pub struct EstimatorError {
    /// The field of the bundle.
    pub field: &'static str,
    /// What may stand there.
    pub expected: String,
    /// What stands there.
    pub got: String,
}

/// The smallest denominator of the SSR regressor: with λ = 1 a shift can bring
/// 1 + λ·δ to zero in 32-bit floats.
pub const SSR_MIN_DENOMINATOR: f32 = 1e-6;

impl Estimator {
    /// Puts the parts together once they fit: after this, estimating cannot fail.
    ///
    /// # Errors
    /// [`EstimatorError`] names the first field that does not fit.
    pub fn new(
        bins: Bins,
        regressor: Regressor,
        logit_scale: f32,
        range: [f32; 2],
        calibration: Option<Calibration>,
    ) -> Result<Self, EstimatorError> {
        regressor.check(bins.as_slice().len())?;
        if !logit_scale.is_finite() || logit_scale <= 0.0 {
            return Err(mismatch("logit_scale", "a positive number", logit_scale));
        }
        if !range.iter().all(|end| end.is_finite()) || range[0] >= range[1] {
            return Err(mismatch(
                "task.range",
                "two finite numbers, ascending",
                format!("{range:?}"),
            ));
        }
        if let Some(calibration) = &calibration {
            calibration.check(bins.as_slice().len())?;
        }
        Ok(Self {
            bins,
            regressor,
            logit_scale,
            range,
            calibration,
        })
    }

    /// The same with another calibration, or none.
    ///
    /// # Errors
    /// [`EstimatorError`] names the field that does not fit.
    pub fn calibrated(self, calibration: Option<Calibration>) -> Result<Self, EstimatorError> {
        let Self {
            bins,
            regressor,
            logit_scale,
            range,
            ..
        } = self;
        Self::new(bins, regressor, logit_scale, range, calibration)
    }

    /// The bins with their embeddings.
    pub fn bins(&self) -> &Bins {
        &self.bins
    }

    /// The estimate for `embedding` (any norm, `bins().dim()` values).
    pub fn estimate(&self, embedding: &[f32]) -> Estimate {
        self.estimate_with(embedding, &mut Scratch::default())
    }

    /// As [`Estimator::estimate`], in memory that is used again.
    pub fn estimate_with(&self, embedding: &[f32], scratch: &mut Scratch) -> Estimate {
        let Scratch {
            logits,
            hidden,
            probabilities,
            matched: place,
        } = scratch;
        place.clear();
        place.extend(matched(self.bins.cosines(embedding), embedding));
        logits.clear();
        let cosines = &place[..place.len() - 1];
        logits.extend(cosines.iter().map(|cosine| cosine * self.logit_scale));
        let mut estimate = self.conclude(logits, hidden, std::mem::take(probabilities));
        let usual = self.calibration.as_ref().and_then(|c| c.usual.as_ref());
        estimate.doubt = usual
            .zip(estimate.interval)
            .and_then(|(usual, interval)| usual.doubt(interval, place));
        estimate
    }

    /// The estimate for `logits`, one for every bin: cosine times logit scale.
    /// It is never in doubt: logits do not tell an embedding's norm.
    pub fn estimate_logits(&self, logits: &[f32]) -> Estimate {
        self.conclude(logits, &mut Vec::new(), Vec::new())
    }

    /// The estimate, with its distribution in `probabilities`.
    fn conclude(
        &self,
        logits: &[f32],
        hidden: &mut Vec<f32>,
        mut probabilities: Vec<f32>,
    ) -> Estimate {
        softmax_to(&mut probabilities, logits);
        let [low, high] = self.range;
        let value = self
            .regressor
            .value_with(logits, &probabilities, hidden)
            .clamp(low, high);
        let interval = self.calibration.as_ref().map(|calibration| {
            let spread = spread(self.bins.as_slice(), &probabilities);
            calibration.interval(value, spread, self.range)
        });
        Estimate {
            value,
            bin: argmax(&probabilities),
            probabilities,
            interval,
            doubt: None,
        }
    }
}

impl Estimate {
    /// Puts the estimate in doubt if its interval is wider than `width`, in the
    /// task's unit, and it is not already.
    pub fn doubt_beyond(&mut self, width: f32) {
        let is_wide = self.width().is_some_and(|own| own > width);
        self.doubt = self.doubt.or(is_wide.then_some(Doubt::Wide));
    }

    /// Whether the interval holds `label`.
    pub fn covers(&self, label: f32) -> bool {
        self.interval
            .is_some_and(|[low, high]| (low..=high).contains(&label))
    }

    /// Width of the interval, in the task's unit.
    pub fn width(&self) -> Option<f32> {
        self.interval.map(|[low, high]| high - low)
    }
}

impl Scratch {
    /// Takes the memory of an estimate that is done with, for the next.
    pub fn recycle(&mut self, estimate: Estimate) {
        self.probabilities = estimate.probabilities;
    }
}

impl Regressor {
    /// The number that `logits` and their softmax give, before it is clamped
    /// to the task's range. The regressor must have passed [`Regressor::check`].
    pub fn value(&self, logits: &[f32], probabilities: &[f32]) -> f32 {
        self.value_with(logits, probabilities, &mut Vec::new())
    }

    fn value_with(&self, logits: &[f32], probabilities: &[f32], hidden: &mut Vec<f32>) -> f32 {
        match self {
            Self::Expectation { values } => dot(probabilities, values),
            Self::Ssr {
                starts,
                lambda,
                hidden_weight,
                hidden_bias,
                shift_weight,
                shift_bias,
            } => {
                hidden.clear();
                hidden.extend(affine(hidden_weight, hidden_bias, logits).map(|x| x.max(0.0)));
                let shifts = affine(shift_weight, shift_bias, hidden).map(f32::tanh);
                let anchors = starts
                    .iter()
                    .zip(shifts)
                    .map(|(start, shift)| start / (1.0 + lambda * shift).max(SSR_MIN_DENOMINATOR));
                probabilities
                    .iter()
                    .zip(anchors)
                    .map(|(p, anchor)| p * anchor)
                    .sum()
            }
        }
    }

    /// Checks that every part has the length that `bins` bins ask for.
    ///
    /// # Errors
    /// [`EstimatorError`] names the first part that does not fit.
    pub fn check(&self, bins: usize) -> Result<(), EstimatorError> {
        match self {
            Self::Expectation { values } => check_values("regressor.values", values, bins),
            Self::Ssr {
                starts,
                lambda,
                hidden_weight,
                hidden_bias,
                shift_weight,
                shift_bias,
            } => {
                let hidden = hidden_bias.len();
                if !(0.0..=1.0).contains(lambda) {
                    return Err(mismatch("regressor.lambda", "0 to 1", lambda));
                }
                check_values("regressor.starts", starts, bins)?;
                check_values("regressor.hidden_bias", hidden_bias, hidden.max(1))?;
                check_values("regressor.hidden_weight", hidden_weight, hidden * bins)?;
                check_values("regressor.shift_weight", shift_weight, hidden * bins)?;
                check_values("regressor.shift_bias", shift_bias, bins)
            }
        }
    }
}

/// Softmax of `logits`, safe for any finite values.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let mut powers = Vec::new();
    softmax_to(&mut powers, logits);
    powers
}

fn softmax_to(powers: &mut Vec<f32>, logits: &[f32]) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    powers.clear();
    powers.extend(logits.iter().map(|logit| (logit - highest).exp()));
    let sum: f32 = powers.iter().sum();
    powers.iter_mut().for_each(|power| *power /= sum);
}

fn argmax(values: &[f32]) -> usize {
    let better = |best: usize, index: usize| {
        if values[index] > values[best] {
            index
        } else {
            best
        }
    };
    (0..values.len()).fold(0, better)
}

/// weight · input + bias, row by row.
fn affine<'a>(
    weight: &'a [f32],
    bias: &'a [f32],
    input: &'a [f32],
) -> impl Iterator<Item = f32> + 'a {
    let rows = weight.chunks_exact(input.len());
    rows.zip(bias).map(|(row, bias)| dot(row, input) + bias)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn check_values(field: &'static str, values: &[f32], len: usize) -> Result<(), EstimatorError> {
    if values.len() != len {
        return Err(mismatch(field, format!("{len} numbers"), values.len()));
    }
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(mismatch(field, "finite numbers", value)),
        None => Ok(()),
    }
}

fn mismatch(field: &'static str, expected: impl ToString, got: impl ToString) -> EstimatorError {
    EstimatorError {
        field,
        expected: expected.to_string(),
        got: got.to_string(),
    }
}
