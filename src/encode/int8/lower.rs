//! From an ONNX graph to a [`Plan`].
//!
//! Two styles of int8 graph exist and both are read: operators on levels
//! (`QLinearConv`, …) and float operators between `DequantizeLinear` and
//! `QuantizeLinear`. Nodes are followed in order; a float result is not
//! computed but kept as [`Pending`] until a `QuantizeLinear` says what its
//! levels are, which is when it becomes a step. Transformers do much in floats:
//! where one of their operators reads a pending result, it becomes a step whose
//! values stay floats, seen through a [`View`].

mod float;
mod linear;
mod operands;
mod shapes;
mod window;
mod windowed;

use std::collections::HashMap;

use super::graph::{Graph, GraphError, Node};
use super::plan::{Add, Affine, IMAGE, Output, Plan, Pool, Shape, Step, Tail, Tensor, TensorId};
use super::view::{Source, View};
use super::{fuse, plan};
use linear::Linear;
use operands::Weights;

/// Resolves `graph` for images of `size` by `size` pixels.
///
/// # Errors
/// [`GraphError`] names the first node that the engine does not run, and why.
pub fn lower(graph: &Graph, size: usize) -> Result<Plan, GraphError> {
    let mut lowering = Lowering {
        graph,
        image: image_shape(graph, size)?,
        values: HashMap::from([(graph.input.name.as_str(), Value::Image)]),
        tensors: Vec::new(),
        rows: HashMap::new(),
        reals: Vec::new(),
        constants: Vec::new(),
        views: HashMap::new(),
        steps: Vec::new(),
        names: Vec::new(),
    };
    for node in &graph.nodes {
        let value = lowering.node(node)?;
        lowering.values.insert(node.output(), value);
        lowering.name_steps(&node.name);
    }
    lowering.finish()
}

struct Lowering<'a> {
    graph: &'a Graph,
    image: Shape,
    values: HashMap<&'a str, Value>,
    tensors: Vec<Tensor>,
    /// Dimensions of tensors that are rows, one after the other, and no picture.
    rows: HashMap<TensorId, Vec<usize>>,
    reals: Vec<usize>,
    constants: Vec<Vec<f32>>,
    /// Floats that were made of what a name stands for.
    views: HashMap<&'a str, View>,
    steps: Vec<Step>,
    names: Vec<String>,
}

/// What a name in the graph stands for.
#[derive(Clone)]
enum Value {
    /// The float image that the network is given.
    Image,
    /// Levels of a tensor.
    Levels(TensorId),
    /// Levels that are kept as the floats they stand for.
    LevelsOf(View, Affine),
    /// Integer sums whose scale is yet to come.
    Sums(Linear),
    /// Floats of the network's inside.
    View(View),
    /// Real values of a tensor.
    Real(TensorId),
    /// A float result that awaits its levels.
    Pending(Pending),
    /// Floats after the integer part.
    Floats(TensorId, Floats),
    /// Constant levels with their real values.
    Weights(Weights),
}

/// Operations on floats that lead to the output.
#[derive(Clone)]
struct Floats {
    tail: Vec<Tail>,
    values: usize,
}

/// A float result that awaits its levels.
#[derive(Clone)]
struct Pending {
    result: FloatOp,
    /// Bounds by Relu and Clip.
    bounds: [f32; 2],
}

#[derive(Clone)]
enum FloatOp {
    Linear(Linear),
    Add([TensorId; 2]),
    Pool(TensorId),
    Same(TensorId),
}

const UNBOUNDED: [f32; 2] = [f32::NEG_INFINITY, f32::INFINITY];

/// The image's shape; the graph may leave dimensions open.
fn image_shape(graph: &Graph, size: usize) -> Result<Shape, GraphError> {
    let fits = |dim: Option<usize>, expected| dim.is_none_or(|dim| dim == expected);
    match *graph.input.dims.as_slice() {
        [batch, channels, height, width]
            if fits(batch, 1) && fits(channels, 3) && fits(height, size) && fits(width, size) =>
        {
            Ok(Shape {
                channels: 3,
                height: size,
                width: size,
            })
        }
        _ => Err(GraphError::of_graph(format!(
            "input {}: expected [1, 3, {size}, {size}], got {:?}",
            graph.input.name, graph.input.dims
        ))),
    }
}

