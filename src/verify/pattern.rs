//! Drawn pictures for golden vectors where no photograph may leave.

use crate::frame::{Frame, FrameError, PixelFormat};

/// Gradients, rings and stripes of many scales, `longest` pixels wide; `index`
/// changes all of them, and the height.
///
/// # Errors
/// [`FrameError`] when `longest` is 0 or no frame can be so large.
pub fn pattern(index: u32, longest: u32) -> Result<Frame, FrameError> {
    let height = (longest * (4 + index % 3) / 6).max(1);
    let phase = index as f32 * 1.7;
    let wave = |x: f32| (127.5 + 127.0 * x.sin()) as u8;
    let pixel = |(x, y): (u32, u32)| {
        let (x, y) = (
            x as f32 / longest as f32 - 0.5,
            y as f32 / height as f32 - 0.5,
        );
        let radius = x.hypot(y);
        [
            wave(40.0 * radius * (1.0 + radius) + phase),
            wave(9.0 * x + 4.0 * y * phase),
            wave(60.0 * x * y - phase),
        ]
    };
    let places = (0..height).flat_map(|y| (0..longest).map(move |x| (x, y)));
    let pixels = places.flat_map(pixel).collect();
    Frame::new(longest, height, PixelFormat::Rgb, pixels)
}
