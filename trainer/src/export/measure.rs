//! Exported networks run by the runtime's engine over labelled images.

use numclip::bins::Bin;
use numclip::bundle::{Precision, Report};
use numclip::encode::Model;
use numclip::estimate::{Calibration, Estimator, Labelled, calibrate};
use numclip::metrics::measure;
use numclip::verify::cosine;

use super::{ExportError, judge};
use crate::config::Config;
use crate::data::{Dataset, Unreadable};
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

    /// The images that networks are compared on: validation, or test where there are none.
    pub fn compared(&self) -> &Embedded {
        match self.val.labels.is_empty() {
            true => &self.test,
            false => &self.val,
        }
    }

    /// The least cosine between the two networks' embeddings of the compared images.
    pub fn lowest_cosine(&self, other: &Self) -> f32 {
        let (own, other) = (&self.compared().embeddings, &other.compared().embeddings);
        let pairs = own.iter().zip(other);
        pairs.map(|(a, b)| cosine(a, b)).fold(1.0, f32::min)
    }
}

/// The encoder's input for some images: planar `[3, size, size]` each.
pub fn tensors(
    config: &Config,
    prepared: &Prepared,
    indices: &[usize],
    unreadable: Unreadable,
) -> Result<Vec<Vec<f32>>, ExportError> {
    let loader = loader(config, prepared, indices, unreadable)?;
    let mut tensors = Vec::with_capacity(indices.len());
    for batch in loader.epoch(0, 0) {
        let batch = batch.map_err(crate::fit::FitError::from)?;
        for skipped in &batch.skipped {
            eprintln!("warning: skipped {skipped}");
        }
        tensors.extend(
            batch
                .images
                .chunks_exact(config.preprocess.pixel_len())
                .map(<[f32]>::to_vec),
        );
    }
    Ok(tensors)
}

/// The interval that holds `coverage` of the validation labels, group by group
/// where the images have groups. None without enough images.
pub fn calibrate_interval(
    estimator: &Estimator,
    dataset: &Dataset,
    val: &Embedded,
    coverage: f32,
) -> Option<Calibration> {
    calibrate(estimator, &labelled(dataset, val), coverage)
}

/// Embedded images with their labels and groups.
pub fn labelled<'a>(dataset: &'a Dataset, embedded: &'a Embedded) -> Vec<Labelled<'a>> {
    let rows = embedded.embeddings.iter().zip(&embedded.labels);
    let rows = rows.zip(&embedded.indices);
    rows.map(|((embedding, &label), &index)| Labelled {
        embedding,
        label,
        group: dataset.samples()[index].group.as_deref(),
    })
    .collect()
}

/// Runs in the loader's order, a session per thread, an image at a time: the
/// way a device does.
fn embed(
    config: &Config,
    prepared: &Prepared,
    model: &dyn Model,
    indices: &[usize],
) -> Result<Embedded, ExportError> {
    let loader = loader(config, prepared, indices, Unreadable::Stop)?;
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
