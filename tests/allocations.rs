//! What the running pipeline takes from the heap for each frame. On its own,
//! because it counts for the whole process.

use std::alloc::System;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use numclip::bundle::Bundle;
use numclip::capture::{Encoding, Shot, Source, SourceError, YuvLayout};
use numclip::live::{Event, Live, Motion, Pace, Settings, Smoothing};
use numclip::pipeline::Pipeline;
use numclip::sink::file::FileSettings;
use numclip::sink::lines::{Form, Lines};
use numclip::sink::{Answer, Hub};
use numclip::view::{Framing, Rotation, Turn};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const WIDTH: u32 = 640;
const HEIGHT: u32 = 480;
/// Frames until all buffers have their size, and frames that are counted.
const WARM: u64 = 300;
const COUNTED: u64 = 200;
/// No frame takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

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
        // What was in it would be chroma, and make some pictures look alike.
        buffer.clear();
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

/// Allocations for each frame: from the camera to a line in a file.
fn per_frame(settings: Settings) -> f64 {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/gauge");
    let pipeline = Pipeline::new(Bundle::open(&model).unwrap(), None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = FileSettings::new(folder.path().join("estimates.jsonl"));
    let (lines, _) = Lines::open(Form::Json, &file).unwrap();
    let notices = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&notices);
    let hub = Hub::new(
        true,
        Arc::new(move |notice| told.lock().unwrap().push(notice)),
    );
    hub.add("lines".into(), Box::new(lines));
    let open = Arc::new(|| Ok(Box::new(Camera(0)) as Box<dyn Source>));
    let (live, events) = Live::start(open, Arc::new(pipeline), settings);
    let source: Arc<str> = "camera".into();
    let pass_on = |frames: u64| {
        for frame in 0..frames {
            let event = events.recv_timeout(PATIENCE);
            let event = event.unwrap_or_else(|error| {
                let counts = live.counts();
                panic!(
                    "{error} at {frame} of {frames}: {counts:?}, {:?}",
                    hub.status()
                )
            });
            match event {
                Event::Reading(reading) => hub.put(Answer {
                    source: Arc::clone(&source),
                    reading,
                }),
                Event::Notice(notice) => panic!("{notice}"),
            }
        }
        assert_eq!(*notices.lock().unwrap(), [""; 0]);
    };
    pass_on(WARM);
    let region = Region::new(ALLOCATOR);
    pass_on(COUNTED);
    let change = region.change();
    drop(live);
    (change.allocations + change.reallocations) as f64 / COUNTED as f64
}

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
            longest_pause: Duration::from_secs(1),
        }),
        smooth: Some(Smoothing::Median { window: 5 }),
        ..plain.clone()
    };
    for settings in [plain, busy] {
        let times = per_frame(settings);
        assert!(times < 0.1, "{times} allocations for each frame");
    }
}
