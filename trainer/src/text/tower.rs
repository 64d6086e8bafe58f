//! The CLIP text transformer.

use burn::module::Module;
use burn::nn::LayerNorm;
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use std::path::Path;

use super::bins::TextSource;
use super::{TextError, prompt};
use crate::checkpoint::CheckpointErrorKind;
use crate::clip::transformer::{Sight, Transformer};
use crate::clip::{self, Activation, ClipFile, Hints, TextShape, TransformerShape, Weights};

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
    transformer: Transformer,
    norm: LayerNorm,
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
            clip::random(clip::text_layout(&config.shape()), config.seed),
            device,
        ))
    }

    /// The text tower of a CLIP model, from a file of any kind that [`ClipFile`] reads, with or
    /// without the image side.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, holds no CLIP text tower or one of another vocabulary, or whose
    /// tensors are missing, extra, mis-shaped or of a wrong type.
    pub fn load(path: &Path, hints: &Hints, device: &Device) -> Result<Self, TextError> {
        let file = ClipFile::open(path, hints)?;
        let (shape, weights) = file.text_weights()?;
        if shape.vocabulary != prompt::VOCABULARY {
            let problem = format!(
                "the text tower knows {} tokens, CLIP's tokenizer has {}",
                shape.vocabulary,
                prompt::VOCABULARY
            );
            let error = CheckpointErrorKind::Model(problem);
            return Err(file.checkpoint().error(error).into());
        }
        let (name, sha256) = file.checkpoint().identity()?;
        let source = TextSource::Weights { file: name, sha256 };
        Ok(Self::assemble(
            &TextConfig::of(&shape),
            source,
            weights,
            device,
        ))
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
            .transformer
            .forward(embedded + positions, Sight::Causal);
        let rows = ends.iter().enumerate();
        let rows: Vec<i32> = rows.map(|(row, end)| (row * length + end) as i32).collect();
        let rows = Tensor::<1, Int>::from_data(TensorData::from(&rows[..]), &stream.device());
        let last = stream.reshape([count * length, width]).select(0, rows);
        self.norm.forward(last).matmul(self.projection.clone())
    }

    /// The same tower on another device.
    pub fn on(&self, device: &Device) -> Self {
        let tower = self.clone();
        Self {
            tokens: tower.tokens.to_device(device),
            positions: tower.positions.to_device(device),
            transformer: tower.transformer.to_device(device),
            norm: tower.norm.to_device(device),
            projection: tower.projection.to_device(device),
            ..tower
        }
    }

    fn assemble(
        config: &TextConfig,
        source: TextSource,
        mut weights: Weights,
        device: &Device,
    ) -> Self {
        let shape = config.shape().transformer;
        let transformer = Transformer::take(&mut weights, "transformer", &shape, device);
        Self {
            config: config.clone(),
            source,
            tokens: weights.take("token_embedding.weight", device),
            positions: weights.take("positional_embedding", device),
            transformer: transformer.no_grad(),
            norm: weights.layer_norm("ln_final", device).no_grad(),
            projection: weights.take("text_projection", device),
        }
    }
}

impl TextConfig {
    fn shape(&self) -> TextShape {
        TextShape {
            vocabulary: prompt::VOCABULARY,
            context_length: self.context_length,
            transformer: TransformerShape {
                width: self.width,
                layers: self.layers,
                heads: self.heads,
                mlp: 4 * self.width,
                activation: self.activation,
            },
            embedding: self.embedding,
        }
    }

    fn of(shape: &TextShape) -> Self {
        Self {
            width: shape.transformer.width,
            layers: shape.transformer.layers,
            heads: shape.transformer.heads,
            embedding: shape.embedding,
            context_length: shape.context_length,
            activation: shape.transformer.activation,
            seed: 0,
        }
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
pub(super) mod tests;
