//! Building blocks of the image encoders and how they fold.
//!
//! A [`ConvUnit`] is a convolution without batch normalisation (bias, then activation) or with it
//! (normalisation, then activation). Either collapses into one [`Conv`] of plain values:
//! `w' = w·γ/√(σ²+ε)`, `b' = β − μ·γ/√(σ²+ε)` with the running mean μ and variance σ².

use burn::module::{Module, Param};
use burn::nn::{BatchNorm, BatchNormConfig, Linear};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::graph::{Activation, Conv, ConvNet, Op, Value};
use crate::ops::{self, Window};

/// Where a strided convolution puts its zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// `k/2` zeros on every side (PyTorch).
    #[default]
    Symmetric,
    /// As many zeros as `⌈size/stride⌉` outputs need, the odd one at the bottom and right
    /// (TensorFlow "SAME"): a 3×3 step of 2 on an even size pads one side only.
    Same,
}

/// How a unit normalises its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// Batch normalisation after a convolution without bias.
    #[default]
    Batch,
    /// None: the normalisation is already folded into kernel and bias. The fastest to train, and
    /// the form of batch-norm-folded weight files.
    Folded,
}

/// What a [`ConvUnit`] computes, apart from its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Kernel height and width.
    pub kernel: usize,
    /// Vertical and horizontal step.
    pub stride: usize,
    /// Number of groups the channels are divided into.
    pub groups: usize,
    /// Where the zeros go.
    pub padding: Padding,
}

/// Convolution, optional batch normalisation, activation: `[N, C, H, W]` → `[N, D, H', W']`.
#[derive(Module, Debug)]
pub struct ConvUnit {
    /// Kernel `[outputs, inputs / groups, k, k]`.
    pub weight: Param<Tensor<4>>,
    /// Bias `[outputs]`; absent where batch normalisation follows.
    pub bias: Option<Param<Tensor<1>>>,
    /// Batch normalisation, if any.
    pub norm: Option<BatchNorm>,
    #[module(skip)]
    geometry: Geometry,
    #[module(skip)]
    activation: Activation,
}

/// A kernel with bias in double precision, on its way to a [`Conv`].
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Values `[outputs, inputs / groups, k, k]`.
    pub weight: Vec<f64>,
    /// Values `[outputs]`.
    pub bias: Vec<f64>,
}

impl Padding {
    /// Zeros at the top, left, bottom and right for an input of `size` height and width.
    pub fn sides(self, kernel: usize, stride: usize, size: [usize; 2]) -> [usize; 4] {
        let ends = |size: usize| match self {
            Self::Symmetric => (kernel / 2, kernel / 2),
            Self::Same => {
                let span = (size.div_ceil(stride) - 1) * stride + kernel;
                let total = span.saturating_sub(size);
                (total / 2, total - total / 2)
            }
        };
        let ((top, bottom), (left, right)) = (ends(size[0]), ends(size[1]));
        [top, left, bottom, right]
    }
}

impl Geometry {
    /// A 1×1 convolution.
    pub fn pointwise(inputs: usize, outputs: usize) -> Self {
        let (kernel, stride, groups) = (1, 1, 1);
        Self {
            inputs,
            outputs,
            kernel,
            stride,
            groups,
            padding: Padding::Symmetric,
        }
    }

    /// A 3×3 convolution of every channel on its own.
    pub fn depthwise(channels: usize, stride: usize, padding: Padding) -> Self {
        Self {
            inputs: channels,
            outputs: channels,
            kernel: 3,
            stride,
            groups: channels,
            padding,
        }
    }

    /// A dense 3×3 convolution.
    pub fn dense(inputs: usize, outputs: usize, stride: usize, padding: Padding) -> Self {
        Self {
            inputs,
            outputs,
            kernel: 3,
            stride,
            groups: 1,
            padding,
        }
    }

    /// The kernel's shape: outputs, inputs per group, height, width.
    pub fn shape(&self) -> [usize; 4] {
        [
            self.outputs,
            self.inputs / self.groups,
            self.kernel,
            self.kernel,
        ]
    }