impl<'a> Lowering<'a> {
    fn node(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        match node.op.as_str() {
            "QuantizeLinear" => self.quantize(node),
            "DequantizeLinear" => self.dequantize(node),
            "QLinearConv" => self.quantized_conv(node),
            "QLinearMatMul" => self.quantized_matmul(node),
            "QGemm" => self.quantized_gemm(node),
            "QLinearAdd" => self.quantized_add(node),
            "QLinearGlobalAveragePool" => self.quantized_pool(node),
            "MatMulInteger" => self.integer_matmul(node),
            "ConvInteger" => self.integer_conv(node),
            "Conv" => self.float_conv(node),
            "Gemm" | "MatMul" => self.float_linear(node),
            "Add" => self.add(node),
            "GlobalAveragePool" => self.pool(node),
            "ReduceMean" => self.mean(node),
            "Relu" => self.bounded(node, [0.0, f32::INFINITY]),
            "Clip" => self.clip(node),
            "Identity" | "Dropout" | "Cast" => Ok(self.value(node, 0)?.clone()),
            "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => self.reshaped(node),
            "Transpose" => self.transposed(node),
            "Gather" => self.gathered(node),
            "Slice" => self.sliced(node),
            "Split" => self.split(node),
            "Concat" => self.joined(node),
            "Pad" => self.padded(node),
            "Expand" => self.expanded(node),
            "Sub" => self.binary(node, plan::Binary::Sub),
            "Mul" => self.multiplied(node),
            "Div" => self.binary(node, plan::Binary::Div),
            "Pow" => self.power(node),
            "Sqrt" => self.unary(node, plan::Unary::Sqrt),
            "Erf" => self.unary(node, plan::Unary::Erf),
            "Sigmoid" => self.unary(node, plan::Unary::Sigmoid),
            "Gelu" => self.gelu(node),
            fuse::QUICK_GELU => self.unary(node, plan::Unary::QuickGelu),
            "Softmax" => self.softmax(node),
            "LayerNormalization" => self.layer_norm(node),
            fuse::ATTENTION => self.attention(node),
            _ => Err(node.error("this engine has no such operator")),
        }
    }

    /// The steps that have no name yet belong to this node.
    fn name_steps(&mut self, node: &str) {
        self.names.resize(self.steps.len(), node.to_owned());
    }

    fn finish(mut self) -> Result<Plan, GraphError> {
        let name = self.graph.output.as_str();
        let output = |reason: &str| GraphError::of_graph(format!("output {name}: {reason}"));
        let tail = match self.values.get(name) {
            Some(Value::Real(last)) => Some((*last, Vec::new())),
            Some(Value::Floats(last, floats)) => Some((*last, floats.tail.clone())),
            Some(Value::Pending(pending)) => {
                let floats = pending.as_floats(&self.tensors);
                floats.map(|(last, floats)| (last, floats.tail))
            }
            Some(Value::View(_)) => None,
            Some(_) => return Err(output("holds no float values")),
            None => return Err(output("no node writes it")),
        };
        let output = match tail {
            Some((last, tail)) => Output::Levels(last, tail),
            None => self.float_output()?,
        };
        self.name_steps(name);
        // A network that never looks at its image has no tensor for it.
        if self.tensors.is_empty() {
            return Err(GraphError::of_graph("the image is never quantised"));
        }
        Ok(Plan {
            tensors: self.tensors,
            reals: self.reals,
            constants: self.constants,
            steps: self.steps,
            names: self.names,
            output,
        })
    }

