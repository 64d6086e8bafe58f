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

mod budget;
mod pool;
mod scene;
mod slot;
mod smooth;
mod supply;
mod tap;
mod track;
mod work;

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use thiserror::Error;

use crate::bundle::Bundle;
use crate::capture::{Source, SourceError};
use crate::detect::{DetectError, Detector};
use crate::encode::EncodeError;
use crate::pipeline::{Pipeline, Timed};
use crate::view::{Framing, RegionError};
use supply::Supply;

pub use budget::Budget;
pub use scene::Motion;
pub use smooth::{Smoothed, Smoothing};
pub use tap::{Glimpse, Tap};

/// Events that a reader may be behind.
const QUEUE: usize = 64;

/// An engine that is at one picture for longer will not come back.
const LONGEST_TOIL: Duration = Duration::from_secs(60);

/// Opens the source, as often as need be.
pub type Open = Arc<dyn Fn() -> Result<Box<dyn Source>, SourceError> + Send + Sync>;

/// How the pipeline is driven.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Speed of the source.
    pub pace: Pace,
    /// A source that gives nothing for this long is opened again; `None` for
    /// sources that may be silent.
    pub stall: Option<Duration>,
    /// What of the pictures is looked at.
    pub framing: Framing,
    /// Pictures that show nothing new are passed over.
    pub motion: Option<Motion>,
    /// The temporal filter.
    pub smooth: Option<Smoothing>,
    /// The most that estimates may take of the machine.
    pub budget: Option<Budget>,
    /// What is estimated, where it is not the picture as a whole.
    pub subjects: Option<Subjects>,
    /// Threads that share each picture; one unless said.
    pub threads: Option<NonZero<usize>>,
}

/// Subjects that a detector looks for; each gets estimates of its own.
#[derive(Clone, Debug)]
pub struct Subjects {
    /// Finds them.
    pub detector: Arc<Detector>,
    /// Margin around each of them, as a share of its longer side.
    pub margin: f32,
    /// How many there may be in a picture; the surest count.
    pub most: usize,
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
    Reading(Arc<Reading>),
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
    /// Shots that showed nothing new.
    pub unchanged: u64,
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
    unchanged: AtomicU64,
    unusable: AtomicU64,
    readings: AtomicU64,
    unread: AtomicU64,
    reconnects: AtomicU64,
}

/// What the worker is to do.
struct Job {
    pipeline: Arc<Pipeline>,
    settings: Settings,
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
    /// The detector failed.
    #[error(transparent)]
    Detect(#[from] DetectError),
    /// The region of interest does not fit the pictures.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The engine or the detector does not come back.
    #[error(
        "the engine has been at one picture for {:.0} s; ending, so that whoever looks after \
         numclip starts it again",
        .0.as_secs_f32()
    )]
    Stuck(Duration),
    /// The worker broke down.
    #[error("the worker thread broke down; this is a fault of numclip, please report it")]
    Worker,
}

/// A running pipeline.
pub struct Live {
    supply: Arc<Supply>,
    open: Mutex<Open>,
    settings: Mutex<Settings>,
    events: SyncSender<Event>,
    worker: Mutex<Option<JoinHandle<Result<(), LiveError>>>>,
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
            let job = Job {
                pipeline,
                settings: settings.clone(),
            };
            let patient = settings.pace.every_frame;
            thread::spawn(move || {
                let send = |event| deliver(&supply, &events, patient, event);
                work::work(&supply, job, send)
            })
        };
        let live = Self {
            supply,
            open: Mutex::new(open),
            settings: Mutex::new(settings),
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
        let mut worker = locked(&self.worker);
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
        let toil = self.supply.toiling();
        if toil > LONGEST_TOIL {
            return Err(LiveError::Stuck(toil));
        }
        // Not in the condition, which would keep the lock that a restart needs.
        let stall = locked(&self.settings).stall;
        if let Some(limit) = stall
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

    /// Has `pipeline` make all estimates from the next shot on, as `settings`
    /// say. Nothing is lost in between. Whether the source waits stays as it
    /// was at the start.
    pub fn swap(&self, pipeline: Arc<Pipeline>, settings: Settings) {
        let mut known = locked(&self.settings);
        let every_frame = known.pace.every_frame;
        *known = settings.clone();
        known.pace.every_frame = every_frame;
        *locked(&self.supply.successor) = Some(Job { pipeline, settings });
    }

    /// Takes shots from another source from now on, at the pace of the latest
    /// settings.
    pub fn reopen(&self, open: Open) {
        *locked(&self.open) = open;
        self.restart();
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        let counters = &self.supply.counters;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            captured: count(&counters.captured),
            dropped: count(&counters.dropped),
            skipped: count(&counters.skipped),
            unchanged: count(&counters.unchanged),
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
        let (open, pace) = (locked(&self.open).clone(), locked(&self.settings).pace);
        self.supply.start(open, pace, tell);
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands an event to the reader, who is waited for only where the source is.
fn deliver(supply: &Supply, events: &SyncSender<Event>, patient: bool, event: Event) {
    let sent = match patient {
        true => events.send(event).is_ok(),
        false => events.try_send(event).is_ok(),
    };
    if !sent {
        supply.counters.unread.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;
    use crate::capture::Shot;

    /// A camera that never gives anything.
    struct Silent(Receiver<()>);

    impl Source for Silent {
        fn next(&mut self, _: Vec<u8>) -> Result<Shot, SourceError> {
            let _ = self.0.recv();
            Err(SourceError::End)
        }
    }

    #[test]
    fn an_engine_that_does_not_come_back_ends_the_pipeline() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/gauge");
        let pipeline = Pipeline::new(Bundle::open(&model).unwrap(), None).unwrap();
        let (end, silence) = mpsc::channel();
        let silence = Mutex::new(Some(silence));
        let open: Open = Arc::new(move || match locked(&silence).take() {
            Some(silence) => Ok(Box::new(Silent(silence))),
            None => Err(SourceError::End),
        });
        let (live, _events) = Live::start(open, Arc::new(pipeline), Settings::default());
        let ago = |time: Duration| Instant::now().checked_sub(time);
        live.supply.toil_since(ago(LONGEST_TOIL / 2));
        assert!(live.check().unwrap());
        live.supply
            .toil_since(ago(LONGEST_TOIL + Duration::from_secs(1)));
        let error = live.check().unwrap_err();
        assert!(matches!(error, LiveError::Stuck(_)), "{error}");
        drop(end);
    }
}
