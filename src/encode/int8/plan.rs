//! What the engine computes, in integers: the network with every ONNX detail
//! resolved and checked, before any thought of an instruction set.
//!
//! A level `q` of a tensor stands for the real value
//! `scale · (q − zero_point)`. All activations are unsigned bytes and all
//! weights signed bytes; signed activations were shifted by 128 when the plan
//! was made, which changes nothing else.

/// A network in topological order. Every tensor belongs to one picture.
#[derive(Debug)]
pub struct Plan {
    /// Activations; [`TensorId`] counts them. The first is the image.
    pub tensors: Vec<Tensor>,
    /// Operations in an order in which they can run.
    pub steps: Vec<Step>,
    /// The tensor whose real values leave the integer part.
    pub last: TensorId,
    /// What is left to do in floats.
    pub tail: Vec<Tail>,
}

/// Position of a tensor in [`Plan::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorId(pub usize);

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

/// One operation on levels.
#[derive(Debug)]
pub enum Step {
    /// A convolution or a linear layer.
    Conv(Conv),
    /// A residual sum.
    Add(Add),
    /// The mean over all pixels of a channel.
    Pool(Pool),
}

/// A convolution: each output level is
/// `zero_point + round(multiplier · (bias + Σ weight · (level − zero_point)))`,
/// kept within `range`.
#[derive(Debug)]
pub struct Conv {
    /// Tensor that is read.
    pub from: TensorId,
    /// Tensor that is written.
    pub to: TensorId,
    /// Where the kernel is laid.
    pub window: Window,
    /// Whether each channel is convolved on its own; else all with all.
    pub depthwise: bool,
    /// `[output, input, row, column]`; with `depthwise`, one input per output.
    pub weight: Vec<i8>,
    /// One value for each output, in units of input scale · weight scale.
    pub bias: Vec<i32>,
    /// For each output: input scale · weight scale / output scale.
    pub multiplier: Vec<f32>,
    /// Least and greatest level: the activation function.
    pub range: [u8; 2],
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

    /// Multiply-accumulates of all convolutions for one picture.
    pub fn macs(&self) -> u64 {
        let of = |step: &Step| match step {
            Step::Conv(conv) => {
                let to = self.tensor(conv.to).shape;
                (to.pixels() * conv.weight.len()) as u64
            }
            Step::Add(_) | Step::Pool(_) => 0,
        };
        self.steps.iter().map(of).sum()
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
