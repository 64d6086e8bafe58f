//! Golden vectors replayed: does this machine compute what the trainer did,
//! and if not, what is it that differs?

mod diagnose;
mod pattern;
mod plans;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bundle::{Bundle, GoldenCase, pooled};
use crate::encode::{EncodeError, Engine};
use crate::estimate::Estimator;
use crate::frame::{Frame, FrameError};
use crate::pipeline::{Pipeline, Worker};
use crate::preprocess::Plan;
pub use diagnose::{Better, PlanDiagnosis, diagnose_plan, search};
pub use pattern::pattern;
pub use plans::Mismatch;
use thiserror::Error;

/// Largest accepted distance of a preprocessed value from the golden one, in
/// levels of 255: resizers may differ in the last level.
pub const TENSOR_TOLERANCE_LEVELS: f32 = 1.01;
/// Lowest accepted cosine between an embedding and the golden one.
pub const COSINE_TOLERANCE: f32 = 0.999;
/// Largest accepted distance of a value, as a share of the task's range.
pub const VALUE_TOLERANCE: f32 = 0.005;

/// Estimates that a latency is the median of, if they take no longer than that.
const ROUNDS: usize = 15;
const PATIENCE: Duration = Duration::from_millis(500);

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
    /// The engine computes something else than the trainer did.
    #[error(
        "golden case {}: engine {engine} gives {} for {} (cosine {:.5}, input off by {:.2}/255); see `numclip verify --diagnose`",
        replay.case, replay.got, replay.expected, replay.cosine, replay.tensor_levels
    )]
    Differs {
        /// The engine.
        engine: Engine,
        /// The first case that it does not meet.
        replay: Replay,
    },
}

/// One engine held against the golden vectors.
#[derive(Debug)]
pub struct EngineCheck {
    /// The engine.
    pub engine: Engine,
    /// What it makes of them, or why it runs none of the bundle's encoders.
    pub outcome: Result<Check, ReplayError>,
}

/// Golden vectors on one engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// One for each case.
    pub replays: Vec<Replay>,
    /// Median time from a golden picture to its estimate.
    pub latency: Duration,
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

/// Replays every golden case, and takes nothing that is out of tolerance: what
/// has to hold before a model serves.
///
/// # Errors
/// [`ReplayError::Differs`] names the first case that is not met.
pub fn prove(pipeline: &Pipeline) -> Result<(), ReplayError> {
    let engine = pipeline.engine();
    match replay(pipeline)?.into_iter().find(|replay| !replay.passed) {
        None => Ok(()),
        Some(replay) => Err(ReplayError::Differs { engine, replay }),
    }
}

/// Replays every golden case, then measures how long an estimate takes.
///
/// # Errors
/// [`ReplayError`] when a case cannot be run at all.
pub fn check(pipeline: &Pipeline) -> Result<Check, ReplayError> {
    let replays = replay(pipeline)?;
    let cases = pipeline.bundle().golden().cases.iter().enumerate();
    let frames: Result<Vec<Frame>, _> = cases.map(|(index, case)| frame_of(index, case)).collect();
    let latency = median_latency(pipeline, &frames?)?;
    Ok(Check { replays, latency })
}

/// Each of `engines` held against the golden vectors of `bundle`.
pub fn check_engines(bundle: &Arc<Bundle>, engines: &[Engine]) -> Vec<EngineCheck> {
    let run = |engine| check(&Pipeline::new(Arc::clone(bundle), Some(engine))?);
    engines
        .iter()
        .map(|&engine| EngineCheck {
            engine,
            outcome: run(engine),
        })
        .collect()
}

/// The golden case of `frame`: what `encode` (from a tensor to an embedding)
/// and `estimator` make of it.
///
/// # Errors
/// What `encode` says.
pub fn record<E>(
    frame: Frame,
    plan: &Plan,
    estimator: &Estimator,
    encode: impl FnOnce(&[f32]) -> Result<Vec<f32>, E>,
) -> Result<GoldenCase, E> {
    let tensor = plan.tensor(&frame);
    let embedding = encode(&tensor)?;
    let value = estimator.estimate(&embedding).value;
    Ok(GoldenCase {
        width: frame.width(),
        height: frame.height(),
        pixels: frame.into_pixels(),
        tensor,
        embedding,
        value,
    })
}

