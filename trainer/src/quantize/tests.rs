//! A small network of every kind of node, images for it, and a small transformer.

use burn::tensor::Device;
use numclip::preprocess::Plan;

use crate::clip::{self, ImageShape, TransformerShape, VitForm, VitShape, image_layout, random};
use crate::graph::{Activation, Conv, ConvNet, Node, Op, Value};
use crate::model::vit::Vit;

/// Side of the test images.
pub const SIZE: usize = 12;

/// Numbers between −1 and 1 that look random.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let value = |i: u32| {
        ((i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)) >> 8) as f32 / (1 << 23) as f32
            - 1.0
    };
    (0..count as u32).map(|i| value(i + 1)).collect()
}

pub fn conv(
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
pub fn network() -> ConvNet {
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

/// A vision transformer of two blocks with random weights, for images of `size`, whose positions
/// come from images of `trained`.
pub fn transformer(
    [trained, size]: [usize; 2],
    embedding: usize,
    activation: clip::Activation,
    form: VitForm,
) -> Vit {
    let shape = VitShape {
        image: trained,
        patch: 16,
        transformer: TransformerShape {
            width: 24,
            layers: 2,
            heads: 3,
            mlp: 40,
            activation,
        },
        embedding,
        form,
    };
    let layout = image_layout(&ImageShape::Vit(shape.clone()));
    let weights = &mut random(layout, 1).with_epsilon(form.epsilon());
    Vit::take(weights, &shape, size, &Device::flex())
}

/// Images whose values cover −1 to 1.
pub fn images(count: u32) -> Vec<Vec<f32>> {
    (0..count)
        .map(|seed| noise(3 * SIZE * SIZE, 100 + seed))
        .collect()
}

/// The plan that such images come from.
pub fn plan() -> Plan {
    Plan {
        mean: [0.5; 3],
        std: [0.5; 3],
        ..Plan::clip(SIZE as u32)
    }
}
