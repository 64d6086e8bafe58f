//! Exported networks run by the runtime's engine over labelled images.

use numclip::bins::Bin;
use numclip::bundle::{Precision, Report};
use numclip::encode::Model;
use numclip::estimate::{Calibration, Estimator, spread};
use numclip::metrics::measure;
use numclip::verify::cosine;

use super::{ExportError, judge};
use crate::config::Config;
use crate::fit::{Embedded, Prepared, loader};

/// What one network makes of the validation and test images.
pub struct Encoded {
    /// Validation images.
    pub val: Embedded,
    /// Test images.
    pub test: Embedded,
}

impl Encoded {
    /// Runs the network in `bytes` over the validation and test images.
    pub fn new(
        config: &Config,
        prepared: &Prepared,
        precision: Precision,
        bytes: &[u8],
    ) -> Result<Self, ExportError> {
        let model = judge::open(config, prepared.embeddings.dim, precision, bytes)?;
        let embed = |indices: &[usize]| embed(config, prepared, model.as_ref(), indices);
        Ok(Self {
            val: embed(&prepared.splits.val)?,
            test: embed(&prepared.splits.test)?,
        })
    }

    /// Mean absolute error on the validation images; none without any.
    pub fn val_error(&self, estimator: &Estimator) -> Option<f64> {
        let value = |embedding: &Vec<f32>| estimator.estimate(embedding).value;
        let values: Vec<f32> = self.val.embeddings.iter().map(value).collect();
        (!values.is_empty()).then(|| judge::mean_distance(&values, &self.val.labels))
    }

    /// The test images, or the validation images where there are none.
    pub fn most_telling(&self) -> (&'static str, &Embedded) {
        if self.test.labels.is_empty() {
            ("val", &self.val)
        } else {
            ("test", &self.test)
        }
    }

    /// Measures on both splits.
    pub fn reports(
        &self,
        precision: Precision,
        bins: &[Bin],
        estimator: &Estimator,
        thresholds: &[f32],
    ) -> Vec<Report> {
        let report = |(split, embedded): (&str, &Embedded)| {
            let estimates: Vec<_> = embedded
                .embeddings
                .iter()
                .map(|e| estimator.estimate(e))
                .collect();
            let metrics = measure(bins, &estimates, &embedded.labels, thresholds)?;
            Some(Report {
                split: split.into(),
                precision,
                metrics,
            })
        };
        [("val", &self.val), ("test", &self.test)]
            .into_iter()
            .filter_map(report)
            .collect()
    }

    /// The least cosine between the two networks' validation embeddings.
    pub fn lowest_cosine(&self, other: &Self) -> f32 {
        let pairs = self.val.embeddings.iter().zip(&other.val.embeddings);
        pairs.map(|(a, b)| cosine(a, b)).fold(1.0, f32::min)
    }
}

/// The encoder's input for some images: planar `[3, size, size]` each.
pub fn tensors(
    config: &Config,
    prepared: &Prepared,
    indices: &[usize],
) -> Result<Vec<Vec<f32>>, ExportError> {
    let loader = loader(config, prepared, indices)?;
    let mut tensors = Vec::with_capacity(indices.len());
    for batch in loader.epoch(0, 0) {
        let batch = batch.map_err(crate::fit::FitError::from)?;
        tensors.extend(
            batch
                .images
                .chunks_exact(config.preprocess.pixel_len())
                .map(<[f32]>::to_vec),
        );
    }
    Ok(tensors)
}

/// The interval that holds `coverage` of the validation labels.
///
/// Split conformal prediction: the scores |label − value| / spread, the
/// ⌈(n + 1)·coverage⌉-th smallest of them. None without enough images.
pub fn calibrate_interval(
    bins: &[Bin],
    estimator: &Estimator,
    val: &Embedded,
    coverage: f32,
) -> Option<Calibration> {
    let estimates: Vec<_> = val
        .embeddings
        .iter()
        .map(|e| estimator.estimate(e))
        .collect();
    let spreads: Vec<f32> = estimates
        .iter()
        .map(|e| spread(bins, &e.probabilities))
        .collect();
    let floor = median(&spreads)? * 0.5;
    let score = |((estimate, spread), label): ((&numclip::estimate::Estimate, &f32), &f32)| {
        (label - estimate.value).abs() / spread.max(floor).max(f32::MIN_POSITIVE)
    };
    let mut scores: Vec<f32> = estimates
        .iter()
        .zip(&spreads)
        .zip(&val.labels)
        .map(score)
        .collect();
    scores.sort_by(f32::total_cmp);
    let rank = ((scores.len() + 1) as f64 * f64::from(coverage)).ceil() as usize;
    let quantile = *scores.get(rank.checked_sub(1)?)?;
    quantile.is_finite().then_some(Calibration {
        coverage,
        quantile,
        floor,
    })
}

fn median(values: &[f32]) -> Option<f32> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// Runs in the loader's order, a session per thread, an image at a time: the
/// way a device does.
fn embed(
    config: &Config,
    prepared: &Prepared,
    model: &dyn Model,
    indices: &[usize],
) -> Result<Embedded, ExportError> {
    let loader = loader(config, prepared, indices)?;
    let mut all = Embedded::default();
    for batch in loader.epoch(0, 0) {
        let batch = batch.map_err(crate::fit::FitError::from)?;
        let images = batch.images.chunks_exact(config.preprocess.pixel_len());
        let images: Vec<Vec<f32>> = images.map(<[f32]>::to_vec).collect();
        all.embeddings.extend(judge::embed(model, &images)?);
        all.indices.extend(batch.indices);
        all.labels.extend(batch.labels);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use numclip::bins::Bins;
    use numclip::estimate::Regressor;

    #[test]
    fn the_interval_covers_its_share_of_what_it_was_fitted_on() {
        let bins: Vec<Bin> = (0..2)
            .map(|i| Bin {
                label: i.to_string(),
                start: i as f32 * 10.0,
                end: i as f32 * 10.0,
            })
            .collect();
        let rows = Bins::new(bins.clone(), vec![1.0, 0.0, 0.0, 1.0]).unwrap();
        let regressor = Regressor::Expectation {
            values: vec![0.0, 10.0],
        };
        let build = |interval| {
            Estimator::new(
                rows.clone(),
                regressor.clone(),
                2.0,
                [-100.0, 100.0],
                interval,
            )
            .unwrap()
        };
        let embeddings: Vec<Vec<f32>> = (0..200)
            .map(|i| vec![(i as f32 * 0.1).cos().abs(), (i as f32 * 0.1).sin().abs()])
            .collect();
        let labels: Vec<f32> = (0..200)
            .map(|i| (i as f32 * 1.7).sin() * 5.0 + 5.0)
            .collect();
        let val = Embedded {
            indices: (0..200).collect(),
            embeddings,
            labels,
        };
        for coverage in [0.5, 0.8, 0.95] {
            let interval = calibrate_interval(&bins, &build(None), &val, coverage).unwrap();
            let estimator = build(Some(interval));
            let inside = val
                .embeddings
                .iter()
                .zip(&val.labels)
                .filter(|(embedding, label)| {
                    let [low, high] = estimator.estimate(embedding).interval.unwrap();
                    (low..=high).contains(*label)
                });
            let share = inside.count() as f32 / 200.0;
            assert!(
                (coverage..coverage + 0.02).contains(&share),
                "{coverage}: {share}"
            );
        }
    }
}
