//! The written network, run by tract, against plain integer loops.

use burn::tensor::Device;
use numclip::encode::Model;
use numclip::encode::int8::Int8Model;
use numclip::encode::tract::TractModel;
use numclip::verify::cosine;

use super::*;
use crate::graph::{ConvNet, Node};
use crate::quantize::onnx;
use crate::quantize::range::RangeMethod;
use crate::quantize::recipe::{Calibrated, Recipe};
use crate::quantize::simulate::{Network, batch};
use crate::quantize::tests::{SIZE, images, network, plan};

/// The levels of one node's output.
type Levels = Vec<u8>;

/// The network by the definition of each operator: integers, but for the convolutions that stay in
/// floats. What a node gives are real numbers, of which integer nodes see the levels.
fn reference(quantized: &Quantized, image: &[f32]) -> Vec<f32> {
    let (net, convs) = (&quantized.net, &quantized.convs);
    let shapes = net.output_shapes();
    let rounded = |affine: Affine, values: &[f32]| -> Vec<f32> {
        let round = |&value: &f32| affine.dequantize(affine.quantize(value));
        values.iter().map(round).collect()
    };
    let image = rounded(quantized.input, image);
    let mut outputs: Vec<Vec<f32>> = Vec::new();
    for (index, node) in net.nodes.iter().enumerate() {
        let read = |value: Value| match value {
            Value::Image => (&image, net.input),
            Value::Node(from) => (&outputs[from], shapes[from]),
        };
        let (reals, shape) = read(node.inputs[0]);
        let (from, to) = (quantized.affine(node.inputs[0]), quantized.outputs[index]);
        let output = match (&node.op, &convs[index]) {
            (Op::Conv(conv), Some(integers)) => {
                let levels = reals.iter().map(|&value| from.quantize(value)).collect();
                let levels =
                    integer_conv((conv, integers), &levels, from, shape, to, shapes[index]);
                levels.iter().map(|&level| to.dequantize(level)).collect()
            }
            (Op::Conv(_), None) => {
                let alone = ConvNet {
                    input: shape,
                    nodes: vec![Node {
                        inputs: vec![Value::Image],
                        ..node.clone()
                    }],
                };
                alone.forward(reals)
            }
            (Op::Add, _) => {
                let sums = reals.iter().zip(read(node.inputs[1]).0).map(|(a, b)| a + b);
                rounded(to, &sums.collect::<Vec<_>>())
            }
            (Op::GlobalAveragePool, _) => {
                let plane = shape[1] * shape[2];
                let means = reals
                    .chunks(plane)
                    .map(|v| v.iter().sum::<f32>() / plane as f32);
                rounded(to, &means.collect::<Vec<_>>())
            }
        };
        let stays = quantized.is_float(index) && only_floats_read(quantized, index);
        outputs.push(match quantized.is_float(index) && !stays {
            true => rounded(to, &output),
            false => output,
        });
    }
    outputs.pop().unwrap()
}

fn only_floats_read(quantized: &Quantized, index: usize) -> bool {
    let nodes = quantized.net.nodes.iter().enumerate();
    let mut readers = nodes.filter(|(_, node)| node.inputs.contains(&Value::Node(index)));
    readers.all(|(reader, _)| quantized.is_float(reader))
}

fn integer_conv(
    (conv, quantized): (&Conv, &QuantizedConv),
    x: &Levels,
    from: Affine,
    [_, h, w]: [usize; 3],
    to: Affine,
    out: [usize; 3],
) -> Levels {
    let [_, inputs, kh, kw] = conv.shape;
    let mut levels = Levels::new();
    for o in 0..out[0] {
        let first = o / (conv.shape[0] / conv.groups) * inputs;
        for (row, column) in (0..out[1]).flat_map(|r| (0..out[2]).map(move |c| (r, c))) {
            let mut sum = quantized.bias[o];
            for (i, ky, kx) in
                (0..inputs).flat_map(|i| (0..kh).flat_map(move |y| (0..kw).map(move |x| (i, y, x))))
            {
                let y = (row * conv.stride[0] + ky)
                    .checked_sub(conv.padding[0])
                    .filter(|y| *y < h);
                let z = (column * conv.stride[1] + kx)
                    .checked_sub(conv.padding[1])
                    .filter(|z| *z < w);
                let (Some(y), Some(z)) = (y, z) else { continue };
                let level =
                    i32::from(x[((first + i) * h + y) * w + z]) - i32::from(from.zero_point);
                sum += level * i32::from(quantized.weight[((o * inputs + i) * kh + ky) * kw + kx]);
            }
            let scale =
                f64::from(from.scale) * f64::from(quantized.scales[o]) / f64::from(to.scale);
            let level = (f64::from(sum) * scale).round_ties_even() + f64::from(to.zero_point);
            levels.push(level.clamp(0.0, 255.0) as u8);
        }
    }
    levels
}

