//! The kernels as operations of burn's CPU backend, with their gradients.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Flex, TensorMetadata, backend_extension};
use burn::tensor::TensorData;

use super::dense::{self, Dense};
use super::depthwise::Depthwise;
use super::fake;
use super::norm::{self, Norm, Normalised};
use super::simd;
use super::{Grid, Window};
use crate::graph::Activation;

/// The operations this module adds to a backend.
#[backend_extension(Flex, Autodiff)]
pub trait Kernels: Backend {
    /// Convolution, bias and activation, for `x` `[N, C, H, W]`, `weight` `[D, C / groups, k, k]` and `bias` `[D]`.
    fn fused_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
        activation: Activation,
    ) -> FloatTensor<Self>;

    /// Normalisation over the batch and activation, for `x` `[N, C, H, W]` and `gamma` and `beta`
    /// `[C]`: the output, and mean and biased variance of each channel, which carry no gradient.
    fn fused_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// Rounding to multiples of `step`, one for each part of `x` along its first dimension or one
    /// for all.
    fn fused_fake(x: FloatTensor<Self>, step: FloatTensor<Self>, grid: Grid) -> FloatTensor<Self>;
}

/// One of the kernels, with the sizes it is to work on.
enum Kernel {
    Depthwise(Depthwise),
    Dense(Dense),
}

/// Whether there is a kernel for an input `[N, C, H, W]` and weights of this shape.
pub(super) fn supports(x: [usize; 4], weight: [usize; 4], window: Window) -> bool {
    let [_, channels, height, width] = x;
    let [outputs, depth, kernel, kernel_width] = weight;
    let Window {
        stride: [stride, stride_width],
        padding: [top, left, ..],
        groups,
    } = window;
    if kernel != kernel_width || stride != stride_width || height * width == 0 {
        return false;
    }
    let is_depthwise = groups == channels && outputs == channels && depth == 1;
    let fits = [1, 3].contains(&kernel) && [1, 2].contains(&stride) && top.max(left) < kernel;
    groups == 1 || is_depthwise && fits
}

impl Kernels for Flex {
    fn fused_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let kernel = Kernel::new(&x, &weight, window, activation);
        let [n, channels] = [x.shape()[0], weight.shape()[0]];
        let [height, width] = window.output([x.shape()[2], x.shape()[3]], weight.shape()[2]);
        let [x, weight, bias] = [x, weight, bias].map(|tensor| tensor.to_contiguous());
        let [x, weight, bias] = [&x, &weight, &bias].map(values);
        let output = match kernel {
            Kernel::Depthwise(kernel) => kernel.forward(x, weight, bias),
            Kernel::Dense(kernel) => kernel.forward(x, weight, bias),
        };
        tensor(output, [n, channels, height, width])
    }

    fn fused_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (kernel, shape) = (norm(&x, epsilon, activation), x.shape());
        let [x, gamma, beta] = [x, gamma, beta].map(|tensor| tensor.to_contiguous());
        let [x, gamma, beta] = [&x, &gamma, &beta].map(values);
        let Normalised {
            output,
            mean,
            variance,
        } = kernel.forward(x, gamma, beta);
        let [mean, variance] = [mean, variance].map(|values| tensor(values, [kernel.channels]));
        (tensor(output, shape), mean, variance)
    }

    fn fused_fake(x: FloatTensor<Self>, step: FloatTensor<Self>, grid: Grid) -> FloatTensor<Self> {
        let shape = x.shape();
        let [x, step] = [x, step].map(|tensor| tensor.to_contiguous());
        tensor(fake::forward(values(&x), values(&step), grid), shape)
    }
}

impl<C: CheckpointStrategy> Kernels for Autodiff<Flex, C> {
    fn fused_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let (weight, weight_node) = weight.into_parts();
        let (bias, bias_node) = bias.into_parts();
        let y = Flex::fused_conv(x.clone(), weight.clone(), bias, window, activation);
        let prepared = FusedConvBackward.prepare::<C>([x_node, weight_node, bias_node]);
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                prepared.finish((x, weight, y.clone(), window, activation), y)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }

    fn fused_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (x, x_node) = x.into_parts();
        let (gamma, gamma_node) = gamma.into_parts();
        let (beta, beta_node) = beta.into_parts();
        let (y, mean, variance) =
            Flex::fused_norm(x.clone(), gamma.clone(), beta, epsilon, activation);
        let prepared = FusedNormBackward.prepare::<C>([x_node, gamma_node, beta_node]);
        let statistics = [mean, variance];
        let y = match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let state = (x, gamma, statistics.clone(), y.clone(), epsilon, activation);
                prepared.finish(state, y)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        };
        let [mean, variance] = statistics.map(<Self as AutodiffBackend>::from_inner);
        (y, mean, variance)
    }

    fn fused_fake(x: FloatTensor<Self>, step: FloatTensor<Self>, grid: Grid) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let (step, step_node) = step.into_parts();
        let y = Flex::fused_fake(x.clone(), step.clone(), grid);
        let prepared = FusedFakeBackward.prepare::<C>([x_node, step_node]);
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish((x, step, grid), y),
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }
}

