//! A camera from hell: hangs, tears, lies and changes its size; every good
//! picture is answered all the same.
//!
//! `NUMCLIP_CHAOS_FRAMES=100000` makes it last.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use numclip::bundle::Bundle;
use numclip::capture::{Encoding, JpegStream, Shot, Source, SourceError, Stopper};
use numclip::frame::PixelFormat;
use numclip::live::{Event, Live, Motion, Pace, Reading, Settings, Smoothing};
use numclip::pipeline::Pipeline;

use crate::common::{picture, write_bundle};

const STALL: Duration = Duration::from_secs(2);

fn frames() -> u64 {
    let asked = std::env::var("NUMCLIP_CHAOS_FRAMES").ok();
    asked.map_or(3000, |frames| frames.parse().unwrap())
}

/// What the camera does next.
#[derive(Clone, Copy)]
enum Deed {
    Pixels,
    Jpeg,
    TornJpeg,
    Garbage,
    WrongLength,
    Hiccup,
    Hang,
    Break,
}

/// What all cameras of one run share: the random numbers go on where the
/// camera before broke down.
struct Chaos {
    random: AtomicU64,
    left: AtomicU64,
    openings: AtomicU64,
    pictures: Vec<(RgbImage, Vec<u8>)>,
    /// Numbers of the good pictures that were given out.
    good: Mutex<VecDeque<usize>>,
}

struct Camera {
    chaos: Arc<Chaos>,
    stream: JpegStream<Bytes>,
    /// The pictures that the stream holds whole.
    sent: Arc<Mutex<VecDeque<usize>>>,
    is_stopped: Arc<AtomicBool>,
}

/// An MJPEG stream with torn pictures and dirt between whole ones.
struct Bytes {
    chaos: Arc<Chaos>,
    waiting: VecDeque<u8>,
    sent: Arc<Mutex<VecDeque<usize>>>,
}

impl Chaos {
    fn new(frames: u64) -> Self {
        let jpeg = |image: &RgbImage| {
            let mut bytes = Vec::new();
            let encoder = JpegEncoder::new_with_quality(&mut bytes, 90);
            image.write_with_encoder(encoder).unwrap();
            bytes
        };
        let pictures = (0..12).map(|seed| {
            // Each of another size.
            let image = picture(17 + 5 * seed, 60 - 4 * seed, seed);
            let bytes = jpeg(&image);
            (image, bytes)
        });
        Self {
            random: AtomicU64::new(20),
            left: AtomicU64::new(frames),
            openings: AtomicU64::new(0),
            pictures: pictures.collect(),
            good: Mutex::default(),
        }
    }

    /// A number below `limit` (splitmix64).
    fn draw(&self, limit: u64) -> u64 {
        let step = 0x9E37_79B9_7F4A_7C15;
        let mut z = self
            .random
            .fetch_add(step, Ordering::SeqCst)
            .wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }

    fn deed(&self) -> Deed {
        match self.draw(2000) {
            0 => Deed::Hang,
            1..10 => Deed::Break,
            10..40 => Deed::Hiccup,
            40..300 => Deed::Garbage,
            300..500 => Deed::TornJpeg,
            500..600 => Deed::WrongLength,
            600..1300 => Deed::Jpeg,
            _ => Deed::Pixels,
        }
    }

    fn open(self: &Arc<Self>) -> Result<Box<dyn Source>, SourceError> {
        // Not there at the first try after each fault.
        if self.openings.fetch_add(1, Ordering::SeqCst) % 7 == 3 {
            return Err(SourceError::Lost("no such camera".into()));
        }
        let sent = Arc::default();
        let bytes = Bytes {
            chaos: Arc::clone(self),
            waiting: VecDeque::new(),
            sent: Arc::clone(&sent),
        };
        Ok(Box::new(Camera {
            chaos: Arc::clone(self),
            stream: JpegStream::new(bytes),
            sent,
            is_stopped: Arc::default(),
        }))
    }

    /// A shot of picture `index`, which is to be answered.
    fn good(&self, index: usize, bytes: Vec<u8>, encoding: Encoding) -> Shot {
        self.good.lock().unwrap().push_back(index);
        let mut shot = Shot::now(bytes, encoding);
        shot.truth = Some(index as f32);
        // The wall clock jumps about, into 1970 and beyond 2100.
        shot.time = SystemTime::UNIX_EPOCH + Duration::from_secs(self.draw(1 << 33));
        shot
    }
}

impl Source for Camera {
    fn next(&mut self, mut buffer: Vec<u8>) -> Result<Shot, SourceError> {
        let chaos = Arc::clone(&self.chaos);
        if chaos.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            chaos.left.store(0, Ordering::SeqCst);
            return Err(SourceError::End);
        }
        let index = chaos.draw(chaos.pictures.len() as u64) as usize;
        let (image, jpeg) = &chaos.pictures[index];
        let pixels = |(width, height)| Encoding::Pixels {
            width,
            height,
            format: PixelFormat::Rgb,
        };
        buffer.clear();
        match chaos.deed() {
            Deed::Pixels => {
                buffer.extend_from_slice(image);
                return Ok(chaos.good(index, buffer, pixels(image.dimensions())));
            }
            Deed::Jpeg => return self.streamed(buffer),
            Deed::TornJpeg => {
                buffer.extend_from_slice(&jpeg[..jpeg.len() / 2]);
                return Ok(Shot::now(buffer, Encoding::Jpeg));
            }
            Deed::Garbage => {
                buffer.extend((0..chaos.draw(900)).map(|_| chaos.draw(256) as u8));
                let encoding = [Encoding::Jpeg, Encoding::File][chaos.draw(2) as usize];
                return Ok(Shot::now(buffer, encoding));
            }
            Deed::WrongLength => {
                buffer.extend_from_slice(image);
                let sizes = [(0, 9), (9, 0), (u32::MAX, u32::MAX), (7, 7)];
                return Ok(Shot::now(buffer, pixels(sizes[chaos.draw(4) as usize])));
            }
            Deed::Hiccup => {
                thread::sleep(Duration::from_millis(chaos.draw(8)));
                return Err(SourceError::Picture("the camera says it is broken".into()));
            }
            Deed::Break => {}
            Deed::Hang => {
                while !self.is_stopped.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(5));
                }
            }
        }
        Err(SourceError::Lost("the camera is gone".into()))
    }

    fn stopper(&self) -> Option<Stopper> {
        let flag = Arc::clone(&self.is_stopped);
        Some(Box::new(move || flag.store(true, Ordering::SeqCst)))
    }
}

