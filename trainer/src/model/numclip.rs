//! The whole trainable model: encoder, adapter, match against the bins, regressor.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use numclip::bins::Bin;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::head::{Adapter, AdapterWeights, Expectation, Regressor, Ssr, cosine_logits};
use super::{ImageEncoder, NotConvolutional};
use crate::graph::{Activation, Conv, ConvNet, Op, Value};
use crate::text::TextSide;

/// NumCLIP: images on one side, the bins' words on the other, a number from their match.
#[derive(Module, Debug)]
pub struct NumClip {
    encoder: ImageEncoder,
    adapter: Option<Adapter>,
    regressor: Regressor,
    text: TextSide,
    #[module(skip)]
    logit_scale: f64,
}

/// What stands between the encoder and the number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeadConfig {
    /// Scale of the cosines ahead of the softmax over bins; CLIP's own is 100.
    pub logit_scale: f64,
    /// An adapter behind the encoder; none if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterConfig>,
    /// How bin logits become a number.
    pub regressor: RegressorConfig,
}

/// A bottleneck mixed into the image feature.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdapterConfig {
    /// Divisor of the embedding width that gives the bottleneck's.
    pub reduction: usize,
    /// Share of the adapter in the mix, 0 to 1.
    pub ratio: f64,
}

/// The regressors to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RegressorConfig {
    /// The mean of the bin centres.
    Expectation,
    /// Bin starts with learned shifts.
    Ssr {
        /// Reach of a shift, 0 to 1; 1 is the published form.
        #[serde(default = "one")]
        lambda: f64,
    },
}

/// What a batch of N images gives over M bins.
pub struct Output {
    /// `[N, D]`: the image features, not normalised.
    pub embeddings: Tensor<2>,
    /// `[N, M]`: cosine times logit scale.
    pub logits: Tensor<2>,
    /// `[N]`: the regressed value, in the unit of the labels.
    pub values: Tensor<1>,
}

impl Output {
    /// What the first `count` images give.
    pub fn first(&self, count: usize) -> Self {
        Self {
            embeddings: self.embeddings.clone().narrow(0, 0, count),
            logits: self.logits.clone().narrow(0, 0, count),
            values: self.values.clone().narrow(0, 0, count),
        }
    }
}

impl Default for HeadConfig {
    fn default() -> Self {
        Self {
            logit_scale: 100.0,
            adapter: None,
            regressor: RegressorConfig::Ssr { lambda: one() },
        }
    }
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            reduction: 4,
            ratio: 0.8,
        }
    }
}

fn one() -> f64 {
    1.0
}

impl HeadConfig {
    /// The model around `encoder` and `text` for a task with these bins; the
    /// head's values are drawn from `seed`.
    pub fn build(
        &self,
        encoder: ImageEncoder,
        text: TextSide,
        bins: &[Bin],
        seed: u64,
        device: &Device,
    ) -> NumClip {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let dim = encoder.dim();
        let adapter = self
            .adapter
            .map(|adapter| Adapter::new(dim, adapter.reduction, adapter.ratio, rng, device));
        let regressor = match self.regressor {
            RegressorConfig::Expectation => {
                Regressor::Expectation(Expectation::new(bins.iter().map(Bin::center).collect()))
            }
            RegressorConfig::Ssr { lambda } => Regressor::Ssr(Ssr::new(
                bins.iter().map(|bin| bin.start).collect(),
                lambda,
                rng,
                device,
            )),
        };
        NumClip {
            encoder,
            adapter,
            regressor,
            text,
            logit_scale: self.logit_scale,
        }
    }
}

impl NumClip {
    /// The image features of a batch `[N, 3, H, W]`: `[N, D]`, not normalised.
    pub fn embed(&self, images: Tensor<4>) -> Tensor<2> {
        let embedding = self.encoder.forward(images);
        match &self.adapter {
            Some(adapter) => adapter.forward(embedding),
            None => embedding,
        }
    }

    /// The side of the bins.
    pub fn text(&self) -> &TextSide {
        &self.text
    }

    /// Logits and values of a batch `[N, 3, H, W]` against the bins.
    pub fn forward(&self, images: Tensor<4>) -> Output {
        let embeddings = self.embed(images);
        let bins = self.text.bins();
        let logits = cosine_logits(embeddings.clone(), bins, self.logit_scale);
        Output {
            embeddings,
            values: self.regressor.forward(logits.clone()),
            logits,
        }
    }

    /// The parameters of this model on another device, on which `like` was built: what does not
    /// learn is taken from there.
    pub fn copy_to(&self, device: &Device, like: &Self) -> Self {
        let mut copy = self.clone().fork(device);
        copy.text = copy.text.beside(&like.text);
        copy
    }

