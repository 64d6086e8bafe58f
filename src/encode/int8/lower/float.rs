//! What transformers compute in floats.

use super::shapes::axis;
use super::{FloatOp as Awaited, Lowering, Pending, UNBOUNDED, Value, planes};
use crate::encode::int8::graph::{Data, GraphError, MAX_SIZE, Node, count};
use crate::encode::int8::kernels::{MAX_COLUMNS, MAX_KEYS};
use crate::encode::int8::plan::{
    Affine, Binary, Float, FloatOp, Output, Packed, RealId, Shape, Step, TensorId, Unary,
};
use crate::encode::int8::view::{Axis, Source, View, common, contiguous};

/// The most dimensions of a tensor.
pub const MAX_RANK: usize = 8;

impl<'a> Lowering<'a> {
    /// The floats that `node` reads as input `index`; a result that awaited its
    /// levels is computed without.
    pub fn view(&mut self, node: &'a Node, index: usize) -> Result<View, GraphError> {
        let name = node.input(index);
        if let Some(view) = self.views.get(name) {
            return Ok(view.clone());
        }
        let view = match self.graph.constants.get(name) {
            Some(constant) => match &constant.data {
                Data::F32(values) => {
                    check_dims(node, &constant.dims)?;
                    View::whole(self.push_constant(values.clone()), &constant.dims)
                }
                _ => return Err(node.error(format!("input {index} is no constant of floats"))),
            },
            None => match self.value(node, index)?.clone() {
                Value::View(view) | Value::LevelsOf(view, _) => view,
                Value::Real(id) | Value::Levels(id) => self.dequantized_view(node, id)?,
                Value::Pending(pending) => self.materialized(node, pending)?,
                Value::Weights(weights) => {
                    check_dims(node, &weights.dims)?;
                    View::whole(self.push_constant(weights.reals()), &weights.dims)
                }
                Value::Image => return Err(node.error("reads the image before it is quantised")),
                Value::Sums(_) => return Err(node.error("reads integer sums without a scale")),
                Value::Floats(..) => {
                    return Err(node.error("reads the result of a layer behind the integer part"));
                }
            },
        };
        self.views.insert(name, view.clone());
        Ok(view)
    }

    /// Makes levels of floats.
    pub fn requantize(
        &mut self,
        node: &Node,
        view: View,
        affine: Affine,
    ) -> Result<TensorId, GraphError> {
        let view = self.contiguous(node, view)?;
        let dims = view.dims();
        let channels = dims.last().copied().unwrap_or(1);
        let shape = Shape {
            channels,
            height: 1,
            width: view.count() / channels,
        };
        let id = self.push(shape, affine);
        if id == super::IMAGE {
            return Err(node.error("comes before the image is quantised"));
        }
        self.rows.insert(id, dims);
        self.steps.push(Step::Quantize(view, id));
        Ok(id)
    }

    /// Whether a result that awaits its levels is rows.
    pub fn has_rows(&self, pending: &Pending) -> bool {
        match &pending.result {
            Awaited::Linear(linear) => linear.has_rows(),
            Awaited::Add([id, _]) | Awaited::Same(id) | Awaited::Pool(id) => {
                self.rows.contains_key(id)
            }
        }
    }

    fn dequantized_view(&mut self, node: &Node, id: TensorId) -> Result<View, GraphError> {
        let shape = self.shape(id);
        let to = self.push_reals(node, &[shape.values()])?;
        self.steps.push(Step::Dequantize(id, to));
        Ok(match self.rows.get(&id) {
            Some(rows) => View::whole(Source::Real(to), rows),
            None => planes(Source::Real(to), shape),
        })
    }