    /// Step, zeros and groups for an input of `size` height and width.
    pub fn window(&self, size: [usize; 2]) -> Window {
        Window {
            stride: [self.stride; 2],
            padding: self.padding.sides(self.kernel, self.stride, size),
            groups: self.groups,
        }
    }
}

impl ConvUnit {
    /// A unit with a random kernel: uniform within ±√(6 / fan-in), which keeps the variance of
    /// rectified activations (He et al., ICCV 2015, eq. 10); bias zero.
    pub fn new(
        geometry: Geometry,
        norm: Norm,
        activation: Activation,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        let shape = geometry.shape();
        let bound = (6.0 / shape[1..].iter().product::<usize>() as f32).sqrt();
        let values = (0..shape.iter().product())
            .map(|_| rng.random_range(-bound..bound))
            .collect();
        let zeros = || Param::from_tensor(Tensor::zeros([geometry.outputs], device));
        Self {
            weight: Param::from_tensor(tensor(values, shape, device)),
            bias: (norm == Norm::Folded).then(zeros),
            norm: (norm == Norm::Batch).then(|| batch_norm(geometry.outputs, device)),
            geometry,
            activation,
        }
    }

    /// A unit of a given kernel and batch normalisation.
    pub fn normalised(
        weight: Param<Tensor<4>>,
        norm: BatchNorm,
        geometry: Geometry,
        activation: Activation,
    ) -> Self {
        Self {
            weight,
            bias: None,
            norm: Some(norm),
            geometry,
            activation,
        }
    }

    /// What the unit computes, apart from its values.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Applies the unit to `[N, inputs, H, W]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let window = self.geometry.window([height, width]);
        let Some(norm) = &self.norm else {
            let bias = self.bias.as_ref().map(Param::val);
            return ops::conv2d(x, self.weight.val(), bias, window, self.activation);
        };
        if ops::is_training(norm, &x.device()) {
            let y = ops::conv2d(x, self.weight.val(), None, window, Activation::None);
            return ops::batch_norm(y, norm, self.activation);
        }
        let (weight, bias) = normalised(self.weight.val(), norm);
        ops::conv2d(x, weight, Some(bias), window, self.activation)
    }

    /// Kernel and bias with the normalisation folded in.
    pub fn kernel(&self) -> Kernel {
        let mut kernel = Kernel {
            weight: values(self.weight.val()),
            bias: match &self.bias {
                Some(bias) => values(bias.val()),
                None => vec![0.0; self.geometry.outputs],
            },
        };
        if let Some(norm) = &self.norm {
            kernel.normalise(norm);
        }
        kernel
    }

    /// Appends the unit as plain values to a network; returns its output.
    pub fn fold(&self, name: &str, net: &mut ConvNet, input: Value) -> Value {
        let [_, height, width] = net.shape(input);
        let conv = self
            .kernel()
            .into_conv(&self.geometry, self.activation, [height, width]);
        net.push(name, Op::Conv(conv), vec![input])
    }
}

impl Kernel {
    /// The kernel that copies its input, for `outputs` channels of a unit with this geometry.
    pub fn identity(geometry: &Geometry) -> Self {
        let [outputs, depth, ..] = geometry.shape();
        let mut weight = vec![0.0; outputs * depth];
        for channel in 0..outputs {
            weight[channel * depth + channel % depth] = 1.0;
        }
        Self {
            weight,
            bias: vec![0.0; outputs],
        }
    }

    /// Follows the kernel with a batch normalisation in its evaluation form.
    pub fn normalise(&mut self, norm: &BatchNorm) {
        let [gamma, beta] = [&norm.gamma, &norm.beta].map(|p| values(p.val()));
        let [mean, variance] =
            [&norm.running_mean, &norm.running_var].map(|s| values(s.value_sync()));
        let fan_in = self.weight.len() / self.bias.len();
        for (channel, kernel) in self.weight.chunks_exact_mut(fan_in).enumerate() {
            let scale = gamma[channel] / (variance[channel] + norm.epsilon).sqrt();
            kernel.iter_mut().for_each(|w| *w *= scale);
            self.bias[channel] = (self.bias[channel] - mean[channel]) * scale + beta[channel];
        }
    }

