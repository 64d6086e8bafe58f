//! A TensorFlow Lite network as plain values.

/// A network with one input and one output.
#[derive(Debug, Default)]
pub struct Model {
    /// Activations and constants.
    pub tensors: Vec<Tensor>,
    /// In the order of execution.
    pub operators: Vec<Operator>,
    /// The image.
    pub input: usize,
    /// The embedding.
    pub output: usize,
}

/// An activation, or a constant if it has data.
#[derive(Debug)]
pub struct Tensor {
    /// Unique within the network.
    pub name: String,
    /// Batch, height, width, channels where it has four.
    pub shape: Vec<usize>,
    /// What it consists of.
    pub element: Element,
    /// What its levels stand for, if they are levels.
    pub quantization: Option<Quantization>,
    /// Little-endian.
    pub data: Vec<u8>,
}

/// Type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 32-bit floats.
    F32,
    /// 32-bit integers.
    I32,
    /// Signed bytes.
    I8,
}

/// real = scale · (level − zero point), with a scale for each index of an axis
/// or one for all.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantization {
    /// One, or as many as the axis is long.
    pub scales: Vec<f32>,
    /// The level of 0.
    pub zero_point: i64,
    /// Axis that the scales belong to.
    pub axis: usize,
}

/// One step.
#[derive(Debug)]
pub struct Operator {
    /// What it does.
    pub kind: Kind,
    /// What it reads.
    pub inputs: Vec<usize>,
    /// What it writes.
    pub output: usize,
}

/// What an operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sum of two tensors.
    Add,
    /// Products of the matrices of two tensors.
    BatchMatMul,
    /// Convolution: input, weights `[O, H, W, I]`, bias.
    Conv(Step),
    /// Convolution of each channel by itself: input, weights `[1, H, W, O]`, bias.
    DepthwiseConv {
        /// How the kernel moves.
        step: Step,
        /// Outputs for each input channel.
        multiplier: usize,
    },
    /// Levels to floats.
    Dequantize,
    /// Quotient of two tensors.
    Div,
    /// Rows times weights: input, weights `[O, I]`, bias. With floats and weights in int8 the
    /// library rounds each row by its own range.
    FullyConnected,
    /// `x · Φ(x)`, Φ the normal distribution.
    Gelu,
    /// `1 / (1 + e^−x)`.
    Logistic,
    /// Mean over axes, which stay: input, axes.
    Mean,
    /// Product of two tensors, value by value.
    Mul,
    /// Zeros around a tensor: input, counts `[rank, 2]`.
    Pad,
    /// Floats to levels, or levels to other levels.
    Quantize,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
    /// The same values in another shape: input, shape.
    Reshape,
    /// A part of a tensor: input, first index, sizes.
    Slice,
    /// `e^x` over its sum, along the last axis.
    Softmax,
    /// The square root.
    Sqrt,
    /// Difference of two tensors.
    Sub,
    /// The axes in another order: input, order.
    Transpose,
}

/// How a kernel moves over a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What lies outside.
    pub padding: Padding,
    /// Vertical and horizontal.
    pub stride: [usize; 2],
}

/// Where a kernel may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// The output has a value for each step within the picture; zeros are
    /// shared out between both sides, the odd one at the end.
    Same,
    /// Only where it covers the picture.
    Valid,
}