    /// Computes what awaits its levels, in floats.
    fn materialized(&mut self, node: &Node, pending: Pending) -> Result<View, GraphError> {
        let view = match pending.result {
            Awaited::Linear(linear) => self.emit_reals(node, linear)?,
            Awaited::Same(id) => self.dequantized_view(node, id)?,
            Awaited::Add(from) => {
                let a = self.dequantized_view(node, from[0])?;
                let b = self.dequantized_view(node, from[1])?;
                self.combined(node, Binary::Add, a, b)?
            }
            Awaited::Pool(_) => return Err(node.error("needs the levels of a mean")),
        };
        match pending.bounds == UNBOUNDED {
            true => Ok(view),
            false => {
                let view = self.contiguous(node, view)?;
                let dims = view.dims();
                self.emit_float(
                    node,
                    FloatOp::Unary(Unary::Clamp(pending.bounds)),
                    vec![view],
                    &dims,
                )
            }
        }
    }

    /// The result of the network, in floats.
    pub fn float_output(&mut self) -> Result<Output, GraphError> {
        let graph = self.graph;
        let writer = graph
            .nodes
            .iter()
            .find(|node| node.outputs.contains(&graph.output));
        let Some(node) = writer else {
            return Err(GraphError::of_graph("the output is written by no node"));
        };
        let view = match self.values.get(graph.output.as_str()).cloned() {
            Some(Value::View(view)) => view,
            Some(Value::Pending(pending)) => self.materialized(node, pending)?,
            _ => return Err(node.error("its output holds no floats")),
        };
        let dims = view.dims();
        let to = self.push_reals(node, &dims)?;
        self.copy(view, to, 0, &contiguous(&dims));
        Ok(Output::Reals(to, dims.iter().product()))
    }

    /// An operation on two tensors, value by value.
    pub fn binary(&mut self, node: &'a Node, op: Binary) -> Result<Value, GraphError> {
        let (a, b) = (self.view(node, 0)?, self.view(node, 1)?);
        self.combined(node, op, a, b).map(Value::View)
    }

    pub fn combined(
        &mut self,
        node: &Node,
        op: Binary,
        a: View,
        b: View,
    ) -> Result<View, GraphError> {
        let wrong = || node.error(format!("joins {:?} with {:?}", a.dims(), b.dims()));
        let dims = common(&a.dims(), &b.dims()).ok_or_else(wrong)?;
        let mut from = Vec::new();
        for view in [&a, &b] {
            let view = view.broadcast(&dims).ok_or_else(wrong)?;
            let near = view
                .axes
                .last()
                .is_none_or(|axis| axis.step < 2 || axis.len == 1);
            from.push(if near {
                view
            } else {
                self.contiguous(node, view)?
            });
        }
        self.emit_float(node, FloatOp::Binary(op), from, &dims)
    }

    /// `Mul`: of sums with their scale, or of two tensors.
    pub fn multiplied(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        for (sums, factors) in [(0, 1), (1, 0)] {
            if let Some(Value::Sums(linear)) = self.values.get(node.input(sums)) {
                let factors = self.constant(node, factors)?;
                return self.scaled_sums(node, linear.clone(), factors);
            }
        }
        self.binary(node, Binary::Mul)
    }

    /// `Pow` of 2.
    pub fn power(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        if self.scalar(node, node.input(1))? != 2.0 {
            return Err(node.error("expected the power of 2"));
        }
        let view = self.view(node, 0)?;
        self.combined(node, Binary::Mul, view.clone(), view)
            .map(Value::View)
    }

    /// An operation on each value.
    pub fn unary(&mut self, node: &'a Node, op: Unary) -> Result<Value, GraphError> {
        self.of_rows(node, FloatOp::Unary(op))
    }

    /// `Gelu` in its exact form.
    pub fn gelu(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        match node.text("approximate") {
            "" | "none" => self.unary(node, Unary::Gelu),
            other => Err(node.error(format!("approximate is {other}; expected none"))),
        }
    }

    /// `Softmax` along the last dimension.
    pub fn softmax(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let view = self.view(node, 0)?;
        let columns = last_axis(node, node.int("axis", -1), &view)?;
        self.of_rows(node, FloatOp::Softmax(columns))
    }

