//! Random resized crop.

use numclip::frame::{Frame, PixelFormat};
use rand::{Rng, RngExt};

use super::Crop;

/// Part of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Area {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
}

impl Crop {
    /// A part of random area and proportions; if none fits in ten attempts,
    /// the largest central part with allowed proportions.
    pub(super) fn sample(self, width: u32, height: u32, rng: &mut impl Rng) -> Area {
        let area = width as f32 * height as f32;
        let [narrow, wide] = self.ratio;
        for _ in 0..10 {
            let target = area * rng.random_range(self.scale[0]..=self.scale[1]);
            let ratio = rng.random_range(narrow.ln()..=wide.ln()).exp();
            let (w, h) = (
                (target * ratio).sqrt().round(),
                (target / ratio).sqrt().round(),
            );
            let (w, h) = (w.max(1.0) as u32, h.max(1.0) as u32);
            if w <= width && h <= height {
                return Area {
                    left: rng.random_range(0..=width - w),
                    top: rng.random_range(0..=height - h),
                    width: w,
                    height: h,
                };
            }
        }
        let ratio = (width as f32 / height as f32).clamp(narrow, wide);
        let w = (height as f32 * ratio).round().clamp(1.0, width as f32) as u32;
        let h = (w as f32 / ratio).round().clamp(1.0, height as f32) as u32;
        Area {
            left: (width - w) / 2,
            top: (height - h) / 2,
            width: w,
            height: h,
        }
    }
}

/// The part alone.
pub(super) fn cut(frame: &Frame, area: Area) -> Frame {
    let stride = frame.width() as usize * 3;
    let left = area.left as usize * 3;
    let pixels = frame
        .pixels()
        .chunks_exact(stride)
        .skip(area.top as usize)
        .take(area.height as usize)
        .flat_map(|row| &row[left..left + area.width as usize * 3])
        .copied()
        .collect();
    Frame::new(area.width, area.height, PixelFormat::Rgb, pixels)
        .expect("the area lies within the frame")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::augment::tests::{ramp, rng};

    #[test]
    fn crops_stay_inside_and_near_the_asked_area() {
        let crop = Crop {
            scale: [0.3, 0.6],
            ratio: [0.75, 1.4],
        };
        let mut rng = rng();
        for _ in 0..500 {
            let area = crop.sample(120, 90, &mut rng);
            assert!(area.left + area.width <= 120 && area.top + area.height <= 90);
            let share = (area.width * area.height) as f32 / (120.0 * 90.0);
            assert!((0.28..=0.62).contains(&share), "{share}");
        }
        for (width, height) in [(1, 1), (1, 300), (300, 1), (2, 3)] {
            let area = crop.sample(width, height, &mut rng);
            assert!(area.width >= 1 && area.height >= 1);
            assert!(area.left + area.width <= width && area.top + area.height <= height);
        }
    }

    #[test]
    fn cutting_takes_the_right_pixels() {
        let part = cut(
            &ramp(10, 8),
            Area {
                left: 2,
                top: 3,
                width: 4,
                height: 2,
            },
        );
        assert_eq!(part.pixels()[..3], [6, 9, 5]);
        assert_eq!(part.pixels()[part.pixels().len() - 3..], [15, 12, 9]);
    }
}
