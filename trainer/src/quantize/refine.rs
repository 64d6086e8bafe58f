//! What sample images tell about weights and biases, layer after layer.
//!
//! Float and int8 network run side by side. Each convolution's weights are rounded anew for the
//! inputs that it really gets, then its bias takes up the mean error that is left; the layers
//! behind it see the result.

use burn::tensor::{Device, Tensor};

use super::affine::{QuantizedConv, bias_level};
use super::quantized::Quantized;
use super::round::round_together;
use super::simulate::{Layer, Network, Values, batch, rounded};
use crate::graph::{ConvNet, Op, Value};

/// What is refined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refine {
    /// Rounds weights so that their errors make up for each other.
    pub weights: bool,
    /// Takes the mean error of each output channel off its bias (Nagel et al., ICCV 2019, §4.2,
    /// measured on images).
    pub biases: bool,
}

/// Refines `quantized` on `images`, planar `[3, size, size]` each, which pass through together.
pub fn refine(quantized: &mut Quantized, images: &[Vec<f32>], what: Refine) {
    let device = Device::flex();
    let unread = unread_after(&quantized.net);
    let float = Network::float(&quantized.net, &device);
    let images = batch(images, quantized.net.input, &device);
    let mut truth = Values::new(images.clone());
    let mut values = Values::new(rounded(quantized.input, images));
    for (index, exact) in float.layers().iter().enumerate() {
        if what.weights {
            round_weights(quantized, index, &values, what.biases);
        }
        let wanted = exact.sums(&truth);
        let layer = Layer::int8(quantized, index, &device);
        let mut sums = layer.sums(&values);
        if what.biases && quantized.convs[index].is_some() {
            let missing = channel_means(wanted.clone() - sums.clone());
            add_to_bias(quantized, index, &missing);
            sums = sums + missing;
        }
        values.push(layer.finish(sums));
        truth.push(exact.finish(wanted));
        for &node in &unread[index] {
            values.forget(node);
            truth.forget(node);
        }
    }
}

/// Sets the biases as they are right for each layer on its own: behind exact layers, with the mean
/// error of its own weights taken off.
pub fn correct_alone(quantized: &mut Quantized, images: &[Vec<f32>]) {
    let device = Device::flex();
    let unread = unread_after(&quantized.net);
    let float = Network::float(&quantized.net, &device);
    let mut truth = Values::new(batch(images, quantized.net.input, &device));
    for (index, exact) in float.layers().iter().enumerate() {
        let wanted = exact.sums(&truth);
        if quantized.convs[index].is_some() {
            let sums = Layer::int8(quantized, index, &device).sums(&truth);
            add_to_bias(quantized, index, &channel_means(wanted.clone() - sums));
        }
        truth.push(exact.finish(wanted));
        unread[index].iter().for_each(|&node| truth.forget(node));
    }
}

/// For each node, the nodes that none behind it reads any more.
fn unread_after(net: &ConvNet) -> Vec<Vec<usize>> {
    let mut unread = vec![Vec::new(); net.nodes.len()];
    for index in 0..net.nodes.len() {
        let reads = |reader: &usize| net.nodes[*reader].inputs.contains(&Value::Node(index));
        if let Some(last) = (index + 1..net.nodes.len()).rev().find(reads) {
            unread[last].push(index);
        }
    }
    unread
}

fn round_weights(quantized: &mut Quantized, index: usize, values: &Values, centred: bool) {
    let node = &quantized.net.nodes[index];
    if let (Op::Conv(conv), Some(integers)) = (&node.op, &mut quantized.convs[index]) {
        integers.weight = round_together(conv, integers, values.get(node.inputs[0]), centred);
    }
}

/// The mean of each channel: `[1, C, 1, 1]`.
fn channel_means(x: Tensor<4>) -> Tensor<4> {
    x.mean_dim(3).mean_dim(2).mean_dim(0)
}

fn add_to_bias(quantized: &mut Quantized, index: usize, missing: &Tensor<4>) {
    let input = quantized.affine(quantized.net.nodes[index].inputs[0]).scale;
    let Some(QuantizedConv { bias, scales, .. }) = &mut quantized.convs[index] else {
        return;
    };
    let missing = missing.clone().into_data();
    for ((bias, scale), missing) in bias.iter_mut().zip(scales).zip(missing.iter::<f64>()) {
        let unit = f64::from(input) * f64::from(*scale);
        *bias = bias_level(f64::from(*bias) + missing / unit);
    }
}

#[cfg(test)]
mod tests {
    use super::super::affine::Affine;
    use super::super::calibrate::observe;
    use super::super::quantized::Quantized;
    use super::super::range::RangeMethod;
    use super::super::recipe::outputs;
    use super::super::tests::{images, network, plan};
    use super::*;

    fn nearest() -> Quantized {
        let net = network();
        let seen = observe(&net, &images(8)).unwrap();
        let outputs = outputs(&net, &seen, RangeMethod::MinMax);
        Quantized::nearest(net, Affine::of_input(&plan()), outputs)
    }

    /// Mean over images of each value of the embeddings, int8 minus float.
    fn mean_errors(quantized: &Quantized) -> Vec<f32> {
        let device = Device::flex();
        let images = batch(&images(8), quantized.net.input, &device);
        let float = Network::float(&quantized.net, &device).forward(images.clone());
        let int8 = Network::int8(quantized, &device).forward(images);
        let means = (int8 - float).mean_dim(0);
        means.into_data().iter::<f32>().collect()
    }

    /// Mean squared error of the embeddings.
    fn error(quantized: &Quantized) -> f32 {
        let device = Device::flex();
        let images = batch(&images(8), quantized.net.input, &device);
        let float = Network::float(&quantized.net, &device).forward(images.clone());
        let int8 = Network::int8(quantized, &device).forward(images);
        (int8 - float).square().mean().into_scalar::<f32>()
    }

    #[test]
    fn corrected_biases_cancel_the_mean_error() {
        // Coarse weights, so that there is an error to take off.
        let mut coarse = nearest();
        for conv in coarse.convs.iter_mut().flatten() {
            conv.weight.iter_mut().for_each(|w| *w = *w / 16 * 16);
        }
        let mut corrected = coarse.clone();
        let what = Refine {
            weights: false,
            biases: true,
        };
        refine(&mut corrected, &images(8), what);
        let level = corrected.outputs.last().unwrap().scale;
        let size =
            |errors: Vec<f32>| errors.iter().map(|e| e.abs()).sum::<f32>() / errors.len() as f32;
        let (before, after) = (size(mean_errors(&coarse)), size(mean_errors(&corrected)));
        // What is left is the rounding of the output itself.
        assert!(
            after < 0.5 * level && after < 0.3 * before,
            "{before} {after} {level}"
        );
    }

    #[test]
    fn weights_rounded_together_err_less() {
        let plain = nearest();
        let mut together = plain.clone();
        let what = Refine {
            weights: true,
            biases: false,
        };
        refine(&mut together, &images(8), what);
        assert_ne!(plain.convs, together.convs);
        assert!(
            error(&together) < error(&plain),
            "{} {}",
            error(&together),
            error(&plain)
        );
    }
}
