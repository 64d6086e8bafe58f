//! The worker thread: shots in, readings out.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::budget::{Budget, Outlay};
use super::pool::Pool;
use super::scene::{Change, Scene};
use super::smooth::{LONGEST_GAP, Smoothed, Smoother};
use super::supply::Supply;
use super::track::Tracks;
use super::{Event, Job, LiveError, Reading, Settings, Subject, locked};
use crate::bundle::Bundle;
use crate::capture::{Shot, develop};
use crate::detect::Finder;
use crate::encode::EncodeError;
use crate::frame::Frame;
use crate::pipeline::{Timed, Worker};
use crate::view::{RegionError, View};

/// Takes shots until the slot is closed; `send` hears of all that comes of
/// them. As soon as there is another job, the next shot is its first.
pub fn work(supply: &Supply, mut job: Job, mut send: impl FnMut(Event)) -> Result<(), LiveError> {
    let (mut frame, mut tracks, mut next) = (0, Tracks::default(), None);
    loop {
        let mut observer = Observer::new(supply, &job, (frame, tracks))?;
        let successor = loop {
            let Some(shot) = next.take().or_else(|| supply.slot.take()) else {
                return Ok(());
            };
            if let Some(successor) = locked(&supply.successor).take() {
                next = Some(shot);
                break successor;
            }
            let budget = job.settings.budget;
            let outlay = budget.map(|budget| (budget, Outlay::begin()));
            let observed = observer.observe(shot, &mut |event| {
                // A reader who is waited for is no fault of the engine.
                supply.toil_since(None);
                send(event);
                supply.toil_since(Some(Instant::now()));
            });
            supply.toil_since(None);
            observed?;
            if let Some((budget, outlay)) = outlay {
                supply.slot.rest(outlay.rest(budget));
            }
        };
        (frame, tracks) = (observer.frame, observer.tracks);
        tracks.clear();
        job = successor;
    }
}

/// Makes readings of shots.
struct Observer<'a> {
    supply: &'a Supply,
    settings: &'a Settings,
    bundle: &'a Arc<Bundle>,
    worker: Worker<'a>,
    scene: Option<Scene>,
    smoother: Option<Smoother>,
    finder: Option<Finder<'a>>,
    tracks: Tracks,
    readings: Pool<Reading>,
    frame: u64,
}

/// What the readings of one shot share.
struct Origin {
    frame: u64,
    name: Option<Arc<str>>,
    time: SystemTime,
    at: Instant,
    truth: Option<f32>,
    decode: Duration,
}

impl<'a> Observer<'a> {
    fn new(
        supply: &'a Supply,
        Job { pipeline, settings }: &'a Job,
        (frame, tracks): (u64, Tracks),
    ) -> Result<Self, LiveError> {
        let bundle = pipeline.bundle();
        let range = bundle.manifest().task.range;
        let needs_scene =
            settings.motion.is_some() || settings.smooth.is_some() || settings.subjects.is_some();
        let detector = settings
            .subjects
            .as_ref()
            .map(|subjects| &subjects.detector);
        Ok(Self {
            supply,
            settings,
            bundle,
            worker: pipeline.worker_on(settings.threads.unwrap_or(NonZero::<usize>::MIN))?,
            scene: needs_scene.then(|| Scene::new(settings.motion)),
            smoother: smoother(settings, range),
            finder: detector.map(|detector| detector.finder()).transpose()?,
            tracks,
            readings: Pool::default(),
            frame,
        })
    }

    fn observe(&mut self, shot: Shot, send: &mut impl FnMut(Event)) -> Result<(), LiveError> {
        let start = Instant::now();
        let frame = self.frame;
        self.frame += 1;
        self.supply.toil_since(Some(Instant::now()));
        let spare = self.supply.slot.spare();
        let (picture, spare) = match develop(shot.bytes, shot.encoding, spare) {
            Ok(developed) => developed,
            Err(error) => {
                self.pass_over(shot.name.as_deref(), frame, &error, send);
                return Ok(());
            }
        };
        self.supply.slot.recycle(spare);
        let origin = Origin {
            frame,
            name: shot.name,
            time: shot.time,
            at: shot.at,
            truth: shot.truth,
            decode: start.elapsed(),
        };
        match self.read(&picture, &origin, send) {
            // The engine failed on this picture; it may do better on the next.
            Err(LiveError::Encode(error @ EncodeError::Run { .. })) => {
                self.pass_over(origin.name.as_deref(), frame, &error, send);
            }
            result => result?,
        }
        let framing = self.settings.framing;
        if let Some(picture) = self.supply.tap.offer(picture, framing) {
            self.supply.slot.recycle(picture.into_pixels());
        }
        Ok(())
    }

