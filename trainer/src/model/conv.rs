//! Convolutional image encoders: a small network, global average pooling and a linear head into
//! the width of the text embeddings.
//!
//! [`ConvEncoder::fold`] turns one into plain values.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::layers::{self, ConvUnit, Norm, Padding};
use super::mobilenet::MobileNetV2;
use super::mobileone::{self, MobileOne, Variant};
use crate::graph::{Activation, Conv, ConvNet, Op};

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
    /// A small vision transformer (DeiT-Ti of Touvron et al., ICML 2021): 12 blocks of width 192.
    #[serde(rename = "vit-tiny")]
    VitTiny,
    /// The image tower of a CLIP checkpoint, whose shape and weights it takes.
    #[serde(rename = "clip")]
    Clip,
}

impl Architecture {
    /// Whether it is a small network of convolutions, which has an int8 form.
    pub fn is_convolutional(self) -> bool {
        !matches!(self, Self::VitTiny | Self::Clip)
    }
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
    /// The network is none of convolutions.
    #[error("{0:?} is no convolutional network; expected MobileOne or MobileNetV2")]
    NotConvolutional(Architecture),
}

/// Turns images into embeddings: `[N, 3, H, W]` → `[N, D]`.
#[derive(Module, Debug)]
pub struct ConvEncoder {
    pub(super) features: Features,
    /// `[channels, D]` and `[D]`.
    pub(super) head: Linear,
    #[module(skip)]
    config: EncoderConfig,
}

/// The convolutional part of an encoder.
#[derive(Module, Debug)]
pub(super) enum Features {
    MobileOne(MobileOne),
    MobileNetV2(MobileNetV2),
}

impl EncoderConfig {
    /// An encoder with random values drawn from `seed`.
    ///
    /// # Errors
    /// A field is out of its range.
    pub fn init(&self, seed: u64, device: &Device) -> Result<ConvEncoder, ConfigError> {
        self.check()?;
        Ok(self.build(seed, device))
    }

    pub(super) fn build(&self, seed: u64, device: &Device) -> ConvEncoder {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let features = self.features(&mut rng, device);
        let head = layers::linear(
            [features.channels(), self.embedding],
            true,
            &mut rng,
            device,
        );
        ConvEncoder {
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
            _ if !self.architecture.is_convolutional() => {
                Err(ConfigError::NotConvolutional(self.architecture))
            }
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
        let Some(variant) = self.mobileone() else {
            return Features::MobileNetV2(MobileNetV2::new(width, norm, padding, rng, device));
        };
        let variant = Variant {
            branches: self.branches.unwrap_or(variant.branches),
            ..variant
        };
        Features::MobileOne(MobileOne::new(variant, width, norm, padding, rng, device))
    }

    fn mobileone(&self) -> Option<Variant> {
        match self.architecture {
            Architecture::MobileOneS0 => Some(mobileone::S0),
            Architecture::MobileOneS1 => Some(mobileone::S1),
            Architecture::MobileNetV2 | Architecture::VitTiny | Architecture::Clip => None,
        }
    }
}

impl ConvEncoder {
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
    pub(super) fn units_mut(&mut self) -> Vec<&mut ConvUnit> {
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

fn one() -> f64 {
    1.0
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use burn::module::{ModuleMapper, ModuleVisitor, Param};
    use rand::RngExt;

    /// Moves every value a little, so that no scale is one and no mean zero.
    pub(in crate::model) struct Scramble(pub ChaCha8Rng);

    impl ModuleMapper for Scramble {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let shape = param.lazy_shape().dims::<D>();
            let count = shape.iter().product();
            let noise = (0..count).map(|_| self.0.random_range(-0.3..0.3)).collect();
            param.map(|values| {
                let noise = layers::tensor(noise, shape, &values.device());
                (values * (noise.clone() + 1.0) + noise * 0.3).detach()
            })
        }
    }

    /// An encoder with moved values whose running statistics have seen some data.
    pub(in crate::model) fn used(config: &EncoderConfig) -> ConvEncoder {
        let device = Device::flex().autodiff();
        let encoder = config.init(3, &device).unwrap();
        let encoder = encoder.map(&mut Scramble(ChaCha8Rng::seed_from_u64(5)));
        let images = layers::tensor(picture([64, 128]), [2, 3, 64, 64], &device);
        (0..20).for_each(|_| drop(encoder.forward(images.clone())));
        encoder.valid()
    }

    pub(in crate::model) fn embed(
        encoder: &ConvEncoder,
        image: &[f32],
        size: [usize; 2],
        device: &Device,
    ) -> Vec<f32> {
        let input = layers::tensor(image.to_vec(), [1, 3, size[0], size[1]], device);
        encoder.forward(input).into_data().iter::<f32>().collect()
    }

    pub(in crate::model) fn assert_close(
        got: &[f32],
        expected: &[f32],
        tolerance: f32,
        what: &str,
    ) {
        assert_eq!(got.len(), expected.len(), "{what}");
        let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        for (g, e) in got.iter().zip(expected) {
            assert!(
                (g - e).abs() <= tolerance * largest,
                "{what}: {g}, expected {e}"
            );
        }
    }

    pub(in crate::model) fn picture(size: [usize; 2]) -> Vec<f32> {
        (0..3 * size[0] * size[1])
            .map(|i| (i as f32 * 0.37).sin())
            .collect()
    }

    fn config(text: &str) -> EncoderConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn folding_changes_no_embedding() {
        for text in [
            "architecture = 'mobileone-s0'\nwidth = 0.5",
            "architecture = 'mobileone-s0'\nwidth = 0.25\npadding = 'same'\nbranches = 2",
            "architecture = 'mobileone-s1'\nwidth = 0.25\nnorm = 'folded'",
            "architecture = 'mobilenet-v2'\nwidth = 0.5",
            "architecture = 'mobilenet-v2'\nwidth = 0.35\npadding = 'same'",
            "architecture = 'mobilenet-v2'\nwidth = 0.5\nnorm = 'folded'",
        ] {
            let encoder = used(&config(&format!("{text}\nembedding = 12")));
            for size in [[64, 64], [45, 38]] {
                let (image, net) = (picture(size), encoder.fold(size));
                assert_eq!(net.output_shapes().last(), Some(&[12, 1, 1]));
                let what = format!("{text} at {size:?}");
                // Residual sums of a random network amplify the rounding of single precision.
                let tolerance = if text.contains("mobileone") {
                    1e-5
                } else {
                    5e-5
                };
                let expected = net.forward(&image);
                // With gradients in sight the branches stay apart, without them they are merged.
                for device in [Device::flex(), Device::flex().autodiff()] {
                    let got = embed(&encoder, &image, size, &device);
                    assert_close(&got, &expected, tolerance, &what);
                }
            }
        }
    }

    #[test]
    fn sizes_are_those_of_the_papers() {
        // Multiply-accumulates at 224 px without a classifier: MobileNetV2 300 M (of which the
        // classifier 1.3 M), MobileOne-S0 275 M and S1 825 M (classifier 1.0 and 1.3 M).
        for (architecture, millions) in [
            ("mobilenet-v2", 299.5),
            ("mobileone-s0", 273.5),
            ("mobileone-s1", 823.0),
        ] {
            let text = format!("architecture = '{architecture}'\nembedding = 1\nnorm = 'folded'");
            let encoder = config(&text).init(0, &Device::flex()).unwrap();
            let macs = encoder.fold([224, 224]).macs() as f64 / 1e6;
            assert!((macs - millions).abs() < 1.5, "{architecture}: {macs}");
        }
    }

    #[test]
    fn seeds_decide_all_values() {
        let config = config("architecture = 'mobileone-s0'\nwidth = 0.25\nembedding = 4");
        let fold = |seed| config.init(seed, &Device::flex()).unwrap().fold([32, 32]);
        assert_eq!(fold(1), fold(1));
        assert_ne!(fold(1), fold(2));
    }

    #[test]
    fn threads_change_no_bit() {
        for text in [
            "architecture = 'mobileone-s0'",
            "architecture = 'mobilenet-v2'",
        ] {
            let config = config(&format!("{text}\nwidth = 0.25\nembedding = 4"));
            let step = |threads| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                pool.install(|| gradient_bits(&config))
            };
            assert_eq!(step(1), step(5), "{text}");
        }
    }

