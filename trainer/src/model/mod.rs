//! Image encoders as trainable modules.
//!
//! Small convolutional networks and a small transformer for devices, and the image towers of CLIP.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use thiserror::Error;

use crate::checkpoint::{CheckpointError, CheckpointErrorKind};
use crate::clip::{ClipFile, ImageShape};
use crate::graph::ConvNet;
pub use conv::{Architecture, ConfigError, ConvEncoder, EncoderConfig};
pub use layers::{Norm, Padding};
use resnet::ResNet;
use vit::Vit;

pub mod layers;
pub mod mobilenet;
pub mod mobileone;
pub mod conv;
pub mod names;
pub mod weights;
pub mod resnet;
pub mod vit;
pub mod tiny;
pub mod head;
pub mod numclip;

/// Turns images into embeddings: `[N, 3, H, W]` → `[N, D]`.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "a model has one")]
pub enum ImageEncoder {
    /// A small convolutional network.
    Conv(ConvEncoder),
    /// A vision transformer: CLIP's or a small one.
    Vit(Vit),
    /// CLIP's residual network.
    ResNet(ResNet),
}

/// The encoder is no network of convolutions that folds into a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "a residual image tower of CLIP has no int8 form: export it with --precision f32, or \
     train MobileOne or MobileNetV2 as a student of this run ([teacher] run)"
)]
pub struct NotConvolutional;

impl ImageEncoder {
    /// The image side of a CLIP model, for images of `size` height and width.
    ///
    /// # Errors
    /// The file has no image side, its tensors do not fit, or `size` is not a multiple of the
    /// encoder's step (patch, or 32 pixels).
    pub fn clip(file: &ClipFile, size: usize, device: &Device) -> Result<Self, CheckpointError> {
        let (shape, mut weights) = file.image_weights()?;
        let step = shape.step();
        if size == 0 || !size.is_multiple_of(step) {
            let problem = format!(
                "the image tower divides images into squares of {step} px, which {size} px do not \
                 fit; set preprocess.size to a multiple of {step}"
            );
            let kind = CheckpointErrorKind::Model(problem);
            return Err(file.checkpoint().error(kind));
        }
        Ok(match shape {
            ImageShape::Vit(shape) => Self::Vit(Vit::take(&mut weights, &shape, size, device)),
            ImageShape::ResNet(shape) => {
                Self::ResNet(ResNet::take(&mut weights, &shape, size, device))
            }
        })
    }

    /// The embeddings of a batch `[N, 3, H, W]`: `[N, D]`, not normalised.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        match self {
            Self::Conv(encoder) => encoder.forward(images),
            Self::Vit(encoder) => encoder.forward(images),
            Self::ResNet(encoder) => encoder.forward(images),
        }
    }

    /// Width D of the embeddings.
    pub fn dim(&self) -> usize {
        match self {
            Self::Conv(encoder) => encoder.config().embedding,
            Self::Vit(encoder) => encoder.dim(),
            Self::ResNet(encoder) => encoder.dim(),
        }
    }

    /// The encoder in its evaluation form as plain values, for images of `size` height and width.
    ///
    /// # Errors
    /// The encoder is a transformer or a tower of CLIP.
    pub fn fold(&self, size: [usize; 2]) -> Result<ConvNet, NotConvolutional> {
        match self {
            Self::Conv(encoder) => Ok(encoder.fold(size)),
            Self::Vit(_) | Self::ResNet(_) => Err(NotConvolutional),
        }
    }
}

impl From<ConvEncoder> for ImageEncoder {
    fn from(encoder: ConvEncoder) -> Self {
        Self::Conv(encoder)
    }
}

impl From<Vit> for ImageEncoder {
    fn from(encoder: Vit) -> Self {
        Self::Vit(encoder)
    }
}

#[cfg(test)]
mod tests;
