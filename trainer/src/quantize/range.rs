//! Which part of the values seen a tensor's 256 levels are to cover.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::affine::Affine;

/// How a range is chosen from what was observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RangeMethod {
    /// From the lowest to the highest value.
    MinMax,
    /// The ends of single images, averaged exponentially in their order.
    MovingAverage {
        /// Share of the average that each further image keeps, 0 to below 1.
        #[serde(default = "default_momentum")]
        momentum: f64,
    },
    /// Leaves out `1 - keep` of the values in all.
    Percentile {
        /// Share of values kept, 0.9 to 1.
        #[serde(default = "default_keep")]
        keep: f64,
    },
    /// The range whose quantised values lose the least information: least Kullback-Leibler
    /// divergence between the two histograms (Migacz, "8-bit inference with TensorRT", GTC 2017).
    Entropy,
    /// The range whose quantised values have the least mean squared error.
    #[default]
    Mse,
}

fn default_momentum() -> f64 {
    0.95
}

fn default_keep() -> f64 {
    0.9999
}

impl RangeMethod {
    /// Every method, with its default setting.
    pub fn all() -> [Self; 5] {
        let (momentum, keep) = (default_momentum(), default_keep());
        [
            Self::MinMax,
            Self::MovingAverage { momentum },
            Self::Percentile { keep },
            Self::Entropy,
            Self::Mse,
        ]
    }

    /// Whether its setting makes sense.
    pub fn is_valid(self) -> bool {
        match self {
            Self::MovingAverage { momentum } => (0.0..1.0).contains(&momentum),
            Self::Percentile { keep } => (0.9..=1.0).contains(&keep),
            Self::MinMax | Self::Entropy | Self::Mse => true,
        }
    }
}

/// As on the command line: `min-max`, `moving-average`, `percentile=0.9999`, `entropy`, `mse`.
impl fmt::Display for RangeMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MinMax => f.write_str("min-max"),
            Self::MovingAverage { momentum } => write!(f, "moving-average={momentum}"),
            Self::Percentile { keep } => write!(f, "percentile={keep}"),
            Self::Entropy => f.write_str("entropy"),
            Self::Mse => f.write_str("mse"),
        }
    }
}

impl FromStr for RangeMethod {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, setting) = match text.split_once('=') {
            Some((name, setting)) => (name, Some(setting)),
            None => (text, None),
        };
        let number = |default: f64| match setting {
            Some(setting) => setting
                .parse::<f64>()
                .map_err(|_| format!("{setting:?} is no number")),
            None => Ok(default),
        };
        let method = match (name, setting) {
            ("min-max", None) => Self::MinMax,
            ("entropy", None) => Self::Entropy,
            ("mse", None) => Self::Mse,
            ("moving-average", _) => Self::MovingAverage {
                momentum: number(default_momentum())?,
            },
            ("percentile", _) => Self::Percentile {
                keep: number(default_keep())?,
            },
            _ => {
                return Err(format!(
                    "{text:?} is none of min-max, moving-average[=0 to below 1], \
                     percentile[=0.9 to 1], entropy, mse"
                ));
            }
        };
        match method.is_valid() {
            true => Ok(method),
            false => Err(format!(
                "{text:?} is out of bounds: a moving average keeps 0 to below 1, a percentile 0.9 to 1"
            )),
        }
    }
}

/// What calibration saw of one tensor's values.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Lowest and highest value of each image, in the order of the images.
    pub extremes: Vec<[f32; 2]>,
    /// All values, counted.
    pub histogram: Histogram,
}

impl Seen {
    /// Lowest and highest value to cover.
    pub fn range(&self, method: RangeMethod) -> (f32, f32) {
        match method {
            RangeMethod::MinMax => (self.histogram.low, self.histogram.high),
            RangeMethod::MovingAverage { momentum } => self.moving_average(momentum as f32),
            RangeMethod::Percentile { keep } => self.histogram.percentile(keep),
            RangeMethod::Entropy => self.histogram.best(Histogram::divergence),
            RangeMethod::Mse => self.histogram.best(Histogram::squared_error),
        }
    }