/// The least cosine between the golden embeddings and what the pipeline's
/// engine makes of the golden tensors: preprocessing has no part in it.
///
/// # Errors
/// [`EncodeError`] when the engine fails.
pub fn cosine_of_tensors(pipeline: &Pipeline) -> Result<f32, EncodeError> {
    let mut worker = pipeline.worker()?;
    let values = pipeline.bundle().manifest().preprocess.pixel_len();
    let cases = pipeline.bundle().golden().cases.iter();
    let mut least = 1.0_f32;
    for case in cases.filter(|case| case.tensor.len() == values) {
        let embedding = worker.encode_tensor(&case.tensor)?;
        least = least.min(cosine(&embedding, &case.embedding));
    }
    Ok(least)
}

impl EngineCheck {
    /// Whether the engine computes what the trainer did.
    pub fn passed(&self) -> bool {
        self.outcome.as_ref().is_ok_and(Check::passed)
    }

    /// Whether the engine runs none of the bundle's encoders, which is no
    /// fault where another one does.
    pub fn is_refusal(&self) -> bool {
        let Err(ReplayError::Encode(error)) = &self.outcome else {
            return false;
        };
        !matches!(error, EncodeError::Run { .. } | EncodeError::Bundle(_))
    }
}

impl Check {
    /// Whether every case is within tolerance.
    pub fn passed(&self) -> bool {
        self.replays.iter().all(|replay| replay.passed)
    }

    /// The least cosine between an embedding and the golden one.
    pub fn cosine(&self) -> f32 {
        let cosines = self.replays.iter().map(|replay| replay.cosine);
        cosines.fold(1.0, f32::min)
    }

    /// The largest distance of a value from the golden one, in the task's unit.
    pub fn value_difference(&self) -> f32 {
        let apart = |replay: &Replay| (replay.got - replay.expected).abs();
        self.replays.iter().map(apart).fold(0.0, f32::max)
    }

    /// The largest distance of a preprocessed value, in levels of 255.
    pub fn tensor_levels(&self) -> f32 {
        let levels = self.replays.iter().map(|replay| replay.tensor_levels);
        levels.fold(0.0, f32::max)
    }
}

/// The replay before warmed up.
fn median_latency(pipeline: &Pipeline, frames: &[Frame]) -> Result<Duration, EncodeError> {
    let mut worker = pipeline.worker()?;
    let mut times = Vec::with_capacity(ROUNDS);
    let start = Instant::now();
    for frame in frames.iter().cycle().take(ROUNDS) {
        let timed = worker.estimate(frame)?;
        times.push(timed.preprocess + timed.encode + timed.estimation);
        if start.elapsed() > PATIENCE {
            break;
        }
    }
    times.sort();
    Ok(times.get(times.len() / 2).copied().unwrap_or_default())
}

fn frame_of(case: usize, golden: &GoldenCase) -> Result<Frame, ReplayError> {
    let frame = golden.frame();
    frame.map_err(|error| ReplayError::Frame { case, error })
}

fn replay_case(
    pipeline: &Pipeline,
    worker: &mut Worker<'_>,
    case: usize,
    golden: &GoldenCase,
) -> Result<Replay, ReplayError> {
    let frame = frame_of(case, golden)?;
    let manifest = pipeline.bundle().manifest();
    let plan = &manifest.preprocess;
    let mut tensor = vec![0.0; plan.pixel_len()];
    plan.normalize(worker.preprocess(&frame), &mut tensor);
    let tensor = pooled(&tensor, (golden.tensor.len() / 3).isqrt());
    let tensor_levels = levels_apart(&tensor, &golden.tensor, plan.std);
    let embedding = worker.encode()?;
    let cosine = cosine(embedding, &golden.embedding);
    let got = pipeline.bundle().estimator().estimate(embedding).value;
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