    /// `ReduceMean` along the last dimension.
    pub fn mean_of_rows(&mut self, node: &'a Node, along: i64) -> Result<Value, GraphError> {
        let view = self.view(node, 0)?;
        let columns = last_axis(node, along, &view)?;
        let mut dims = view.dims();
        dims.pop();
        if node.int("keepdims", 1) != 0 {
            dims.push(1);
        }
        let view = self.contiguous(node, view)?;
        self.emit_float(node, FloatOp::Mean(columns), vec![view], &dims)
            .map(Value::View)
    }

    /// `LayerNormalization` along the last dimension.
    pub fn layer_norm(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let view = self.view(node, 0)?;
        let columns = last_axis(node, node.int("axis", -1), &view)?;
        let epsilon = node.float("epsilon", 1e-5);
        if !(epsilon >= 0.0 && epsilon.is_finite()) || node.outputs.len() > 1 {
            return Err(node.error(format!(
                "epsilon {epsilon}; expected one output and 0 or more"
            )));
        }
        let gamma = self.view(node, 1)?;
        let beta = match node.input(2) {
            "" => View::whole(self.push_constant(vec![0.0; columns]), &[columns]),
            _ => self.view(node, 2)?,
        };
        for factors in [&gamma, &beta] {
            if factors.count() != columns || !factors.is_contiguous() {
                let dims = factors.dims();
                return Err(node.error(format!("{dims:?} factors for rows of {columns}")));
            }
        }
        let dims = view.dims();
        let view = self.contiguous(node, view)?;
        let from = vec![view, gamma, beta];
        self.emit_float(node, FloatOp::Norm(epsilon), from, &dims)
            .map(Value::View)
    }

    /// `MatMul` or `Gemm` of floats.
    pub fn product(&mut self, node: &'a Node, transposed: bool) -> Result<Value, GraphError> {
        let a = self.view(node, 0)?;
        let mut b = self.view(node, 1)?;
        if transposed {
            let wrong = || node.error("weights without two dimensions");
            b = b.permuted(&[1, 0]).ok_or_else(wrong)?;
        }
        let product = self.multiplied_matrices(node, a, b)?;
        match node.op == "Gemm" && !node.input(2).is_empty() {
            true => {
                let bias = self.view(node, 2)?;
                self.combined(node, Binary::Add, product, bias)
                    .map(Value::View)
            }
            false => Ok(Value::View(product)),
        }
    }

    /// `Conv` of single pixels, in floats; of others as [`Lowering::windowed`].
    pub fn pointwise(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let strides: [usize; 2] = node.sizes("strides", 1)?;
        let pads: [usize; 4] = node.sizes("pads", 0)?;
        let is_point = strides == [1; 2] && pads == [0; 4] && node.int("group", 1) == 1;
        let dims = &self.constant(node, 1)?.dims;
        let (&[outputs, inputs, 1, 1], true) = (dims.as_slice(), is_point) else {
            return self.windowed(node);
        };
        let wrong = || node.error("expected a float picture");
        let pixels = self
            .view(node, 0)?
            .permuted(&[0, 2, 3, 1])
            .ok_or_else(wrong)?;
        let weight = self.view(node, 1)?.reshaped(&[outputs, inputs]);
        let weight = weight.and_then(|weight| weight.permuted(&[1, 0]));
        let result = self.multiplied_matrices(node, pixels, weight.ok_or_else(wrong)?)?;
        self.convolved(node, result)
    }

    /// The result of a `Conv`, `[pictures, height, width, channels]`, with its bias and as ONNX
    /// has pictures.
    pub fn convolved(&mut self, node: &'a Node, mut result: View) -> Result<Value, GraphError> {
        if !node.input(2).is_empty() {
            let bias = self.view(node, 2)?;
            result = self.combined(node, Binary::Add, result, bias)?;
        }
        let planes = result.permuted(&[0, 3, 1, 2]).map(Value::View);
        planes.ok_or_else(|| node.error("expected a float picture"))
    }

    /// `QLinearMatMul` of two activations, computed in floats.
    pub fn quantized_product(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let from = [self.levels(node, 0)?, self.levels(node, 3)?];
        let [a, b] = from.map(|id| self.dequantized_view(node, id));
        let product = self.multiplied_matrices(node, a?, b?)?;
        let affine = self.affine(node, 6)?;
        self.requantize(node, product, affine).map(Value::Levels)
    }

