//! ONNX nodes → TensorFlow Lite operators.
//!
//! A sum or a mean between `DequantizeLinear` and `QuantizeLinear` is one
//! operator on bytes: it is held back until it is known what reads it.

mod conv;
mod transformer;

use std::collections::{HashMap, HashSet};

use tract_onnx::pb::NodeProto;

use super::TfliteError;
use super::graph::{View, int};
use super::model::{Element, Kind, Model, Operator, Quantization, Tensor};
use transformer::Ahead;

/// Converts the graph.
///
/// # Errors
/// [`TfliteError`] names the node that has no such form.
pub fn lower(graph: View<'_>) -> Result<Model, TfliteError> {
    let [channels, height, width] = graph.image;
    let mut lowering = Lowering {
        graph: &graph,
        model: Model::default(),
        values: HashMap::new(),
        pictures: HashSet::new(),
        ahead: Ahead::of(&graph),
    };
    let image = [1, height, width, channels];
    lowering.model.input = lowering.activation(graph.input, &image, None);
    let input = Value::Tensor(lowering.model.input);
    lowering.values.insert(graph.input.into(), input);
    for node in graph.nodes {
        let value = lowering.node(node).map_err(|message| TfliteError::Node {
            node: node.name.clone(),
            op: node.op_type.clone(),
            message,
        })?;
        let output = node.output.first().cloned().unwrap_or_default();
        lowering.values.insert(output, value);
    }
    let output = lowering.value(graph.output).map_err(TfliteError::Onnx)?;
    let output = lowering.real(output, graph.output);
    lowering.model.output = output.map_err(TfliteError::Onnx)?;
    Ok(lowering.model)
}

struct Lowering<'a> {
    graph: &'a View<'a>,
    model: Model,
    values: HashMap<String, Value>,
    /// Tensors of floats that are pictures, `[1, height, width, channels]`.
    pictures: HashSet<usize>,
    ahead: Ahead,
}

/// What stands for an ONNX value.
#[derive(Clone)]
enum Value {
    /// This tensor: floats or levels.
    Tensor(usize),
    /// The real values of a tensor of levels.
    Real(usize),
    /// An operator on the real values of tensors of levels, not yet written.
    Pending(Kind, Vec<usize>),
    /// A tensor of floats that is rounded to this scale for integer products alone.
    Rounded(usize, f32),
    /// Sums of the node's integer products, whose scale is yet to come.
    Sums {
        /// Floats that are multiplied.
        input: usize,
        /// Scale that they are rounded to.
        scale: f32,
        /// What the node gives.
        output: String,
    },
    /// A picture seen as planes, one after the other.
    Planes(usize),
    /// Within something that is written as one operator.
    Inner,
}

