//! What the camera sees, as small JPEG pictures for those who watch.
//!
//! One thread makes them for all viewers, only while there is one, and never
//! uses more than a part of one core.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use tokio::sync::watch;

use super::screen::Screen;
use crate::live::Tap;
use crate::preprocess::{Filter, Preprocessor};
use crate::view::View;

/// Longest side of a picture in pixels.
const SIDE: u32 = 640;
/// Quality of a picture, 1 to 100.
const QUALITY: u8 = 75;
/// Least time between two pictures.
const PERIOD: Duration = Duration::from_millis(100);
/// Making pictures takes at most one part in this many of a core.
const SHARE: u32 = 4;
/// How long it takes at most to notice that nobody watches any more.
const WAIT: Duration = Duration::from_millis(250);

/// Line between two pictures of a stream.
pub const BOUNDARY: &str = "numclip-frame";

/// Makes pictures while somebody watches.
pub struct Preview {
    pictures: watch::Sender<Picture>,
    ended: Arc<AtomicBool>,
    thread: Thread,
}

/// One picture, ready to be sent.
#[derive(Clone, Default)]
pub struct Picture {
    part: Bytes,
    head: usize,
    jpeg: usize,
}

impl Preview {
    /// Starts the thread, which asks `tap` for frames and tells `screen` their
    /// size.
    pub fn start(tap: Arc<Tap>, screen: Arc<Screen>) -> Self {
        let pictures = watch::Sender::new(Picture::default());
        let ended = Arc::<AtomicBool>::default();
        let thread = {
            let (pictures, ended) = (pictures.clone(), Arc::clone(&ended));
            thread::spawn(move || film(&tap, &screen, &pictures, &ended))
        };
        Self {
            pictures,
            ended,
            thread: thread.thread().clone(),
        }
    }

    /// The pictures from now on. Who is slow misses some.
    pub fn watch(&self) -> watch::Receiver<Picture> {
        let mut pictures = self.pictures.subscribe();
        // The picture that lies there is from the last time somebody watched.
        pictures.mark_unchanged();
        self.thread.unpark();
        pictures
    }
}

impl Drop for Preview {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

impl Picture {
    /// The picture and the boundary behind it, as a part of a stream.
    pub fn part(&self) -> Bytes {
        self.part.clone()
    }

    /// The picture alone.
    pub fn jpeg(&self) -> Bytes {
        self.part.slice(self.head..self.head + self.jpeg)
    }

    fn new(jpeg: &[u8]) -> Self {
        let length = jpeg.len();
        let head = format!("Content-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n");
        let tail = format!("\r\n--{BOUNDARY}\r\n");
        Self {
            part: [head.as_bytes(), jpeg, tail.as_bytes()].concat().into(),
            head: head.len(),
            jpeg: length,
        }
    }
}

fn film(tap: &Tap, screen: &Screen, pictures: &watch::Sender<Picture>, ended: &AtomicBool) {
    let mut preprocessor = Preprocessor::default();
    while !ended.load(Ordering::SeqCst) {
        if pictures.receiver_count() == 0 {
            thread::park_timeout(Duration::from_secs(1));
            continue;
        }
        let Some(glimpse) = tap.next(WAIT) else {
            continue;
        };
        let start = Instant::now();
        let view = View::turned(&glimpse.frame, glimpse.framing.turn);
        let (width, height) = (view.width(), view.height());
        let region = glimpse.framing.roi.map(|roi| roi.region(width, height));
        screen.set_picture([width, height], region);
        if let Some(jpeg) = encode(&mut preprocessor, &view) {
            pictures.send_replace(Picture::new(&jpeg));
        }
        let work = start.elapsed();
        thread::sleep(PERIOD.max(SHARE * work) - work);
    }
}

/// The whole of `view` within [`SIDE`] as JPEG; the encoder takes all that has
/// pixels.
fn encode(preprocessor: &mut Preprocessor, view: &View<'_>) -> Option<Vec<u8>> {
    let longest = u64::from(view.width().max(view.height()));
    let limit = longest.min(u64::from(SIDE));
    let side = |side: u32| (u64::from(side) * limit / longest).max(1) as u32;
    let (width, height) = (side(view.width()), side(view.height()));
    let pixels = preprocessor.scale(Filter::Bilinear, view, width, height);
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
        .encode(pixels, width, height, ExtendedColorType::Rgb8)
        .ok()?;
    Some(jpeg)
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
        let jpeg = encode(&mut Preprocessor::default(), &view).unwrap();
        let picture = Picture::new(&jpeg);
        let jpeg = image::load_from_memory(&picture.jpeg()).unwrap();
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
