//! The CLIP text transformer (Radford et al., "Learning Transferable Visual Models From Natural
//! Language Supervision", ICML 2021).

use burn::tensor::activation::{gelu, sigmoid};
use burn::tensor::module::{attention, layer_norm, linear};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use std::path::Path;

use super::bins::TextSource;
use super::weights::{self, Weights};
use super::{TextError, bins};

/// Epsilon of the layer norms.
const NORM_EPSILON: f64 = 1e-5;

/// The size of a text tower without weights, and the seed it is drawn from.
///
/// The default is the text tower of CLIP ViT-B/32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TextConfig {
    /// Width of the residual stream.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Attention heads; divides the width.
    pub heads: usize,
    /// Width of the result, which the image encoder has to match.
    pub embedding: usize,
    /// Number of positions: the longest prompt in tokens.
    pub context_length: usize,
    /// Nonlinearity of the blocks.
    pub activation: Activation,
    /// Seed of the random weights.
    pub seed: u64,
}

/// Nonlinearity of the blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `x · sigmoid(1.702 · x)`: OpenAI's models.
    #[default]
    QuickGelu,
    /// `x · Φ(x)`: most OpenCLIP models.
    Gelu,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            width: 512,
            layers: 12,
            heads: 8,
            embedding: 512,
            context_length: 77,
            activation: Activation::QuickGelu,
            seed: 0,
        }
    }
}

/// A frozen text transformer: tokens to features.
#[derive(Clone, Debug)]
pub struct TextTower {
    config: TextConfig,
    source: TextSource,
    /// `[vocabulary, width]`.
    tokens: Tensor<2>,
    /// `[context_length, width]`.
    positions: Tensor<2>,
    blocks: Vec<Block>,
    norm: Norm,
    /// `[width, embedding]`.
    projection: Tensor<2>,
}

impl TextTower {
    /// A tower with weights drawn from the seed, by CLIP's own initialisation.
    ///
    /// # Errors
    ///
    /// [`TextError::Config`] for a size of 0 or heads that do not divide the width.
    pub fn random(config: &TextConfig, device: &Device) -> Result<Self, TextError> {
        check(config)?;
        let source = TextSource::Random {
            seed: config.seed,
            width: config.width,
            layers: config.layers,
            heads: config.heads,
            embedding: config.embedding,
        };
        Ok(Self::assemble(
            config,
            source,
            weights::random(config),
            device,
        ))
    }

    /// The text tower of a CLIP model: a safetensors file with OpenAI's (and OpenCLIP's) tensor
    /// names, f16, bf16 or f32, with or without the image side.
    ///
    /// The architecture is read off the shapes. `heads` is the width / 64 unless given; the
    /// activation is not in the file.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, is no safetensors file, or whose tensors are missing, extra,
    /// mis-shaped or of a wrong type; [`TextError::Config`] when `heads` does not divide the width.
    pub fn load(
        path: &Path,
        heads: Option<usize>,
        activation: Activation,
        device: &Device,
    ) -> Result<Self, TextError> {
        let bytes = bins::read(path)?;
        let (config, weights) = weights::load(path, &bytes, heads, activation)?;
        check(&config)?;
        let source = TextSource::Weights {
            file: bins::file_name(path),
            sha256: bins::sha256(&bytes),
        };
        Ok(Self::assemble(&config, source, weights, device))
    }

    /// Sizes of the tower.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// Where the weights come from.
    pub fn source(&self) -> &TextSource {
        &self.source
    }

    /// Token embeddings `[M, L, width]` of M token sequences, L being the longest; shorter ones
    /// are filled with token 0. Positions are not in yet.
    ///
    /// # Panics
    ///
    /// On a token outside the vocabulary.
    pub fn embed(&self, sequences: &[Vec<u16>]) -> Tensor<3> {
        let length = sequences.iter().map(Vec::len).max().unwrap_or(0);
        let padded = sequences.iter().flat_map(|sequence| {
            let tokens = sequence.iter().map(|token| i32::from(*token));
            tokens.chain(std::iter::repeat(0)).take(length)
        });
        let count = sequences.len();
        let ids = TensorData::new(padded.collect::<Vec<i32>>(), [count * length]);
        let ids = Tensor::<1, Int>::from_data(ids, &self.tokens.device());
        let rows = self.tokens.clone().select(0, ids);
        rows.reshape([count, length, self.config.width])
    }

    /// Token embeddings `[M, L, width]` to features `[M, embedding]`, not normalised.
    ///
    /// `ends` holds the position of each sequence's end-of-text token. Attention is causal: what
    /// follows the end changes nothing, so L need only reach the last end. Gradients flow back to
    /// `embedded` if it asks for them.
    ///
    /// # Panics
    ///
    /// When L exceeds the context length, or an end is not below L.
    pub fn features(&self, embedded: Tensor<3>, ends: &[usize]) -> Tensor<2> {
        let [count, length, width] = embedded.dims();
        assert!(ends.len() == count && ends.iter().all(|end| *end < length));
        let positions = self
            .positions
            .clone()
            .narrow(0, 0, length)
            .unsqueeze_dim::<3>(0);
        let stream = self
            .blocks
            .iter()
            .fold(embedded + positions, |stream, block| {
                block.forward(stream, &self.config)
            });
        let rows = ends.iter().enumerate();
        let rows: Vec<i32> = rows.map(|(row, end)| (row * length + end) as i32).collect();
        let rows = Tensor::<1, Int>::from_data(TensorData::from(&rows[..]), &stream.device());
        let last = stream.reshape([count * length, width]).select(0, rows);
        self.norm.forward(last).matmul(self.projection.clone())
    }

