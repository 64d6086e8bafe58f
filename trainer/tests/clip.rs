//! Fine-tuning the image towers of small CLIP checkpoints.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use burn::tensor::{Device, Tensor};
use numclip::bundle::{Bundle, Precision};
use numclip::pipeline::Pipeline;
use numclip::preprocess::Plan;
use numclip::verify::replay;
use numclip_trainer::clip::{
    Activation, ImageShape, ResNetShape, TextShape, TransformerShape, VitForm, VitShape,
    image_layout, random, text_layout,
};
use numclip_trainer::config::Config;
use numclip_trainer::export;
use numclip_trainer::fit::{Options, Run, Weights, fit, prepare, untrained};
use numclip_trainer::text::TextSource;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

use crate::common::{config, run, task};

fn transformer(width: usize) -> TransformerShape {
    TransformerShape {
        width,
        layers: 2,
        heads: 1,
        mlp: 4 * width,
        activation: Activation::Gelu,
    }
}

pub fn vit() -> ImageShape {
    ImageShape::Vit(VitShape {
        image: 32,
        patch: 8,
        transformer: transformer(24),
        embedding: 16,
        form: VitForm::Clip,
    })
}

fn resnet() -> ImageShape {
    ImageShape::ResNet(ResNetShape {
        image: 32,
        width: 4,
        stages: [1; 4],
        heads: 2,
        embedding: 16,
    })
}

/// Writes a CLIP model with random weights and a logit scale of 50 into a folder.
pub fn checkpoint(folder: &Path, image: &ImageShape) -> PathBuf {
    let text = TextShape {
        vocabulary: 49_408,
        context_length: 24,
        transformer: transformer(16),
        embedding: 16,
    };
    let mut tensors = vec![("logit_scale".to_owned(), vec![], vec![50f32.ln()])];
    for layout in [text_layout(&text), image_layout(image)] {
        let mut weights = random(layout.clone(), 3);
        for entry in layout {
            let values = weights.data(&entry.name).iter::<f32>().collect();
            tensors.push((entry.name, entry.shape, values));
        }
    }
    let bytes = |values: &Vec<f32>| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let data: Vec<Vec<u8>> = tensors.iter().map(|(_, _, values)| bytes(values)).collect();
    let views = tensors.iter().zip(&data).map(|((name, shape, _), data)| {
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), data).unwrap(),
        )
    });
    let path = folder.join("clip.safetensors");
    serialize_to_file(views, None, &path).unwrap();
    path
}

/// The head draws nothing: random numbers of a device are shared by all tests of the process.
const MODEL: &str = "[model]\narchitecture = \"clip\"\ninit = \"clip.safetensors\"\n\
                     head = { regressor = { kind = \"expectation\" } }\n\
                     [train]\nepochs = 2\nbatch_size = 8\ncheckpoint_steps = 2\n";

const STATISTICS: &str = "mean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n";

/// A task that leaves preprocessing and text tower to the checkpoint.
fn clip_task(extra: &str) -> String {
    let text = task(extra);
    let start = text.find("[preprocess]").unwrap();
    let end = start + text[start..].find("[model]").unwrap();
    let text = format!("{}{}", &text[..start], &text[end..]);
    let lines = text.lines().filter(|line| !line.contains("tower = "));
    lines.collect::<Vec<_>>().join("\n")
}

/// What the last weights of a run make of an image.
fn embedding(folder: &Path) -> Vec<u8> {
    let (run, config, _) = Run::read(folder).unwrap();
    let device = Device::flex();
    let prepared = prepare(&config, &device).unwrap();
    let model = untrained(&config, &prepared, &device).unwrap();
    let model = run.load(model, Weights::Last).unwrap();
    let size = config.preprocess.size as usize;
    let embedding = model.embed(Tensor::ones([1, 3, size, size], &device));
    embedding.into_data().as_bytes().to_vec()
}

