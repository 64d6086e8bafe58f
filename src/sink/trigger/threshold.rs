//! On and off with hysteresis, a time to hold and a limit on how often.

use std::time::{Duration, Instant};

/// When a trigger goes on and off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ThresholdSettings {
    /// On above this value …
    pub above: Option<f32>,
    /// … or below this one; without either, every value counts as going on.
    pub below: Option<f32>,
    /// Off once the value has come back to this one.
    pub until: Option<f32>,
    /// Seconds for which the value must lie beyond before it goes on.
    pub hold: f64,
    /// Least seconds between two times that it goes on.
    pub every: f64,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// The value lies beyond the threshold.
    On,
    /// It has come back.
    Off,
}

/// Follows a value.
#[derive(Debug)]
pub struct Threshold {
    settings: ThresholdSettings,
    is_on: bool,
    /// Since when the value has been beyond.
    beyond: Option<Instant>,
    /// When it last went on.
    last: Option<Instant>,
}

impl ThresholdSettings {
    /// Checks that the settings fit together.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        for (name, seconds) in [("hold", self.hold), ("every", self.every)] {
            if !(0.0..=1e6).contains(&seconds) {
                return Err(format!("{name}: expected seconds from 0 to 1000000"));
            }
        }
        match (self.above, self.below, self.until) {
            (Some(_), Some(_), _) => Err("above and below: one of them".into()),
            (None, None, Some(_)) => Err("until: needs above or below".into()),
            (Some(above), _, Some(until)) if until > above => {
                Err(format!("until: expected {above} or less, got {until}"))
            }
            (_, Some(below), Some(until)) if until < below => {
                Err(format!("until: expected {below} or more, got {until}"))
            }
            _ => Ok(()),
        }
    }

    fn is_beyond(&self, value: f32) -> bool {
        match (self.above, self.below) {
            (Some(above), _) => value > above,
            (_, Some(below)) => value < below,
            (None, None) => true,
        }
    }

    fn is_back(&self, value: f32) -> bool {
        match (self.above, self.below) {
            (Some(above), _) => value <= self.until.unwrap_or(above),
            (_, Some(below)) => value >= self.until.unwrap_or(below),
            // Every estimate stands for itself.
            (None, None) => true,
        }
    }

    fn is_plain(&self) -> bool {
        self.above.is_none() && self.below.is_none()
    }
}

impl Threshold {
    /// A threshold that has not been passed.
    pub fn new(settings: ThresholdSettings) -> Self {
        Self {
            settings,
            is_on: false,
            beyond: None,
            last: None,
        }
    }

    /// The value at a moment; says what changes by it.
    pub fn step(&mut self, value: f32, now: Instant) -> Option<Edge> {
        let settings = self.settings;
        if self.is_on {
            if !settings.is_back(value) {
                return None;
            }
            self.is_on = false;
            self.beyond = None;
            if !settings.is_plain() {
                return Some(Edge::Off);
            }
        }
        if !settings.is_beyond(value) {
            self.beyond = None;
            return None;
        }
        let since = *self.beyond.get_or_insert(now);
        let held = now.saturating_duration_since(since) >= Duration::from_secs_f64(settings.hold);
        let every = Duration::from_secs_f64(settings.every);
        let rested = self
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= every);
        if !held || !rested {
            return None;
        }
        self.is_on = true;
        self.last = Some(now);
        Some(Edge::On)
    }
}

impl Edge {
    /// `on` or `off`.
    pub fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What happens at values a second apart.
    fn edges(settings: ThresholdSettings, values: &[f32]) -> String {
        let start = Instant::now();
        let mut threshold = Threshold::new(settings);
        let seconds = (0..).map(|second| start + Duration::from_secs(second));
        let edge = |(value, now): (&f32, Instant)| match threshold.step(*value, now) {
            None => '.',
            Some(Edge::On) => '+',
            Some(Edge::Off) => '-',
        };
        values.iter().zip(seconds).map(edge).collect()
    }

    #[test]
    fn hysteresis_hold_and_rate() {
        let plain = ThresholdSettings::default();
        let above = ThresholdSettings {
            above: Some(5.0),
            ..plain
        };
        let until = ThresholdSettings {
            until: Some(2.0),
            ..above
        };
        let below = ThresholdSettings {
            below: Some(5.0),
            until: Some(8.0),
            ..plain
        };
        let hold = ThresholdSettings { hold: 2.0, ..above };
        let every = ThresholdSettings {
            every: 4.0,
            ..above
        };
        for (settings, values, expected) in [
            (above, [4., 6., 7., 5., 6., 4.], ".+.-+-"),
            (until, [4., 6., 4., 6., 2., 6.], ".+..-+"),
            (below, [6., 4., 6., 8., 9., 4.], ".+.-.+"),
            (hold, [6., 4., 6., 6., 6., 1.], "....+-"),
            (every, [6., 1., 6., 6., 6., 1.], "+-..+-"),
            (plain, [1., 2., 3., 4., 5., 6.], "++++++"),
            (
                ThresholdSettings {
                    every: 3.0,
                    ..plain
                },
                [1., 2., 3., 4., 5., 6.],
                "+..+..",
            ),
            (above, [f32::NAN, 6., f32::NAN, 6., 1., 1.], ".+..-."),
        ] {
            assert_eq!(edges(settings, &values), expected, "{settings:?}");
        }
    }

    proptest! {
        #[test]
        fn on_and_off_take_turns(
            values in prop::collection::vec(-10.0..10.0_f32, 0..100),
            above in -5.0..5.0_f32,
            gap in 0.0..3.0_f32,
            hold in 0.0..3.0_f64,
            every in 0.0..5.0_f64,
        ) {
            let until = Some(above - gap);
            let settings = ThresholdSettings { above: Some(above), below: None, until, hold, every };
            let marks = edges(settings, &values);
            let changes = marks.replace('.', "");
            prop_assert!(!changes.contains("++") && !changes.contains("--"));
            prop_assert!(!changes.starts_with('-'));
            for (mark, value) in marks.chars().zip(values) {
                prop_assert!(mark != '+' || value > above);
                prop_assert!(mark != '-' || value <= above - gap);
            }
        }
    }
}
