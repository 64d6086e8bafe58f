//! Convolution and normalisation kernels for training on a CPU, with their gradients.

use burn::tensor::Tensor;
use burn::tensor::module;
use burn::tensor::ops::ConvOptions;

use crate::graph::Activation;

/// Step, zeros and groups of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Vertical and horizontal step.
    pub stride: [usize; 2],
    /// Zeros at the top, left, bottom and right.
    pub padding: [usize; 4],
    /// Number of groups the channels are divided into.
    pub groups: usize,
}

/// Convolves `x` `[N, C, H, W]` with `weight` `[D, C / groups, k, k]`, adds `bias` `[D]` and
/// applies the activation.
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    window: Window,
    activation: Activation,
) -> Tensor<4> {
    let [top, left, bottom, right] = window.padding;
    let padding = [(top, bottom), (left, right)];
    let options = ConvOptions::new_with_padding(window.stride, padding, [1, 1], window.groups);
    activate(module::conv2d(x, weight, bias, options), activation)
}

/// Applies an activation.
pub fn activate(x: Tensor<4>, activation: Activation) -> Tensor<4> {
    match activation {
        Activation::None => x,
        Activation::Relu => burn::tensor::activation::relu(x),
        Activation::Relu6 => x.clamp(0.0, 6.0),
    }
}
