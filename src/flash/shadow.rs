//! A new model beside the one that serves, on pictures that the device kept.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::store::StoreError;
use crate::decode;
use crate::encode::EncodeError;
use crate::frame::Frame;
use crate::package::ShadowBudget;
use crate::pipeline::Pipeline;

/// Most pictures that are compared.
const MOST: usize = 256;

/// How two models differ on the same pictures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// Pictures compared.
    pub frames: usize,
    /// Mean absolute difference of the values, in the task's unit.
    pub mean: f32,
    /// Largest absolute difference.
    pub largest: f32,
}

/// Compares `candidate` with the model that `serves` on the pictures in
/// `folder`; refuses it beyond `budget`. `None` where the two estimate
/// different quantities, so that there is nothing to compare. `each` hears of
/// every picture.
///
/// # Errors
/// [`StoreError::Shadow`], also when there are too few pictures to tell.
pub(super) fn compare(
    serves: &Pipeline,
    candidate: &Pipeline,
    folder: &Path,
    budget: ShadowBudget,
    each: &mut dyn FnMut(),
) -> Result<Option<Comparison>, StoreError> {
    let [old, new] = [serves, candidate].map(|model| &model.bundle().manifest().task);
    if (&old.name, &old.unit) != (&new.name, &new.unit) {
        return Ok(None);
    }
    let pictures = pictures(folder);
    if pictures.len() < budget.frames {
        return Err(StoreError::Shadow(format!(
            "{} pictures are kept in {}, {} are asked for; have `numclip run` keep them ([keep] in its settings), or pack without --shadow",
            pictures.len(),
            folder.display(),
            budget.frames
        )));
    }
    let failed = |error: EncodeError| StoreError::Shadow(error.to_string());
    let values = values(serves, &pictures, each).map_err(failed)?;
    let others = self::values(candidate, &pictures, each).map_err(failed)?;
    let comparison = compared(&values, &others);
    match comparison.mean <= budget.difference {
        true => Ok(Some(comparison)),
        false => Err(StoreError::Shadow(format!(
            "{} {} on average ({} at most) over {} pictures, {} is accepted",
            comparison.mean, new.unit, comparison.largest, comparison.frames, budget.difference
        ))),
    }
}

/// The pictures that can be read: one may be about to be replaced.
fn pictures(folder: &Path) -> Vec<Frame> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| decode::is_picture(path));
    paths.sort();
    let frames = paths.iter().take(MOST).map(|path| decode::open(path));
    frames.filter_map(Result::ok).collect()
}

fn values(
    pipeline: &Pipeline,
    pictures: &[Frame],
    each: &mut dyn FnMut(),
) -> Result<Vec<f32>, EncodeError> {
    let mut worker = pipeline.worker()?;
    let estimates = pictures.iter().map(|picture| {
        each();
        worker.estimate(picture)
    });
    estimates.map(|timed| Ok(timed?.estimate.value)).collect()
}

fn compared(values: &[f32], others: &[f32]) -> Comparison {
    let differences = values.iter().zip(others).map(|(a, b)| (a - b).abs());
    let (sum, largest) = differences.fold((0.0, 0.0_f32), |(sum, largest), difference| {
        (sum + difference, largest.max(difference))
    });
    let frames = values.len();
    Comparison {
        frames,
        mean: sum / frames.max(1) as f32,
        largest,
    }
}
