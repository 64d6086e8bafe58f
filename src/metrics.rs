//! How good a set of estimates is: the measures of the field.

use std::collections::BTreeMap;

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

/// Measures of some of the pictures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// Range of labels, or name of the group.
    pub name: String,
    /// Pictures measured.
    pub count: usize,
    /// Mean absolute error, in the task's unit.
    pub mae: f64,
    /// Share of labels within the interval, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coverage: Option<f64>,
    /// Mean width of the intervals, in the task's unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<f64>,
}

/// Parts of the task's range that are measured apart.
const RANGES: usize = 10;

/// The tenths of `range` in which labels lie, from the lowest on.
pub fn by_range(estimates: &[Estimate], labels: &[f32], [low, high]: [f32; 2]) -> Vec<Part> {
    let step = (high - low) / RANGES as f32;
    let tenth = |label: f32| (((label - low) / step) as usize).min(RANGES - 1);
    let parts = parted(
        estimates,
        labels,
        labels.iter().map(|&label| Some(tenth(label))),
    );
    let rounded = |value: f32| (value * 100.0).round() / 100.0;
    let name = |tenth: usize| {
        let start = low + step * tenth as f32;
        format!("{} to {}", rounded(start), rounded(start + step))
    };
    parts
        .into_iter()
        .map(|(tenth, part)| Part {
            name: name(tenth),
            ..part
        })
        .collect()
}

/// The groups, the least covered first, then those with the largest error.
/// Pictures without a group are left out.
pub fn by_group(estimates: &[Estimate], labels: &[f32], groups: &[Option<String>]) -> Vec<Part> {
    let parts = parted(estimates, labels, groups.iter().map(Option::as_deref));
    let mut parts: Vec<Part> = parts
        .into_iter()
        .map(|(name, part)| Part {
            name: name.into(),
            ..part
        })
        .collect();
    let key = |part: &Part| (part.coverage.unwrap_or(1.0), -part.mae);
    parts.sort_by(|a, b| {
        let ((a, worse_a), (b, worse_b)) = (key(a), key(b));
        a.total_cmp(&b).then(worse_a.total_cmp(&worse_b))
    });
    parts
}

fn parted<K: Ord>(
    estimates: &[Estimate],
    labels: &[f32],
    keys: impl Iterator<Item = Option<K>>,
) -> BTreeMap<K, Part> {
    let mut members: BTreeMap<K, Vec<(&Estimate, f32)>> = BTreeMap::new();
    for ((estimate, &label), key) in estimates.iter().zip(labels).zip(keys) {
        if let Some(key) = key {
            members.entry(key).or_default().push((estimate, label));
        }
    }
    let measured = members.into_iter();
    measured
        .map(|(key, members)| (key, part(&members)))
        .collect()
}

fn part(members: &[(&Estimate, f32)]) -> Part {
    let mean = |f: &dyn Fn(&Estimate, f32) -> f64| {
        members.iter().map(|&(e, label)| f(e, label)).sum::<f64>() / members.len() as f64
    };
    let has_intervals = members
        .iter()
        .all(|(estimate, _)| estimate.interval.is_some());
    Part {
        name: String::new(),
        count: members.len(),
        mae: mean(&|e, label| f64::from((e.value - label).abs())),
        coverage: has_intervals.then(|| mean(&|e, label| f64::from(u8::from(e.covers(label))))),
        width: has_intervals.then(|| mean(&|e, _| f64::from(e.width().unwrap_or(0.0)))),
    }
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
            .then(|| mean(&|e, label| share(e.covers(label)))),
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

    #[test]
    fn parts_are_measured_apart() {
        let estimates = [estimate(0.4, 0), estimate(1.6, 1), estimate(3.0, 1)];
        let labels = [0.0, 1.0, 3.0];
        let ranges = by_range(&estimates, &labels, [0.0, 10.0]);
        let names: Vec<_> = ranges
            .iter()
            .map(|part| (&part.name[..], part.count))
            .collect();
        assert_eq!(names, [("0 to 1", 1), ("1 to 2", 1), ("3 to 4", 1)]);
        assert_eq!(
            (ranges[0].coverage, ranges[1].coverage),
            (Some(1.0), Some(0.0))
        );
        let groups = ["a", "b", "a"].map(|name| Some(name.to_owned()));
        let groups = by_group(&estimates, &labels, &groups);
        assert_eq!((&groups[0].name[..], groups[0].count), ("b", 1));
        assert!((groups[1].mae - 0.2).abs() < 1e-6 && groups[1].width == Some(1.0));
        assert_eq!(by_group(&estimates, &labels, &[None, None, None]), []);
    }
}
