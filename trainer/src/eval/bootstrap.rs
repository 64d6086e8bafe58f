//! Measures with percentile bootstrap intervals (Efron and Tibshirani, 1993, §13.3).
//!
//! Images of one group are not independent, so whole groups are drawn where
//! there are any.

use std::collections::BTreeMap;

use numclip::bins::{Bin, index_of};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{Measure, Row};

/// Number of resamples.
pub const RESAMPLES: usize = 2000;
/// Fewer groups than this say nothing about their spread.
const LEAST_UNITS: usize = 3;

/// What an image adds to each measure.
struct Scores {
    keys: Vec<String>,
    of_image: Vec<Vec<f64>>,
}

/// Measures over `rows` with 95 % intervals, and what was drawn: groups where
/// any image has one (others are groups of their own), otherwise images.
pub fn measures(
    rows: &[Row],
    bins: &[Bin],
    thresholds: &[f32],
    seed: u64,
) -> (Vec<Measure>, &'static str) {
    let scores = Scores::new(rows, bins, thresholds);
    let units = units(rows, &scores);
    let drawn = if units.len() < rows.len() {
        "group"
    } else {
        "image"
    };
    let values = means(units.iter());
    let mut resampled: Vec<Vec<f64>> = vec![Vec::with_capacity(RESAMPLES); scores.keys.len()];
    if units.len() >= LEAST_UNITS {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for _ in 0..RESAMPLES {
            let draw = (0..units.len()).map(|_| &units[rng.random_range(0..units.len())]);
            let means = means(draw.collect::<Vec<_>>().into_iter());
            resampled
                .iter_mut()
                .zip(means)
                .for_each(|(all, mean)| all.push(mean));
        }
    }
    let measure = |((key, value), mut all): ((String, f64), Vec<f64>)| {
        all.sort_by(f64::total_cmp);
        let root = |value: f64| if key == "rmse" { value.sqrt() } else { value };
        let end = |share: f64| {
            let place = (share * all.len().saturating_sub(1) as f64).round() as usize;
            all.get(place).copied().map(root)
        };
        let interval = end(0.025).zip(end(0.975)).map(|(low, high)| [low, high]);
        Measure {
            value: root(value),
            interval,
            key,
        }
    };
    let keyed = scores.keys.into_iter().zip(values).zip(resampled);
    (keyed.map(measure).collect(), drawn)
}

impl Scores {
    fn new(rows: &[Row], bins: &[Bin], thresholds: &[f32]) -> Self {
        let names = ["mae", "rmse", "bias", "accuracy", "accuracy-argmax"];
        let mut keys: Vec<String> = names.map(String::from).to_vec();
        keys.extend(thresholds.iter().map(|k| format!("cs@{k}")));
        let has_intervals = !rows.is_empty() && rows.iter().all(|row| row.low.is_some());
        keys.extend(has_intervals.then(|| "coverage".to_owned()));
        let share = |hit: bool| if hit { 1.0 } else { 0.0 };
        let of = |row: &Row| {
            let bias = f64::from(row.value - row.label);
            let label = index_of(bins, row.label);
            let mut scores = vec![
                bias.abs(),
                bias * bias,
                bias,
                share(index_of(bins, row.value) == label),
                share(row.bin == label),
            ];
            let within = |&k: &f32| share(bias.abs() <= f64::from(k) + 1e-6);
            scores.extend(thresholds.iter().map(within));
            scores.extend(has_intervals.then(|| share(row.covers())));
            scores
        };
        Self {
            keys,
            of_image: rows.iter().map(of).collect(),
        }
    }
}

impl Row {
    /// Whether the interval holds the label.
    pub(super) fn covers(&self) -> bool {
        let ends = self.low.zip(self.high);
        ends.is_some_and(|(low, high)| (low..=high).contains(&self.label))
    }
}

/// Sum of scores and number of images.
type Unit = (Vec<f64>, f64);

fn units(rows: &[Row], scores: &Scores) -> Vec<Unit> {
    let mut named: BTreeMap<&str, Unit> = BTreeMap::new();
    let mut single = Vec::new();
    for (row, scores) in rows.iter().zip(&scores.of_image) {
        match &row.group {
            None => single.push((scores.clone(), 1.0)),
            Some(group) => {
                let unit = named
                    .entry(group)
                    .or_insert_with(|| (vec![0.0; scores.len()], 0.0));
                unit.0
                    .iter_mut()
                    .zip(scores)
                    .for_each(|(sum, score)| *sum += score);
                unit.1 += 1.0;
            }
        }
    }
    named.into_values().chain(single).collect()
}

