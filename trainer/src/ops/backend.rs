//! The kernels as operations of burn's CPU backend, with their gradients.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, TensorMetadata, backend_extension};
use burn::tensor::TensorData;

use super::Window;
use super::depthwise::Depthwise;
use super::pointwise::Pointwise;
use super::{pointwise, simd};
use crate::graph::Activation;

/// Convolution, bias and activation in one operation.
#[backend_extension(Flex, Autodiff)]
pub trait FusedConv: Backend {
    /// For `x` `[N, C, H, W]`, `weight` `[D, C / groups, k, k]` and `bias` `[D]`.
    fn fused_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
        activation: Activation,
    ) -> FloatTensor<Self>;
}

/// One of the kernels, with the sizes it is to work on.
enum Kernel {
    Depthwise(Depthwise),
    Pointwise(Pointwise),
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
    let is_pointwise = groups == 1 && kernel == 1 && stride == 1 && window.padding == [0; 4];
    let fits = [1, 3].contains(&kernel) && [1, 2].contains(&stride) && top.max(left) < kernel;
    is_depthwise && fits || is_pointwise
}

impl FusedConv for Flex {
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
            Kernel::Pointwise(kernel) => kernel.forward(x, weight, bias),
        };
        tensor(output, [n, channels, height, width])
    }
}

impl<C: CheckpointStrategy> FusedConv for Autodiff<Flex, C> {
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
        let pointwise::Gradients {
            input,
            weight,
            bias,
        } = match kernel {
            Kernel::Depthwise(kernel) => kernel.backward(x, weight, y, gradient),
            Kernel::Pointwise(kernel) => kernel.backward(x, weight, y, gradient),
        };
        for ((parent, values), shape) in ops.parents.iter().zip([input, weight, bias]).zip(shapes) {
            if let Some(node) = parent {
                grads.register::<Flex>(node.id, tensor(values, shape));
            }
        }
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
        let bounds = simd::bounds(activation);
        if window.groups == 1 {
            let area = height * width;
            return Self::Pointwise(Pointwise {
                images,
                inputs,
                outputs,
                area,
                bounds,
            });
        }
        Self::Depthwise(Depthwise {
            channels: inputs,
            input: [height, width],
            output: window.output([height, width], kernel),
            kernel,
            stride: window.stride[0],
            padding: [window.padding[0], window.padding[1]],
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
