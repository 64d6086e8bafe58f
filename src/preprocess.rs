//! From a frame to the encoder's input, by one plan that trainer, calibration
//! and device share.
//!
//! Two steps: [`Preprocessor::fit`] resizes and crops on 8-bit pixels, then
//! [`Plan::normalize`] scales them into a planar float tensor. The plan
//! travels in the bundle, so no call site holds a mean or a size of its own.

mod fit;
mod resample;

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use fit::Preprocessor;

use crate::frame::Frame;

/// The largest side that a plan may ask for.
pub const MAX_SIZE: u32 = 4096;

/// What is done to a frame before it is encoded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Side of the square encoder input in pixels, 1 to [`MAX_SIZE`].
    pub size: u32,
    /// How the frame is brought to that size.
    #[serde(default)]
    pub resize: Resize,
    /// The resampling filter.
    #[serde(default)]
    pub filter: Filter,
    /// Whether the filter widens with the reduction, so that every pixel of the
    /// frame counts, as in PIL; OpenCV and `torch.nn.functional.interpolate`
    /// do without unless told.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub antialias: bool,
    /// Channel order of the tensor.
    #[serde(default)]
    pub channels: Channels,
    /// Per channel, in the order of `channels`, subtracted from pixels scaled to 0..1.
    pub mean: [f32; 3],
    /// Per channel, in the order of `channels`, the divisor after `mean`; positive.
    pub std: [f32; 3],
}

/// How a frame of any shape becomes a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Resize {
    /// Shorter side to `to` pixels, longer side in proportion, then the centre.
    ShorterSide {
        /// Pixels of the shorter side before the crop: the size, if absent,
        /// and never less.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<u32>,
    },
    /// Both sides to the size; the proportions are not kept.
    Stretch,
    /// Longer side to the size, the rest filled with one grey level.
    Letterbox {
        /// Level of the fill, 0 to 255.
        fill: u8,
    },
}

impl Default for Resize {
    fn default() -> Self {
        Self::ShorterSide { to: None }
    }
}

/// Resampling filters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// Cubic convolution with a = −0.5, as PIL's `BICUBIC` and CLIP use.
    #[default]
    Bicubic,
    /// Triangle filter.
    Bilinear,
    /// Windowed sinc of three lobes.
    Lanczos,
    /// Nearest neighbour, no antialias.
    Nearest,
}

/// Channel order of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Channels {
    /// Red first.
    #[default]
    Rgb,
    /// Blue first, as networks trained on OpenCV input expect.
    Bgr,
}

/// A plan that cannot be carried out.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("preprocess.{field}: expected {expected}, got {got}")]
pub struct PlanError {
    /// The field of the plan.
    pub field: &'static str,
    /// What may stand there.
    pub expected: String,
    /// What stands there.
    pub got: String,
}

impl Plan {
    /// CLIP's preprocessing: shorter side by bicubic, centre crop, CLIP's own
    /// mean and standard deviation (Radford et al., 2021, reference code).
    pub fn clip(size: u32) -> Self {
        Self {
            size,
            resize: Resize::default(),
            filter: Filter::Bicubic,
            antialias: true,
            channels: Channels::Rgb,
            mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
        }
    }

    /// Checks every field; a plan that passes can be carried out on any frame.
    ///
    /// # Errors
    /// [`PlanError`] names the first field that does not fit.
    pub fn check(&self) -> Result<(), PlanError> {
        let fail = |field, expected: String, got: String| {
            Err(PlanError {
                field,
                expected,
                got,
            })
        };
        if self.size == 0 || self.size > MAX_SIZE {
            return fail("size", format!("1 to {MAX_SIZE}"), self.size.to_string());
        }
        if let Resize::ShorterSide { to: Some(to) } = self.resize
            && (to < self.size || to > MAX_SIZE)
        {
            return fail(
                "resize.to",
                format!("{} (the size) to {MAX_SIZE}", self.size),
                to.to_string(),
            );
        }
        if !self.mean.iter().all(|mean| mean.is_finite()) {
            return fail(
                "mean",
                "three finite numbers".into(),
                format!("{:?}", self.mean),
            );
        }
        if !self.std.iter().all(|std| std.is_finite() && *std > 0.0) {
            return fail(
                "std",
                "three positive numbers".into(),
                format!("{:?}", self.std),
            );
        }
        Ok(())
    }

