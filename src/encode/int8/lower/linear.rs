//! Convolutions and linear layers, in either style.

use super::operands::Weights;
use super::window::{is_depthwise, window};
use super::{FloatOp, Floats, Lowering, MAX_LEVEL, Pending, Value, planes};
use crate::encode::int8::graph::{Constant, Data, GraphError, MAX_SIZE, Node, count};
use crate::encode::int8::plan::{Affine, Conv, Shape, Step, Tail, Target, TensorId, Window};
use crate::encode::int8::view::{Source, View};

/// A linear operation on levels whose result has no levels yet.
#[derive(Clone)]
pub struct Linear {
    /// Shape of the result.
    pub shape: Shape,
    from: TensorId,
    window: Window,
    depthwise: bool,
    /// `[output, input, row, column]`.
    weight: Vec<i8>,
    /// One for each output.
    scales: Vec<f32>,
    bias: Bias,
    /// Dimensions of the result, where it is rows and no picture.
    rows: Option<Vec<usize>>,
}

/// A bias as the graph holds it.
#[derive(Clone)]
enum Bias {
    None,
    /// In units of input scale · weight scale.
    Levels(Vec<i32>),
    Real(Vec<f64>),
}

impl<'a> Lowering<'a> {
    /// `QLinearConv`: x, w and y with scale and zero point each, then the bias.
    pub fn quantized_conv(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let from = self.levels(node, 0)?;
        let weights = self.weights(node, 3, 0)?;
        let bias = self.integer_bias(node, 8)?;
        let linear = self.conv(node, from, &weights, bias)?;
        self.emit_as_levels(node, linear, 6)
    }

    /// `QLinearMatMul`: a, b and y with scale and zero point each.
    pub fn quantized_matmul(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let from = self.levels(node, 0)?;
        if !self.graph.constants.contains_key(node.input(3)) {
            return self.quantized_product(node);
        }
        let weights = self.weights(node, 3, 1)?;
        let linear = self.layer(node, from, &weights, false, Bias::None)?;
        self.emit_as_levels(node, linear, 6)
    }

    /// `MatMulInteger`: a, b and their zero points.
    pub fn integer_matmul(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let from = self.integer_levels(node)?;
        let weights = self.integer_weights(node, 1)?;
        let linear = self.layer(node, from, &weights, false, Bias::None)?;
        Ok(Value::Sums(linear))
    }

    /// `ConvInteger`: x, w and their zero points.
    pub fn integer_conv(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let from = self.integer_levels(node)?;
        let weights = self.integer_weights(node, 0)?;
        let linear = self.conv(node, from, &weights, Bias::None)?;
        Ok(Value::Sums(linear))
    }

    /// Integer sums times a constant, which is what one of them means.
    pub fn scaled_sums(
        &self,
        node: &Node,
        mut sums: Linear,
        factors: &Constant,
    ) -> Result<Value, GraphError> {
        let outputs = sums.scales.len();
        let scale = self.tensors[sums.from.0].affine.scale;
        let factors = sums.along_outputs(factors).ok_or_else(|| {
            node.error(format!(
                "multiplies sums with {:?}; expected one number, or one for each of {outputs} outputs",
                factors.dims
            ))
        })?;
        sums.scales = factors.iter().map(|factor| factor / scale).collect();
        match sums
            .scales
            .iter()
            .all(|scale| scale.is_normal() && *scale > 0.0)
        {
            true => Ok(Value::Pending(Pending::of(FloatOp::Linear(sums)))),
            false => Err(node.error("a scale of its sums is not positive")),
        }
    }

    /// `QGemm`: A and B with scale and zero point each, C, then y's.
    pub fn quantized_gemm(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let transposed = gemm_transposes(node)?;
        let from = self.levels(node, 0)?;
        let weights = self.weights(node, 3, usize::from(!transposed))?;
        let bias = self.integer_bias(node, 6)?;
        let linear = self.layer(node, from, &weights, transposed, bias)?;
        self.emit_as_levels(node, linear, 7)
    }

