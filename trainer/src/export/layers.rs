//! What each layer's rounding costs, in the task's own unit.
//!
//! Every layer is quantised alone (its weights, and the levels of its output) in an otherwise
//! float network, and beside that all layers together.

use burn::tensor::{Device, Tensor};
use numclip::estimate::Estimator;
use serde::Serialize;

use super::judge::{Judge, mean_distance};
use crate::graph::{Conv, Op};
use crate::quantize::affine::{Affine, QuantizedConv};
use crate::quantize::quantized::Quantized;
use crate::quantize::simulate::{Layer, Network, Values, batch, rounded};

/// Images that layers are measured on, at most, evenly spaced.
const IMAGES: usize = 128;
/// Images that pass through together: all their activations are in memory.
const BATCH: usize = 8;

/// What one layer costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerCost {
    /// Name in the network.
    pub name: String,
    /// What it computes, in words.
    pub kind: String,
    /// Channels, height and width of its output.
    pub output: [usize; 3],
    /// Multiply-accumulates for one picture.
    pub macs: u64,
    /// Weights and biases in int8, bytes.
    pub bytes: usize,
    /// Lowest and highest value that its output's levels cover.
    pub range: [f32; 2],
    /// Share of its values beyond them.
    pub saturated: f64,
    /// Signal to quantisation noise of its output when it alone is quantised, dB; none where there
    /// is no noise.
    pub sqnr_alone: Option<f64>,
    /// The same in the whole int8 network.
    pub sqnr_whole: Option<f64>,
    /// How much the mean absolute error grows when it alone is quantised, in the task's unit.
    pub mae_increase: f64,
    /// Mean distance of the value from the float network's when it alone is quantised.
    pub drift: f64,
    /// How much the cumulative score grows when it alone is quantised.
    pub score_increase: f64,
}

/// What all layers cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Costs {
    /// Images measured.
    pub images: usize,
    /// Largest error counted as right in the cumulative score, in the task's unit.
    pub threshold: f32,
    /// The image tensor and then every node, in the order of the network.
    pub layers: Vec<LayerCost>,
}

/// Measures every layer of `quantized`, and of `alone`, the same network with biases that are right
/// for each layer behind exact ones; errors of at most `threshold` count as right.
pub fn layer_costs(
    quantized: &Quantized,
    alone: &Quantized,
    judge: &Judge<'_>,
    threshold: f32,
) -> Costs {
    let count = judge.tensors.len().min(IMAGES);
    let places: Vec<usize> = (0..count)
        .map(|i| i * judge.tensors.len() / count)
        .collect();
    let mut sums = vec![Sums::default(); quantized.net.nodes.len() + 1];
    let mut values = vec![Vec::new(); quantized.net.nodes.len() + 2];
    for places in places.chunks(BATCH) {
        let images: Vec<Vec<f32>> = places.iter().map(|&i| judge.tensors[i].clone()).collect();
        measure_batch(
            quantized,
            alone,
            &images,
            judge.estimator,
            (&mut sums, &mut values),
        );
    }
    let labels: Vec<f32> = places.iter().map(|&i| judge.labels[i]).collect();
    let float = values.pop().unwrap_or_default();
    let describe = |((index, sums), values): ((usize, &Sums), &Vec<f32>)| {
        let right = |values: &[f32]| share_within(values, &labels, threshold);
        LayerCost {
            saturated: sums.outside / sums.count.max(1.0),
            sqnr_alone: decibels(sums.signal, sums.noise_alone),
            sqnr_whole: decibels(sums.signal, sums.noise_whole),
            mae_increase: mean_distance(values, &labels) - mean_distance(&float, &labels),
            drift: mean_distance(values, &float),
            score_increase: right(values) - right(&float),
            ..facts(quantized, index)
        }
    };
    Costs {
        images: count,
        threshold,
        layers: sums.iter().enumerate().zip(&values).map(describe).collect(),
    }
}

/// Sums over the values of one layer's output.
#[derive(Clone, Default)]
struct Sums {
    count: f64,
    outside: f64,
    signal: f64,
    noise_alone: f64,
    noise_whole: f64,
}

