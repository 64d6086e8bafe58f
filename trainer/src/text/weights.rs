//! The tensors of a text tower: which there are, drawn at random or read from a file.

use burn::tensor::{Device, Tensor, TensorData, bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::tower::{Activation, TextConfig};
use super::{TextError, prompt};

/// Tensors of a CLIP file that do not concern the text tower.
const IGNORED: [&str; 6] = [
    "attn_mask",
    "context_length",
    "input_resolution",
    "logit_bias",
    "logit_scale",
    "vocab_size",
];

/// All tensors of a tower by name, of the shapes that [`layout`] gives.
pub(super) struct Weights(BTreeMap<String, TensorData>);

impl Weights {
    /// Moves a tensor out.
    ///
    /// # Panics
    ///
    /// When it is not in the layout or was taken before, which is a mistake in the caller.
    pub(super) fn take<const D: usize>(&mut self, name: &str, device: &Device) -> Tensor<D> {
        let data = self.0.remove(name).expect("a tensor of the layout");
        Tensor::from_data(data, device)
    }
}

/// How CLIP initialises a tensor.
enum Init {
    /// Mean 0, the given standard deviation.
    Normal(f64),
    /// Between ± the bound.
    Uniform(f64),
    Constant(f32),
}

struct Entry {
    name: String,
    shape: Vec<usize>,
    init: Init,
}

/// Weights drawn from the seed of `config`; each tensor has its own stream of random numbers, so
/// the result does not hang on the number of threads.
pub(super) fn random(config: &TextConfig) -> Weights {
    let entries: Vec<_> = layout(config).into_iter().enumerate().collect();
    let tensors = entries.into_par_iter().map(|(stream, entry)| {
        let mut random = ChaCha8Rng::seed_from_u64(config.seed);
        random.set_stream(stream as u64);
        let values = draw(&mut random, &entry.init, entry.shape.iter().product());
        (entry.name, TensorData::new(values, entry.shape))
    });
    Weights(tensors.collect())
}

/// Reads the text tower off a CLIP file, whose bytes are `bytes`.
pub(super) fn load(
    path: &Path,
    bytes: &[u8],
    heads: Option<usize>,
    activation: Activation,
) -> Result<(TextConfig, Weights), TextError> {
    let file = SafeTensors::deserialize(bytes).map_err(|source| TextError::Format {
        path: path.into(),
        source,
    })?;
    let config = architecture(path, &file, heads, activation)?;
    let entries = layout(&config);
    compare_names(path, &file, &entries)?;
    let tensors = entries.into_iter().map(|entry| {
        let view = tensor(path, &file, &entry.name)?;
        let values = read(path, &entry.name, &entry.shape, &view)?;
        Ok((entry.name, TensorData::new(values, entry.shape)))
    });
    let tensors = tensors.collect::<Result<_, TextError>>()?;
    Ok((config, Weights(tensors)))
}

/// The named tensor as f32 values.
pub(super) fn read(
    path: &Path,
    name: &str,
    shape: &[usize],
    view: &TensorView,
) -> Result<Vec<f32>, TextError> {
    if view.shape() != shape {
        return Err(TextError::TensorShape {
            path: path.into(),
            name: name.into(),
            got: view.shape().to_vec(),
            expected: shape.to_vec(),
        });
    }
    let data = view.data();
    match view.dtype() {
        Dtype::F32 => Ok(decode(data, f32::from_le_bytes)),
        Dtype::F16 => Ok(decode(data, |bytes| f16::from_le_bytes(bytes).to_f32())),
        Dtype::BF16 => Ok(decode(data, |bytes| bf16::from_le_bytes(bytes).to_f32())),
        other => Err(TextError::TensorType {
            path: path.into(),
            name: name.into(),
            got: format!("{other:?}"),
        }),
    }
}

fn decode<const N: usize>(data: &[u8], value: fn([u8; N]) -> f32) -> Vec<f32> {
    let (chunks, _) = data.as_chunks::<N>();
    chunks.iter().map(|chunk| value(*chunk)).collect()
}

/// Every tensor of a tower, in a fixed order: name, shape (as PyTorch has it), initialisation.
///
/// The deviations are those of CLIP's `initialize_parameters`; biases of the feed-forward layers
/// keep PyTorch's default.
fn layout(config: &TextConfig) -> Vec<Entry> {
    let (width, embedding) = (config.width, config.embedding);
    let scale = (width as f64).powf(-0.5);
    let depth = (2.0 * config.layers as f64).powf(-0.5);
    let normal = |name: &str, shape: [usize; 2], deviation: f64| Entry {
        name: name.into(),
        shape: shape.to_vec(),
        init: Init::Normal(deviation),
    };
    let mut entries = vec![
        normal("token_embedding.weight", [prompt::VOCABULARY, width], 0.02),
        normal("positional_embedding", [config.context_length, width], 0.01),
        normal("text_projection", [width, embedding], scale),
    ];
    entries.extend(norm("ln_final", width));
    for layer in 0..config.layers {
        let name = |part: &str| format!("transformer.resblocks.{layer}.{part}");
        let fc = (2.0 * width as f64).powf(-0.5);
        let weights = [
            ("attn.in_proj_weight", [3 * width, width], scale),
            ("attn.out_proj.weight", [width, width], scale * depth),
            ("mlp.c_fc.weight", [4 * width, width], fc),
            ("mlp.c_proj.weight", [width, 4 * width], scale * depth),
        ];
        entries.extend(weights.map(|(part, shape, std)| normal(&name(part), shape, std)));
        let biases = [
            ("attn.in_proj_bias", 3 * width, 0.0),
            ("attn.out_proj.bias", width, 0.0),
            ("mlp.c_fc.bias", 4 * width, scale),
            ("mlp.c_proj.bias", width, scale / 2.0),
        ];
        entries.extend(biases.map(|(part, length, bound)| Entry {
            name: name(part),
            shape: vec![length],
            init: Init::Uniform(bound),
        }));
        entries.extend(norm(&name("ln_1"), width));
        entries.extend(norm(&name("ln_2"), width));
    }
    entries
}

fn norm(name: &str, width: usize) -> [Entry; 2] {
    [("weight", 1.0), ("bias", 0.0)].map(|(part, value)| Entry {
        name: format!("{name}.{part}"),
        shape: vec![width],
        init: Init::Constant(value),
    })
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

/// What the shapes in the file say about the tower.
fn architecture(
    path: &Path,
    file: &SafeTensors,
    heads: Option<usize>,
    activation: Activation,
) -> Result<TextConfig, TextError> {
    let [_, width] = matrix(path, file, "token_embedding.weight")?;
    let [context_length, _] = matrix(path, file, "positional_embedding")?;
    let [_, embedding] = matrix(path, file, "text_projection")?;
    let layers: BTreeSet<&str> = file
        .names()
        .into_iter()
        .filter_map(|name| {
            name.strip_prefix("transformer.resblocks.")?
                .split('.')
                .next()
        })
        .collect();
    Ok(TextConfig {
        width,
        layers: layers.len(),
        heads: heads.unwrap_or((width / 64).max(1)),
        embedding,
        context_length,
        activation,
        seed: 0,
    })
}

fn matrix(path: &Path, file: &SafeTensors, name: &str) -> Result<[usize; 2], TextError> {
    let shape = tensor(path, file, name)?.shape().to_vec();
    shape
        .clone()
        .try_into()
        .map_err(|_| TextError::TensorShape {
            path: path.into(),
            name: name.into(),
            got: shape,
            expected: vec![0, 0],
        })
}

fn tensor<'a>(
    path: &Path,
    file: &SafeTensors<'a>,
    name: &str,
) -> Result<TensorView<'a>, TextError> {
    file.tensor(name).map_err(|_| TextError::MissingTensors {
        path: path.into(),
        names: vec![name.into()],
    })
}

