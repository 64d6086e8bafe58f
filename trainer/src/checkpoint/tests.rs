use super::samples::{self, Sample, Samples, WRITERS};
use super::*;
use proptest::prelude::*;

fn samples() -> Samples {
    let wave = |phase: f32| (0..).map(move |i| (i as f32 + phase).sin());
    let sample = |name: &str, dtype, shape: &[usize], phase| {
        (name.to_owned(), Sample::new(dtype, shape, wave(phase)))
    };
    Samples::from([
        sample("visual.conv1.weight", Dtype::F32, &[4, 3, 2, 2], 0.0),
        sample("visual.ln.bias", Dtype::F16, &[5], 1.0),
        sample("logit_scale", Dtype::F32, &[], 2.0),
        sample("text.proj", Dtype::BF16, &[2, 3], 3.0),
        sample("text.mean", Dtype::F64, &[2], 4.0),
        sample("text.empty", Dtype::F32, &[0, 3], 5.0),
        sample("text.count", Dtype::I64, &[1], 6.0),
    ])
}

fn open(bytes: &[u8]) -> std::result::Result<Checkpoint, CheckpointError> {
    let folder = tempfile::tempdir().unwrap();
    Checkpoint::open(&samples::write(folder.path(), "clip.pt", bytes))
}

#[test]
fn every_kind_of_file_gives_the_same_tensors() {
    let samples = samples();
    for (kind, write) in WRITERS {
        let file = open(&write(&samples)).unwrap();
        assert_eq!(file.container().to_string(), kind);
        let names: Vec<_> = file.tensors().keys().collect();
        assert_eq!(names, samples.keys().collect::<Vec<_>>(), "{kind}");
        for (name, sample) in &samples {
            let tensor = &file.tensors()[name];
            assert_eq!(
                (tensor.dtype, &tensor.shape),
                (sample.dtype, &sample.shape),
                "{kind} {name}"
            );
            if sample.dtype == Dtype::I64 {
                let error = file.values(name).unwrap_err().to_string();
                assert!(error.contains("text.count is I64, expected f16"), "{error}");
                continue;
            }
            let tolerance = match sample.dtype {
                Dtype::BF16 => 1.0 / 256.0,
                Dtype::F16 => 1.0 / 2048.0,
                _ => 0.0,
            };
            let values = file.values(name).unwrap();
            assert_eq!(values.len(), sample.values.len());
            for (got, expected) in values.iter().zip(&sample.values) {
                assert!(
                    (got - expected).abs() <= tolerance * expected.abs(),
                    "{kind} {name}"
                );
            }
        }
    }
}

#[test]
fn views_of_a_storage_are_gathered() {
    let stored = Sample::new(Dtype::F32, &[2, 3], (0..).map(|i| i as f32));
    let transposed = Sample {
        shape: vec![3, 2],
        ..stored.clone()
    };
    let last = Sample {
        shape: vec![2],
        ..stored.clone()
    };
    let root = samples::dict(vec![
        (
            "transposed".into(),
            samples::tensor(0, &transposed, &[1, 3], 0),
        ),
        ("last".into(), samples::tensor(0, &last, &[3], 2)),
    ]);
    let storages = Samples::from([("stored".into(), stored)]);
    let bytes = samples::zip(
        &storages,
        "archive",
        &[("data.pkl", samples::pickle(&root))],
    );
    let file = open(&bytes).unwrap();
    assert_eq!(file.values("transposed").unwrap(), [0., 3., 1., 4., 2., 5.]);
    assert_eq!(file.values("last").unwrap(), [2., 5.]);
}

/// Opens a file with one tensor of the given view of six values.
fn view(shape: &[usize], strides: &[usize], offset: usize) -> Result<Vec<f32>> {
    let stored = Sample::new(Dtype::F32, &[6], [0.0; 6]);
    let viewed = Sample {
        shape: shape.to_vec(),
        ..stored.clone()
    };
    let root = samples::dict(vec![(
        "w".into(),
        samples::tensor(0, &viewed, strides, offset),
    )]);
    let storages = Samples::from([("w".into(), stored)]);
    let bytes = samples::zip(&storages, "a", &[("data.pkl", samples::pickle(&root))]);
    open(&bytes).map_err(|error| error.kind)?.values("w")
}

#[test]
fn views_beyond_their_storage_are_refused() {
    assert!(view(&[2, 3], &[3, 1], 0).is_ok());
    assert!(view(&[0], &[1], 2_000_000_000).is_ok_and(|values| values.is_empty()));
    for (shape, strides, offset) in [
        (&[2, 3][..], &[3, 1][..], 1),
        (&[7], &[1], 0),
        (&[2], &[6], 0),
        (&[1_000_000], &[0], 0),
        (&[i32::MAX as usize; 4], &[1; 4], 0),
        (&[2, 3], &[3], 0),
    ] {
        let error = view(shape, strides, offset).unwrap_err().to_string();
        assert!(error.contains("w reaches past its values"), "{error}");
    }
}