#[test]
fn both_towers_learn_and_resume_bit_for_bit() {
    for image in [vit(), resnet()] {
        let folder = tempfile::tempdir().unwrap();
        checkpoint(folder.path(), &image);
        let config = config(folder.path(), &clip_task(MODEL));
        let [unbroken, resumed] = ["unbroken", "resumed"].map(|name| folder.path().join(name));
        let outcome = run(&config, &unbroken, false).unwrap();
        assert!(outcome.best.unwrap().mae.is_finite());
        let stop = AtomicBool::new(true);
        let mut resume = false;
        while fit(
            &config,
            &Options {
                out: &resumed,
                resume,
                listen: None,
                interrupt: &stop,
            },
        )
        .unwrap()
        .interrupted
        {
            resume = true;
        }
        let frugal = MODEL.replace("[train]\n", "[train]\ngradient_checkpointing = true\n");
        let frugal = self::config(folder.path(), &clip_task(&frugal));
        run(&frugal, &folder.path().join("frugal"), false).unwrap();
        let measurements = |run: &Path| fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        assert_eq!(measurements(&unbroken), measurements(&resumed));
        assert!(embedding(&unbroken) == embedding(&resumed));
        assert!(embedding(&unbroken) == embedding(&folder.path().join("frugal")));
    }
}

#[test]
fn a_vision_transformer_trains_in_half_precision() {
    let folder = tempfile::tempdir().unwrap();
    checkpoint(folder.path(), &vit());
    let half = MODEL.replace("[train]\n", "[train]\nprecision = \"bf16\"\n");
    let losses = [MODEL, &half].map(|model| {
        let out = tempfile::tempdir_in(folder.path()).unwrap();
        let config = config(folder.path(), &clip_task(model));
        run(&config, out.path(), false).unwrap();
        let (steps, _) = Run::read(out.path()).unwrap().0.history().unwrap();
        steps.iter().map(|step| step.loss).collect::<Vec<_>>()
    });
    for (exact, half) in losses[0].iter().zip(&losses[1]) {
        let error = (exact - half).abs() / exact;
        assert!(error > 0.0 && error < 0.01, "{exact} {half}");
    }
    checkpoint(folder.path(), &resnet());
    let config = config(folder.path(), &clip_task(&half));
    let error = run(&config, &folder.path().join("run"), false).unwrap_err();
    assert!(
        error.to_string().contains("this encoder trains in \"f32\""),
        "{error}"
    );
}

#[test]
fn both_towers_export_in_float_and_the_transformer_in_int8() {
    let models = [
        (vit(), MODEL.to_owned()),
        (resnet(), MODEL.to_owned()),
        (vit(), MODEL.replace("head = {", "head = { adapter = {},")),
    ];
    for (image, model) in models {
        let folder = tempfile::tempdir().unwrap();
        checkpoint(folder.path(), &image);
        let [trained, out] = ["run", "bundle"].map(|name| folder.path().join(name));
        run(&config(folder.path(), &clip_task(&model)), &trained, false).unwrap();
        let export = |precision| {
            export::export(&export::Options {
                run: &trained,
                out: &out,
                precision,
                weights: Weights::Best,
                int8: export::Wanted::default(),
                interval_from: &[],
                stage: &|_| {},
            })
        };
        match image {
            ImageShape::ResNet(_) => {
                let error = export(Precision::Int8).unwrap_err().to_string();
                assert!(error.contains("export it with --precision f32"), "{error}");
                assert!(!out.exists());
            }
            ImageShape::Vit(_) => {
                let exported = export(Precision::Int8).unwrap();
                assert!(exported.lowest_cosine > Some(0.98), "{exported:?}");
                assert_eq!(exported.reports.len(), 2);
                let bundle = Bundle::open(&out).unwrap();
                let loaded = numclip::encode::load(&bundle, None).unwrap();
                assert_eq!(loaded.model.engine(), numclip::encode::Engine::Int8);
                let replays = replay(&Pipeline::new(bundle, None).unwrap()).unwrap();
                assert!(replays.iter().all(|replay| replay.passed), "{replays:?}");
            }
        }
        let exported = export(Precision::F32).unwrap();
        assert_eq!((exported.lowest_cosine, exported.reports.len()), (None, 1));
        let pipeline = Pipeline::new(Bundle::open(&out).unwrap(), None).unwrap();
        let replays = replay(&pipeline).unwrap();
        assert!(replays.iter().all(|replay| replay.passed), "{replays:?}");
    }
}

