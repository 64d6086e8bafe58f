//! What each layer's rounding costs, in the task's own unit.
//!
//! Every layer is quantised alone (its weights, and the levels of its output) in an otherwise
//! float network, and beside that all layers together.

use burn::tensor::{Device, Tensor};
use numclip::bundle::Precision;
use numclip::estimate::Estimator;
use serde::Serialize;

use super::judge::{Judge, mean_distance};
use crate::graph::{Conv, Op};
use crate::quantize::affine::{Affine, QuantizedConv};
use crate::quantize::quantized::Quantized;
use crate::quantize::simulate::{Layer, Network, Values, batch, rounded};

/// Images that layers are measured on for a report, at most, evenly spaced.
pub const IMAGES: usize = 128;
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
    /// Lowest and highest value that its output's levels cover; none where it stays in floats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<[f32; 2]>,
    /// Arithmetic.
    pub precision: Precision,
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
/// for each layer behind exact ones, on at most `images` images; errors of at most `threshold`
/// count as right.
pub fn layer_costs(
    [quantized, alone]: [&Quantized; 2],
    judge: &Judge<'_>,
    images: usize,
    threshold: f32,
) -> Costs {
    let judge = judge.some(images);
    let mut sums = vec![Sums::default(); quantized.net.nodes.len() + 1];
    let mut values = vec![Vec::new(); quantized.net.nodes.len() + 2];
    for images in judge.tensors.chunks(BATCH) {
        measure_batch(
            quantized,
            alone,
            images,
            judge.estimator,
            (&mut sums, &mut values),
        );
    }
    let labels = &judge.labels;
    let float = values.pop().unwrap_or_default();
    let describe = |((index, sums), values): ((usize, &Sums), &Vec<f32>)| {
        let right = |values: &[f32]| share_within(values, labels, threshold);
        LayerCost {
            saturated: sums.outside / sums.count.max(1.0),
            sqnr_alone: decibels(sums.signal, sums.noise_alone),
            sqnr_whole: decibels(sums.signal, sums.noise_whole),
            mae_increase: mean_distance(values, labels) - mean_distance(&float, labels),
            drift: mean_distance(values, &float),
            score_increase: right(values) - right(&float),
            ..facts(quantized, index)
        }
    };
    Costs {
        images: labels.len(),
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
        let total = |x: Tensor<4>| f64::from(x.sum().into_scalar::<f32>());
        self.count += exact.shape().num_elements() as f64;
        if let Some(affine) = output(quantized, index) {
            let [low, high] = [0, 255].map(|level| affine.dequantize(level));
            // Half a level beyond the ends still rounds to them.
            let margin = affine.scale / 2.0;
            let beyond = exact.clone() - exact.clone().clamp(low - margin, high + margin);
            self.outside += total(beyond.abs().greater_elem(0.0).float());
        }
        self.signal += total(exact.clone().square());
        self.noise_alone += total((alone - exact.clone()).square());
        self.noise_whole += total((whole - exact).square());
    }
}

fn output(quantized: &Quantized, index: usize) -> Option<Affine> {
    match index {
        0 => Some(quantized.input),
        _ => quantized.rounding(index - 1),
    }
}

fn estimates(estimator: &Estimator, embeddings: Tensor<2>) -> Vec<f32> {
    let [_, dim] = embeddings.dims();
    let values: Vec<f32> = embeddings.into_data().iter::<f32>().collect();
    let rows = values.chunks_exact(dim);
    rows.map(|embedding| estimator.estimate(embedding).value)
        .collect()
}

