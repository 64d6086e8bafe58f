//! Random changes to training images that leave the label true.

mod crop;
mod pixels;
mod switch;

use numclip::{
    frame::Frame,
    preprocess::{Plan, Preprocessor, Resize},
};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use self::crop::cut;
use self::pixels::{add_noise, blur, flip_columns, flip_rows, mean_luma, rotate};

/// What may happen to a training image; a probability of 0 switches a change
/// off.
///
/// Flips are wrong where left and right matter, as on a gauge, and strong
/// changes of colour are wrong where colour carries the label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Random part of the image instead of the plan's own crop, brought to size as the plan
    /// would: letterboxed, or stretched. `false` in a file: none.
    #[serde(with = "switch")]
    pub crop: Option<Crop>,
    /// Probability of a left-right flip.
    pub flip: f32,
    /// Probability of an upside-down flip.
    pub flip_vertical: f32,
    /// Largest turn either way, degrees.
    pub rotate: f32,
    /// Change of colours.
    pub color: ColorJitter,
    /// Gaussian blur.
    pub blur: Blur,
    /// Gaussian noise.
    pub noise: Noise,
    /// A random rectangle is painted grey.
    pub erase: Erase,
}

/// Random resized crop.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Crop {
    /// Smallest and largest share of the image's area, 0 to 1.
    pub scale: [f32; 2],
    /// Narrowest and widest ratio of width to height.
    pub ratio: [f32; 2],
}

/// Brightness, contrast and saturation are multiplied by 1 ± their value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ColorJitter {
    /// Probability.
    pub probability: f32,
    /// Reach of the brightness, 0 to 1.
    pub brightness: f32,
    /// Reach of the contrast, 0 to 1.
    pub contrast: f32,
    /// Reach of the saturation, 0 to 1.
    pub saturation: f32,
    /// Reach of the hue, in turns of the colour circle, 0 to 0.5.
    pub hue: f32,
}

/// Gaussian blur.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Blur {
    /// Probability.
    pub probability: f32,
    /// Smallest and largest standard deviation, pixels of the encoder's input.
    pub sigma: [f32; 2],
}

/// Gaussian noise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Noise {
    /// Probability.
    pub probability: f32,
    /// Largest standard deviation, 0–255.
    pub deviation: f32,
}

/// Random erasing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Erase {
    /// Probability.
    pub probability: f32,
    /// Smallest and largest share of the area, 0 to 1.
    pub area: [f32; 2],
}

/// A setting out of its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("augment.{field}: expected {expected}, got {got}")]
pub struct AugmentError {
    /// The field.
    pub field: &'static str,
    /// What may stand there.
    pub expected: &'static str,
    /// What stands there.
    pub got: String,
}

impl Default for Augment {
    fn default() -> Self {
        Self {
            crop: Some(Crop::default()),
            flip: 0.5,
            flip_vertical: 0.0,
            rotate: 0.0,
            color: ColorJitter::default(),
            blur: Blur::default(),
            noise: Noise::default(),
            erase: Erase::default(),
        }
    }
}

impl Default for Crop {
    fn default() -> Self {
        Self {
            scale: [0.5, 1.0],
            ratio: [0.75, 4.0 / 3.0],
        }
    }
}

impl Default for ColorJitter {
    fn default() -> Self {
        Self {
            probability: 0.8,
            brightness: 0.2,
            contrast: 0.2,
            saturation: 0.2,
            hue: 0.02,
        }
    }
}

impl Default for Blur {
    fn default() -> Self {
        Self {
            probability: 0.1,
            sigma: [0.3, 1.5],
        }
    }
}

impl Default for Noise {
    fn default() -> Self {
        Self {
            probability: 0.0,
            deviation: 8.0,
        }
    }
}

impl Default for Erase {
    fn default() -> Self {
        Self {
            probability: 0.0,
            area: [0.02, 0.2],
        }
    }
}

impl Augment {
    /// Changes nothing: the plan's own crop.
    pub fn none() -> Self {
        Self {
            crop: None,
            flip: 0.0,
            flip_vertical: 0.0,
            rotate: 0.0,
            color: ColorJitter {
                probability: 0.0,
                ..ColorJitter::default()
            },
            blur: Blur {
                probability: 0.0,
                ..Blur::default()
            },
            noise: Noise::default(),
            erase: Erase::default(),
        }
    }