fn compare_names(path: &Path, file: &SafeTensors, entries: &[Entry]) -> Result<(), TextError> {
    let found: BTreeSet<&str> = file.names().into_iter().collect();
    let wanted: BTreeSet<&str> = entries.iter().map(|entry| &*entry.name).collect();
    let missing: Vec<String> = wanted.difference(&found).map(|n| n.to_string()).collect();
    if !missing.is_empty() {
        return Err(TextError::MissingTensors {
            path: path.into(),
            names: missing,
        });
    }
    let other = |name: &&&str| !name.starts_with("visual.") && !IGNORED.contains(*name);
    let extra: Vec<String> = found
        .difference(&wanted)
        .filter(other)
        .map(|name| name.to_string())
        .collect();
    match extra.is_empty() {
        true => Ok(()),
        false => Err(TextError::ExtraTensors {
            path: path.into(),
            names: extra,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::TextTower;
    use safetensors::tensor::serialize;

    fn config() -> TextConfig {
        TextConfig {
            width: 8,
            layers: 2,
            heads: 2,
            embedding: 6,
            context_length: 10,
            ..TextConfig::default()
        }
    }

    type Files = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

    /// The random tower as the tensors of a file, in f16.
    fn tensors() -> Files {
        let tensors = random(&config()).0.into_iter().map(|(name, data)| {
            let shape = data.shape().to_vec();
            let values = data.try_into_vec_as::<f32>().expect("f32 values");
            let halves = values.iter().map(|value| f16::from_f32(*value));
            let bytes = halves.flat_map(f16::to_le_bytes).collect();
            (name, (Dtype::F16, shape, bytes))
        });
        tensors.collect()
    }

    fn load_bytes(bytes: &[u8]) -> Result<TextTower, TextError> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("clip.safetensors");
        std::fs::write(&path, bytes).expect("written");
        TextTower::load(&path, Some(2), Activation::QuickGelu, &Device::flex())
    }

    fn serialized(files: &Files) -> Vec<u8> {
        let views = files.iter().map(|(name, (dtype, shape, bytes))| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            (name, view.expect("a view"))
        });
        serialize(views, None).expect("a file")
    }

    #[test]
    fn a_file_gives_back_the_tower_it_was_written_from() {
        let mut files = tensors();
        let ignored = (Dtype::U8, vec![1], vec![0]);
        files.insert("visual.conv1.weight".into(), ignored.clone());
        files.insert("logit_scale".into(), ignored);
        let loaded = load_bytes(&serialized(&files)).expect("a tower");
        assert_eq!(loaded.config(), &config());
        let drawn = TextTower::random(&config(), &Device::flex()).expect("a tower");
        let features = |tower: &TextTower| -> Vec<f32> {
            let tokens = [vec![49406, 7, 49407], vec![49406, 300, 2, 5, 49407]];
            let features = tower.features(tower.embed(&tokens), &[2, 4]);
            features.into_data_as::<f32>().iter().collect()
        };
        for (loaded, drawn) in features(&loaded).iter().zip(features(&drawn)) {
            assert!((loaded - drawn).abs() < 5e-3, "{loaded} {drawn}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let check = |change: fn(&mut Files), expected: &str| {
            let mut files = tensors();
            change(&mut files);
            let error = load_bytes(&serialized(&files)).expect_err("an error");
            let text = error.to_string();
            assert!(text.contains("clip.safetensors: "), "{text}");
            assert!(text.contains(expected), "{text}");
        };
        check(
            |files| drop(files.remove("ln_final.bias")),
            "missing ln_final.bias",
        );
        check(
            |files| drop(files.remove("text_projection")),
            "missing text_projection",
        );
        check(
            |files| files.retain(|name, _| !name.starts_with("transformer.resblocks.0.")),
            "resblocks.0.attn.in_proj_bias, transformer.resblocks.0.attn.in_proj_weight",
        );
        check(
            |files| drop(files.insert("bert.pooler".into(), (Dtype::U8, vec![0], vec![]))),
            "bert.pooler",
        );
        check(
            |files| {
                let (_, shape, bytes) = files.get_mut("ln_final.bias").expect("a tensor");
                *shape = vec![4];
                bytes.truncate(8);
            },
            "ln_final.bias has shape [4], expected [8]",
        );
        check(
            |files| {
                let (dtype, ..) = files.get_mut("ln_final.bias").expect("a tensor");
                *dtype = Dtype::I16;
            },
            "ln_final.bias is I16, expected f16, bf16 or f32",
        );
        check(
            |files| {
                let (_, shape, _) = files.get_mut("positional_embedding").expect("a tensor");
                *shape = vec![80];
            },
            "positional_embedding has shape [80]",
        );
    }

    #[test]
    fn a_file_cut_short_is_no_panic() {
        let bytes = serialized(&tensors());
        for length in [0, 1, 8, 100, bytes.len() / 2, bytes.len() - 1] {
            let result = load_bytes(&bytes[..length]);
            assert!(matches!(result, Err(TextError::Format { .. })), "{length}");
        }
    }

    #[test]
    fn random_weights_hang_on_the_seed_alone() {
        let drawn = |threads: usize, seed: u64| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let config = TextConfig { seed, ..config() };
            pool.expect("a pool").install(|| random(&config).0)
        };
        let first = drawn(1, 5);
        assert!(first == drawn(3, 5));
        let name = "transformer.resblocks.1.mlp.c_fc.weight";
        assert!(first[name] != drawn(1, 6)[name]);
        assert!(first[name] != first["transformer.resblocks.0.mlp.c_fc.weight"]);
    }

    #[test]
    fn deviations_are_those_of_clip() {
        let config = TextConfig {
            width: 64,
            layers: 8,
            embedding: 32,
            ..TextConfig::default()
        };
        let weights = random(&config).0;
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
}
