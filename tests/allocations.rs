//! What the running pipeline takes from the heap for each frame. On its own,
//! because it counts for the whole process.

use std::alloc::System;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use numclip::bundle::Bundle;
use numclip::capture::{Encoding, Shot, Source, SourceError, YuvLayout};
use numclip::live::{Event, Live, Motion, Pace, Settings, Smoothing};
use numclip::pipeline::Pipeline;
use numclip::view::{Framing, Rotation, Turn};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const WIDTH: u32 = 640;
const HEIGHT: u32 = 480;
/// Frames until all buffers have their size, and frames that are counted.
const WARM: u64 = 50;
const COUNTED: u64 = 200;

/// A camera whose picture changes a little from frame to frame.
struct Camera(u64);

impl Source for Camera {
    fn next(&mut self, mut buffer: Vec<u8>) -> Result<Shot, SourceError> {
        self.0 += 1;
        if self.0 > WARM + COUNTED + 10 {
            return Err(SourceError::End);
        }
        let layout = YuvLayout::Yuyv;
        let level = 40 + (self.0 % 8) as u8 * 20;
        buffer.resize(layout.bytes(WIDTH, HEIGHT), 128);
        buffer.iter_mut().step_by(2).for_each(|luma| *luma = level);
        Ok(Shot::now(
            buffer,
            Encoding::Yuv {
                width: WIDTH,
                height: HEIGHT,
                layout,
            },
        ))
    }
}

/// Allocations and bytes for each frame.
fn per_frame(settings: Settings) -> (f64, f64) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/gauge");
    let pipeline = Pipeline::new(Bundle::open(&model).unwrap(), None).unwrap();
    let open = Arc::new(|| Ok(Box::new(Camera(0)) as Box<dyn Source>));
    let (live, events) = Live::start(open, Arc::new(pipeline), settings);
    let seen = AtomicU64::new(0);
    let mut readings = events
        .iter()
        .filter(|event| matches!(event, Event::Reading(_)));
    let mut skip = |frames: u64| {
        let taken = readings.by_ref().take(frames as usize).count();
        seen.fetch_add(taken as u64, Ordering::Relaxed);
    };
    skip(WARM);
    let region = Region::new(ALLOCATOR);
    skip(COUNTED);
    let change = region.change();
    drop(live);
    assert_eq!(seen.load(Ordering::Relaxed), WARM + COUNTED);
    let frames = COUNTED as f64;
    let times = change.allocations + change.reallocations;
    (
        times as f64 / frames,
        change.bytes_allocated as f64 / frames,
    )
}

/// The camera's picture is 600 kB, 900 kB as RGB: nothing of that kind is
/// allocated. What is left is small: the weights that the resampler works out
/// anew for each frame, the reading, its probabilities, the embedding.
#[test]
fn frames_live_in_memory_that_is_used_again() {
    let plain = Settings {
        pace: Pace {
            interval: None,
            every_frame: true,
        },
        ..Settings::default()
    };
    let busy = Settings {
        framing: Framing {
            turn: Turn::new(Rotation::Right, None),
            roi: Some("10%,10%,80%,80%".parse().unwrap()),
        },
        motion: Some(Motion {
            threshold: 1.0,
            longest_pause: std::time::Duration::from_secs(1),
        }),
        smooth: Some(Smoothing::Median { window: 5 }),
        ..plain.clone()
    };
    for settings in [plain, busy] {
        let (times, bytes) = per_frame(settings);
        println!("{times} allocations of {bytes} bytes in all for each frame");
        assert!(bytes <= 96e3, "{times} allocations, {bytes} bytes");
    }
}
