//! The residual network of CLIP: three convolutions for a stem, average pooling ahead of every
//! strided step, attention pooling at the end.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::activation::relu;
use burn::tensor::module::{attention, avg_pool2d};
use burn::tensor::ops::{AttentionModuleOptions, AvgPoolOptions};
use burn::tensor::{Device, Tensor};

use super::layers::{ConvUnit, Geometry, Padding};
use crate::clip::transformer::split_heads;
use crate::clip::{ResNetShape, Weights, positions};
use crate::graph::Activation;

/// A residual network: `[N, 3, S, S]` → `[N, D]`.
#[derive(Module, Debug)]
pub struct ResNet {
    /// The three first convolutions; a pool of 2 follows.
    pub stem: Vec<ConvUnit>,
    /// The blocks of all stages.
    pub blocks: Vec<Bottleneck>,
    /// From the last feature map to the embedding.
    pub pool: AttentionPool,
}

/// Three convolutions around which the input is added.
#[derive(Module, Debug)]
pub struct Bottleneck {
    /// 1×1, to fewer channels.
    pub reduce: ConvUnit,
    /// 3×3; a pool of `stride` follows.
    pub conv: ConvUnit,
    /// 1×1, to more channels.
    pub expand: ConvUnit,
    /// 1×1 behind a pool of `stride`, on the way around; none if the input is added as it is.
    pub skip: Option<ConvUnit>,
    /// By how much the block shrinks height and width.
    #[module(skip)]
    pub stride: usize,
}

/// The mean of all positions asks all of them and itself.
#[derive(Module, Debug)]
pub struct AttentionPool {
    /// `[1 + positions, width]`.
    pub positions: Param<Tensor<2>>,
    /// Of the mean.
    pub query: Linear,
    /// Of mean and positions.
    pub key: Linear,
    /// Of mean and positions.
    pub value: Linear,
    /// To the embedding.
    pub projection: Linear,
    /// Number of heads.
    #[module(skip)]
    pub heads: usize,
}

impl ResNet {
    /// Takes the image side of a model, for images of `size` height and width; its positions are
    /// resampled if it was made for another.
    ///
    /// # Panics
    /// When a tensor is not there.
    pub fn take(weights: &mut Weights, shape: &ResNetShape, size: usize, device: &Device) -> Self {
        let width = shape.width;
        let stem = [
            (3, width / 2, 2),
            (width / 2, width / 2, 1),
            (width / 2, width, 1),
        ];
        let stem = (1..).zip(stem).map(|(number, (inputs, outputs, stride))| {
            let geometry = Geometry::dense(inputs, outputs, stride, Padding::Symmetric);
            let names = [format!("visual.conv{number}"), format!("visual.bn{number}")];
            unit(weights, names, geometry, Activation::Relu, device)
        });
        let stem = stem.collect();
        let mut blocks = Vec::new();
        let mut inputs = width;
        for (stage, count) in shape.stages.into_iter().enumerate() {
            let planes = width << stage;
            for block in 0..count {
                let name = format!("visual.layer{}.{block}", stage + 1);
                let stride = if block == 0 && stage > 0 { 2 } else { 1 };
                let channels = [inputs, planes];
                blocks.push(Bottleneck::take(
                    weights,
                    &name,
                    channels,
                    stride,
                    block == 0,
                    device,
                ));
                inputs = 4 * planes;
            }
        }
        Self {
            stem,
            blocks,
            pool: AttentionPool::take(weights, shape.heads, size / 32, device),
        }
    }

    /// Width D of the embeddings.
    pub fn dim(&self) -> usize {
        self.pool.projection.weight.val().dims()[1]
    }

    /// The embeddings of a batch: `[N, D]`, not normalised.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let stem = self.stem.iter().fold(images, |x, unit| unit.forward(x));
        let blocks = self.blocks.iter();
        self.pool
            .forward(blocks.fold(shrink(stem, 2), |x, block| block.forward(x)))
    }
}

impl Bottleneck {
    fn take(
        weights: &mut Weights,
        name: &str,
        [inputs, planes]: [usize; 2],
        stride: usize,
        first: bool,
        device: &Device,
    ) -> Self {
        let mut unit = |conv: &str, norm: &str, geometry, activation| {
            let names = [conv, norm].map(|part| format!("{name}.{part}"));
            unit(weights, names, geometry, activation, device)
        };
        let dense = Geometry::dense(planes, planes, 1, Padding::Symmetric);
        let [reduce, expand] =
            [[inputs, planes], [planes, 4 * planes]].map(|[i, o]| Geometry::pointwise(i, o));
        let skip = Geometry::pointwise(inputs, 4 * planes);
        Self {
            reduce: unit("conv1", "bn1", reduce, Activation::Relu),
            conv: unit("conv2", "bn2", dense, Activation::Relu),
            expand: unit("conv3", "bn3", expand, Activation::None),
            skip: first.then(|| unit("downsample.0", "downsample.1", skip, Activation::None)),
            stride,
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = self.conv.forward(self.reduce.forward(x.clone()));
        let y = self.expand.forward(shrink(y, self.stride));
        let x = match &self.skip {
            Some(unit) => unit.forward(shrink(x, self.stride)),
            None => x,
        };
        relu(x + y)
    }
}

impl AttentionPool {
    fn take(weights: &mut Weights, heads: usize, grid: usize, device: &Device) -> Self {
        let table = weights.data("visual.attnpool.positional_embedding");
        let table = positions::resample(table, grid);
        let mut linear = |part: &str| {
            let [weight, bias] =
                ["weight", "bias"].map(|kind| format!("visual.attnpool.{part}_proj.{kind}"));
            weights.linear(&weight, &bias, device)
        };
        Self {
            positions: Param::from_tensor(Tensor::from_data(table, device)),
            query: linear("q"),
            key: linear("k"),
            value: linear("v"),
            projection: linear("c"),
            heads,
        }
    }

    /// `[N, C, H, W]` → `[N, D]`.
    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let [count, channels, height, width] = x.dims();
        let places = x.reshape([count, channels, height * width]).swap_dims(1, 2);
        let places = Tensor::cat(vec![places.clone().mean_dim(1), places], 1);
        let places = places + self.positions.val().unsqueeze_dim::<3>(0);
        let query = self.query.forward(places.clone().narrow(1, 0, 1));
        let (key, value) = (self.key.forward(places.clone()), self.value.forward(places));
        let [query, key, value] = [query, key, value].map(|part| split_heads(part, self.heads));
        let options = AttentionModuleOptions::default();
        let mixed = attention(query, key, value, None, None, options);
        self.projection
            .forward(mixed.swap_dims(1, 2).reshape([count, channels]))
    }
}

fn unit(
    weights: &mut Weights,
    [conv, norm]: [String; 2],
    geometry: Geometry,
    activation: Activation,
    device: &Device,
) -> ConvUnit {
    let weight = weights.param(&format!("{conv}.weight"), device);
    ConvUnit::normalised(
        weight,
        weights.batch_norm(&norm, device),
        geometry,
        activation,
    )
}

/// Averages squares of `step` × `step`.
fn shrink(x: Tensor<4>, step: usize) -> Tensor<4> {
    match step {
        1 => x,
        _ => avg_pool2d(x, AvgPoolOptions::new([step; 2])),
    }
}