    /// Adds a 1×1 kernel at the tap `[row, column]` of this `k × k` kernel.
    pub fn add_point(&mut self, point: &Self, k: usize, [row, column]: [usize; 2]) {
        let taps = self.weight.iter_mut().skip(row * k + column).step_by(k * k);
        taps.zip(&point.weight).for_each(|(w, p)| *w += p);
        self.bias
            .iter_mut()
            .zip(&point.bias)
            .for_each(|(b, p)| *b += p);
    }

    /// Adds a kernel of the same shape.
    pub fn add(&mut self, other: &Self) {
        self.weight
            .iter_mut()
            .zip(&other.weight)
            .for_each(|(w, o)| *w += o);
        self.bias
            .iter_mut()
            .zip(&other.bias)
            .for_each(|(b, o)| *b += o);
    }

    /// Rounds to single precision, for an input of `size` height and width.
    pub fn into_conv(self, geometry: &Geometry, activation: Activation, size: [usize; 2]) -> Conv {
        let Window {
            stride,
            padding,
            groups,
        } = geometry.window(size);
        Conv {
            weight: self.weight.iter().map(|&w| w as f32).collect(),
            shape: geometry.shape(),
            bias: self.bias.iter().map(|&b| b as f32).collect(),
            stride,
            padding,
            groups,
            activation,
        }
    }
}

/// Kernel and bias of a convolution followed by a batch normalisation in its evaluation form.
fn normalised(weight: Tensor<4>, norm: &BatchNorm) -> (Tensor<4>, Tensor<1>) {
    let device = weight.device();
    let [mean, variance] =
        [&norm.running_mean, &norm.running_var].map(|s| s.value().to_device(&device));
    let scale = norm.gamma.val() / variance.add_scalar(norm.epsilon).sqrt();
    let bias = norm.beta.val() - mean * scale.clone();
    let channels = weight.dims()[0];
    (weight * scale.reshape([channels, 1, 1, 1]), bias)
}

/// Batch normalisation with PyTorch's ε = 1e-5 and momentum 0.1.
pub fn batch_norm(channels: usize, device: &Device) -> BatchNorm {
    BatchNormConfig::new(channels).init(device)
}

/// A tensor of the given values on a device.
pub fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// The values of a tensor in double precision.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// A width scaled by `width` and rounded to a multiple of 8, never by more than 10 % downwards
/// (the rule of the MobileNet family).
pub fn scaled(channels: usize, width: f64) -> usize {
    let exact = channels as f64 * width;
    let rounded = (((exact + 4.0) / 8.0) as usize * 8).max(8);
    if (rounded as f64) < 0.9 * exact {
        rounded + 8
    } else {
        rounded
    }
}

/// A linear layer `[inputs, outputs]` with values uniform within ±1/√inputs, drawn from `rng` and
/// not from the device, whose generator all models of the process share.
pub fn linear(
    [inputs, outputs]: [usize; 2],
    bias: bool,
    rng: &mut impl Rng,
    device: &Device,
) -> Linear {
    let bound = (inputs as f32).sqrt().recip();
    let mut draw = |n: usize| (0..n).map(|_| rng.random_range(-bound..bound)).collect();
    let weight = tensor(draw(inputs * outputs), [inputs, outputs], device);
    Linear {
        weight: Param::from_tensor(weight),
        bias: bias.then(|| Param::from_tensor(tensor(draw(outputs), [outputs], device))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_padding_follows_tensorflow() {
        let sides = |k, s, size| Padding::Same.sides(k, s, size);
        assert_eq!(sides(3, 2, [128, 128]), [0, 0, 1, 1]);
        assert_eq!(sides(3, 2, [7, 8]), [1, 0, 1, 1]);
        assert_eq!(sides(3, 1, [5, 1]), [1, 1, 1, 1]);
        assert_eq!(sides(1, 2, [8, 8]), [0; 4]);
        assert_eq!(Padding::Symmetric.sides(3, 2, [128, 7]), [1; 4]);
    }

    #[test]
    fn widths_round_to_eights() {
        let widths = [32, 16, 24, 96, 1280].map(|c| scaled(c, 0.35));
        assert_eq!(widths, [16, 8, 8, 32, 448]);
        assert_eq!([16, 24, 320].map(|c| scaled(c, 1.0)), [16, 24, 320]);
    }
}
