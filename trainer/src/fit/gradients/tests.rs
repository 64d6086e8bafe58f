//! Training steps against PyTorch. `tests/reference/training_steps.py` says how its numbers were
//! made: everything random comes from one hash, which is repeated here.

use super::*;
use crate::clip::{self, Activation, Hints, ImageShape, TransformerShape, VitForm, VitShape};
use crate::fit::machines::tensors;
use crate::fit::parallel::Crew;
use crate::model::ImageEncoder;
use crate::model::vit::Vit;
use crate::optim::GroupedOptimizer;
use crate::text::{Prompt, TextSide, TextTower};
use burn::module::ModuleMapper;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::Deserialize;

const REFERENCE: &str = include_str!("../../../tests/reference/training_steps.json");
const LABELS: [f32; 8] = [3.0, 16.0, 30.0, 70.0, 11.0, 22.0, 14.0, 50.0];
const WIDTH: usize = 32;

/// What PyTorch got.
#[derive(Deserialize)]
struct Expected {
    losses: Vec<f64>,
    first_kernel: Vec<f32>,
    first_rank: Vec<f32>,
    offset_bias: Vec<f32>,
}

/// Uniform within ±bound; element i depends on stream and i alone.
fn numbers(stream: u64, count: usize, bound: f64) -> Vec<f32> {
    let mask = 0xFFFF_FFFF;
    let value = |i: u64| {
        let mut x = (i * 2_654_435_761 + stream * 40_503 + 12_345) & mask;
        x ^= x >> 15;
        x = (x * 2_246_822_519) & mask;
        x ^= x >> 13;
        ((x as f64 / 2f64.powi(32) * 2.0 - 1.0) * bound) as f32
    };
    (0..count as u64).map(value).collect()
}

/// Writes CLIP's text transformer and reads it back.
fn tower() -> TextTower {
    let norm = |name: String| {
        [
            (name.clone() + ".weight", vec![WIDTH], -0.1),
            (name + ".bias", vec![WIDTH], 0.1),
        ]
    };
    let matrix = |name: &str, shape: [usize; 2], bound| (name.to_owned(), shape.to_vec(), bound);
    let mut entries = vec![
        matrix("token_embedding.weight", [49_408, WIDTH], 0.5),
        matrix("positional_embedding", [20, WIDTH], 0.2),
        matrix("text_projection", [WIDTH, 16], 0.3),
    ];
    entries.extend(norm("ln_final".into()));
    for layer in 0..2 {
        let name = |part: &str| format!("transformer.resblocks.{layer}.{part}");
        for (part, outputs, inputs, bound) in [
            ("attn.in_proj_", 3, 1, 0.3),
            ("attn.out_proj.", 1, 1, 0.3),
            ("mlp.c_fc.", 4, 1, 0.3),
            ("mlp.c_proj.", 1, 4, 0.2),
        ] {
            let shape = vec![outputs * WIDTH, inputs * WIDTH];
            entries.push((name(part) + "weight", shape, bound));
            entries.push((name(part) + "bias", vec![outputs * WIDTH], 0.1));
        }
        entries.extend([norm(name("ln_1")), norm(name("ln_2"))].concat());
    }
    // Scales of the norms, marked by a negative bound, lie around 1.
    let tensors = (1000..).zip(entries).map(
        |(stream, (name, shape, bound)): (u64, (String, Vec<usize>, f64))| {
            let values = numbers(stream, shape.iter().product(), bound.abs());
            let base = if bound < 0.0 { 1.0 } else { 0.0 };
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|value| (base + value).to_le_bytes())
                .collect();
            (name, shape, bytes)
        },
    );
    let tensors: Vec<_> = tensors.collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), serialize(views, None).unwrap()).unwrap();
    let hints = Hints {
        activation: Some(Activation::QuickGelu),
        text_heads: Some(2),
        image_heads: None,
    };
    TextTower::load(file.path(), &hints, &Device::flex()).unwrap()
}

