//! What is kept for those who watch: the latest records, the past minutes, the
//! state of camera and model.
//!
//! Plain values come in, from a thread of the sinks; memory is bounded whatever
//! the number of those who read, and however slowly they do.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use serde::Serialize;
use tokio::sync::broadcast;

use super::health::{Camera, Histogram, Pulse};
use crate::bins::Bin;
use crate::pipeline::Pipeline;
use crate::record::rfc3339;
use crate::sink::{Answer, Sink, SinkError};
use crate::status::{Board, Status};
use crate::view::Region;

/// Events that a client may be behind before it skips to the newest.
const BEHIND: usize = 64;
/// Records that are kept for clients who come back.
const RECORDS: usize = 256;
/// Points that are kept of the past, and the least time between two of them.
const POINTS: usize = 1200;
const POINT_EVERY: Duration = Duration::from_millis(250);

/// What those who watch are shown.
pub struct Screen {
    board: Arc<Board>,
    events: broadcast::Sender<Bytes>,
    inside: Mutex<Inside>,
}

struct Inside {
    pipeline: Arc<Pipeline>,
    pulse: Pulse,
    latency: Histogram,
    notice: Option<Notice>,
    picture: Option<[u32; 2]>,
    region: Option<[u32; 4]>,
    /// Number of the next record; larger than any of an earlier process.
    next: u64,
    records: VecDeque<(u64, Bytes)>,
    latest: Option<Arc<str>>,
    points: VecDeque<Point>,
}

/// Everything there is to say about a running camera.
#[derive(Serialize)]
pub struct State {
    /// What the pipeline says of itself.
    #[serde(flatten)]
    pub status: Status,
    /// Whether frames come.
    pub camera: Camera,
    /// Seconds since a frame came.
    pub silent: f64,
    /// Width and height of the upright picture, once somebody has watched.
    pub picture: Option<[u32; 2]>,
    /// Left, top, width, height of the part of it that counts.
    pub region: Option<[u32; 4]>,
    /// The last thing that went wrong.
    pub notice: Option<Notice>,
    /// What is estimated.
    pub task: Task,
    /// Times from the arrival of a shot to its estimate.
    #[serde(skip)]
    pub latency: Histogram,
    /// The latest value, in the task's unit.
    #[serde(skip)]
    pub value: Option<f32>,
}

/// Something that went wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Notice {
    /// When, as RFC 3339 has it.
    pub time: String,
    /// What.
    pub text: String,
}

/// A quantity.
#[derive(Clone, Debug, Serialize)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// Its least and its greatest value.
    pub range: [f32; 2],
    /// The bins.
    pub bins: Vec<Bin>,
    /// Share of values that an interval holds, 0 to 1.
    pub coverage: Option<f32>,
}

/// An estimate of the past.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// When, in milliseconds since 1970.
    pub time: u64,
    /// The value, in the task's unit; smoothed, where a filter runs.
    pub value: f32,
    /// Its interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f32; 2]>,
    /// Whom it is about, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<u64>,
}

