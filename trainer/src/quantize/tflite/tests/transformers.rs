//! Vision transformers.

use numclip::verify::cosine;
use prost::Message as _;
use tract_onnx::pb::{ModelProto, NodeProto};

use super::super::model::Kind;
use super::super::{TfliteError, convert};
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
fn names_of_nodes_do_not_matter() {
    let [_, (onnx, _)] = transformers(clip::Activation::Gelu, VitForm::Plain);
    let mut model = ModelProto::decode(&*onnx).unwrap();
    let nodes = &mut model.graph.as_mut().unwrap().node;
    nodes.iter_mut().for_each(|node| node.name.clear());
    let [named, nameless] = [onnx, model.encode_to_vec()].map(|onnx| convert(&onnx).unwrap());
    let [named, nameless] = [named, nameless].map(|file| run::run(&read(&file), &vit_images()[0]));
    assert_eq!(named, nameless);
}

#[test]
fn weights_with_a_zero_point_are_refused() {
    for op in ["MatMulInteger", "ConvInteger"] {
        let [_, (onnx, _)] = transformers(clip::Activation::Gelu, VitForm::Plain);
        let mut model = ModelProto::decode(&*onnx).unwrap();
        let nodes = &mut model.graph.as_mut().unwrap().node;
        let product = nodes.iter_mut().find(|node| node.op_type == op).unwrap();
        product.input.push(product.input[2].clone());
        let error = convert(&model.encode_to_vec()).unwrap_err().to_string();
        assert!(error.contains("without a zero point"), "{op}: {error}");
    }
}

#[test]
fn what_reads_from_within_a_gelu_is_refused() {
    let [(onnx, _), _] = transformers(clip::Activation::Gelu, VitForm::Plain);
    let mut model = ModelProto::decode(&*onnx).unwrap();
    let nodes = &mut model.graph.as_mut().unwrap().node;
    let place = nodes.iter().position(|node| node.op_type == "Erf").unwrap();
    let stray = NodeProto {
        name: "stray".into(),
        op_type: "Relu".into(),
        input: nodes[place].input.clone(),
        output: vec!["stray".into()],
        ..NodeProto::default()
    };
    nodes.insert(place + 1, stray);
    match convert(&model.encode_to_vec()) {
        Err(TfliteError::Node { node, message, .. }) => {
            assert_eq!(node, "stray");
            assert!(message.contains("expected floats"), "{message}");
        }
        other => panic!("{:?}", other.map(|bytes| bytes.len())),
    }
}

#[test]
fn damaged_transformers_are_refused_without_panic() {
    let [_, (whole, _)] = transformers(clip::Activation::Gelu, VitForm::Plain);
    convert_damaged(&whole);
}