fn means<'a>(units: impl Iterator<Item = &'a Unit>) -> Vec<f64> {
    let mut sums: Vec<f64> = Vec::new();
    let mut count = 0.0;
    for (scores, images) in units {
        sums.resize(scores.len(), 0.0);
        sums.iter_mut()
            .zip(scores)
            .for_each(|(sum, score)| *sum += score);
        count += images;
    }
    sums.into_iter().map(|sum| sum / count).collect()
}

#[cfg(test)]
mod tests {
    use numclip::estimate::Estimate;
    use numclip::metrics::measure;

    use super::*;

    fn bins() -> Vec<Bin> {
        [("low", 0.0, 5.0), ("high", 5.0, 10.0)]
            .map(|(label, start, end)| Bin {
                label: label.into(),
                start,
                end,
            })
            .to_vec()
    }

    /// Four hundred images whose errors are evenly spread over −1 to 1.
    fn rows(group: impl Fn(usize) -> Option<String>) -> Vec<Row> {
        (0..400)
            .map(|i| {
                let label = (i % 10) as f32;
                let value = label + (i as f32 * 0.618).fract() * 2.0 - 1.0;
                Row {
                    path: i.to_string().into(),
                    label,
                    value,
                    bin: i % 2,
                    probability: 0.5,
                    low: Some(value - 0.5),
                    high: Some(value + 0.5),
                    group: group(i),
                }
            })
            .collect()
    }

    fn of<'a>(measures: &'a [Measure], key: &str) -> &'a Measure {
        measures.iter().find(|measure| measure.key == key).unwrap()
    }

    #[test]
    fn values_are_those_of_the_runtime() {
        let rows = rows(|_| None);
        let estimates: Vec<Estimate> = rows
            .iter()
            .map(|row| Estimate {
                value: row.value,
                bin: row.bin,
                probabilities: vec![0.5; 2],
                interval: row.low.zip(row.high).map(|(low, high)| [low, high]),
                doubt: None,
            })
            .collect();
        let labels: Vec<f32> = rows.iter().map(|row| row.label).collect();
        let expected = measure(&bins(), &estimates, &labels, &[0.5]).unwrap();
        let (got, drawn) = measures(&rows, &bins(), &[0.5], 0);
        assert_eq!(drawn, "image");
        let pairs = [
            ("mae", expected.mae),
            ("rmse", expected.rmse),
            ("accuracy", expected.accuracy_expectation),
            ("accuracy-argmax", expected.accuracy_argmax),
            ("cs@0.5", expected.cumulative_score[0].score),
            ("coverage", expected.interval_coverage.unwrap()),
        ];
        for (key, value) in pairs {
            assert!((of(&got, key).value - value).abs() < 1e-9, "{key}");
        }
    }

    #[test]
    fn intervals_of_images_are_those_of_the_normal_law() {
        let rows = rows(|_| None);
        let (got, _) = measures(&rows, &bins(), &[], 1);
        let [low, high] = of(&got, "bias").interval.unwrap();
        // Errors are uniform over a width of 2: their mean has σ = 2/√12/√400.
        let half = 1.96 * 2.0 / 12.0_f64.sqrt() / 20.0;
        assert!(
            ((high - low) / 2.0 - half).abs() < half * 0.08,
            "{low} {high}"
        );
        assert_eq!(got, measures(&rows, &bins(), &[], 1).0);
        assert_ne!(got, measures(&rows, &bins(), &[], 2).0);
    }

    #[test]
    fn groups_are_drawn_whole() {
        // All images of a group err alike, so that groups count, not images.
        let mut rows = rows(|i| Some(format!("g{}", i / 40)));
        for (i, row) in rows.iter_mut().enumerate() {
            row.value = row.label + if (i / 40) % 2 == 0 { 1.0 } else { -1.0 };
        }
        let (got, drawn) = measures(&rows, &bins(), &[], 0);
        assert_eq!(drawn, "group");
        let [low, high] = of(&got, "bias").interval.unwrap();
        let half = 1.96 / 10.0_f64.sqrt();
        assert!(((high - low) / 2.0 - half).abs() < 0.15, "{low} {high}");
        let one = &rows[..40];
        assert_eq!(of(&measures(one, &bins(), &[], 0).0, "mae").interval, None);
    }
}
