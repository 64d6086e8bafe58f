//! One estimate as JSON, the same for every command and every sink.

use std::time::{Duration, SystemTime};

use jiff::{Timestamp, Unit};
use serde::{Serialize, Serializer};

use crate::bundle::Bundle;
use crate::estimate::Doubt;
#[cfg(feature = "live")]
use crate::live::Reading;
use crate::pipeline::Timed;

/// An estimate with where, when and by what it was made.
///
/// ```json
/// {"source":"…","frame":12,"time":"2026-05-01T09:30:00.123Z","value":34.2,"unit":"years",
///  "interval":[29.8,39.1],"smoothed":{"value":34.0,"interval":[30.1,38.0]},
///  "subject":{"id":7,"region":[120,40,200,200]},
///  "bin":{"index":2,"label":"young adult","probability":0.81},"probabilities":[…],
///  "label":34.0,
///  "latency_ms":{"decode":0.9,"preprocess":0.6,"encode":1.8,"estimate":0.01,"total":3.4},
///  "model":{"name":"age","version":"1.2.0","sha256":"…"}}
/// ```
///
/// `interval`, `doubt` (`"wide"` or `"unfamiliar"`: why the estimate is not to
/// be relied on), `smoothed`, `subject`, `label` (the true value) and
/// `latency_ms.total` are left out where there is none.
#[derive(Serialize)]
pub struct Record<'a> {
    source: &'a str,
    frame: u64,
    #[serde(serialize_with = "as_text")]
    time: Timestamp,
    value: f32,
    unit: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<[f32; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    doubt: Option<Doubt>,
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
    /// The record of `timed`, the estimate for one picture of `source` taken
    /// at `time`; `label` is what it truly shows, `decode` how long it took to
    /// read.
    pub fn new(
        bundle: &'a Bundle,
        source: &'a str,
        label: Option<f32>,
        decode: Duration,
        timed: &'a Timed,
        time: SystemTime,
    ) -> Self {
        let (manifest, estimate) = (bundle.manifest(), &timed.estimate);
        Self {
            source,
            frame: 0,
            time: to_milliseconds(time),
            value: estimate.value,
            unit: &manifest.task.unit,
            interval: estimate.interval,
            doubt: estimate.doubt,
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

    /// The record of a `reading` from `source`, a running camera.
    #[cfg(feature = "live")]
    pub fn live(source: &'a str, reading: &'a Reading) -> Self {
        let source = reading.name.as_deref().unwrap_or(source);
        let (bundle, timed) = (&reading.bundle, &reading.timed);
        let mut record = Self::new(
            bundle,
            source,
            reading.truth,
            reading.decode,
            timed,
            reading.time,
        );
        record.frame = reading.frame;
        record.latency_ms.total = Some(milliseconds(reading.latency));
        record.smoothed = reading.smoothed.map(|smoothed| SmoothedRecord {
            value: smoothed.value,
            interval: smoothed.interval,
        });
        record.subject = reading.subject.map(|subject| SubjectRecord {
            id: subject.id,
            region: subject.region,
        });
        record
    }
}

/// `time` in UTC as RFC 3339 has it, to the millisecond. A clock that is set
/// beyond the years that can be written gives that of 1970.
pub fn rfc3339(time: SystemTime) -> String {
    to_milliseconds(time).to_string()
}

fn to_milliseconds(time: SystemTime) -> Timestamp {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    time.round(Unit::Millisecond).unwrap_or(time)
}

/// Without a string of its own.
fn as_text<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

/// Milliseconds to the microsecond: finer than that is noise.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}
