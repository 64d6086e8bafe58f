//! The state of a running pipeline, for those who look at it from outside: the
//! service manager, a broker, a page.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::bundle::Bundle;
use crate::device::Device;
use crate::live::Counts;

/// Everything there is to know of a running pipeline.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// Version of numclip.
    pub version: &'static str,
    /// Name of the source.
    pub source: String,
    /// The model at work.
    pub model: ModelStatus,
    /// Seconds since the start.
    pub uptime: f64,
    /// Estimates in a second, of late.
    pub fps: f32,
    /// What was counted since the start.
    pub counts: Counts,
    /// How the sinks are doing.
    pub sinks: Vec<SinkStatus>,
    /// Heat, memory.
    pub device: Device,
}

/// Which model is at work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ModelStatus {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of its manifest.
    pub sha256: String,
    /// The engine that runs it.
    pub engine: String,
    /// Times that a model was put in place of another.
    pub swaps: u64,
}

/// How a sink is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SinkStatus {
    /// Its name.
    pub name: String,
    /// Estimates it took.
    pub taken: u64,
    /// Estimates it failed to keep.
    pub failed: u64,
    /// Estimates dropped because it was too slow or away for too long.
    pub dropped: u64,
    /// Estimates that wait for it.
    pub waiting: u64,
    /// What is wrong with it at present.
    pub fault: Option<String>,
    /// It has ended for good.
    pub closed: bool,
}

/// Where the latest status hangs for everybody to read.
#[derive(Debug, Default)]
pub struct Board(Mutex<Status>);

/// Estimates in a second, over the last few.
#[derive(Debug)]
pub struct Rate {
    marks: [(Instant, u64); 5],
    next: usize,
}

impl Status {
    /// One line for a person: what was counted, how fast, what is wrong.
    pub fn line(&self) -> String {
        let counts = &self.counts;
        let mut line = format!(
            "{:.1} estimates/s, {} frames, {} estimates, {} dropped, {} skipped, {} unchanged, {} unusable, {} unread, {} reconnects",
            self.fps,
            counts.captured,
            counts.readings,
            counts.dropped,
            counts.skipped,
            counts.unchanged,
            counts.unusable,
            counts.unread,
            counts.reconnects
        );
        for sink in &self.sinks {
            if sink.dropped + sink.failed > 0 {
                line += &format!("; {} lost {}", sink.name, sink.dropped + sink.failed);
            }
            if let Some(fault) = &sink.fault {
                line += &format!("; {}: {fault}", sink.name);
            }
        }
        line
    }
}

impl ModelStatus {
    /// The model of `bundle`, run by `engine`, after so many `swaps`.
    pub fn new(bundle: &Bundle, engine: &str, swaps: u64) -> Self {
        let model = &bundle.manifest().model;
        Self {
            name: model.name.clone(),
            version: model.version.clone(),
            sha256: bundle.sha256().into(),
            engine: engine.into(),
            swaps,
        }
    }
}

impl Board {
    /// Hangs up `status` in place of the one before.
    pub fn set(&self, status: Status) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// The latest.
    pub fn get(&self) -> Status {
        let status = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        status.clone()
    }
}

impl Rate {
    /// A rate that starts at zero, `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            marks: [(now, 0); 5],
            next: 0,
        }
    }

    /// The rate, given that there were `count` in all until `now`: over the
    /// time since the fifth call before this one.
    pub fn update(&mut self, count: u64, now: Instant) -> f32 {
        let (then, before) = std::mem::replace(&mut self.marks[self.next], (now, count));
        self.next = (self.next + 1) % self.marks.len();
        let time = now.saturating_duration_since(then);
        match time {
            Duration::ZERO => 0.0,
            time => count.saturating_sub(before) as f32 / time.as_secs_f32(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_forgets() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let second = |n| start + Duration::from_secs(n);
        for n in 1..=10 {
            assert_eq!(rate.update(30 * n, second(n)), 30.0);
        }
        let after: Vec<f32> = (11..=15).map(|n| rate.update(300, second(n))).collect();
        assert_eq!(after, [24.0, 18.0, 12.0, 6.0, 0.0]);
    }
}