#[derive(Debug)]
struct FusedConvBackward;

impl Backward<Flex, 3> for FusedConvBackward {
    type State = (
        FloatTensor<Flex>,
        FloatTensor<Flex>,
        FloatTensor<Flex>,
        Window,
        Activation,
    );

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<Flex>(&ops.node);
        let (x, weight, y, window, activation) = ops.state;
        let kernel = Kernel::new(&x, &weight, window, activation);
        let shapes = [x.shape(), weight.shape(), [weight.shape()[0]].into()];
        let [x, weight, y, gradient] = [x, weight, y, gradient].map(|t| t.to_contiguous());
        let [x, weight, y, gradient] = [&x, &weight, &y, &gradient].map(values);
        let want_input = ops.parents[0].is_some();
        let dense::Gradients {
            input,
            weight,
            bias,
        } = match kernel {
            Kernel::Depthwise(kernel) => kernel.backward(x, weight, y, gradient),
            Kernel::Dense(kernel) => kernel.backward(x, weight, y, gradient, want_input),
        };
        for ((parent, values), shape) in ops.parents.iter().zip([input, weight, bias]).zip(shapes) {
            if let Some(node) = parent {
                grads.register::<Flex>(node.id, tensor(values, shape));
            }
        }
    }
}

#[derive(Debug)]
struct FusedNormBackward;

impl Backward<Flex, 3> for FusedNormBackward {
    type State = (
        FloatTensor<Flex>,
        FloatTensor<Flex>,
        [FloatTensor<Flex>; 2],
        FloatTensor<Flex>,
        f64,
        Activation,
    );

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<Flex>(&ops.node);
        let (x, gamma, statistics, y, epsilon, activation) = ops.state;
        let kernel = norm(&x, epsilon, activation);
        let shapes = [x.shape(), gamma.shape(), gamma.shape()];
        let [x, gamma, y, gradient] = [x, gamma, y, gradient].map(|t| t.to_contiguous());
        let [x, gamma, y, gradient] = [&x, &gamma, &y, &gradient].map(values);
        let statistics = [&statistics[0], &statistics[1]].map(values);
        let norm::Gradients { input, gamma, beta } =
            kernel.backward(x, gamma, statistics, y, gradient);
        for ((parent, values), shape) in ops.parents.iter().zip([input, gamma, beta]).zip(shapes) {
            if let Some(node) = parent {
                grads.register::<Flex>(node.id, tensor(values, shape));
            }
        }
    }
}

#[derive(Debug)]
struct FusedFakeBackward;

impl Backward<Flex, 2> for FusedFakeBackward {
    type State = (FloatTensor<Flex>, FloatTensor<Flex>, Grid);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<Flex>(&ops.node);
        let (x, step, grid) = ops.state;
        let shapes = [x.shape(), step.shape()];
        let [x, step, gradient] = [x, step, gradient].map(|t| t.to_contiguous());
        let (input, steps) = fake::backward(values(&x), values(&step), values(&gradient), grid);
        for ((parent, values), shape) in ops.parents.iter().zip([input, steps]).zip(shapes) {
            if let Some(node) = parent {
                grads.register::<Flex>(node.id, tensor(values, shape));
            }
        }
    }
}

fn norm(x: &FloatTensor<Flex>, epsilon: f64, activation: Activation) -> Norm {
    let [_, channels, height, width] = x.shape().dims();
    Norm {
        channels,
        area: height * width,
        epsilon,
        bounds: simd::bounds(activation),
    }
}

impl Kernel {
    /// The kernel for sizes that `supports` accepted.
    fn new(
        x: &FloatTensor<Flex>,
        weight: &FloatTensor<Flex>,
        window: Window,
        activation: Activation,
    ) -> Self {
        let [images, inputs, height, width] = x.shape().dims();
        let [outputs, _, kernel, _] = weight.shape().dims();
        let (size, stride) = ([height, width], window.stride[0]);
        let (output, bounds) = (window.output(size, kernel), simd::bounds(activation));
        let padding = [window.padding[0], window.padding[1]];
        if window.groups == 1 {
            let sizes = Dense {
                images,
                inputs,
                outputs,
                size,
                output,
                kernel,
                stride,
                padding,
                bounds,
            };
            return Self::Dense(sizes);
        }
        Self::Depthwise(Depthwise {
            channels: inputs,
            input: size,
            output,
            kernel,
            stride,
            padding,
            bounds,
        })
    }
}

/// The values of a contiguous single-precision tensor.
fn values(tensor: &FloatTensor<Flex>) -> &[f32] {
    let offset = tensor.layout().start_offset();
    &tensor.storage::<f32>()[offset..][..tensor.shape().num_elements()]
}

fn tensor(values: Vec<f32>, shape: impl Into<burn::tensor::Shape>) -> FloatTensor<Flex> {
    FloatTensor::<Flex>::from_data(TensorData::new(values, shape))
}
