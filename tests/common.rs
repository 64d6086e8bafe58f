//! A tiny bundle and pictures, made by the tests for themselves.

use std::collections::BTreeMap;
use std::path::Path;

use image::RgbImage;
use numclip::bins::Bin;
#[cfg(feature = "live")]
use numclip::bins::Bins;
use numclip::bundle::{
    self, BinsSection, BundleError, Contents, EncoderFile, EncoderFormat, Golden, GoldenCase,
    Manifest, ModelSection, Precision, Provenance, Report, SCHEMA, TaskSection,
};
#[cfg(feature = "live")]
use numclip::encode::{Model as _, tract::TractModel};
#[cfg(feature = "live")]
use numclip::estimate::Estimator;
use numclip::estimate::{Calibration, Regressor};
use numclip::metrics::{CumulativeScore, Metrics};
use numclip::preprocess::Plan;
#[cfg(feature = "live")]
use numclip::verify::record;
use prost::Message as _;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto, type_proto,
};

/// Side of the encoder's input.
pub const SIZE: usize = 8;
/// Width of an embedding.
pub const DIM: usize = 4;
const HIDDEN: usize = 5;
const VALUES: [f32; 3] = [1.0, 4.0, 9.0];
const LOGIT_SCALE: f32 = 5.0;
const FLOAT: i32 = 1;

/// Weights of the tiny encoder: 3×3 convolution, ReLU, mean over the picture,
/// 1×1 convolution.
pub struct Weights {
    conv: Vec<f32>,
    bias: Vec<f32>,
    head: Vec<f32>,
}

/// Writes a whole bundle that estimates ripeness from 0 to 10 days.
pub fn write_bundle(directory: &Path) {
    write_version(directory, "0.1.0", &contents());
}

/// The same with another version and other contents.
pub fn write_version(directory: &Path, version: &str, contents: &Contents) {
    let mut manifest = manifest();
    manifest.model.version = version.into();
    bundle::write(directory, manifest, contents, |_| Ok::<(), BundleError>(())).unwrap();
}

/// The manifest of the tiny bundle, without checksums.
pub fn manifest() -> Manifest {
    let bin = [("green", 0, 2), ("ripe", 3, 6), ("overripe", 7, 10)];
    Manifest {
        schema: SCHEMA,
        logit_scale: LOGIT_SCALE,
        model: ModelSection {
            name: "tiny".into(),
            version: "0.1.0".into(),
        },
        task: TaskSection {
            name: "ripeness".into(),
            unit: "days".into(),
            range: [0.0, 10.0],
        },
        preprocess: Plan::clip(SIZE as u32),
        regressor: Regressor::Expectation {
            values: VALUES.to_vec(),
        },
        interval: Some(Calibration {
            coverage: 0.9,
            quantile: 1.0,
            floor: 0.5,
            ..Calibration::default()
        }),
        encoder: vec![EncoderFile {
            path: "encoder.onnx".into(),
            format: EncoderFormat::Onnx,
            precision: Precision::F32,
        }],
        bins: BinsSection {
            dim: DIM,
            bin: bin
                .map(|(label, start, end)| Bin {
                    label: label.into(),
                    start: start as f32,
                    end: end as f32,
                })
                .to_vec(),
        },
        report: vec![report()],
        provenance: Provenance {
            data: "none, made up".into(),
            text_tower: "seeded random, no meaning".into(),
            licence: "MIT".into(),
            ..Provenance::default()
        },
        files: BTreeMap::new(),
    }
}

/// Everything beside the manifest.
pub fn contents() -> Contents {
    let weights = Weights::new();
    let cases = (0..2).map(|seed| golden_case(&weights, seed)).collect();
    Contents {
        encoders: BTreeMap::from([("encoder.onnx".into(), weights.onnx())]),
        embeddings: embeddings(),
        golden: Golden { cases },
    }
}

