use super::*;
use crate::checkpoint::samples::{self, Sample, Samples, WRITERS};
use crate::checkpoint::{Container, Dtype};
use crate::clip::{Activation, random};
use proptest::prelude::*;
use tempfile::TempDir;

const HINTS: Hints = Hints {
    activation: Some(Activation::Gelu),
    image_heads: Some(2),
    text_heads: Some(4),
};

fn transformer(width: usize, layers: usize, heads: usize) -> TransformerShape {
    TransformerShape {
        width,
        layers,
        heads,
        mlp: 3 * width,
        activation: Activation::Gelu,
    }
}

fn text() -> TextShape {
    TextShape {
        vocabulary: 11,
        context_length: 5,
        transformer: transformer(8, 2, 4),
        embedding: 6,
    }
}

fn vit() -> ImageShape {
    ImageShape::Vit(VitShape {
        image: 12,
        patch: 4,
        transformer: transformer(6, 1, 2),
        embedding: 6,
        form: VitForm::Clip,
    })
}

fn resnet() -> ImageShape {
    ImageShape::ResNet(ResNetShape {
        image: 64,
        width: 2,
        stages: [1, 2, 1, 1],
        heads: 2,
        embedding: 6,
    })
}

/// A model with OpenAI's names.
fn model(image: &ImageShape) -> Samples {
    let sides = [text_layout(&text()), image_layout(image)];
    let tensors = sides
        .into_iter()
        .zip(5..)
        .flat_map(|(layout, seed)| random(layout, seed).tensors);
    let samples = tensors.map(|(name, data)| {
        let shape = data.shape().to_vec();
        (name, Sample::new(Dtype::F32, &shape, data.iter::<f32>()))
    });
    let scale = Sample::new(Dtype::F32, &[], [100f32.ln()]);
    samples.chain([("logit_scale".to_owned(), scale)]).collect()
}

/// The model with the names of another scheme.
fn renamed(samples: &Samples, scheme: Scheme) -> Samples {
    let rename = |(name, sample): (&String, &Sample)| match scheme.piece(name) {
        Piece::Whole(name) => vec![(name, sample.clone())],
        Piece::Transposed(name) => {
            let [rows, columns] = [sample.shape[0], sample.shape[1]];
            let column = |column| (0..rows).map(move |row| row * columns + column);
            let values = (0..columns)
                .flat_map(column)
                .map(|place| sample.values[place]);
            vec![(name, Sample::new(sample.dtype, &[columns, rows], values))]
        }
        Piece::Joined(names) => {
            let shape = [&[sample.shape[0] / 3], &sample.shape[1..]].concat();
            let parts = sample.values.chunks(sample.values.len() / 3);
            let parts = parts.map(|part| Sample::new(sample.dtype, &shape, part.iter().copied()));
            names.into_iter().zip(parts).collect()
        }
    };
    samples.iter().flat_map(rename).collect()
}

fn file(folder: &TempDir, bytes: &[u8]) -> ClipFile {
    let path = samples::write(folder.path(), "clip.pt", bytes);
    ClipFile::open(&path, &HINTS).unwrap()
}

/// The weights of both sides as samples.
fn weights(file: &ClipFile) -> Samples {
    let sides = [
        file.image_weights().unwrap().1,
        file.text_weights().unwrap().1,
    ];
    let tensors = sides.into_iter().flat_map(|weights| weights.tensors);
    let samples = tensors.map(|(name, data)| {
        let shape = data.shape().to_vec();
        (name, Sample::new(Dtype::F32, &shape, data.iter::<f32>()))
    });
    samples.collect()
}

