//! Convolutions: weights from OIHW to the layouts of TensorFlow Lite, explicit
//! padding where its own would stand elsewhere.

use tract_onnx::pb::NodeProto;

use super::{Lowering, Value, argument};
use crate::quantize::tflite::graph::{View, int, ints};
use crate::quantize::tflite::model::{Element, Kind, Padding, Quantization, Step, Tensor};

/// XNNPACK refuses a channel whose products are worth less than 2⁻³² levels
/// of the output. At this ratio a whole sum of products stays below a level.
const LEAST_RATIO: f64 = 1.0 / (1_u64 << 31) as f64;
/// Nor does it take a channel where one product is worth this many levels.
const MOST_RATIO: f64 = 256.0;

/// Where a convolution stands.
struct Geometry {
    /// Outputs, inputs per group, kernel height and width.
    weight: [usize; 4],
    groups: usize,
    stride: [usize; 2],
    /// Top, left, bottom, right.
    pads: [usize; 4],
}

/// Weights as ONNX holds them, and biases.
struct Integers {
    weight: Vec<i8>,
    /// One per output.
    scales: Vec<f32>,
    bias: Vec<i32>,
}

impl Lowering<'_> {
    pub(super) fn integer_conv(&mut self, node: &NodeProto) -> Result<Value, String> {
        let input = self.levels(argument(node, 0)?)?;
        let from = self.affine(argument(node, 1)?, argument(node, 2)?)?;
        self.check_affine(input, &from)?;
        let to = self.affine(argument(node, 6)?, argument(node, 7)?)?;
        let geometry = Geometry::of(self.graph, node, argument(node, 3)?)?;
        let mut integers = Integers::of(self.graph, node, geometry.weight)?;
        integers.fit(from.scales[0], to.scales[0])?;
        let Integers {
            weight,
            scales,
            bias,
        } = integers;
        let of_bias = scales.iter().map(|scale| scale * from.scales[0]).collect();
        let per_output = |scales, axis| {
            Some(Quantization {
                scales,
                zero_point: 0,
                axis,
            })
        };
        let weight = Tensor {
            element: Element::I8,
            quantization: per_output(scales, if geometry.is_depthwise() { 3 } else { 0 }),
            data: geometry.reorder(&weight, |level| [level.cast_unsigned()]),
            ..geometry.tensor(node)
        };
        let bias = Tensor {
            name: format!("{}.bias", node.name),
            shape: vec![bias.len()],
            element: Element::I32,
            quantization: per_output(of_bias, 0),
            data: bias.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        self.conv(node, input, &geometry, [weight, bias], Some(to))
    }

    pub(super) fn float_conv(&mut self, node: &NodeProto) -> Result<Value, String> {
        let input = self.floats(argument(node, 0)?)?;
        let weight = argument(node, 1)?;
        let bias = match node.input.get(2) {
            Some(name) => self.graph.floats(name)?,
            None => vec![0.0; self.graph.weight_shape(weight)?[0]],
        };
        let weight = self.graph.floats(weight)?;
        self.plain_conv(node, input, weight, bias, &node.output[0])
    }

    /// A convolution of floats, placed as `node` says.
    pub(super) fn plain_conv(
        &mut self,
        node: &NodeProto,
        input: usize,
        weight: Vec<f32>,
        bias: Vec<f32>,
        output: &str,
    ) -> Result<Value, String> {
        let geometry = Geometry::of(self.graph, node, argument(node, 1)?)?;
        geometry.check(weight.len(), bias.len())?;
        let weight = Tensor {
            data: geometry.reorder(&weight, f32::to_le_bytes),
            ..geometry.tensor(node)
        };
        let bias = Tensor {
            name: format!("{}.bias", node.name),
            shape: vec![bias.len()],
            element: Element::F32,
            quantization: None,
            data: bias.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        let node = NodeProto {
            output: vec![output.into()],
            ..node.clone()
        };
        let value = self.conv(&node, input, &geometry, [weight, bias], None)?;
        if let Value::Tensor(tensor) = value {
            self.pictures.insert(tensor);
        }
        Ok(value)
    }

    fn conv(
        &mut self,
        node: &NodeProto,
        input: usize,
        geometry: &Geometry,
        constants: [Tensor; 2],
        to: Option<Quantization>,
    ) -> Result<Value, String> {
        let [_, height, width, channels] = self.model.tensors[input].shape[..] else {
            return Err("expected a picture".into());
        };
        let [_, per_group, ..] = geometry.weight;
        if channels != geometry.groups * per_group {
            return Err(format!(
                "expected {} input channels, got {channels}",
                geometry.groups * per_group
            ));
        }
        let output = geometry.output([height, width])?;
        let padding = geometry.padding([height, width], output);
        let input = match padding {
            Some(_) => input,
            None => self.pad(node, input, geometry, output),
        };
        let step = Step {
            padding: padding.unwrap_or(Padding::Valid),
            stride: geometry.stride,
        };
        let kind = match geometry.is_depthwise() {
            true => Kind::DepthwiseConv {
                step,
                multiplier: geometry.weight[0] / channels,
            },
            false => Kind::Conv(step),
        };
        let [weight, bias] = constants.map(|constant| self.tensor(constant));
        let shape = [1, output[0], output[1], geometry.weight[0]];
        let output = self.activation(&node.output[0], &shape, to);
        self.push(kind, vec![input, weight, bias], output);
        Ok(Value::Tensor(output))
    }

    /// Puts zeros around `input`, as many as the kernel reads.
    fn pad(
        &mut self,
        node: &NodeProto,
        input: usize,
        geometry: &Geometry,
        output: [usize; 2],
    ) -> usize {
        let mut shape = self.model.tensors[input].shape.clone();
        let mut counts = [0_i32; 8];
        for axis in [0, 1] {
            let before = geometry.pads[axis];
            let reach = geometry.reach(axis, output);
            let after = reach.saturating_sub(shape[1 + axis] + before);
            shape[1 + axis] += before + after;
            counts[2 + 2 * axis..4 + 2 * axis].copy_from_slice(&[before as i32, after as i32]);
        }
        let counts = self.constant(format!("{}.pads", node.name), &[4, 2], &counts);
        let quantization = self.model.tensors[input].quantization.clone();
        let padded = self.activation(&format!("{}.padded", node.name), &shape, quantization);
        self.push(Kind::Pad, vec![input, counts], padded);
        padded
    }
}

impl Geometry {
    fn of(graph: &View<'_>, node: &NodeProto, weight: &str) -> Result<Self, String> {
        let groups = usize::try_from(int(node, "group", 1)).unwrap_or(0);
        let geometry = Self {
            weight: graph.weight_shape(weight)?,
            groups,
            stride: ints(node, "strides", 1)?,
            pads: ints(node, "pads", 0)?,
        };
        let plain = ints(node, "dilations", 1)? == [1, 1] && !geometry.stride.contains(&0);
        match plain && groups > 0 && geometry.weight[0].is_multiple_of(groups) {
            true => Ok(geometry),
            false => Err("expected no dilation, and groups that divide the outputs".into()),
        }
    }

    fn check(&self, weights: usize, biases: usize) -> Result<(), String> {
        let expected = (self.weight.iter().product(), self.weight[0]);
        match (weights, biases) == expected {
            true => Ok(()),
            false => Err(format!(
                "expected {} weights and {} biases, got {weights} and {biases}",
                expected.0, expected.1
            )),
        }
    }

    fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.weight[1] == 1
    }

    fn output(&self, input: [usize; 2]) -> Result<[usize; 2], String> {
        let size = |axis: usize| {
            let padded = input[axis].checked_add(self.pads[axis])?;
            let padded = padded.checked_add(self.pads[2 + axis])?;
            let steps = padded.checked_sub(self.weight[2 + axis])? / self.stride[axis];
            Some(steps + 1)
        };
        match (size(0), size(1)) {
            (Some(height), Some(width)) => Ok([height, width]),
            _ => Err(format!("the kernel does not fit its input {input:?}")),
        }
    }

    /// The padding of TensorFlow Lite that puts the kernel where this one
    /// stands, if there is one.
    fn padding(&self, input: [usize; 2], output: [usize; 2]) -> Option<Padding> {
        let same = |axis: usize| {
            let before = self.reach(axis, output).saturating_sub(input[axis]) / 2;
            output[axis] == input[axis].div_ceil(self.stride[axis]) && before == self.pads[axis]
        };
        let valid = |axis: usize| self.pads[axis] == 0 && self.reach(axis, output) <= input[axis];
        match [valid(0) && valid(1), same(0) && same(1)] {
            [true, _] => Some(Padding::Valid),
            [_, true] => Some(Padding::Same),
            _ => None,
        }
    }

    /// From the first value that the kernel reads to the last.
    fn reach(&self, axis: usize, output: [usize; 2]) -> usize {
        (output[axis] - 1) * self.stride[axis] + self.weight[2 + axis]
    }

    /// The tensor of the weights, still without its data.
    fn tensor(&self, node: &NodeProto) -> Tensor {
        let [outputs, inputs, height, width] = self.weight;
        let shape = match self.is_depthwise() {
            true => vec![1, height, width, outputs],
            false => vec![outputs, height, width, inputs],
        };
        Tensor {
            name: format!("{}.weight", node.name),
            shape,
            element: Element::F32,
            quantization: None,
            data: Vec::new(),
        }
    }

    /// OIHW to the layout of [`Geometry::tensor`], in bytes.
    fn reorder<T: Copy, const N: usize>(&self, weight: &[T], bytes: fn(T) -> [u8; N]) -> Vec<u8> {
        let [outputs, inputs, height, width] = self.weight;
        let plane = height * width;
        let mut data = Vec::with_capacity(weight.len() * N);
        let mut push = |output: usize, at: usize, input: usize| {
            data.extend(bytes(weight[(output * inputs + input) * plane + at]));
        };
        if self.is_depthwise() {
            for (at, output) in (0..plane).flat_map(|at| (0..outputs).map(move |o| (at, o))) {
                push(output, at, 0);
            }
        } else {
            for (output, at) in (0..outputs).flat_map(|o| (0..plane).map(move |at| (o, at))) {
                (0..inputs).for_each(|input| push(output, at, input));
            }
        }
        data
    }
}

