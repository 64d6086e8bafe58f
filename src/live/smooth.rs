//! Estimates made steadier by those before them.
//!
//! Time is that of the capture, on the clock that never jumps: a filter knows
//! how long ago the last estimate was, and forgets what lies too far back.
//!
//! Errors of one picture and the next are alike (the same light, the same
//! angle), so averaging them away would be a false promise: the ends of the
//! intervals go through the very filter that the values go through, which
//! keeps every value within its interval and narrows nothing.

use std::collections::VecDeque;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// After a pause longer than this, what was before says nothing any more,
/// unless estimates are meant to come as rarely.
pub const LONGEST_GAP: Duration = Duration::from_secs(10);

/// Half-widths of 90 % intervals in standard deviations of a normal error.
const HALF_WIDTH: f64 = 1.645;
/// The drift over a second, where none is given, as a share of the range.
const DRIFT: f64 = 0.02;
/// The standard deviation of an estimate without interval, as a share of the
/// range, and the least that is believed of one with.
const ERROR: f64 = 0.05;
const LEAST_ERROR: f64 = 0.001;

/// An estimate that has seen those before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Smoothed {
    /// The quantity, in the task's unit.
    pub value: f32,
    /// Lower and upper end of the interval around `value`, where the bundle
    /// has intervals.
    pub interval: Option<[f32; 2]>,
}

/// The filter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Smoothing {
    /// The median of the last estimates, and of the ends of their intervals:
    /// single misreadings vanish, steps stay steep.
    Median {
        /// How many estimates, 2 to 99.
        window: usize,
    },
    /// The Kalman filter of a quantity that drifts at random (the local level
    /// model: Durbin & Koopman, *Time Series Analysis by State Space Methods*,
    /// 2012, §2.2):
    ///
    /// ```text
    /// P ← P + drift²·Δt      K = P / (P + r)
    /// x ← x + K·(y − x)      P ← (1 − K)·P
    /// ```
    ///
    /// The variance r of an estimate y is that of a normal error whose 90 %
    /// interval is as wide as the one of y: doubtful estimates weigh less.
    Kalman {
        /// Standard deviation of the quantity's change over one second, in the
        /// task's unit; 2 % of the task's range without one.
        drift: Option<f32>,
    },
}

/// A filter at work on one subject.
#[derive(Clone, Debug)]
pub struct Smoother {
    smoothing: Smoothing,
    /// Width of the task's range.
    range: f64,
    longest_gap: Duration,
    last: Option<Instant>,
    window: VecDeque<Smoothed>,
    sorted: Vec<f32>,
    level: Level,
}

/// State of the Kalman filter.
#[derive(Clone, Copy, Debug, Default)]
struct Level {
    value: f64,
    ends: Option<[f64; 2]>,
    variance: f64,
}

impl Smoother {
    /// A filter for a quantity within `range`, which has seen nothing yet, and
    /// forgets what lies further back than `longest_gap`.
    pub fn new(smoothing: Smoothing, range: [f32; 2], longest_gap: Duration) -> Self {
        let window = match smoothing {
            Smoothing::Median { window } => window,
            Smoothing::Kalman { .. } => 0,
        };
        Self {
            smoothing,
            range: f64::from(range[1] - range[0]),
            longest_gap,
            last: None,
            window: VecDeque::with_capacity(window),
            sorted: Vec::with_capacity(window),
            level: Level::default(),
        }
    }

    /// What the estimate `now`, made at `at`, becomes.
    pub fn smooth(&mut self, at: Instant, now: Smoothed) -> Smoothed {
        let gap = self.last.map(|last| at.saturating_duration_since(last));
        let gap = gap.filter(|gap| *gap <= self.longest_gap);
        self.last = Some(at);
        match self.smoothing {
            Smoothing::Median { window } => {
                if gap.is_none() {
                    self.window.clear();
                }
                self.median(window, now)
            }
            Smoothing::Kalman { drift } => {
                let drift = drift.map_or(DRIFT * self.range, f64::from);
                self.level = self.level.next(gap, drift, self.variance(now), now);
                self.level.smoothed()
            }
        }
    }

    /// Forgets all that was.
    pub fn reset(&mut self) {
        self.last = None;
    }

    fn median(&mut self, window: usize, now: Smoothed) -> Smoothed {
        if self.window.len() >= window {
            self.window.pop_front();
        }
        self.window.push_back(now);
        let value = self.middle(|smoothed| Some(smoothed.value));
        let low = self.middle(|smoothed| smoothed.interval.map(|[low, _]| low));
        let high = self.middle(|smoothed| smoothed.interval.map(|[_, high]| high));
        Smoothed {
            value: value.unwrap_or(now.value),
            interval: low.zip(high).map(|(low, high)| [low, high]),
        }
    }

