//! Every tensor of a CLIP model: name, shape, initialisation.

use std::collections::BTreeMap;

use burn::module::{Param, RunningState};
use burn::nn::{BatchNorm, BatchNormConfig, LayerNorm, LayerNormConfig, Linear};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::{ImageShape, RESNET_STEP, ResNetShape, TextShape, TransformerShape, VitForm, VitShape};

/// One tensor of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// OpenAI's name.
    pub name: String,
    /// Lengths of the axes, as PyTorch has them.
    pub shape: Vec<usize>,
    /// How it begins without a file.
    pub init: Init,
}

/// How a tensor begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Normal, mean 0, of the given standard deviation.
    Normal(f64),
    /// Uniform between ± the bound.
    Uniform(f64),
    /// The same value everywhere.
    Constant(f32),
}

/// The tensors of a layout by name, on their way into modules.
///
/// Its methods move tensors out.
///
/// # Panics
/// They panic when a tensor is not of the layout or was taken before, which is a mistake in the
/// caller.
pub struct Weights {
    pub(super) tensors: BTreeMap<String, TensorData>,
    epsilon: f64,
}

/// The text side, in a fixed order.
///
/// Deviations are those of CLIP's `initialize_parameters`; biases of the feed-forward layers keep
/// PyTorch's default.
pub fn text_layout(shape: &TextShape) -> Vec<Entry> {
    let width = shape.transformer.width;
    let scale = (width as f64).powf(-0.5);
    let mut entries = vec![
        normal("token_embedding.weight", [shape.vocabulary, width], 0.02),
        normal("positional_embedding", [shape.context_length, width], 0.01),
        normal("text_projection", [width, shape.embedding], scale),
    ];
    entries.extend(norm("ln_final", width));
    blocks("transformer", &shape.transformer, &mut entries);
    entries
}

/// The image side, in a fixed order.
pub fn image_layout(shape: &ImageShape) -> Vec<Entry> {
    match shape {
        ImageShape::Vit(shape) => vit(shape),
        ImageShape::ResNet(shape) => resnet(shape),
    }
}

/// Weights drawn from a seed; each tensor has its own stream of random numbers, so the result does
/// not hang on the number of threads.
pub fn random(layout: Vec<Entry>, seed: u64) -> Weights {
    let entries: Vec<_> = layout.into_iter().enumerate().collect();
    let tensors = entries.into_par_iter().map(|(stream, entry)| {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream as u64);
        let values = draw(&mut random, &entry.init, entry.shape.iter().product());
        (entry.name, TensorData::new(values, entry.shape))
    });
    Weights::new(tensors.collect())
}

impl Weights {
    /// Tensors by name; ε of the layer norms is 1e-5.
    pub fn new(tensors: BTreeMap<String, TensorData>) -> Self {
        Self {
            tensors,
            epsilon: VitForm::Clip.epsilon(),
        }
    }

    /// The same with another ε of the layer norms.
    pub fn with_epsilon(self, epsilon: f64) -> Self {
        Self { epsilon, ..self }
    }

    /// The values of a tensor.
    pub fn data(&mut self, name: &str) -> TensorData {
        self.tensors.remove(name).expect("a tensor of the layout")
    }

    /// A tensor as it is.
    pub fn take<const D: usize>(&mut self, name: &str, device: &Device) -> Tensor<D> {
        Tensor::from_data(self.data(name), device)
    }

    /// A tensor as a parameter.
    pub fn param<const D: usize>(&mut self, name: &str, device: &Device) -> Param<Tensor<D>> {
        Param::from_tensor(self.take(name, device))
    }

    /// A linear layer from PyTorch's `[out, in]` weight and its bias.
    pub fn linear(&mut self, weight: &str, bias: &str, device: &Device) -> Linear {
        Linear {
            weight: Param::from_tensor(self.take::<2>(weight, device).transpose()),
            bias: Some(self.param(bias, device)),
        }
    }

