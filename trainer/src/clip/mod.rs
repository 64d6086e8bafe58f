//! CLIP models (Radford et al., "Learning Transferable Visual Models From Natural Language
//! Supervision", ICML 2021): what their files hold, and the transformer both sides share.
//!
//! ```text
//! Checkpoint → names of one scheme → shapes → layout (every tensor) → Weights → modules
//! ```
//!
//! Names are OpenAI's throughout (`visual.conv1.weight`, `transformer.resblocks.0.ln_1.bias`, …);
//! other schemes are translated where a file is read.

mod file;
mod hints;
mod layout;
mod names;
pub mod positions;
pub mod transformer;

use serde::{Deserialize, Serialize};

pub use file::{ClipFile, Finding, Side};
pub use hints::Hints;
pub use layout::{Entry, Init, Weights, image_layout, random, text_layout};
pub use names::Scheme;

/// Nonlinearity of the transformer blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `x · sigmoid(1.702 · x)`: OpenAI's models.
    #[default]
    QuickGelu,
    /// `x · Φ(x)`: most OpenCLIP models.
    Gelu,
}

/// A stack of transformer blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TransformerShape {
    /// Width of the residual stream.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Attention heads; divides the width.
    pub heads: usize,
    /// Width inside a block's feed-forward part.
    pub mlp: usize,
    /// Nonlinearity of the feed-forward part.
    pub activation: Activation,
}

/// The text side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TextShape {
    /// Number of tokens it knows.
    pub vocabulary: usize,
    /// Number of positions: the longest text in tokens.
    pub context_length: usize,
    /// Its blocks.
    pub transformer: TransformerShape,
    /// Width of the result.
    pub embedding: usize,
}

/// The image side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ImageShape {
    /// A vision transformer.
    Vit(VitShape),
    /// A residual network with attention pooling.
    ResNet(ResNetShape),
}

/// A vision transformer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VitShape {
    /// Height and width of the images it was made for.
    pub image: usize,
    /// Height and width of a patch.
    pub patch: usize,
    /// Its blocks.
    pub transformer: TransformerShape,
    /// Width of the result.
    pub embedding: usize,
    /// Which of the two kinds it is.
    pub form: VitForm,
}

/// What sets vision transformers apart beside their sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VitForm {
    /// CLIP's: a layer norm ahead of the blocks; ε of the norms is 1e-5.
    #[default]
    Clip,
    /// The original (Dosovitskiy et al., ICLR 2021), as timm has it: no norm ahead of the blocks;
    /// ε is 1e-6.
    Plain,
}

impl VitForm {
    /// ε of the layer norms.
    pub fn epsilon(self) -> f64 {
        match self {
            Self::Clip => 1e-5,
            Self::Plain => 1e-6,
        }
    }
}

/// CLIP's residual network: a stem of three convolutions, average pooling ahead of every strided
/// step, attention pooling at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResNetShape {
    /// Height and width of the images it was made for.
    pub image: usize,
    /// Channels behind the stem; the last stage has 32 times as many.
    pub width: usize,
    /// Blocks of the four stages.
    pub stages: [usize; 4],
    /// Heads of the attention pool.
    pub heads: usize,
    /// Width of the result.
    pub embedding: usize,
}

impl ImageShape {
    /// Height and width of the images it was made for.
    pub fn image(&self) -> usize {
        match self {
            Self::Vit(shape) => shape.image,
            Self::ResNet(shape) => shape.image,
        }
    }

    /// Pixels along each side that one position of the position embedding stands for.
    pub fn step(&self) -> usize {
        match self {
            Self::Vit(shape) => shape.patch,
            Self::ResNet(_) => RESNET_STEP,
        }
    }

    /// Width of the result.
    pub fn embedding(&self) -> usize {
        match self {
            Self::Vit(shape) => shape.embedding,
            Self::ResNet(shape) => shape.embedding,
        }
    }
}

/// By how much a residual network shrinks an image along each side.
const RESNET_STEP: usize = 32;
