//! 8-bit affine quantisation: real = scale · (level − zero point).
//!
//! Activations are unsigned per tensor, weights signed and symmetric per
//! output channel (Jacob et al., CVPR 2018; Krishnamoorthi, 2018, §2).

use numclip::preprocess::Plan;

use crate::graph::Conv;

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

    /// The real value of `level`.
    pub fn dequantize(self, level: u8) -> f32 {
        (f32::from(level) - f32::from(self.zero_point)) * self.scale
    }
}

/// Quantises `conv`, whose input has the scale `input_scale`.
///
/// `input_mean` (one value per input channel, or empty) turns on bias
/// correction: the mean output error that rounding the weights causes is
/// taken off the bias (Nagel et al., ICCV 2019, §4.2).
pub fn quantize_conv(conv: &Conv, input_scale: f32, input_mean: &[f32]) -> QuantizedConv {
    let per_output = conv.shape[1..].iter().product::<usize>().max(1);
    let mut quantized = QuantizedConv {
        weight: Vec::new(),
        scales: Vec::new(),
        bias: Vec::new(),
    };
    for (output, weights) in conv.weight.chunks_exact(per_output).enumerate() {
        let scale = channel_scale(weights, conv.bias[output], input_scale);
        let levels: Vec<i8> = weights
            .iter()
            .map(|weight| (weight / scale).round_ties_even().clamp(-127.0, 127.0) as i8)
            .collect();
        let correction = mean_error(conv, output, weights, &levels, scale, input_mean);
        let bias =
            f64::from(conv.bias[output] + correction) / (f64::from(input_scale) * f64::from(scale));
        quantized
            .bias
            .push(bias.round_ties_even().clamp(-MAX_BIAS, MAX_BIAS) as i32);
        quantized.weight.extend(levels);
        quantized.scales.push(scale);
    }
    quantized
}

/// Biases stay within ±2³⁰, so that the sum with the products cannot overflow.
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

fn mean_error(
    conv: &Conv,
    output: usize,
    weights: &[f32],
    levels: &[i8],
    scale: f32,
    input_mean: &[f32],
) -> f32 {
    let kernel = conv.shape[2] * conv.shape[3];
    let first = output / (conv.shape[0] / conv.groups) * conv.shape[1];
    let Some(means) = input_mean.get(first..first + conv.shape[1]) else {
        return 0.0;
    };
    let errors = weights
        .iter()
        .zip(levels)
        .map(|(weight, level)| weight - f32::from(*level) * scale);
    errors
        .enumerate()
        .map(|(index, error)| error * means[index / kernel])
        .sum()
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
            let quantized = quantize_conv(&conv, 0.1, &[]);
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
    fn bias_correction_cancels_the_mean_error() {
        let conv = Conv {
            weight: vec![0.304, 1.0, -0.7777, 0.123],
            shape: [1, 4, 1, 1],
            bias: vec![0.0],
            stride: [1, 1],
            padding: [0; 4],
            groups: 1,
            activation: Activation::None,
        };
        let mean = [3.0, 0.5, 2.0, 7.0];
        let output = |quantized: &QuantizedConv| -> f32 {
            let products: f32 = quantized
                .weight
                .iter()
                .zip(mean)
                .map(|(w, x)| f32::from(*w) * quantized.scales[0] * x)
                .sum();
            products + quantized.bias[0] as f32 * quantized.scales[0] * 1e-4
        };
        let exact: f32 = conv.weight.iter().zip(mean).map(|(w, x)| w * x).sum();
        let plain = (output(&quantize_conv(&conv, 1e-4, &[])) - exact).abs();
        let corrected = (output(&quantize_conv(&conv, 1e-4, &mean)) - exact).abs();
        assert!(
            corrected < 1e-5 && plain > 10.0 * corrected,
            "{plain} {corrected}"
        );
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
        let quantized = quantize_conv(&conv, 0.02, &[]);
        let bias = quantized.bias[0] as f32 * 0.02 * quantized.scales[0];
        assert!((bias - 2.5).abs() < 1e-3, "{quantized:?}");
    }
}
