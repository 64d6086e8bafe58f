//! The transformer of both sides: pre-norm blocks of attention and a feed-forward part.

use burn::module::Module;
use burn::nn::{LayerNorm, Linear};
use burn::tensor::activation::{gelu, sigmoid};
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Device, Tensor};

use super::{Activation, TransformerShape, Weights};

/// A stack of blocks: `[N, L, width]` to the same.
#[derive(Module, Debug)]
pub struct Transformer {
    /// The blocks in the order they apply.
    pub blocks: Vec<Block>,
}

/// One residual block.
#[derive(Module, Debug)]
pub struct Block {
    /// Ahead of the attention.
    pub norm_1: LayerNorm,
    /// Positions look at each other.
    pub attention: Attention,
    /// Ahead of the feed-forward part.
    pub norm_2: LayerNorm,
    /// Into the feed-forward part.
    pub fc: Linear,
    /// Out of it.
    pub proj: Linear,
    /// Nonlinearity of the feed-forward part.
    #[module(skip)]
    pub activation: Activation,
}

/// Attention of several heads among the positions of a sequence.
#[derive(Module, Debug)]
pub struct Attention {
    /// To queries, keys and values, side by side.
    pub in_proj: Linear,
    /// From the heads' results, side by side.
    pub out_proj: Linear,
    /// Number of heads.
    #[module(skip)]
    pub heads: usize,
}

/// Which positions a position sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// All.
    Full,
    /// Itself and those before it.
    Causal,
}

impl Transformer {
    /// Takes the blocks named `prefix.resblocks.0`, `prefix.resblocks.1`, …
    ///
    /// # Panics
    /// When one is not there.
    pub fn take(
        weights: &mut Weights,
        prefix: &str,
        shape: &TransformerShape,
        device: &Device,
    ) -> Self {
        let block = |layer| {
            let name = format!("{prefix}.resblocks.{layer}");
            Block::take(weights, &name, shape, device)
        };
        Self {
            blocks: (0..shape.layers).map(block).collect(),
        }
    }

    /// All blocks in turn.
    pub fn forward(&self, stream: Tensor<3>, sight: Sight) -> Tensor<3> {
        self.blocks
            .iter()
            .fold(stream, |stream, block| block.forward(stream, sight))
    }
}

impl Block {
    fn take(weights: &mut Weights, name: &str, shape: &TransformerShape, device: &Device) -> Self {
        let mut linear = |part: &str, separator: &str| {
            let [weight, bias] =
                ["weight", "bias"].map(|kind| format!("{name}.{part}{separator}{kind}"));
            weights.linear(&weight, &bias, device)
        };
        let attention = Attention {
            in_proj: linear("attn.in_proj", "_"),
            out_proj: linear("attn.out_proj", "."),
            heads: shape.heads,
        };
        let (fc, proj) = (linear("mlp.c_fc", "."), linear("mlp.c_proj", "."));
        Self {
            norm_1: weights.layer_norm(&format!("{name}.ln_1"), device),
            attention,
            norm_2: weights.layer_norm(&format!("{name}.ln_2"), device),
            fc,
            proj,
            activation: shape.activation,
        }
    }

    /// `[N, L, width]` to the same.
    pub fn forward(&self, stream: Tensor<3>, sight: Sight) -> Tensor<3> {
        let attended = self
            .attention
            .forward(self.norm_1.forward(stream.clone()), sight);
        let stream = stream + attended;
        let hidden = self.fc.forward(self.norm_2.forward(stream.clone()));
        stream + self.proj.forward(self.activation.apply(hidden))
    }
}

impl Attention {
    fn forward(&self, input: Tensor<3>, sight: Sight) -> Tensor<3> {
        let [count, length, width] = input.dims();
        let projected = self.in_proj.forward(input);
        let [query, key, value] = [0, 1, 2].map(|part| {
            let part = projected.clone().narrow(2, part * width, width);
            split_heads(part, self.heads)
        });
        let options = AttentionModuleOptions {
            is_causal: sight == Sight::Causal,
            ..AttentionModuleOptions::default()
        };
        let mixed = attention(query, key, value, None, None, options);
        let mixed = mixed.swap_dims(1, 2).reshape([count, length, width]);
        self.out_proj.forward(mixed)
    }
}

/// `[N, L, width]` to `[N, heads, L, width / heads]`.
pub fn split_heads(input: Tensor<3>, heads: usize) -> Tensor<4> {
    let [count, length, width] = input.dims();
    input
        .reshape([count, length, heads, width / heads])
        .swap_dims(1, 2)
}

impl Activation {
    fn apply(self, hidden: Tensor<3>) -> Tensor<3> {
        match self {
            Self::QuickGelu => hidden.clone() * sigmoid(hidden.mul_scalar(1.702)),
            Self::Gelu => gelu(hidden),
        }
    }
}