    /// Encoder and adapter in their evaluation form, for square images of `size`.
    ///
    /// The adapter's mix is scaled so that the original feature keeps its
    /// weight: a factor on the whole embedding does not change a cosine.
    ///
    /// # Errors
    /// The encoder is a transformer or a tower of CLIP.
    pub fn fold(&self, size: usize) -> Result<ConvNet, NotConvolutional> {
        let mut net = self.encoder.fold([size, size])?;
        if let Some(adapter) = &self.adapter {
            let embedding = Value::Node(net.nodes.len().saturating_sub(1));
            fold_adapter(&mut net, embedding, &adapter.to_plain());
        }
        Ok(net)
    }

    /// The image encoder.
    pub fn encoder(&self) -> &ImageEncoder {
        &self.encoder
    }

    /// The adapter alone, over embeddings `[D, 1, 1]`, scaled as in [`fold`](Self::fold).
    pub fn folded_adapter(&self) -> Option<ConvNet> {
        let adapter = self.adapter.as_ref()?;
        let mut net = ConvNet {
            input: [self.encoder.dim(), 1, 1],
            nodes: Vec::new(),
        };
        fold_adapter(&mut net, Value::Image, &adapter.to_plain());
        Some(net)
    }

    /// The regressor as the runtime holds it.
    pub fn plain_regressor(&self) -> numclip::estimate::Regressor {
        match &self.regressor {
            Regressor::Expectation(expectation) => numclip::estimate::Regressor::Expectation {
                values: expectation.to_plain(),
            },
            Regressor::Ssr(ssr) => {
                let plain = ssr.to_plain();
                numclip::estimate::Regressor::Ssr {
                    starts: plain.starts,
                    lambda: plain.lambda,
                    hidden_weight: plain.hidden_weight,
                    hidden_bias: plain.hidden_bias,
                    shift_weight: plain.offset_weight,
                    shift_bias: plain.offset_bias,
                }
            }
        }
    }
}

fn fold_adapter(net: &mut ConvNet, embedding: Value, adapter: &AdapterWeights) {
    let [dim, ..] = net.shape(embedding);
    let bottleneck = adapter.down.len() / dim;
    let share = if adapter.ratio < 1.0 {
        adapter.ratio / (1.0 - adapter.ratio)
    } else {
        1.0
    };
    let up: Vec<f32> = adapter.up.iter().map(|weight| weight * share).collect();
    let down = linear(adapter.down.clone(), [bottleneck, dim]);
    let down = net.push("adapter.down", Op::Conv(down), vec![embedding]);
    let up = net.push(
        "adapter.up",
        Op::Conv(linear(up, [dim, bottleneck])),
        vec![down],
    );
    if adapter.ratio < 1.0 {
        net.push("adapter.mix", Op::Add, vec![embedding, up]);
    }
}

fn linear(weight: Vec<f32>, [outputs, inputs]: [usize; 2]) -> Conv {
    Conv {
        weight,
        shape: [outputs, inputs, 1, 1],
        bias: vec![0.0; outputs],
        stride: [1, 1],
        padding: [0; 4],
        groups: 1,
        activation: Activation::Relu,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Architecture, EncoderConfig, Norm, Padding};
    use crate::text::{BinEmbeddings, TextSource};
    use burn::tensor::TensorData;

    fn encoder(device: &Device) -> ImageEncoder {
        let config = EncoderConfig {
            architecture: Architecture::MobileNetV2,
            width: 0.25,
            embedding: 16,
            padding: Padding::default(),
            norm: Norm::Folded,
            branches: None,
        };
        config.init(3, device).unwrap().into()
    }

    fn text(device: &Device) -> TextSide {
        let embeddings = BinEmbeddings {
            labels: ["0", "1", "2"].map(String::from).to_vec(),
            dim: 16,
            values: vec![0.25; 48],
            source: TextSource::Embeddings {
                file: String::new(),
                sha256: String::new(),
                model: None,
            },
        };
        TextSide::frozen(&embeddings, device)
    }

    #[test]
    fn the_folded_adapter_points_the_same_way() {
        let device = Device::flex();
        let bins: Vec<Bin> = (0..3)
            .map(|i| Bin {
                label: i.to_string(),
                start: i as f32,
                end: i as f32,
            })
            .collect();
        let image: Vec<f32> = (0..3 * 32 * 32).map(|i| (i as f32 * 0.37).sin()).collect();
        for ratio in [0.2, 0.8, 1.0] {
            let adapter = Some(AdapterConfig {
                reduction: 2,
                ratio,
            });
            let model = HeadConfig {
                adapter,
                ..HeadConfig::default()
            }
            .build(encoder(&device), text(&device), &bins, 0, &device);
            let tensor = Tensor::from_data(TensorData::new(image.clone(), [1, 3, 32, 32]), &device);
            let expected: Vec<f32> = model.embed(tensor).into_data_as::<f32>().iter().collect();
            let folded = model.fold(32).unwrap().forward(&image);
            assert!(
                ::numclip::verify::cosine(&expected, &folded) > 0.99999,
                "ratio {ratio}"
            );
        }
    }
}
