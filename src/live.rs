//! Estimates from a running camera.
//!
//! ```text
//! capture thread ─ shot → slot of one ─→ worker thread ─ reading → queue ─→ whoever reads it
//!        ↑ watched by Live::check, replaced when it hangs
//! ```
//!
//! The camera sets no pace: the slot holds the freshest shot, and what is
//! replaced there is counted, never decoded. Neither does the reader: where
//! its queue is full, readings are dropped and counted. A source that is not a
//! camera (a folder, a clip) waits instead, and nothing is dropped.

mod slot;
mod supply;
mod tap;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use thiserror::Error;

use crate::bundle::Bundle;
use crate::capture::{Shot, Source, SourceError, develop};
use crate::encode::EncodeError;
use crate::pipeline::{Pipeline, Timed, Worker};
use supply::Supply;

pub use tap::Tap;

/// Events that a reader may be behind.
const QUEUE: usize = 64;

/// Opens the source, as often as need be.
pub type Open = Arc<dyn Fn() -> Result<Box<dyn Source>, SourceError> + Send + Sync>;

/// How the pipeline is driven.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Speed of the source.
    pub pace: Pace,
    /// A source that gives nothing for this long is opened again; `None` for
    /// sources that may be silent.
    pub stall: Option<Duration>,
}

/// How fast shots are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Least time between two shots.
    pub interval: Option<Duration>,
    /// The source waits for the network, and nothing is dropped.
    pub every_frame: bool,
}

/// What comes out.
#[derive(Debug)]
pub enum Event {
    /// An estimate.
    Reading(Box<Reading>),
    /// Something went wrong and is being dealt with.
    Notice(String),
}

/// The estimate for one subject of one shot.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Counts the shots that were looked at, from 0.
    pub frame: u64,
    /// Name of the picture, where each has its own.
    pub name: Option<Arc<str>>,
    /// When it was taken.
    pub time: SystemTime,
    /// What it shows, where the source knows it.
    pub truth: Option<f32>,
    /// Time for decoding it.
    pub decode: Duration,
    /// The estimate and the time for it.
    pub timed: Timed,
    /// From the arrival of the shot to the estimate.
    pub latency: Duration,
    /// The estimate after the temporal filter, where one runs.
    pub smoothed: Option<Smoothed>,
    /// What the estimate is about, where a detector looks for it; `None` when
    /// it is about the picture as a whole.
    pub subject: Option<Subject>,
    /// The bundle whose model made it.
    pub bundle: Arc<Bundle>,
}

/// An estimate that has seen those before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Smoothed {
    /// The quantity, in the task's unit.
    pub value: f32,
    /// Lower and upper end of the interval around `value`, where the bundle
    /// has intervals.
    pub interval: Option<[f32; 2]>,
}

/// Something that a detector found and follows from shot to shot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The same from shot to shot, as long as it is not lost from sight.
    pub id: u64,
    /// Left, top, width, height in pixels of the upright picture.
    pub region: [u32; 4],
}

/// What was counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Shots that the source gave.
    pub captured: u64,
    /// Shots that a fresher one replaced.
    pub dropped: u64,
    /// Shots that came sooner than the pace allows.
    pub skipped: u64,
    /// Shots that were no picture.
    pub unusable: u64,
    /// Estimates made.
    pub readings: u64,
    /// Estimates that the reader was too slow for.
    pub unread: u64,
    /// Times that the source was opened again.
    pub reconnects: u64,
}

#[derive(Default)]
struct Counters {
    captured: AtomicU64,
    dropped: AtomicU64,
    skipped: AtomicU64,
    unusable: AtomicU64,
    readings: AtomicU64,
    unread: AtomicU64,
    reconnects: AtomicU64,
}

/// Why the pipeline ended before it was told to.
#[derive(Debug, Error)]
pub enum LiveError {
    /// The source cannot be used.
    #[error("source: {0}")]
    Source(SourceError),
    /// The engine failed.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The worker broke down.
    #[error("the worker thread broke down; this is a fault of numclip, please report it")]
    Worker,
}

/// A running pipeline.
pub struct Live {
    supply: Arc<Supply>,
    open: Open,
    settings: Settings,
    events: SyncSender<Event>,
    worker: Mutex<Option<JoinHandle<Result<(), EncodeError>>>>,
}

impl Live {
    /// Starts capture and worker. The events end with the pipeline.
    pub fn start(
        open: Open,
        pipeline: Arc<Pipeline>,
        settings: Settings,
    ) -> (Self, Receiver<Event>) {
        let (events, queue) = sync_channel(QUEUE);
        let supply = Arc::<Supply>::default();
        let worker = {
            let (supply, events) = (Arc::clone(&supply), events.clone());
            let patient = settings.pace.every_frame;
            thread::spawn(move || work(&supply, pipeline, &events, patient))
        };
        let live = Self {
            supply,
            open,
            settings,
            events,
            worker: Mutex::new(Some(worker)),
        };
        live.restart();
        (live, queue)
    }