#[test]
fn foreign_and_damaged_files_are_named() {
    let check = |bytes: &[u8], expected: &str| {
        let error = open(bytes).unwrap_err().to_string();
        assert!(
            error.contains("clip.pt: ") && error.contains(expected),
            "{error}"
        );
    };
    check(
        b"",
        "not a weight file; expected safetensors or a PyTorch file",
    );
    check(b"\x89PNG\r\n\x1a\n    ", "not a weight file");
    check(&[0xff; 64], "not a weight file");
    check(
        b"\x08\0\0\0\0\0\0\0{}      junk",
        "not a readable safetensors file: 4 bytes of values",
    );
    check(b"\0\0\0\0\x01\0\0\0{}", "a header of 4294967296 bytes");
    check(b"\x80\x02}.not the magic number", "not a weight file");
    let archive = |files: &[(&str, Vec<u8>)]| samples::zip(&Samples::new(), "a", files);
    check(
        &archive(&[("model.json", vec![])]),
        "no data.pkl in the archive",
    );
    check(
        &archive(&[("data.pkl", b"\x80\x02".to_vec())]),
        "pickle, byte 2: the file ends here",
    );
    let big = [
        ("byteorder", b"big".to_vec()),
        ("data.pkl", samples::pickle(b"}")),
    ];
    check(&archive(&big), "highest byte first");
    let sample = Sample::new(Dtype::F32, &[1], [1.0]);
    let root = samples::dict(vec![("w".into(), samples::tensor(0, &sample, &[1], 0))]);
    check(
        &archive(&[("data.pkl", samples::pickle(&root))]),
        "the values of w are not there",
    );
    let deep = (0..99).fold(samples::dict(Vec::new()), |inner, _| {
        samples::dict(vec![("a".into(), inner)])
    });
    check(
        &archive(&[("data.pkl", samples::pickle(&deep))]),
        "nested deeper",
    );
    let absent = Checkpoint::open(Path::new("absent.pt"))
        .unwrap_err()
        .to_string();
    assert!(absent.starts_with("absent.pt: cannot read: "), "{absent}");
}

#[test]
fn a_dictionary_shared_without_end_is_refused() {
    // Each of 60 dictionaries holds the one before it twice.
    let mut code = b"}q\x00".to_vec();
    for level in 1..60u8 {
        code.extend(
            [
                b"}q",
                &[level][..],
                b"(U\x01ah",
                &[level - 1],
                b"U\x01bh",
                &[level - 1],
                b"u",
            ]
            .concat(),
        );
    }
    let bytes = samples::zip(
        &Samples::new(),
        "a",
        &[("data.pkl", samples::pickle(&code))],
    );
    let error = open(&bytes).unwrap_err().to_string();
    assert!(
        error.contains("more values than any checkpoint has"),
        "{error}"
    );
}

#[test]
fn values_that_are_not_finite_are_refused() {
    let bad = Sample::new(Dtype::F16, &[2], [1.0, f32::INFINITY]);
    for (_, write) in WRITERS {
        let file = open(&write(&Samples::from([("w".into(), bad.clone())]))).unwrap();
        let error = file.values("w").unwrap_err().to_string();
        assert_eq!(
            error,
            "w holds values that are not finite; the file is damaged"
        );
    }
}

#[test]
fn sha256_of_the_standard_example() {
    let folder = tempfile::tempdir().unwrap();
    let path = samples::write(folder.path(), "abc", b"abc");
    let file = Checkpoint {
        file: RefCell::new(File::open(&path).unwrap()),
        path,
        container: Container::Safetensors,
        tensors: BTreeMap::new(),
        metadata: BTreeMap::new(),
    };
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(file.sha256().unwrap(), expected);
}

proptest! {
    /// Whatever happens to a file: an error, or tensors no larger than it.
    #[test]
    fn damage_is_no_panic(
        kind in 0..WRITERS.len(),
        length in 0.0..1.2f64,
        changes in proptest::collection::vec((0.0..1.0f64, any::<u8>()), 0..12),
    ) {
        let mut bytes = WRITERS[kind].1(&samples());
        let size = bytes.len() as f64;
        for (place, value) in changes {
            bytes[(place * size) as usize] = value;
        }
        bytes.truncate((length * size) as usize);
        if let Ok(file) = open(&bytes) {
            for name in file.tensors().keys() {
                if let Ok(values) = file.values(name) {
                    prop_assert!(values.len() <= bytes.len());
                }
            }
        }
    }
}