    /// The layer norm of the given name.
    pub fn layer_norm(&mut self, name: &str, device: &Device) -> LayerNorm {
        let gamma = self.param::<1>(&format!("{name}.weight"), device);
        let mut norm = LayerNormConfig::new(gamma.val().dims()[0])
            .with_epsilon(self.epsilon)
            .init(device);
        norm.gamma = gamma;
        norm.beta = Some(self.param(&format!("{name}.bias"), device));
        norm
    }

    /// The batch normalisation of the given name, ε = 1e-5 and momentum 0.1.
    pub fn batch_norm(&mut self, name: &str, device: &Device) -> BatchNorm {
        let gamma = self.param::<1>(&format!("{name}.weight"), device);
        let mut norm = BatchNormConfig::new(gamma.val().dims()[0]).init(device);
        norm.gamma = gamma;
        norm.beta = self.param(&format!("{name}.bias"), device);
        let mut state = |part| RunningState::new(self.take(&format!("{name}.{part}"), device));
        norm.running_mean = state("running_mean");
        norm.running_var = state("running_var");
        norm
    }
}

fn vit(shape: &VitShape) -> Vec<Entry> {
    let width = shape.transformer.width;
    let scale = (width as f64).powf(-0.5);
    let positions = (shape.image / shape.patch).pow(2) + 1;
    let patches = [width, 3, shape.patch, shape.patch];
    let mut entries = vec![
        Entry {
            name: "visual.class_embedding".into(),
            shape: vec![width],
            init: Init::Normal(scale),
        },
        normal("visual.positional_embedding", [positions, width], scale),
        normal("visual.proj", [width, shape.embedding], scale),
        convolution("visual.conv1", patches),
    ];
    if shape.form == VitForm::Clip {
        entries.extend(norm("visual.ln_pre", width));
    }
    entries.extend(norm("visual.ln_post", width));
    blocks("visual.transformer", &shape.transformer, &mut entries);
    entries
}

fn blocks(prefix: &str, shape: &TransformerShape, entries: &mut Vec<Entry>) {
    let TransformerShape {
        width, layers, mlp, ..
    } = *shape;
    let scale = (width as f64).powf(-0.5);
    let depth = (2.0 * layers as f64).powf(-0.5);
    for layer in 0..layers {
        let name = |part: &str| format!("{prefix}.resblocks.{layer}.{part}");
        let weights = [
            ("attn.in_proj_weight", [3 * width, width], scale),
            ("attn.out_proj.weight", [width, width], scale * depth),
            (
                "mlp.c_fc.weight",
                [mlp, width],
                (2.0 * width as f64).powf(-0.5),
            ),
            ("mlp.c_proj.weight", [width, mlp], scale * depth),
        ];
        entries.extend(weights.map(|(part, shape, std)| normal(&name(part), shape, std)));
        let biases = [
            ("attn.in_proj_bias", 3 * width, 0.0),
            ("attn.out_proj.bias", width, 0.0),
            ("mlp.c_fc.bias", mlp, scale),
            ("mlp.c_proj.bias", width, (mlp as f64).powf(-0.5)),
        ];
        entries
            .extend(biases.map(|(part, length, bound)| uniform(name(part), vec![length], bound)));
        entries.extend(norm(&name("ln_1"), width));
        entries.extend(norm(&name("ln_2"), width));
    }
}

fn resnet(shape: &ResNetShape) -> Vec<Entry> {
    let width = shape.width;
    let mut entries = Vec::new();
    let stem = [(3, width / 2), (width / 2, width / 2), (width / 2, width)];
    for (number, (inputs, outputs)) in (1..).zip(stem) {
        entries.push(convolution(
            &format!("visual.conv{number}"),
            [outputs, inputs, 3, 3],
        ));
        entries.extend(batch_norm(&format!("visual.bn{number}"), outputs));
    }
    let mut inputs = width;
    for (stage, blocks) in shape.stages.into_iter().enumerate() {
        let planes = width << stage;
        for block in 0..blocks {
            bottleneck(
                &format!("visual.layer{}.{block}", stage + 1),
                block == 0,
                inputs,
                planes,
                &mut entries,
            );
            inputs = 4 * planes;
        }
    }
    attention_pool(shape, &mut entries);
    entries
}