    /// The value that `node` reads as input `index`.
    fn value(&self, node: &Node, index: usize) -> Result<&Value, GraphError> {
        let name = node.input(index);
        self.values.get(name).ok_or_else(|| {
            node.error(format!(
                "input {index} ({name:?}) is written by no node before this one"
            ))
        })
    }

    /// The tensor whose levels `node` reads as input `index`, where the next
    /// two inputs must say what they mean.
    fn levels(&mut self, node: &Node, index: usize) -> Result<TensorId, GraphError> {
        let id = match self.value(node, index)?.clone() {
            Value::Levels(id) => id,
            Value::LevelsOf(view, affine) => self.requantize(node, view, affine)?,
            _ => return Err(node.error(format!("input {index} is not quantised"))),
        };
        let affine = self.affine(node, index + 1)?;
        match self.tensors[id.0].affine == affine {
            true => Ok(id),
            false => Err(node.error(format!(
                "input {index} was written with {:?}, and is read with {affine:?}",
                self.tensors[id.0].affine
            ))),
        }
    }

    /// The tensor whose real values `node` reads as input `index`; one is made
    /// of a pending result where the result is plain.
    fn real(&self, node: &Node, index: usize) -> Result<TensorId, GraphError> {
        match self.value(node, index)? {
            Value::Real(id) => Ok(*id),
            Value::Image | Value::Pending(_) | Value::Floats(..) | Value::View(_) => Err(node
                .error(format!(
                    "input {index} is not quantised; only int8 operators run here"
                ))),
            Value::Levels(_) | Value::LevelsOf(..) | Value::Sums(_) => {
                Err(node.error(format!("input {index} holds levels, not floats")))
            }
            Value::Weights(_) => Err(node.error(format!("input {index} is constant"))),
        }
    }

    fn shape(&self, id: TensorId) -> Shape {
        self.tensors[id.0].shape
    }

    fn push(&mut self, shape: Shape, affine: Affine) -> TensorId {
        self.tensors.push(Tensor { shape, affine });
        TensorId(self.tensors.len() - 1)
    }

    fn quantize(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let affine = self.affine(node, 1)?;
        let id = match self.value(node, 0)?.clone() {
            Value::Image => self.quantize_image(node, affine)?,
            Value::Real(id) if self.tensors[id.0].affine == affine => id,
            Value::Real(id) => self.emit(node, Pending::of(FloatOp::Same(id)), affine)?,
            Value::Pending(pending) => self.emit(node, pending, affine)?,
            Value::View(view) => self.quantized_view(node, view, affine)?,
            Value::Floats(..) => return Err(node.error("quantises the result of a float layer")),
            Value::Levels(_) | Value::LevelsOf(..) | Value::Sums(_) | Value::Weights(_) => {
                return Err(node.error("quantises what is quantised"));
            }
        };
        Ok(Value::Levels(id))
    }

    fn quantize_image(&mut self, node: &Node, affine: Affine) -> Result<TensorId, GraphError> {
        match self.tensors.first() {
            None => Ok(self.push(self.image, affine)),
            Some(image) if image.affine == affine => Ok(IMAGE),
            Some(_) => Err(node.error("quantises the image a second time, in another way")),
        }
    }

    fn dequantize(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        match self.graph.constants.get(node.input(0)) {
            Some(constant) => Ok(Value::Weights(self.dequantized(node, constant)?)),
            None => match self.value(node, 0)?.clone() {
                Value::LevelsOf(view, affine) if self.affine(node, 1)? == affine => {
                    Ok(Value::View(view))
                }
                _ => self.levels(node, 0).map(Value::Real),
            },
        }
    }

    /// The shape of a tensor that is a picture.
    fn picture(&self, node: &Node, id: TensorId) -> Result<Shape, GraphError> {
        match self.rows.get(&id) {
            Some(rows) if self.shape(id).pixels() != 1 => {
                Err(node.error(format!("wants a picture, and reads rows of {rows:?}")))
            }
            _ => Ok(self.shape(id)),
        }
    }