    /// Sends the readings of a picture, if it shows anything new.
    fn read(
        &mut self,
        picture: &Frame,
        origin: &Origin,
        send: &mut impl FnMut(Event),
    ) -> Result<(), LiveError> {
        let view = match self.settings.framing.view(picture) {
            Ok(view) => view,
            Err(error) => return self.out_of_frame(error, origin, send),
        };
        match self
            .scene
            .as_mut()
            .map(|scene| scene.look(&view, origin.at))
        {
            None | Some(Change::Moved) => {}
            Some(Change::Cut) => self.forget(),
            Some(Change::Still) => {
                let unchanged = &self.supply.counters.unchanged;
                unchanged.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
        }
        match self.settings.subjects {
            None => self.read_whole(&view, origin, send),
            Some(_) => self.read_subjects(&view, origin, send),
        }
    }

    fn read_whole(
        &mut self,
        view: &View<'_>,
        origin: &Origin,
        send: &mut impl FnMut(Event),
    ) -> Result<(), LiveError> {
        let timed = self.worker.estimate_view(view)?;
        let smoothed = smooth(self.smoother.as_mut(), origin.at, &timed);
        self.send(origin, timed, smoothed, None, send);
        Ok(())
    }

    /// One reading for each subject in sight.
    fn read_subjects(
        &mut self,
        view: &View<'_>,
        origin: &Origin,
        send: &mut impl FnMut(Event),
    ) -> Result<(), LiveError> {
        let (Some(subjects), Some(finder)) = (&self.settings.subjects, &mut self.finder) else {
            return Ok(());
        };
        let (settings, range) = (self.settings, self.bundle.manifest().task.range);
        let found = finder.find(view)?;
        let found = &found[..found.len().min(subjects.most)];
        self.tracks
            .update(found, origin.at, || smoother(settings, range));
        let mut tracks = std::mem::take(&mut self.tracks);
        let seen = tracks.in_sight().try_for_each(|track| {
            let (subject, region) = track.crop(view, subjects.margin);
            let Ok(part) = view.part(region) else {
                unreachable!("a crop lies within its view");
            };
            let timed = self.worker.estimate_view(&part)?;
            let smoothed = smooth(track.smoother.as_mut(), origin.at, &timed);
            self.send(origin, timed, smoothed, Some(subject), send);
            Ok(())
        });
        self.tracks = tracks;
        seen
    }

    fn send(
        &mut self,
        origin: &Origin,
        timed: Timed,
        smoothed: Option<Smoothed>,
        subject: Option<Subject>,
        send: &mut impl FnMut(Event),
    ) {
        let readings = &self.supply.counters.readings;
        readings.fetch_add(1, Ordering::Relaxed);
        let (reading, old) = self.readings.put(Reading {
            frame: origin.frame,
            name: origin.name.clone(),
            time: origin.time,
            truth: origin.truth,
            decode: origin.decode,
            timed,
            latency: origin.at.elapsed(),
            smoothed,
            subject,
            bundle: Arc::clone(self.bundle),
        });
        if let Some(old) = old {
            self.worker.recycle(old.timed.estimate);
        }
        send(Event::Reading(reading));
    }

    /// Another scene: what was seen before says nothing about it.
    fn forget(&mut self) {
        self.tracks.clear();
        if let Some(smoother) = &mut self.smoother {
            smoother.reset();
        }
    }

    /// A region that never fitted is a mistake of the settings; one that has
    /// is a camera that changed its format for a while.
    fn out_of_frame(
        &self,
        error: RegionError,
        origin: &Origin,
        send: &mut impl FnMut(Event),
    ) -> Result<(), LiveError> {
        if self.supply.counters.readings.load(Ordering::Relaxed) == 0 {
            return Err(error.into());
        }
        self.pass_over(origin.name.as_deref(), origin.frame, &error, send);
        Ok(())
    }

    fn pass_over(
        &self,
        name: Option<&str>,
        frame: u64,
        error: &dyn std::error::Error,
        send: &mut impl FnMut(Event),
    ) {
        let unusable = &self.supply.counters.unusable;
        unusable.fetch_add(1, Ordering::Relaxed);
        let notice = match name {
            Some(name) => format!("{name}: {error}"),
            None => format!("frame {frame}: {error}"),
        };
        send(Event::Notice(notice));
    }
}

/// A filter as asked for, which does not forget while estimates are rare by
/// intention.
fn smoother(settings: &Settings, range: [f32; 2]) -> Option<Smoother> {
    let budget = match settings.budget {
        Some(Budget::Fps(fps)) => Some(Duration::from_secs_f32(1.0 / fps)),
        _ => None,
    };
    let pause = settings.motion.map(|motion| motion.longest_pause);
    let rare = [settings.pace.interval, budget, pause]
        .into_iter()
        .flatten()
        .max();
    let longest_gap = rare.map_or(LONGEST_GAP, |rare| LONGEST_GAP.max(3 * rare));
    let smoothing = settings.smooth?;
    Some(Smoother::new(smoothing, range, longest_gap))
}

fn smooth(smoother: Option<&mut Smoother>, at: Instant, timed: &Timed) -> Option<Smoothed> {
    let now = Smoothed {
        value: timed.estimate.value,
        interval: timed.estimate.interval,
    };
    smoother.map(|smoother| smoother.smooth(at, now))
}
