//! Every engine of this build by the same table: one bundle with the same
//! small network in each engine's format, held against ONNX Runtime.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::Path;

use numclip::bundle::{
    self, Bundle, BundleError, Contents, EncoderFile, EncoderFormat, Golden, GoldenCase, Precision,
};
use numclip::encode::{self, Engine, Model};
use numclip::frame::{Frame, PixelFormat};
use numclip::pipeline::Pipeline;
use numclip::preprocess::Plan;
use numclip::verify::replay;

use crate::common;

const SIZE: u32 = 16;
const DIM: usize = 8;
const ONNX: &[u8] = include_bytes!("data/int8/chain.onnx");
const TFLITE: &[u8] = include_bytes!("data/int8/chain.tflite");
/// What ONNX Runtime makes of the picture; see `peers/fixtures.py`.
const EXPECTED: &[u8] = include_bytes!("data/int8/chain.f32");

/// The bundle with these encoders, for embeddings of this width.
fn write(directory: &Path, onnx: &[u8], tflite: &[u8], dim: usize) -> Bundle {
    let mut manifest = common::manifest();
    manifest.preprocess = Plan::clip(SIZE);
    manifest.bins.dim = dim;
    let encoders = [
        ("encoder.onnx", EncoderFormat::Onnx, onnx),
        ("encoder.tflite", EncoderFormat::Tflite, tflite),
    ];
    manifest.encoder = encoders
        .map(|(path, format, _)| EncoderFile {
            path: path.into(),
            format,
            precision: Precision::Int8,
        })
        .to_vec();
    let mut embeddings = vec![0.0; manifest.bins.bin.len() * dim];
    (0..manifest.bins.bin.len()).for_each(|bin| embeddings[bin * dim + bin] = 1.0);
    let contents = Contents {
        encoders: encoders
            .map(|(path, _, bytes)| (path.into(), bytes.to_vec()))
            .into_iter()
            .collect::<BTreeMap<_, _>>(),
        embeddings,
        golden: Golden {
            cases: vec![golden(dim)],
        },
    };
    bundle::write(
        directory,
        manifest,
        &contents,
        |_| Ok::<(), BundleError>(()),
    )
    .unwrap();
    Bundle::open(directory).unwrap()
}

fn golden(dim: usize) -> GoldenCase {
    let pixels = common::picture(SIZE, SIZE, 0).into_raw();
    let frame = Frame::new(SIZE, SIZE, PixelFormat::Rgb, pixels.clone()).unwrap();
    let mut embedding: Vec<f32> = EXPECTED
        .as_chunks()
        .0
        .iter()
        .map(|&bytes| f32::from_le_bytes(bytes))
        .collect();
    embedding.resize(dim, 0.0);
    GoldenCase {
        width: SIZE,
        height: SIZE,
        pixels,
        tensor: Plan::clip(SIZE).tensor(&frame),
        embedding,
        value: 0.0,
    }
}

fn load(bundle: &Bundle, engine: Engine) -> Box<dyn Model> {
    encode::load(bundle, Some(engine)).unwrap().model
}

#[test]
fn engines_compute_what_onnx_runtime_does() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("model"), ONNX, TFLITE, DIM);
    for &engine in Engine::ALL {
        let bundle = Bundle::open(&folder.path().join("model")).unwrap();
        let replays = replay(&Pipeline::new(bundle, Some(engine)).unwrap()).unwrap();
        println!("{engine}: cosine {}", replays[0].cosine);
        assert!(replays[0].cosine > 0.999, "{engine}: {}", replays[0].cosine);
    }
}

#[test]
fn threads_and_bytes_in_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = write(&folder.path().join("model"), ONNX, TFLITE, DIM);
    let (plan, case) = (&bundle.manifest().preprocess, &bundle.golden().cases[0]);
    for &engine in Engine::ALL {
        let model = load(&bundle, engine);
        let expected = model.session().unwrap().encode(&case.tensor).unwrap();
        let sessions: Vec<_> = (1..=3)
            .map(|threads| model.session_on(NonZero::new(threads).unwrap()).unwrap())
            .collect();
        // A session holds what it needs of its model.
        drop(model);
        std::thread::scope(|scope| {
            for mut session in sessions {
                let expected = &expected;
                scope.spawn(move || {
                    let mut of_bytes = Vec::new();
                    for _ in 0..20 {
                        assert_eq!(&session.encode(&case.tensor).unwrap(), expected, "{engine}");
                        let pixels = &case.pixels;
                        session.encode_pixels(plan, pixels, &mut of_bytes).unwrap();
                        assert_eq!(&of_bytes, expected, "{engine}");
                    }
                });
            }
        });
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = write(&folder.path().join("model"), ONNX, TFLITE, DIM);
    let wider = write(&folder.path().join("wider"), ONNX, TFLITE, DIM + 1);
    for &engine in Engine::ALL {
        let mut session = load(&bundle, engine).session().unwrap();
        let short = session.encode(&[0.0; 3]).unwrap_err().to_string();
        assert!(short.contains("got 3 values"), "{engine}: {short}");
        let wide = encode::load(&wider, Some(engine))
            .err()
            .unwrap()
            .to_string();
        assert!(
            wide.contains("output of the network: expected"),
            "{engine}: {wide}"
        );
    }
}

#[test]
fn damaged_encoders_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let broken: [(&str, &[u8], &[u8]); 3] = [
        ("empty", &[], &[]),
        ("cut", &ONNX[..ONNX.len() / 2], &TFLITE[..TFLITE.len() / 2]),
        ("swapped", TFLITE, ONNX),
    ];
    for (name, onnx, tflite) in broken {
        let bundle = write(&folder.path().join(name), onnx, tflite, DIM);
        for &engine in Engine::ALL {
            let error = encode::load(&bundle, Some(engine)).err();
            let error = error.unwrap_or_else(|| panic!("{engine} loads what is {name}"));
            assert!(error.to_string().contains("encoder."), "{engine}: {error}");
        }
    }
}
