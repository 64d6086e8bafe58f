//! Activation ranges from sample images, run through the float network.

use std::io::Cursor;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tract_onnx::prelude::*;

use super::affine::Affine;
use super::onnx::float_tapped;
use crate::graph::{Activation, ConvNet, Op};

/// How a range is chosen from what was observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RangeMethod {
    /// From the lowest to the highest value.
    MinMax,
    /// Leaves out `1 - keep` of the values in all.
    Percentile {
        /// Share of values kept, 0.9 to 1.
        keep: f64,
    },
    /// The range whose quantised values have the least mean squared error.
    #[default]
    Mse,
}

/// What calibration found for one node's output.
#[derive(Clone, Debug, PartialEq)]
pub struct Tap {
    /// How the output is quantised.
    pub affine: Affine,
    /// Mean of each channel.
    pub channel_means: Vec<f32>,
}

const BINS: usize = 2048;

/// Runs `images` (planar `[3, size, size]` each) through `net` and chooses the
/// quantisation of every node's output.
///
/// # Errors
/// What the engine says when it cannot run the network.
pub fn calibrate(net: &ConvNet, images: &[Vec<f32>], method: RangeMethod) -> TractResult<Vec<Tap>> {
    let plan = tapped_plan(net)?;
    let extremes = observe_extremes(&plan, net, images)?;
    let histograms = observe_histograms(&plan, net, images, &extremes)?;
    let taps = net.nodes.iter().enumerate().map(|(index, node)| {
        let (low, high) = histograms[index].range(method);
        let rectified = matches!(&node.op, Op::Conv(conv) if conv.activation != Activation::None);
        let affine = Affine::covering(if rectified { 0.0 } else { low }, high);
        Tap {
            affine,
            channel_means: extremes[index].means(images.len()),
        }
    });
    Ok(taps.collect())
}

fn tapped_plan(net: &ConvNet) -> TractResult<Arc<TypedSimplePlan>> {
    let [channels, height, width] = net.input;
    onnx()
        .model_for_read(&mut Cursor::new(float_tapped(net)))?
        .with_input_fact(0, f32::fact([1, channels, height, width]).into())?
        .into_optimized()?
        .into_runnable()
}

/// Outputs of every node for one image, in node order.
fn run(plan: &Arc<TypedSimplePlan>, net: &ConvNet, image: &[f32]) -> TractResult<Vec<Vec<f32>>> {
    let [channels, height, width] = net.input;
    let input = Tensor::from_shape(&[1, channels, height, width], image)?;
    let outputs = plan.run(tvec![input.into()])?;
    outputs
        .iter()
        .map(|output| {
            Ok(output
                .to_plain_array_view::<f32>()?
                .iter()
                .copied()
                .collect())
        })
        .collect()
}

/// Lowest and highest value of a tensor, and the sum of each channel's means.
#[derive(Clone)]
struct Extremes {
    low: f32,
    high: f32,
    sums: Vec<f64>,
}

