//! The int8 form of a folded network, as QOperator ONNX.
//!
//! Convolutions become `QLinearConv` with unsigned activations and signed
//! per-channel weights; their activation is the saturation of the output
//! range. Sums and pooling run between `DequantizeLinear` and
//! `QuantizeLinear`, the form that every engine reads.

use super::affine::{Affine, quantize_conv};
use super::calibrate::Tap;
use super::onnx::{Builder, INPUT, conv_attributes, output_dim};
use crate::graph::{Conv, ConvNet, Op, Value};

/// Writes `net` in int8. `input` quantises the image tensor, `taps` holds one
/// entry per node; `correct_bias` takes the mean rounding error of the
/// weights off the biases.
pub fn int8(net: &ConvNet, input: Affine, taps: &[Tap], correct_bias: bool) -> Vec<u8> {
    let mut writer = Writer {
        builder: Builder::default(),
        net,
        input,
        taps,
        correct_bias,
    };
    writer.quantize("image.quantized", INPUT, input);
    for (index, node) in net.nodes.iter().enumerate() {
        match &node.op {
            Op::Conv(conv) => writer.conv(index, conv, node.inputs[0]),
            Op::Add => writer.through_float("Add", index, &node.inputs),
            Op::GlobalAveragePool => writer.through_float("GlobalAveragePool", index, &node.inputs),
        }
    }
    let last = net.nodes.len() - 1;
    let real = writer.dequantize("embedding.real", Value::Node(last));
    writer.builder.finish(&real, net.input, output_dim(net))
}

struct Writer<'a> {
    builder: Builder,
    net: &'a ConvNet,
    input: Affine,
    taps: &'a [Tap],
    correct_bias: bool,
}

impl Writer<'_> {
    fn affine(&self, value: Value) -> Affine {
        match value {
            Value::Image => self.input,
            Value::Node(index) => self.taps[index].affine,
        }
    }

    /// Name of the quantised tensor that holds `value`.
    fn name(&self, value: Value) -> String {
        match value {
            Value::Image => "image.quantized".into(),
            Value::Node(index) => self.net.nodes[index].name.clone(),
        }
    }

    /// Names of the constants that hold scale and zero point.
    fn parameters(&mut self, prefix: &str, affine: Affine) -> [String; 2] {
        [
            self.builder
                .floats(&format!("{prefix}.scale"), &[], &[affine.scale]),
            self.builder.bytes(
                &format!("{prefix}.zero_point"),
                &[],
                vec![affine.zero_point],
            ),
        ]
    }

    fn quantize(&mut self, name: &str, input: &str, affine: Affine) {
        let [scale, zero_point] = self.parameters(name, affine);
        self.builder
            .node("QuantizeLinear", name, &[input, &scale, &zero_point], &[]);
    }

    fn dequantize(&mut self, name: &str, value: Value) -> String {
        let [scale, zero_point] = self.parameters(name, self.affine(value));
        let quantized = self.name(value);
        self.builder.node(
            "DequantizeLinear",
            name,
            &[&quantized, &scale, &zero_point],
            &[],
        )
    }

    fn conv(&mut self, index: usize, conv: &Conv, input: Value) {
        let name = &self.net.nodes[index].name;
        let means = match input {
            Value::Node(from) if self.correct_bias => self.taps[from].channel_means.as_slice(),
            _ => &[],
        };
        let quantized = quantize_conv(conv, self.affine(input).scale, means);
        let outputs = conv.shape[0];
        let [in_scale, in_zero] = self.parameters(&format!("{name}.input"), self.affine(input));
        let [out_scale, out_zero] =
            self.parameters(&format!("{name}.output"), self.affine(Value::Node(index)));
        let builder = &mut self.builder;
        let weight =
            builder.signed_bytes(&format!("{name}.weight"), &conv.shape, &quantized.weight);
        let weight_scale = builder.floats(
            &format!("{name}.weight.scale"),
            &[outputs],
            &quantized.scales,
        );
        let weight_zero = builder.signed_bytes(
            &format!("{name}.weight.zero_point"),
            &[outputs],
            &vec![0; outputs],
        );
        let bias = builder.ints(&format!("{name}.bias"), &[outputs], &quantized.bias);
        let from = match input {
            Value::Image => "image.quantized",
            Value::Node(from) => &self.net.nodes[from].name,
        };
        let inputs = [
            from,
            &in_scale,
            &in_zero,
            &weight,
            &weight_scale,
            &weight_zero,
            &out_scale,
            &out_zero,
            &bias,
        ];
        builder.node("QLinearConv", name, &inputs, &conv_attributes(conv));
    }

    /// `op` in floats between dequantised inputs and a quantised output.
    fn through_float(&mut self, op: &str, index: usize, inputs: &[Value]) {
        let name = self.net.nodes[index].name.clone();
        let real: Vec<String> = inputs
            .iter()
            .enumerate()
            .map(|(position, &value)| self.dequantize(&format!("{name}.input{position}"), value))
            .collect();
        let real: Vec<&str> = real.iter().map(String::as_str).collect();
        let result = self.builder.node(op, &format!("{name}.real"), &real, &[]);
        self.quantize(&name, &result, self.affine(Value::Node(index)));
    }
}

#[cfg(test)]
mod tests;
