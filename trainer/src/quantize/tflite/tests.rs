//! The written file, read back by hand and run by definition, against the
//! ONNX file that it was made of, run by tract.

mod read;
mod run;
mod transformers;

use std::path::Path;

use numclip::bundle::{Bundle, EncoderFormat};
use numclip::encode::Model as _;
use numclip::encode::tract::TractModel;
use numclip::preprocess::Plan;
use numclip::verify::cosine;
use prost::Message as _;
use tract_onnx::pb::ModelProto;

use super::graph::Graph;
use super::model::{Element, Kind, Padding};
use super::{ENCODER, TfliteError, add, convert, convert_file};
use crate::graph::{Activation, Conv, ConvNet, Op, Value};
use crate::quantize::affine::Affine;
use crate::quantize::calibrate::observe;
use crate::quantize::quantized::Quantized;
use crate::quantize::range::RangeMethod;
use crate::quantize::recipe::outputs;
use crate::quantize::{int8, onnx};
use read::{File, read};

const SIZE: usize = 14;
const DIM: usize = 16;

/// Numbers between −1 and 1 that look random.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let value = |i: u32| {
        let mixed = i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(2_246_822_519);
        (mixed.wrapping_mul(3_266_489_917) >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (1..=count as u32).map(value).collect()
}

fn conv(
    seed: u32,
    shape: [usize; 4],
    stride: [usize; 2],
    padding: [usize; 4],
    groups: usize,
    activation: Activation,
) -> Op {
    let fan = shape[1..].iter().product::<usize>() as f32;
    let weights = noise(shape.iter().product(), seed);
    Op::Conv(Conv {
        weight: weights.iter().map(|w| w * (3.0 / fan).sqrt()).collect(),
        shape,
        bias: noise(shape[0], seed + 1).iter().map(|b| b * 0.2).collect(),
        stride,
        padding,
        groups,
        activation,
    })
}

/// Every kind of node and of padding.
fn network() -> ConvNet {
    use Activation::{None, Relu, Relu6};
    let mut net = ConvNet {
        input: [3, SIZE, SIZE],
        nodes: Vec::new(),
    };
    // 14 → 7, zeros on both sides of an even picture: stands where no padding of
    // TensorFlow Lite does.
    let stem = conv(1, [8, 3, 3, 3], [2, 2], [1; 4], 1, Relu6);
    let stem = net.push("stem", stem, vec![Value::Image]);
    let depthwise = conv(3, [8, 1, 3, 3], [1, 1], [1; 4], 8, Relu);
    let depthwise = net.push("dw", depthwise, vec![stem]);
    let linear = conv(5, [8, 8, 1, 1], [1, 1], [0; 4], 1, None);
    let linear = net.push("pw", linear, vec![depthwise]);
    let sum = net.push("sum", Op::Add, vec![stem, linear]);
    let wide = conv(7, [16, 1, 5, 3], [2, 1], [2, 1, 2, 1], 8, Relu);
    let wide = net.push("wide", wide, vec![sum]);
    let grouped = conv(9, [12, 8, 2, 3], [2, 3], [0, 0, 1, 1], 2, Relu);
    let grouped = net.push("grouped", grouped, vec![wide]);
    let pool = net.push("pool", Op::GlobalAveragePool, vec![grouped]);
    let head = conv(11, [DIM, 12, 1, 1], [1, 1], [0; 4], 1, None);
    net.push("head", head, vec![pool]);
    net
}

fn images() -> Vec<Vec<f32>> {
    (0..6)
        .map(|seed| noise(3 * SIZE * SIZE, 100 + seed))
        .collect()
}

fn quantized(net: &ConvNet) -> Vec<u8> {
    int8::int8(&nearest(net))
}

fn nearest(net: &ConvNet) -> Quantized {
    let plan = Plan {
        mean: [0.5; 3],
        std: [0.5; 3],
        ..Plan::clip(SIZE as u32)
    };
    let observed = observe(net, &images()).unwrap();
    let outputs = outputs(net, &observed, RangeMethod::MinMax);
    Quantized::nearest(net.clone(), Affine::of_input(&plan), outputs)
}

