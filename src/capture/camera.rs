//! Cameras of Video4Linux by their number, without any program between.
//!
//! Nothing here waits for ever: the driver is asked with a time limit, so that
//! the watchdog can send the thread home. Buffers that the driver flags as
//! erroneous are passed over.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::time::{ClockId, clock_gettime};
use v4l::buffer::{Flags, Metadata, Type};
use v4l::io::mmap::Stream;
use v4l::io::traits::CaptureStream as _;
use v4l::video::Capture as _;
use v4l::{Device, Format, FourCC};

use super::{CameraSettings, Encoding, Shot, Source, SourceError, Stopper, YuvLayout};
use crate::frame::PixelFormat;

/// How long the driver is waited for at a time.
const WAIT: Duration = Duration::from_secs(1);
/// Buffers that the driver fills in turn.
const BUFFERS: u32 = 4;
/// The size that is asked for where none is given.
const SIZE: (u32, u32) = (640, 480);
/// From this size on, pictures are asked for as JPEG first: USB 2 carries
/// plain ones of that size only slowly.
const LARGE: u32 = 800 * 600;

/// Pixel formats that are understood: name in an address, code of V4L2.
pub const FORMATS: [(&str, [u8; 4], Pixels); 8] = [
    ("yuyv", *b"YUYV", Pixels::Yuv(YuvLayout::Yuyv)),
    ("uyvy", *b"UYVY", Pixels::Yuv(YuvLayout::Uyvy)),
    ("nv12", *b"NV12", Pixels::Yuv(YuvLayout::Nv12)),
    ("rgb", *b"RGB3", Pixels::Plain(PixelFormat::Rgb)),
    ("bgr", *b"BGR3", Pixels::Plain(PixelFormat::Bgr)),
    ("grey", *b"GREY", Pixels::Plain(PixelFormat::Grey)),
    ("mjpeg", *b"MJPG", Pixels::Jpeg),
    ("jpeg", *b"JPEG", Pixels::Jpeg),
];

/// What a camera's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pixels {
    /// Luma and chroma.
    Yuv(YuvLayout),
    /// Red, green and blue, or grey.
    Plain(PixelFormat),
    /// JPEG pictures.
    Jpeg,
}

/// A camera at work.
pub struct Camera {
    device: PathBuf,
    stream: Option<Stream<'static>>,
    format: Format,
    pixels: Pixels,
    is_stopped: Arc<AtomicBool>,
}

impl Camera {
    /// Opens the camera.
    ///
    /// # Errors
    /// [`SourceError::Lost`] while it is not there or in use,
    /// [`SourceError::Setup`] when it has no format that is understood.
    pub fn open(settings: &CameraSettings) -> Result<Self, SourceError> {
        guarded(|| {
            let named = |error: io::Error| SourceError::Lost(explained(&settings.device, &error));
            let device = Device::with_path(&settings.device).map_err(named)?;
            let (format, pixels) = agree(&device, settings)?;
            if let Some(fps) = settings.fps {
                // A camera that has one rate only refuses to be asked.
                let _ = device.set_params(&v4l::video::capture::Parameters::with_fps(fps));
            }
            let mut stream =
                Stream::with_buffers(&device, Type::VideoCapture, BUFFERS).map_err(named)?;
            stream.set_timeout(WAIT);
            Ok(Self {
                device: settings.device.clone(),
                stream: Some(stream),
                format,
                pixels,
                is_stopped: Arc::default(),
            })
        })
    }

    /// Waits until the driver answers again; the picture that it answers with
    /// is given up, as the library has no way to hand it out.
    fn wait(&mut self) -> Result<(), SourceError> {
        let Some(stream) = &mut self.stream else {
            return Err(closed());
        };
        while !self.is_stopped.load(Ordering::SeqCst) {
            match stream.dequeue() {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                Err(error) => return Err(SourceError::Lost(explained(&self.device, &error))),
            }
        }
        Err(SourceError::Lost("the camera was told to stop".into()))
    }

    fn take(&mut self, mut buffer: Vec<u8>) -> Result<Shot, SourceError> {
        loop {
            let Some(stream) = &mut self.stream else {
                return Err(closed());
            };
            match stream.next() {
                Ok((bytes, metadata)) => {
                    self.pixels
                        .copy(&self.format, bytes, metadata, &mut buffer)?;
                    let mut shot = Shot::now(buffer, self.pixels.encoding(&self.format));
                    if let Some(age) = age(metadata) {
                        shot.at = Instant::now().checked_sub(age).unwrap_or(shot.at);
                        shot.time = SystemTime::now().checked_sub(age).unwrap_or(shot.time);
                    }
                    return Ok(shot);
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => self.wait()?,
                Err(error) => return Err(SourceError::Lost(explained(&self.device, &error))),
            }
        }
    }
}

impl Source for Camera {
    fn next(&mut self, buffer: Vec<u8>) -> Result<Shot, SourceError> {
        guarded(|| self.take(buffer))
    }

