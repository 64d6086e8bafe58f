//! Convolution and normalisation kernels for training on a CPU, with their gradients.
//!
//! burn's CPU backend composes a convolution, its bias and its activation of general operations.
//! The kernels here do the three in one pass over memory for the convolutions the encoders are made
//! of: depthwise and dense. Other shapes, types and devices take burn's own operations.
//!
//! Results do not depend on the number of threads.

use burn::backend::{Dispatch, DispatchTensorKind};
use burn::nn::BatchNorm;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, Tensor, module};

use crate::graph::Activation;
use backend::Kernels;

mod backend;
mod dense;
mod depthwise;
mod fake;
mod matmul;
mod norm;
mod simd;

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

impl Window {
    /// Height and width of the output for an input of `size` height and width.
    pub fn output(&self, size: [usize; 2], kernel: usize) -> [usize; 2] {
        let [top, left, bottom, right] = self.padding;
        let along = |size: usize, zeros: usize, stride: usize| (size + zeros - kernel) / stride + 1;
        [
            along(size[0], top + bottom, self.stride[0]),
            along(size[1], left + right, self.stride[1]),
        ]
    }
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
    if !backend::supports(x.dims(), weight.dims(), window) || !on_cpu(&x) {
        return composed_conv2d(x, weight, bias, window, activation);
    }
    let bias = bias.unwrap_or_else(|| Tensor::zeros([weight.dims()[0]], &x.device()));
    let [x, weight, bias] = [
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
    ];
    Tensor::from_dispatch(Dispatch::fused_conv(x, weight, bias, window, activation))
}

/// [`conv2d`] of burn's own operations.
fn composed_conv2d(
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

/// The multiples of a step that quantised values may take: whole numbers, both ends included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// The lowest, 0 or less.
    pub low: f32,
    /// The highest.
    pub high: f32,
}

/// Rounds `x` to multiples of `step`: one step for all, or one for each part along the first
/// dimension. Values outside the grid take its nearest end.
///
/// Gradients flow to `x` and to `step` as rounding passes them on (straight-through).
pub fn fake_quantize<const D: usize>(x: Tensor<D>, step: Tensor<1>, grid: Grid) -> Tensor<D> {
    if !on_cpu(&x) || x.shape().num_elements() == 0 {
        return composed_fake_quantize(x, step, grid);
    }
    let [x, step] = [x.into_dispatch(), step.into_dispatch()];
    Tensor::from_dispatch(Dispatch::fused_fake(x, step, grid))
}

/// [`fake_quantize`] of burn's own operations.
fn composed_fake_quantize<const D: usize>(x: Tensor<D>, step: Tensor<1>, grid: Grid) -> Tensor<D> {
    let mut shape = [1; D];
    shape[0] = step.dims()[0];
    let step = step.reshape(shape);
    let level = (x / step.clone()).clamp(grid.low, grid.high);
    let rounded = level.clone() + (level.clone().round() - level).detach();
    rounded * step
}

/// Applies batch normalisation and an activation to `[N, C, H, W]`.
///
/// While training, the statistics are those of the batch, and the running ones follow.
pub fn batch_norm(x: Tensor<4>, norm: &BatchNorm, activation: Activation) -> Tensor<4> {
    if !is_training(norm, &x.device()) || !on_cpu(&x) || x.shape().num_elements() == 0 {
        return activate(norm.forward(x), activation);
    }
    let [x, gamma, beta] = [
        x.into_dispatch(),
        norm.gamma.val().into_dispatch(),
        norm.beta.val().into_dispatch(),
    ];
    let (y, mean, variance) = Dispatch::fused_norm(x, gamma, beta, norm.epsilon, activation);
    for (state, batch) in [(&norm.running_mean, mean), (&norm.running_var, variance)] {
        let batch = Tensor::<1>::from_dispatch(batch).detach();
        let old = state.value_sync().to_device(&batch.device());
        let new = old.mul_scalar(1.0 - norm.momentum) + batch.mul_scalar(norm.momentum);
        state.update(new.detach());
    }
    Tensor::from_dispatch(y)
}

