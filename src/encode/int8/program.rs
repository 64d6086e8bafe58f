//! A plan made ready for one instruction set: weights packed, every buffer
//! placed. It is shared between threads; each runs it in an arena of its own.

use std::ops::Range;

use super::arena::{self, Buffer};
use super::graph::{GraphError, MAX_VALUES};
use super::kernels::{Kernels, Matrix, Requant, Sum, Taps, Windows};
use super::plan::{Add, Affine, Conv, IMAGE, Plan, Pool, Shape, Step, Tail, TensorId, Window};

/// What a runner does for one image, in order.
pub struct Program {
    /// The arithmetic.
    pub kernels: &'static dyn Kernels,
    /// Bytes of the arena.
    pub arena: usize,
    /// The image: shape, levels and place (`[height, width, channels]`).
    pub image: Placed,
    /// What is computed.
    pub steps: Vec<Ready>,
    /// The tensor whose real values come out.
    pub last: Placed,
    /// What remains to be done with them.
    pub tail: Vec<Tail>,
    /// Multiply-accumulates for one image.
    pub macs: u64,
}

/// A tensor and its place in the arena. The place is larger than the tensor.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Shape.
    pub shape: Shape,
    /// What its levels mean.
    pub affine: Affine,
    /// Bytes of the arena.
    pub place: Range<usize>,
}

/// A step with all that it needs.
pub enum Ready {
    /// Copies a tensor into a frame of its zero point.
    Pad(PadReady),
    /// A convolution of all channels with all.
    Dense(DenseReady),
    /// A convolution of each channel on its own.
    Depthwise(DepthwiseReady),
    /// A residual sum.
    Add(AddReady),
    /// The mean over all pixels.
    Pool(PoolReady),
}

/// See [`Ready::Pad`].
pub struct PadReady {
    /// What is copied.
    pub from: Placed,
    /// Shape and place of the copy.
    pub to: Placed,
    /// Rows above and columns to the left.
    pub corner: [usize; 2],
}

/// See [`Ready::Dense`].
pub struct DenseReady {
    /// Place that is read.
    pub from: Range<usize>,
    /// Bytes that are written.
    pub to: Range<usize>,
    /// Where the windows lie.
    pub windows: Windows,
    /// The weights.
    pub matrix: Matrix,
    /// From sums to levels.
    pub requant: Requant,
}

/// See [`Ready::Depthwise`].
pub struct DepthwiseReady {
    /// What is read.
    pub from: Placed,
    /// What is written.
    pub to: Placed,
    /// Place of a row of the input's zero point.
    pub outside: Range<usize>,
    /// Where the kernel is laid.
    pub window: Window,
    /// The weights.
    pub taps: Taps,
    /// From sums to levels.
    pub requant: Requant,
}

/// See [`Ready::Add`].
pub struct AddReady {
    /// Bytes that are read.
    pub from: [Range<usize>; 2],
    /// Bytes that are written.
    pub to: Range<usize>,
    /// What is done with them.
    pub sum: Sum,
}

/// See [`Ready::Pool`].
pub struct PoolReady {
    /// What is read.
    pub from: Placed,
    /// Bytes that are written.
    pub to: Range<usize>,
    /// Input scale / (pixels · output scale).
    pub ratio: f32,
    /// From the mean to a level.
    pub requant: Requant,
}

/// Bytes that a step needs beside the tensors: a padded copy, or a row of
/// zero points.
fn scratch(plan: &Plan, step: &Step) -> usize {
    match step {
        Step::Conv(conv) if conv.depthwise => {
            let shape = plan.tensor(conv.from).shape;
            shape.width * shape.channels
        }
        Step::Conv(conv) if conv.window.padding != [0; 4] => {
            padded(plan.tensor(conv.from).shape, conv.window).values()
        }
        _ => 0,
    }
}

fn padded(shape: Shape, window: Window) -> Shape {
    let [top, left, bottom, right] = window.padding;
    Shape {
        height: shape.height + top + bottom,
        width: shape.width + left + right,
        ..shape
    }
}

impl Program {
    /// Packs `plan` for `kernels`.
    ///
    /// # Errors
    /// [`GraphError`] when the buffers together are beyond reason.
    pub fn new(plan: Plan, kernels: &'static dyn Kernels) -> Result<Self, GraphError> {
        let buffers = buffers(&plan);
        check_sizes(&buffers)?;
        let (places, arena) = arena::place(&buffers);
        let mut packer = Packer {
            plan: &plan,
            kernels,
            places: &places,
            steps: Vec::new(),
        };
        for (index, step) in plan.steps.iter().enumerate() {
            packer.step(step, plan.tensors.len() + index);
        }
        Ok(Self {
            kernels,
            arena,
            image: packer.placed(IMAGE),
            last: packer.placed(plan.last),
            steps: packer.steps,
            macs: plan.macs(),
            tail: plan.tail,
        })
    }

    /// Values of the output.
    pub fn dim(&self) -> usize {
        let last = self.last.shape;
        self.tail.iter().fold(last.values(), |_, tail| match tail {
            Tail::Pool => last.channels,
            Tail::Linear { bias, .. } => bias.len(),
        })
    }
}

