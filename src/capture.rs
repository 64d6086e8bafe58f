//! Where frames come from: cameras, programs, streams, folders, renderers.
//!
//! A [`Source`] hands out [`Shot`]s: bytes as they came, not yet decoded, with
//! the time they were taken. What is never looked at is therefore never
//! decoded. A source says when it must be opened again, and can be stopped
//! from another thread while it waits.

mod address;
#[cfg(all(feature = "camera", target_os = "linux"))]
mod camera;
mod command;
mod devices;
mod folder;
mod gauge;
#[cfg(feature = "http")]
mod http;
mod jpeg;
mod preset;
mod stream;
mod yuv;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use thiserror::Error;

use crate::decode;
use crate::frame::{Frame, PixelFormat};

pub(crate) use address::without_password;
pub use address::{AddressError, SourceAddress};
pub use command::{Program, StreamFormat};
pub use devices::{CameraFormat, CameraInfo, cameras};
pub use gauge::GaugeCamera;
pub use jpeg::JpegStream;
pub use yuv::YuvLayout;

/// One picture as its source gave it.
#[derive(Debug)]
pub struct Shot {
    /// The bytes, laid out as `encoding` says.
    pub bytes: Vec<u8>,
    /// What the bytes are.
    pub encoding: Encoding,
    /// When the picture arrived, on the clock that never jumps.
    pub at: Instant,
    /// The same moment on the wall clock.
    pub time: SystemTime,
    /// What the picture shows, in the task's unit, where the source knows it.
    pub truth: Option<f32>,
    /// Name of the picture, where each has its own.
    pub name: Option<Arc<str>>,
}

/// What the bytes of a [`Shot`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Plain pixels, interleaved, without padding.
    Pixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Layout of a pixel.
        format: PixelFormat,
    },
    /// Luma and chroma, without padding.
    Yuv {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// How they lie.
        layout: YuvLayout,
    },
    /// One JPEG picture, from its first marker to its last.
    Jpeg,
    /// An image file of any kind that [`decode`] reads.
    File,
}

/// Gives pictures, one after the other.
pub trait Source {
    /// Waits for the next picture and gives it, in the memory of `buffer`
    /// where it can.
    ///
    /// # Errors
    /// [`SourceError`] says whether to go on, to open the source again, or to
    /// give up.
    fn next(&mut self, buffer: Vec<u8>) -> Result<Shot, SourceError>;

    /// Ends a wait in [`Source::next`] from another thread; `None` where none
    /// lasts long.
    fn stopper(&self) -> Option<Stopper> {
        None
    }
}

/// Ends the wait of a source.
pub type Stopper = Box<dyn Fn() + Send>;

/// Why a source gave no picture.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SourceError {
    /// There are no more.
    #[error("the source has ended")]
    End,
    /// This picture cannot be used; the next may be good.
    #[error("{0}")]
    Picture(String),
    /// The source is gone and must be opened again.
    #[error("{0}")]
    Lost(String),
    /// The source cannot work on this machine; opening it again is in vain.
    #[error("{0}")]
    Setup(String),
}

/// A camera of Video4Linux, and what is asked of it.
#[derive(Clone, Debug, PartialEq)]
pub struct CameraSettings {
    /// Its device file.
    pub device: PathBuf,
    /// Width and height in pixels; the camera takes the nearest it has.
    pub size: Option<(u32, u32)>,
    /// Frames in a second; the camera takes the nearest it has.
    pub fps: Option<u32>,
    /// Name of a pixel format.
    pub format: Option<String>,
}

/// A shot that is no picture.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct DevelopError(String);

impl Shot {
    /// A shot taken now.
    pub fn now(bytes: Vec<u8>, encoding: Encoding) -> Self {
        Self {
            bytes,
            encoding,
            at: Instant::now(),
            time: SystemTime::now(),
            truth: None,
            name: None,
        }
    }
}

/// Decodes `bytes` into a frame, in the memory of `spare` where there is
/// something to decode. Gives the frame and the memory that is left over.
///
/// # Errors
/// [`DevelopError`] when the bytes are no picture.
pub fn develop(
    bytes: Vec<u8>,
    encoding: Encoding,
    spare: Vec<u8>,
) -> Result<(Frame, Vec<u8>), DevelopError> {
    let failed = |error: &dyn fmt::Display| DevelopError(error.to_string());
    match encoding {
        Encoding::Pixels {
            width,
            height,
            format,
        } => Frame::new(width, height, format, bytes)
            .map(|frame| (frame, spare))
            .map_err(|error| failed(&error)),
        Encoding::Yuv {
            width,
            height,
            layout,
        } => layout
            .develop((width, height), &bytes, spare)
            .map(|frame| (frame, bytes)),
        Encoding::Jpeg => jpeg::decode(&bytes, spare)
            .map(|frame| (frame, bytes))
            .map_err(|error| failed(&error)),
        Encoding::File => decode::from_bytes(&bytes, "picture")
            .map(|frame| (frame, bytes))
            .map_err(|error| failed(error.kind())),
    }
}
