//! Fixed random views of an image, the same whenever they are asked for.
//!
//! A teacher's outputs can be kept only for what it saw. A view hangs on the bytes of the image,
//! its number and the settings alone: not on the run, its seed, or the place in the table.

use numclip::frame::{Frame, PixelFormat};
use numclip::preprocess::{Plan, Resize};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::augment::Augment;

/// How the views of an image come about.
#[derive(Clone, Debug, PartialEq)]
pub struct Views {
    /// Number of views of every image, at least 1.
    pub count: u32,
    /// Brings the image to the square of a view; checked.
    pub plan: Plan,
    /// What happens to it there; checked.
    pub augment: Augment,
}

impl Views {
    /// Views for networks whose inputs are made by `plan` and of side `other`: drawn once, at the
    /// larger of the two sizes, so that both networks see the same picture.
    pub fn new(count: u32, plan: &Plan, other: u32, augment: Augment) -> Self {
        let size = plan.size.max(other);
        let scaled = |side: u32| (u64::from(side) * u64::from(size) / u64::from(plan.size)) as u32;
        let resize = match plan.resize {
            Resize::ShorterSide { to } => Resize::ShorterSide { to: to.map(scaled) },
            resize => resize,
        };
        Self {
            count,
            plan: Plan {
                size,
                resize,
                ..plan.clone()
            },
            augment,
        }
    }

    /// View `number` of an image: a square of the plan's size.
    pub fn show(&self, image: &Frame, sha256: &[u8; 32], number: u32) -> Frame {
        let mut seed = Sha256::new_with_prefix(sha256);
        seed.update(number.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(seed.finalize().into());
        let pixels = self.augment.apply(image, &self.plan, &mut rng);
        let side = self.plan.size;
        Frame::new(side, side, PixelFormat::Rgb, pixels).expect("the pixels of a square")
    }
}

/// A network's input from a view: planar `[3, size, size]` into `tensor`. All of the view is seen.
///
/// # Panics
/// When `tensor` is not of that length.
pub fn normalize(view: &Frame, plan: &Plan, tensor: &mut [f32]) {
    if view.width() == plan.size {
        return plan.normalize(view.pixels(), tensor);
    }
    let whole = Plan {
        resize: Resize::Stretch,
        ..plan.clone()
    };
    tensor.copy_from_slice(&whole.tensor(view));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Frame {
        let pixels = (0..48 * 40 * 3).map(|i| (i * 7 % 251) as u8).collect();
        Frame::new(48, 40, PixelFormat::Rgb, pixels).unwrap()
    }

    #[test]
    fn a_view_hangs_on_the_image_and_its_number_alone() {
        let views = Views::new(4, &Plan::clip(16), 16, Augment::default());
        let show = |digest: u8, number| views.show(&image(), &[digest; 32], number);
        assert_eq!(show(1, 2), show(1, 2));
        assert_ne!(show(1, 2), show(1, 3));
        assert_ne!(show(1, 2), show(2, 2));
        let more = Views {
            count: 9,
            ..views.clone()
        };
        assert_eq!(more.show(&image(), &[1; 32], 2), show(1, 2));
    }

    #[test]
    fn both_networks_see_the_same_part() {
        let plan = Plan {
            resize: Resize::ShorterSide { to: Some(20) },
            ..Plan::clip(16)
        };
        let views = Views::new(1, &plan, 32, Augment::none());
        assert_eq!(views.plan.resize, Resize::ShorterSide { to: Some(40) });
        let view = views.show(&image(), &[0; 32], 0);
        assert_eq!((view.width(), view.height()), (32, 32));
        let [mut small, mut large] = [16, 32].map(|size: usize| vec![0.0; 3 * size * size]);
        normalize(&view, &plan, &mut small);
        normalize(&view, &Plan::clip(32), &mut large);
        let mean = |tensor: &[f32]| tensor.iter().sum::<f32>() / tensor.len() as f32;
        assert!((mean(&small) - mean(&large)).abs() < 0.02);
        // Without a random change, a view is what the plan makes of the image.
        let alone = Views::new(1, &plan, 8, Augment::none());
        normalize(&alone.show(&image(), &[0; 32], 0), &plan, &mut small);
        assert_eq!(small, plan.tensor(&image()));
    }
}
