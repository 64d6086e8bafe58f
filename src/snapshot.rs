//! What a model looks at, as a small JPEG picture.

use std::io::Write;

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageResult};

use crate::preprocess::{Filter, Preprocessor};
use crate::view::View;

/// Writes `view` to `to` as JPEG, its longest side no longer than `side`
/// pixels; `quality` is 1 to 100.
///
/// # Errors
/// Those of `to`; the encoder takes all that has pixels.
pub fn write_jpeg(
    preprocessor: &mut Preprocessor,
    view: &View<'_>,
    (side, quality): (u32, u8),
    to: impl Write,
) -> ImageResult<()> {
    let longest = u64::from(view.width().max(view.height()));
    let limit = longest.min(u64::from(side));
    let side = |side: u32| (u64::from(side) * limit / longest).max(1) as u32;
    let (width, height) = (side(view.width()), side(view.height()));
    let pixels = preprocessor.scale(Filter::Bilinear, view, width, height);
    let encoder = JpegEncoder::new_with_quality(to, quality);
    image::ImageEncoder::write_image(encoder, pixels, width, height, ExtendedColorType::Rgb8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Frame, PixelFormat};
    use crate::view::{Rotation, Turn};

    fn size(width: u32, height: u32, rotation: Rotation) -> (u32, u32) {
        let pixels = (0..width * height * 3).map(|at| (at / 3 % 251) as u8);
        let frame = Frame::new(width, height, PixelFormat::Rgb, pixels.collect()).unwrap();
        let view = View::turned(&frame, Turn::new(rotation, None));
        let mut jpeg = Vec::new();
        write_jpeg(&mut Preprocessor::default(), &view, (640, 75), &mut jpeg).unwrap();
        let jpeg = image::load_from_memory(&jpeg).unwrap();
        (jpeg.width(), jpeg.height())
    }

    #[test]
    fn pictures_keep_their_shape_within_the_limit() {
        assert_eq!(size(320, 200, Rotation::None), (320, 200));
        assert_eq!(size(1280, 720, Rotation::None), (640, 360));
        assert_eq!(size(1280, 720, Rotation::Right), (360, 640));
        assert_eq!(size(3, 3000, Rotation::None), (1, 640));
        assert_eq!(size(1, 1, Rotation::None), (1, 1));
    }
}