    /// The exact gradients of a loss over five images.
    fn gradient_bits(config: &EncoderConfig) -> Vec<Vec<u8>> {
        let device = Device::flex().autodiff();
        let encoder = config.init(0, &device).unwrap();
        let images = layers::tensor(picture([64, 160]), [5, 3, 64, 32], &device);
        let grads = encoder.forward(images).powf_scalar(2.0).sum().backward();
        let mut bits = Gradients {
            grads,
            bits: Vec::new(),
        };
        encoder.visit(&mut bits);
        bits.bits
    }

    struct Gradients {
        grads: burn::tensor::Gradients,
        bits: Vec<Vec<u8>>,
    }

    impl ModuleVisitor for Gradients {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let gradient = param.val().grad(&self.grads);
            self.bits
                .extend(gradient.map(|g| g.into_data().as_bytes().to_vec()));
        }
    }

    #[test]
    fn training_reaches_every_parameter() {
        for (text, units) in [
            // Stem of one branch and a scale; 21 pairs of two branches, a scale for the depthwise.
            ("architecture = 'mobileone-s0'\nbranches = 2", 2 + 21 * 5),
            ("architecture = 'mobilenet-v2'", 52),
        ] {
            let config = config(&format!("{text}\nwidth = 0.25\nembedding = 4"));
            // Kernel, scale and offset of each unit, scale and offset of the skips, the head.
            let skips = match config.architecture {
                Architecture::MobileNetV2 => 0,
                _ => 17 + 18,
            };
            assert_eq!(
                gradient_bits(&config).len(),
                3 * units + 2 * skips + 2,
                "{text}"
            );
        }
    }

    #[test]
    fn bad_configurations_are_refused() {
        let base = EncoderConfig {
            architecture: Architecture::MobileOneS0,
            width: 1.0,
            embedding: 8,
            padding: Padding::Symmetric,
            norm: Norm::Batch,
            branches: None,
        };
        let folded = EncoderConfig {
            norm: Norm::Folded,
            branches: Some(2),
            ..base.clone()
        };
        for (config, message) in [
            (
                EncoderConfig {
                    width: 0.0,
                    ..base.clone()
                },
                "width is 0",
            ),
            (
                EncoderConfig {
                    width: f64::NAN,
                    ..base.clone()
                },
                "width is NaN",
            ),
            (
                EncoderConfig {
                    embedding: 0,
                    ..base.clone()
                },
                "embedding is 0",
            ),
            (
                EncoderConfig {
                    branches: Some(0),
                    ..base.clone()
                },
                "branches is 0",
            ),
            (folded, "only MobileOne"),
        ] {
            let error = config.init(0, &Device::flex()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        assert!(toml::from_str::<EncoderConfig>("architecture = 'resnet'\nembedding = 1").is_err());
    }
}