/// What the general engine makes of a bright picture with the encoder of
/// `contents`: for encoders that the plain loops do not know.
#[cfg(feature = "live")]
pub fn golden_by_tract(contents: &Contents) -> Golden {
    let encoder = &contents.encoders["encoder.onnx"];
    let model = TractModel::from_bytes("encoder.onnx", encoder, SIZE, DIM).unwrap();
    let mut session = model.session().unwrap();
    let manifest = manifest();
    let bins = Bins::new(manifest.bins.bin, embeddings()).unwrap();
    let (scale, range) = (manifest.logit_scale, manifest.task.range);
    let estimator = Estimator::new(bins, manifest.regressor, scale, range, None).unwrap();
    let bright = RgbImage::from_pixel(9, 9, image::Rgb([230; 3])).into();
    let encode = |tensor: &[f32]| session.encode(tensor);
    let case = record(bright, &manifest.preprocess, &estimator, encode).unwrap();
    Golden { cases: vec![case] }
}

/// An encoder whose embedding of a dark picture is no number.
#[cfg(feature = "live")]
pub fn afraid_of_the_dark() -> Vec<u8> {
    let nodes = vec![
        node("GlobalAveragePool", &["image"], "mean", vec![]),
        // Of a negative mean.
        node("Sqrt", &["mean"], "root", vec![]),
        node("Conv", &["root", "head"], "embedding", vec![]),
    ];
    let head = constant("head", &[DIM, 3, 1, 1], &[0.5; DIM * 3]);
    let input = value_info("image", &[1, 3, SIZE, SIZE]);
    let output = value_info("embedding", &[1, DIM, 1, 1]);
    onnx_file(nodes, vec![head], input, vec![output])
}

/// A picture of smooth noise.
pub fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let level = |channel: u32| (x * 37 + y * 59 + (seed + channel) * 83) % 256;
        image::Rgb([level(0) as u8, level(1) as u8, level(2) as u8])
    })
}

fn report() -> Report {
    Report {
        split: "test".into(),
        precision: Precision::F32,
        metrics: Metrics {
            count: 7,
            mae: 1.25,
            rmse: 1.5,
            accuracy_expectation: 0.5,
            accuracy_argmax: 0.75,
            cumulative_score: vec![CumulativeScore { k: 2.0, score: 0.5 }],
            interval_coverage: Some(0.875),
        },
    }
}

fn embeddings() -> Vec<f32> {
    [
        [1.0, 0.0, 0.0, 0.0],
        [0.0, 0.6, 0.8, 0.0],
        [0.0, 0.0, 0.6, -0.8],
    ]
    .concat()
}

/// The expected results by plain loops that share nothing with the library.
pub fn golden_case(weights: &Weights, seed: u32) -> GoldenCase {
    let side = SIZE as u32;
    let picture = picture(side, side, seed);
    let plan = Plan::clip(side);
    let mut tensor = vec![0.0; 3 * SIZE * SIZE];
    for (x, y, pixel) in picture.enumerate_pixels() {
        for channel in 0..3 {
            let level = f32::from(pixel.0[channel]) / 255.0;
            let at = (channel * SIZE + y as usize) * SIZE + x as usize;
            tensor[at] = (level - plan.mean[channel]) / plan.std[channel];
        }
    }
    let embedding = weights.embed(&tensor);
    GoldenCase {
        width: side,
        height: side,
        pixels: picture.into_raw(),
        value: value_of(&embedding),
        tensor,
        embedding,
    }
}

fn value_of(embedding: &[f32]) -> f32 {
    let norm = embedding.iter().map(|x| x * x).sum::<f32>().sqrt();
    let rows = embeddings();
    let cosine = |row: &[f32]| row.iter().zip(embedding).map(|(a, b)| a * b).sum::<f32>() / norm;
    let powers: Vec<f32> = rows
        .chunks(DIM)
        .map(|row| (LOGIT_SCALE * cosine(row)).exp())
        .collect();
    let total: f32 = powers.iter().sum();
    powers
        .iter()
        .zip(VALUES)
        .map(|(power, value)| power / total * value)
        .sum()
}

impl Weights {
    fn new() -> Self {
        Self::drawn(7)
    }

    /// Other weights.
    pub fn other() -> Self {
        Self::drawn(11)
    }