    pub fn multiplied_matrices(
        &mut self,
        node: &Node,
        a: View,
        b: View,
    ) -> Result<View, GraphError> {
        let wrong = || node.error(format!("multiplies {:?} with {:?}", a.dims(), b.dims()));
        let (a_dims, b_dims) = (a.dims(), b.dims());
        let ([a_outer @ .., rows, depth], [b_outer @ .., b_depth, columns]) =
            (a_dims.as_slice(), b_dims.as_slice())
        else {
            return Err(wrong());
        };
        let outer = common(a_outer, b_outer).filter(|_| depth == b_depth);
        let outer = outer.ok_or_else(wrong)?;
        // One matrix for all: its rows may come from anywhere.
        let (batch, rows) = match b_outer.iter().all(|&len| len == 1) {
            true => (1, a_outer.iter().product::<usize>() * rows),
            false => (outer.iter().product(), *rows),
        };
        let dims = [outer.as_slice(), &[a_dims[a_dims.len() - 2], *columns]].concat();
        let a = match batch {
            1 => self.matrices(node, a.clone(), [1, rows, *depth])?,
            _ => {
                let wide = a.broadcast(&[outer.as_slice(), &[rows, *depth]].concat());
                self.matrices(node, wide.ok_or_else(wrong)?, [batch, rows, *depth])?
            }
        };
        let b = match batch {
            1 => b.clone(),
            _ => {
                let wide = b.broadcast(&[outer.as_slice(), &[*depth, *columns]].concat());
                wide.ok_or_else(wrong)?
            }
        };
        let (b, packed) = self.packed(node, b, [batch, *depth, *columns])?;
        self.emit_float(node, FloatOp::Product(packed, 1.0), vec![a, b], &dims)
    }

    /// Attention of any number of heads, see [`fuse::ATTENTION`](super::fuse::ATTENTION).
    pub fn attention(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let [q, k, v] = [
            self.view(node, 0)?,
            self.view(node, 1)?,
            self.view(node, 2)?,
        ];
        let factor = node.float("factor", 1.0);
        let all = [q.dims(), k.dims(), v.dims()];
        let wrong = || {
            node.error(format!(
                "attention of {:?}, {:?} and {:?}",
                all[0], all[1], all[2]
            ))
        };
        let (Some([heads, rows, depth]), Some([_, _, keys]), Some([_, _, columns])) =
            (heads(&all[0]), heads(&all[1]), heads(&all[2]))
        else {
            return Err(wrong());
        };
        let fits =
            heads_are(&all[1], [heads, depth, keys]) && heads_are(&all[2], [heads, keys, columns]);
        if !fits || keys > MAX_KEYS || !(factor > 0.0 && factor.is_finite()) {
            return Err(node.error(format!("{}; at most {MAX_KEYS} keys", wrong().reason)));
        }
        let q = self.matrices(node, q, [heads, rows, depth])?;
        let (k, key_shape) = self.packed(node, k, [heads, depth, keys])?;
        let (v, value_shape) = self.packed(node, v, [heads, keys, columns])?;
        let op = FloatOp::Attention(key_shape, value_shape, factor);
        let joined = self.emit_float(node, op, vec![q, k, v], &[rows, heads, columns])?;
        let turned = joined.permuted(&[1, 0, 2]).unwrap_or(joined);
        let lead = all[0].len() - 3;
        let mut axes = vec![Axis { len: 1, step: 0 }; lead];
        axes.extend(&turned.axes);
        Ok(Value::View(View { axes, ..turned }))
    }

    /// The same as matrices whose rows have no gaps.
    fn matrices(&mut self, node: &Node, view: View, dims: [usize; 3]) -> Result<View, GraphError> {
        let seen = view
            .reshaped(&dims)
            .filter(|view| view.axes[2].step == 1 || dims[2] == 1);
        match seen {
            Some(view) => Ok(view),
            None => {
                let moved = self.contiguous(node, view)?;
                let wrong = || node.error(format!("reads {:?} as {dims:?}", moved.dims()));
                moved.reshaped(&dims).ok_or_else(wrong)
            }
        }
    }