impl Lowering<'_> {
    fn node(&mut self, node: &NodeProto) -> Result<Value, String> {
        if let Some(value) = self.foreseen(node)? {
            return Ok(value);
        }
        match node.op_type.as_str() {
            "QuantizeLinear" => self.quantize(node),
            "DequantizeLinear" => self.dequantize(node),
            "QLinearConv" => self.integer_conv(node),
            "Conv" => self.float_conv(node),
            "MatMulInteger" | "ConvInteger" => self.integer_sums(node),
            "Cast" => self.value(argument(node, 0)?),
            "MatMul" => self.product(node),
            "Mul" => self.multiplied(node),
            "Sub" => self.binary(Kind::Sub, node),
            "Div" => self.binary(Kind::Div, node),
            "Sqrt" => self.unary(Kind::Sqrt, node),
            "Sigmoid" => self.unary(Kind::Logistic, node),
            "Softmax" => self.softmax(node),
            "ReduceMean" => self.mean_of_rows(node),
            "Reshape" => self.reshaped(node),
            "Transpose" => self.transposed(node),
            "Pad" => self.padded(node),
            "Gather" => self.gathered(node),
            "Add" if self.adds_rows(node) => self.binary(Kind::Add, node),
            "Add" => self.held_back(Kind::Add, node, &[argument(node, 0)?, argument(node, 1)?]),
            "GlobalAveragePool" => self.held_back(Kind::Mean, node, &[argument(node, 0)?]),
            "Relu" => self.unary(Kind::Relu, node),
            "Clip" => self.clip(node),
            "Flatten" => self.flatten(node),
            _ => Err("there is no TensorFlow Lite form of it here".into()),
        }
    }

    fn quantize(&mut self, node: &NodeProto) -> Result<Value, String> {
        let to = self.affine(argument(node, 1)?, argument(node, 2)?)?;
        let (kind, inputs) = match self.value(argument(node, 0)?)? {
            Value::Tensor(tensor) | Value::Real(tensor) => (Kind::Quantize, vec![tensor]),
            Value::Pending(kind, inputs) => (kind, inputs),
            _ => return Err("expected floats".into()),
        };
        Ok(Value::Tensor(self.operate(
            kind,
            inputs,
            &node.output[0],
            Some(to),
        )))
    }

    fn dequantize(&mut self, node: &NodeProto) -> Result<Value, String> {
        let tensor = self.levels(argument(node, 0)?)?;
        let stated = self.affine(argument(node, 1)?, argument(node, 2)?)?;
        self.check_affine(tensor, &stated)?;
        Ok(Value::Real(tensor))
    }

    fn held_back(
        &mut self,
        kind: Kind,
        node: &NodeProto,
        inputs: &[&str],
    ) -> Result<Value, String> {
        let values: Vec<Value> = inputs
            .iter()
            .map(|name| self.value(name))
            .collect::<Result<_, _>>()?;
        let shapes: Option<Vec<&[usize]>> = values.iter().map(|value| self.shape(value)).collect();
        let shapes = shapes.ok_or("expected pictures")?;
        if shapes[0].len() != 4 || shapes.iter().any(|shape| *shape != shapes[0]) {
            return Err(format!("expected pictures of one shape, got {shapes:?}"));
        }
        let levels = values.iter().map(|value| match value {
            Value::Real(tensor) => Some(*tensor),
            _ => None,
        });
        if let Some(levels) = levels.collect::<Option<Vec<_>>>() {
            return Ok(Value::Pending(kind, levels));
        }
        let reals = inputs.iter().map(|name| self.floats(name));
        let reals = reals.collect::<Result<_, _>>()?;
        let output = self.operate(kind, reals, &node.output[0], None);
        Ok(Value::Tensor(output))
    }

    /// An operation on each value.
    fn unary(&mut self, kind: Kind, node: &NodeProto) -> Result<Value, String> {
        let input = self.floats(argument(node, 0)?)?;
        Ok(self.same_shape(kind, input, &node.output[0]))
    }

    fn clip(&mut self, node: &NodeProto) -> Result<Value, String> {
        let low = self.graph.float(argument(node, 1)?)?;
        let high = self.graph.float(argument(node, 2)?)?;
        match (low, high) {
            (0.0, 6.0) => self.unary(Kind::Relu6, node),
            _ => Err(format!("expected bounds 0 and 6, got {low} and {high}")),
        }
    }

    fn flatten(&mut self, node: &NodeProto) -> Result<Value, String> {
        let name = argument(node, 0)?;
        let (input, is_real) = match self.value(name)? {
            Value::Real(tensor) => (tensor, true),
            _ => (self.floats(name)?, false),
        };
        let shape = &self.model.tensors[input].shape;
        let [_, 1, 1, channels] = shape[..] else {
            return Err(format!("expected a picture of one pixel, got {shape:?}"));
        };
        if int(node, "axis", 1) != 1 {
            return Err("axis: expected 1".into());
        }
        let sizes = self.constant(format!("{name}.shape"), &[2], &[1, channels as i32]);
        let quantization = self.model.tensors[input].quantization.clone();
        let output = self.activation(&format!("{name}.flat"), &[1, channels], quantization);
        self.push(Kind::Reshape, vec![input, sizes], output);
        Ok(match is_real {
            true => Value::Real(output),
            false => Value::Tensor(output),
        })
    }

    /// Appends an operator that keeps its input's shape, or a mean; returns
    /// its output.
    fn operate(
        &mut self,
        kind: Kind,
        mut inputs: Vec<usize>,
        name: &str,
        quantization: Option<Quantization>,
    ) -> usize {
        let mut shape = self.model.tensors[inputs[0]].shape.clone();
        if kind == Kind::Mean {
            inputs.push(self.constant(format!("{name}.axes"), &[2], &[1, 2]));
            shape[1..3].fill(1);
        }
        let output = self.activation(name, &shape, quantization);
        self.push(kind, inputs, output);
        output
    }

    fn same_shape(&mut self, kind: Kind, input: usize, name: &str) -> Value {
        Value::Tensor(self.operate(kind, vec![input], name, None))
    }

    /// The tensor of floats that stands for `name`.
    fn floats(&mut self, name: &str) -> Result<usize, String> {
        let value = self.value(name)?;
        self.real(value, &format!("{name}.real"))
    }

    /// The tensor of floats that `value` stands for, called `name` if it is new.
    fn real(&mut self, value: Value, name: &str) -> Result<usize, String> {
        Ok(match value {
            Value::Tensor(tensor) => tensor,
            Value::Real(tensor) => self.operate(Kind::Dequantize, vec![tensor], name, None),
            Value::Pending(kind, inputs) => {
                let reals = inputs.iter().enumerate().map(|(index, &input)| {
                    let name = format!("{name}.input{index}");
                    self.operate(Kind::Dequantize, vec![input], &name, None)
                });
                let reals = reals.collect();
                self.operate(kind, reals, name, None)
            }
            Value::Inner | Value::Rounded(..) | Value::Sums { .. } | Value::Planes(_) => {
                return Err(format!("{name}: expected floats"));
            }
        })
    }

    fn value(&self, name: &str) -> Result<Value, String> {
        let value = self.values.get(name).cloned();
        value.ok_or_else(|| format!("expected {name:?} to come from a node before this one"))
    }

    /// The shape of a value; of one not yet written, that of its inputs.
    fn shape(&self, value: &Value) -> Option<&[usize]> {
        let tensor = match value {
            Value::Tensor(tensor) | Value::Real(tensor) => *tensor,
            Value::Pending(_, inputs) => inputs[0],
            _ => return None,
        };
        Some(&self.model.tensors[tensor].shape)
    }

    /// Whether a sum is one of rows, or with a constant.
    fn adds_rows(&self, node: &NodeProto) -> bool {
        let is_picture = |name: &String| {
            let value = self.values.get(name);
            let shape = value.and_then(|value| self.shape(value));
            shape.is_some_and(|shape| shape.len() == 4)
        };
        !node.input.iter().all(is_picture)
    }

    /// The tensor of levels called `name`.
    fn levels(&self, name: &str) -> Result<usize, String> {
        match self.value(name)? {
            Value::Tensor(tensor) if self.model.tensors[tensor].quantization.is_some() => {
                Ok(tensor)
            }
            _ => Err(format!("expected {name:?} to be quantised")),
        }
    }

    /// Scale and zero point of an activation, moved to signed levels.
    fn affine(&self, scale: &str, zero_point: &str) -> Result<Quantization, String> {
        let value = self.graph.float(scale)?;
        if !(value.is_normal() && value > 0.0) {
            return Err(format!("{scale}: expected a positive scale, got {value}"));
        }
        let zero = self.graph.bytes(zero_point)?;
        let [level] = zero.values[..] else {
            return Err(format!("{zero_point}: expected one value"));
        };
        let offset = if zero.signed { 0 } else { 128 };
        Ok(Quantization {
            scales: vec![value],
            zero_point: i64::from(level - offset),
            axis: 0,
        })
    }

    fn check_affine(&self, tensor: usize, stated: &Quantization) -> Result<(), String> {
        let tensor = &self.model.tensors[tensor];
        match tensor.quantization.as_ref() {
            Some(known) if known == stated => Ok(()),
            _ => Err(format!(
                "{}: read with another scale or zero point than it was written",
                tensor.name
            )),
        }
    }

    fn activation(
        &mut self,
        name: &str,
        shape: &[usize],
        quantization: Option<Quantization>,
    ) -> usize {
        let element = match quantization {
            Some(_) => Element::I8,
            None => Element::F32,
        };
        self.tensor(Tensor {
            name: name.into(),
            shape: shape.into(),
            element,
            quantization,
            data: Vec::new(),
        })
    }

    /// A constant of 32-bit integers.
    fn constant(&mut self, name: String, shape: &[usize], values: &[i32]) -> usize {
        self.tensor(Tensor {
            name,
            shape: shape.into(),
            element: Element::I32,
            quantization: None,
            data: values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        })
    }

    fn tensor(&mut self, tensor: Tensor) -> usize {
        self.model.tensors.push(tensor);
        self.model.tensors.len() - 1
    }

    fn push(&mut self, kind: Kind, inputs: Vec<usize>, output: usize) {
        self.model.operators.push(Operator {
            kind,
            inputs,
            output,
        });
    }
}

fn argument(node: &NodeProto, index: usize) -> Result<&str, String> {
    let name = node.input.get(index).map(String::as_str);
    let name = name.filter(|name| !name.is_empty() && !node.output.is_empty());
    name.ok_or_else(|| format!("input {index} is missing"))
}