    fn drawn(seed: u32) -> Self {
        let mut state = seed;
        let mut draw = |count: usize| -> Vec<f32> {
            (0..count)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 8) as f32 / (1 << 23) as f32 - 1.0
                })
                .collect()
        };
        Self {
            conv: draw(HIDDEN * 3 * 9),
            bias: draw(HIDDEN),
            head: draw(DIM * HIDDEN),
        }
    }

    fn embed(&self, tensor: &[f32]) -> Vec<f32> {
        let means: Vec<f32> = (0..HIDDEN)
            .map(|channel| self.mean(tensor, channel))
            .collect();
        let rows = self.head.chunks(HIDDEN);
        rows.map(|row| row.iter().zip(&means).map(|(a, b)| a * b).sum())
            .collect()
    }

    /// Mean over the picture of one channel behind convolution and ReLU.
    fn mean(&self, tensor: &[f32], channel: usize) -> f32 {
        let mut sum = 0.0;
        for (y, x) in (0..SIZE).flat_map(|y| (0..SIZE).map(move |x| (y, x))) {
            let mut value = self.bias[channel];
            for tap in 0..27 {
                let (source, row, column) = (tap / 9, y + tap / 3 % 3, x + tap % 3);
                if (1..=SIZE).contains(&row) && (1..=SIZE).contains(&column) {
                    let at = (source * SIZE + row - 1) * SIZE + column - 1;
                    value += self.conv[channel * 27 + tap] * tensor[at];
                }
            }
            sum += value.max(0.0);
        }
        sum / (SIZE * SIZE) as f32
    }

    /// The encoder as a file.
    pub fn onnx(&self) -> Vec<u8> {
        let pads = integers("pads", &[1; 4]);
        let nodes = vec![
            node("Conv", &["image", "conv", "bias"], "a", vec![pads]),
            node("Relu", &["a"], "b", vec![]),
            node("GlobalAveragePool", &["b"], "c", vec![]),
            node("Conv", &["c", "head"], "embedding", vec![]),
        ];
        let constants = vec![
            constant("conv", &[HIDDEN, 3, 3, 3], &self.conv),
            constant("bias", &[HIDDEN], &self.bias),
            constant("head", &[DIM, HIDDEN, 1, 1], &self.head),
        ];
        let input = value_info("image", &[1, 3, SIZE, SIZE]);
        let output = value_info("embedding", &[1, DIM, 1, 1]);
        onnx_file(nodes, constants, input, vec![output])
    }
}

/// A graph as an ONNX file.
pub fn onnx_file(
    node: Vec<NodeProto>,
    initializer: Vec<TensorProto>,
    input: ValueInfoProto,
    output: Vec<ValueInfoProto>,
) -> Vec<u8> {
    let graph = GraphProto {
        name: "tiny".into(),
        node,
        initializer,
        input: vec![input],
        output,
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto {
        version: 13,
        ..OperatorSetIdProto::default()
    };
    let model = ModelProto {
        ir_version: 8,
        opset_import: vec![opset],
        graph: Some(graph),
        ..ModelProto::default()
    };
    model.encode_to_vec()
}

/// An attribute of whole numbers.
pub fn integers(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: 7,
        ints: ints.to_vec(),
        ..AttributeProto::default()
    }
}

/// A node that is named as its output.
pub fn node(
    kind: &str,
    inputs: &[&str],
    output: &str,
    attribute: Vec<AttributeProto>,
) -> NodeProto {
    NodeProto {
        op_type: kind.into(),
        name: output.into(),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: vec![output.into()],
        attribute,
        ..NodeProto::default()
    }
}

/// A constant of floats.
pub fn constant(name: &str, shape: &[usize], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: shape.iter().map(|&side| side as i64).collect(),
        data_type: FLOAT,
        raw_data: values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        ..TensorProto::default()
    }
}

/// An input or output of floats.
pub fn value_info(name: &str, shape: &[usize]) -> ValueInfoProto {
    let dim = |&side: &usize| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(side as i64)),
        ..Default::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: FLOAT,
        shape: Some(TensorShapeProto {
            dim: shape.iter().map(dim).collect(),
        }),
    };
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

/// Exit code, the JSON lines on standard output, and standard error.
#[cfg(feature = "live")]
pub fn outcome(output: std::process::Output) -> (i32, Vec<serde_json::Value>, String) {
    let lines = String::from_utf8(output.stdout).unwrap();
    let records = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let stderr = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), records.collect(), stderr)
}