/// Whether a batch normalisation uses the statistics of the batch.
pub fn is_training(norm: &BatchNorm, device: &Device) -> bool {
    device.is_autodiff() && norm.training.is_enabled()
}

/// Whether a tensor is of single precision and lives on burn's CPU backend.
fn on_cpu<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && is_flex(&x.clone().into_dispatch().kind)
}

fn is_flex(kind: &DispatchTensorKind) -> bool {
    match kind {
        DispatchTensorKind::Autodiff(inner) => is_flex(inner),
        kind => matches!(kind, DispatchTensorKind::Flex(_)),
    }
}

/// Applies an activation.
pub fn activate(x: Tensor<4>, activation: Activation) -> Tensor<4> {
    match activation {
        Activation::None => x,
        Activation::Relu => burn::tensor::activation::relu(x),
        Activation::Relu6 => x.clamp(0.0, 6.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::BatchNormConfig;
    use burn::tensor::TensorData;

    const RELU6: Activation = Activation::Relu6;

    /// Values in about ±`scale` from a fixed sequence.
    fn wave<const D: usize>(shape: [usize; D], scale: f32, device: &Device) -> Tensor<D> {
        let phase = shape.iter().sum::<usize>() as f32;
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count)
            .map(|i| scale * (1.7 * i as f32 + phase + (i as f32 * 0.013).cos()).sin())
            .collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn close<const D: usize>(got: Tensor<D>, expected: Tensor<D>, what: &str) {
        assert_eq!(got.dims(), expected.dims(), "{what}");
        let values = |t: Tensor<D>| t.into_data().iter::<f32>().collect::<Vec<_>>();
        let (got, expected) = (values(got), values(expected));
        let largest = expected.iter().fold(1e-3_f32, |m, v| m.max(v.abs()));
        for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
            assert!(
                (g - e).abs() <= 1e-5 * largest,
                "{what} at {i}: {g}, expected {e}"
            );
        }
    }

    /// Output and gradients of the kernel equal those of burn's own operations.
    fn check(x: [usize; 4], weight: [usize; 4], window: Window, activation: Activation) {
        let what = format!("{x:?} {weight:?} {window:?} {activation:?}");
        assert!(backend::supports(x, weight, window), "{what}");
        let device = Device::flex().autodiff();
        let fan_in = weight[1..].iter().product::<usize>() as f32;
        let [x, weight] = [
            wave(x, 3.0, &device),
            wave(weight, 3.0 / fan_in.sqrt(), &device),
        ];
        let bias = wave([weight.dims()[0]], 2.0, &device);
        let run = |conv: fn(_, _, _, _, _) -> Tensor<4>| {
            let [x, weight] = [x.clone().require_grad(), weight.clone().require_grad()];
            let bias = bias.clone().require_grad();
            let y = conv(
                x.clone(),
                weight.clone(),
                Some(bias.clone()),
                window,
                activation,
            );
            let grads = (y.clone() * wave(y.dims(), 1.0, &device)).sum().backward();
            let gradient = |t: &Tensor<4>| t.grad(&grads).unwrap();
            (
                y.inner(),
                gradient(&x),
                gradient(&weight),
                bias.grad(&grads).unwrap(),
            )
        };
        let (got, expected) = (run(conv2d), run(composed_conv2d));
        close(got.0, expected.0, &format!("output {what}"));
        close(got.1, expected.1, &format!("input gradient {what}"));
        close(got.2, expected.2, &format!("weight gradient {what}"));
        close(got.3, expected.3, &format!("bias gradient {what}"));
    }

    #[test]
    fn depthwise_kernels_equal_burns_operations() {
        for (size, stride, padding) in [
            ([8, 8], 1, [1, 1, 1, 1]),
            ([5, 7], 1, [1, 1, 1, 1]),
            ([1, 1], 1, [1, 1, 1, 1]),
            ([8, 8], 2, [1, 1, 1, 1]),
            ([8, 8], 2, [0, 0, 1, 1]),
            ([7, 9], 2, [1, 1, 1, 1]),
            ([7, 10], 2, [1, 0, 1, 1]),
            ([2, 2], 2, [0, 0, 1, 1]),
            ([6, 9], 1, [0, 0, 0, 0]),
            ([9, 6], 2, [0, 0, 0, 0]),
            ([33, 40], 1, [1, 1, 1, 1]),
            ([64, 64], 2, [0, 0, 1, 1]),
        ] {
            let window = Window {
                stride: [stride; 2],
                padding,
                groups: 3,
            };
            check([2, 3, size[0], size[1]], [3, 1, 3, 3], window, RELU6);
        }
        let window = |stride| Window {
            stride: [stride; 2],
            padding: [0; 4],
            groups: 5,
        };
        check([3, 5, 8, 6], [5, 1, 1, 1], window(1), Activation::None);
        check([3, 5, 7, 6], [5, 1, 1, 1], window(2), Activation::Relu);
    }

    #[test]
    fn dense_kernels_equal_burns_operations() {
        let window = Window {
            stride: [1; 2],
            padding: [0; 4],
            groups: 1,
        };
        for (x, outputs, activation) in [
            ([1, 3, 4, 4], 5, Activation::None),
            ([2, 16, 16, 16], 24, Activation::Relu),
            ([7, 12, 4, 4], 40, RELU6),
            ([40, 6, 2, 2], 3, RELU6),
            ([3, 33, 1, 1], 17, Activation::None),
            ([5, 8, 11, 13], 1, RELU6),
        ] {
            check(x, [outputs, x[1], 1, 1], window, activation);
        }
        for (x, kernel, stride, padding) in [
            ([2, 3, 16, 16], 3, 2, [0, 0, 1, 1]),
            ([2, 3, 15, 12], 3, 2, [1, 1, 1, 1]),
            ([20, 2, 5, 4], 3, 1, [1, 1, 1, 1]),
            ([3, 4, 9, 8], 1, 2, [0, 0, 0, 0]),
            ([2, 3, 12, 12], 5, 3, [2, 2, 2, 2]),
            ([2, 1, 3, 3], 3, 1, [0, 0, 0, 0]),
        ] {
            let window = Window {
                stride: [stride; 2],
                padding,
                groups: 1,
            };
            check(x, [6, x[1], kernel, kernel], window, Activation::Relu);
        }
    }

    #[test]
    fn batch_norm_equals_burns_operations() {
        let device = Device::flex().autodiff();
        for (shape, activation) in [
            ([2, 3, 4, 5], Activation::None),
            ([1, 2, 1, 3], Activation::Relu),
            ([4, 40, 7, 9], RELU6),
            ([3, 5, 1, 1], RELU6),
        ] {
            let what = format!("{shape:?} {activation:?}");
            let x = wave(shape, 2.0, &device) + wave([1, shape[1], 1, 1], 3.0, &device);
            let run = |fused: bool| {
                let mut norm = BatchNormConfig::new(shape[1]).init(&device);
                norm.gamma = norm
                    .gamma
                    .map(|g| (g + wave([shape[1]], 0.7, &device)).detach().require_grad());
                norm.beta = norm
                    .beta
                    .map(|b| (b + wave([shape[1]], 2.0, &device)).detach().require_grad());
                let x = x.clone().require_grad();
                let y = match fused {
                    true => batch_norm(x.clone(), &norm, activation),
                    false => activate(norm.forward(x.clone()), activation),
                };
                let grads = (y.clone() * wave(y.dims(), 1.0, &device).exp())
                    .sum()
                    .backward();
                let vectors = [
                    norm.gamma.val().grad(&grads).unwrap(),
                    norm.beta.val().grad(&grads).unwrap(),
                    norm.running_mean.value_sync().inner(),
                    norm.running_var.value_sync().inner(),
                ];
                (y.inner(), x.grad(&grads).unwrap(), vectors)
            };
            let (got, expected) = (run(true), run(false));
            close(got.0, expected.0, &format!("output {what}"));
            close(got.1, expected.1, &format!("input gradient {what}"));
            for (got, expected) in got.2.into_iter().zip(expected.2) {
                close(got, expected, &format!("parameters and statistics {what}"));
            }
        }
    }

    #[test]
    fn rounding_equals_burns_operations() {
        let device = Device::flex().autodiff();
        let unsigned = Grid {
            low: -3.0,
            high: 12.0,
        };
        let signed = Grid {
            low: -7.0,
            high: 7.0,
        };
        for (shape, steps, grid) in [
            ([2, 3, 4, 5], 1, unsigned),
            ([4, 2, 3, 3], 4, signed),
            ([3, 5, 90, 70], 1, unsigned),
            ([1, 1, 1, 1], 1, signed),
        ] {
            let what = format!("{shape:?} {steps} {grid:?}");
            let run = |fake: fn(Tensor<4>, Tensor<1>, Grid) -> Tensor<4>| {
                let x = wave(shape, 3.0, &device).require_grad();
                let step = (wave([steps], 0.05, &device) + 0.22)
                    .detach()
                    .require_grad();
                let y = fake(x.clone(), step.clone(), grid);
                let grads = (y.clone() * wave(shape, 1.0, &device)).sum().backward();
                (
                    y.inner(),
                    x.grad(&grads).unwrap(),
                    step.grad(&grads).unwrap(),
                )
            };
            let (got, expected) = (run(fake_quantize), run(composed_fake_quantize));
            close(got.0, expected.0, &format!("output {what}"));
            close(got.1, expected.1, &format!("gradient {what}"));
            let [got, expected] =
                [got.2, expected.2].map(|t| t.into_data().iter::<f32>().collect::<Vec<_>>());
            for (got, expected) in got.iter().zip(&expected) {
                let sums = (shape.iter().product::<usize>() as f32).sqrt();
                let tolerance = 1e-4 * sums.max(expected.abs());
                assert!(
                    (got - expected).abs() < tolerance,
                    "{what}: {got}, expected {expected}"
                );
            }
        }
    }

    #[test]
    fn views_are_read_in_their_own_order() {
        let device = Device::flex();
        let window = Window {
            stride: [1; 2],
            padding: [0; 4],
            groups: 1,
        };
        let x = wave([2, 6, 5, 4], 1.0, &device)
            .swap_dims(1, 3)
            .slice([0..2, 1..4]);
        let weight = wave([3, 2, 1, 1], 1.0, &device)
            .swap_dims(0, 1)
            .slice([0..2, 0..3]);
        let got = conv2d(x.clone(), weight.clone(), None, window, RELU6);
        close(
            got,
            composed_conv2d(x, weight, None, window, RELU6),
            "views",
        );
    }

    #[test]
    fn only_what_needs_a_gradient_gets_one() {
        let device = Device::flex().autodiff();
        let window = Window {
            stride: [1; 2],
            padding: [0; 4],
            groups: 1,
        };
        let x = wave([2, 3, 4, 4], 1.0, &device);
        let weight = wave([5, 3, 1, 1], 1.0, &device).require_grad();
        let grads = conv2d(x.clone(), weight.clone(), None, window, RELU6)
            .sum()
            .backward();
        assert!(x.grad(&grads).is_none());
        assert!(weight.grad(&grads).is_some());
    }

    #[test]
    fn a_diverged_value_stays_visible() {
        let device = Device::flex();
        let window = Window {
            stride: [1; 2],
            padding: [0; 4],
            groups: 1,
        };
        let x = Tensor::<4>::full([1, 1, 2, 2], f32::NAN, &device);
        let y = conv2d(x, Tensor::ones([1, 1, 1, 1], &device), None, window, RELU6);
        assert!(y.into_data().iter::<f32>().all(f32::is_nan));
    }
}