    /// The median of one part of the window, `None` if some lack it.
    fn middle(&mut self, part: impl Fn(&Smoothed) -> Option<f32>) -> Option<f32> {
        self.sorted.clear();
        for smoothed in &self.window {
            self.sorted.push(part(smoothed)?);
        }
        self.sorted.sort_unstable_by(f32::total_cmp);
        let half = self.sorted.len() / 2;
        let upper = *self.sorted.get(half)?;
        Some(match self.sorted.len() % 2 {
            0 => f32::midpoint(self.sorted[half - 1], upper),
            _ => upper,
        })
    }

    fn variance(&self, now: Smoothed) -> f64 {
        let error = match now.interval {
            None => ERROR * self.range,
            Some([low, high]) => f64::from(high - low) / 2.0 / HALF_WIDTH,
        };
        error.max(LEAST_ERROR * self.range).powi(2)
    }
}

impl Level {
    /// The state after an estimate of variance `noise`, `gap` after the one
    /// before; without a gap it is the first.
    fn next(self, gap: Option<Duration>, drift: f64, noise: f64, now: Smoothed) -> Self {
        let value = f64::from(now.value);
        let ends = now.interval.map(|ends| ends.map(f64::from));
        let Some(gap) = gap else {
            return Self {
                value,
                ends,
                variance: noise,
            };
        };
        let variance = self.variance + drift * drift * gap.as_secs_f64();
        let gain = variance / (variance + noise);
        let towards = |from: f64, to: f64| from + gain * (to - from);
        Self {
            value: towards(self.value, value),
            ends: (self.ends.zip(ends)).map(|([low, high], [new_low, new_high])| {
                [towards(low, new_low), towards(high, new_high)]
            }),
            variance: (1.0 - gain) * variance,
        }
    }

    fn smoothed(self) -> Smoothed {
        Smoothed {
            value: self.value as f32,
            interval: self.ends.map(|ends| ends.map(|end| end as f32)),
        }
    }
}