    /// `Conv` between `DequantizeLinear` and `QuantizeLinear`.
    pub fn float_conv(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        if self.graph.constants.contains_key(node.input(1)) {
            return self.pointwise(node);
        }
        let from = self.real(node, 0)?;
        let weights = self.dequantized_weights(node, 1)?;
        let bias = self.float_bias(node, 2)?;
        let linear = self.conv(node, from, &weights, bias)?;
        Ok(Value::Pending(Pending::of(FloatOp::Linear(linear))))
    }

    /// `Gemm` or `MatMul`, of levels or of floats.
    pub fn float_linear(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let transposed = node.op == "Gemm" && gemm_transposes(node)?;
        if let Some(constant) = self.graph.constants.get(node.input(1))
            && let Data::F32(weight) = &constant.data
        {
            return match self.floats(node) {
                Ok(floats) => self.float_layer(node, floats, weight, &constant.dims, transposed),
                Err(_) => self.product(node, transposed),
            };
        }
        if !matches!(self.value(node, 1)?, Value::Weights(_)) {
            return self.product(node, transposed);
        }
        let from = self.real(node, 0)?;
        let weights = self.dequantized_weights(node, 1)?;
        let bias = self.float_bias(node, 2)?;
        let linear = self.layer(node, from, &weights, transposed, bias)?;
        Ok(Value::Pending(Pending::of(FloatOp::Linear(linear))))
    }

    /// A layer in floats behind the integer part.
    fn float_layer(
        &self,
        node: &Node,
        (id, mut floats): (TensorId, Floats),
        weight: &[f32],
        dims: &[usize],
        transposed: bool,
    ) -> Result<Value, GraphError> {
        let [inputs, outputs] = matrix(node, dims, transposed)?;
        if inputs != floats.values {
            return Err(node.error(format!("{inputs} inputs for {} values", floats.values)));
        }
        let bias = match self.float_bias(node, 2)? {
            Bias::Real(bias) => bias.iter().map(|&value| value as f32).collect(),
            _ => vec![0.0; outputs],
        };
        check_count(node, "biases", bias.len(), outputs)?;
        let at = |output: usize, input: usize| match transposed {
            true => weight[output * inputs + input],
            false => weight[input * outputs + output],
        };
        let weight = (0..outputs * inputs)
            .map(|i| at(i / inputs, i % inputs))
            .collect();
        floats.tail.push(Tail::Linear { weight, bias });
        floats.values = outputs;
        Ok(Value::Floats(id, floats))
    }

    /// What a float layer reads.
    fn floats(&self, node: &Node) -> Result<(TensorId, Floats), GraphError> {
        let floats = match self.value(node, 0)? {
            Value::Real(id) if self.shape(*id).pixels() == 1 => {
                let values = self.shape(*id).channels;
                Some((
                    *id,
                    Floats {
                        tail: Vec::new(),
                        values,
                    },
                ))
            }
            Value::Floats(id, floats) => Some((*id, floats.clone())),
            Value::Pending(pending) => pending.as_floats(&self.tensors),
            _ => None,
        };
        floats.ok_or_else(|| node.error("a float layer can only come after the integer part"))
    }

    fn emit_as_levels(
        &mut self,
        node: &Node,
        linear: Linear,
        output: usize,
    ) -> Result<Value, GraphError> {
        let affine = self.affine(node, output)?;
        let id = self.emit(node, Pending::of(FloatOp::Linear(linear)), affine)?;
        Ok(Value::Levels(id))
    }

