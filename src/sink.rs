//! Where estimates go: files, a broker, commands; several at once.
//!
//! ```text
//! live ─ reading → Hub ─┬ queue → thread: Sink
//!                       ├ queue → thread: Sink
//!                       └ …
//! ```
//!
//! Each sink has a thread and a bounded queue of its own, so that one which is
//! slow or hangs delays nobody: where its queue is full, the oldest estimate is
//! dropped and counted. Only a source that can wait (a folder, a clip) is made
//! to wait, and only for sinks that [keep all](Sink::keeps_all).

pub mod file;
mod hub;
pub mod lines;
#[cfg(feature = "mqtt")]
pub mod mqtt;
mod queue;
mod spec;
pub mod trigger;
pub mod units;

use std::io;
use std::sync::Arc;

use thiserror::Error;

use crate::live::Reading;
use crate::record::Record;

pub use hub::{Hub, Tell};
pub use spec::{SinkSpec, SpecError, Surroundings};

/// An estimate on its way to the sinks.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Name of the source.
    pub source: Arc<str>,
    /// The estimate and what belongs to it.
    pub reading: Arc<Reading>,
}

/// Takes estimates, on a thread of its own.
pub trait Sink: Send {
    /// Takes one. It may block: others do not wait for it.
    ///
    /// # Errors
    /// [`SinkError`] when this one could not be kept; the next may be.
    fn put(&mut self, answer: &Answer) -> Result<(), SinkError>;

    /// Called about once a second, and at the end: the time to bring to safety
    /// what is held back.
    ///
    /// # Errors
    /// [`SinkError`] when the sink is in trouble for now, also when it keeps
    /// what it was given until the trouble is over.
    fn flush(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// Whether a source that can wait should wait for this sink.
    fn keeps_all(&self) -> bool {
        false
    }

    /// What it holds in memory of its own.
    fn backlog(&self) -> Backlog {
        Backlog::default()
    }
}

/// Estimates that a sink was given and has not delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Those that wait.
    pub waiting: u64,
    /// Those given up since the start.
    pub dropped: u64,
}

/// Why a sink did not do its work.
#[derive(Debug, Error)]
pub enum SinkError {
    /// A file, or standard output.
    #[error("{name}: {error}")]
    Io {
        /// The file.
        name: String,
        /// What the system says.
        error: io::Error,
    },
    /// The other side is not there or refuses.
    #[error("{0}")]
    Away(String),
    /// Nobody reads any more: there is no use in going on.
    #[error("nobody reads it any more")]
    Closed,
}

impl Answer {
    /// The estimate as JSON has it.
    pub fn record(&self) -> Record<'_> {
        Record::live(&self.source, &self.reading)
    }

    /// The record as text, on one line.
    pub fn to_json(&self) -> String {
        let mut line = Vec::new();
        self.write_json(&mut line);
        String::from_utf8(line).unwrap_or_default()
    }

    /// Adds the record as text to `line`.
    pub fn write_json(&self, line: &mut Vec<u8>) {
        let written = serde_json::to_writer(line, &self.record());
        debug_assert!(written.is_ok(), "text keys and plain values always fit");
    }

    /// The quantity in the task's unit: smoothed, where a filter runs.
    pub fn value(&self) -> f32 {
        let reading = &self.reading;
        let plain = reading.timed.estimate.value;
        reading.smoothed.map_or(plain, |smoothed| smoothed.value)
    }
}

#[cfg(test)]
mod samples {
    //! Answers that were never measured.

    use std::path::Path;
    use std::sync::{Arc, LazyLock};
    use std::time::{Duration, SystemTime};

    use super::Answer;
    use crate::bundle::Bundle;
    use crate::estimate::Estimate;
    use crate::live::Reading;
    use crate::pipeline::Timed;

    static BUNDLE: LazyLock<Arc<Bundle>> = LazyLock::new(|| {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/gauge");
        Arc::new(Bundle::open(&directory).unwrap())
    });

    /// The answer `value` for `frame`.
    pub fn answer(frame: u64, value: f32) -> Answer {
        let bins = BUNDLE.manifest().bins.bin.len();
        let estimate = Estimate {
            value,
            bin: 0,
            probabilities: vec![1.0 / bins as f32; bins],
            interval: Some([value - 1.0, value + 1.0]),
            doubt: None,
        };
        let timed = Timed {
            estimate,
            preprocess: Duration::from_micros(600),
            encode: Duration::from_micros(1800),
            estimation: Duration::from_micros(10),
        };
        Answer {
            source: "synth:gauge".into(),
            reading: Arc::new(Reading {
                frame,
                name: None,
                time: SystemTime::UNIX_EPOCH
                    + Duration::from_millis(1_790_000_000_000 + 100 * frame),
                truth: None,
                decode: Duration::ZERO,
                timed,
                latency: Duration::from_millis(3),
                smoothed: None,
                subject: None,
                bundle: Arc::clone(&BUNDLE),
            }),
        }
    }
}
