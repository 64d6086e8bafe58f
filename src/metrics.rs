//! How good a set of estimates is: the measures of the field.

use serde::{Deserialize, Serialize};

use crate::bins::{Bin, index_of};
use crate::estimate::Estimate;

/// Measures over a labelled set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Pictures measured.
    pub count: usize,
    /// Mean absolute error, in the task's unit.
    pub mae: f64,
    /// Root of the mean squared error, in the task's unit.
    pub rmse: f64,
    /// Share of pictures whose estimated value falls into the bin of the label.
    pub accuracy_expectation: f64,
    /// Share of pictures whose most probable bin is that of the label.
    pub accuracy_argmax: f64,
    /// Cumulative scores: share of pictures with an error of at most `k`.
    pub cumulative_score: Vec<CumulativeScore>,
    /// Share of labels within the interval, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_coverage: Option<f64>,
}

/// CS@k.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CumulativeScore {
    /// Largest error counted as right, in the task's unit.
    pub k: f32,
    /// Share of pictures, 0 to 1.
    pub score: f64,
}

/// Measures `estimates` against `labels` (task's unit, one for each). Empty
/// sets have none.
pub fn measure(
    bins: &[Bin],
    estimates: &[Estimate],
    labels: &[f32],
    thresholds: &[f32],
) -> Option<Metrics> {
    if estimates.is_empty() || estimates.len() != labels.len() {
        return None;
    }
    let count = estimates.len();
    let mean = |f: &dyn Fn(&Estimate, f32) -> f64| {
        estimates
            .iter()
            .zip(labels)
            .map(|(estimate, &label)| f(estimate, label))
            .sum::<f64>()
            / count as f64
    };
    let error = |estimate: &Estimate, label: f32| f64::from((estimate.value - label).abs());
    let share = |hit: bool| if hit { 1.0 } else { 0.0 };
    let score =
        |k: f32| mean(&|estimate, label| share(error(estimate, label) <= f64::from(k) + 1e-6));
    Some(Metrics {
        count,
        mae: mean(&error),
        rmse: mean(&|estimate, label| error(estimate, label).powi(2)).sqrt(),
        accuracy_expectation: mean(&|e, label| {
            share(index_of(bins, e.value) == index_of(bins, label))
        }),
        accuracy_argmax: mean(&|e, label| share(e.bin == index_of(bins, label))),
        cumulative_score: thresholds
            .iter()
            .map(|&k| CumulativeScore { k, score: score(k) })
            .collect(),
        interval_coverage: estimates
            .iter()
            .all(|estimate| estimate.interval.is_some())
            .then(|| {
                mean(&|e, label| {
                    share(
                        e.interval
                            .is_some_and(|[low, high]| (low..=high).contains(&label)),
                    )
                })
            }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grades() -> Vec<Bin> {
        (0..4)
            .map(|g| Bin {
                label: g.to_string(),
                start: g as f32,
                end: g as f32,
            })
            .collect()
    }

    fn estimate(value: f32, bin: usize) -> Estimate {
        Estimate {
            value,
            bin,
            probabilities: vec![0.25; 4],
            interval: Some([value - 0.5, value + 0.5]),
            doubt: None,
        }
    }

    #[test]
    fn a_worked_example() {
        let estimates = [
            estimate(0.4, 0),
            estimate(1.6, 1),
            estimate(3.0, 1),
            estimate(1.0, 2),
        ];
        let metrics = measure(
            &grades(),
            &estimates,
            &[0.0, 1.0, 3.0, 3.0],
            &[0.5, 1.0, 2.0],
        )
        .unwrap();
        assert!((metrics.mae - 0.75).abs() < 1e-6, "{metrics:?}");
        assert!(
            (metrics.rmse - (4.52_f64 / 4.0).sqrt()).abs() < 1e-6,
            "{metrics:?}"
        );
        assert_eq!(
            (metrics.accuracy_expectation, metrics.accuracy_argmax),
            (0.5, 0.5)
        );
        let scores: Vec<f64> = metrics.cumulative_score.iter().map(|cs| cs.score).collect();
        assert_eq!(scores, [0.5, 0.75, 1.0]);
        assert_eq!(metrics.interval_coverage, Some(0.5));
    }

    #[test]
    fn nothing_measured_is_no_metric() {
        assert_eq!(measure(&grades(), &[], &[], &[1.0]), None);
    }
}
