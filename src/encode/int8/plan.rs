//! What the engine computes: the network with every ONNX detail resolved and
//! checked, before any thought of an instruction set.
//!
//! Convolutions and linear layers read levels; what lies between those of a
//! transformer is done in floats. A level `q` of a tensor stands for the real value
//! `scale · (q − zero_point)`. All activations are unsigned bytes and all
//! weights signed bytes; signed activations were shifted by 128 when the plan
//! was made, which changes nothing else.

use super::view::{Axis, View};

/// A network in topological order. Every tensor belongs to one picture.
#[derive(Debug)]
pub struct Plan {
    /// Activations; [`TensorId`] counts them. The first is the image.
    pub tensors: Vec<Tensor>,
    /// Float activations by their number of values; [`RealId`] counts them.
    pub reals: Vec<usize>,
    /// Constant floats.
    pub constants: Vec<Vec<f32>>,
    /// Operations in an order in which they can run.
    pub steps: Vec<Step>,
    /// For each operation, the node of the graph that asked for it.
    pub names: Vec<String>,
    /// What comes out.
    pub output: Output,
}

/// The embedding of a picture.
#[derive(Debug)]
pub enum Output {
    /// Real values of a tensor, with what is left to do in floats.
    Levels(TensorId, Vec<Tail>),
    /// The first values of a float activation, this many.
    Reals(RealId, usize),
}

/// Position of a tensor in [`Plan::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorId(pub usize);

/// Position of a float activation in [`Plan::reals`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RealId(pub usize);

/// The image: what the first step of every plan writes.
pub const IMAGE: TensorId = TensorId(0);

/// An activation of one picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tensor {
    /// Its size.
    pub shape: Shape,
    /// What its levels mean.
    pub affine: Affine,
}

/// Channels, rows and columns of an activation; none is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Channels.
    pub channels: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
}

/// What the levels of a tensor mean: `real = scale · (level − zero_point)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// Real value of one level; positive and finite.
    pub scale: f32,
    /// Level of the real value 0.
    pub zero_point: u8,
}

/// One operation.
#[derive(Debug)]
pub enum Step {
    /// A convolution or a linear layer.
    Conv(Conv),
    /// A residual sum.
    Add(Add),
    /// The mean over all pixels of a channel.
    Pool(Pool),
    /// From floats to levels; the floats lie one after the other.
    Quantize(View, TensorId),
    /// From levels to floats.
    Dequantize(TensorId, RealId),
    /// An operation on floats.
    Float(Float),
}

/// An operation on floats that writes one float activation.
#[derive(Debug)]
pub struct Float {
    /// What is done.
    pub op: FloatOp,
    /// What is read.
    pub from: Vec<View>,
    /// What is written.
    pub to: RealId,
}

/// What is done with floats. Results lie one after the other unless said otherwise.
#[derive(Clone, Debug, PartialEq)]
pub enum FloatOp {
    /// Copies one input to these places, from this value of the result on.
    Copy(usize, Vec<Axis>),
    /// Value by value; the two inputs have one shape.
    Binary(Binary),
    /// Value by value; the input lies one after the other.
    Unary(Unary),
    /// The mean of each row of this many values.
    Mean(usize),
    /// `e^x` over its sum, in each row of this many values.
    Softmax(usize),
    /// Rows less their mean, over their deviation, with this added to the
    /// variance; times the second input, plus the third.
    Norm(f32),
    /// A product of matrices, times a factor: rows of the first input
    /// `[…, rows, depth]` with the packed second one.
    Product(Packed, f32),
    /// `softmax(factor · q · k) · v` for each head: `q` is
    /// `[heads, rows, depth]`, `k` and `v` are packed; the result is
    /// `[rows, heads, columns]`.
    Attention(Packed, Packed, f32),
}

/// Matrices whose rows are filled up to whole [`LANES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Matrices.
    pub count: usize,
    /// Rows of each.
    pub depth: usize,
    /// Values of a row.
    pub columns: usize,
}

/// Floats that are computed together.
pub const LANES: usize = 16;

/// An operation on two floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`.
    Add,
    /// `a − b`.
    Sub,
    /// `a · b`.
    Mul,
    /// `a / b`.
    Div,
}

/// An operation on one float.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unary {
    /// Within these bounds.
    Clamp([f32; 2]),
    /// `x · Φ(x)`, Φ the normal distribution (Hendrycks & Gimpel, 2016).
    Gelu,
    /// `x / (1 + e^(−1.702 x))`.
    QuickGelu,
    /// The error function.
    Erf,
    /// `1 / (1 + e^−x)`.
    Sigmoid,
    /// The square root.
    Sqrt,
}