impl Extremes {
    fn of(values: &[f32], channels: usize) -> Self {
        let plane = (values.len() / channels.max(1)).max(1);
        let mean = |values: &[f32]| {
            values.iter().map(|&value| f64::from(value)).sum::<f64>() / plane as f64
        };
        Self {
            low: values.iter().copied().fold(f32::INFINITY, f32::min),
            high: values.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            sums: values.chunks_exact(plane).map(mean).collect(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.low = self.low.min(other.low);
        self.high = self.high.max(other.high);
        self.sums
            .iter_mut()
            .zip(&other.sums)
            .for_each(|(sum, mean)| *sum += mean);
    }

    fn means(&self, images: usize) -> Vec<f32> {
        self.sums
            .iter()
            .map(|sum| (sum / images.max(1) as f64) as f32)
            .collect()
    }
}

fn observe_extremes(
    plan: &Arc<TypedSimplePlan>,
    net: &ConvNet,
    images: &[Vec<f32>],
) -> TractResult<Vec<Extremes>> {
    let shapes = net.output_shapes();
    let observe = |image: &Vec<f32>| -> TractResult<Vec<Extremes>> {
        let outputs = run(plan, net, image)?;
        Ok(outputs
            .iter()
            .zip(&shapes)
            .map(|(values, shape)| Extremes::of(values, shape[0]))
            .collect())
    };
    let each: Vec<Vec<Extremes>> = images.par_iter().map(observe).collect::<TractResult<_>>()?;
    let Some((first, rest)) = each.split_first() else {
        return Err(TractError::msg("calibration needs at least one image"));
    };
    let mut all = first.clone();
    for image in rest {
        all.iter_mut()
            .zip(image)
            .for_each(|(all, one)| all.add(one));
    }
    Ok(all)
}

/// Counts of values between two ends.
#[derive(Clone)]
struct Histogram {
    low: f32,
    high: f32,
    counts: Vec<u64>,
}

fn observe_histograms(
    plan: &Arc<TypedSimplePlan>,
    net: &ConvNet,
    images: &[Vec<f32>],
    extremes: &[Extremes],
) -> TractResult<Vec<Histogram>> {
    let empty = || -> Vec<Histogram> {
        extremes
            .iter()
            .map(|e| Histogram::new(e.low, e.high))
            .collect()
    };
    let observe =
        |mut histograms: Vec<Histogram>, image: &Vec<f32>| -> TractResult<Vec<Histogram>> {
            let outputs = run(plan, net, image)?;
            histograms
                .iter_mut()
                .zip(&outputs)
                .for_each(|(histogram, values)| histogram.count(values));
            Ok(histograms)
        };
    let merge = |mut a: Vec<Histogram>, b: Vec<Histogram>| {
        a.iter_mut().zip(&b).for_each(|(a, b)| a.merge(b));
        Ok(a)
    };
    images
        .par_iter()
        .try_fold(empty, observe)
        .try_reduce(empty, merge)
}

impl Histogram {
    fn new(low: f32, high: f32) -> Self {
        Self {
            low,
            high,
            counts: vec![0; BINS],
        }
    }

    fn width(&self) -> f32 {
        ((self.high - self.low) / BINS as f32).max(f32::MIN_POSITIVE)
    }

    fn count(&mut self, values: &[f32]) {
        let (low, width) = (self.low, self.width());
        for value in values {
            self.counts[(((value - low) / width) as usize).min(BINS - 1)] += 1;
        }
    }

    fn merge(&mut self, other: &Self) {
        self.counts
            .iter_mut()
            .zip(&other.counts)
            .for_each(|(a, b)| *a += b);
    }

    fn range(&self, method: RangeMethod) -> (f32, f32) {
        match method {
            RangeMethod::MinMax => (self.low, self.high),
            RangeMethod::Percentile { keep } => self.percentile(keep),
            RangeMethod::Mse => self.least_error(),
        }
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

    /// Shrinks both ends in step and keeps the share with the least error.
    fn least_error(&self) -> (f32, f32) {
        let shares = (20..=100).map(|percent| percent as f32 / 100.0);
        let candidates =
            shares.map(|share| (self.low.min(0.0) * share, self.high.max(0.0) * share));
        let error = |&(low, high): &(f32, f32)| self.squared_error(Affine::covering(low, high));
        candidates
            .min_by(|a, b| error(a).total_cmp(&error(b)))
            .unwrap_or((self.low, self.high))
    }

    fn squared_error(&self, affine: Affine) -> f64 {
        let centre = |index: usize| self.low + (index as f32 + 0.5) * self.width();
        let ends = (affine.dequantize(0), affine.dequantize(255));
        let inside = f64::from(affine.scale).powi(2) / 12.0;
        let counts = self
            .counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0);
        counts
            .map(|(index, &count)| {
                let value = centre(index);
                let clipped = f64::from(value - value.clamp(ends.0, ends.1));
                count as f64
                    * if clipped == 0.0 {
                        inside
                    } else {
                        clipped * clipped
                    }
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(values: &[f32]) -> Histogram {
        let extremes = Extremes::of(values, 1);
        let mut histogram = Histogram::new(extremes.low, extremes.high);
        histogram.count(values);
        histogram
    }

    /// Quantise, dequantise, compare: the error measured on the values themselves.
    fn measured(values: &[f32], (low, high): (f32, f32)) -> f64 {
        let affine = Affine::covering(low, high);
        let errors = values
            .iter()
            .map(|&v| f64::from(v - affine.dequantize(affine.quantize(v))).powi(2));
        errors.sum::<f64>() / values.len() as f64
    }

    #[test]
    fn an_outlier_does_not_ruin_the_range() {
        let mut values: Vec<f32> = (0..20_000)
            .map(|i| (i as f32 * 0.618).fract() * 2.0)
            .collect();
        values.push(8.0);
        let histogram = histogram(&values);
        let mse = histogram.range(RangeMethod::Mse);
        assert!(mse.1 < 8.0, "{mse:?}");
        assert!(measured(&values, mse) < measured(&values, histogram.range(RangeMethod::MinMax)));
        let (_, high) = histogram.range(RangeMethod::Percentile { keep: 0.999 });
        assert!((1.9..2.1).contains(&high), "{high}");
    }

    #[test]
    fn without_outliers_the_whole_range_is_kept() {
        let values: Vec<f32> = (0..10_000)
            .map(|i| (i as f32 * 0.618).fract() * 4.0 - 1.0)
            .collect();
        let (low, high) = histogram(&values).range(RangeMethod::Mse);
        assert!(low < -0.97 && high > 2.95, "{low} {high}");
    }

    #[test]
    fn a_constant_tensor_has_a_range() {
        for value in [0.0, 3.0, -2.0] {
            for method in [
                RangeMethod::MinMax,
                RangeMethod::Mse,
                RangeMethod::Percentile { keep: 0.99 },
            ] {
                let (low, high) = histogram(&[value; 50]).range(method);
                let affine = Affine::covering(low, high);
                assert!(
                    (affine.dequantize(affine.quantize(value)) - value).abs() <= affine.scale,
                    "{value} {method:?}"
                );
            }
        }
    }
}