fn bottleneck(name: &str, first: bool, inputs: usize, planes: usize, entries: &mut Vec<Entry>) {
    let convolutions = [
        [planes, inputs, 1, 1],
        [planes, planes, 3, 3],
        [4 * planes, planes, 1, 1],
    ];
    for (number, shape) in (1..).zip(convolutions) {
        entries.push(convolution(&format!("{name}.conv{number}"), shape));
        entries.extend(batch_norm(&format!("{name}.bn{number}"), shape[0]));
    }
    if first {
        entries.push(convolution(
            &format!("{name}.downsample.0"),
            [4 * planes, inputs, 1, 1],
        ));
        entries.extend(batch_norm(&format!("{name}.downsample.1"), 4 * planes));
    }
}

fn attention_pool(shape: &ResNetShape, entries: &mut Vec<Entry>) {
    let width = shape.width * 32;
    let scale = (width as f64).powf(-0.5);
    let positions = (shape.image / RESNET_STEP).pow(2) + 1;
    entries.push(normal(
        "visual.attnpool.positional_embedding",
        [positions, width],
        scale,
    ));
    for (part, outputs) in [
        ("q", width),
        ("k", width),
        ("v", width),
        ("c", shape.embedding),
    ] {
        let name = format!("visual.attnpool.{part}_proj");
        entries.push(normal(&format!("{name}.weight"), [outputs, width], scale));
        entries.push(uniform(format!("{name}.bias"), vec![outputs], scale));
    }
}

fn normal(name: &str, shape: [usize; 2], deviation: f64) -> Entry {
    Entry {
        name: name.into(),
        shape: shape.to_vec(),
        init: Init::Normal(deviation),
    }
}

fn uniform(name: String, shape: Vec<usize>, bound: f64) -> Entry {
    Entry {
        name,
        shape,
        init: Init::Uniform(bound),
    }
}

/// Uniform within ±1/√fan-in, PyTorch's default.
fn convolution(name: &str, shape: [usize; 4]) -> Entry {
    let fan_in = shape[1..].iter().product::<usize>() as f64;
    uniform(format!("{name}.weight"), shape.to_vec(), fan_in.powf(-0.5))
}

fn norm(name: &str, width: usize) -> [Entry; 2] {
    [("weight", 1.0), ("bias", 0.0)].map(|(part, value)| constant(name, part, width, value))
}

fn batch_norm(name: &str, width: usize) -> [Entry; 4] {
    [
        ("weight", 1.0),
        ("bias", 0.0),
        ("running_mean", 0.0),
        ("running_var", 1.0),
    ]
    .map(|(part, value)| constant(name, part, width, value))
}

fn constant(name: &str, part: &str, width: usize, value: f32) -> Entry {
    Entry {
        name: format!("{name}.{part}"),
        shape: vec![width],
        init: Init::Constant(value),
    }
}

fn draw(random: &mut ChaCha8Rng, init: &Init, count: usize) -> Vec<f32> {
    match *init {
        Init::Constant(value) => vec![value; count],
        Init::Uniform(bound) => {
            let value = |_| (bound * (2.0 * unit(random) - 1.0)) as f32;
            (0..count).map(value).collect()
        }
        Init::Normal(deviation) => {
            let pairs = (0..count.div_ceil(2)).flat_map(|_| normal_pair(random));
            let values = pairs.map(|value| (value * deviation) as f32);
            values.take(count).collect()
        }
    }
}

/// Two independent standard normal values (Box and Muller, 1958).
fn normal_pair(random: &mut ChaCha8Rng) -> [f64; 2] {
    let radius = (-2.0 * (1.0 - unit(random)).ln()).sqrt();
    let (sine, cosine) = (std::f64::consts::TAU * unit(random)).sin_cos();
    [radius * cosine, radius * sine]
}

