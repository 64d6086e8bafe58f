//! Products with constant weights in integers: levels times levels, summed, and what the sums mean.

use burn::tensor::Tensor;

use super::{Writer, plain};
use crate::graph::{self, Conv};
use crate::quantize::affine::{Affine, quantize_conv};
use crate::quantize::onnx::{Attribute, INPUT, conv_attributes};

impl Writer {
    /// Times a constant matrix, in integers.
    pub(super) fn integer_matmul(
        &mut self,
        name: &str,
        input: &str,
        affine: Affine,
        weight: Tensor<2>,
    ) -> String {
        let [inputs, outputs] = weight.dims();
        let layer = Conv {
            weight: plain(weight.transpose()),
            shape: [outputs, inputs, 1, 1],
            bias: vec![0.0; outputs],
            stride: [1; 2],
            padding: [0; 4],
            groups: 1,
            activation: graph::Activation::None,
        };
        let quantized = quantize_conv(&layer, affine.scale);
        let turned =
            (0..inputs * outputs).map(|i| quantized.weight[i % outputs * inputs + i / outputs]);
        let turned: Vec<i8> = turned.collect();
        let weight = format!("{name}.weight");
        let weight = self
            .builder
            .signed_bytes(&weight, &[inputs, outputs], &turned);
        let [levels, zero_point] = self.quantize(input, affine);
        let sums = format!("{name}.sums");
        let sums = self.builder.node(
            "MatMulInteger",
            &sums,
            &[&levels, &weight, &zero_point],
            &[],
        );
        self.real(name, &sums, &[outputs], &quantized.scales, affine.scale)
    }

    /// A convolution of the image without bias, in integers.
    pub(super) fn integer_conv(&mut self, name: &str, affine: Affine, conv: &Conv) -> String {
        let quantized = quantize_conv(conv, affine.scale);
        let weight = format!("{name}.weight");
        let weight = self
            .builder
            .signed_bytes(&weight, &conv.shape, &quantized.weight);
        let [levels, zero_point] = self.quantize(INPUT, affine);
        let inputs = [levels.as_str(), &weight, &zero_point];
        let sums = format!("{name}.sums");
        let sums = self
            .builder
            .node("ConvInteger", &sums, &inputs, &conv_attributes(conv));
        let outputs = [1, conv.shape[0], 1, 1];
        self.real(name, &sums, &outputs, &quantized.scales, affine.scale)
    }

    /// The levels of a value and their zero point, written when they are first asked for.
    fn quantize(&mut self, input: &str, affine: Affine) -> [String; 2] {
        let names = ["levels", "zero_point"].map(|part| format!("{input}.{part}"));
        if !self.products.iter().any(|known| known == input) {
            self.products.push(input.into());
            let scale = self
                .builder
                .floats(&format!("{input}.scale"), &[], &[affine.scale]);
            self.builder.bytes(&names[1], &[], vec![affine.zero_point]);
            self.builder.node(
                "QuantizeLinear",
                &names[0],
                &[input, &scale, &names[1]],
                &[],
            );
        }
        names
    }

    /// What sums of products of levels mean.
    fn real(
        &mut self,
        name: &str,
        sums: &str,
        dims: &[usize],
        scales: &[f32],
        input_scale: f32,
    ) -> String {
        let float = Attribute::Int("to", 1);
        let sums = self
            .builder
            .node("Cast", &format!("{name}.cast"), &[sums], &[float]);
        let factors: Vec<f32> = scales.iter().map(|scale| scale * input_scale).collect();
        let factors = self
            .builder
            .floats(&format!("{name}.factor"), dims, &factors);
        self.builder.node("Mul", name, &[&sums, &factors], &[])
    }
}