#[test]
fn every_scheme_in_every_kind_of_file_gives_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    for image in [vit(), resnet()] {
        let samples = model(&image);
        let mut expected = samples.clone();
        expected.remove("logit_scale");
        for scheme in [Scheme::OpenAi, Scheme::HuggingFace, Scheme::TinyClip] {
            if scheme == Scheme::HuggingFace && image == resnet() {
                continue;
            }
            for (kind, write) in WRITERS {
                let file = file(&folder, &write(&renamed(&samples, scheme)));
                assert_eq!(file.scheme(), scheme, "{kind}");
                assert_eq!(file.image().unwrap(), Some(image.clone()));
                assert_eq!(file.text().unwrap(), Some(text()));
                assert!(weights(&file) == expected, "{kind}, {scheme}");
                let scale = file.logit_scale().unwrap().unwrap();
                assert!((scale - 100.0).abs() < 1e-3, "{scale}");
                for side in [Side::Image, Side::Text] {
                    assert_eq!(file.findings(side).unwrap(), []);
                }
            }
        }
    }
}

#[test]
fn the_rule_for_the_activation() {
    let folder = tempfile::tempdir().unwrap();
    let activation = |bytes: &[u8]| {
        let path = samples::write(folder.path(), "clip.pt", bytes);
        let hints = Hints {
            activation: None,
            ..HINTS
        };
        let file = ClipFile::open(&path, &hints).unwrap();
        let text = file.text().unwrap().unwrap();
        (file.checkpoint().container(), text.transformer.activation)
    };
    let samples = model(&vit());
    let quick = Activation::QuickGelu;
    let script = activation(&samples::torchscript(&samples));
    assert_eq!(script, (Container::TorchScript, quick));
    let open_clip = activation(&samples::torch(&samples, ""));
    assert_eq!(open_clip, (Container::Torch, Activation::Gelu));
    let hugging_face = samples::safetensors(&renamed(&samples, Scheme::HuggingFace));
    assert_eq!(activation(&hugging_face), (Container::Safetensors, quick));
    let mut saved = samples;
    let resolution = Sample::new(Dtype::I64, &[], [12.0]);
    saved.insert("input_resolution".into(), resolution);
    assert_eq!(
        activation(&samples::torch(&saved, "")),
        (Container::Torch, quick)
    );
}

#[test]
fn one_side_is_enough_and_a_strange_one_is_no_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    let mut samples = model(&vit());
    samples.retain(|name, _| !name.starts_with("visual."));
    let only = file(&folder, &samples::safetensors(&samples));
    assert_eq!(only.image().unwrap(), None);
    let error = only.image_weights().err().unwrap().to_string();
    assert!(
        error.contains("clip.pt: the CLIP model has no image side"),
        "{error}"
    );
    assert!(only.text_weights().is_ok());
    let strange = Sample::new(Dtype::F32, &[1], [0.0]);
    samples.insert("visual.trunk.stem.weight".into(), strange);
    let strange = file(&folder, &samples::safetensors(&samples));
    assert!(strange.text_weights().is_ok());
    let error = strange.image_weights().err().unwrap().to_string();
    assert!(error.contains("missing visual.conv1.weight"), "{error}");
}

/// Changes the ViT model and says what its sides then complain of.
fn complaint(scheme: Scheme, side: Side, change: impl Fn(&mut Samples)) -> String {
    let mut samples = renamed(&model(&vit()), scheme);
    change(&mut samples);
    let folder = tempfile::tempdir().unwrap();
    let path = samples::write(folder.path(), "clip.pt", &samples::torch(&samples, ""));
    let open = || -> Result<Weights, CheckpointError> {
        let file = ClipFile::open(&path, &HINTS)?;
        Ok(match side {
            Side::Image => file.image_weights()?.1,
            Side::Text => file.text_weights()?.1,
        })
    };
    let text = open().err().expect("an error").to_string();
    assert!(text.contains("clip.pt: "), "{text}");
    text
}