impl FromStr for Smoothing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "expected median:N (2 to 99 estimates), kalman, or kalman:DRIFT (change over a second, in the task's unit)".to_owned()
        };
        let (name, number) = text
            .split_once(':')
            .map_or((text, None), |(name, number)| (name, Some(number)));
        match (name, number) {
            ("median", Some(number)) => number
                .parse()
                .ok()
                .filter(|window| (2..=99).contains(window))
                .map(|window| Self::Median { window }),
            ("kalman", None) => Some(Self::Kalman { drift: None }),
            ("kalman", Some(number)) => number
                .parse()
                .ok()
                .filter(|drift: &f32| drift.is_finite() && *drift > 0.0)
                .map(|drift| Self::Kalman { drift: Some(drift) }),
            _ => None,
        }
        .ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(value: f32) -> Smoothed {
        Smoothed {
            value,
            interval: None,
        }
    }

    /// Values that come a second apart.
    fn each_second(smoothing: Smoothing, values: &[f32]) -> Vec<f32> {
        let start = Instant::now();
        let mut smoother = Smoother::new(smoothing, [0.0, 100.0], LONGEST_GAP);
        let times = (0..).map(|second| start + Duration::from_secs(second));
        times
            .zip(values)
            .map(|(at, &v)| smoother.smooth(at, value(v)).value)
            .collect()
    }

    #[test]
    fn a_median_takes_single_misreadings_out() {
        let smoothed = each_second("median:3".parse().unwrap(), &[5.0, 5.0, 90.0, 6.0, 7.0]);
        assert_eq!(smoothed, [5.0, 5.0, 5.0, 6.0, 7.0]);
        let even = each_second(
            Smoothing::Median { window: 4 },
            &[1.0, 2.0, 3.0, 10.0, 11.0],
        );
        assert_eq!(even, [1.0, 1.5, 2.0, 2.5, 6.5]);
    }

    #[test]
    fn without_drift_the_kalman_filter_is_the_running_mean() {
        let values = [3.0, 9.0, 6.0, 2.0, 30.0];
        let tiny = Smoothing::Kalman { drift: Some(1e-9) };
        for (count, smoothed) in (1..).zip(each_second(tiny, &values)) {
            let mean = values[..count].iter().sum::<f32>() / count as f32;
            assert!((smoothed - mean).abs() < 1e-4, "{smoothed} for {mean}");
        }
    }

    #[test]
    fn the_gain_settles_where_the_riccati_equation_says() {
        // P = P·r/(P + r) + q, solved for P before an estimate: (q + √(q² + 4qr)) / 2.
        let (drift, noise) = (3.0_f64, 5.0_f64);
        let (q, r) = (drift * drift, noise * noise);
        let variance = (q + (q * q + 4.0 * q * r).sqrt()) / 2.0;
        let gain = variance / (variance + r);
        let mut values = vec![0.0; 60];
        values.push(1.0);
        let smoothing = Smoothing::Kalman {
            drift: Some(drift as f32),
        };
        let step = each_second(smoothing, &values)[60];
        assert!((f64::from(step) - gain).abs() < 1e-6, "{step} for {gain}");
    }

    #[test]
    fn a_pause_is_as_many_predictions_as_it_has_seconds() {
        let start = Instant::now();
        let mut smoother = Smoother::new(
            Smoothing::Kalman { drift: Some(4.0) },
            [0.0, 100.0],
            LONGEST_GAP,
        );
        smoother.smooth(start, value(10.0));
        let late = smoother.smooth(start + Duration::from_secs(3), value(20.0));
        // r = 5², P = r + 3·4².
        let gain = (25.0 + 48.0) / (25.0 + 48.0 + 25.0);
        assert!((late.value - (10.0 + 10.0 * gain)).abs() < 1e-4, "{late:?}");
    }

    #[test]
    fn doubtful_estimates_weigh_less_and_ends_move_with_the_value() {
        let start = Instant::now();
        let mut smoother = Smoother::new(
            Smoothing::Kalman { drift: Some(1e-9) },
            [0.0, 100.0],
            LONGEST_GAP,
        );
        let with = |value: f32, half: f32| Smoothed {
            value,
            interval: Some([value - half, value + half]),
        };
        smoother.smooth(start, with(10.0, 1.0));
        let smoothed = smoother.smooth(start + Duration::from_millis(1), with(20.0, 3.0));
        // Weights are one over the variances: 9 to 1.
        let [low, high] = smoothed.interval.unwrap();
        for (got, expected) in [(smoothed.value, 11.0), (low, 9.8), (high, 12.2)] {
            assert!((got - expected).abs() < 1e-4, "{smoothed:?}");
        }
    }

    #[test]
    fn a_long_gap_and_a_reset_forget() {
        for smoothing in ["median:5", "kalman:0.001"] {
            let start = Instant::now();
            let mut smoother = Smoother::new(smoothing.parse().unwrap(), [0.0, 100.0], LONGEST_GAP);
            smoother.smooth(start, value(10.0));
            let later = start + LONGEST_GAP + Duration::from_millis(1);
            assert_eq!(smoother.smooth(later, value(50.0)), value(50.0));
            smoother.reset();
            assert_eq!(smoother.smooth(later, value(90.0)), value(90.0));
        }
    }

    #[test]
    fn filters_by_name() {
        for text in [
            "median",
            "median:1",
            "median:100",
            "kalman:",
            "kalman:-1",
            "mean:3",
        ] {
            assert!(text.parse::<Smoothing>().is_err(), "{text}");
        }
        let kalman = "kalman:0.5".parse();
        assert_eq!(kalman, Ok(Smoothing::Kalman { drift: Some(0.5) }));
    }

    proptest! {
        #[test]
        fn values_stay_in_their_intervals_and_among_what_was_seen(
            steps in prop::collection::vec((0.0..100.0_f32, 0.0..20.0_f32, 0..4000_u64), 1..40),
            kind in 0..2_usize,
        ) {
            let smoothing = [Smoothing::Median { window: 5 }, Smoothing::Kalman { drift: None }][kind];
            let mut smoother = Smoother::new(smoothing, [0.0, 100.0], LONGEST_GAP);
            let mut at = Instant::now();
            let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
            for (value, half, pause) in steps {
                at += Duration::from_millis(pause);
                (least, most) = (least.min(value), most.max(value));
                let now = Smoothed { value, interval: Some([value - half, value + half]) };
                let smoothed = smoother.smooth(at, now);
                let [low, high] = smoothed.interval.unwrap();
                let slack = 1e-3;
                prop_assert!(low <= smoothed.value + slack && smoothed.value <= high + slack);
                prop_assert!((least - slack..=most + slack).contains(&smoothed.value));
            }
        }
    }
}