    /// Makes a step of a linear operation whose levels are now known.
    pub fn emit_linear(
        &mut self,
        node: &Node,
        linear: Linear,
        affine: Affine,
        range: [u8; 2],
    ) -> Result<TensorId, GraphError> {
        let input = self.tensors[linear.from.0].affine;
        let unit = |scale: f32| f64::from(input.scale) * f64::from(scale);
        let bias = linear.bias.levels(node, &linear.scales, unit)?;
        // In the order in which ONNX Runtime rounds.
        let multiplier: Vec<f32> = linear
            .scales
            .iter()
            .map(|scale| input.scale * scale / affine.scale)
            .collect();
        check_sums(node, &linear.weight, &bias, &multiplier)?;
        let to = self.push(linear.shape, affine);
        if let Some(rows) = &linear.rows {
            self.rows.insert(to, rows.clone());
        }
        let no_offset = Vec::new();
        self.push_conv(
            linear,
            Target::Levels(to, range),
            (bias, no_offset),
            multiplier,
        );
        Ok(to)
    }

    /// Makes a step of a linear operation whose result stays in floats.
    pub fn emit_reals(&mut self, node: &Node, linear: Linear) -> Result<View, GraphError> {
        if linear.depthwise {
            return Err(node.error("needs the levels of a depthwise convolution's result"));
        }
        let scale = self.tensors[linear.from.0].affine.scale;
        let multiplier: Vec<f32> = linear.scales.iter().map(|other| scale * other).collect();
        let bias = vec![0; multiplier.len()];
        let offset = linear.bias.reals(node, &multiplier)?;
        check_sums(node, &linear.weight, &bias, &multiplier)?;
        let id = self.push_reals(node, &[linear.shape.values()])?;
        let view = match &linear.rows {
            Some(rows) => View::whole(Source::Real(id), rows),
            None => planes(Source::Real(id), linear.shape),
        };
        self.push_conv(linear, Target::Reals(id), (bias, offset), multiplier);
        Ok(view)
    }

    fn push_conv(
        &mut self,
        linear: Linear,
        to: Target,
        (bias, offset): (Vec<i32>, Vec<f32>),
        multiplier: Vec<f32>,
    ) {
        self.steps.push(Step::Conv(Conv {
            from: linear.from,
            to,
            shape: linear.shape,
            window: linear.window,
            depthwise: linear.depthwise,
            weight: linear.weight,
            bias,
            multiplier,
            offset,
        }));
    }

    fn conv(
        &self,
        node: &Node,
        from: TensorId,
        weights: &Weights,
        bias: Bias,
    ) -> Result<Linear, GraphError> {
        let &[outputs, inputs, height, width] = weights.dims.as_slice() else {
            return Err(node.error(format!(
                "weights of {:?}; expected 4 dimensions",
                weights.dims
            )));
        };
        let shape = self.picture(node, from)?;
        let depthwise = is_depthwise(node, shape.channels, outputs, inputs)?;
        let window = window(node, [height, width], shape)?;
        let fitted = window.output(shape.height, shape.width);
        let [height, width] = fitted
            .ok_or_else(|| node.error(format!("a kernel of {:?} on {shape:?}", window.kernel)))?;
        let linear = Linear {
            shape: Shape {
                channels: outputs,
                height,
                width,
            },
            from,
            window,
            depthwise,
            weight: weights.bytes(node)?,
            scales: weights.scales_along(node, 0)?,
            bias,
            rows: None,
        };
        checked(node, linear)
    }

    /// A linear layer; its weights are `[input, output]`, or the other way
    /// round where `transposed`.
    fn layer(
        &self,
        node: &Node,
        from: TensorId,
        weights: &Weights,
        transposed: bool,
        bias: Bias,
    ) -> Result<Linear, GraphError> {
        let [inputs, outputs] = matrix(node, &weights.dims, transposed)?;
        let shape = self.shape(from);
        let mut rows = self.rows.get(&from).cloned();
        if (shape.pixels() != 1 && rows.is_none()) || shape.channels != inputs {
            return Err(node.error(format!("a layer of {inputs} inputs on {shape:?}")));
        }
        if let Some(last) = rows.as_mut().and_then(|rows| rows.last_mut()) {
            *last = outputs;
        }
        let bytes = weights.bytes(node)?;
        let bytes = match transposed {
            true => bytes,
            false => (0..outputs * inputs)
                .map(|i| bytes[i % inputs * outputs + i / inputs])
                .collect(),
        };
        let linear = Linear {
            shape: Shape {
                channels: outputs,
                ..shape
            },
            from,
            window: Window::POINT,
            depthwise: false,
            weight: bytes,
            scales: weights.scales_along(node, usize::from(!transposed))?,
            bias,
            rows,
        };
        checked(node, linear)
    }

