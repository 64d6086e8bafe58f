//! How far an estimate is to be trusted: its interval, and when it is in doubt.

use serde::{Deserialize, Serialize};

use super::{EstimatorError, check_values, mismatch};
use crate::bins::Bin;

/// Split-conformal interval, normalised by the spread of the bin distribution
/// (Lei et al., 2018, §5.2): value ± quantile · max(spread, floor). A floor
/// above every spread gives intervals of one width.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Share of labels that the interval is meant to hold, 0 to 1.
    pub coverage: f32,
    /// Multiple of the spread that reaches this share.
    pub quantile: f32,
    /// Smallest spread, in the task's unit.
    pub floor: f32,
    /// Groups of pictures that the interval was fitted on, each counted as
    /// one; 0 where pictures were taken to be independent, or it is not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub groups: usize,
    /// What is usual; without it no estimate is in doubt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usual: Option<Usual>,
}

/// What labelled pictures showed; an estimate outside of it is in doubt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usual {
    /// Share of such pictures within each of the two limits, 0 to 1.
    pub share: f32,
    /// Width of the widest usual interval, in the task's unit.
    pub width: f32,
    /// Largest usual Mahalanobis distance of a picture's match (the cosines to
    /// all bins, then the logarithm of the embedding's norm) from the mean.
    pub distance: f32,
    /// The mean match: `[bins + 1]`.
    pub mean: Vec<f32>,
    /// Inverse of the Cholesky factor of the covariance: rows of a lower
    /// triangle, one after the other.
    pub whiten: Vec<f32>,
}

/// Why an estimate is not to be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doubt {
    /// Its interval is wider than is usual, or than was asked for.
    Wide,
    /// The picture matches the bins in a way that no labelled picture did.
    Unfamiliar,
}

impl Calibration {
    /// The interval around `value` where the distribution over the bins has
    /// this [`spread`], within `range`; all in the task's unit.
    pub fn interval(&self, value: f32, spread: f32, [low, high]: [f32; 2]) -> [f32; 2] {
        let half = self.quantile * spread.max(self.floor);
        [(value - half).max(low), (value + half).min(high)]
    }

    pub(super) fn check(&self, bins: usize) -> Result<(), EstimatorError> {
        check_share("interval.coverage", self.coverage)?;
        check_limit("interval.quantile", self.quantile)?;
        check_limit("interval.floor", self.floor)?;
        self.usual
            .as_ref()
            .map_or(Ok(()), |usual| usual.check(bins))
    }
}

impl Usual {
    /// Why an estimate with this interval and this match is in doubt, if it is.
    pub(super) fn doubt(&self, [low, high]: [f32; 2], matched: &[f32]) -> Option<Doubt> {
        if self.distance_of(matched) > self.distance {
            return Some(Doubt::Unfamiliar);
        }
        (high - low > self.width).then_some(Doubt::Wide)
    }

    /// Mahalanobis distance of a match from the mean.
    pub(super) fn distance_of(&self, matched: &[f32]) -> f32 {
        let centred = || matched.iter().zip(&self.mean).map(|(x, mean)| x - mean);
        let mut start = 0;
        let mut sum = 0.0;
        for row in 0..self.mean.len() {
            let weights = &self.whiten[start..=start + row];
            let value: f32 = weights.iter().zip(centred()).map(|(w, x)| w * x).sum();
            sum += value * value;
            start += row + 1;
        }
        sum.sqrt()
    }

    fn check(&self, bins: usize) -> Result<(), EstimatorError> {
        let len = bins + 1;
        check_share("interval.usual.share", self.share)?;
        check_limit("interval.usual.width", self.width)?;
        check_limit("interval.usual.distance", self.distance)?;
        check_values("interval.usual.mean", &self.mean, len)?;
        check_values("interval.usual.whiten", &self.whiten, len * (len + 1) / 2)
    }
}

/// What a picture's match is: its cosines to all bins, then the logarithm of
/// its embedding's norm, which sinks where a network sees little.
pub(super) fn matched(
    cosines: impl Iterator<Item = f32>,
    embedding: &[f32],
) -> impl Iterator<Item = f32> {
    let squares: f32 = embedding.iter().map(|value| value * value).sum();
    cosines.chain([squares.sqrt().max(f32::MIN_POSITIVE).ln()])
}

/// Standard deviation of the bin centres under `probabilities`, in the task's unit.
pub fn spread(bins: &[Bin], probabilities: &[f32]) -> f32 {
    let weighted = |f: &dyn Fn(f32) -> f32| -> f32 {
        bins.iter()
            .zip(probabilities)
            .map(|(bin, p)| p * f(bin.center()))
            .sum()
    };
    let mean = weighted(&|center| center);
    weighted(&|center| (center - mean) * (center - mean))
        .max(0.0)
        .sqrt()
}

fn check_share(field: &'static str, value: f32) -> Result<(), EstimatorError> {
    match (0.0..=1.0).contains(&value) {
        true => Ok(()),
        false => Err(mismatch(field, "0 to 1", value)),
    }
}

fn check_limit(field: &'static str, value: f32) -> Result<(), EstimatorError> {
    match value.is_finite() && value >= 0.0 {
        true => Ok(()),
        false => Err(mismatch(field, "a number that is not negative", value)),
    }
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
fn is_zero(value: &usize) -> bool {
    *value == 0
}
