//! From image files to frames.
//!
//! JPEG, PNG, WebP, BMP and TIFF, told apart by their content and never by
//! their extension. Orientation from EXIF (in TIFF: from its own tag) is
//! applied, so a frame is upright. Everything becomes 8-bit RGB:
//!
//! - 16 bits are rounded to 8, floats clamped to 0..1 and scaled;
//! - grey is copied to the three channels;
//! - CMYK is multiplied out, without a colour profile;
//! - transparent pixels are laid over white;
//! - of an animation the first picture is taken.

use std::fmt;
use std::fs::File;
use std::io::{self, Cursor, Read as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};
use thiserror::Error;

use crate::frame::Frame;

/// The longest side of a picture that is decoded, in pixels.
pub const MAX_SIDE: u32 = 16_384;
/// The most memory that a decoded picture may take, in bytes; also the
/// longest file that is read.
pub const MAX_BYTES: u64 = 512 << 20;
/// File extensions, in lower case, by which a folder is searched for pictures.
pub const EXTENSIONS: &[&str] = &["bmp", "jpeg", "jpg", "png", "tif", "tiff", "webp"];

/// Whether the name of a file says that it is a picture.
pub fn is_picture(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| EXTENSIONS.contains(&extension.to_lowercase().as_str()))
}

/// A picture that cannot be decoded: which one, and why.
#[derive(Debug, Error)]
#[error("{name}: {kind}")]
pub struct DecodeError {
    name: String,
    kind: DecodeErrorKind,
}

/// What is the matter with a picture.
#[derive(Debug)]
#[non_exhaustive]
pub enum DecodeErrorKind {
    /// It cannot be read.
    Io(io::Error),
    /// It has no bytes.
    Empty,
    /// It is none of the formats that are read.
    Format,
    /// Its sides are longer than [`MAX_SIDE`], or it takes more than
    /// [`MAX_BYTES`]; nothing of it was decoded.
    TooLarge {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The file is longer than [`MAX_BYTES`].
    TooLong,
    /// It ends before its last pixel.
    Truncated,
    /// It is of a known format, in a variant that is not read.
    Unsupported(String),
    /// Its bytes contradict each other.
    Corrupt(String),
}

/// Reads and decodes the picture at `path`.
///
/// # Errors
/// [`DecodeError`] when the file cannot be read or holds no picture within
/// the limits.
pub fn open(path: &Path) -> Result<Frame, DecodeError> {
    read(path)
        .and_then(|bytes| decode(&bytes))
        .map_err(|kind| DecodeError {
            name: path.display().to_string(),
            kind,
        })
}

/// Decodes the picture in `bytes`; `name` stands for it in errors.
///
/// # Errors
/// [`DecodeError`] when the bytes are no picture within the limits.
pub fn from_bytes(bytes: &[u8], name: &str) -> Result<Frame, DecodeError> {
    decode(bytes).map_err(|kind| DecodeError {
        name: name.into(),
        kind,
    })
}

impl DecodeError {
    /// The picture that is at fault.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is the matter with it.
    pub fn kind(&self) -> &DecodeErrorKind {
        &self.kind
    }
}

impl fmt::Display for DecodeErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::IsADirectory => {
                f.write_str("a folder, expected an image file")
            }
            Self::Io(error) => error.fmt(f),
            Self::Empty => f.write_str("the file is empty; copy it again"),
            Self::Format => f.write_str(
                "not a JPEG, PNG, WebP, BMP or TIFF picture; convert it to one of these",
            ),
            Self::TooLarge { width, height } => write!(
                f,
                "{width}×{height} pixels, more than the limit of {MAX_SIDE} a side and {} MiB decoded; scale the picture down",
                MAX_BYTES >> 20
            ),
            Self::TooLong => write!(
                f,
                "longer than {} MiB; scale the picture down",
                MAX_BYTES >> 20
            ),
            Self::Truncated => {
                f.write_str("the file ends in the middle of the picture; copy it again")
            }
            Self::Unsupported(what) => write!(f, "{what}; save it as 8-bit RGB JPEG or PNG"),
            Self::Corrupt(what) => write!(f, "damaged: {what}; copy it again"),
        }
    }
}

impl From<io::Error> for DecodeErrorKind {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Io(error),
        }
    }
}

impl From<ImageError> for DecodeErrorKind {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::IoError(error) => error.into(),
            ImageError::Unsupported(error) => Self::Unsupported(error.to_string()),
            error => Self::Corrupt(error.to_string()),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, DecodeErrorKind> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(DecodeErrorKind::TooLong);
    }
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<Frame, DecodeErrorKind> {
    if bytes.is_empty() {
        return Err(DecodeErrorKind::Empty);
    }
    let format = image::guess_format(bytes).map_err(|_| DecodeErrorKind::Format)?;
    if !format.reading_enabled() {
        return Err(DecodeErrorKind::Format);
    }
    // Decoders are large and bytes are anybody's: one that trips over a
    // picture must not take the rest of a batch with it.
    let image = catch_unwind(AssertUnwindSafe(|| upright(bytes, format)))
        .map_err(|_| DecodeErrorKind::Corrupt("the decoder gave up on it".into()))??;
    // The JPEG decoder fills missing data with grey and says nothing.
    if format == ImageFormat::Jpeg && !has_jpeg_end(bytes) {
        return Err(DecodeErrorKind::Truncated);
    }
    Ok(to_rgb(image).into())
}

fn upright(bytes: &[u8], format: ImageFormat) -> Result<DynamicImage, DecodeErrorKind> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(DecodeErrorKind::Corrupt(format!("{width}×{height} pixels")));
    }
    if width.max(height) > MAX_SIDE || decoder.total_bytes() > MAX_BYTES {
        return Err(DecodeErrorKind::TooLarge { width, height });
    }
    decoder.set_limits(limits)?;
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(image)
}

fn to_rgb(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let image = image.into_rgba8();
    let (width, height) = image.dimensions();
    RgbImage::from_fn(width, height, |x, y| {
        let [red, green, blue, alpha] = image.get_pixel(x, y).0;
        image::Rgb([red, green, blue].map(|level| over_white(level, alpha)))
    })
}

fn over_white(level: u8, alpha: u8) -> u8 {
    let (level, alpha) = (u32::from(level), u32::from(alpha));
    ((level * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

/// Whether the JPEG in `bytes` reaches its end-of-image marker (ITU-T T.81,
/// annex B): segments are stepped over by their length, the coded data
/// between them is searched for the next marker.
fn has_jpeg_end(bytes: &[u8]) -> bool {
    const END: u8 = 0xD9;
    let mut at = 2;
    while let Some(marker) = next_marker(bytes, &mut at) {
        match marker {
            END => return true,
            // Markers without a length: stuffed bytes, restarts and the like.
            0x00 | 0x01 | 0xD0..=0xD8 => {}
            _ => match bytes.get(at..at + 2) {
                Some(length) => at += usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => return false,
            },
        }
    }
    false
}

/// The next marker at or after `at`, which is moved behind it.
fn next_marker(bytes: &[u8], at: &mut usize) -> Option<u8> {
    let rest = bytes.get(*at..)?;
    let start = rest.iter().position(|&byte| byte == 0xFF)?;
    let fill = rest[start..].iter().position(|&byte| byte != 0xFF)?;
    *at += start + fill + 1;
    Some(rest[start + fill])
}
