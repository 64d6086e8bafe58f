//! Whether frames come, and how long they take.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::status::Status;

/// Upper ends of the latency histogram, in seconds.
pub const LATENCIES: [f64; 12] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
];

/// Added to the limit of silence: the pipeline opens the source again at the
/// limit, which takes a moment, and the status is a second old at most.
const LENIENCE: Duration = Duration::from_secs(2);
/// After this long without a frame a source that may be silent counts as quiet.
const QUIET: Duration = Duration::from_secs(5);
/// A pipeline whose status does not change for this long has broken down.
const STUCK: Duration = Duration::from_secs(5);

/// Whether frames come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Camera {
    /// There was none yet.
    Starting,
    /// They come.
    Running,
    /// None came for a while, which this source may do.
    Quiet,
    /// None came for too long.
    Stalled,
}

/// When something last moved.
pub struct Pulse {
    /// A source that is silent for longer is at fault; `None` for those that
    /// may be.
    pub silence: Option<Duration>,
    captured: u64,
    uptime: f64,
    frame: Instant,
    status: Instant,
}

/// How many durations lie below each of [`LATENCIES`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Histogram {
    /// Durations up to each end and above the one before.
    pub counts: [u64; LATENCIES.len()],
    /// All durations, also those beyond the last end.
    pub count: u64,
    /// Their sum in seconds.
    pub sum: f64,
}

impl Camera {
    /// Whether all is as it should be.
    pub fn is_well(self) -> bool {
        matches!(self, Self::Running | Self::Quiet)
    }
}

impl Pulse {
    /// The pulse of a pipeline that starts `now`.
    pub fn new(silence: Option<Duration>, now: Instant) -> Self {
        Self {
            silence,
            captured: 0,
            uptime: 0.0,
            frame: now,
            status: now,
        }
    }

    /// Looks at what moved until `now`.
    pub fn feel(&mut self, status: &Status, now: Instant) {
        if status.counts.captured > self.captured {
            self.captured = status.counts.captured;
            self.frame = now;
        }
        if status.uptime != self.uptime {
            self.uptime = status.uptime;
            self.status = now;
        }
    }

    /// Time since a frame came.
    pub fn silent(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.frame)
    }

    /// Whether frames come.
    pub fn camera(&self, now: Instant) -> Camera {
        let silent = self.silent(now);
        let stuck = now.saturating_duration_since(self.status) > STUCK;
        match self.silence {
            _ if stuck => Camera::Stalled,
            Some(limit) if silent > limit + LENIENCE => Camera::Stalled,
            Some(_) if self.captured == 0 => Camera::Starting,
            None if silent > QUIET => Camera::Quiet,
            _ => Camera::Running,
        }
    }
}

impl Histogram {
    /// Counts a duration.
    pub fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        if let Some(bucket) = LATENCIES.iter().position(|&end| seconds <= end) {
            self.counts[bucket] += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::Counts;

    /// The camera after each second of frames and uptime.
    fn cameras(silence: Option<u64>, seconds: &[(u64, u64)]) -> Vec<Camera> {
        let start = Instant::now();
        let mut pulse = Pulse::new(silence.map(Duration::from_secs), start);
        let mut now = start;
        let mut look = |&(captured, uptime): &(u64, u64)| {
            now += Duration::from_secs(1);
            let counts = Counts {
                captured,
                ..Counts::default()
            };
            let status = Status {
                counts,
                uptime: uptime as f64,
                ..Status::default()
            };
            pulse.feel(&status, now);
            pulse.camera(now)
        };
        seconds.iter().map(&mut look).collect()
    }

    #[test]
    fn a_camera_that_falls_silent_is_stalled() {
        use Camera::{Running, Stalled, Starting};
        let seconds = [(0, 1), (3, 2), (3, 3), (3, 4), (3, 5), (3, 6), (4, 7)];
        let expected = [
            Starting, Running, Running, Running, Running, Stalled, Running,
        ];
        assert_eq!(cameras(Some(1), &seconds), expected);
    }

    #[test]
    fn a_folder_may_be_quiet_but_not_stuck() {
        let quiet: Vec<_> = (1..9).map(|second| (1, second)).collect();
        assert_eq!(cameras(None, &quiet)[7], Camera::Quiet);
        let stuck = [(1, 1); 9];
        assert_eq!(cameras(None, &stuck)[8], Camera::Stalled);
    }
}