impl Screen {
    /// A screen for a pipeline whose status hangs on `board`. A source that is
    /// silent for longer than `silence` is at fault; `None` for those that may
    /// be.
    pub fn new(pipeline: Arc<Pipeline>, board: Arc<Board>, silence: Option<Duration>) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            board,
            events: broadcast::Sender::new(BEHIND),
            inside: Mutex::new(Inside {
                pipeline,
                pulse: Pulse::new(silence, Instant::now()),
                latency: Histogram::default(),
                notice: None,
                picture: None,
                region: None,
                next: since_epoch.map_or(0, |since| since.as_micros() as u64),
                records: VecDeque::new(),
                latest: None,
                points: VecDeque::new(),
            }),
        }
    }

    /// Shows `answer`.
    pub fn publish(&self, answer: &Answer) {
        let record = answer.to_json();
        let mut inside = self.lock();
        inside.latency.observe(answer.reading.latency);
        inside.keep_point(Point::of(answer));
        let event = inside.keep_record(&record);
        inside.latest = Some(record.into());
        // Sent under the lock, so that whoever begins to follow misses none and
        // gets none twice. Nobody may be listening.
        let _ = self.events.send(event);
    }

    /// Shows that something went wrong.
    pub fn notice(&self, text: &str) {
        self.lock().notice = Some(Notice {
            time: rfc3339(SystemTime::now()),
            text: text.into(),
        });
    }

    /// Another model runs from now on, on a source that may be silent for
    /// `silence`.
    pub fn renew(&self, pipeline: Arc<Pipeline>, silence: Option<Duration>) {
        let mut inside = self.lock();
        inside.pipeline = pipeline;
        inside.pulse.silence = silence;
    }

    /// The model that runs.
    pub(super) fn pipeline(&self) -> Arc<Pipeline> {
        Arc::clone(&self.lock().pipeline)
    }

    /// Takes note of the width and height of the upright picture, and of the
    /// part that counts.
    pub(super) fn set_picture(&self, size: [u32; 2], region: Option<Region>) {
        let mut inside = self.lock();
        inside.picture = Some(size);
        inside.region = region.map(Region::to_array);
    }

    /// The latest record.
    pub(super) fn latest(&self) -> Option<Arc<str>> {
        self.lock().latest.clone()
    }

    /// The past minutes, thinned out, oldest first.
    pub(super) fn history(&self) -> Vec<Point> {
        self.lock().points.iter().copied().collect()
    }

    /// Looks at the board and tells all who follow, who hear by it that the
    /// connection stands; to be called about once a second.
    pub(super) fn beat(&self) {
        let status = self.board.get();
        self.lock().pulse.feel(&status, Instant::now());
        if self.events.receiver_count() > 0 {
            let _ = self.events.send(self.state_event());
        }
    }

    /// How camera and model are.
    pub(super) fn state(&self) -> State {
        let status = self.board.get();
        let (inside, now) = (self.lock(), Instant::now());
        State {
            status,
            camera: inside.pulse.camera(now),
            silent: inside.pulse.silent(now).as_secs_f64(),
            picture: inside.picture,
            region: inside.region,
            notice: inside.notice.clone(),
            task: Task::of(&inside.pipeline),
            latency: inside.latency,
            value: inside.points.back().map(|point| point.value),
        }
    }

    /// Whether frames come, or need not.
    pub(super) fn camera(&self) -> Camera {
        self.lock().pulse.camera(Instant::now())
    }

    /// What a client has missed since event `since`, and what is yet to come;
    /// a new client begins with the newest record.
    pub(super) fn follow(
        &self,
        since: Option<u64>,
    ) -> (VecDeque<Bytes>, broadcast::Receiver<Bytes>) {
        let inside = self.lock();
        let since = since.unwrap_or(inside.next.saturating_sub(2));
        let missed = inside.records.iter().filter(|(number, _)| *number > since);
        let missed = missed.map(|(_, event)| event.clone()).collect();
        (missed, self.events.subscribe())
    }

    /// The state as an event.
    pub(super) fn state_event(&self) -> Bytes {
        // Numbers and text always have a form in JSON.
        let state = serde_json::to_string(&self.state()).unwrap_or_default();
        Bytes::from(format!("event: state\ndata: {state}\n\n"))
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the places where estimates go.
impl Sink for Arc<Screen> {
    fn put(&mut self, answer: &Answer) -> Result<(), SinkError> {
        self.publish(answer);
        Ok(())
    }
}

impl Inside {
    /// Keeps `record` for clients who come back, as the event that it is.
    fn keep_record(&mut self, record: &str) -> Bytes {
        let event = Bytes::from(format!("id: {}\ndata: {record}\n\n", self.next));
        if self.records.len() == RECORDS {
            self.records.pop_front();
        }
        self.records.push_back((self.next, event.clone()));
        self.next += 1;
        event
    }

    /// Keeps `point` unless it follows too closely on another; those of one
    /// picture stay together.
    fn keep_point(&mut self, point: Point) {
        let gap = |last: &Point| u128::from(point.time.abs_diff(last.time));
        let close = |gap: u128| gap > 0 && gap < POINT_EVERY.as_millis();
        if self.points.back().map(gap).is_some_and(close) {
            return;
        }
        if self.points.len() == POINTS {
            self.points.pop_front();
        }
        self.points.push_back(point);
    }
}

impl Task {
    fn of(pipeline: &Pipeline) -> Self {
        let manifest = pipeline.bundle().manifest();
        Self {
            name: manifest.task.name.clone(),
            unit: manifest.task.unit.clone(),
            range: manifest.task.range,
            bins: manifest.bins.bin.clone(),
            coverage: manifest.interval.as_ref().map(|interval| interval.coverage),
        }
    }
}

impl Point {
    fn of(answer: &Answer) -> Self {
        let reading = &answer.reading;
        let since_epoch = reading.time.duration_since(UNIX_EPOCH);
        let plain = reading.timed.estimate.interval;
        Self {
            time: since_epoch.map_or(0, |since| since.as_millis() as u64),
            value: answer.value(),
            interval: reading.smoothed.map_or(plain, |smoothed| smoothed.interval),
            subject: reading.subject.map(|subject| subject.id),
        }
    }
}