fn encode(model: &dyn Model, image: &[f32]) -> Vec<f32> {
    model.session().unwrap().encode(image).unwrap()
}

fn tract(bytes: &[u8]) -> TractModel {
    TractModel::from_bytes("test", bytes, SIZE, 16).unwrap()
}

/// Every way to quantise the test network.
fn recipes() -> Vec<Recipe> {
    let plain = RangeMethod::all().map(|range| Recipe {
        range,
        equalize: false,
        adaptive_rounding: false,
        bias_correction: false,
    });
    let refined = plain.map(|recipe| Recipe {
        equalize: true,
        adaptive_rounding: true,
        bias_correction: true,
        ..recipe
    });
    [plain, refined].concat()
}

/// Largest distance of two embeddings in levels of the output.
fn levels_apart(quantized: &Quantized, a: &[f32], b: &[f32]) -> f32 {
    let level = quantized.outputs[quantized.outputs.len() - 1].scale;
    let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs() / level);
    apart.fold(0.0, f32::max)
}

#[test]
fn engines_and_simulation_compute_what_integer_loops_do() {
    let (net, images) = (network(), images(6));
    let mut calibrated = Calibrated::new(net.clone(), Affine::of_input(&plan()), &images).unwrap();
    for recipe in recipes() {
        check(
            &calibrated.quantize(&recipe, &[]).unwrap(),
            &images,
            &recipe.to_string(),
        );
    }
}

/// Every convolution in floats alone, the first two, the last ones, all of them.
#[test]
fn so_they_do_with_layers_in_floats() {
    let (net, images) = (network(), images(6));
    let mut calibrated = Calibrated::new(net, Affine::of_input(&plan()), &images).unwrap();
    let refined = recipes()[5];
    for floats in [
        &[0][..],
        &[1],
        &[2],
        &[5],
        &[0, 1],
        &[1, 2],
        &[2, 5],
        &[0, 1, 2, 5],
    ] {
        let quantized = calibrated.quantize(&refined, floats).unwrap();
        let is_float = |&node: &usize| quantized.is_float(node);
        assert!((0..6).filter(is_float).eq(floats.iter().copied()));
        check(&quantized, &images, &format!("{floats:?} in floats"));
    }
}

/// Holds tract, the int8 engine and the simulation against the definition.
fn check(quantized: &Quantized, images: &[Vec<f32>], what: &str) {
    let bytes = int8(quantized);
    let net = &quantized.net;
    let engine = Int8Model::from_bytes("test", &bytes, SIZE, 16).unwrap();
    let simulated = Network::int8(quantized, &Device::flex());
    let simulated = simulated.forward(batch(images, net.input, &Device::flex()));
    let simulated: Vec<f32> = simulated.into_data().iter::<f32>().collect();
    for (image, simulated) in images.iter().zip(simulated.chunks(16)) {
        let expected = reference(quantized, image);
        let apart = |got: &[f32]| levels_apart(quantized, got, &expected);
        let (tract, engine) = (encode(&tract(&bytes), image), encode(&engine, image));
        assert!(apart(&tract) <= 1.01, "{what}: tract, {}", apart(&tract));
        assert!(apart(&engine) <= 1.01, "{what}: int8, {}", apart(&engine));
        assert!(
            apart(simulated) <= 1.01,
            "{what}: simulation, {}",
            apart(simulated)
        );
        assert!(cosine(&expected, &net.forward(image)) > 0.99, "{what}");
    }
}

#[test]
fn the_float_form_is_the_network() {
    let net = network();
    let image = images(1).remove(0);
    let (got, expected) = (
        encode(&tract(&onnx::float(&net)), &image),
        net.forward(&image),
    );
    for (a, b) in got.iter().zip(&expected) {
        assert!((a - b).abs() < 1e-5, "{got:?} {expected:?}");
    }
}
