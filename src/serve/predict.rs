//! `POST /predict`: the estimate for a picture that is sent.
//!
//! One thread of its own, at low priority, takes one picture after the other:
//! however many are sent, the camera is not kept waiting.

use std::io::Cursor;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, StatusCode, header};
use image::ImageReader;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::bucket::Bucket;
use super::fault::Fault;
use super::screen::Screen;
use crate::decode::{self, DecodeErrorKind};
use crate::pipeline::{Pipeline, Worker};
use crate::record::Record;

/// The longest picture that is taken, in bytes.
const MAX_BYTES: usize = 16 << 20;
/// The most pixels of a picture.
const MAX_PIXELS: u64 = 25_000_000;
/// How long a picture may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(15);
/// Pictures on their way or waiting, besides the one that is looked at.
const WAITING: usize = 3;
/// Pictures in a second, and at once.
const RATE: [f64; 2] = [20.0, 40.0];
/// What stands for the picture in its record.
const SOURCE: &str = "upload";

/// Looks at pictures that are sent.
pub struct Predictor {
    jobs: SyncSender<Job>,
    seats: Semaphore,
    bucket: Bucket,
}

struct Job {
    picture: Bytes,
    reply: oneshot::Sender<Result<String, Fault>>,
}

impl Predictor {
    /// Starts the thread, which uses whatever model `screen` shows.
    pub fn start(screen: Arc<Screen>) -> Self {
        let (jobs, queue) = sync_channel(WAITING);
        thread::spawn(move || serve(&screen, &queue));
        Self {
            jobs,
            seats: Semaphore::new(WAITING),
            bucket: Bucket::new(RATE[0], RATE[1]),
        }
    }

    /// The JSON record for the picture in `body`.
    ///
    /// # Errors
    /// [`Fault`] when it is no picture, is too large, or there are too many.
    pub async fn predict(&self, headers: &HeaderMap, body: Body) -> Result<String, Fault> {
        check_kind(headers)?;
        if !self.bucket.take() {
            return Err(Fault::too_fast());
        }
        let busy = || Fault::busy("busy with other pictures; try again in a moment");
        let _seat = self.seats.try_acquire().map_err(|_| busy())?;
        let picture = receive(headers, body).await?;
        let (reply, answer) = oneshot::channel();
        let gone = || Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "the worker has ended");
        // Pictures of clients that have gone may still wait.
        let sent = self.jobs.try_send(Job { picture, reply });
        sent.map_err(|error| match error {
            TrySendError::Full(_) => busy(),
            TrySendError::Disconnected(_) => gone(),
        })?;
        answer.await.map_err(|_| gone())?
    }
}

fn check_kind(headers: &HeaderMap) -> Result<(), Fault> {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.to_ascii_lowercase();
    // Kinds that a foreign page cannot send without asking first.
    if kind.starts_with("image/") || kind.starts_with("application/octet-stream") {
        return Ok(());
    }
    let reason = "send the bytes of a picture, with the header content-type: image/jpeg";
    Err(Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason))
}

async fn receive(headers: &HeaderMap, body: Body) -> Result<Bytes, Fault> {
    let limit = MAX_BYTES >> 20;
    let too_long = || {
        let reason = format!("longer than {limit} MiB; scale the picture down");
        Fault::new(StatusCode::PAYLOAD_TOO_LARGE, reason)
    };
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_BYTES as u64) {
        return Err(too_long());
    }
    let arrived = timeout(ARRIVAL, to_bytes(body, MAX_BYTES)).await;
    let late = |_| Fault::new(StatusCode::REQUEST_TIMEOUT, "the picture came too slowly");
    // Only who is still there reads the answer: then it was too long.
    arrived.map_err(late)?.map_err(|_| too_long())
}

/// The thread: one worker for as long as the model stays the same.
fn serve(screen: &Screen, queue: &Receiver<Job>) {
    yield_to_camera();
    let mut waiting = queue.recv().ok();
    while let Some(job) = waiting.take() {
        let pipeline = screen.pipeline();
        let mut worker = match pipeline.worker() {
            Ok(worker) => worker,
            Err(error) => {
                let fault = Fault::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
                let _ = job.reply.send(Err(fault));
                waiting = queue.recv().ok();
                continue;
            }
        };
        waiting = Some(job);
        while let Some(job) = waiting.take_if(|_| Arc::ptr_eq(&pipeline, &screen.pipeline())) {
            // Who has gone wants no answer.
            if !job.reply.is_closed() {
                let _ = job.reply.send(look(&pipeline, &mut worker, &job.picture));
            }
            waiting = queue.recv().ok();
        }
    }
}

/// The record of `picture`.
fn look(pipeline: &Pipeline, worker: &mut Worker<'_>, picture: &[u8]) -> Result<String, Fault> {
    check_pixels(picture)?;
    let start = Instant::now();
    let frame = decode::from_bytes(picture, SOURCE)
        .map_err(|error| Fault::new(status_of(error.kind()), error.kind().to_string()))?;
    let decoding = start.elapsed();
    let failed = |error: &dyn std::fmt::Display| {
        Fault::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    };
    let timed = worker.estimate(&frame).map_err(|error| failed(&error))?;
    let time = frame.time.unwrap_or_else(SystemTime::now);
    let record = Record::new(pipeline.bundle(), SOURCE, None, decoding, &timed, time);
    serde_json::to_string(&record).map_err(|error| failed(&error))
}

/// A picture without a size is left to the decoder, which says why.
fn check_pixels(picture: &[u8]) -> Result<(), Fault> {
    let reader = ImageReader::new(Cursor::new(picture)).with_guessed_format();
    let Some((width, height)) = reader.ok().and_then(|reader| reader.into_dimensions().ok()) else {
        return Ok(());
    };
    if u64::from(width) * u64::from(height) <= MAX_PIXELS {
        return Ok(());
    }
    let most = MAX_PIXELS / 1_000_000;
    let reason = format!("{width}×{height} pixels, more than {most} million; scale it down");
    Err(Fault::new(StatusCode::PAYLOAD_TOO_LARGE, reason))
}

fn status_of(kind: &DecodeErrorKind) -> StatusCode {
    match kind {
        DecodeErrorKind::Format | DecodeErrorKind::Unsupported(_) => {
            StatusCode::UNSUPPORTED_MEDIA_TYPE
        }
        DecodeErrorKind::TooLarge { .. } | DecodeErrorKind::TooLong => {
            StatusCode::PAYLOAD_TOO_LARGE
        }
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

/// Lets threads of the live pipeline run first, where the system can.
fn yield_to_camera() {
    // On Linux niceness belongs to a thread; elsewhere it would slow us all.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, 10);
}