/// A convolution: each output level is
/// `zero_point + round(multiplier · (bias + Σ weight · (level − zero_point)))`,
/// kept within a range; each real value is `multiplier · (…) + offset`.
#[derive(Debug)]
pub struct Conv {
    /// Tensor that is read.
    pub from: TensorId,
    /// What becomes of the sums.
    pub to: Target,
    /// Shape of the result.
    pub shape: Shape,
    /// Where the kernel is laid.
    pub window: Window,
    /// Whether each channel is convolved on its own; else all with all.
    pub depthwise: bool,
    /// `[output, input, row, column]`; with `depthwise`, one input per output.
    pub weight: Vec<i8>,
    /// One value for each output, in units of input scale · weight scale.
    pub bias: Vec<i32>,
    /// For each output: input scale · weight scale, over the scale of the levels that are written.
    pub multiplier: Vec<f32>,
    /// For each output, what is added to its real value; for [`Target::Reals`] alone.
    pub offset: Vec<f32>,
}

/// What becomes of the sums of a convolution.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Levels within a range, which is the activation function.
    Levels(TensorId, [u8; 2]),
    /// Real values, `[height, width, channels]`. Convolutions of all channels
    /// with all only.
    Reals(RealId),
}

/// Where a kernel is laid upon the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Step down and to the right.
    pub stride: [usize; 2],
    /// Zeros above, to the left, below and to the right.
    pub padding: [usize; 4],
}

/// A sum of two tensors of one shape: each output level is
/// `zero_point + round(ratio₀ · (level₀ − zero_point₀) + ratio₁ · (level₁ − zero_point₁))`,
/// kept within `range`.
#[derive(Debug)]
pub struct Add {
    /// Tensors that are read.
    pub from: [TensorId; 2],
    /// Tensor that is written.
    pub to: TensorId,
    /// For each input: its scale / output scale.
    pub ratio: [f32; 2],
    /// Least and greatest level.
    pub range: [u8; 2],
}

/// The mean over all pixels of each channel: each output level is
/// `zero_point + round(ratio · Σ (level − zero_point))`, kept within `range`.
#[derive(Debug)]
pub struct Pool {
    /// Tensor that is read.
    pub from: TensorId,
    /// Tensor that is written; one pixel.
    pub to: TensorId,
    /// Input scale / (pixels · output scale).
    pub ratio: f32,
    /// Least and greatest level.
    pub range: [u8; 2],
}

/// What follows the integer part: operations on floats, channel by channel.
#[derive(Clone, Debug)]
pub enum Tail {
    /// The mean over all pixels of each channel.
    Pool,
    /// A linear layer.
    Linear {
        /// `[output, input]`.
        weight: Vec<f32>,
        /// One value for each output.
        bias: Vec<f32>,
    },
}

impl Plan {
    /// The tensor of this id.
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.0]
    }

    /// Multiply-accumulates of all convolutions and products for one picture.
    pub fn macs(&self) -> u64 {
        self.steps.iter().map(Step::macs).sum()
    }
}

impl Step {
    /// Multiply-accumulates.
    pub fn macs(&self) -> u64 {
        match self {
            Self::Conv(conv) => (conv.shape.pixels() * conv.weight.len()) as u64,
            Self::Float(float) => float.macs() as u64,
            _ => 0,
        }
    }
}

impl Float {
    fn macs(&self) -> usize {
        let values = self.from[0].count();
        match self.op {
            FloatOp::Product(packed, _) => values * packed.columns,
            FloatOp::Attention(keys, mixed, _) => {
                let rows = values / keys.depth;
                values * keys.columns + rows * mixed.depth * mixed.columns
            }
            _ => 0,
        }
    }
}

impl Packed {
    /// Values of a row, the filling included.
    pub fn step(self) -> usize {
        self.columns.next_multiple_of(LANES)
    }

    /// Values of all matrices, the filling included.
    pub fn values(self) -> usize {
        self.count * self.depth * self.step()
    }
}

impl Shape {
    /// Pixels of one channel.
    pub fn pixels(self) -> usize {
        self.height * self.width
    }

    /// Values of all channels.
    pub fn values(self) -> usize {
        self.channels * self.pixels()
    }
}

impl Affine {
    /// The level nearest to `value`: halves to even, saturating.
    pub fn level(self, value: f32) -> u8 {
        let level = (value / self.scale).round_ties_even() + f32::from(self.zero_point);
        level.clamp(0.0, 255.0) as u8
    }

    /// The real value of `level`.
    pub fn real(self, level: u8) -> f32 {
        (f32::from(level) - f32::from(self.zero_point)) * self.scale
    }
}

impl Window {
    /// A kernel of one pixel that visits each once.
    pub const POINT: Self = Self {
        kernel: [1; 2],
        stride: [1; 2],
        padding: [0; 4],
    };

    /// Pixels of the kernel.
    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Rows and columns of the output for an input of this many; `None` where
    /// the kernel does not fit.
    pub fn output(&self, height: usize, width: usize) -> Option<[usize; 2]> {
        let [top, left, bottom, right] = self.padding;
        let along = |size: usize, padding: usize, axis: usize| {
            let room = (size + padding).checked_sub(self.kernel[axis])?;
            Some(room / self.stride[axis] + 1)
        };
        Some([
            along(height, top + bottom, 0)?,
            along(width, left + right, 1)?,
        ])
    }
}