    /// Checks that every setting is in its range.
    ///
    /// # Errors
    ///
    /// The first field that is not.
    pub fn check(&self) -> Result<(), AugmentError> {
        let probabilities = [
            ("flip", self.flip),
            ("flip_vertical", self.flip_vertical),
            ("color.probability", self.color.probability),
            ("color.brightness", self.color.brightness),
            ("color.contrast", self.color.contrast),
            ("color.saturation", self.color.saturation),
            ("blur.probability", self.blur.probability),
            ("noise.probability", self.noise.probability),
            ("erase.probability", self.erase.probability),
        ];
        for (field, value) in probabilities {
            require(field, (0.0..=1.0).contains(&value), "0 to 1", value)?;
        }
        require(
            "rotate",
            (0.0..=180.0).contains(&self.rotate),
            "0 to 180 degrees",
            self.rotate,
        )?;
        require(
            "color.hue",
            (0.0..=0.5).contains(&self.color.hue),
            "0 to 0.5 turns",
            self.color.hue,
        )?;
        let deviation = self.noise.deviation;
        require(
            "noise.deviation",
            (0.0..=255.0).contains(&deviation),
            "0 to 255",
            deviation,
        )?;
        let within = |[low, high]: [f32; 2], most: f32| 0.0 < low && low <= high && high <= most;
        let pair = "two ascending numbers above 0";
        if let Some(crop) = self.crop {
            require(
                "crop.scale",
                within(crop.scale, 1.0),
                "two ascending numbers, above 0 and up to 1",
                crop.scale,
            )?;
            require("crop.ratio", within(crop.ratio, 100.0), pair, crop.ratio)?;
        }
        require(
            "blur.sigma",
            within(self.blur.sigma, 50.0),
            pair,
            self.blur.sigma,
        )?;
        require(
            "erase.area",
            within(self.erase.area, 1.0),
            "two ascending numbers, above 0 and up to 1",
            self.erase.area,
        )
    }

    /// Brings a frame to the plan's size with random changes: RGB,
    /// interleaved, `size * size * 3` bytes, ready for [`Plan::normalize`].
    ///
    /// Both the plan and the settings must have passed their checks.
    pub fn apply(&self, frame: &Frame, plan: &Plan, rng: &mut impl Rng) -> Vec<u8> {
        let mut pixels = self.fit(frame, plan, rng);
        let side = plan.size as usize;
        if chance(rng, self.flip) {
            flip_rows(&mut pixels, side);
        }
        if chance(rng, self.flip_vertical) {
            flip_columns(&mut pixels, side);
        }
        if self.rotate > 0.0 {
            let turn = rng.random_range(-self.rotate..=self.rotate);
            pixels = rotate(&pixels, side, turn);
        }
        if chance(rng, self.color.probability) {
            self.color.apply(&mut pixels, rng);
        }
        if chance(rng, self.blur.probability) {
            let [low, high] = self.blur.sigma;
            blur(&mut pixels, side, rng.random_range(low..=high));
        }
        if chance(rng, self.noise.probability) {
            add_noise(
                &mut pixels,
                rng.random_range(0.0..=self.noise.deviation),
                rng,
            );
        }
        if chance(rng, self.erase.probability) {
            self.erase.apply(&mut pixels, side, rng);
        }
        pixels
    }

    fn fit(&self, frame: &Frame, plan: &Plan, rng: &mut impl Rng) -> Vec<u8> {
        let Some(crop) = self.crop else {
            return Preprocessor::with(|p| p.fit(plan, frame).to_vec());
        };
        let part = cut(frame, crop.sample(frame.width(), frame.height(), rng));
        let resize = match plan.resize {
            Resize::Letterbox { fill } => Resize::Letterbox { fill },
            Resize::Stretch | Resize::ShorterSide { .. } => Resize::Stretch,
        };
        let whole = Plan {
            resize,
            ..plan.clone()
        };
        Preprocessor::with(|p| p.fit(&whole, &part).to_vec())
    }
}

fn require(
    field: &'static str,
    holds: bool,
    expected: &'static str,
    got: impl std::fmt::Debug,
) -> Result<(), AugmentError> {
    if holds {
        return Ok(());
    }
    Err(AugmentError {
        field,
        expected,
        got: format!("{got:?}"),
    })
}

fn chance(rng: &mut impl Rng, probability: f32) -> bool {
    // Always drawn, so that switching one change off leaves the others alone.
    rng.random::<f32>() < probability
}

impl ColorJitter {
    /// Brightness, contrast, saturation and hue in one affine map of the
    /// colours, so that rounding happens once.
    fn apply(self, pixels: &mut [u8], rng: &mut impl Rng) {
        let mut factor = |reach: f32| 1.0 + rng.random_range(-reach..=reach);
        let (brightness, contrast, saturation) = (
            factor(self.brightness),
            factor(self.contrast),
            factor(self.saturation),
        );
        let hue = rng.random_range(-self.hue..=self.hue) * std::f32::consts::TAU;
        let mean = mean_luma(pixels) * brightness;
        let (sin, cos) = hue.sin_cos();
        for pixel in pixels.chunks_exact_mut(3) {
            let [r, g, b] =
                [0, 1, 2].map(|c| (f32::from(pixel[c]) * brightness - mean) * contrast + mean);
            // In YIQ the hue is an angle and the saturation a length.
            let y = 0.299 * r + 0.587 * g + 0.114 * b;
            let i = saturation * (0.596 * r - 0.274 * g - 0.322 * b);
            let q = saturation * (0.211 * r - 0.523 * g + 0.312 * b);
            let (i, q) = (i * cos - q * sin, i * sin + q * cos);
            let rgb = [
                y + 0.956 * i + 0.621 * q,
                y - 0.272 * i - 0.647 * q,
                y - 1.106 * i + 1.703 * q,
            ];
            for (old, new) in pixel.iter_mut().zip(rgb) {
                *old = new.round().clamp(0.0, 255.0) as u8;
            }
        }
    }
}

