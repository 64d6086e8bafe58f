//! A network in integers, as plain values: what every writer of int8 files reads.

use super::affine::{Affine, QuantizedConv, quantize_conv};
use crate::graph::{ConvNet, Op, Value};

/// A folded network with the integers that stand for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// The float network.
    pub net: ConvNet,
    /// How the image tensor is quantised.
    pub input: Affine,
    /// How the output of each node is quantised. An activation needs no step of its own: the
    /// saturation of a rectified output's levels is one.
    pub outputs: Vec<Affine>,
    /// Integer weights and biases of each node, where it is a convolution; one without them stays
    /// in floats.
    pub convs: Vec<Option<QuantizedConv>>,
}

impl Quantized {
    /// Rounds every weight of `net` to the nearest level.
    pub fn nearest(net: ConvNet, input: Affine, outputs: Vec<Affine>) -> Self {
        let mut quantized = Self {
            convs: Vec::with_capacity(net.nodes.len()),
            net,
            input,
            outputs,
        };
        for node in &quantized.net.nodes {
            let conv = match &node.op {
                Op::Conv(conv) => {
                    let from = quantized.affine(node.inputs[0]);
                    Some(quantize_conv(conv, from.scale))
                }
                Op::Add | Op::GlobalAveragePool => None,
            };
            quantized.convs.push(conv);
        }
        quantized
    }

    /// Leaves a convolution in floats; other nodes stay as they are.
    pub fn leave_float(&mut self, node: usize) {
        self.convs[node] = None;
    }

    /// Whether a node is a convolution that stays in floats.
    pub fn is_float(&self, node: usize) -> bool {
        matches!(self.net.nodes[node].op, Op::Conv(_)) && self.convs[node].is_none()
    }

    /// How the output of a node is rounded; none where it goes from floats to nothing but floats.
    pub fn rounding(&self, node: usize) -> Option<Affine> {
        let reads = |reader: &usize| self.net.nodes[*reader].inputs.contains(&Value::Node(node));
        let mut readers = (node + 1..self.net.nodes.len()).filter(reads);
        let stays = self.is_float(node) && readers.all(|reader| self.is_float(reader));
        (!stays).then(|| self.outputs[node])
    }

    /// How a value is quantised where it is.
    pub fn affine(&self, value: Value) -> Affine {
        match value {
            Value::Image => self.input,
            Value::Node(index) => self.outputs[index],
        }
    }
}