    fn stopper(&self) -> Option<Stopper> {
        let flag = Arc::clone(&self.is_stopped);
        Some(Box::new(move || flag.store(true, Ordering::SeqCst)))
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        let stream = self.stream.take();
        // A camera that is gone cannot be told to stop; that is no fault.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(stream)));
    }
}

impl Pixels {
    fn encoding(self, format: &Format) -> Encoding {
        let (width, height) = (format.width, format.height);
        match self {
            Self::Jpeg => Encoding::Jpeg,
            Self::Yuv(layout) => Encoding::Yuv {
                width,
                height,
                layout,
            },
            Self::Plain(format) => Encoding::Pixels {
                width,
                height,
                format,
            },
        }
    }

    /// Copies one picture out of the driver's memory, without the padding
    /// behind its rows.
    fn copy(
        self,
        format: &Format,
        bytes: &[u8],
        metadata: &Metadata,
        buffer: &mut Vec<u8>,
    ) -> Result<(), SourceError> {
        if metadata.flags.contains(Flags::ERROR) {
            let message = "the camera flagged a picture as erroneous";
            return Err(SourceError::Picture(message.into()));
        }
        let filled = (metadata.bytesused as usize).min(bytes.len());
        buffer.clear();
        let (row, rows) = match self {
            Self::Jpeg => (filled, 1),
            Self::Plain(pixel) => (
                pixel.bytes_per_pixel() * format.width as usize,
                format.height,
            ),
            Self::Yuv(YuvLayout::Nv12) => (format.width as usize, format.height / 2 * 3),
            Self::Yuv(_) => (2 * format.width as usize, format.height),
        };
        let stride = match self {
            Self::Jpeg => filled,
            _ => row.max(format.stride as usize),
        };
        let short = || {
            let message = format!("the camera gave {filled} bytes of a larger picture");
            SourceError::Picture(message)
        };
        for index in 0..rows as usize {
            let line = bytes[..filled].get(index * stride..index * stride + row);
            buffer.extend_from_slice(line.filter(|line| !line.is_empty()).ok_or_else(short)?);
        }
        Ok(())
    }
}

/// Settles on the format that was asked for, or the best there is.
fn agree(device: &Device, settings: &CameraSettings) -> Result<(Format, Pixels), SourceError> {
    let (width, height) = settings.size.unwrap_or(SIZE);
    let offered = device
        .enum_formats()
        .map_err(|error| SourceError::Lost(explained(&settings.device, &error)))?;
    let is_large = width * height > LARGE;
    let mut known: Vec<_> = FORMATS
        .iter()
        .filter(|(name, ..)| {
            settings
                .format
                .as_deref()
                .is_none_or(|asked| asked == *name)
        })
        .filter(|(_, code, _)| offered.iter().any(|format| format.fourcc.repr == *code))
        .collect();
    known.sort_by_key(|(.., pixels)| is_large != (*pixels == Pixels::Jpeg));
    let Some((_, code, pixels)) = known.first() else {
        let offered: Vec<String> = offered.iter().map(|f| f.fourcc.to_string()).collect();
        let understood: Vec<&str> = FORMATS.iter().map(|(name, ..)| *name).collect();
        return Err(SourceError::Setup(format!(
            "{}: its formats are {}; understood are {}{}",
            settings.device.display(),
            offered.join(", "),
            understood.join(", "),
            match &settings.format {
                Some(asked) => format!(", and {asked} was asked for"),
                None => String::new(),
            }
        )));
    };
    let asked = Format::new(width, height, FourCC::new(code));
    let format = device
        .set_format(&asked)
        .map_err(|error| SourceError::Lost(explained(&settings.device, &error)))?;
    if format.fourcc.repr != *code {
        return Err(SourceError::Setup(format!(
            "{}: refuses its own format {}",
            settings.device.display(),
            asked.fourcc
        )));
    }
    Ok((format, *pixels))
}

/// How long ago the driver says that the picture was taken.
fn age(metadata: &Metadata) -> Option<Duration> {
    if metadata.flags & Flags::TIMESTAMP_MASK != Flags::TIMESTAMP_MONOTONIC {
        return None;
    }
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::try_from(now).ok()?;
    let taken = Duration::from_secs(u64::try_from(metadata.timestamp.sec).ok()?)
        + Duration::from_micros(u64::try_from(metadata.timestamp.usec).ok()?);
    now.checked_sub(taken)
}

/// The library panics where a driver answers what the kernel's headers do not
/// know; a camera like that cannot be used, but it must not end the thread.
fn guarded<T>(work: impl FnOnce() -> Result<T, SourceError>) -> Result<T, SourceError> {
    let done = catch_unwind(AssertUnwindSafe(work));
    done.unwrap_or_else(|_| {
        Err(SourceError::Lost(
            "the driver's answer makes no sense".into(),
        ))
    })
}

fn closed() -> SourceError {
    SourceError::Lost("the camera is closed".into())
}

fn explained(device: &std::path::Path, error: &io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => "; add the user to the group video",
        io::ErrorKind::NotFound => "; numclip cameras lists those there are",
        io::ErrorKind::ResourceBusy => "; another program has it open",
        _ => "",
    };
    format!("{}: {error}{hint}", device.display())
}
