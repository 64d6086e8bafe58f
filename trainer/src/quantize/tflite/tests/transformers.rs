//! Vision transformers.

use burn::tensor::Device;
use numclip::verify::cosine;

use super::super::convert;
use super::super::model::Kind;
use super::read::read;
use super::{DIM, by_tract, conv, noise, run};
use crate::clip::{self, ImageShape, TransformerShape, VitForm, VitShape, image_layout, random};
use crate::graph::{Activation, ConvNet, Op, Value};
use crate::model::vit::Vit;
use crate::quantize::affine::Affine;
use crate::quantize::range::RangeMethod;
use crate::quantize::{towers, vit};

/// A transformer of the project in floats and with its products in int8, and how far apart the
/// written file and its source may be.
fn transformers(activation: clip::Activation, form: VitForm) -> [(Vec<u8>, f32); 2] {
    let shape = VitShape {
        image: VIT_SIZE,
        patch: 16,
        transformer: TransformerShape {
            width: 24,
            layers: 2,
            heads: 3,
            mlp: 40,
            activation,
        },
        embedding: DIM,
        form,
    };
    let layout = image_layout(&ImageShape::Vit(shape.clone()));
    let weights = &mut random(layout, 1).with_epsilon(form.epsilon());
    let net = Vit::take(weights, &shape, VIT_SIZE, &Device::flex());
    let mut tail = ConvNet {
        input: [DIM, 1, 1],
        nodes: Vec::new(),
    };
    let layer = conv(3, [DIM, DIM, 1, 1], [1, 1], [0; 4], 1, Activation::Relu);
    let down = tail.push("down", layer, vec![Value::Image]);
    tail.push("sum", Op::Add, vec![down, Value::Image]);
    let images: Vec<Vec<f32>> = vit_images();
    let float = vit::Float {
        vit: &net,
        tail: Some(&tail),
        size: VIT_SIZE,
    };
    let recipe = vit::Recipe {
        range: RangeMethod::MinMax,
        smoothing: 0.5,
    };
    let mut calibrated = vit::Calibrated::new(float, Affine::covering(-1.0, 1.0), &images).unwrap();
    let int8 = calibrated.quantize(&recipe, &[]).unwrap().bytes;
    let float = towers::vit(&net, Some(&tail), VIT_SIZE).bytes;
    [(float, 1e-5), (int8, 5e-3)]
}

const VIT_SIZE: usize = 32;

fn vit_images() -> Vec<Vec<f32>> {
    let images = 0..4;
    images
        .map(|seed| noise(3 * VIT_SIZE * VIT_SIZE, 300 + seed))
        .collect()
}

#[test]
fn transformers_give_what_the_onnx_file_does() {
    for (activation, form) in [
        (clip::Activation::Gelu, VitForm::Plain),
        (clip::Activation::QuickGelu, VitForm::Clip),
    ] {
        for (onnx, tolerance) in transformers(activation, form) {
            let file = read(&convert(&onnx).unwrap());
            let gelus = file
                .operators
                .iter()
                .filter(|o| o.kind == Kind::Gelu)
                .count();
            assert_eq!(
                gelus,
                if activation == clip::Activation::Gelu {
                    2
                } else {
                    0
                }
            );
            for image in vit_images() {
                let got = run::run(&file, &image);
                let expected = by_tract(&onnx, VIT_SIZE, DIM, &image);
                let cosine = cosine(&got, &expected);
                assert!(1.0 - cosine < tolerance, "{cosine}");
            }
        }
    }
}

#[test]
fn damaged_transformers_are_refused_without_panic() {
    let [_, (whole, _)] = transformers(clip::Activation::Gelu, VitForm::Plain);
    for step in 0..400 {
        let mut bytes = whole.clone();
        let at = step * 7919 % bytes.len();
        bytes[at] ^= 1 << (step % 8);
        let _ = convert(&bytes);
        let _ = convert(&whole[..step * whole.len() / 400]);
    }
}
