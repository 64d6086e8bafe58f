//! The transformer of both sides: pre-norm blocks of attention and a feed-forward part.

use burn::module::Module;
use burn::nn::{LayerNorm, Linear};
use burn::tensor::activation::{gelu, sigmoid};
use burn::tensor::module::{self, attention};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

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
    #[module(skip)]
    precision: Precision,
}

/// Arithmetic of the blocks while gradients are tracked; without, it is single precision.
///
/// Weights, residual stream and layer norms are of single precision in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Matrix products, attention and nonlinearity in bfloat16: half the memory, and fast on
    /// GPUs; a CPU only imitates it.
    Bf16,
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

    /// The same blocks with another arithmetic.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        let blocks = self.blocks.iter_mut();
        blocks.for_each(|block| block.precision = precision);
        self
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
            precision: Precision::F32,
        }
    }

    /// `[N, L, width]` to the same.
    pub fn forward(&self, stream: Tensor<3>, sight: Sight) -> Tensor<3> {
        let half = self.precision == Precision::Bf16 && stream.device().is_autodiff();
        let [narrow, wide] = match half {
            true => [DType::BF16, DType::F32],
            false => [stream.dtype(); 2],
        };
        let normed = self.norm_1.forward(stream.clone()).cast(narrow);
        let stream = stream + self.attention.forward(normed, sight).cast(wide);
        let normed = self.norm_2.forward(stream.clone()).cast(narrow);
        let hidden = self.activation.apply(linear(&self.fc, normed));
        stream + linear(&self.proj, hidden).cast(wide)
    }
}

/// A linear layer in the arithmetic of its input.
fn linear(layer: &Linear, input: Tensor<3>) -> Tensor<3> {
    let dtype = input.dtype();
    let bias = layer.bias.as_ref().map(|bias| bias.val().cast(dtype));
    module::linear(input, layer.weight.val().cast(dtype), bias)
}

impl Attention {
    fn forward(&self, input: Tensor<3>, sight: Sight) -> Tensor<3> {
        let [count, length, width] = input.dims();
        let projected = linear(&self.in_proj, input);
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
        linear(&self.out_proj, mixed)
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
