//! Golden vectors: a few pictures with what the exported encoder makes of them.

use image::{RgbImage, imageops};
use numclip::bundle::{Golden, GoldenCase};
use numclip::decode;
use numclip::encode::Model as _;
use numclip::encode::tract::TractModel;
use numclip::estimate::Estimator;
use numclip::frame::Frame;
use numclip::verify::{pattern, record};

use super::ExportError;
use crate::config::{Config, GoldenPictures};
use crate::fit::Prepared;

/// Pictures in a bundle.
const CASES: usize = 3;
/// Longest side of a picture, as a multiple of the encoder's input: large
/// enough that resizing is part of the check.
const OVERSIZE: f32 = 1.5;

/// The golden vectors of the encoder in `bytes`.
pub fn cases(
    config: &Config,
    prepared: &Prepared,
    bytes: &[u8],
    estimator: &Estimator,
) -> Result<Golden, ExportError> {
    let size = config.preprocess.size as usize;
    let model = TractModel::from_bytes("encoder.onnx", bytes, size, prepared.embeddings.dim)?;
    let mut session = model.session()?;
    let case = |frame: Frame| -> Result<GoldenCase, ExportError> {
        let encode = |tensor: &[f32]| session.encode(tensor);
        Ok(record(frame, &config.preprocess, estimator, encode)?)
    };
    Ok(Golden {
        cases: frames(config, prepared)
            .into_iter()
            .map(case)
            .collect::<Result<_, _>>()?,
    })
}

fn frames(config: &Config, prepared: &Prepared) -> Vec<Frame> {
    let longest = (config.preprocess.size as f32 * OVERSIZE) as u32;
    let photographs = match config.export.golden {
        GoldenPictures::Validation => validation(prepared, longest),
        GoldenPictures::Patterns => Vec::new(),
    };
    match photographs.is_empty() {
        true => (0..CASES)
            .filter_map(|index| pattern(index as u32, longest).ok())
            .collect(),
        false => photographs,
    }
}

/// Validation images from the low, the middle and the high end of the labels.
fn validation(prepared: &Prepared, longest: u32) -> Vec<Frame> {
    let samples = prepared.dataset.samples();
    let mut indices = prepared.splits.val.clone();
    indices.sort_by(|&a, &b| {
        samples[a]
            .label
            .total_cmp(&samples[b].label)
            .then(a.cmp(&b))
    });
    let last = indices.len().saturating_sub(1);
    let places = (0..CASES).map(|case| case * last / (CASES - 1));
    let chosen = places.filter_map(|place| indices.get(place));
    chosen
        .filter_map(|&index| decode::open(&samples[index].path).ok())
        .map(|frame| shrink(frame, longest))
        .collect()
}

fn shrink(frame: Frame, longest: u32) -> Frame {
    let (width, height) = (frame.width(), frame.height());
    let side = width.max(height);
    if side <= longest {
        return frame;
    }
    let scaled =
        |length: u32| (u64::from(length) * u64::from(longest) / u64::from(side)).max(1) as u32;
    match RgbImage::from_raw(width, height, frame.clone().into_pixels()) {
        Some(image) => imageops::resize(
            &image,
            scaled(width),
            scaled(height),
            imageops::FilterType::Triangle,
        )
        .into(),
        None => frame,
    }
}
