//! The network with the rounding of int8 inside, to be trained on.
//!
//! Weights stay real numbers that are rounded on the way forward; gradients pass the rounding as
//! if it were not there. They are counted in levels, so that one rate of learning suits channels of
//! any magnitude, and they begin in the cells of the levels that were chosen for them: the network
//! starts as good as it was. The steps of weights and activations learn too (Esser et al., "Learned
//! Step Size Quantization", ICLR 2020), as logarithms, so that they stay positive and one rate of
//! learning suits all of them (Jain et al., MLSys 2020). Batch normalisation is folded already.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};

use super::affine::{Affine, QuantizedConv, WEIGHTS, quantize_conv_to};
use super::quantized::Quantized;
use super::simulate::{Values, rounded, window};
use crate::graph::{Activation, Conv, Op};
use crate::ops;

/// A quantised network that learns.
#[derive(Module, Debug)]
pub struct AwareNet {
    /// Of the convolutions, in the order of the network.
    convs: Vec<AwareConv>,
    /// Logarithm of the step of each output channel's weights, of each of them.
    weight_steps: Vec<Param<Tensor<1>>>,
    /// Logarithm of the step of each node's output, `[1]` each.
    steps: Vec<Param<Tensor<1>>>,
    #[module(skip)]
    start: Quantized,
}

#[derive(Module, Debug)]
struct AwareConv {
    /// OIHW, in the steps of the start.
    weight: Param<Tensor<4>>,
    /// One value per output channel, in the output's step of the start.
    bias: Param<Tensor<1>>,
}

impl AwareNet {
    /// Begins with the float weights, the steps and the corrected biases of `quantized`.
    pub fn new(quantized: Quantized, device: &Device) -> Self {
        let vector = |values: Vec<f32>| {
            let shape = [values.len()];
            Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
        };
        let (mut convs, mut weight_steps) = (Vec::new(), Vec::new());
        for (index, node) in quantized.net.nodes.iter().enumerate() {
            if let (Op::Conv(conv), Some(integers)) = (&node.op, &quantized.convs[index]) {
                let levels = TensorData::new(levels(conv, integers), conv.shape);
                let bias = integers.real_bias(quantized.affine(node.inputs[0]).scale);
                let unit = quantized.outputs[index].scale;
                convs.push(AwareConv {
                    weight: Param::from_tensor(Tensor::from_data(levels, device)),
                    bias: vector(bias.iter().map(|bias| bias / unit).collect()),
                });
                weight_steps.push(vector(integers.scales.iter().map(|s| s.ln()).collect()));
            }
        }
        let outputs = quantized.outputs.iter();
        Self {
            convs,
            weight_steps,
            steps: outputs
                .map(|affine| vector(vec![affine.scale.ln()]))
                .collect(),
            start: quantized,
        }
    }

    /// The embeddings of a batch `[N, 3, size, size]`: `[N, D]`.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let mut values = Values::new(rounded(self.start.input, images));
        let mut learned = self.convs.iter().zip(&self.weight_steps);
        for (index, node) in self.start.net.nodes.iter().enumerate() {
            let x = values.get(node.inputs[0]);
            let sums = match (&node.op, node.inputs.get(1)) {
                (Op::Conv(conv), _) => match learned.next() {
                    Some((learned, steps)) => {
                        let (weight, bias) = self.real(learned, index);
                        let weight = ops::fake_quantize(weight, steps.val().exp(), WEIGHTS);
                        ops::conv2d(x, weight, Some(bias), window(conv), Activation::None)
                    }
                    None => x,
                },
                (_, Some(&other)) => x + values.get(other),
                (_, None) => x.mean_dim(3).mean_dim(2),
            };
            let step = self.steps[index].val().exp();
            let grid = self.start.outputs[index].grid();
            values.push(ops::fake_quantize(sums, step, grid));
        }
        values.embeddings()
    }

    /// The real weights and biases of the convolution at `index`, before rounding.
    fn real(&self, learned: &AwareConv, index: usize) -> (Tensor<4>, Tensor<1>) {
        let scales = self.start.convs[index]
            .iter()
            .flat_map(|conv| conv.scales.clone());
        let scales: Vec<f32> = scales.collect();
        let shape = [scales.len(), 1, 1, 1];
        let weight = learned.weight.val();
        let scales = Tensor::from_data(TensorData::new(scales, shape), &weight.device());
        let unit = self.start.outputs[index].scale;
        (weight * scales, learned.bias.val().mul_scalar(unit))
    }

    /// What was learned, in integers.
    pub fn quantized(&self) -> Quantized {
        let mut quantized = self.start.clone();
        for (output, step) in quantized.outputs.iter_mut().zip(&self.steps) {
            *output = Affine {
                scale: values(step.val().exp())[0],
                zero_point: output.zero_point,
            };
        }
        let mut learned = self.convs.iter().zip(&self.weight_steps);
        for index in 0..quantized.net.nodes.len() {
            let input = quantized.affine(quantized.net.nodes[index].inputs[0]).scale;
            if let Op::Conv(conv) = &mut quantized.net.nodes[index].op
                && let Some((learned, steps)) = learned.next()
            {
                let (weight, bias) = self.real(learned, index);
                (conv.weight, conv.bias) = (values(weight), values(bias));
                let scales = values(steps.val().exp());
                quantized.convs[index] = Some(quantize_conv_to(conv, input, scales));
            }
        }
        quantized
    }
}