    /// The levels that input 0 holds, where input 2 is their zero point.
    fn integer_levels(&mut self, node: &'a Node) -> Result<TensorId, GraphError> {
        let from = match self.value(node, 0)?.clone() {
            Value::Levels(id) => id,
            Value::LevelsOf(view, affine) => self.requantize(node, view, affine)?,
            _ => return Err(node.error("input 0 is not quantised")),
        };
        let expected = self.tensors[from.0].affine.zero_point;
        match self.zero_point(node, 2)? {
            zero_point if zero_point == expected => Ok(from),
            zero_point => Err(node.error(format!(
                "input 0 was written with zero point {expected}, and is read with {zero_point}"
            ))),
        }
    }

    fn dequantized_weights(&self, node: &Node, index: usize) -> Result<Weights, GraphError> {
        match self.value(node, index) {
            Ok(Value::Weights(weights)) => Ok(weights.clone()),
            _ => Err(node.error(format!("input {index}: expected dequantised constants"))),
        }
    }

    fn integer_bias(&self, node: &Node, index: usize) -> Result<Bias, GraphError> {
        if node.input(index).is_empty() {
            return Ok(Bias::None);
        }
        match &self.constant(node, index)?.data {
            Data::I32(levels) => Ok(Bias::Levels(levels.clone())),
            _ => Err(node.error("its bias is not of int32")),
        }
    }

    fn float_bias(&self, node: &Node, index: usize) -> Result<Bias, GraphError> {
        let name = node.input(index);
        if name.is_empty() {
            return Ok(Bias::None);
        }
        if let Some(Value::Weights(bias)) = self.values.get(name) {
            let scales = bias.scales_along(node, 0)?;
            let real = bias.levels.iter().zip(scales);
            return Ok(Bias::Real(
                real.map(|(&level, scale)| f64::from(level) * f64::from(scale))
                    .collect(),
            ));
        }
        match &self.constant(node, index)?.data {
            Data::F32(values) => Ok(Bias::Real(
                values.iter().map(|&value| value.into()).collect(),
            )),
            _ => Err(node.error("its bias is neither float nor dequantised")),
        }
    }
}

impl Linear {
    /// Whether its result is rows and no picture.
    pub fn has_rows(&self) -> bool {
        self.rows.is_some()
    }

    /// The same with these added to its outputs; `None` where they are not one
    /// for each, or it has a bias.
    pub fn with_bias(&self, values: &Constant) -> Option<Self> {
        let whole = matches!(self.bias, Bias::None) && values.count() == self.scales.len();
        let values = self.along_outputs(values).filter(|_| whole)?;
        Some(Self {
            bias: Bias::Real(values.iter().map(|&value| value.into()).collect()),
            ..self.clone()
        })
    }

    /// One of these for each output, where they follow the dimension of the outputs.
    fn along_outputs(&self, values: &Constant) -> Option<Vec<f32>> {
        let outputs = self.scales.len();
        let floats = values.floats()?;
        if let &[value] = floats {
            return Some(vec![value; outputs]);
        }
        // Behind the outputs, a picture has height and width.
        let behind = if self.rows.is_some() { 0 } else { 2 };
        let at = values.dims.len().checked_sub(1 + behind);
        let fits = at.is_some_and(|at| values.dims[at] == outputs) && floats.len() == outputs;
        let flat = self.shape.pixels() == 1 && values.dims == [outputs];
        (fits || flat).then(|| floats.to_vec())
    }
}

