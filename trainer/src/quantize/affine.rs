//! 8-bit affine quantisation: real = scale · (level − zero point).
//!
//! Activations are unsigned per tensor, weights signed and symmetric per
//! output channel (Jacob et al., CVPR 2018; Krishnamoorthi, 2018, §2).

use numclip::preprocess::Plan;

use crate::graph::Conv;
use crate::ops::Grid;

/// The levels of weights.
pub const WEIGHTS: Grid = Grid {
    low: -127.0,
    high: 127.0,
};

/// How an activation tensor is quantised to 0..=255.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// Real value of one level; positive.
    pub scale: f32,
    /// Level of the real value 0.
    pub zero_point: u8,
}

/// A convolution's weights and bias in integers.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedConv {
    /// OIHW, −127 to 127.
    pub weight: Vec<i8>,
    /// One scale per output channel.
    pub scales: Vec<f32>,
    /// In units of input scale times weight scale.
    pub bias: Vec<i32>,
}

impl Affine {
    /// Covers `low..=high`, widened to hold 0 so that padding is exact.
    pub fn covering(low: f32, high: f32) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let scale = ((high - low) / 255.0).max(f32::MIN_POSITIVE * 1e8);
        let zero_point = (-low / scale).round_ties_even().clamp(0.0, 255.0) as u8;
        Self { scale, zero_point }
    }

    /// Covers what `plan` makes of pixels. Where mean and deviation are the
    /// same multiple of 1/255 in every channel, levels are the pixels themselves.
    pub fn of_input(plan: &Plan) -> Self {
        let ends = |pixel: f32| {
            plan.mean
                .iter()
                .zip(plan.std)
                .map(move |(mean, std)| (pixel - mean) / std)
        };
        Self::covering(
            ends(0.0).fold(f32::MAX, f32::min),
            ends(1.0).fold(f32::MIN, f32::max),
        )
    }

    /// The level nearest to `value`, halves to even, saturating.
    pub fn quantize(self, value: f32) -> u8 {
        let level = (value / self.scale).round_ties_even() + f32::from(self.zero_point);
        level.clamp(0.0, 255.0) as u8
    }

    /// The levels beside that of zero.
    pub fn grid(self) -> Grid {
        Grid {
            low: -f32::from(self.zero_point),
            high: 255.0 - f32::from(self.zero_point),
        }
    }

    /// The real value of `level`.
    pub fn dequantize(self, level: u8) -> f32 {
        (f32::from(level) - f32::from(self.zero_point)) * self.scale
    }
}

impl QuantizedConv {
    /// The real biases that the integers stand for, behind an input of this scale.
    pub fn real_bias(&self, input_scale: f32) -> Vec<f32> {
        let biases = self.bias.iter().zip(&self.scales);
        let real = |(&bias, &scale): (&i32, &f32)| {
            (f64::from(bias) * f64::from(input_scale) * f64::from(scale)) as f32
        };
        biases.map(real).collect()
    }

    /// The real weights that the integers stand for.
    pub fn real_weight(&self) -> Vec<f32> {
        let fan_in = (self.weight.len() / self.scales.len().max(1)).max(1);
        let rows = self.weight.chunks_exact(fan_in).zip(&self.scales);
        let real = |(row, &scale): (&[i8], &f32)| {
            let real = |&level: &i8| f32::from(level) * scale;
            row.iter().map(real).collect::<Vec<_>>()
        };
        rows.flat_map(real).collect()
    }
}

/// Quantises `conv`, whose input has the scale `input_scale`: every weight to the nearest level.
pub fn quantize_conv(conv: &Conv, input_scale: f32) -> QuantizedConv {
    let rows = conv.weight.chunks_exact(conv.fan_in()).zip(&conv.bias);
    let scales = rows.map(|(weights, &bias)| channel_scale(weights, bias, input_scale));
    quantize_conv_to(conv, input_scale, scales.collect())
}

