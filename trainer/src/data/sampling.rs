//! Which samples an epoch shows, in which order, and with which weight.

use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Order and frequency of the samples of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Sampling {
    /// Every sample once, in the given order.
    Sequential,
    /// Every sample once, in random order.
    #[default]
    Shuffle,
    /// As many draws as samples, each with a frequency of (size of its
    /// bin)^−power: 0 is [`Sampling::Shuffle`], 1 shows all bins equally often.
    Balanced {
        /// Strength, 0 to 1.
        power: f32,
    },
}

/// Weight of a bin in the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// All images count the same.
    #[default]
    None,
    /// All bins count the same: one over the bin's size.
    InverseFrequency,
    /// Half way: one over the root of the bin's size.
    SqrtInverse,
}

impl Weighting {
    /// Weight for each bin, from the number of training images in it.
    ///
    /// Scaled so that the mean over the images is 1; 0 for an empty bin.
    pub fn weights(self, counts: &[usize]) -> Vec<f32> {
        let power = match self {
            Self::None => 0.0,
            Self::InverseFrequency => 1.0,
            Self::SqrtInverse => 0.5,
        };
        let raw: Vec<f32> = counts.iter().map(|&n| rarity(n, power)).collect();
        let images: usize = counts.iter().sum();
        let total: f32 = counts.iter().zip(&raw).map(|(&n, w)| n as f32 * w).sum();
        raw.iter()
            .map(|w| w * images as f32 / total.max(f32::MIN_POSITIVE))
            .collect()
    }
}

impl Sampling {
    /// Positions 0 to `bins.len()` of one epoch, where `bins` holds the bin of
    /// each sample. As many as there are samples; they depend on the seed and
    /// the epoch alone.
    pub fn order(self, bins: &[usize], seed: u64, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..bins.len()).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(epoch);
        match self {
            Self::Sequential => {}
            Self::Shuffle => order.shuffle(&mut rng),
            Self::Balanced { power } => {
                order.shuffle(&mut rng);
                // Side by side, the samples of a bin share its rounding.
                order.sort_by_key(|&sample| bins[sample]);
                order = spread_draws(&order, &frequencies(bins, power), rng.random());
                order.shuffle(&mut rng);
            }
        }
        order
    }
}

fn rarity(count: usize, power: f32) -> f32 {
    match count {
        0 => 0.0,
        n => (n as f32).powf(-power),
    }
}

/// Expected number of draws of each sample; they add up to the number of
/// samples.
fn frequencies(bins: &[usize], power: f32) -> Vec<f64> {
    let mut counts = vec![0; bins.iter().max().map_or(0, |last| last + 1)];
    bins.iter().for_each(|&bin| counts[bin] += 1);
    let raw: Vec<f64> = bins
        .iter()
        .map(|&bin| f64::from(rarity(counts[bin], power)))
        .collect();
    let scale = bins.len() as f64 / raw.iter().sum::<f64>();
    raw.iter().map(|f| f * scale).collect()
}

/// Systematic draws: marks one apart, starting at `offset` (0 to 1), on the
/// samples laid end to end, each as long as its frequency. A sample is drawn
/// its expected number of times, rounded down or up.
fn spread_draws(order: &[usize], frequencies: &[f64], offset: f64) -> Vec<usize> {
    let mut drawn = Vec::with_capacity(order.len());
    let mut end = 0.0;
    for &sample in order {
        end += frequencies[sample];
        while (drawn.len() as f64) + offset < end && drawn.len() < order.len() {
            drawn.push(sample);
        }
    }
    // Rounding may cost the last mark.
    while let Some(&last) = order.last().filter(|_| drawn.len() < order.len()) {
        drawn.push(last);
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bins() -> Vec<usize> {
        (0..100)
            .map(|i| {
                if i < 80 {
                    0
                } else if i < 95 {
                    1
                } else {
                    2
                }
            })
            .collect()
    }

    fn shown(order: &[usize], bins: &[usize]) -> Vec<usize> {
        let mut shown = vec![0; 3];
        order.iter().for_each(|&sample| shown[bins[sample]] += 1);
        shown
    }

    #[test]
    fn shuffle_shows_every_sample_once() {
        let mut order = Sampling::Shuffle.order(&bins(), 1, 0);
        assert_ne!(order, Sampling::Sequential.order(&bins(), 1, 0));
        order.sort_unstable();
        assert_eq!(order, Sampling::Sequential.order(&bins(), 1, 0));
    }

    #[test]
    fn epochs_and_seeds_differ_but_repeat() {
        for sampling in [Sampling::Shuffle, Sampling::Balanced { power: 1.0 }] {
            let first = sampling.order(&bins(), 1, 0);
            assert_eq!(first, sampling.order(&bins(), 1, 0));
            assert_ne!(first, sampling.order(&bins(), 1, 1));
            assert_ne!(first, sampling.order(&bins(), 2, 0));
        }
    }

    #[test]
    fn balanced_shows_bins_equally_often() {
        let order = Sampling::Balanced { power: 1.0 }.order(&bins(), 3, 0);
        assert_eq!(order.len(), 100);
        assert!(shown(&order, &bins()).iter().all(|n| (32..=34).contains(n)));
        let none = Sampling::Balanced { power: 0.0 }.order(&bins(), 3, 0);
        assert_eq!(shown(&none, &bins()), [80, 15, 5]);
    }

    #[test]
    fn weights_have_mean_one_over_the_images() {
        let counts = [80, 15, 5, 0];
        for weighting in [
            Weighting::None,
            Weighting::InverseFrequency,
            Weighting::SqrtInverse,
        ] {
            let weights = weighting.weights(&counts);
            let mean = counts
                .iter()
                .zip(&weights)
                .map(|(&n, w)| n as f32 * w)
                .sum::<f32>()
                / 100.0;
            assert!((mean - 1.0).abs() < 1e-5, "{weighting:?}: {mean}");
        }
        let inverse = Weighting::InverseFrequency.weights(&counts);
        assert!((inverse[2] / inverse[0] - 16.0).abs() < 1e-3);
        assert_eq!(inverse[3], 0.0);
        let root = Weighting::SqrtInverse.weights(&counts);
        assert!((root[2] / root[0] - 4.0).abs() < 1e-3);
    }

    #[test]
    fn nothing_to_draw() {
        assert!(
            Sampling::Balanced { power: 1.0 }
                .order(&[], 0, 0)
                .is_empty()
        );
    }
}
