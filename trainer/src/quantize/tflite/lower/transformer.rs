//! What transformers do between and in their products: rows of floats, and weights in int8.
//!
//! The ONNX file rounds what is multiplied to levels of one scale. TensorFlow Lite multiplies
//! floats with int8 weights by rounding each row to levels of its own, so those scales are not
//! written; the weights and theirs are the same.

use std::collections::{HashMap, HashSet};

use tract_onnx::pb::NodeProto;

use super::{Lowering, Value, argument};
use crate::quantize::tflite::graph::{View, int, signed};
use crate::quantize::tflite::model::{Element, Kind, Quantization, Tensor};

/// What is known of the graph before its nodes are followed.
#[derive(Default)]
pub struct Ahead {
    /// Quantised values that nothing but integer products read.
    rounded: HashSet<String>,
    /// From the last value of `x · (½ + ½ erf(x/√2))` to `x`.
    gelus: HashMap<String, String>,
    /// The values in between.
    inner: HashSet<String>,
}

impl Ahead {
    pub fn of(graph: &View<'_>) -> Self {
        let mut ahead = Self::default();
        for node in graph.nodes {
            let Some(output) = node.output.first() else {
                continue;
            };
            match node.op_type.as_str() {
                "QuantizeLinear" => {
                    let mut readers = readers(graph, output).peekable();
                    let integer = |n: &NodeProto| n.op_type.ends_with("Integer");
                    if readers.peek().is_some() && readers.all(integer) {
                        ahead.rounded.insert(output.clone());
                    }
                }
                "Erf" => ahead.gelu(graph, node),
                _ => {}
            }
        }
        ahead
    }

    /// Follows an error function to the ends of the GELU that it belongs to.
    fn gelu(&mut self, graph: &View<'_>, erf: &NodeProto) {
        let constant = |node: &NodeProto, expected: f32| {
            let value = node.input.get(1).and_then(|name| graph.float(name).ok());
            value.is_some_and(|value| (value - expected).abs() < 1e-6)
        };
        let only = |node: &NodeProto, op: &str| -> Option<NodeProto> {
            let mut readers = readers(graph, node.output.first()?);
            let reader = readers.next().filter(|reader| reader.op_type == op)?;
            readers.next().is_none().then(|| reader.clone())
        };
        let found = || {
            let mut nodes = graph.nodes.iter();
            let scaled = nodes.find(|node| node.output.first() == erf.input.first())?;
            let half = only(erf, "Mul")?;
            let gate = only(&half, "Add")?;
            let last = only(&gate, "Mul")?;
            let x = scaled.input.first()?;
            let whole = scaled.op_type == "Mul"
                && constant(scaled, std::f32::consts::FRAC_1_SQRT_2)
                && constant(&half, 0.5)
                && constant(&gate, 0.5)
                && last.input.contains(x);
            let inner = [scaled, erf, &half, &gate].into_iter();
            let inner: Option<Vec<String>> =
                inner.map(|node| node.output.first().cloned()).collect();
            let last = last.output.first()?.clone();
            inner
                .filter(|_| whole)
                .map(|inner| (inner, last, x.clone()))
        };
        // Without the whole of it the error function is refused where it is met.
        if let Some((inner, last, x)) = found() {
            self.inner.extend(inner);
            self.gelus.insert(last, x);
        }
    }
}

fn readers<'a>(graph: &View<'a>, value: &'a str) -> impl Iterator<Item = &'a NodeProto> {
    let reads = move |node: &&NodeProto| node.input.iter().any(|input| input == value);
    graph.nodes.iter().filter(reads)
}