/// Share of values at most `threshold` from their labels.
pub fn share_within(values: &[f32], labels: &[f32], threshold: f32) -> f64 {
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
        range: affine.map(|affine| [0, 255].map(|level| affine.dequantize(level))),
        precision: Precision::Int8,
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
    if let Op::Conv(conv) = &node.op {
        facts.macs = (facts.output.iter().product::<usize>() * conv.fan_in()) as u64;
        (facts.precision, facts.bytes) = match &quantized.convs[index - 1] {
            Some(integers) => (Precision::Int8, size(integers)),
            None => {
                let values = conv.weight.len() + conv.bias.len();
                (Precision::F32, values * size_of::<f32>())
            }
        };
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

#[cfg(test)]
mod tests {
    use numclip::bins::{Bin, Bins};
    use numclip::estimate::Regressor;

    use super::*;
    use crate::quantize::range::RangeMethod;
    use crate::quantize::recipe::{Calibrated, Recipe};
    use crate::quantize::tests::{images, network, plan};

    /// Two bins that lie at the ends of the direction in which two embeddings differ.
    fn estimator(one: &[f32], other: &[f32]) -> Estimator {
        let apart: Vec<f32> = one.iter().zip(other).map(|(a, b)| a - b).collect();
        let norm = apart.iter().map(|v| v * v).sum::<f32>().sqrt();
        let along: Vec<f32> = apart.iter().map(|v| v / norm).collect();
        let against = along.iter().map(|v| -v);
        let embeddings = along.iter().copied().chain(against).collect();
        let bin = |label: &str, start, end| Bin {
            label: label.into(),
            start,
            end,
        };
        let bins = vec![bin("low", 0.0, 50.0), bin("high", 50.0, 100.0)];
        let bins = Bins::new(bins, embeddings).unwrap();
        let values = vec![0.0, 100.0];
        Estimator::new(
            bins,
            Regressor::Expectation { values },
            10.0,
            [0.0, 100.0],
            None,
        )
        .unwrap()
    }

    /// Labels are what the float network says, so that all of its estimates are right.
    #[test]
    fn a_layer_that_is_quantised_badly_shows_in_every_column_and_the_others_do_not() {
        const BAD: usize = 1;
        let (net, images) = (network(), images(24));
        let input = Affine::of_input(&plan());
        let embeddings: Vec<Vec<f32>> = images.iter().map(|image| net.forward(image)).collect();
        let estimator = estimator(&embeddings[0], &embeddings[1]);
        let label = |embedding: &Vec<f32>| estimator.estimate(embedding).value;
        let labels: Vec<f32> = embeddings.iter().map(label).collect();
        let judge = Judge::of(&estimator, images.clone(), labels, embeddings);
        let mut calibrated = Calibrated::new(net, input, &images).unwrap();
        let recipe = Recipe {
            range: RangeMethod::MinMax,
            equalize: false,
            adaptive_rounding: false,
            bias_correction: true,
        };
        let costs = |quantized: &Quantized, calibrated: &Calibrated<'_>, threshold: f32| {
            let alone = calibrated.alone(quantized);
            layer_costs([quantized, &alone], &judge, 20, threshold)
        };
        let good = calibrated.quantize(&recipe, &[]).unwrap();
        let layers = costs(&good, &calibrated, 1.0).layers;
        let most = layers.iter().map(|layer| layer.drift).fold(0.0, f64::max);
        // Of the estimates of well quantised layers nearly all are within this.
        let threshold = 5.0 * most;
        let good_costs = costs(&good, &calibrated, threshold as f32);
        assert_eq!((good_costs.images, good_costs.layers.len()), (20, 7));
        assert!(
            good_costs
                .layers
                .iter()
                .all(|layer| layer.score_increase > -0.2)
        );
        let mut bad = good.clone();
        // Every output rounds to zero.
        bad.outputs[BAD].scale *= 1000.0;
        let bad_costs = costs(&bad, &calibrated, threshold as f32);
        for (index, (before, after)) in good_costs.layers.iter().zip(&bad_costs.layers).enumerate()
        {
            if index == BAD + 1 {
                assert!(after.score_increase < -0.3, "{after:?}");
                assert!(after.mae_increase > threshold, "{after:?}");
                assert!(after.drift > threshold, "{after:?}");
                assert!(after.sqnr_alone.unwrap() < before.sqnr_alone.unwrap() - 20.0);
            } else {
                assert!((after.score_increase - before.score_increase).abs() < 0.2);
                assert!(after.drift < threshold, "{index}: {after:?}");
            }
        }
        let floats = calibrated.quantize(&recipe, &[BAD]).unwrap();
        let layer = &costs(&floats, &calibrated, threshold as f32).layers[BAD + 1];
        assert_eq!(layer.precision, Precision::F32);
        assert!(layer.bytes > good_costs.layers[BAD + 1].bytes);
    }
}
