//! One estimate as JSON.

use std::time::Duration;

use jiff::{Timestamp, Unit};
use numclip::bundle::Bundle;
use numclip::frame::Frame;
#[cfg(feature = "live")]
use numclip::live::Reading;
use numclip::pipeline::Timed;
use serde::Serialize;

/// An estimate with where, when and by what it was made.
#[derive(Serialize)]
pub struct Record<'a> {
    source: &'a str,
    frame: u64,
    time: String,
    value: f32,
    unit: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<[f32; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    smoothed: Option<SmoothedRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<SubjectRecord>,
    bin: BinRecord<'a>,
    probabilities: &'a [f32],
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<f32>,
    latency_ms: Latency,
    model: ModelRecord<'a>,
}

/// A picture that gave no estimate.
#[derive(Serialize)]
pub struct Failure<'a> {
    /// The picture, as the user named it.
    pub source: &'a str,
    /// Why.
    pub error: &'a str,
}

#[derive(Serialize)]
struct SmoothedRecord {
    value: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<[f32; 2]>,
}

#[derive(Serialize)]
struct SubjectRecord {
    id: u64,
    region: [u32; 4],
}

#[derive(Serialize)]
struct BinRecord<'a> {
    index: usize,
    label: &'a str,
    probability: f32,
}

#[derive(Serialize)]
struct Latency {
    decode: f64,
    preprocess: f64,
    encode: f64,
    estimate: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<f64>,
}

#[derive(Serialize)]
struct ModelRecord<'a> {
    name: &'a str,
    version: &'a str,
    sha256: &'a str,
}

impl<'a> Record<'a> {
    /// The record of `timed`, the estimate for one picture of `source`.
    pub fn new(
        bundle: &'a Bundle,
        source: &'a str,
        label: Option<f32>,
        decode: Duration,
        timed: &'a Timed,
        time: Timestamp,
    ) -> Self {
        let (manifest, estimate) = (bundle.manifest(), &timed.estimate);
        Self {
            source,
            frame: 0,
            time: rfc3339(time),
            value: estimate.value,
            unit: &manifest.task.unit,
            interval: estimate.interval,
            smoothed: None,
            subject: None,
            bin: BinRecord {
                index: estimate.bin,
                label: &manifest.bins.bin[estimate.bin].label,
                probability: estimate.probabilities[estimate.bin],
            },
            probabilities: &estimate.probabilities,
            label,
            latency_ms: Latency {
                decode: milliseconds(decode),
                preprocess: milliseconds(timed.preprocess),
                encode: milliseconds(timed.encode),
                estimate: milliseconds(timed.estimation),
                total: None,
            },
            model: ModelRecord {
                name: &manifest.model.name,
                version: &manifest.model.version,
                sha256: bundle.sha256(),
            },
        }
    }

    /// The same for `reading`, an estimate from a running camera.
    #[cfg(feature = "live")]
    pub fn live(mut self, reading: &Reading) -> Self {
        self.frame = reading.frame;
        self.latency_ms.total = Some(milliseconds(reading.latency));
        self.smoothed = reading.smoothed.map(|smoothed| SmoothedRecord {
            value: smoothed.value,
            interval: smoothed.interval,
        });
        self.subject = reading.subject.map(|subject| SubjectRecord {
            id: subject.id,
            region: subject.region,
        });
        self
    }
}

/// When `frame` was taken, as far as its source knows, or now.
pub fn time_of(frame: &Frame) -> Timestamp {
    frame
        .time
        .and_then(|time| Timestamp::try_from(time).ok())
        .unwrap_or_else(Timestamp::now)
}

fn rfc3339(time: Timestamp) -> String {
    time.round(Unit::Millisecond).unwrap_or(time).to_string()
}

/// Milliseconds to the microsecond: finer than that is noise.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}
