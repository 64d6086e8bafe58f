//! Golden vectors replayed: does this machine compute what the trainer did?

use crate::bundle::{GoldenCase, pooled};
use crate::encode::EncodeError;
use crate::frame::{Frame, FrameError, PixelFormat};
use crate::pipeline::{Pipeline, Worker};
use thiserror::Error;

/// Largest accepted distance of a preprocessed value from the golden one, in
/// levels of 255: resizers may differ in the last level.
pub const TENSOR_TOLERANCE_LEVELS: f32 = 1.01;
/// Lowest accepted cosine between an embedding and the golden one.
pub const COSINE_TOLERANCE: f32 = 0.999;
/// Largest accepted distance of a value, as a share of the task's range.
pub const VALUE_TOLERANCE: f32 = 0.005;

/// How near one golden case was met.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// Position of the case.
    pub case: usize,
    /// Largest distance of a preprocessed value, in levels of 255.
    pub tensor_levels: f32,
    /// Cosine between the embeddings.
    pub cosine: f32,
    /// Expected value, in the task's unit.
    pub expected: f32,
    /// Value obtained, in the task's unit.
    pub got: f32,
    /// All three within tolerance.
    pub passed: bool,
}

/// A golden case that could not be replayed.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// The stored picture is not one.
    #[error("golden case {case}: {error}")]
    Frame {
        /// Position of the case.
        case: usize,
        /// What is wrong with it.
        error: FrameError,
    },
    /// The engine failed.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// Replays every golden case of the pipeline's bundle on its engine.
///
/// # Errors
/// [`ReplayError`] when a case cannot be run at all.
pub fn replay(pipeline: &Pipeline) -> Result<Vec<Replay>, ReplayError> {
    let mut worker = pipeline.worker()?;
    let cases = &pipeline.bundle().golden().cases;
    cases
        .iter()
        .enumerate()
        .map(|(index, case)| replay_case(pipeline, &mut worker, index, case))
        .collect()
}

fn replay_case(
    pipeline: &Pipeline,
    worker: &mut Worker<'_>,
    case: usize,
    golden: &GoldenCase,
) -> Result<Replay, ReplayError> {
    let frame = Frame::new(
        golden.width,
        golden.height,
        PixelFormat::Rgb,
        golden.pixels.clone(),
    )
    .map_err(|error| ReplayError::Frame { case, error })?;
    let manifest = pipeline.bundle().manifest();
    let plan = &manifest.preprocess;
    let mut tensor = vec![0.0; plan.pixel_len()];
    plan.normalize(worker.preprocess(&frame), &mut tensor);
    let tensor = pooled(&tensor, (golden.tensor.len() / 3).isqrt());
    let tensor_levels = levels_apart(&tensor, &golden.tensor, plan.std);
    let embedding = worker.encode()?;
    let cosine = cosine(&embedding, &golden.embedding);
    let got = pipeline.bundle().estimator().estimate(&embedding).value;
    let [low, high] = manifest.task.range;
    let passed = tensor_levels <= TENSOR_TOLERANCE_LEVELS
        && cosine >= COSINE_TOLERANCE
        && (got - golden.value).abs() <= VALUE_TOLERANCE * (high - low);
    Ok(Replay {
        case,
        tensor_levels,
        cosine,
        expected: golden.value,
        got,
        passed,
    })
}

fn levels_apart(got: &[f32], expected: &[f32], std: [f32; 3]) -> f32 {
    let plane = (expected.len() / 3).max(1);
    let pairs = got.iter().zip(expected).enumerate();
    pairs
        .map(|(index, (a, b))| (a - b).abs() * 255.0 * std[index / plane])
        .fold(0.0, f32::max)
}

/// Cosine of the angle between `a` and `b`; 0 where one of them is zero.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 {
        (dot(a, b) / norms) as f32
    } else {
        0.0
    }
}