impl Bias {
    /// One real value for each of `units`, in which levels are counted.
    fn reals(&self, node: &Node, units: &[f32]) -> Result<Vec<f32>, GraphError> {
        let reals: Vec<f32> = match self {
            Self::None => vec![0.0; units.len()],
            Self::Levels(levels) => {
                let levels = levels.iter().zip(units);
                levels.map(|(&level, unit)| level as f32 * unit).collect()
            }
            Self::Real(values) => values.iter().map(|&value| value as f32).collect(),
        };
        check_count(node, "biases", reals.len(), units.len())?;
        Ok(reals)
    }

    /// One integer for each of `scales`, in units of what `unit` makes of it.
    fn levels(
        &self,
        node: &Node,
        scales: &[f32],
        unit: impl Fn(f32) -> f64,
    ) -> Result<Vec<i32>, GraphError> {
        let levels = match self {
            Self::None => vec![0; scales.len()],
            Self::Levels(levels) => levels.clone(),
            Self::Real(values) => {
                let levels = values.iter().zip(scales);
                // A bias too large for an integer saturates here and is refused by the check of sums.
                levels
                    .map(|(value, &scale)| (value / unit(scale)).round_ties_even() as i32)
                    .collect()
            }
        };
        check_count(node, "biases", levels.len(), scales.len())?;
        Ok(levels)
    }
}

/// Passes a linear operation whose result has a size within reason.
fn checked(node: &Node, linear: Linear) -> Result<Linear, GraphError> {
    let Shape {
        channels,
        height,
        width,
    } = linear.shape;
    let sizes = [channels, height, width];
    match sizes.iter().all(|size| (1..=MAX_SIZE).contains(size)) && count(&sizes).is_some() {
        true => Ok(linear),
        false => Err(node.error(format!("its result has {sizes:?} values"))),
    }
}

/// Inputs and outputs of a linear layer's weights.
fn matrix(node: &Node, dims: &[usize], transposed: bool) -> Result<[usize; 2], GraphError> {
    match *dims {
        [outputs, inputs] if transposed => Ok([inputs, outputs]),
        [inputs, outputs] => Ok([inputs, outputs]),
        _ => Err(node.error(format!("weights of {dims:?}; expected 2 dimensions"))),
    }
}

/// Whether a Gemm's weights are `[output, input]`.
fn gemm_transposes(node: &Node) -> Result<bool, GraphError> {
    let plain = node.int("transA", 0) == 0
        && node.float("alpha", 1.0) == 1.0
        && node.float("beta", 1.0) == 1.0;
    match plain {
        true => Ok(node.int("transB", 0) != 0),
        false => Err(node.error("transA, alpha or beta is set")),
    }
}

fn check_count(node: &Node, what: &str, got: usize, expected: usize) -> Result<(), GraphError> {
    match got == expected {
        true => Ok(()),
        false => Err(node.error(format!("{got} {what}, expected {expected}"))),
    }
}

/// No sum may overflow, whatever the image: then no kernel has to look.
fn check_sums(
    node: &Node,
    weight: &[i8],
    bias: &[i32],
    multiplier: &[f32],
) -> Result<(), GraphError> {
    let each = weight.len() / bias.len().max(1);
    for (output, weights) in weight.chunks_exact(each.max(1)).enumerate() {
        let products: i64 = weights
            .iter()
            .map(|&weight| 256 * i64::from(weight).abs())
            .sum();
        let largest = 2 * products + i64::from(bias[output]).abs();
        let levels = largest as f32 * multiplier[output];
        if largest > i64::from(i32::MAX) || !levels.is_finite() || levels >= MAX_LEVEL {
            return Err(node.error(format!(
                "channel {output} can reach sums of {largest} and levels of {levels}, which is too much"
            )));
        }
    }
    Ok(())
}
