//! Image encoders as trainable modules.
//!
//! An [`ImageEncoder`] is a small convolutional network, global average pooling and a linear head
//! into the width of the text embeddings. [`ImageEncoder::fold`] turns it into plain values.

use burn::module::Module;
use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::graph::{Activation, Conv, ConvNet, Op};
use layers::ConvUnit;
pub use layers::{Norm, Padding};
use mobilenet::MobileNetV2;
use mobileone::{MobileOne, Variant};

pub mod head;
pub mod layers;
pub mod mobilenet;
pub mod mobileone;
pub mod numclip;
pub mod weights;

/// Which image encoder, and how wide.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
    /// The network.
    pub architecture: Architecture,
    /// Multiplies all channel counts (rounded to multiples of 8). Pretrained files need 1.
    #[serde(default = "one")]
    pub width: f64,
    /// Width of the embedding: that of the text embeddings.
    pub embedding: usize,
    /// Where strided convolutions put their zeros.
    #[serde(default)]
    pub padding: Padding,
    /// Batch normalisation, or none because it is folded in already.
    #[serde(default)]
    pub norm: Norm,
    /// Convolution branches of a MobileOne block while training; the variant's own number if
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branches: Option<usize>,
}

/// The networks to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Architecture {
    /// MobileOne-S0: a plain chain once folded, the fastest in int8.
    #[serde(rename = "mobileone-s0")]
    MobileOneS0,
    /// MobileOne-S1: three times the work of S0.
    #[serde(rename = "mobileone-s1")]
    MobileOneS1,
    /// MobileNetV2, with residual additions.
    #[serde(rename = "mobilenet-v2")]
    MobileNetV2,
}

/// An encoder configuration that describes no network.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ConfigError {
    /// The width multiplier is not usable.
    #[error("encoder width is {0}, expected a number above 0 and up to 8")]
    Width(f64),
    /// The embedding has no values.
    #[error(
        "encoder embedding is 0, expected the width of the text embeddings (512 for CLIP B/32)"
    )]
    Embedding,
    /// The number of branches is not usable.
    #[error("encoder branches is {0}, expected 1 to 16")]
    Branches(usize),
    /// Branches were given for a network that has none.
    #[error(
        "encoder branches is set, but only MobileOne with norm = \"batch\" has branches; remove it"
    )]
    NoBranches,
}

/// Turns images into embeddings: `[N, 3, H, W]` → `[N, D]`.
#[derive(Module, Debug)]
pub struct ImageEncoder {
    features: Features,
    /// `[channels, D]` and `[D]`.
    head: Linear,
    #[module(skip)]
    config: EncoderConfig,
}

/// The convolutional part of an encoder.
#[derive(Module, Debug)]
enum Features {
    MobileOne(MobileOne),
    MobileNetV2(MobileNetV2),
}

impl EncoderConfig {
    /// An encoder with random values drawn from `seed`.
    ///
    /// # Errors
    /// A field is out of its range.
    pub fn init(&self, seed: u64, device: &Device) -> Result<ImageEncoder, ConfigError> {
        self.check()?;
        Ok(self.build(seed, device))
    }

    fn build(&self, seed: u64, device: &Device) -> ImageEncoder {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let features = self.features(&mut rng, device);
        let head = head(features.channels(), self.embedding, &mut rng, device);
        ImageEncoder {
            features,
            head,
            config: self.clone(),
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let has_branches =
            self.norm == Norm::Batch && self.architecture != Architecture::MobileNetV2;
        match self.branches {
            _ if !(self.width > 0.0 && self.width <= 8.0) => Err(ConfigError::Width(self.width)),
            _ if self.embedding == 0 => Err(ConfigError::Embedding),
            Some(_) if !has_branches => Err(ConfigError::NoBranches),
            Some(branches) if !(1..=16).contains(&branches) => Err(ConfigError::Branches(branches)),
            _ => Ok(()),
        }
    }

    fn features(&self, rng: &mut impl Rng, device: &Device) -> Features {
        let &Self {
            width,
            norm,
            padding,
            ..
        } = self;
        let mut mobileone = |variant: Variant| {
            let branches = self.branches.unwrap_or(variant.branches);
            let variant = Variant {
                branches,
                ..variant
            };
            Features::MobileOne(MobileOne::new(
                variant, width, norm, padding, &mut *rng, device,
            ))
        };
        match self.architecture {
            Architecture::MobileOneS0 => mobileone(mobileone::S0),
            Architecture::MobileOneS1 => mobileone(mobileone::S1),
            Architecture::MobileNetV2 => {
                Features::MobileNetV2(MobileNetV2::new(width, norm, padding, rng, device))
            }
        }
    }
}

impl ImageEncoder {
    /// What the encoder was made from.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// The embeddings of a batch `[N, 3, H, W]`: `[N, D]`, not normalised.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = match &self.features {
            Features::MobileOne(net) => net.forward(images),
            Features::MobileNetV2(net) => net.forward(images),
        };
        let [n, channels, height, width] = x.dims();
        let pooled = x.reshape([n, channels, height * width]).mean_dim(2);
        self.head.forward(pooled.reshape([n, channels]))
    }

    /// The encoder in its evaluation form as plain values, for images of `size` height and width.
    pub fn fold(&self, size: [usize; 2]) -> ConvNet {
        let mut net = ConvNet {
            input: [3, size[0], size[1]],
            nodes: Vec::new(),
        };
        let x = match &self.features {
            Features::MobileOne(features) => features.fold(&mut net),
            Features::MobileNetV2(features) => features.fold(&mut net),
        };
        let pooled = net.push("pool", Op::GlobalAveragePool, vec![x]);
        net.push("head", Op::Conv(self.fold_head()), vec![pooled]);
        net
    }

    /// The units of a folded encoder in network order.
    fn units_mut(&mut self) -> Vec<&mut ConvUnit> {
        match &mut self.features {
            Features::MobileOne(net) => net
                .blocks_mut()
                .into_iter()
                .flat_map(|(_, block)| &mut block.branches)
                .collect(),
            Features::MobileNetV2(net) => net.units_mut(),
        }
    }

    /// The head as a 1×1 convolution.
    fn fold_head(&self) -> Conv {
        let weight = self.head.weight.val();
        let [channels, embedding] = weight.dims();
        let single = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect();
        let bias = self
            .head
            .bias
            .as_ref()
            .map(|bias| layers::values(bias.val()));
        Conv {
            weight: single(layers::values(weight.transpose())),
            shape: [embedding, channels, 1, 1],
            bias: single(bias.unwrap_or_else(|| vec![0.0; embedding])),
            stride: [1, 1],
            padding: [0; 4],
            groups: 1,
            activation: Activation::None,
        }
    }
}

impl Features {
    fn channels(&self) -> usize {
        match self {
            Self::MobileOne(net) => net.channels(),
            Self::MobileNetV2(net) => net.channels(),
        }
    }
}

/// A linear layer with values uniform within ±1/√inputs.
fn head(inputs: usize, outputs: usize, rng: &mut impl Rng, device: &Device) -> Linear {
    let bound = (inputs as f32).sqrt().recip();
    let mut draw = |n: usize| (0..n).map(|_| rng.random_range(-bound..bound)).collect();
    Linear {
        weight: Param::from_tensor(layers::tensor(
            draw(inputs * outputs),
            [inputs, outputs],
            device,
        )),
        bias: Some(Param::from_tensor(layers::tensor(
            draw(outputs),
            [outputs],
            device,
        ))),
    }
}

fn one() -> f64 {
    1.0
}