    /// Makes a step of a float result whose levels are now known.
    fn emit(
        &mut self,
        node: &Node,
        pending: Pending,
        affine: Affine,
    ) -> Result<TensorId, GraphError> {
        let range = pending.bounds.map(|bound| affine.level(bound));
        let scale = |id: TensorId| self.tensors[id.0].affine.scale;
        match pending.result {
            FloatOp::Linear(linear) => self.emit_linear(node, linear, affine, range),
            FloatOp::Same(id) => {
                // A tensor in other levels: its sum with nothing.
                let ratio = [scale(id) / affine.scale, 0.0];
                self.emit_add(node, [id, id], ratio, affine, range)
            }
            FloatOp::Add(from) => {
                let ratio = from.map(|id| scale(id) / affine.scale);
                self.emit_add(node, from, ratio, affine, range)
            }
            FloatOp::Pool(from) => {
                let shape = self.shape(from);
                let ratio = scale(from) / (shape.pixels() as f32 * affine.scale);
                check_ratio(node, ratio, 255.0 * shape.pixels() as f32)?;
                let to = self.push(pooled(shape), affine);
                self.steps.push(Step::Pool(Pool {
                    from,
                    to,
                    ratio,
                    range,
                }));
                Ok(to)
            }
        }
    }

    fn emit_add(
        &mut self,
        node: &Node,
        from: [TensorId; 2],
        ratio: [f32; 2],
        affine: Affine,
        range: [u8; 2],
    ) -> Result<TensorId, GraphError> {
        for ratio in ratio {
            check_ratio(node, ratio, 255.0)?;
        }
        let to = self.push(self.shape(from[0]), affine);
        if let Some(rows) = self.rows.get(&from[0]).cloned() {
            self.rows.insert(to, rows);
        }
        self.steps.push(Step::Add(Add {
            from,
            to,
            ratio,
            range,
        }));
        Ok(to)
    }

    fn quantized_add(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let from = [self.levels(node, 0)?, self.levels(node, 3)?];
        self.check_addends(node, from)?;
        let affine = self.affine(node, 6)?;
        let id = self.emit(node, Pending::of(FloatOp::Add(from)), affine)?;
        Ok(Value::Levels(id))
    }

    fn quantized_pool(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        if node.int("channels_last", 0) != 0 {
            return Err(node.error("channels_last is set"));
        }
        let from = self.levels(node, 0)?;
        self.picture(node, from)?;
        let affine = self.affine(node, 3)?;
        let id = self.emit(node, Pending::of(FloatOp::Pool(from)), affine)?;
        Ok(Value::Levels(id))
    }

    fn add(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        if let Some(biased) = self.biased(node) {
            return Ok(Value::Pending(Pending::of(FloatOp::Linear(biased))));
        }
        match [self.real(node, 0), self.real(node, 1)] {
            [Ok(a), Ok(b)] if self.check_addends(node, [a, b]).is_ok() => {
                Ok(Value::Pending(Pending::of(FloatOp::Add([a, b]))))
            }
            _ => self.binary(node, plan::Binary::Add),
        }
    }

    /// A linear operation that awaits its levels, with a constant added.
    fn biased(&self, node: &'a Node) -> Option<Linear> {
        let either = [(0, 1), (1, 0)].into_iter();
        either.into_iter().find_map(|(value, bias)| {
            let Value::Pending(pending) = self.value(node, value).ok()? else {
                return None;
            };
            let FloatOp::Linear(linear) = &pending.result else {
                return None;
            };
            let bias = self.graph.constants.get(node.input(bias))?;
            linear
                .with_bias(bias)
                .filter(|_| pending.bounds == UNBOUNDED)
        })
    }

    fn check_addends(&self, node: &Node, [a, b]: [TensorId; 2]) -> Result<(), GraphError> {
        let alike = self.rows.get(&a) == self.rows.get(&b);
        let (a, b) = (self.shape(a), self.shape(b));
        match a == b && alike {
            true => Ok(()),
            false => Err(node.error(format!("adds {b:?} to {a:?}; expected two of one shape"))),
        }
    }

