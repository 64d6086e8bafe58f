//! Vision transformers.

use numclip::verify::cosine;

use super::super::convert;
use super::super::model::Kind;
use super::read::read;
use super::{DIM, by_tract, conv, convert_damaged, noise, run};
use crate::clip::{self, VitForm};
use crate::graph::{Activation, ConvNet, Op, Value};
use crate::quantize::affine::Affine;
use crate::quantize::range::RangeMethod;
use crate::quantize::tests::transformer;
use crate::quantize::{towers, vit};

/// A transformer of the project in floats and with its products in int8, and how far apart the
/// written file and its source may be.
fn transformers(activation: clip::Activation, form: VitForm) -> [(Vec<u8>, f32); 2] {
    let net = transformer([VIT_SIZE; 2], DIM, activation, form);
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
            let expected = match activation {
                clip::Activation::Gelu => 2,
                clip::Activation::QuickGelu => 0,
            };
            assert_eq!(gelus, expected);
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
    convert_damaged(&whole);
}