impl Integers {
    fn of(graph: &View<'_>, node: &NodeProto, shape: [usize; 4]) -> Result<Self, String> {
        let name = argument(node, 3)?;
        let weight = graph.bytes(name)?;
        let symmetric = graph
            .bytes(argument(node, 5)?)?
            .values
            .iter()
            .all(|&z| z == 0);
        if !weight.signed || !symmetric {
            return Err(format!("{name}: expected signed weights around 0"));
        }
        let mut scales = graph.floats(argument(node, 4)?)?;
        if let [scale] = scales[..] {
            scales = vec![scale; shape[0]];
        }
        let bias = match node.input.get(8) {
            Some(name) if !name.is_empty() => graph.ints(name)?,
            _ => vec![0; shape[0]],
        };
        let counts = [weight.values.len(), scales.len(), bias.len()];
        if counts != [shape.iter().product(), shape[0], shape[0]] {
            return Err(format!(
                "{name}: weights, scales and biases do not fit: {counts:?}"
            ));
        }
        Ok(Self {
            weight: weight.values.iter().map(|&level| level as i8).collect(),
            scales,
            bias,
        })
    }

    /// Rewrites channels whose products cannot reach a level of the output:
    /// their weights become 0, their bias is kept.
    fn fit(&mut self, from: f32, to: f32) -> Result<(), String> {
        let per_output = self.weight.len() / self.scales.len().max(1);
        let channels = self.scales.iter_mut().zip(&mut self.bias);
        let weights = self.weight.chunks_exact_mut(per_output.max(1));
        for (output, ((scale, bias), weights)) in channels.zip(weights).enumerate() {
            let ratio = f64::from(from) * f64::from(*scale) / f64::from(to);
            if !(ratio > 0.0 && ratio < MOST_RATIO) {
                return Err(format!(
                    "output channel {output}: scale {scale} is out of proportion to the output's {to}"
                ));
            }
            if ratio < LEAST_RATIO {
                const FINE: f64 = 65_536.0;
                weights.fill(0);
                *bias = (f64::from(*bias) * ratio * FINE).round_ties_even() as i32;
                *scale = (f64::from(to) / f64::from(from) / FINE) as f32;
            }
        }
        Ok(())
    }
}