/// Flips bits of a file, and breaks it off.
fn convert_damaged(whole: &[u8]) {
    for step in 0..400 {
        let mut bytes = whole.to_vec();
        let at = step * 7919 % bytes.len();
        bytes[at] ^= 1 << (step % 8);
        let _ = convert(&bytes);
        let _ = convert(&whole[..step * whole.len() / 400]);
    }
}

fn by_tract(onnx: &[u8], size: usize, dim: usize, image: &[f32]) -> Vec<f32> {
    let model = TractModel::from_bytes("test", onnx, size, dim).unwrap();
    model.session().unwrap().encode(image).unwrap()
}

/// The largest distance, in units of `unit`.
fn apart(a: &[f32], b: &[f32], unit: f32) -> f32 {
    assert_eq!(a.len(), b.len());
    let distances = a.iter().zip(b).map(|(a, b)| (a - b).abs() / unit);
    distances.fold(0.0, f32::max)
}

/// What the file rounds its output to.
fn level(file: &File) -> f32 {
    let last = file.operators.last().unwrap();
    assert_eq!(last.kind, Kind::Dequantize);
    file.tensors[last.inputs[0]]
        .quantization
        .as_ref()
        .unwrap()
        .scales[0]
}

#[test]
fn the_integers_give_what_the_onnx_file_does() {
    let onnx = quantized(&network());
    let file = read(&convert(&onnx).unwrap());
    for image in images() {
        let (got, expected) = (run::run(&file, &image), by_tract(&onnx, SIZE, DIM, &image));
        // Sums that end in the middle between two levels may round either way.
        let levels = apart(&got, &expected, level(&file));
        assert!(levels <= 1.01, "{levels} levels apart");
        assert!(cosine(&got, &expected) > 0.9999);
    }
}

#[test]
fn floats_give_what_the_onnx_file_does() {
    let onnx = onnx::float(&network());
    let file = read(&convert(&onnx).unwrap());
    for image in images() {
        let (got, expected) = (run::run(&file, &image), by_tract(&onnx, SIZE, DIM, &image));
        assert!(apart(&got, &expected, 1.0) < 1e-5);
    }
}

#[test]
fn layers_in_floats_give_what_the_onnx_file_does() {
    let whole = nearest(&network());
    for floats in [&[0][..], &[1, 2], &[4], &[5], &[7], &[0, 1, 2, 4, 5, 7]] {
        let mut mixed = whole.clone();
        floats.iter().for_each(|&node| mixed.leave_float(node));
        let onnx = int8::int8(&mixed);
        let file = read(&convert(&onnx).unwrap());
        for image in images() {
            let (got, expected) = (run::run(&file, &image), by_tract(&onnx, SIZE, DIM, &image));
            let levels = apart(&got, &expected, whole.outputs.last().unwrap().scale);
            assert!(levels <= 1.01, "{floats:?}: {levels} levels apart");
        }
    }
}

#[test]
fn zeros_stand_where_the_onnx_file_puts_them() {
    let file = read(&convert(&quantized(&network())).unwrap());
    let kinds: Vec<Kind> = file
        .operators
        .iter()
        .map(|operator| operator.kind)
        .collect();
    let pads = kinds.iter().filter(|kind| **kind == Kind::Pad).count();
    assert_eq!(pads, 1, "{kinds:?}");
    let paddings: Vec<Padding> = kinds
        .iter()
        .filter_map(|kind| match kind {
            Kind::Conv(step) | Kind::DepthwiseConv { step, .. } => Some(step.padding),
            _ => None,
        })
        .collect();
    use Padding::{Same, Valid};
    assert_eq!(paddings, [Valid, Same, Valid, Same, Valid, Valid]);
}

#[test]
fn input_and_output_are_floats_and_have_their_names() {
    let file = read(&convert(&quantized(&network())).unwrap());
    let (input, output) = (&file.tensors[file.input], &file.tensors[file.output]);
    assert_eq!(
        (input.element, &*input.shape),
        (Element::F32, &[1, SIZE, SIZE, 3][..])
    );
    assert_eq!(
        (output.element, &*output.shape),
        (Element::F32, &[1, DIM][..])
    );
    let expected = [(onnx::INPUT, file.input), (onnx::OUTPUT, file.output)];
    let bindings = file
        .bindings
        .iter()
        .map(|(name, tensor)| (name.as_str(), *tensor));
    assert!(bindings.eq(expected));
}

