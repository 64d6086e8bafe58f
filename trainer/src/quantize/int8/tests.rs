//! The written network, run by tract, against plain integer loops.

use numclip::encode::Model as _;
use numclip::encode::tract::TractModel;
use numclip::preprocess::Plan;
use numclip::verify::cosine;

use super::*;
use crate::graph::{Activation, Node};
use crate::quantize::calibrate::{RangeMethod, calibrate};
use crate::quantize::onnx;

const SIZE: usize = 12;

/// Numbers between −1 and 1 that look random.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let value = |i: u32| {
        ((i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)) >> 8) as f32 / (1 << 23) as f32
            - 1.0
    };
    (0..count as u32).map(|i| value(i + 1)).collect()
}

fn conv(
    seed: u32,
    shape: [usize; 4],
    stride: usize,
    padding: [usize; 4],
    groups: usize,
    activation: Activation,
) -> Op {
    let fan = shape[1..].iter().product::<usize>() as f32;
    Op::Conv(Conv {
        weight: noise(shape.iter().product(), seed)
            .iter()
            .map(|w| w * (3.0 / fan).sqrt())
            .collect(),
        shape,
        bias: noise(shape[0], seed + 1).iter().map(|b| b * 0.2).collect(),
        stride: [stride; 2],
        padding,
        groups,
        activation,
    })
}

/// Every kind of node: stem with one-sided padding, depthwise, linear
/// pointwise, residual sum, pooling, head.
fn network() -> ConvNet {
    let mut net = ConvNet {
        input: [3, SIZE, SIZE],
        nodes: Vec::<Node>::new(),
    };
    let stem = net.push(
        "stem",
        conv(1, [8, 3, 3, 3], 2, [0, 0, 1, 1], 1, Activation::Relu6),
        vec![Value::Image],
    );
    let depthwise = net.push(
        "dw",
        conv(3, [8, 1, 3, 3], 1, [1; 4], 8, Activation::Relu),
        vec![stem],
    );
    let linear = net.push(
        "pw",
        conv(5, [8, 8, 1, 1], 1, [0; 4], 1, Activation::None),
        vec![depthwise],
    );
    let sum = net.push("sum", Op::Add, vec![stem, linear]);
    let pool = net.push("pool", Op::GlobalAveragePool, vec![sum]);
    net.push(
        "head",
        conv(7, [16, 8, 1, 1], 1, [0; 4], 1, Activation::None),
        vec![pool],
    );
    net
}

/// The levels of one node's output.
type Levels = Vec<u8>;

/// `net` in integers by the definition of each operator.
fn reference(net: &ConvNet, input: Affine, taps: &[Tap], image: &[f32]) -> Vec<f32> {
    let image: Levels = image.iter().map(|&value| input.quantize(value)).collect();
    let shapes = net.output_shapes();
    let mut outputs: Vec<Levels> = Vec::new();
    for (index, node) in net.nodes.iter().enumerate() {
        let read = |value: Value| match value {
            Value::Image => (&image, input, net.input),
            Value::Node(from) => (&outputs[from], taps[from].affine, shapes[from]),
        };
        let (levels, affine, shape) = read(node.inputs[0]);
        let to = taps[index].affine;
        let real = |(levels, affine): (&Levels, Affine)| {
            levels
                .iter()
                .map(|&l| affine.dequantize(l))
                .collect::<Vec<_>>()
        };
        let output = match &node.op {
            Op::Conv(conv) => integer_conv(conv, levels, affine, shape, to, shapes[index]),
            Op::Add => {
                let (other, other_affine, _) = read(node.inputs[1]);
                let (a, b) = (real((levels, affine)), real((other, other_affine)));
                a.iter().zip(b).map(|(a, b)| to.quantize(a + b)).collect()
            }
            Op::GlobalAveragePool => {
                let values = real((levels, affine));
                let plane = shape[1] * shape[2];
                values
                    .chunks(plane)
                    .map(|v| to.quantize(v.iter().sum::<f32>() / plane as f32))
                    .collect()
            }
        };
        outputs.push(output);
    }
    let last = taps[taps.len() - 1].affine;
    outputs
        .pop()
        .unwrap()
        .into_iter()
        .map(|level| last.dequantize(level))
        .collect()
}

fn integer_conv(
    conv: &Conv,
    x: &Levels,
    from: Affine,
    [_, h, w]: [usize; 3],
    to: Affine,
    out: [usize; 3],
) -> Levels {
    let quantized = quantize_conv(conv, from.scale, &[]);
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

fn encode(bytes: &[u8], image: &[f32]) -> Vec<f32> {
    let model = TractModel::from_bytes("test", bytes, SIZE, 16).unwrap();
    model.session().unwrap().encode(image).unwrap()
}

#[test]
fn tract_computes_what_integer_loops_do() {
    let net = network();
    let plan = Plan {
        mean: [0.5; 3],
        std: [0.5; 3],
        ..Plan::clip(SIZE as u32)
    };
    let images: Vec<Vec<f32>> = (0..6)
        .map(|seed| noise(3 * SIZE * SIZE, 100 + seed))
        .collect();
    for method in [
        RangeMethod::MinMax,
        RangeMethod::Mse,
        RangeMethod::Percentile { keep: 0.999 },
    ] {
        let taps = calibrate(&net, &images, method).unwrap();
        let input = Affine::of_input(&plan);
        let bytes = int8(&net, input, &taps, false);
        let level = taps[taps.len() - 1].affine.scale;
        for image in &images {
            let (got, expected) = (encode(&bytes, image), reference(&net, input, &taps, image));
            let worst = got
                .iter()
                .zip(&expected)
                .map(|(a, b)| (a - b).abs() / level)
                .fold(0.0, f32::max);
            assert!(worst <= 1.01, "{method:?}: {worst} levels apart");
            assert!(cosine(&got, &net.forward(image)) > 0.99, "{method:?}");
        }
    }
}

#[test]
fn the_float_form_is_the_network() {
    let net = network();
    let image = noise(3 * SIZE * SIZE, 9);
    let (got, expected) = (encode(&onnx::float(&net), &image), net.forward(&image));
    for (a, b) in got.iter().zip(&expected) {
        assert!((a - b).abs() < 1e-5, "{got:?} {expected:?}");
    }
}