    fn assemble(
        config: &TextConfig,
        source: TextSource,
        mut weights: Weights,
        device: &Device,
    ) -> Self {
        let blocks = (0..config.layers).map(|layer| Block::take(&mut weights, layer, device));
        Self {
            config: config.clone(),
            source,
            blocks: blocks.collect(),
            tokens: weights.take("token_embedding.weight", device),
            positions: weights.take("positional_embedding", device),
            norm: Norm::take(&mut weights, "ln_final", device),
            projection: weights.take("text_projection", device),
        }
    }
}

/// One pre-norm residual block.
#[derive(Clone, Debug)]
struct Block {
    norm_1: Norm,
    /// To queries, keys and values, side by side.
    in_proj: Linear,
    out_proj: Linear,
    norm_2: Norm,
    fc: Linear,
    proj: Linear,
}

impl Block {
    fn take(weights: &mut Weights, layer: usize, device: &Device) -> Self {
        let mut linear = |name: &str, separator: &str| {
            let name = format!("transformer.resblocks.{layer}.{name}{separator}");
            Linear {
                weight: weights
                    .take::<2>(&format!("{name}weight"), device)
                    .transpose(),
                bias: weights.take(&format!("{name}bias"), device),
            }
        };
        let (in_proj, out_proj) = (linear("attn.in_proj", "_"), linear("attn.out_proj", "."));
        let (fc, proj) = (linear("mlp.c_fc", "."), linear("mlp.c_proj", "."));
        let mut norm = |name: &str| {
            let name = format!("transformer.resblocks.{layer}.{name}");
            Norm::take(weights, &name, device)
        };
        Self {
            norm_1: norm("ln_1"),
            in_proj,
            out_proj,
            norm_2: norm("ln_2"),
            fc,
            proj,
        }
    }

    /// `[M, L, width]` to the same.
    fn forward(&self, stream: Tensor<3>, config: &TextConfig) -> Tensor<3> {
        let attended = self.attend(self.norm_1.forward(stream.clone()), config.heads);
        let stream = stream + attended;
        let hidden = self.fc.forward(self.norm_2.forward(stream.clone()));
        let hidden = match config.activation {
            Activation::QuickGelu => hidden.clone() * sigmoid(hidden.mul_scalar(1.702)),
            Activation::Gelu => gelu(hidden),
        };
        stream + self.proj.forward(hidden)
    }

    fn attend(&self, input: Tensor<3>, heads: usize) -> Tensor<3> {
        let [count, length, width] = input.dims();
        let [query, key, value] = [0, 1, 2].map(|part| part * width).map({
            let projected = self.in_proj.forward(input);
            move |start| {
                let part = projected
                    .clone()
                    .slice([0..count, 0..length, start..start + width]);
                part.reshape([count, length, heads, width / heads])
                    .swap_dims(1, 2)
            }
        });
        let options = AttentionModuleOptions {
            is_causal: true,
            ..AttentionModuleOptions::default()
        };
        let mixed = attention(query, key, value, None, None, options);
        let mixed = mixed.swap_dims(1, 2).reshape([count, length, width]);
        self.out_proj.forward(mixed)
    }
}

#[derive(Clone, Debug)]
struct Linear {
    /// `[in, out]`.
    weight: Tensor<2>,
    /// `[out]`.
    bias: Tensor<1>,
}

impl Linear {
    fn forward(&self, input: Tensor<3>) -> Tensor<3> {
        linear(input, self.weight.clone(), Some(self.bias.clone()))
    }
}

#[derive(Clone, Debug)]
struct Norm {
    gamma: Tensor<1>,
    beta: Tensor<1>,
}

impl Norm {
    fn take(weights: &mut Weights, name: &str, device: &Device) -> Self {
        Self {
            gamma: weights.take(&format!("{name}.weight"), device),
            beta: weights.take(&format!("{name}.bias"), device),
        }
    }

    fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        let beta = Some(self.beta.clone());
        layer_norm(input, self.gamma.clone(), beta, NORM_EPSILON)
    }
}

fn check(config: &TextConfig) -> Result<(), TextError> {
    let sizes = [
        ("width", config.width),
        ("layers", config.layers),
        ("heads", config.heads),
        ("embedding", config.embedding),
        ("context_length", config.context_length),
    ];
    if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
        return Err(TextError::Config(format!("`{name}` is 0")));
    }
    if !config.width.is_multiple_of(config.heads) {
        let text = format!(
            "`heads` is {}, which does not divide the width of {}",
            config.heads, config.width
        );
        return Err(TextError::Config(text));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