/// Uniform from 0 to below 1.
fn unit(random: &mut ChaCha8Rng) -> f64 {
    f64::from(random.next_u32()) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::Activation;

    fn text(width: usize, layers: usize) -> TextShape {
        TextShape {
            vocabulary: 60,
            context_length: 77,
            transformer: TransformerShape {
                width,
                layers,
                heads: 2,
                mlp: 4 * width,
                activation: Activation::QuickGelu,
            },
            embedding: 32,
        }
    }

    #[test]
    fn random_weights_hang_on_the_seed_alone() {
        let drawn = |threads: usize, seed: u64| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let layout = text_layout(&text(8, 2));
            pool.expect("a pool")
                .install(|| random(layout, seed).tensors)
        };
        let first = drawn(1, 5);
        assert!(first == drawn(3, 5));
        let name = "transformer.resblocks.1.mlp.c_fc.weight";
        assert!(first[name] != drawn(1, 6)[name]);
        assert!(first[name] != first["transformer.resblocks.0.mlp.c_fc.weight"]);
    }

    #[test]
    fn deviations_are_those_of_clip() {
        let shape = TextShape {
            vocabulary: 49_408,
            ..text(64, 8)
        };
        let weights = random(text_layout(&shape), 0).tensors;
        let block = |part: &str| format!("transformer.resblocks.3.{part}");
        // Width 64: width^-0.5 is 1/8; (2 · layers)^-0.5 is 1/4; (2 · width)^-0.5 is 0.0884.
        for (name, expected) in [
            ("token_embedding.weight".into(), 0.02),
            ("positional_embedding".into(), 0.01),
            ("text_projection".into(), 0.125),
            (block("attn.in_proj_weight"), 0.125),
            (block("attn.out_proj.weight"), 0.03125),
            (block("mlp.c_fc.weight"), 0.08839),
            (block("mlp.c_proj.weight"), 0.03125),
            // Uniform between ±1/8: deviation (1/8) / √3.
            (block("mlp.c_fc.bias"), 0.07217),
        ] {
            let values: Vec<f64> = weights[&name].iter().collect();
            let count = values.len() as f64;
            let mean = values.iter().sum::<f64>() / count;
            let deviation = (values.iter().map(|v| v * v).sum::<f64>() / count).sqrt();
            // Five standard errors.
            let slack = 5.0 / count.sqrt();
            assert!(mean.abs() < slack * expected, "{name}: mean {mean}");
            let error = (deviation / expected - 1.0).abs();
            assert!(error < slack, "{name}: deviation {deviation}");
        }
    }

    #[test]
    fn sizes_are_those_of_the_published_models() {
        let count = |layout: &[Entry]| -> usize {
            layout
                .iter()
                .map(|entry| entry.shape.iter().product::<usize>())
                .sum()
        };
        let transformer = |width, layers| TransformerShape {
            width,
            layers,
            heads: width / 64,
            mlp: 4 * width,
            activation: Activation::QuickGelu,
        };
        let text = |width| TextShape {
            vocabulary: 49_408,
            context_length: 77,
            transformer: transformer(width, 12),
            embedding: if width == 512 { 512 } else { 768 },
        };
        let vit = |patch, width, layers, embedding| {
            ImageShape::Vit(VitShape {
                image: 224,
                patch,
                transformer: transformer(width, layers),
                embedding,
                form: VitForm::Clip,
            })
        };
        let resnet = ImageShape::ResNet(ResNetShape {
            image: 224,
            width: 64,
            stages: [3, 4, 6, 3],
            heads: 32,
            embedding: 1024,
        });
        // Parameters of OpenAI's models, without the logit scale; RN50 has running statistics
        // besides, two for each of its 26,624 normalised channels.
        let image_sizes = [
            (vit(32, 768, 12, 512), 87_849_216),
            (vit(16, 768, 12, 512), 86_192_640),
            (vit(14, 1024, 24, 768), 303_966_208),
            (resnet, 38_316_896 + 2 * 26_624),
        ];
        for (shape, expected) in image_sizes {
            assert_eq!(count(&image_layout(&shape)), expected, "{shape:?}");
        }
        assert_eq!(count(&text_layout(&text(512))), 63_428_096);
    }
}