/// The image tower of a tiny CLIP.
fn image_tower(device: &Device) -> ImageEncoder {
    let shape = VitShape {
        image: 32,
        patch: 16,
        transformer: TransformerShape {
            width: WIDTH,
            layers: 2,
            heads: 2,
            mlp: 4 * WIDTH,
            activation: Activation::QuickGelu,
        },
        embedding: 16,
        form: VitForm::default(),
    };
    let layout = clip::image_layout(&ImageShape::Vit(shape.clone()));
    Vit::take(&mut clip::random(layout, 0), &shape, 32, device).into()
}

/// Gives every parameter but the ranks its number's values.
#[derive(Default)]
struct Fill {
    next: u64,
    /// Whether the parameter is the scale of a norm, which lies around 1.
    scale: bool,
}

impl ModuleMapper for Fill {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.scale = name == "gamma";
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape().dims::<D>();
        let bound = match D {
            4 => (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt(),
            2 => (shape[0] as f64).powf(-0.5),
            1 => 0.05,
            _ => return param,
        };
        let count = shape.iter().product();
        let values = match self.scale {
            true => numbers(self.next, count, 1.0)
                .iter()
                .map(|v| 1.0 + 0.1 * v)
                .collect(),
            false => numbers(self.next, count, bound),
        };
        self.next += 1;
        param.map(|old| {
            let data = TensorData::new(values, shape);
            Tensor::from_data(data, &old.device()).require_grad()
        })
    }
}

fn config(train: &str) -> Config {
    let size = if train.contains("batch_size") {
        ""
    } else {
        "batch_size = 8"
    };
    let text = format!(
        r#"
        bin = [
            {{ label = "child", start = 0, end = 12 }},
            {{ label = "teenager", start = 13, end = 18 }},
            {{ label = "young adult", start = 19, end = 34 }},
            {{ label = "older adult", start = 35, end = 99 }},
        ]
        task = {{ name = "age", range = [0, 99] }}
        data = {{ table = "none.csv" }}
        text = {{ context = "age estimation: the person is a", tune = {{ ranks = true }} }}
        [model]
        architecture = "mobilenet-v2"
        width = 0.25
        norm = "folded"
        head = {{ logit_scale = 10, adapter = {{ ratio = 0.8 }}, regressor = {{ kind = "ssr", lambda = 0.5 }} }}
        [preprocess]
        size = 32
        mean = [0.5, 0.5, 0.5]
        std = [0.5, 0.5, 0.5]
        [train]
        {size}
        {train}
        "#
    );
    toml::from_str(&text).unwrap()
}

fn mobilenet(config: &Config, device: &Device) -> ImageEncoder {
    config.encoder(16).init(0, device).unwrap().into()
}

fn model(config: &Config, encoder: ImageEncoder, device: &Device) -> NumClip {
    let prompt = Prompt {
        context: config.text.context.clone(),
        bins: config.bin.iter().map(|bin| bin.label.clone()).collect(),
        placement: config.text.placement,
    };
    let text = TextSide::tuned_prompt(&tower(), &prompt, &config.text.tune, device).unwrap();
    let head = &config.model.head;
    let model = head.build(encoder, text, &config.bin, 0, device);
    model.map(&mut Fill::default())
}

fn batch(config: &Config, stream: u64) -> Batch {
    let bin = |label: &f32| config.bin.iter().filter(|bin| bin.start <= *label).count() - 1;
    Batch {
        images: numbers(stream, 8 * 3 * 32 * 32, 1.0),
        labels: LABELS.to_vec(),
        bins: LABELS.iter().map(bin).collect(),
        indices: (0..8).collect(),
        views: vec![0; 8],
        skipped: Vec::new(),
    }
}

/// Some of a batch of images of 32 pixels.
fn part(all: &Batch, range: std::ops::Range<usize>) -> Batch {
    Batch {
        images: all.images[range.start * 3072..range.end * 3072].to_vec(),
        labels: all.labels[range.clone()].to_vec(),
        bins: all.bins[range.clone()].to_vec(),
        views: vec![0; range.len()],
        indices: range.collect(),
        skipped: Vec::new(),
    }
}

/// Values of the parameters of a model by their order.
fn parameters(model: &NumClip) -> Vec<Vec<f32>> {
    struct Collect(Vec<Vec<f32>>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0
                .push(param.val().into_data_as::<f32>().iter().collect());
        }
    }
    let mut collect = Collect(Vec::new());
    model.visit(&mut collect);
    collect.0
}