/// The tensors, then the scratch of every step; the image is written before
/// the first step, the last tensor read after the last.
fn buffers(plan: &Plan) -> Vec<Buffer> {
    let of_tensor = |tensor: &super::plan::Tensor| Buffer {
        len: tensor.shape.values(),
        steps: 0..0,
    };
    let mut buffers: Vec<Buffer> = plan.tensors.iter().map(of_tensor).collect();
    for (index, step) in plan.steps.iter().enumerate() {
        let (from, to) = step.tensors();
        buffers[to.0].steps = index..index;
        for id in from {
            buffers[id.0].steps.end = index;
        }
    }
    buffers[plan.last.0].steps.end = plan.steps.len();
    buffers.extend(plan.steps.iter().enumerate().map(|(index, step)| Buffer {
        len: scratch(plan, step),
        steps: index..index,
    }));
    buffers
}

/// Each tensor is within reason; all of them together, with their padded
/// copies, must be as well.
fn check_sizes(buffers: &[Buffer]) -> Result<(), GraphError> {
    let bytes: usize = buffers.iter().map(|buffer| buffer.len).sum();
    match bytes <= MAX_VALUES {
        true => Ok(()),
        false => Err(GraphError::of_graph(format!(
            "its tensors, padded copies included, have {bytes} values together; at most {MAX_VALUES} run here"
        ))),
    }
}

struct Packer<'a> {
    plan: &'a Plan,
    kernels: &'static dyn Kernels,
    places: &'a [Range<usize>],
    steps: Vec<Ready>,
}

impl Packer<'_> {
    fn placed(&self, id: TensorId) -> Placed {
        let tensor = self.plan.tensor(id);
        Placed {
            shape: tensor.shape,
            affine: tensor.affine,
            place: self.places[id.0].clone(),
        }
    }

    fn step(&mut self, step: &Step, scratch: usize) {
        let scratch = self.places[scratch].clone();
        let ready = match step {
            Step::Conv(conv) if conv.depthwise => self.depthwise(conv, scratch),
            Step::Conv(conv) => self.dense(conv, scratch),
            Step::Add(add) => self.add(add),
            Step::Pool(pool) => self.pool(pool),
        };
        self.steps.push(ready);
    }

    fn requant(&self, to: TensorId, range: [u8; 2]) -> Requant {
        let zero_point = self.plan.tensor(to).affine.zero_point;
        Requant { zero_point, range }
    }

    fn dense(&mut self, conv: &Conv, scratch: Range<usize>) -> Ready {
        let (mut from, to) = (self.placed(conv.from), self.placed(conv.to));
        if conv.window.padding != [0; 4] {
            let [top, left, ..] = conv.window.padding;
            let shape = padded(from.shape, conv.window);
            let copy = Placed {
                shape,
                place: scratch,
                ..from
            };
            self.steps.push(Ready::Pad(PadReady {
                from,
                to: copy.clone(),
                corner: [top, left],
            }));
            from = copy;
        }
        Ready::Dense(DenseReady {
            windows: windows(conv.window, from.shape, to.shape),
            matrix: self
                .kernels
                .pack_dense(conv, from.shape.channels, from.affine.zero_point),
            requant: self.requant(conv.to, conv.range),
            from: from.place.clone(),
            to: to.bytes(),
        })
    }

    fn depthwise(&self, conv: &Conv, outside: Range<usize>) -> Ready {
        let from = self.placed(conv.from);
        Ready::Depthwise(DepthwiseReady {
            taps: self.kernels.pack_depthwise(conv, from.affine.zero_point),
            to: self.placed(conv.to),
            outside,
            window: conv.window,
            requant: self.requant(conv.to, conv.range),
            from,
        })
    }

    fn add(&self, add: &Add) -> Ready {
        let from = add.from.map(|id| self.placed(id));
        let zero_points = [from[0].affine.zero_point, from[1].affine.zero_point];
        let to = self.placed(add.to);
        Ready::Add(AddReady {
            from: from.map(|from| from.bytes()),
            sum: Sum::new(add, zero_points, to.affine.zero_point),
            to: to.bytes(),
        })
    }

    fn pool(&self, pool: &Pool) -> Ready {
        Ready::Pool(PoolReady {
            from: self.placed(pool.from),
            to: self.placed(pool.to).bytes(),
            ratio: pool.ratio,
            requant: self.requant(pool.to, pool.range),
        })
    }
}

impl Placed {
    /// The tensor's own bytes of the arena.
    pub fn bytes(&self) -> Range<usize> {
        self.place.start..self.place.start + self.shape.values()
    }
}

impl Step {
    /// The tensors that are read and the one that is written.
    fn tensors(&self) -> (Vec<TensorId>, TensorId) {
        match self {
            Self::Conv(conv) => (vec![conv.from], conv.to),
            Self::Add(add) => (add.from.to_vec(), add.to),
            Self::Pool(pool) => (vec![pool.from], pool.to),
        }
    }
}

/// Windows upon an input that is padded already. Where each pixel is its own
/// window, the whole picture is one row.
fn windows(window: Window, from: Shape, to: Shape) -> Windows {
    let row = from.width * from.channels;
    let [down, right] = window.stride;
    match window.kernel == [1, 1] && window.stride == [1, 1] && from.width == to.width {
        true => Windows {
            rows: 1,
            columns: to.pixels(),
            row_step: 0,
            column_step: from.channels,
            segment_step: 0,
        },
        false => Windows {
            rows: to.height,
            columns: to.width,
            row_step: down * row,
            column_step: right * from.channels,
            segment_step: row,
        },
    }
}