    /// Share of the values beyond the levels, and signal to quantisation noise in dB; none without
    /// noise.
    pub fn losses(&self, affine: Affine) -> (f64, Option<f64>) {
        let counts = || {
            let bins = self.histogram.counts.iter().enumerate();
            bins.map(|(bin, &count)| (f64::from(self.histogram.centre(bin)), count as f64))
        };
        let ends = [0, 255].map(|level| f64::from(affine.dequantize(level)));
        let beyond = |value: f64| value < ends[0] || value > ends[1];
        let all: f64 = counts().map(|(_, count)| count).sum();
        let outside = counts().filter(|&(value, _)| beyond(value));
        let outside: f64 = outside.map(|(_, count)| count).sum();
        let signal: f64 = counts().map(|(value, count)| count * value * value).sum();
        let noise = self.histogram.squared_error(affine);
        let decibels = (noise > 0.0).then(|| 10.0 * (signal / noise).log10());
        (outside / all.max(1.0), decibels)
    }

    fn moving_average(&self, momentum: f32) -> (f32, f32) {
        let average = self.extremes.iter().copied().reduce(|average, image| {
            [0, 1].map(|end| momentum * average[end] + (1.0 - momentum) * image[end])
        });
        average.map_or((0.0, 0.0), |[low, high]| (low, high))
    }
}

/// Parts of equal width that a histogram counts in.
const BINS: usize = 2048;

/// Counts of values between two ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    low: f32,
    high: f32,
    counts: Vec<u64>,
}

impl Histogram {
    /// Nothing counted yet, between the lowest and highest value to come.
    pub fn new(low: f32, high: f32) -> Self {
        Self {
            low,
            high,
            counts: vec![0; BINS],
        }
    }

    /// Counts some values.
    pub fn count(&mut self, values: &[f32]) {
        let (low, width) = (self.low, self.width());
        for value in values {
            self.counts[(((value - low) / width) as usize).min(BINS - 1)] += 1;
        }
    }

    /// Adds the counts of a histogram with the same ends.
    pub fn merge(&mut self, other: &Self) {
        let pairs = self.counts.iter_mut().zip(&other.counts);
        pairs.for_each(|(count, more)| *count += more);
    }

    fn width(&self) -> f32 {
        ((self.high - self.low) / BINS as f32).max(f32::MIN_POSITIVE)
    }

    fn centre(&self, bin: usize) -> f32 {
        self.low + (bin as f32 + 0.5) * self.width()
    }

    /// Drops equal shares from both ends, or all of it from the top where the
    /// tensor is never negative.
    fn percentile(&self, keep: f64) -> (f32, f32) {
        let total: u64 = self.counts.iter().sum();
        let drop = total as f64 * (1.0 - keep);
        let (from_low, from_high) = if self.low >= 0.0 {
            (0.0, drop)
        } else {
            (drop / 2.0, drop / 2.0)
        };
        let skip = |counts: &mut dyn Iterator<Item = &u64>, share: f64| {
            let mut seen = 0.0;
            let inside = |count: &&u64| {
                seen += **count as f64;
                seen <= share
            };
            counts.take_while(inside).count() as f32
        };
        let low = self.low + skip(&mut self.counts.iter(), from_low) * self.width();
        let high = self.high - skip(&mut self.counts.iter().rev(), from_high) * self.width();
        if low < high {
            (low, high)
        } else {
            (self.low, self.high)
        }
    }

