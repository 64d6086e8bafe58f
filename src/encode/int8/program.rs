//! A plan made ready for one instruction set: weights packed, every buffer
//! placed. It is shared between threads; each runs it in an arena of its own.

use std::ops::Range;

use super::arena::{self, Buffer};
use super::graph::{GraphError, MAX_VALUES};
use super::kernels::{Kernels, Matrix, Requant, Sum, Taps, Windows};
use super::label::Label;
use super::plan::{
    Add, Affine, Conv, Float, FloatOp, IMAGE, Output, Plan, Pool, RealId, Shape, Step, Tail,
    Target, TensorId, Window,
};
use super::view::{Axis, Source, View};

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
    /// What each of them is.
    pub labels: Vec<Label>,
    /// Constant floats.
    pub constants: Vec<Vec<f32>>,
    /// What comes out.
    pub result: Outcome,
    /// Multiply-accumulates for one image.
    pub macs: u64,
}

/// The embedding of a picture.
pub enum Outcome {
    /// Real values of a tensor, with what remains to be done with them.
    Levels(Placed, Vec<Tail>),
    /// These bytes, which are floats.
    Reals(Range<usize>),
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
    /// From floats in these bytes to levels.
    Quantize(Range<usize>, Placed),
    /// From levels to floats in these bytes.
    Dequantize(Placed, Range<usize>),
    /// An operation on floats.
    Float(FloatReady),
}

/// See [`Ready::Float`].
pub struct FloatReady {
    /// What is done.
    pub op: FloatOp,
    /// What is read.
    pub from: Vec<Operand>,
    /// Bytes that are written.
    pub to: Range<usize>,
}

/// Floats at their place.
pub struct Operand {
    /// Where they lie.
    pub place: Place,
    /// The first one.
    pub start: usize,
    /// The dimensions.
    pub axes: Vec<Axis>,
}

/// Where floats lie.
pub enum Place {
    /// Bytes of the arena.
    Arena(Range<usize>),
    /// A constant of the program.
    Constant(usize),
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
    /// From sums to levels; `None` where real values are written.
    pub requant: Option<Requant>,
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
    pub fn new(mut plan: Plan, kernels: &'static dyn Kernels) -> Result<Self, GraphError> {
        let macs = plan.macs();
        let buffers = buffers(&plan);
        check_sizes(&buffers)?;
        let (places, arena) = arena::place(&buffers);
        let steps = std::mem::take(&mut plan.steps);
        let mut packer = Packer {
            plan: &plan,
            kernels,
            places: &places,
            steps: Vec::new(),
            labels: Vec::new(),
        };
        for (index, step) in steps.into_iter().enumerate() {
            packer.step(&step, plan.tensors.len() + plan.reals.len() + index);
            packer.label(Label::new(&plan, index, &step));
        }
        let result = match &plan.output {
            Output::Levels(last, tail) => Outcome::Levels(packer.placed(*last), tail.clone()),
            Output::Reals(id, count) => Outcome::Reals(packer.reals(*id, *count)),
        };
        Ok(Self {
            kernels,
            arena,
            image: packer.placed(IMAGE),
            result,
            steps: packer.steps,
            labels: packer.labels,
            macs,
            constants: plan.constants,
        })
    }

    /// Values of the output.
    pub fn dim(&self) -> usize {
        let (last, tail) = match &self.result {
            Outcome::Levels(last, tail) => (last.shape, tail),
            Outcome::Reals(bytes) => return bytes.len() / size_of::<f32>(),
        };
        tail.iter().fold(last.values(), |_, tail| match tail {
            Tail::Pool => last.channels,
            Tail::Linear { bias, .. } => bias.len(),
        })
    }
}