    fn pool(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let from = self.real(node, 0)?;
        self.picture(node, from)?;
        Ok(Value::Pending(Pending::of(FloatOp::Pool(from))))
    }

    /// `ReduceMean` over height and width, or in rows.
    fn mean(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let given = self
            .graph
            .constants
            .get(node.input(1))
            .and_then(|axes| axes.longs());
        let axes = given.or_else(|| node.ints("axes")).unwrap_or(&[]);
        match axes {
            [2, 3] | [3, 2] | [-2, -1] | [-1, -2] => self.pool(node),
            &[axis] => self.mean_of_rows(node, axis),
            _ => Err(node.error(format!(
                "axes {axes:?}; expected height and width, [2, 3], or the last, [-1]"
            ))),
        }
    }

    fn clip(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let bound = |index: usize, attribute, open| -> Result<f32, GraphError> {
            match node.input(index) {
                "" => Ok(node.float(attribute, open)),
                name => self.scalar(node, name),
            }
        };
        let bounds = [
            bound(1, "min", f32::NEG_INFINITY)?,
            bound(2, "max", f32::INFINITY)?,
        ];
        self.bounded(node, bounds)
    }

    fn bounded(&mut self, node: &'a Node, [low, high]: [f32; 2]) -> Result<Value, GraphError> {
        if low.is_nan() || high.is_nan() || low > high {
            return Err(node.error(format!("bounds {low} and {high}")));
        }
        if matches!(self.value(node, 0)?, Value::View(_)) {
            return self.clamped(node, [low, high]);
        }
        let mut pending = match self.value(node, 0)? {
            Value::Pending(pending) => pending.clone(),
            _ => Pending::of(FloatOp::Same(self.real(node, 0)?)),
        };
        pending.bounds = pending.bounds.map(|bound| bound.clamp(low, high));
        Ok(Value::Pending(pending))
    }
}

impl Pending {
    fn of(result: FloatOp) -> Self {
        Self {
            result,
            bounds: UNBOUNDED,
        }
    }

    fn shape(&self, tensors: &[Tensor]) -> Shape {
        let of = |id: TensorId| tensors[id.0].shape;
        match &self.result {
            FloatOp::Linear(linear) => linear.shape,
            FloatOp::Add([id, _]) | FloatOp::Same(id) => of(*id),
            FloatOp::Pool(id) => pooled(of(*id)),
        }
    }

    /// The same as operations on floats, where those are few.
    fn as_floats(&self, tensors: &[Tensor]) -> Option<(TensorId, Floats)> {
        match self.result {
            FloatOp::Pool(from) if self.bounds == UNBOUNDED => Some((
                from,
                Floats {
                    tail: vec![Tail::Pool],
                    values: tensors[from.0].shape.channels,
                },
            )),
            _ => None,
        }
    }
}

/// A picture, which lies as `[height, width, channels]`, seen as ONNX does:
/// `[1, channels, height, width]`.
fn planes(source: Source, shape: Shape) -> View {
    let Shape {
        channels,
        height,
        width,
    } = shape;
    let stored = View::whole(source, &[1, height, width, channels]);
    stored.permuted(&[0, 3, 1, 2]).unwrap_or(stored)
}

fn pooled(shape: Shape) -> Shape {
    Shape {
        height: 1,
        width: 1,
        ..shape
    }
}

/// A factor must keep sums of this size within what an integer holds.
fn check_ratio(node: &Node, ratio: f32, largest: f32) -> Result<(), GraphError> {
    match ratio.is_finite() && ratio >= 0.0 && ratio * largest < MAX_LEVEL {
        true => Ok(()),
        false => Err(node.error(format!("its scales differ too much: factor {ratio}"))),
    }
}

/// Levels before saturation stay below this, so that they fit an integer.
const MAX_LEVEL: f32 = (1 << 30) as f32;
