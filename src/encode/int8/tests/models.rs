//! Whole models: those of ONNX Runtime's quantiser, and damaged ones.

use std::num::NonZero;
use std::sync::Arc;

use proptest::prelude::*;

use crate::bundle::Bundle;
use crate::encode::Model as _;
use crate::encode::int8::kernels::{self, Kernels};
use crate::encode::int8::run::Runner;
use crate::encode::int8::{Int8Model, graph::GraphError, program};
use crate::frame::{Frame, PixelFormat};
use crate::preprocess::Preprocessor;

pub const SIZE: usize = 16;
/// Name, model, and what ONNX Runtime makes of the image.
pub type Form = (&'static str, &'static [u8], &'static [u8]);

pub const FORMS: [Form; 4] = [
    (
        "qdq-u8",
        include_bytes!("../../../../tests/data/int8/qdq-u8.onnx"),
        include_bytes!("../../../../tests/data/int8/qdq-u8.f32"),
    ),
    (
        "qdq-s8",
        include_bytes!("../../../../tests/data/int8/qdq-s8.onnx"),
        include_bytes!("../../../../tests/data/int8/qdq-s8.f32"),
    ),
    (
        "qoperator-u8",
        include_bytes!("../../../../tests/data/int8/qoperator-u8.onnx"),
        include_bytes!("../../../../tests/data/int8/qoperator-u8.f32"),
    ),
    (
        "qdq-mixed",
        include_bytes!("../../../../tests/data/int8/qdq-mixed.onnx"),
        include_bytes!("../../../../tests/data/int8/qdq-mixed.f32"),
    ),
];

pub const TRANSFORMERS: [Form; 5] = [
    (
        "vit-erf",
        include_bytes!("../../../../tests/data/int8/vit-erf.onnx"),
        include_bytes!("../../../../tests/data/int8/vit-erf.f32"),
    ),
    (
        "vit-quick",
        include_bytes!("../../../../tests/data/int8/vit-quick.onnx"),
        include_bytes!("../../../../tests/data/int8/vit-quick.f32"),
    ),
    (
        "vit-qdq",
        include_bytes!("../../../../tests/data/int8/vit-qdq.onnx"),
        include_bytes!("../../../../tests/data/int8/vit-qdq.f32"),
    ),
    (
        "vit-qdq-linear",
        include_bytes!("../../../../tests/data/int8/vit-qdq-linear.onnx"),
        include_bytes!("../../../../tests/data/int8/vit-qdq-linear.f32"),
    ),
    (
        "vit-qoperator",
        include_bytes!("../../../../tests/data/int8/vit-qoperator.onnx"),
        include_bytes!("../../../../tests/data/int8/vit-qoperator.f32"),
    ),
];

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|&bytes| f32::from_le_bytes(bytes))
        .collect()
}

pub fn image() -> Vec<f32> {
    floats(include_bytes!("../../../../tests/data/int8/image.f32"))
}

fn run(model: &[u8], kernels: &'static dyn Kernels) -> Result<Vec<f32>, GraphError> {
    let program = program(model, SIZE, kernels)?;
    Ok(Runner::new(Arc::new(program)).run(&image()))
}

#[test]
fn models_of_onnx_runtimes_quantiser_give_its_outputs() {
    for (name, model, expected) in FORMS.into_iter().chain(TRANSFORMERS) {
        let expected = floats(expected);
        let span = expected
            .iter()
            .fold(0.0_f32, |span, value| span.max(value.abs()));
        let mut first = None;
        for kernels in kernels::all() {
            let got = run(model, kernels).unwrap();
            assert_eq!(
                first.get_or_insert(got.clone()),
                &got,
                "{name}, {}",
                kernels.name()
            );
            for (got, expected) in got.iter().zip(&expected) {
                // One level of 8 bits is at most this share of the largest value.
                assert!(
                    (got - expected).abs() <= span / 60.0,
                    "{name}, {}: {got} for {expected}",
                    kernels.name()
                );
            }
        }
    }
}

#[test]
fn kernels_threads_and_bytes_in_change_nothing() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models/gauge");
    let bundle = Bundle::open(folder.as_ref()).unwrap();
    let (manifest, golden) = (bundle.manifest(), &bundle.golden().cases[0]);
    let (plan, file) = (&manifest.preprocess, &manifest.encoder[0]);
    let bytes = bundle.read_encoder(file).unwrap();
    let pixels = golden.pixels.clone();
    let frame = Frame::new(golden.width, golden.height, PixelFormat::Rgb, pixels).unwrap();
    let mut preprocessor = Preprocessor::default();
    let pixels = preprocessor.fit(plan, &frame);
    let mut tensor = vec![0.0; plan.pixel_len()];
    plan.normalize(pixels, &mut tensor);
    let mut first = None;
    for kernels in kernels::all() {
        let model = Int8Model {
            file: file.path.clone(),
            program: Arc::new(program(&bytes, plan.size as usize, kernels).unwrap()),
        };
        let expected = model.session().unwrap().encode(&tensor).unwrap();
        assert_eq!(
            first.get_or_insert(expected.clone()),
            &expected,
            "{}",
            kernels.name()
        );
        for threads in 1..=4 {
            let mut session = model.session_on(NonZero::new(threads).unwrap()).unwrap();
            let mut got = Vec::new();
            session.encode_pixels(plan, pixels, &mut got).unwrap();
            assert_eq!(got, expected, "{}, {threads} threads", kernels.name());
        }
    }
}

/// `model` with every occurrence of `from` replaced by as many bytes.
fn replaced(model: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut model = model.to_vec();
    let mut found = false;
    for at in 0..model.len() - from.len() {
        if &model[at..at + from.len()] == from.as_bytes() {
            model[at..at + from.len()].copy_from_slice(to.as_bytes());
            found = true;
        }
    }
    assert!(found, "{from} is not there");
    model
}

#[test]
fn a_refusal_names_the_node_and_the_reason() {
    let [(_, qdq, _), _, (_, qoperator, _), _] = FORMS;
    let error = |model: Vec<u8>| run(&model, kernels::all()[0]).unwrap_err().to_string();
    let unknown = error(replaced(qoperator, "QLinearAdd", "QLinearSub"));
    assert!(
        unknown.contains("(QLinearSub): this engine has no such operator"),
        "{unknown}"
    );
    let dangling = error(replaced(qdq, "Flatten", "Flattes"));
    assert!(dangling.contains("flat (Flattes)"), "{dangling}");
    let wrong_size = program(qdq, 32, kernels::all()[0])
        .err()
        .unwrap()
        .to_string();
    assert!(
        wrong_size.contains("expected [1, 3, 32, 32]"),
        "{wrong_size}"
    );
    assert!(error(b"no model".to_vec()).contains("not an ONNX model"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn damaged_models_are_refused_or_run(
        form in 0_usize..FORMS.len() + TRANSFORMERS.len(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut model = [&FORMS[..], &TRANSFORMERS].concat()[form].1.to_vec();
        for (at, byte) in damage {
            let at = at.index(model.len());
            model[at] = byte;
        }
        if let Some(cut) = cut {
            model.truncate(cut.index(model.len()));
        }
        // Either is fine; a panic or a read out of bounds is not.
        let _ = run(&model, kernels::all()[0]);
    }
}