impl Erase {
    /// Paints a rectangle of random area and proportions in mid grey.
    fn apply(self, pixels: &mut [u8], side: usize, rng: &mut impl Rng) {
        let area = rng.random_range(self.area[0]..=self.area[1]) * (side * side) as f32;
        let ratio = rng.random_range(-1.0_f32..=1.0).exp();
        let length = |squared: f32| (squared.sqrt().round() as usize).clamp(1, side);
        let (width, height) = (length(area * ratio), length(area / ratio));
        let left = rng.random_range(0..=side - width);
        let top = rng.random_range(0..=side - height);
        for row in pixels.chunks_exact_mut(side * 3).skip(top).take(height) {
            row[left * 3..(left + width) * 3].fill(128);
        }
    }
}

#[cfg(test)]
mod tests {
    use numclip::frame::PixelFormat;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    pub(super) fn rng() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(5)
    }

    pub(super) fn ramp(width: u32, height: u32) -> Frame {
        let pixels = (0..height)
            .flat_map(|y| (0..width).flat_map(move |x| [x as u8 * 3, y as u8 * 3, (x + y) as u8]))
            .collect();
        Frame::new(width, height, PixelFormat::Rgb, pixels).unwrap()
    }

    #[test]
    fn none_is_the_plans_own_fit() {
        let (frame, plan) = (ramp(50, 40), Plan::clip(24));
        let plain = Preprocessor::with(|p| p.fit(&plan, &frame).to_vec());
        assert_eq!(Augment::none().apply(&frame, &plan, &mut rng()), plain);
    }

    #[test]
    fn a_letterboxed_part_keeps_its_proportions() {
        let plan = Plan {
            resize: Resize::Letterbox { fill: 7 },
            ..Plan::clip(24)
        };
        let whole = Augment {
            crop: Some(Crop {
                scale: [1.0, 1.0],
                ratio: [2.0, 2.0],
            }),
            ..Augment::none()
        };
        let pixels = whole.apply(&ramp(48, 24), &plan, &mut rng());
        let row = |y: usize| &pixels[y * 72..][..72];
        assert!(row(5).iter().chain(row(18)).all(|&level| level == 7));
        assert!(row(6).iter().chain(row(17)).any(|&level| level != 7));
    }

    #[test]
    fn same_generator_same_image() {
        let (frame, plan) = (ramp(50, 40), Plan::clip(24));
        let augment = Augment {
            rotate: 10.0,
            noise: Noise {
                probability: 1.0,
                deviation: 9.0,
            },
            erase: Erase {
                probability: 1.0,
                ..Erase::default()
            },
            ..Augment::default()
        };
        let first = augment.apply(&frame, &plan, &mut rng());
        assert_eq!(first, augment.apply(&frame, &plan, &mut rng()));
        let other = augment.apply(&frame, &plan, &mut ChaCha8Rng::seed_from_u64(6));
        assert_ne!(first, other);
        assert_eq!(first.len(), plan.pixel_len());
    }

    #[test]
    fn neutral_colours_change_nothing() {
        let neutral = ColorJitter {
            probability: 1.0,
            brightness: 0.0,
            contrast: 0.0,
            saturation: 0.0,
            hue: 0.0,
        };
        let original = ramp(9, 9).into_pixels();
        let mut pixels = original.clone();
        neutral.apply(&mut pixels, &mut rng());
        assert!(
            pixels
                .iter()
                .zip(&original)
                .all(|(a, b)| a.abs_diff(*b) <= 1)
        );
    }

    #[test]
    fn greys_stay_grey_whatever_the_hue() {
        let jitter = ColorJitter {
            probability: 1.0,
            hue: 0.5,
            ..ColorJitter::default()
        };
        let mut pixels: Vec<u8> = (0..64).flat_map(|v| [v * 3; 3]).collect();
        jitter.apply(&mut pixels, &mut rng());
        assert!(
            pixels
                .chunks(3)
                .all(|p| p[0].abs_diff(p[1]) <= 1 && p[1].abs_diff(p[2]) <= 1)
        );
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let check = |augment: Augment| augment.check().unwrap_err().field;
        assert!(Augment::default().check().is_ok() && Augment::none().check().is_ok());
        assert_eq!(
            check(Augment {
                flip: 1.5,
                ..Augment::default()
            }),
            "flip"
        );
        assert_eq!(
            check(Augment {
                flip: f32::NAN,
                ..Augment::default()
            }),
            "flip"
        );
        assert_eq!(
            check(Augment {
                rotate: -1.0,
                ..Augment::default()
            }),
            "rotate"
        );
        let crop = Some(Crop {
            scale: [0.9, 0.2],
            ..Crop::default()
        });
        assert_eq!(
            check(Augment {
                crop,
                ..Augment::default()
            }),
            "crop.scale"
        );
    }
}