/// Adds what a batch shows: to the sums of the image and each node, and to the estimates with
/// each of them alone quantised, and, behind those, with none.
fn measure_batch(
    quantized: &Quantized,
    alone: &Quantized,
    images: &[Vec<f32>],
    estimator: &Estimator,
    (sums, values): (&mut [Sums], &mut [Vec<f32>]),
) {
    let device = Device::flex();
    let float = Network::float(&quantized.net, &device);
    let int8 = Network::int8(quantized, &device);
    let images = batch(images, quantized.net.input, &device);
    let estimate = |values: &Values| estimates(estimator, values.embeddings());
    let truth = float.run(Values::new(images.clone()));
    let image = rounded(quantized.input, images.clone());
    let mut whole = Values::new(image.clone());
    sums[0].add(quantized, 0, [images, image.clone(), image.clone()]);
    values[0].extend(estimate(&float.run(Values::new(image))));
    for (index, layer) in int8.layers().iter().enumerate() {
        whole.push(layer.forward(&whole));
        let mut before = truth.first(index);
        let exact = truth.node(index);
        before.push(Layer::int8(alone, index, &device).forward(&before));
        let outputs = [exact, before.node(index), whole.node(index)];
        sums[index + 1].add(quantized, index + 1, outputs);
        values[index + 1].extend(estimate(&float.run(before)));
    }
    values[sums.len()].extend(estimate(&truth));
}

impl Sums {
    /// Adds a layer's output: exact, with it alone quantised, with all quantised.
    fn add(&mut self, quantized: &Quantized, index: usize, [exact, alone, whole]: [Tensor<4>; 3]) {
        let affine = output(quantized, index);
        let [low, high] = [0, 255].map(|level| affine.dequantize(level));
        // Half a level beyond the ends still rounds to them.
        let margin = affine.scale / 2.0;
        let total = |x: Tensor<4>| f64::from(x.sum().into_scalar::<f32>());
        let beyond = exact.clone() - exact.clone().clamp(low - margin, high + margin);
        let ones = beyond.abs().greater_elem(0.0).float();
        self.count += exact.shape().num_elements() as f64;
        self.outside += total(ones);
        self.signal += total(exact.clone().square());
        self.noise_alone += total((alone - exact.clone()).square());
        self.noise_whole += total((whole - exact).square());
    }
}

fn output(quantized: &Quantized, index: usize) -> Affine {
    match index {
        0 => quantized.input,
        _ => quantized.outputs[index - 1],
    }
}

fn estimates(estimator: &Estimator, embeddings: Tensor<2>) -> Vec<f32> {
    let [_, dim] = embeddings.dims();
    let values: Vec<f32> = embeddings.into_data().iter::<f32>().collect();
    let rows = values.chunks_exact(dim);
    rows.map(|embedding| estimator.estimate(embedding).value)
        .collect()
}

fn share_within(values: &[f32], labels: &[f32], threshold: f32) -> f64 {
    let pairs = values.iter().zip(labels);
    let right = pairs.filter(|(value, label)| (*value - *label).abs() <= threshold);
    right.count() as f64 / values.len().max(1) as f64
}

/// None above 100 dB, which is the rounding of single precision.
fn decibels(signal: f64, noise: f64) -> Option<f64> {
    (noise > signal * 1e-10).then(|| 10.0 * (signal / noise).log10())
}

/// What is known of the image (0) or a node (from 1) without running it.
fn facts(quantized: &Quantized, index: usize) -> LayerCost {
    let affine = output(quantized, index);
    let mut facts = LayerCost {
        name: "image".into(),
        kind: "input".into(),
        output: quantized.net.input,
        macs: 0,
        bytes: 0,
        range: [0, 255].map(|level| affine.dequantize(level)),
        saturated: 0.0,
        sqnr_alone: None,
        sqnr_whole: None,
        mae_increase: 0.0,
        drift: 0.0,
        score_increase: 0.0,
    };
    let Some(node) = index
        .checked_sub(1)
        .map(|index| &quantized.net.nodes[index])
    else {
        return facts;
    };
    facts.name = node.name.clone();
    facts.output = quantized.net.output_shapes()[index - 1];
    facts.kind = match &node.op {
        Op::Conv(conv) => kind(conv),
        Op::Add => "sum".into(),
        Op::GlobalAveragePool => "mean over the picture".into(),
    };
    if let (Op::Conv(conv), Some(integers)) = (&node.op, &quantized.convs[index - 1]) {
        facts.macs = (facts.output.iter().product::<usize>() * conv.fan_in()) as u64;
        facts.bytes = size(integers);
    }
    facts
}

fn kind(conv: &Conv) -> String {
    let [outputs, depth, height, width] = conv.shape;
    let name = match (conv.groups, depth) {
        (1, _) => "convolution",
        (_, 1) => "depthwise",
        _ => "grouped",
    };
    format!(
        "{height}×{width} {name}, {} → {outputs}",
        depth * conv.groups
    )
}

fn size(conv: &QuantizedConv) -> usize {
    conv.weight.len() + 4 * (conv.bias.len() + conv.scales.len())
}