impl Lowering<'_> {
    /// Nodes that are part of something larger.
    pub(super) fn foreseen(&mut self, node: &NodeProto) -> Result<Option<Value>, String> {
        let output = node.output.first().map(String::as_str).unwrap_or_default();
        if self.ahead.inner.contains(output) {
            return Ok(Some(Value::Inner));
        }
        if let Some(x) = self.ahead.gelus.get(output).cloned() {
            let input = self.floats(&x)?;
            return Ok(Some(self.same_shape(Kind::Gelu, input, output)));
        }
        if self.ahead.rounded.contains(output) {
            let input = self.floats(argument(node, 0)?)?;
            let scale = self.graph.float(argument(node, 1)?)?;
            return Ok(Some(Value::Rounded(input, scale)));
        }
        Ok(None)
    }

    /// `MatMulInteger` and `ConvInteger`: sums whose scale is yet to come.
    pub(super) fn integer_sums(&self, node: &NodeProto) -> Result<Value, String> {
        match self.value(argument(node, 0)?)? {
            Value::Rounded(input, scale) => Ok(Value::Sums {
                input,
                scale,
                output: node.output[0].clone(),
            }),
            _ => Err("expected to read what is quantised for integer products alone".into()),
        }
    }

    /// `Mul`: of sums with their scale, or as any other.
    pub(super) fn multiplied(&mut self, node: &NodeProto) -> Result<Value, String> {
        match self.value(argument(node, 0)?) {
            Ok(Value::Sums {
                input,
                scale,
                output,
            }) => {
                let factors = self.graph.floats(argument(node, 1)?)?;
                let scales = factors.iter().map(|factor| factor / scale).collect();
                let mut nodes = self.graph.nodes.iter();
                let of = nodes.find(|node| node.output.first() == Some(&output));
                let of = of.ok_or_else(|| format!("{output}: comes from no node"))?;
                match of.op_type.as_str() {
                    "MatMulInteger" => self.integer_rows(of, node, input, scales),
                    _ => self.real_conv(of, node, input, scales),
                }
            }
            _ => self.binary(Kind::Mul, node),
        }
    }

    /// Rows of floats times weights in int8.
    fn integer_rows(
        &mut self,
        of: &NodeProto,
        node: &NodeProto,
        input: usize,
        scales: Vec<f32>,
    ) -> Result<Value, String> {
        let name = argument(of, 1)?;
        let [inputs, outputs] = self.matrix(name)?;
        let levels = self.weight_levels(of)?;
        if scales.len() != outputs || levels.len() != inputs * outputs {
            return Err(format!("{name}: expected a scale for each output"));
        }
        let turned = turned(&levels, [inputs, outputs]);
        let weight = Tensor {
            name: name.into(),
            shape: vec![outputs, inputs],
            element: Element::I8,
            quantization: Some(Quantization {
                scales,
                zero_point: 0,
                axis: 0,
            }),
            data: turned.map(|level| level as u8).collect(),
        };
        self.fully_connected(node, input, weight)
    }

    /// Patches of the picture, times what the weights in int8 stand for.
    fn real_conv(
        &mut self,
        of: &NodeProto,
        node: &NodeProto,
        input: usize,
        scales: Vec<f32>,
    ) -> Result<Value, String> {
        let levels = self.weight_levels(of)?;
        let each = (levels.len() / scales.len().max(1)).max(1);
        let rows = levels.chunks(each).zip(&scales);
        let real = |(row, &scale): (&[i32], &f32)| {
            let real = |&level: &i32| level as f32 * scale;
            row.iter().map(real).collect::<Vec<_>>()
        };
        let weights: Vec<f32> = rows.flat_map(real).collect();
        self.plain_conv(of, input, weights, vec![0.0; scales.len()], &node.output[0])
    }

    /// The weights of an integer product, whose scales have no zero point beside them.
    fn weight_levels(&self, of: &NodeProto) -> Result<Vec<i32>, String> {
        let name = argument(of, 1)?;
        let weight = self.graph.bytes(name)?;
        match weight.signed && of.input.len() <= 3 {
            true => Ok(weight.values),
            false => Err(format!(
                "{name}: expected signed weights without a zero point"
            )),
        }
    }

    /// `MatMul`: with constant floats, or of two values.
    pub(super) fn product(&mut self, node: &NodeProto) -> Result<Value, String> {
        let input = self.floats(argument(node, 0)?)?;
        let name = argument(node, 1)?;
        if !self.graph.is_constant(name) {
            return self.batch_product(node, input);
        }
        let [inputs, outputs] = self.matrix(name)?;
        let weight = self.graph.floats(name)?;
        if weight.len() != inputs * outputs {
            return Err(format!("{name}: expected {inputs} × {outputs} values"));
        }
        let turned = turned(&weight, [inputs, outputs]);
        let weight = Tensor {
            name: name.into(),
            shape: vec![outputs, inputs],
            element: Element::F32,
            quantization: None,
            data: turned.flat_map(f32::to_le_bytes).collect(),
        };
        self.fully_connected(node, input, weight)
    }

    fn fully_connected(
        &mut self,
        node: &NodeProto,
        input: usize,
        weight: Tensor,
    ) -> Result<Value, String> {
        let mut shape = self.model.tensors[input].shape.clone();
        let (outputs, inputs) = (weight.shape[0], weight.shape[1]);
        match shape.last_mut() {
            Some(last) if *last == inputs => *last = outputs,
            _ => return Err(format!("expected rows of {inputs} values, got {shape:?}")),
        }
        let weight = self.tensor(weight);
        let bias = self.real_constant(
            format!("{}.zeros", node.name),
            &[outputs],
            &vec![0.0; outputs],
        );
        let output = self.activation(&node.output[0], &shape, None);
        self.push(Kind::FullyConnected, vec![input, weight, bias], output);
        Ok(Value::Tensor(output))
    }

    fn batch_product(&mut self, node: &NodeProto, a: usize) -> Result<Value, String> {
        let b = self.floats(argument(node, 1)?)?;
        let shapes = [a, b].map(|tensor| self.model.tensors[tensor].shape.clone());
        let ([outer @ .., rows, depth], [others @ .., inner, columns]) = (&*shapes[0], &*shapes[1])
        else {
            return Err(format!("multiplies {shapes:?}"));
        };
        if outer != others || depth != inner {
            return Err(format!("multiplies {shapes:?}"));
        }
        let shape = [outer, &[*rows, *columns]].concat();
        let output = self.activation(&node.output[0], &shape, None);
        self.push(Kind::BatchMatMul, vec![a, b], output);
        Ok(Value::Tensor(output))
    }

    /// An operation on two values, of which one may be constant.
    pub(super) fn binary(&mut self, kind: Kind, node: &NodeProto) -> Result<Value, String> {
        let operands = [self.operand(node, 0)?, self.operand(node, 1)?];
        let [a, b] = operands.map(|tensor| self.model.tensors[tensor].shape.clone());
        let shape = common(&a, &b).ok_or_else(|| format!("joins {a:?} with {b:?}"))?;
        let output = self.activation(&node.output[0], &shape, None);
        self.push(kind, operands.to_vec(), output);
        Ok(Value::Tensor(output))
    }

    pub(super) fn softmax(&mut self, node: &NodeProto) -> Result<Value, String> {
        let input = self.floats(argument(node, 0)?)?;
        let rank = self.model.tensors[input].shape.len() as i64;
        match int(node, "axis", -1) {
            axis if axis == -1 || axis == rank - 1 => {
                Ok(self.same_shape(Kind::Softmax, input, &node.output[0]))
            }
            axis => Err(format!("axis {axis}: expected the last")),
        }
    }

    /// `ReduceMean` along the last axis, which stays.
    pub(super) fn mean_of_rows(&mut self, node: &NodeProto) -> Result<Value, String> {
        let input = self.floats(argument(node, 0)?)?;
        let mut shape = self.model.tensors[input].shape.clone();
        let axes = signed(node, "axes");
        let wrong = || format!("axes {axes:?}: expected the last, kept");
        let last = shape.len().checked_sub(1).ok_or_else(wrong)?;
        match axes {
            &[axis] if (axis == -1 || axis == last as i64) && int(node, "keepdims", 1) == 1 => {}
            _ => return Err(wrong()),
        }
        shape[last] = 1;
        let axes = self.constant(format!("{}.axes", node.name), &[1], &[last as i32]);
        let output = self.activation(&node.output[0], &shape, None);
        self.push(Kind::Mean, vec![input, axes], output);
        Ok(Value::Tensor(output))
    }

    /// `Reshape`. Of a picture it is the first half of turning its pixels into rows, which lie so
    /// already.
    pub(super) fn reshaped(&mut self, node: &NodeProto) -> Result<Value, String> {
        let name = argument(node, 0)?;
        let input = self.floats(name)?;
        let shape = self.model.tensors[input].shape.clone();
        let given = self.graph.longs(argument(node, 1)?)?;
        let sizes = given.iter().enumerate().map(|(axis, &size)| match size {
            0 => shape.get(axis).copied(),
            size => usize::try_from(size).ok(),
        });
        let sizes: Option<Vec<usize>> = sizes.collect();
        let sizes = sizes.ok_or_else(|| format!("shape {given:?}"))?;
        if self.pictures.contains(&input) {
            return match (&*shape, &*given) {
                ([1, height, width, channels], &[0, depth, places])
                    if *channels as i64 == depth && (height * width) as i64 == places =>
                {
                    Ok(Value::Planes(input))
                }
                _ => Err(format!("reshapes a picture to {given:?}")),
            };
        }
        let count = sizes
            .iter()
            .try_fold(1_usize, |all, &size| all.checked_mul(size));
        if count != Some(shape.iter().product()) || sizes.is_empty() {
            return Err(format!("reshapes {shape:?} to {given:?}"));
        }
        // A row as a picture of one pixel.
        let sizes = match sizes[..] {
            [1, channels, 1, 1] => vec![1, 1, 1, channels],
            _ => sizes,
        };
        Ok(Value::Tensor(self.in_shape(input, &node.output[0], &sizes)))
    }

    pub(super) fn transposed(&mut self, node: &NodeProto) -> Result<Value, String> {
        let order = signed(node, "perm");
        let name = argument(node, 0)?;
        if let Value::Planes(picture) = self.value(name)? {
            let [_, height, width, channels] = self.model.tensors[picture].shape[..] else {
                return Err("expected a picture".into());
            };
            return match order {
                [0, 2, 1] => {
                    let rows = [1, height * width, channels];
                    Ok(Value::Tensor(self.in_shape(
                        picture,
                        &node.output[0],
                        &rows,
                    )))
                }
                _ => Err(format!("turns the planes of a picture by {order:?}")),
            };
        }
        let input = self.floats(name)?;
        let shape = self.model.tensors[input].shape.clone();
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..shape.len() as i64) {
            return Err(format!("turns {shape:?} by {order:?}"));
        }
        let turned: Vec<usize> = order.iter().map(|&axis| shape[axis as usize]).collect();
        let order: Vec<i32> = order.iter().map(|&axis| axis as i32).collect();
        let order = self.constant(format!("{}.perm", node.name), &[order.len()], &order);
        let output = self.activation(&node.output[0], &turned, None);
        self.push(Kind::Transpose, vec![input, order], output);
        Ok(Value::Tensor(output))
    }

    /// `Pad` with zeros.
    pub(super) fn padded(&mut self, node: &NodeProto) -> Result<Value, String> {
        let input = self.floats(argument(node, 0)?)?;
        let mut shape = self.model.tensors[input].shape.clone();
        let pads = self.graph.longs(argument(node, 1)?)?;
        let rank = shape.len();
        let small = pads.iter().all(|pad| (0..1 << 20).contains(pad));
        if pads.len() != 2 * rank || !small || node.input.len() > 2 {
            return Err(format!("pads {pads:?}: expected zeros around {shape:?}"));
        }
        let counts = (0..rank).flat_map(|axis| [pads[axis] as i32, pads[rank + axis] as i32]);
        let counts: Vec<i32> = counts.collect();
        for (size, pair) in shape.iter_mut().zip(counts.chunks(2)) {
            *size += (pair[0] + pair[1]) as usize;
        }
        let counts = self.constant(format!("{}.counts", node.name), &[rank, 2], &counts);
        let output = self.activation(&node.output[0], &shape, None);
        self.push(Kind::Pad, vec![input, counts], output);
        Ok(Value::Tensor(output))
    }

    /// `Gather` of one row.
    pub(super) fn gathered(&mut self, node: &NodeProto) -> Result<Value, String> {
        let input = self.floats(argument(node, 0)?)?;
        let shape = self.model.tensors[input].shape.clone();
        let index = self.graph.longs(argument(node, 1)?)?;
        let (&[1, rows, width], &[row], 1) = (&*shape, &*index, int(node, "axis", 0)) else {
            return Err(format!("expected one row of {shape:?}"));
        };
        let row = usize::try_from(row).ok().filter(|&row| row < rows);
        let row = row.ok_or_else(|| format!("row {index:?} of {rows}"))?;
        let name = &node.output[0];
        let begin = self.constant(format!("{name}.begin"), &[3], &[0, row as i32, 0]);
        let size = self.constant(format!("{name}.size"), &[3], &[1, 1, width as i32]);
        let slice = self.activation(&format!("{name}.slice"), &[1, 1, width], None);
        self.push(Kind::Slice, vec![input, begin, size], slice);
        Ok(Value::Tensor(self.in_shape(slice, name, &[1, width])))
    }

    fn operand(&mut self, node: &NodeProto, index: usize) -> Result<usize, String> {
        let name = argument(node, index)?;
        if !self.graph.is_constant(name) {
            return self.floats(name);
        }
        let (values, shape) = (self.graph.floats(name)?, self.graph.sizes(name)?);
        match shape.iter().product::<usize>() == values.len() {
            true => Ok(self.real_constant(name.into(), &shape, &values)),
            false => Err(format!("{name}: {} values for {shape:?}", values.len())),
        }
    }

    fn real_constant(&mut self, name: String, shape: &[usize], values: &[f32]) -> usize {
        self.tensor(Tensor {
            name,
            shape: shape.into(),
            element: Element::F32,
            quantization: None,
            data: values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        })
    }

    /// The same floats in another shape.
    fn in_shape(&mut self, input: usize, name: &str, shape: &[usize]) -> usize {
        let sizes: Vec<i32> = shape.iter().map(|&size| size as i32).collect();
        let sizes = self.constant(format!("{name}.sizes"), &[shape.len()], &sizes);
        let output = self.activation(name, shape, None);
        self.push(Kind::Reshape, vec![input, sizes], output);
        output
    }

    /// Inputs and outputs of constant weights.
    fn matrix(&self, name: &str) -> Result<[usize; 2], String> {
        let sizes = self.graph.sizes(name)?;
        let pair: Result<[usize; 2], _> = sizes.try_into();
        pair.map_err(|sizes| format!("{name}: expected [inputs, outputs], got {sizes:?}"))
    }
}

/// `[inputs, outputs]` as `[outputs, inputs]`.
fn turned<T: Copy>(values: &[T], [inputs, outputs]: [usize; 2]) -> impl Iterator<Item = T> {
    (0..inputs * outputs).map(move |at| values[at % inputs * outputs + at / inputs])
}

/// The shape to which two are repeated; none where they do not fit.
fn common(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |shape: &[usize], axis: usize| match (axis + shape.len()).checked_sub(rank) {
        Some(axis) => shape[axis],
        None => 1,
    };
    let joint = |axis| match (at(a, axis), at(b, axis)) {
        (a, b) if a == b || b == 1 => Some(a),
        (1, b) => Some(b),
        _ => None,
    };
    (0..rank).map(joint).collect()
}