    /// Bytes of a fitted picture: `size * size * 3`.
    pub fn pixel_len(&self) -> usize {
        self.size as usize * self.size as usize * 3
    }

    /// Scales fitted pixels (RGB, interleaved, [`Plan::pixel_len`] bytes) into
    /// `tensor` (planar, `[3, size, size]`, channels in the plan's order):
    /// `(pixel / 255 - mean) / std`.
    ///
    /// # Panics
    /// When the two slices are not of the same length.
    pub fn normalize(&self, pixels: &[u8], tensor: &mut [f32]) {
        assert_eq!(
            pixels.len(),
            tensor.len(),
            "pixels and tensor must be of one length"
        );
        let plane = pixels.len() / 3;
        for (channel, values) in tensor.chunks_exact_mut(plane.max(1)).enumerate() {
            let scale = 1.0 / (255.0 * self.std[channel]);
            let shift = -self.mean[channel] / self.std[channel];
            let source = self.channels.source(channel);
            for (value, pixel) in values.iter_mut().zip(pixels.chunks_exact(3)) {
                *value = f32::from(pixel[source]).mul_add(scale, shift);
            }
        }
    }

    /// The two steps at once: a frame to a planar `[3, size, size]` tensor.
    pub fn tensor(&self, frame: &Frame) -> Vec<f32> {
        let mut tensor = vec![0.0; self.pixel_len()];
        Preprocessor::with(|preprocessor| {
            self.normalize(preprocessor.fit(self, frame), &mut tensor)
        });
        tensor
    }
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShorterSide { to: None } => f.write_str("shorter side to the size, centre crop"),
            Self::ShorterSide { to: Some(to) } => write!(f, "shorter side to {to}, centre crop"),
            Self::Stretch => f.write_str("stretched"),
            Self::Letterbox { fill } => write!(f, "letterbox filled with grey {fill}"),
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bicubic => "bicubic",
            Self::Bilinear => "bilinear",
            Self::Lanczos => "Lanczos",
            Self::Nearest => "nearest",
        })
    }
}

impl fmt::Display for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rgb => "RGB",
            Self::Bgr => "BGR",
        })
    }
}

impl Channels {
    /// The channel of a picture, red first, that becomes this channel of the tensor.
    pub fn source(self, channel: usize) -> usize {
        match self {
            Self::Rgb => channel,
            Self::Bgr => 2 - channel,
        }
    }
}

fn yes() -> bool {
    true
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
fn is_yes(value: &bool) -> bool {
    *value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bgr_swaps_channels_before_mean_and_std() {
        let plan = Plan {
            channels: Channels::Bgr,
            mean: [0.1, 0.2, 0.3],
            std: [1.0, 2.0, 4.0],
            ..Plan::clip(1)
        };
        let mut tensor = [0.0; 3];
        plan.normalize(&[255, 0, 51], &mut tensor);
        let expected = [0.2 - 0.1, -0.2 / 2.0, (1.0 - 0.3) / 4.0];
        for (got, want) in tensor.iter().zip(expected) {
            assert!((got - want).abs() < 1e-6, "{tensor:?}");
        }
    }

    #[test]
    fn a_bad_plan_names_its_field() {
        let check = |plan: Plan| plan.check().unwrap_err().field;
        assert_eq!(check(Plan::clip(0)), "size");
        assert_eq!(
            check(Plan {
                std: [1.0, 0.0, 1.0],
                ..Plan::clip(8)
            }),
            "std"
        );
        assert_eq!(
            check(Plan {
                mean: [f32::NAN; 3],
                ..Plan::clip(8)
            }),
            "mean"
        );
        assert_eq!(
            check(Plan {
                resize: Resize::ShorterSide { to: Some(4) },
                ..Plan::clip(8)
            }),
            "resize.to"
        );
    }
}