impl Camera {
    fn streamed(&mut self, mut buffer: Vec<u8>) -> Result<Shot, SourceError> {
        let Ok(Some(jpeg)) = self.stream.next_picture() else {
            return Err(SourceError::Lost("the stream is dry".into()));
        };
        let index = self.sent.lock().unwrap().pop_front().unwrap();
        assert_eq!(jpeg, self.chaos.pictures[index].1);
        buffer.extend_from_slice(jpeg);
        Ok(self.chaos.good(index, buffer, Encoding::Jpeg))
    }
}

impl Read for Bytes {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.waiting.len() < 400 {
            let index = self.chaos.draw(self.chaos.pictures.len() as u64) as usize;
            let jpeg = &self.chaos.pictures[index].1;
            match self.chaos.draw(3) {
                0 => self
                    .waiting
                    .extend((0..self.chaos.draw(90)).map(|x| x as u8)),
                // Torn in its coded data: what comes next is whole.
                1 => self.waiting.extend(&jpeg[..jpeg.len() - 9]),
                _ => {
                    self.waiting.extend(jpeg);
                    self.sent.lock().unwrap().push_back(index);
                }
            }
        }
        let count = (1 + self.chaos.draw(3000) as usize)
            .min(into.len())
            .min(self.waiting.len());
        for (to, byte) in into.iter_mut().zip(self.waiting.drain(..count)) {
            *to = byte;
        }
        Ok(count)
    }
}

fn live(chaos: &Arc<Chaos>, pipeline: &Arc<Pipeline>, settings: Settings) -> Vec<Reading> {
    let camera = Arc::clone(chaos);
    let open = Arc::new(move || camera.open());
    let (live, events) = Live::start(open, Arc::clone(pipeline), settings);
    let reader = thread::spawn(move || {
        let reading = |event| match event {
            Event::Reading(reading) => Some(Arc::unwrap_or_clone(reading)),
            Event::Notice(_) => None,
        };
        events.into_iter().filter_map(reading).collect()
    });
    while live.check().unwrap() {
        thread::sleep(Duration::from_millis(20));
    }
    drop(live);
    reader.join().unwrap()
}

fn pipeline() -> Arc<Pipeline> {
    let place = tempfile::tempdir().unwrap();
    write_bundle(&place.path().join("model"));
    let bundle = Bundle::open(&place.path().join("model")).unwrap();
    Arc::new(Pipeline::new(bundle, None).unwrap())
}

#[test]
fn every_good_picture_is_answered_rightly() {
    let pipeline = pipeline();
    let chaos = Arc::new(Chaos::new(frames()));
    let settings = Settings {
        pace: Pace {
            interval: None,
            every_frame: true,
        },
        stall: Some(STALL),
        ..Settings::default()
    };
    let readings = live(&chaos, &pipeline, settings);
    let good = std::mem::take(&mut *chaos.good.lock().unwrap());
    assert!(good.len() as u64 > frames() / 2);
    assert_eq!(readings.len(), good.len());
    let mut worker = pipeline.worker().unwrap();
    let pixels = chaos.pictures.iter().map(|(image, _)| image.clone());
    let values: Vec<f32> = pixels
        .map(|image| worker.estimate(&image.into()).unwrap().estimate.value)
        .collect();
    for (reading, index) in readings.iter().zip(good) {
        assert_eq!(reading.truth, Some(index as f32));
        let apart = (reading.timed.estimate.value - values[index]).abs();
        // JPEG is not exact.
        assert!(apart < 0.5, "picture {index}: {apart}");
    }
}

#[test]
fn a_camera_that_does_not_wait_keeps_running_with_every_option_on() {
    let chaos = Arc::new(Chaos::new(frames() / 3));
    let settings = Settings {
        stall: Some(STALL),
        framing: numclip::view::Framing {
            turn: numclip::view::Turn::new(numclip::view::Rotation::Right, None),
            roi: Some("10%,10%,80%,80%".parse().unwrap()),
        },
        motion: Some(Motion {
            threshold: 6.0,
            longest_pause: Duration::from_secs(1),
        }),
        smooth: Some(Smoothing::Kalman { drift: None }),
        ..Settings::default()
    };
    let start = Instant::now();
    let readings = live(&chaos, &pipeline(), settings);
    assert!(!readings.is_empty());
    for reading in &readings {
        let smoothed = reading.smoothed.unwrap();
        let [low, high] = smoothed.interval.unwrap();
        assert!(low <= smoothed.value && smoothed.value <= high);
        assert!(reading.latency <= start.elapsed());
    }
}