    /// Shrinks both ends in step and keeps the range of the least loss.
    fn best(&self, loss: impl Fn(&Self, Affine) -> f64) -> (f32, f32) {
        let shares = (20..=100).map(|percent| percent as f32 / 100.0);
        let candidates =
            shares.map(|share| (self.low.min(0.0) * share, self.high.max(0.0) * share));
        let losses =
            candidates.map(|(low, high)| (loss(self, Affine::covering(low, high)), low, high));
        losses
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map_or((self.low, self.high), |(_, low, high)| (low, high))
    }

    fn squared_error(&self, affine: Affine) -> f64 {
        let ends = (affine.dequantize(0), affine.dequantize(255));
        let inside = f64::from(affine.scale).powi(2) / 12.0;
        let error = |(bin, &count): (usize, &u64)| {
            let value = self.centre(bin);
            let clipped = f64::from(value - value.clamp(ends.0, ends.1));
            let squared = if clipped == 0.0 {
                inside
            } else {
                clipped * clipped
            };
            count as f64 * squared
        };
        let counted = self
            .counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0);
        counted.map(error).sum()
    }

    /// Divergence of the quantised histogram from the true one. The values of a level are spread
    /// evenly over the parts that it stands for and that hold any; what lies outside counts to the
    /// last part inside, as saturation has it. A rectified tensor's exact zeros, which every range
    /// represents, are left out.
    fn divergence(&self, affine: Affine) -> f64 {
        let first = usize::from(self.low >= 0.0);
        let inside = |bin: usize| {
            let level = self.centre(bin) / affine.scale + f32::from(affine.zero_point);
            (-0.5..=255.5).contains(&level)
        };
        let Some(lowest) = (first..BINS).find(|&bin| inside(bin)) else {
            return f64::INFINITY;
        };
        let highest = (lowest..BINS)
            .rev()
            .find(|&bin| inside(bin))
            .unwrap_or(lowest);
        let counts = &self.counts[lowest..=highest];
        let mut truth: Vec<f64> = counts.iter().map(|&count| count as f64).collect();
        let total = |counts: &[u64]| counts.iter().sum::<u64>() as f64;
        truth[0] += total(&self.counts[first..lowest]);
        truth[highest - lowest] += total(&self.counts[highest + 1..]);
        let levels = (lowest..=highest).map(|bin| affine.quantize(self.centre(bin)));
        let spread = spread(counts, &levels.collect::<Vec<_>>());
        divergence(&truth, &spread)
    }
}

/// The counts of each level, spread evenly over those of its parts that are not empty.
fn spread(counts: &[u64], levels: &[u8]) -> Vec<f64> {
    let mut sums = [0.0; 256];
    let mut filled = [0.0; 256];
    for (&count, &level) in counts.iter().zip(levels) {
        sums[usize::from(level)] += count as f64;
        filled[usize::from(level)] += f64::from(u8::from(count > 0));
    }
    let share = |(&count, &level): (&u64, &u8)| match count {
        0 => 0.0,
        _ => sums[usize::from(level)] / filled[usize::from(level)],
    };
    counts.iter().zip(levels).map(share).collect()
}