/// Holds scales, zero points, weights and biases of a file against its ONNX
/// source, but for channels of which no product reaches a level.
fn check_parameters(onnx: &[u8], file: &File) {
    let decoded = Graph::read(onnx).unwrap();
    let graph = decoded.view().unwrap();
    let mut convolutions = file
        .operators
        .iter()
        .filter(|o| matches!(o.kind, Kind::Conv(_) | Kind::DepthwiseConv { .. }));
    for node in graph
        .nodes
        .iter()
        .filter(|node| node.op_type == "QLinearConv")
    {
        let operator = convolutions.next().unwrap();
        assert_eq!(operator.version, 3);
        let [input, weight, bias] = operator.inputs[..] else {
            panic!("{}: three inputs", node.name);
        };
        let of = |tensor: usize| file.tensors[tensor].quantization.as_ref().unwrap();
        for (tensor, first) in [(input, 1), (operator.output, 6)] {
            let zero = graph.bytes(&node.input[first + 1]).unwrap().values[0];
            assert_eq!(of(tensor).scales, graph.floats(&node.input[first]).unwrap());
            assert_eq!(of(tensor).zero_point, i64::from(zero) - 128);
        }
        let (from, to) = (of(input).scales[0], of(operator.output).scales[0]);
        let scales = graph.floats(&node.input[4]).unwrap();
        let lives: Vec<bool> = scales
            .iter()
            .map(|s| from * s / to > 2.0_f32.powi(-31))
            .collect();
        assert_eq!((of(weight).zero_point, of(bias).zero_point), (0, 0));
        let biases = file.tensors[bias].data.as_chunks().0.iter();
        let biases: Vec<i32> = biases.map(|&word| i32::from_le_bytes(word)).collect();
        let expected = graph.ints(&node.input[8]).unwrap();
        for output in (0..scales.len()).filter(|&output| lives[output]) {
            assert_eq!(of(weight).scales[output], scales[output]);
            assert_eq!(of(bias).scales[output], scales[output] * from);
            assert_eq!(biases[output], expected[output]);
        }
        let [outputs, inputs, height, width] = graph.weight_shape(&node.input[3]).unwrap();
        let levels = graph.bytes(&node.input[3]).unwrap().values;
        let depthwise = matches!(operator.kind, Kind::DepthwiseConv { .. });
        assert_eq!(of(weight).axis, if depthwise { 3 } else { 0 });
        for (at, level) in levels.iter().enumerate() {
            let (x, y) = (at % width, at / width % height);
            let (i, o) = (at / width / height % inputs, at / width / height / inputs);
            let place = match depthwise {
                true => (y * width + x) * outputs + o,
                false => ((o * height + y) * width + x) * inputs + i,
            };
            let written = file.tensors[weight].data[place].cast_signed();
            let level = if lives[o] { *level } else { 0 };
            assert_eq!(i32::from(written), level, "{} at {at}", node.name);
        }
    }
    assert!(convolutions.next().is_none());
}

#[test]
fn the_file_that_the_runtime_is_tested_with_is_what_is_written() {
    let onnx = include_bytes!("../../../../tests/data/int8/chain.onnx");
    let tflite = include_bytes!("../../../../tests/data/int8/chain.tflite");
    assert!(convert(onnx).unwrap() == tflite);
}

#[test]
fn every_parameter_is_that_of_the_onnx_file() {
    let onnx = quantized(&network());
    check_parameters(&onnx, &read(&convert(&onnx).unwrap()));
}

#[test]
fn a_shipped_model_gives_its_golden_embedding() {
    let bundle = Bundle::open(Path::new("../models/gauge")).unwrap();
    let mut encoders = bundle.manifest().encoder.iter();
    let encoder = encoders.find(|encoder| encoder.format == EncoderFormat::Onnx);
    let onnx = bundle.read_encoder(encoder.unwrap()).unwrap();
    let file = read(&convert(&onnx).unwrap());
    check_parameters(&onnx, &file);
    let case = &bundle.golden().cases[0];
    let got = run::run(&file, &case.tensor);
    let cosine = cosine(&got, &case.embedding);
    assert!(cosine > 0.999, "{cosine}");
}

