//! A task without its encoder, for devices that have the encoder already.
//!
//! Bins, regressor, plan and one small golden picture are all that travels:
//! kilobytes. The bundle that a device makes of it is a whole one, but another
//! than the one it was made from: its bins are kept in half precision, and its
//! golden vectors are computed here, on the engine of this machine.

use std::collections::BTreeMap;
use std::path::Path;

use half::f16;
use image::RgbImage;
use image::imageops::thumbnail;

use super::PackageError;
use super::index::Required;
use super::write::{assemble, read};
use crate::bins::Bins;
use crate::bundle::{
    self, BINS, Bundle, GOLDEN, Golden, GoldenCase, MANIFEST, Manifest, pooled, sha256,
};
use crate::estimate::Estimator;
use crate::frame::{Frame, PixelFormat};
use crate::pipeline::Pipeline;
use crate::verify::{VALUE_TOLERANCE, replay};

/// Longest side of the golden picture in pixels.
const SIDE: u32 = 32;
/// Most blocks a side of the golden tensor.
const BLOCKS: usize = 8;

/// A task cartridge.
#[derive(Clone, Debug, PartialEq)]
pub struct Cartridge {
    /// The package.
    pub bytes: Vec<u8>,
    /// How far half precision moves the values of the bundle's golden cases at
    /// most, in the task's unit.
    pub shift: f32,
}

/// The cartridge of the bundle in `directory`. This machine proves first that
/// it computes what the trainer did.
///
/// # Errors
/// [`PackageError`] when the bundle cannot be used or proved here, or half
/// precision moves its values too far.
pub fn cartridge(directory: &Path) -> Result<Cartridge, PackageError> {
    let pipeline = Pipeline::new(Bundle::open(directory)?, None).map_err(refused)?;
    if replay(&pipeline)
        .map_err(refused)?
        .iter()
        .any(|case| !case.passed)
    {
        let message = "this machine does not compute what the trainer did; see `numclip verify`";
        return Err(refused(message));
    }
    let bundle = pipeline.bundle();
    let halves = halved(bundle.estimator().bins().embeddings());
    let estimator = estimator(bundle.manifest(), &halves)?;
    let shift = shift(bundle, &estimator)?;
    let golden = Golden {
        cases: vec![small_case(&pipeline, &estimator)?],
    };
    let files = carried(bundle, &halves, &golden)?;
    let bytes = assemble(&bundle.manifest().model, &files, required(bundle)?)?;
    Ok(Cartridge { bytes, shift })
}

fn halved(values: &[f32]) -> Vec<f16> {
    values.iter().map(|&value| f16::from_f32(value)).collect()
}

/// From embedding to estimate, by the bins as they will be on the device.
fn estimator(manifest: &Manifest, halves: &[f16]) -> Result<Estimator, PackageError> {
    let embeddings = halves.iter().map(|value| value.to_f32()).collect();
    let bins = Bins::new(manifest.bins.bin.clone(), embeddings).map_err(refused)?;
    Estimator::new(
        bins,
        manifest.regressor.clone(),
        manifest.logit_scale,
        manifest.task.range,
        manifest.interval.clone(),
    )
    .map_err(refused)
}

/// The farthest that `estimator` is from a golden value.
fn shift(bundle: &Bundle, estimator: &Estimator) -> Result<f32, PackageError> {
    let cases = bundle.golden().cases.iter();
    let shifts = cases.map(|case| (estimator.estimate(&case.embedding).value - case.value).abs());
    let shift = shifts.fold(0.0, f32::max);
    let [low, high] = bundle.manifest().task.range;
    match shift <= VALUE_TOLERANCE * (high - low) {
        true => Ok(shift),
        false => Err(refused(format!(
            "bins in half precision move a golden value by {shift}; pack the whole bundle"
        ))),
    }
}

/// The first golden picture, shrunk, with what this machine makes of it.
fn small_case(pipeline: &Pipeline, estimator: &Estimator) -> Result<GoldenCase, PackageError> {
    let bundle = pipeline.bundle();
    let Some(case) = bundle.golden().cases.first() else {
        return Err(refused("the bundle has no golden case"));
    };
    let (width, height) = shrunk(case.width, case.height);
    let picture = RgbImage::from_raw(case.width, case.height, case.pixels.clone());
    let picture = picture.ok_or_else(|| refused("a golden picture does not fit its size"))?;
    let pixels = thumbnail(&picture, width, height).into_raw();
    let frame = Frame::new(width, height, PixelFormat::Rgb, pixels.clone()).map_err(refused)?;
    let plan = &bundle.manifest().preprocess;
    let mut worker = pipeline.worker().map_err(refused)?;
    let mut tensor = vec![0.0; plan.pixel_len()];
    plan.normalize(worker.preprocess(&frame), &mut tensor);
    let embedding = worker.encode().map_err(refused)?.to_vec();
    Ok(GoldenCase {
        width,
        height,
        pixels,
        tensor: pooled(&tensor, blocks(plan.size as usize)),
        value: estimator.estimate(&embedding).value,
        embedding,
    })
}

fn shrunk(width: u32, height: u32) -> (u32, u32) {
    let longest = width.max(height).max(1);
    let side = |side: u32| (side * SIDE / longest).clamp(1, side.max(1));
    match longest > SIDE {
        true => (side(width), side(height)),
        false => (width, height),
    }
}

/// The most blocks that share a side evenly.
fn blocks(size: usize) -> usize {
    let fits = |blocks: &usize| size.is_multiple_of(*blocks);
    (1..=BLOCKS).rev().find(fits).unwrap_or(1)
}

/// What travels, by name.
fn carried(
    bundle: &Bundle,
    halves: &[f16],
    golden: &Golden,
) -> Result<BTreeMap<&'static str, Vec<u8>>, PackageError> {
    let mut manifest = bundle.manifest().clone();
    let bins = bundle::half_bins_file(&manifest, halves)?;
    let golden = golden.to_bytes().map_err(refused)?;
    for (name, bytes) in [(BINS, &bins), (GOLDEN, &golden)] {
        manifest.files.insert(name.into(), sha256(bytes));
    }
    let text = toml::to_string(&manifest).map_err(refused)?;
    let files = [
        (MANIFEST, text.into_bytes()),
        (BINS, bins),
        (GOLDEN, golden),
    ];
    Ok(BTreeMap::from(files))
}

/// What must be there.
fn required(bundle: &Bundle) -> Result<Vec<Required>, PackageError> {
    let files = bundle.manifest().files.iter();
    let others = files.filter(|(name, _)| *name != BINS && *name != GOLDEN);
    let required = others.map(|(name, digest)| {
        Ok(Required {
            name: name.clone(),
            size: read(bundle, name)?.len() as u64,
            sha256: digest.clone(),
        })
    });
    required.collect()
}

fn refused(reason: impl ToString) -> PackageError {
    PackageError::Cartridge(reason.to_string())
}