/// The weights in levels, each kept within the cell of the level that was chosen for it.
fn levels(conv: &Conv, integers: &QuantizedConv) -> Vec<f32> {
    const CELL: f32 = 0.49;
    let rows = conv
        .weight
        .chunks_exact(conv.fan_in())
        .zip(&integers.scales);
    let wanted = rows.flat_map(|(row, &scale)| row.iter().map(move |weight| weight / scale));
    let chosen = integers.weight.iter().map(|&level| f32::from(level));
    let pairs = wanted.zip(chosen);
    pairs
        .map(|(wanted, level)| wanted.clamp(level - CELL, level + CELL))
        .collect()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

#[cfg(test)]
mod tests {
    use burn::optim::GradientsParams;

    use super::super::recipe::{Calibrated, Recipe};
    use super::super::simulate::{Network, batch};
    use super::super::tests::{images, network, plan};
    use super::*;
    use crate::loss::embedding_distance;
    use crate::optim::{GroupedOptimizer, OptimConfig};
    use crate::quantize::range::RangeMethod;

    fn quantized() -> Quantized {
        let recipe = Recipe {
            range: RangeMethod::MinMax,
            equalize: false,
            adaptive_rounding: true,
            bias_correction: true,
        };
        let images = images(6);
        let mut calibrated =
            Calibrated::new(network(), Affine::of_input(&plan()), &images).unwrap();
        calibrated.quantize(&recipe, &[]).unwrap()
    }

    #[test]
    fn what_is_trained_is_what_is_exported() {
        let device = Device::flex().autodiff();
        let start = quantized();
        let net = AwareNet::new(start.clone(), &device);
        let back = net.quantized();
        assert_eq!(back.convs.len(), start.convs.len());
        let levels = |q: &Quantized| q.convs[0].as_ref().unwrap().weight.clone();
        assert_eq!(levels(&back), levels(&start));
        let x = batch(&images(6), start.net.input, &device);
        let plain = batch(&images(6), start.net.input, &Device::flex());
        let (a, b) = (
            net.forward(x),
            Network::int8(&back, &Device::flex()).forward(plain),
        );
        let level = back.outputs.last().unwrap().scale;
        let b = values(b);
        assert!(
            values(a)
                .iter()
                .zip(b)
                .all(|(a, b)| (a - b).abs() <= 1.01 * level)
        );
    }

    #[test]
    fn learning_brings_it_closer_to_the_float_network() {
        let device = Device::flex().autodiff();
        // Far too wide a range: most levels are never used.
        let Quantized {
            net,
            input,
            mut outputs,
            ..
        } = quantized();
        outputs.iter_mut().for_each(|affine| affine.scale *= 4.0);
        let coarse = Quantized::nearest(net, input, outputs);
        let float = Network::float(&coarse.net, &Device::flex());
        let plain = batch(&images(16), coarse.net.input, &Device::flex());
        let truth = float.forward(plain).into_data();
        let mut net = AwareNet::new(coarse, &device);
        let config = OptimConfig {
            lr: 0.02,
            ..OptimConfig::default()
        };
        let mut optimizer = GroupedOptimizer::new(&config, &net).unwrap();
        let mut losses = Vec::new();
        for _ in 0..60 {
            let x = batch(&images(16), net.start.net.input, &device);
            let teacher = Tensor::from_data(truth.clone(), &device);
            let loss = embedding_distance(net.forward(x), teacher);
            losses.push(loss.clone().into_scalar::<f32>());
            let gradients = GradientsParams::from_grads(loss.backward(), &net);
            net = optimizer.step(1.0, net, gradients);
        }
        assert!(losses[59] < 0.3 * losses[0], "{losses:?}");
    }
}