#[test]
fn a_channel_without_weight_keeps_its_bias() {
    let mut net = network();
    let Op::Conv(conv) = &mut net.nodes[2].op else {
        panic!("pw is a convolution");
    };
    // Smaller than any level of the output.
    conv.weight[..8].fill(1e-12);
    conv.bias[0] = 0.4;
    let onnx = quantized(&net);
    let file = read(&convert(&onnx).unwrap());
    let image = &images()[0];
    let (got, expected) = (run::run(&file, image), by_tract(&onnx, SIZE, DIM, image));
    assert!(apart(&got, &expected, level(&file)) <= 1.01);
    let operator = file
        .operators
        .iter()
        .filter(|o| matches!(o.kind, Kind::Conv(_)))
        .nth(1);
    let operator = operator.unwrap();
    let scale = |tensor: usize| &file.tensors[tensor].quantization.as_ref().unwrap().scales;
    let ratio =
        scale(operator.inputs[0])[0] * scale(operator.inputs[1])[0] / scale(operator.output)[0];
    assert!(ratio > 2.0_f32.powi(-32), "{ratio}");
}

#[test]
fn what_has_no_such_form_is_named() {
    let mut model = ModelProto::decode(&*quantized(&network())).unwrap();
    let node = &mut model.graph.as_mut().unwrap().node[2];
    node.op_type = "Tanh".into();
    let name = node.name.clone();
    match convert(&model.encode_to_vec()) {
        Err(TfliteError::Node { node, op, .. }) => assert_eq!((node, &*op), (name, "Tanh")),
        other => panic!("{:?}", other.map(|bytes| bytes.len())),
    }
    let mut net = network();
    net.nodes.truncate(2);
    net.push("again", Op::Add, vec![Value::Node(0), Value::Image]);
    match convert(&onnx::float(&net)) {
        Err(TfliteError::Node { node, message, .. }) => {
            assert_eq!(node, "again");
            assert!(message.contains("pictures of one shape"), "{message}");
        }
        other => panic!("{:?}", other.map(|bytes| bytes.len())),
    }
    assert!(matches!(convert(b"no network"), Err(TfliteError::Onnx(_))));
}

#[test]
fn damaged_networks_are_refused_without_panic() {
    let whole = quantized(&network());
    convert_damaged(&whole);
}

#[test]
fn a_bundle_gets_the_file_and_keeps_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("gauge");
    std::fs::create_dir(&model).unwrap();
    let shipped = Bundle::open(Path::new("../models/gauge")).unwrap();
    for name in shipped
        .manifest()
        .files
        .keys()
        .map(String::as_str)
        .chain(["bundle.toml"])
    {
        std::fs::copy(shipped.directory().join(name), model.join(name)).unwrap();
    }
    std::fs::write(model.join("notes.txt"), "kept").unwrap();
    let added = add(&model).unwrap();
    let bundle = Bundle::open(&model).unwrap();
    assert_eq!(bundle.sha256(), added.sha256);
    assert_eq!(bundle.golden(), shipped.golden());
    for (name, digest) in &shipped.manifest().files {
        assert_eq!(&bundle.manifest().files[name], digest, "{name}");
    }
    let [onnx, tflite] = &bundle.manifest().encoder[..] else {
        panic!("two encoders");
    };
    assert_eq!((onnx.format, &*tflite.path), (EncoderFormat::Onnx, ENCODER));
    assert_eq!(bundle.read_encoder(tflite).unwrap().len(), added.bytes);
    assert!(model.join("notes.txt").exists());
    // Once more gives the same bundle.
    assert_eq!(add(&model).unwrap().sha256, added.sha256);
}

#[test]
fn a_file_that_cannot_be_converted_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let [onnx, out] = ["encoder.onnx", "encoder.tflite"].map(|name| folder.path().join(name));
    let message = || convert_file(&onnx, &out).unwrap_err().to_string();
    assert!(message().contains("encoder.onnx"), "{}", message());
    std::fs::write(&onnx, "no network").unwrap();
    assert!(
        message().contains("encoder.onnx: not an ONNX network"),
        "{}",
        message()
    );
    assert!(!out.exists());
    std::fs::write(&onnx, quantized(&network())).unwrap();
    let bytes = convert_file(&onnx, &out).unwrap();
    assert_eq!(std::fs::read(&out).unwrap().len(), bytes);
}