fn assert_close(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert!(got.len() >= expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        let error = (got - expected).abs();
        assert!(error <= tolerance, "{what}: {got}, expected {expected}");
    }
}

#[test]
fn ten_steps_of_a_convolutional_encoder_equal_pytorch() {
    ten_steps("", mobilenet);
}

#[test]
fn ten_steps_of_clips_image_tower_equal_pytorch() {
    ten_steps("clip-", |_, device| image_tower(device));
}

fn ten_steps(reference: &str, encoder: fn(&Config, &Device) -> ImageEncoder) {
    let all: serde_json::Value = serde_json::from_str(REFERENCE).unwrap();
    for (method, decay) in [("radam", 0.0), ("adamw", 0.01)] {
        let expected = all[format!("{reference}{method}")].clone();
        let expected: Expected = serde_json::from_value(expected).unwrap();
        let config = config(&format!(
            "optimizer = {{ method = '{method}', lr = 1e-3, weight_decay = {decay}, groups = [{{ path = 'text.ranks', lr = 1e-2 }}] }}"
        ));
        let device = Device::flex().autodiff();
        let mut model = model(&config, encoder(&config, &device), &device);
        let mut optimizer = GroupedOptimizer::new(&config.train.optimizer, &model).unwrap();
        let objective = Objective::new(&config, &[2; 4]);
        for (step, expected) in expected.losses.iter().enumerate() {
            let mut pass = Pass::new(&config, &objective, &device);
            pass.add(&model, &batch(&config, 5000 + step as u64), None);
            let error = (pass.loss() / expected - 1.0).abs();
            assert!(
                error < 1e-4,
                "{method}, step {step}: {}, expected {expected}",
                pass.loss()
            );
            let gradients = pass.gradients(&model);
            model = optimizer.step(1.0, model, gradients);
        }
        let got = parameters(&model);
        let count = got.len();
        assert_close(&got[0], &expected.first_kernel, 1e-5, "first kernel");
        assert_close(&got[count - 2], &expected.offset_bias, 1e-5, "offset bias");
        assert_close(&got[count - 1], &expected.first_rank, 1e-4, "first rank");
    }
}

#[test]
fn several_batches_equal_a_large_one() {
    let loss = "loss = { image_to_text = 1, text_to_image = 0, cross_entropy = 1, value = 1 }";
    let whole = config(loss);
    let parts = config(&format!("accumulate = 3\n{loss}"));
    let device = Device::flex().autodiff();
    let model = model(&whole, mobilenet(&whole, &device), &device);
    let objective = Objective::new(&whole, &[2; 4]);
    let all = batch(&whole, 5000);
    let gradients = |config: &Config, batches: &[Batch]| {
        let mut pass = Pass::new(config, &objective, &device);
        batches
            .iter()
            .for_each(|batch| pass.add(&model, batch, None));
        let gradients = pass.gradients(&model);
        // Gradients as weights, to read them out.
        let ranks = |model: &NumClip| parameters(&AsWeights::of(model, &gradients));
        (pass.loss(), ranks(&model))
    };
    let (loss, expected) = gradients(&whole, &[part(&all, 0..8)]);
    let (accumulated, got) = gradients(
        &parts,
        &[part(&all, 0..3), part(&all, 3..5), part(&all, 5..8)],
    );
    assert!(
        (loss - accumulated).abs() < 1e-5 * loss,
        "{loss} {accumulated}"
    );
    for (got, expected) in got.iter().zip(&expected) {
        let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        assert_close(got, expected, 1e-4 * largest + 1e-6, "gradient");
    }
}

