//! The vision transformer (Dosovitskiy et al., ICLR 2021), in its original form and in CLIP's.

use burn::module::{Module, Param};
use burn::nn::LayerNorm;
use burn::tensor::{Device, Tensor};

use crate::clip::transformer::{Precision, Sight, Transformer};
use crate::clip::{VitForm, VitShape, Weights, positions};
use crate::graph::Activation;
use crate::ops::{self, Window};

/// A vision transformer: `[N, 3, S, S]` → `[N, D]`.
#[derive(Module, Debug)]
pub struct Vit {
    /// Patches to the residual stream, `[width, 3, patch, patch]`.
    pub patches: Param<Tensor<4>>,
    /// The class token, `[width]`.
    pub class: Param<Tensor<1>>,
    /// `[1 + patches, width]`.
    pub positions: Param<Tensor<2>>,
    /// Ahead of the blocks, in CLIP's form.
    pub norm_pre: Option<LayerNorm>,
    /// The blocks.
    pub transformer: Transformer,
    /// Of the class token behind the blocks.
    pub norm_post: LayerNorm,
    /// `[width, D]`.
    pub projection: Param<Tensor<2>>,
    /// Which of the two kinds it is.
    #[module(skip)]
    pub form: VitForm,
}

impl Vit {
    /// Takes the image side of a model, for images of `size` height and width; its positions are
    /// resampled if it was made for another.
    ///
    /// # Panics
    /// When a tensor is not there.
    pub fn take(weights: &mut Weights, shape: &VitShape, size: usize, device: &Device) -> Self {
        let table = weights.data("visual.positional_embedding");
        let table = positions::resample(table, size / shape.patch);
        let blocks = &shape.transformer;
        Self {
            patches: weights.param("visual.conv1.weight", device),
            class: weights.param("visual.class_embedding", device),
            positions: Param::from_tensor(Tensor::from_data(table, device)),
            norm_pre: (shape.form == VitForm::Clip)
                .then(|| weights.layer_norm("visual.ln_pre", device)),
            transformer: Transformer::take(weights, "visual.transformer", blocks, device),
            norm_post: weights.layer_norm("visual.ln_post", device),
            projection: weights.param("visual.proj", device),
            form: shape.form,
        }
    }

    /// The same network with another arithmetic of its blocks while it trains.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self {
            transformer: self.transformer.with_precision(precision),
            ..self
        }
    }

    /// Width D of the embeddings.
    pub fn dim(&self) -> usize {
        self.projection.val().dims()[1]
    }

    /// The embeddings of a batch: `[N, D]`, not normalised.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let stream = self.embed(images);
        let stream = match &self.norm_pre {
            Some(norm) => norm.forward(stream),
            None => stream,
        };
        let stream = self.transformer.forward(stream, Sight::Full);
        let class = stream.narrow(1, 0, 1).squeeze_dim::<2>(1);
        self.norm_post.forward(class).matmul(self.projection.val())
    }

    /// Class token and patches with their positions: `[N, 1 + patches, width]`.
    fn embed(&self, images: Tensor<4>) -> Tensor<3> {
        let patches = self.patches.val();
        let [width, _, patch, _] = patches.dims();
        let window = Window {
            stride: [patch; 2],
            padding: [0; 4],
            groups: 1,
        };
        let stream = ops::conv2d(images, patches, None, window, Activation::None);
        let [count, _, height, columns] = stream.dims();
        let stream = stream
            .reshape([count, width, height * columns])
            .swap_dims(1, 2);
        let class = self.class.val().reshape([1, 1, width]).repeat_dim(0, count);
        Tensor::cat(vec![class, stream], 1) + self.positions.val().unsqueeze_dim::<3>(0)
    }
}