/// The tensors, the floats, then the scratch of every step; the image is written
/// before the first step, what comes out is read after the last.
fn buffers(plan: &Plan) -> Vec<Buffer> {
    let of_tensor = |tensor: &super::plan::Tensor| Buffer {
        len: tensor.shape.values(),
        steps: 0..0,
    };
    let of_reals = |&count: &usize| Buffer {
        len: count * size_of::<f32>(),
        steps: 0..0,
    };
    let reals = plan.reals.iter().map(of_reals);
    let mut buffers: Vec<Buffer> = plan.tensors.iter().map(of_tensor).chain(reals).collect();
    let at = |buffer| match buffer {
        BufferId::Tensor(id) => id.0,
        BufferId::Real(id) => plan.tensors.len() + id.0,
    };
    let mut written = vec![false; buffers.len()];
    for (index, step) in plan.steps.iter().enumerate() {
        let (from, to) = step.buffers();
        let first = !std::mem::replace(&mut written[at(to)], true);
        match first {
            true => buffers[at(to)].steps = index..index,
            false => buffers[at(to)].steps.end = index,
        }
        for id in from {
            buffers[at(id)].steps.end = index;
        }
    }
    let last = match plan.output {
        Output::Levels(id, _) => BufferId::Tensor(id),
        Output::Reals(id, _) => BufferId::Real(id),
    };
    buffers[at(last)].steps.end = plan.steps.len();
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
    labels: Vec<Label>,
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

    /// The last step is this one, and those without a label prepare it.
    fn label(&mut self, label: Label) {
        self.labels
            .resize(self.steps.len() - 1, label.preparation());
        self.labels.push(label);
    }

    fn step(&mut self, step: &Step, scratch: usize) {
        let scratch = self.places[scratch].clone();
        let ready = match step {
            Step::Conv(conv) => match conv.to {
                Target::Levels(to, range) if conv.depthwise => {
                    self.depthwise(conv, scratch, to, range)
                }
                _ => self.dense(conv, scratch),
            },
            Step::Add(add) => self.add(add),
            Step::Pool(pool) => self.pool(pool),
            Step::Quantize(from, to) => Ready::Quantize(self.view_bytes(from), self.placed(*to)),
            Step::Dequantize(from, to) => {
                let from = self.placed(*from);
                let to = self.reals(*to, from.shape.values());
                Ready::Dequantize(from, to)
            }
            Step::Float(float) => self.float(float),
        };
        self.steps.push(ready);
    }

    /// The bytes of a float activation's first values, this many.
    fn reals(&self, id: RealId, count: usize) -> Range<usize> {
        let start = self.places[self.plan.tensors.len() + id.0].start;
        start..start + count * size_of::<f32>()
    }

    fn whole(&self, id: RealId) -> Range<usize> {
        self.reals(id, self.plan.reals[id.0])
    }

    /// The bytes of an activation whose values lie one after the other.
    fn view_bytes(&self, view: &View) -> Range<usize> {
        let Source::Real(id) = view.source else {
            unreachable!("constants are not quantised while running");
        };
        let start = self.whole(id).start + view.start * size_of::<f32>();
        start..start + view.count() * size_of::<f32>()
    }

    fn float(&self, float: &Float) -> Ready {
        let operand = |view: &View| Operand {
            place: match view.source {
                Source::Real(id) => Place::Arena(self.whole(id)),
                Source::Constant(index) => Place::Constant(index),
            },
            start: view.start,
            axes: view.axes.clone(),
        };
        Ready::Float(FloatReady {
            op: float.op.clone(),
            from: float.from.iter().map(operand).collect(),
            to: self.whole(float.to),
        })
    }

    fn requant(&self, to: TensorId, range: [u8; 2]) -> Requant {
        let zero_point = self.plan.tensor(to).affine.zero_point;
        Requant { zero_point, range }
    }

    fn dense(&mut self, conv: &Conv, scratch: Range<usize>) -> Ready {
        let mut from = self.placed(conv.from);
        let (to, requant) = match conv.to {
            Target::Levels(id, range) => (self.placed(id).bytes(), Some(self.requant(id, range))),
            Target::Reals(id) => (self.whole(id), None),
        };
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
            windows: windows(conv.window, from.shape, conv.shape),
            matrix: self
                .kernels
                .pack_dense(conv, from.shape.channels, from.affine.zero_point),
            requant,
            from: from.place.clone(),
            to,
        })
    }

    fn depthwise(&self, conv: &Conv, outside: Range<usize>, to: TensorId, range: [u8; 2]) -> Ready {
        let from = self.placed(conv.from);
        Ready::Depthwise(DepthwiseReady {
            taps: self.kernels.pack_depthwise(conv, from.affine.zero_point),
            to: self.placed(to),
            outside,
            window: conv.window,
            requant: self.requant(to, range),
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

/// What a step reads or writes.
#[derive(Clone, Copy)]
enum BufferId {
    Tensor(TensorId),
    Real(RealId),
}

impl Step {
    /// What is read and what is written.
    fn buffers(&self) -> (Vec<BufferId>, BufferId) {
        let of_view = |view: &View| match view.source {
            Source::Real(id) => Some(BufferId::Real(id)),
            Source::Constant(_) => None,
        };
        match self {
            Self::Conv(conv) => {
                let to = match conv.to {
                    Target::Levels(id, _) => BufferId::Tensor(id),
                    Target::Reals(id) => BufferId::Real(id),
                };
                (vec![BufferId::Tensor(conv.from)], to)
            }
            Self::Add(add) => (
                add.from.map(BufferId::Tensor).to_vec(),
                BufferId::Tensor(add.to),
            ),
            Self::Pool(pool) => (vec![BufferId::Tensor(pool.from)], BufferId::Tensor(pool.to)),
            Self::Quantize(from, to) => {
                (of_view(from).into_iter().collect(), BufferId::Tensor(*to))
            }
            Self::Dequantize(from, to) => (vec![BufferId::Tensor(*from)], BufferId::Real(*to)),
            Self::Float(float) => {
                let from = float.from.iter().filter_map(of_view).collect();
                (from, BufferId::Real(float.to))
            }
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