#[test]
fn two_workers_equal_one() {
    let loss = "loss = { image_to_text = 1, text_to_image = 0, cross_entropy = 1, value = 1 }";
    let whole = config(loss);
    let halves = config(&format!("batch_size = 4\naccumulate = 2\n{loss}"));
    let build = |device: &Device| Ok(model(&whole, mobilenet(&whole, device), device));
    let all = batch(&whole, 5000);
    let gradients = |config: &Config, workers: usize, batches: &[Batch]| {
        let objective = Objective::new(config, &[2; 4]);
        let devices = vec![Device::flex(); workers];
        let crew = Crew::new(config, objective, &devices, build).unwrap();
        let model = build(&Device::flex().autodiff()).unwrap();
        let mut pass = crew.begin();
        let batches = batches.iter().map(|batch| Ok((batch.clone(), None)));
        crew.work(&mut pass, &model, batches).unwrap();
        let gradients = pass.gradients(&model);
        (
            pass.loss(),
            parameters(&AsWeights::of(&model, &gradients)),
            pass.labels.clone(),
        )
    };
    let (loss, expected, labels) = gradients(&whole, 1, &[part(&all, 0..8)]);
    let (shared, got, order) = gradients(&halves, 2, &[part(&all, 0..4), part(&all, 4..8)]);
    assert_eq!(labels, order);
    assert!((loss - shared).abs() < 1e-5 * loss, "{loss} {shared}");
    for (got, expected) in got.iter().zip(&expected) {
        let largest = expected.iter().fold(1.0_f32, |m, v| m.max(v.abs()));
        assert_close(got, expected, 1e-5 * largest, "gradient");
    }
    let idle = Crew::new(
        &whole,
        Objective::new(&whole, &[2; 4]),
        &[Device::flex(), Device::flex()],
        build,
    );
    assert!(idle.err().unwrap().to_string().contains("accumulate"));
}

#[test]
fn weights_and_gradients_travel_unharmed() {
    let config = config("");
    let device = Device::flex().autodiff();
    let [here, there] = [0, 1].map(|seed| {
        let encoder = config.encoder(16).init(seed, &device).unwrap();
        let text = model(&config, encoder.clone().into(), &device)
            .text()
            .clone();
        config
            .model
            .head
            .build(encoder.into(), text, &config.bin, seed, &device)
    });
    assert_ne!(parameters(&here), parameters(&there));
    let sent = tensors::weights(&here).unwrap();
    let told = tensors::load_weights(there, &sent).unwrap();
    assert_eq!(tensors::weights(&told).unwrap(), sent);

    let objective = Objective::new(&config, &[2; 4]);
    let mut pass = Pass::new(&config, &objective, &device);
    pass.add(&told, &batch(&config, 5000), None);
    let (loss, values) = (pass.loss(), pass.values.clone());
    let sent = tensors::part(&told, pass.into_part()).unwrap();
    let mut pass = Pass::new(&config, &objective, &device);
    pass.add(&here, &batch(&config, 5000), None);
    let expected = parameters(&AsWeights::of(&here, &pass.gradients(&here)));
    let part = tensors::load_part(&here, &sent, &device).unwrap();
    let mut pass = Pass::new(&config, &objective, &device);
    pass.add_part(&here, part);
    assert_eq!((pass.loss(), &pass.values), (loss, &values));
    let got = parameters(&AsWeights::of(&here, &pass.gradients(&here)));
    assert_eq!(got, expected);
}

#[test]
fn what_does_not_fit_the_model_is_refused() {
    let config = config("");
    let device = Device::flex().autodiff();
    let whole = model(&config, mobilenet(&config, &device), &device);
    let mut narrow = config.clone();
    narrow.model.width = 0.5;
    let narrow = model(&narrow, mobilenet(&narrow, &device), &device);
    let weights = tensors::weights(&narrow).unwrap();
    let error = tensors::load_weights(whole.clone(), &weights).unwrap_err();
    assert!(error.contains("expected F32"), "{error}");
    // Weights are no gradients: losses and values are missing.
    let error = tensors::load_part(&narrow, &weights, &device).err();
    assert!(error.unwrap().contains("expected 3"));
    for bytes in [&weights[..weights.len() / 2], b"", b"\0\0\0\0\0\0\0\0"] {
        assert!(tensors::load_weights(whole.clone(), bytes).is_err());
        assert!(tensors::load_part(&whole, bytes, &device).is_err());
    }
}

/// Puts gradients in the place of weights.
struct AsWeights<'a>(&'a GradientsParams);

impl AsWeights<'_> {
    fn of(model: &NumClip, gradients: &GradientsParams) -> NumClip {
        model.valid().map(&mut AsWeights(gradients))
    }
}

impl ModuleMapper for AsWeights<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let gradient = self.0.get::<D>(param.id);
        param.map(|old| gradient.unwrap_or(old))
    }
}