#[test]
fn what_does_not_fit_is_named() {
    use Scheme::{HuggingFace, OpenAi};
    use Side::{Image, Text};
    let check = |scheme, side, change: fn(&mut Samples), expected: &str| {
        let text = complaint(scheme, side, change);
        assert!(text.contains(expected), "{text}");
    };
    check(
        OpenAi,
        Text,
        |s| drop(s.remove("ln_final.bias")),
        "missing ln_final.bias",
    );
    check(
        OpenAi,
        Text,
        |s| drop(s.remove("text_projection")),
        "missing text_projection",
    );
    check(
        OpenAi,
        Text,
        |s| s.retain(|name, _| !name.starts_with("transformer.resblocks.0.")),
        "transformer.resblocks.0.attn.in_proj_weight",
    );
    check(
        HuggingFace,
        Image,
        |s| drop(s.remove("vision_model.encoder.layers.0.self_attn.k_proj.bias")),
        "missing vision_model.encoder.layers.0.self_attn.k_proj.bias",
    );
    let extra = |s: &mut Samples| {
        let sample = Sample::new(Dtype::F32, &[1], [0.0]);
        s.insert("visual.head.bias".into(), sample.clone());
        s.insert("bert.pooler".into(), sample);
    };
    check(
        OpenAi,
        Image,
        extra,
        "not part of a CLIP image tower: visual.head.bias",
    );
    check(
        OpenAi,
        Text,
        extra,
        "not part of a CLIP text tower: bert.pooler",
    );
    let shape = |s: &mut Samples| {
        let norm = Sample::new(Dtype::F32, &[4], [0.0; 4]);
        s.insert("visual.ln_pre.bias".into(), norm.clone());
        s.insert(
            "visual_projection.weight".into(),
            Sample::new(Dtype::F32, &[6, 2], [0.0; 12]),
        );
        s.insert("positional_embedding".into(), norm);
    };
    check(
        OpenAi,
        Image,
        shape,
        "visual.ln_pre.bias has shape [4], expected [6]",
    );
    check(
        OpenAi,
        Text,
        shape,
        "positional_embedding has shape [4], expected 2 axes",
    );
    check(
        HuggingFace,
        Image,
        shape,
        "visual_projection.weight has shape [6, 2], expected [6, 6]",
    );
    check(
        OpenAi,
        Image,
        |s| {
            drop(s.insert(
                "visual.positional_embedding".into(),
                Sample::new(Dtype::F32, &[9, 6], [0.0; 54]),
            ))
        },
        "has 9 positions, expected those of a square and one more",
    );
    let integers = |s: &mut Samples| s.get_mut("ln_final.bias").unwrap().dtype = Dtype::I64;
    check(
        OpenAi,
        Text,
        integers,
        "ln_final.bias is I64, expected f16, bf16, f32 or f64",
    );
    let foreign = |s: &mut Samples| s.retain(|name, _| name == "logit_scale");
    check(
        OpenAi,
        Text,
        foreign,
        "no CLIP model (its tensors: logit_scale, …)",
    );
}

#[test]
fn heads_must_divide_the_width() {
    let folder = tempfile::tempdir().unwrap();
    let path = samples::write(
        folder.path(),
        "clip.pt",
        &samples::torch(&model(&vit()), ""),
    );
    for heads in [0, 4] {
        let hints = Hints {
            image_heads: Some(heads),
            ..HINTS
        };
        let file = ClipFile::open(&path, &hints).unwrap();
        let error = file.image().unwrap_err().to_string();
        assert!(
            error.contains("attention heads do not divide a width of 6"),
            "{error}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever happens to a file: an error, or a model of the shape that it claims.
    #[test]
    fn damage_is_no_panic(
        kind in 0..WRITERS.len(),
        residual in any::<bool>(),
        changes in proptest::collection::vec((0.0..1.0f64, any::<u8>()), 1..40),
    ) {
        let image = if residual { resnet() } else { vit() };
        let mut bytes = WRITERS[kind].1(&model(&image));
        // Indices stand at the start of some kinds of file and at the end of others.
        for (place, value) in changes {
            let third = bytes.len() as f64 / 3.0;
            let place = if place < 0.5 { place * third } else { (2.0 + place) * third };
            bytes[place as usize] = value;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = samples::write(folder.path(), "clip.pt", &bytes);
        if let Ok(file) = ClipFile::open(&path, &HINTS) {
            for side in [Side::Image, Side::Text] {
                drop(file.findings(side));
            }
            drop((file.image_weights(), file.text_weights(), file.logit_scale()));
        }
    }
}
