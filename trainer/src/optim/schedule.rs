//! Learning-rate schedules: a pure function from the step to a factor on every learning rate.

use serde::{Deserialize, Serialize};

use super::{OptimError, in_range};

/// Linear warm-up followed by a decay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Epochs (parts allowed) over which the factor climbs to 1; 0 for none.
    pub warmup_epochs: f64,
    /// What happens afterwards.
    pub decay: Decay,
}

/// How the factor falls after the warm-up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "kind",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
pub enum Decay {
    /// It stays at 1.
    Constant,
    /// Half a cosine from 1 at the end of the warm-up to `floor` at the end of training.
    Cosine {
        /// The factor at the end, 0 to 1.
        #[serde(default)]
        floor: f64,
    },
    /// Multiplied by `gamma` at each milestone.
    MultiStep {
        /// Milestones in epochs, counted from the start of training, warm-up included.
        epochs: Vec<f64>,
        /// The multiplier, 0 to 1.
        #[serde(default = "default_gamma")]
        gamma: f64,
    },
}

fn default_gamma() -> f64 {
    0.1
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            warmup_epochs: 0.0,
            decay: Decay::Cosine { floor: 0.0 },
        }
    }
}

impl Schedule {
    /// Whether every number makes sense; [`factor`](Self::factor) is then 0 to 1.
    ///
    /// # Errors
    ///
    /// [`OptimError::OutOfRange`] naming the field.
    pub fn validate(&self) -> Result<(), OptimError> {
        let warmup = self.warmup_epochs;
        let fits = warmup >= 0.0 && warmup.is_finite();
        in_range("warmup_epochs", warmup, fits, "0 or more")?;
        let share = |field, got| in_range(field, got, (0.0..=1.0).contains(&got), "0 to 1");
        match &self.decay {
            Decay::Constant => Ok(()),
            Decay::Cosine { floor } => share("decay.floor", *floor),
            Decay::MultiStep { epochs, gamma } => {
                for at in epochs {
                    in_range("decay.epochs", *at, *at >= 0.0, "0 or more")?;
                }
                share("decay.gamma", *gamma)
            }
        }
    }

    /// The factor on every learning rate at `step` (from 0).
    ///
    /// With a warm-up of w steps it is `(step + 1) / w` for the first w steps, so the first step
    /// already moves and step w − 1 runs at the full rate.
    pub fn factor(&self, step: u64, steps_per_epoch: u64, epochs: f64) -> f64 {
        let per_epoch = steps_per_epoch as f64;
        let (step, warmup) = (step as f64, (self.warmup_epochs * per_epoch).round());
        if step < warmup {
            return (step + 1.0) / warmup;
        }
        match &self.decay {
            Decay::Constant => 1.0,
            Decay::Cosine { floor } => {
                let length = (epochs * per_epoch - warmup).max(1.0);
                let progress = ((step - warmup) / length).min(1.0);
                floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
            Decay::MultiStep { epochs, gamma } => {
                let passed = epochs.iter().filter(|at| step >= (*at * per_epoch).round());
                gamma.powi(passed.count() as i32)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The factors at the given steps, for 10 steps an epoch and 10 epochs.
    fn factors(schedule: &str, steps: &[u64]) -> Vec<f64> {
        let schedule: Schedule = toml::from_str(schedule).expect("a schedule");
        steps
            .iter()
            .map(|s| schedule.factor(*s, 10, 10.0))
            .collect()
    }

    fn check(schedule: &str, expected: &[(u64, f64)]) {
        let steps: Vec<u64> = expected.iter().map(|(step, _)| *step).collect();
        for (got, (step, factor)) in factors(schedule, &steps).iter().zip(expected) {
            assert!((got - factor).abs() < 1e-12, "{schedule} at {step}: {got}");
        }
    }

    #[test]
    fn closed_forms() {
        let half = std::f64::consts::FRAC_1_SQRT_2;
        check("decay = { kind = 'constant' }", &[(0, 1.0), (1000, 1.0)]);
        check(
            "decay = { kind = 'cosine' }",
            &[
                (0, 1.0),
                (25, (1.0 + half) / 2.0),
                (50, 0.5),
                (100, 0.0),
                (150, 0.0),
            ],
        );
        check(
            "decay = { kind = 'cosine', floor = 0.2 }",
            &[(50, 0.6), (100, 0.2)],
        );
        check(
            "decay = { kind = 'multi-step', epochs = [6, 8.5], gamma = 0.5 }",
            &[(59, 1.0), (60, 0.5), (84, 0.5), (85, 0.25), (99, 0.25)],
        );
        check(
            "decay = { kind = 'multi-step', epochs = [6] }",
            &[(60, 0.1)],
        );
    }

    #[test]
    fn warmup_is_linear_and_hands_over_at_one() {
        check(
            "warmup_epochs = 2\ndecay = { kind = 'constant' }",
            &[(0, 0.05), (9, 0.5), (19, 1.0), (20, 1.0)],
        );
        check(
            "warmup_epochs = 2",
            &[(19, 1.0), (20, 1.0), (60, 0.5), (100, 0.0)],
        );
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let check = |text: &str, expected: &str| {
            let schedule: Schedule = toml::from_str(text).expect("a schedule");
            let error = schedule.validate().expect_err("an error").to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("warmup_epochs = -1", "`warmup_epochs` is -1");
        check("warmup_epochs = nan", "`warmup_epochs` is NaN");
        check(
            "decay = { kind = 'cosine', floor = 2 }",
            "`decay.floor` is 2",
        );
        let multi_step = "decay = { kind = 'multi-step', epochs = [4, -1] }";
        check(multi_step, "`decay.epochs` is -1");
        let multi_step = "decay = { kind = 'multi-step', epochs = [4], gamma = 3 }";
        check(multi_step, "`decay.gamma` is 3");
        assert!(Schedule::default().validate().is_ok());
    }

    #[test]
    fn unknown_keys_are_refused() {
        for text in [
            "warmup = 2",
            "decay = { kind = 'linear' }",
            "decay = { kind = 'cosine', gamma = 1 }",
        ] {
            assert!(toml::from_str::<Schedule>(text).is_err(), "{text}");
        }
    }
}