    /// The same as matrices whose rows are filled up to whole vectors.
    fn packed(
        &mut self,
        node: &Node,
        view: View,
        [count, depth, columns]: [usize; 3],
    ) -> Result<(View, Packed), GraphError> {
        let packed = Packed {
            count,
            depth,
            columns,
        };
        if columns > MAX_COLUMNS || view.count() != count * depth * columns {
            let dims = view.dims();
            return Err(node.error(format!(
                "{dims:?} as {count} matrices of {depth} by {columns}"
            )));
        }
        let to = self.push_reals(node, &[count, depth, packed.step()])?;
        let mut places = contiguous(&[count, depth, packed.step()]);
        places[2].len = columns;
        let dims = [count, depth, columns];
        let view = match view.reshaped(&dims) {
            Some(view) => view,
            None => {
                let moved = self.contiguous(node, view)?;
                let wrong = || node.error(format!("reads {:?} as {dims:?}", moved.dims()));
                moved.reshaped(&dims).ok_or_else(wrong)?
            }
        };
        self.copy(view, to, 0, &places);
        Ok((View::whole(Source::Real(to), &[packed.values()]), packed))
    }

    pub fn of_rows(&mut self, node: &'a Node, op: FloatOp) -> Result<Value, GraphError> {
        let view = self.view(node, 0)?;
        let view = self.contiguous(node, view)?;
        let dims = view.dims();
        self.emit_float(node, op, vec![view], &dims)
            .map(Value::View)
    }

    pub fn emit_float(
        &mut self,
        node: &Node,
        op: FloatOp,
        from: Vec<View>,
        dims: &[usize],
    ) -> Result<View, GraphError> {
        let to = self.push_reals(node, dims)?;
        self.steps.push(Step::Float(Float { op, from, to }));
        Ok(View::whole(Source::Real(to), dims))
    }

    /// Room for floats of these dimensions.
    pub fn push_reals(&mut self, node: &Node, dims: &[usize]) -> Result<RealId, GraphError> {
        check_dims(node, dims)?;
        self.reals.push(dims.iter().product());
        Ok(RealId(self.reals.len() - 1))
    }

    /// Constant floats.
    pub fn push_constant(&mut self, values: Vec<f32>) -> Source {
        self.constants.push(values);
        Source::Constant(self.constants.len() - 1)
    }
}

/// Passes dimensions within reason.
fn check_dims(node: &Node, dims: &[usize]) -> Result<(), GraphError> {
    let sizes = dims.iter().all(|dim| (1..=MAX_VALUES_ALONG).contains(dim));
    match sizes && dims.len() <= MAX_RANK && count(dims).is_some() {
        true => Ok(()),
        false => Err(node.error(format!("a tensor of {dims:?}"))),
    }
}

/// The most values along one dimension: a whole picture, flat.
const MAX_VALUES_ALONG: usize = MAX_SIZE * MAX_SIZE;

/// Length of the last dimension, which `along` must name.
fn last_axis(node: &Node, along: i64, view: &View) -> Result<usize, GraphError> {
    let rank = view.axes.len();
    match axis(node, along, rank)? + 1 == rank {
        true => Ok(view.axes[rank - 1].len),
        false => Err(node.error(format!("axis {along} of {rank}; expected the last"))),
    }
}

/// Heads, rows and columns of `[…, heads, rows, columns]` for one picture.
fn heads(dims: &[usize]) -> Option<[usize; 3]> {
    match *dims {
        [ref outer @ .., heads, rows, columns] if outer.iter().all(|&len| len == 1) => {
            Some([heads, rows, columns])
        }
        _ => None,
    }
}

fn heads_are(dims: &[usize], expected: [usize; 3]) -> bool {
    heads(dims) == Some(expected)
}
