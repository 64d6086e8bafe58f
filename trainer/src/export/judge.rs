//! What a quantised network is worth, beside the float one.

use std::num::NonZero;
use std::time::Instant;

use numclip::bundle::Precision;
use numclip::encode::int8::Int8Model;
use numclip::encode::tract::TractModel;
use numclip::encode::{EncodeError, Engine, Model};
use numclip::estimate::Estimator;
use numclip::verify::cosine;
use rayon::prelude::*;
use serde::Serialize;

use super::ExportError;
use super::measure::{Encoded, tensors};
use crate::config::Config;
use crate::data::Unreadable;
use crate::fit::Prepared;

/// Validation images that candidates are compared on, at most, evenly spaced.
const IMAGES: usize = 512;
/// Runs of which the median counts as the latency.
const RUNS: usize = 31;

/// Some validation images with what the float network makes of them.
pub struct Judge<'a> {
    /// From embeddings to values.
    pub estimator: &'a Estimator,
    /// Image tensors, planar.
    pub tensors: Vec<Vec<f32>>,
    /// In the task's unit.
    pub labels: Vec<f32>,
    /// What the float network makes of them.
    pub values: Vec<f32>,
    embeddings: Vec<Vec<f32>>,
}

/// What the judge found, in the task's unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Mean absolute error.
    pub mae: f64,
    /// How much larger that is than the float network's.
    pub mae_increase: f64,
    /// Mean distance of the value from the float network's.
    pub drift: f64,
    /// The least cosine between an embedding and the float network's.
    pub lowest_cosine: f32,
}

/// How long an engine takes for one picture, on one thread of this machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// The engine.
    pub engine: String,
    /// Its set of kernels, where it has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernels: Option<String>,
    /// Arithmetic of the network.
    pub precision: Precision,
    /// Median, milliseconds.
    pub milliseconds: f64,
}

impl<'a> Judge<'a> {
    /// Loads the images; none where there are no validation images.
    pub fn new(
        config: &Config,
        prepared: &Prepared,
        estimator: &'a Estimator,
        float: &Encoded,
    ) -> Result<Option<Self>, ExportError> {
        let all = &float.val;
        let places = evenly(all.indices.len(), IMAGES);
        let indices: Vec<usize> = places.iter().map(|&place| all.indices[place]).collect();
        let pick = |place: &usize| all.embeddings[*place].clone();
        let embeddings: Vec<Vec<f32>> = places.iter().map(pick).collect();
        let tensors = tensors(config, prepared, &indices, Unreadable::Stop)?;
        let labels = places.iter().map(|&place| all.labels[place]).collect();
        Ok((!places.is_empty()).then(|| Self::of(estimator, tensors, labels, embeddings)))
    }

    /// These images with their labels and the float network's embeddings.
    pub fn of(
        estimator: &'a Estimator,
        tensors: Vec<Vec<f32>>,
        labels: Vec<f32>,
        embeddings: Vec<Vec<f32>>,
    ) -> Self {
        let value = |embedding: &Vec<f32>| estimator.estimate(embedding).value;
        Self {
            values: embeddings.iter().map(value).collect(),
            estimator,
            tensors,
            labels,
            embeddings,
        }
    }

    /// At most `count` of the images, evenly spaced.
    pub fn some(&self, count: usize) -> Self {
        let places = evenly(self.labels.len(), count);
        let of = |rows: &[Vec<f32>]| places.iter().map(|&place| rows[place].clone()).collect();
        let labels = places.iter().map(|&place| self.labels[place]).collect();
        let (tensors, embeddings) = (of(&self.tensors), of(&self.embeddings));
        Self::of(self.estimator, tensors, labels, embeddings)
    }

    /// What a network makes of the images.
    pub fn values_of(&self, model: &dyn Model) -> Result<Vec<f32>, ExportError> {
        let embeddings = embed(model, &self.tensors)?;
        let value = |embedding: &Vec<f32>| self.estimator.estimate(embedding).value;
        Ok(embeddings.iter().map(value).collect())
    }

    /// Runs a network over the images.
    pub fn score(&self, model: &dyn Model) -> Result<Score, ExportError> {
        let embeddings = embed(model, &self.tensors)?;
        let value = |embedding: &Vec<f32>| self.estimator.estimate(embedding).value;
        let values: Vec<f32> = embeddings.iter().map(value).collect();
        let cosines = embeddings.iter().zip(&self.embeddings);
        let mae = mean_distance(&values, &self.labels);
        Ok(Score {
            mae,
            mae_increase: mae - mean_distance(&self.values, &self.labels),
            drift: mean_distance(&values, &self.values),
            lowest_cosine: cosines.map(|(a, b)| cosine(a, b)).fold(1.0, f32::min),
        })
    }
}

/// At most so many places among `all`, evenly spaced.
fn evenly(all: usize, most: usize) -> Vec<usize> {
    let count = all.min(most);
    (0..count).map(|i| i * all / count).collect()
}

/// Mean of the absolute differences.
pub fn mean_distance(a: &[f32], b: &[f32]) -> f64 {
    let distances = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs()));
    distances.sum::<f64>() / a.len().max(1) as f64
}

/// An engine for an encoder in memory: the one that a device would take.
pub fn open(
    config: &Config,
    dim: usize,
    precision: Precision,
    bytes: &[u8],
) -> Result<Box<dyn Model>, EncodeError> {
    let size = config.preprocess.size as usize;
    let fast = match precision {
        Precision::Int8 => Int8Model::from_bytes("int8", bytes, size, dim).ok(),
        Precision::F32 => None,
    };
    match fast {
        Some(model) => Ok(Box::new(model)),
        None => Ok(Box::new(TractModel::from_bytes(
            "encoder", bytes, size, dim,
        )?)),
    }
}

/// Embeds images on all threads, in their order.
pub fn embed(model: &dyn Model, images: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, ExportError> {
    let chunk = images.len().div_ceil(rayon::current_num_threads()).max(1);
    let parts = images.par_chunks(chunk).map(|images| {
        let mut session = model.session()?;
        images.iter().map(|image| session.encode(image)).collect()
    });
    let parts: Vec<Vec<Vec<f32>>> = parts.collect::<Result<_, EncodeError>>()?;
    Ok(parts.concat())
}

/// Times `model` on one picture.
pub fn latency(
    model: &dyn Model,
    precision: Precision,
    image: &[f32],
) -> Result<Latency, EncodeError> {
    let mut session = model.session_on(NonZero::<usize>::MIN)?;
    session.encode(image)?;
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let start = Instant::now();
        session.encode(image)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(Latency {
        engine: model.engine().to_string(),
        kernels: model.kernels().map(Into::into),
        precision,
        milliseconds: times[RUNS / 2],
    })
}

/// Times every engine that can run one of the two encoders.
pub fn latencies(
    config: &Config,
    dim: usize,
    encoders: &[(Precision, &[u8])],
) -> Result<Vec<Latency>, EncodeError> {
    let size = config.preprocess.size as usize;
    let image = vec![0.0; config.preprocess.pixel_len()];
    let mut all = Vec::new();
    for &(precision, bytes) in encoders {
        let fast = open(config, dim, precision, bytes)?;
        all.push(latency(fast.as_ref(), precision, &image)?);
        if fast.engine() != Engine::Tract {
            let general = TractModel::from_bytes("encoder", bytes, size, dim)?;
            all.push(latency(&general, precision, &image)?);
        }
    }
    Ok(all)
}
