//! The int8 form of a folded network, as QOperator ONNX.
//!
//! Convolutions become `QLinearConv` with unsigned activations and signed
//! per-channel weights; their activation is the saturation of the output
//! range. Sums and pooling run between `DequantizeLinear` and
//! `QuantizeLinear`, the form that every engine reads; so do convolutions that
//! stay in floats.

use super::affine::{Affine, QuantizedConv};
use super::onnx::{Builder, INPUT, conv_attributes, float_conv, output_dim};
use super::quantized::Quantized;
use crate::graph::{Conv, Op, Value};

/// Writes `quantized` as ONNX.
pub fn int8(quantized: &Quantized) -> Vec<u8> {
    let net = &quantized.net;
    let mut writer = Writer {
        builder: Builder::default(),
        quantized,
    };
    writer.quantize("image.quantized", INPUT, quantized.input);
    for (index, (node, integers)) in net.nodes.iter().zip(&quantized.convs).enumerate() {
        match (&node.op, integers) {
            (Op::Conv(conv), Some(integers)) => writer.conv(index, conv, integers),
            (Op::Conv(conv), None) => writer.float(index, conv),
            (Op::GlobalAveragePool, _) => writer.through_float("GlobalAveragePool", index),
            _ => writer.through_float("Add", index),
        }
    }
    let last = net.nodes.len() - 1;
    let real = writer.real("embedding.real", Value::Node(last));
    writer.builder.finish(&real, net.input, output_dim(net))
}

struct Writer<'a> {
    builder: Builder,
    quantized: &'a Quantized,
}

impl Writer<'_> {
    fn affine(&self, value: Value) -> Affine {
        self.quantized.affine(value)
    }

    /// Name of the quantised tensor that holds `value`.
    fn name(&self, value: Value) -> String {
        match value {
            Value::Image => "image.quantized".into(),
            Value::Node(index) => self.quantized.net.nodes[index].name.clone(),
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

    /// Name of the floats that `value` stands for, `name` if they are new.
    fn real(&mut self, name: &str, value: Value) -> String {
        match value {
            Value::Node(index) if self.quantized.rounding(index).is_none() => self.name(value),
            _ => self.dequantize(name, value),
        }
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

    fn conv(&mut self, index: usize, conv: &Conv, quantized: &QuantizedConv) {
        let node = &self.quantized.net.nodes[index];
        let (name, input) = (&node.name, node.inputs[0]);
        let (from, outputs) = (self.name(input), conv.shape[0]);
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
        let inputs: [&str; 9] = [
            &from,
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

    /// A convolution in floats, between dequantised input and quantised output unless its
    /// neighbours are floats as well.
    fn float(&mut self, index: usize, conv: &Conv) {
        let node = &self.quantized.net.nodes[index];
        let name = &node.name;
        let input = self.real(&format!("{name}.input"), node.inputs[0]);
        match self.quantized.rounding(index) {
            None => {
                float_conv(&mut self.builder, name, &input, conv);
            }
            Some(affine) => {
                let real = float_conv(&mut self.builder, &format!("{name}.real"), &input, conv);
                self.quantize(name, &real, affine);
            }
        }
    }

    /// `op` in floats between dequantised inputs and a quantised output.
    fn through_float(&mut self, op: &str, index: usize) {
        let node = &self.quantized.net.nodes[index];
        let name = node.name.clone();
        let real: Vec<String> = node
            .inputs
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
