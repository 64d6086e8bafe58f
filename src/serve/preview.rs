//! What the camera sees, as small JPEG pictures for those who watch.
//!
//! One thread makes them for all viewers, only while there is one, and never
//! uses more than a part of one core.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use tokio::sync::watch;

use super::screen::Screen;
use crate::live::Tap;
use crate::preprocess::Preprocessor;
use crate::snapshot::write_jpeg;
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
        let mut jpeg = Vec::new();
        if write_jpeg(&mut preprocessor, &view, (SIDE, QUALITY), &mut jpeg).is_ok() {
            pictures.send_replace(Picture::new(&jpeg));
        }
        let work = start.elapsed();
        thread::sleep(PERIOD.max(SHARE * work) - work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_stream_holds_the_picture_and_its_length() {
        let picture = Picture::new(b"a picture");
        assert_eq!(picture.jpeg(), "a picture");
        let part = String::from_utf8(picture.part.to_vec()).unwrap();
        assert!(
            part.contains("Content-Length: 9\r\n\r\na picture\r\n--"),
            "{part}"
        );
    }
}