/// As [`quantize_conv`], with a given scale for each output channel.
pub fn quantize_conv_to(conv: &Conv, input_scale: f32, scales: Vec<f32>) -> QuantizedConv {
    let rows = conv.weight.chunks_exact(conv.fan_in()).zip(&scales);
    let weight = rows.flat_map(|(weights, &scale)| {
        let level = move |weight: &f32| weight_level(weight / scale);
        weights.iter().map(level)
    });
    let biases = conv.bias.iter().zip(&scales);
    let bias = biases.map(|(&bias, &scale)| {
        bias_level(f64::from(bias) / (f64::from(input_scale) * f64::from(scale)))
    });
    QuantizedConv {
        weight: weight.collect(),
        bias: bias.collect(),
        scales,
    }
}

/// The nearest level of a weight in units of its scale.
pub fn weight_level(weight: f32) -> i8 {
    weight.round_ties_even().clamp(WEIGHTS.low, WEIGHTS.high) as i8
}

/// The nearest level of a bias in units of input scale times weight scale. It stays within ±2³⁰,
/// so that the sum with the products cannot overflow.
pub fn bias_level(bias: f64) -> i32 {
    bias.round_ties_even().clamp(-MAX_BIAS, MAX_BIAS) as i32
}

const MAX_BIAS: f64 = 1_073_741_824.0;

/// Symmetric scale of one output channel. A channel whose weights vanish
/// beside its bias gets a coarser scale, so that the bias still fits.
fn channel_scale(weights: &[f32], bias: f32, input_scale: f32) -> f32 {
    let largest = weights
        .iter()
        .fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
    let for_bias = f64::from(bias.abs()) / (f64::from(input_scale) * MAX_BIAS);
    (largest / 127.0).max(for_bias as f32).max(1e-12)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::graph::Activation;

    #[test]
    fn pixels_are_levels_where_the_plan_allows() {
        let half = 128.0 / 255.0;
        let plan = Plan {
            mean: [half; 3],
            std: [half; 3],
            ..Plan::clip(8)
        };
        let affine = Affine::of_input(&plan);
        let mut tensor = [0.0; 3];
        for pixel in 0..=255 {
            plan.normalize(&[pixel; 3], &mut tensor);
            assert_eq!(tensor.map(|value| affine.quantize(value)), [pixel; 3]);
        }
    }

    proptest! {
        #[test]
        fn rounding_stays_within_half_a_level(low in -50.0_f32..0.0, high in 0.001_f32..50.0, at in 0.0_f32..=1.0) {
            let affine = Affine::covering(low, high);
            let value = low + at * (high - low);
            let error = (affine.dequantize(affine.quantize(value)) - value).abs();
            // The zero point is rounded too, which may clip up to half a level at an end.
            prop_assert!(error <= affine.scale * 1.01, "{error} of {}", affine.scale);
            prop_assert_eq!(affine.dequantize(affine.zero_point), 0.0);
        }

        #[test]
        fn weights_round_to_half_a_step(weights in prop::collection::vec(-3.0_f32..3.0, 18)) {
            let conv = Conv {
                weight: weights.clone(), shape: [2, 1, 3, 3], bias: vec![0.5, -0.25], stride: [1, 1],
                padding: [0; 4], groups: 2, activation: Activation::None,
            };
            let quantized = quantize_conv(&conv, 0.1);
            for (index, (weight, level)) in weights.iter().zip(&quantized.weight).enumerate() {
                let scale = quantized.scales[index / 9];
                prop_assert!((weight - f32::from(*level) * scale).abs() <= scale * 0.501);
            }
            for (channel, bias) in conv.bias.iter().enumerate() {
                let unit = 0.1 * quantized.scales[channel];
                prop_assert!((quantized.bias[channel] as f32 * unit - bias).abs() <= unit * 0.51);
            }
        }
    }

    #[test]
    fn an_empty_channel_keeps_its_bias() {
        let conv = Conv {
            weight: vec![0.0],
            shape: [1, 1, 1, 1],
            bias: vec![2.5],
            stride: [1, 1],
            padding: [0; 4],
            groups: 1,
            activation: Activation::None,
        };
        let quantized = quantize_conv(&conv, 0.02);
        let bias = quantized.bias[0] as f32 * 0.02 * quantized.scales[0];
        assert!((bias - 2.5).abs() < 1e-3, "{quantized:?}");
    }
}