    /// Looks after the threads; to be called a few times a second. Says
    /// whether the pipeline still runs.
    ///
    /// # Errors
    /// [`LiveError`] when it has ended by a fault.
    pub fn check(&self) -> Result<bool, LiveError> {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if worker.as_ref().is_none_or(JoinHandle::is_finished) {
            match worker.take().map(JoinHandle::join) {
                Some(Ok(result)) => result?,
                Some(Err(_)) => return Err(LiveError::Worker),
                None => {}
            }
            return match self.supply.fault() {
                Some(fault @ SourceError::Setup(_)) => Err(LiveError::Source(fault)),
                _ => Ok(false),
            };
        }
        if let Some(limit) = self.settings.stall
            && self.supply.waiting() > limit
        {
            self.tell(format!(
                "no frame for {:.1} s; opening the source again",
                limit.as_secs_f32()
            ));
            self.supply
                .counters
                .reconnects
                .fetch_add(1, Ordering::Relaxed);
            self.restart();
        }
        Ok(true)
    }

    /// Ends the pipeline; the shot at hand is still finished. [`Live::check`]
    /// says when that is done.
    pub fn stop(&self) {
        self.supply.dismiss();
        self.supply.slot.close();
    }

    /// Has `pipeline` make all estimates from the next shot on. Nothing is lost
    /// in between.
    pub fn swap(&self, pipeline: Arc<Pipeline>) {
        *self.supply.successor() = Some(pipeline);
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        let counters = &self.supply.counters;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            captured: count(&counters.captured),
            dropped: count(&counters.dropped),
            skipped: count(&counters.skipped),
            unusable: count(&counters.unusable),
            readings: count(&counters.readings),
            unread: count(&counters.unread),
            reconnects: count(&counters.reconnects),
        }
    }

    /// Where frames are to be had for a preview.
    pub fn tap(&self) -> Arc<Tap> {
        Arc::clone(&self.supply.tap)
    }

    fn restart(&self) {
        let events = self.events.clone();
        let tell = move |notice| _ = events.try_send(Event::Notice(notice));
        self.supply
            .start(Arc::clone(&self.open), self.settings.pace, tell);
    }

    fn tell(&self, notice: String) {
        // A reader who is behind misses notices as well.
        let _ = self.events.try_send(Event::Notice(notice));
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The worker thread: shots in, readings out, until the slot is closed; with
/// another pipeline as soon as there is one.
fn work(
    supply: &Supply,
    mut pipeline: Arc<Pipeline>,
    events: &SyncSender<Event>,
    patient: bool,
) -> Result<(), EncodeError> {
    let mut frames = 0..;
    let mut shot = None;
    loop {
        let mut worker = pipeline.worker()?;
        let successor = loop {
            let Some(taken) = shot.take().or_else(|| supply.slot.take()) else {
                return Ok(());
            };
            if let Some(successor) = supply.successor().take() {
                shot = Some(taken);
                break successor;
            }
            let frame = frames.next().unwrap_or(u64::MAX);
            let event = match read(supply, &pipeline, &mut worker, frame, taken)? {
                Ok(reading) => Event::Reading(Box::new(reading)),
                Err(notice) => Event::Notice(notice),
            };
            let sent = match patient {
                true => events.send(event).is_ok(),
                false => events.try_send(event).is_ok(),
            };
            if !sent {
                supply.counters.unread.fetch_add(1, Ordering::Relaxed);
            }
        };
        drop(worker);
        pipeline = successor;
    }
}

/// The reading of one shot, or what is wrong with it.
fn read(
    supply: &Supply,
    pipeline: &Pipeline,
    worker: &mut Worker<'_>,
    frame: u64,
    shot: Shot,
) -> Result<Result<Reading, String>, EncodeError> {
    let start = Instant::now();
    let name = shot.name;
    let (picture, spare) = match develop(shot.bytes, shot.encoding, supply.slot.spare()) {
        Ok(developed) => developed,
        Err(error) => {
            supply.counters.unusable.fetch_add(1, Ordering::Relaxed);
            let name = name.unwrap_or_else(|| format!("frame {frame}").into());
            return Ok(Err(format!("{name}: {error}")));
        }
    };
    supply.slot.recycle(spare);
    let decode = start.elapsed();
    let timed = worker.estimate(&picture)?;
    if let Some(picture) = supply.tap.offer(picture) {
        supply.slot.recycle(picture.into_pixels());
    }
    supply.counters.readings.fetch_add(1, Ordering::Relaxed);
    Ok(Ok(Reading {
        frame,
        name,
        time: shot.time,
        truth: shot.truth,
        decode,
        timed,
        latency: shot.at.elapsed(),
        smoothed: None,
        subject: None,
        bundle: Arc::clone(pipeline.bundle()),
    }))
}