#[test]
fn the_task_follows_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = checkpoint(folder.path(), &vit());
    let free = config(folder.path(), &clip_task(MODEL));
    assert_eq!(free.preprocess, Plan::clip(32));
    assert_eq!(free.text.weights.as_deref(), Some(&*path));
    assert!((free.model.head.logit_scale - 50.0).abs() < 1e-4);
    assert_eq!(free.train.optimizer.lr, 1e-5);
    let out = folder.path().join("run");
    run(&free, &out, false).unwrap();
    let (_, resolved, provenance) = Run::read(&out).unwrap();
    assert_eq!(resolved, free);
    let TextSource::Weights { sha256, .. } = provenance.text else {
        panic!("{:?}", provenance.text);
    };
    assert_eq!(provenance.init.unwrap().sha256, sha256);
    let set = format!("{MODEL}optimizer = {{ lr = 0.001 }}\n[preprocess]\nsize = 48\n{STATISTICS}");
    let set = set.replace("head = {", "head = { logit_scale = 20,");
    let set = config(folder.path(), &clip_task(&set));
    assert_eq!(
        (set.preprocess.size, set.model.head.logit_scale),
        (48, 20.0)
    );
    assert_eq!(set.train.optimizer.lr, 0.001);
    // Positions are resampled from 4 × 4 to 6 × 6.
    run(&set, &folder.path().join("larger"), false).unwrap();
}

#[test]
fn what_cannot_work_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = checkpoint(folder.path(), &vit());
    let refusal = |text: &str| {
        fs::write(folder.path().join("task.toml"), text).unwrap();
        Config::read(&folder.path().join("task.toml"))
            .unwrap_err()
            .to_string()
    };
    let good = clip_task(MODEL);
    for (from, to, expected) in [
        (
            "init = \"clip.safetensors\"\n",
            "",
            "model.init: expected a CLIP checkpoint",
        ),
        ("clip.safetensors", "none.pt", "none.pt: cannot read"),
        (
            "clip.safetensors",
            "task.toml",
            "task.toml: not a weight file",
        ),
        (
            "init =",
            "width = 0.5\ninit =",
            "no width, padding, norm or branches",
        ),
    ] {
        let error = refusal(&good.replacen(from, to, 1));
        assert!(error.contains(expected), "{error}");
    }
    let failure = |text: &str| {
        let config = config(folder.path(), text);
        run(&config, &folder.path().join("run"), false)
            .unwrap_err()
            .to_string()
    };
    let error = failure(&good.replacen(
        "[text]",
        &format!("[preprocess]\nsize = 36\n{STATISTICS}[text]"),
        1,
    ));
    assert!(
        error.contains("36 px do not fit; set preprocess.size to a multiple of 8"),
        "{error}"
    );
    let narrow = serde_json::json!({ "embeddings": { "dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24] } });
    let header = narrow.to_string();
    let values = [1f32, 0., 1., 1., 0., 1.].map(f32::to_le_bytes).concat();
    let bytes = [
        &(header.len() as u64).to_le_bytes()[..],
        header.as_bytes(),
        &values,
    ]
    .concat();
    fs::write(folder.path().join("bins.safetensors"), bytes).unwrap();
    let ready = good.replacen("[text]", "[text]\nembeddings = \"bins.safetensors\"", 1);
    let error = failure(&ready.replace("context = \"a gauge at\"", ""));
    assert!(
        error.contains("embeds into 16 values, the bins into 2"),
        "{error}"
    );
    assert!(path.exists() && !folder.path().join("run/checkpoint.safetensors").exists());
}
