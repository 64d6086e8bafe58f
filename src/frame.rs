//! A picture in memory: what every source produces and preprocessing reads.

use std::time::SystemTime;

use thiserror::Error;

/// An 8-bit RGB picture, interleaved (height × width × 3), rows top to bottom
/// without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
    /// When the picture was taken, where the source knows it.
    pub time: Option<SystemTime>,
}

/// How the bytes handed to [`Frame::new`] are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelFormat {
    /// Red, green, blue: one byte each.
    Rgb,
    /// Blue, green, red: one byte each.
    Bgr,
    /// One byte of luma, copied to the three channels.
    Grey,
}

/// Bytes that do not make a picture.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// A side of zero pixels.
    #[error("a frame of {width}×{height} has no pixels; both sides must be at least 1")]
    Empty {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The number of bytes does not fit the size.
    #[error(
        "a {width}×{height} {format:?} frame takes {expected} bytes, got {got}; check size and pixel format of the source"
    )]
    Length {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The layout that was claimed.
        format: PixelFormat,
        /// Bytes that such a frame takes.
        expected: usize,
        /// Bytes that were given.
        got: usize,
    },
}

impl Frame {
    /// A frame from `bytes` in the given layout.
    ///
    /// # Errors
    /// [`FrameError`] when a side is zero or the number of bytes does not fit.
    pub fn new(
        width: u32,
        height: u32,
        format: PixelFormat,
        bytes: Vec<u8>,
    ) -> Result<Self, FrameError> {
        if width == 0 || height == 0 {
            return Err(FrameError::Empty { width, height });
        }
        let expected = width as usize * height as usize * format.bytes_per_pixel();
        if bytes.len() != expected {
            return Err(FrameError::Length {
                width,
                height,
                format,
                expected,
                got: bytes.len(),
            });
        }
        Ok(Self {
            width,
            height,
            pixels: to_rgb(format, bytes),
            time: None,
        })
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The pixels: RGB, interleaved, `height * width * 3` bytes.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The pixels by value, see [`Frame::pixels`].
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }
}

impl PixelFormat {
    /// Bytes that one pixel takes.
    pub fn bytes_per_pixel(self) -> usize {
        match self {
            Self::Rgb | Self::Bgr => 3,
            Self::Grey => 1,
        }
    }
}

impl From<image::RgbImage> for Frame {
    fn from(image: image::RgbImage) -> Self {
        let (width, height) = image.dimensions();
        Self {
            width,
            height,
            pixels: image.into_raw(),
            time: None,
        }
    }
}

fn to_rgb(format: PixelFormat, mut bytes: Vec<u8>) -> Vec<u8> {
    match format {
        PixelFormat::Rgb => bytes,
        PixelFormat::Bgr => {
            for pixel in bytes.chunks_exact_mut(3) {
                pixel.swap(0, 2);
            }
            bytes
        }
        PixelFormat::Grey => bytes.iter().flat_map(|&luma| [luma; 3]).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_agree() {
        let rgb = Frame::new(2, 1, PixelFormat::Rgb, vec![1, 2, 3, 4, 5, 6]).unwrap();
        let bgr = Frame::new(2, 1, PixelFormat::Bgr, vec![3, 2, 1, 6, 5, 4]).unwrap();
        assert_eq!(rgb, bgr);
        let grey = Frame::new(2, 1, PixelFormat::Grey, vec![7, 9]).unwrap();
        assert_eq!(grey.pixels(), [7, 7, 7, 9, 9, 9]);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        assert!(matches!(
            Frame::new(0, 4, PixelFormat::Rgb, vec![]),
            Err(FrameError::Empty { .. })
        ));
        let error = Frame::new(2, 2, PixelFormat::Rgb, vec![0; 11]).unwrap_err();
        assert!(
            error.to_string().contains("takes 12 bytes, got 11"),
            "{error}"
        );
    }
}