/// Kullback-Leibler divergence of `model` from `truth`, neither of them normalised. A part that
/// only saturation fills has a little of the model's mass, so that the divergence stays finite.
fn divergence(truth: &[f64], model: &[f64]) -> f64 {
    let (all, modelled) = (truth.iter().sum::<f64>(), model.iter().sum::<f64>());
    let term = |(&p, &q): (&f64, &f64)| match p > 0.0 {
        true => p / all * ((p / all) / (q.max(1e-4) / modelled.max(1.0))).ln(),
        false => 0.0,
    };
    truth.iter().zip(model).map(term).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(values: &[f32]) -> Seen {
        let low = values.iter().copied().fold(f32::INFINITY, f32::min);
        let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut histogram = Histogram::new(low, high);
        histogram.count(values);
        Seen {
            extremes: vec![[low, high]],
            histogram,
        }
    }

    /// Quantise, dequantise, compare: the error measured on the values themselves.
    fn measured(values: &[f32], (low, high): (f32, f32)) -> f64 {
        let affine = Affine::covering(low, high);
        let errors = values
            .iter()
            .map(|&v| f64::from(v - affine.dequantize(affine.quantize(v))).powi(2));
        errors.sum::<f64>() / values.len() as f64
    }

    /// Normal values, from the sum of twelve uniform ones.
    fn normal(count: usize) -> Vec<f32> {
        let uniform = |i: usize| (i as f64 * 0.754_877_666_246_692_8).fract() as f32;
        let value = |i: usize| {
            (0..12)
                .map(|j| uniform(12 * i + j * j + 7 * j * i))
                .sum::<f32>()
                - 6.0
        };
        (1..=count).map(value).collect()
    }

    #[test]
    fn an_outlier_does_not_ruin_the_range() {
        let mut values: Vec<f32> = (0..20_000)
            .map(|i| (i as f32 * 0.618).fract() * 2.0)
            .collect();
        values.push(8.0);
        let seen = seen(&values);
        let whole = measured(&values, seen.range(RangeMethod::MinMax));
        let range = seen.range(RangeMethod::Mse);
        assert!(
            range.1 < 8.0 && measured(&values, range) < whole,
            "{range:?}"
        );
        let (_, high) = seen.range(RangeMethod::Entropy);
        assert!((1.9..4.0).contains(&high), "{high}");
        let (_, high) = seen.range(RangeMethod::Percentile { keep: 0.999 });
        assert!((1.9..2.1).contains(&high), "{high}");
    }

    #[test]
    fn no_other_range_has_less_squared_error() {
        let values = normal(30_000);
        let seen = seen(&values);
        let best = measured(&values, seen.range(RangeMethod::Mse));
        for share in [0.5, 0.7, 0.9, 1.0] {
            let (low, high) = seen.range(RangeMethod::MinMax);
            let other = measured(&values, (low * share, high * share));
            assert!(best <= other * 1.01, "{share}: {best} and {other}");
        }
    }

    #[test]
    fn evenly_spread_values_keep_their_whole_range() {
        let values: Vec<f32> = (0..100_000)
            .map(|i| (i as f32 * 0.618).fract() * 4.0 - 1.0)
            .collect();
        for method in RangeMethod::all() {
            let (low, high) = seen(&values).range(method);
            assert!(low < -0.97 && high > 2.95, "{method}: {low} {high}");
        }
    }

    #[test]
    fn a_moving_average_follows_the_images() {
        let seen = Seen {
            extremes: vec![[-1.0, 4.0], [-3.0, 2.0], [0.0, 8.0]],
            histogram: Histogram::new(-3.0, 8.0),
        };
        // −1 → −2 → −1 and 4 → 3 → 5.5.
        let range = seen.range(RangeMethod::MovingAverage { momentum: 0.5 });
        assert_eq!(range, (-1.0, 5.5));
    }

    #[test]
    fn a_constant_tensor_has_a_range() {
        for value in [0.0, 3.0, -2.0] {
            for method in RangeMethod::all() {
                let (low, high) = seen(&[value; 50]).range(method);
                let affine = Affine::covering(low, high);
                assert!(
                    (affine.dequantize(affine.quantize(value)) - value).abs() <= affine.scale,
                    "{value} {method}"
                );
            }
        }
    }

    #[test]
    fn methods_are_read_as_they_are_written() {
        for method in RangeMethod::all() {
            assert_eq!(method.to_string().parse(), Ok(method));
        }
        assert_eq!(
            "percentile=0.99".parse(),
            Ok(RangeMethod::Percentile { keep: 0.99 })
        );
        for wrong in [
            "",
            "max",
            "mse=1",
            "percentile=0.2",
            "percentile=x",
            "moving-average=1",
        ] {
            assert!(wrong.parse::<RangeMethod>().is_err(), "{wrong}");
        }
    }
}
