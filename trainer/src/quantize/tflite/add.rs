//! A TensorFlow Lite encoder for a bundle that has an ONNX one, or for a file.

use std::collections::BTreeMap;
use std::path::Path;

use numclip::bundle::{self, Bundle, BundleError, Contents, EncoderFile, EncoderFormat};

use super::{TfliteError, convert};
use crate::file::write_whole;

/// Name of the file within the bundle.
pub const ENCODER: &str = "encoder.tflite";

/// What was added to a bundle.
#[derive(Clone, Debug)]
pub struct Added {
    /// Size of the new file.
    pub bytes: usize,
    /// SHA-256 of the bundle's new manifest.
    pub sha256: String,
}

/// Converts the best ONNX encoder of the bundle in `directory` and writes the
/// bundle anew with both; an older TensorFlow Lite encoder is replaced.
///
/// # Errors
/// [`TfliteError`]; the bundle is then as it was.
pub fn add(directory: &Path) -> Result<Added, TfliteError> {
    let bundle = Bundle::open(directory)?;
    let mut manifest = bundle.manifest().clone();
    manifest
        .encoder
        .retain(|encoder| encoder.format == EncoderFormat::Onnx);
    let Some(best) = manifest.encoder.first().cloned() else {
        return Err(TfliteError::NoOnnx(directory.display().to_string()));
    };
    let tflite =
        convert(&bundle.read_encoder(&best)?).map_err(|error| error.of_file(best.path.clone()))?;
    let bytes = tflite.len();
    let mut encoders = BTreeMap::from([(ENCODER.to_owned(), tflite)]);
    for encoder in &manifest.encoder {
        encoders.insert(encoder.path.clone(), bundle.read_encoder(encoder)?);
    }
    manifest.encoder.push(EncoderFile {
        path: ENCODER.into(),
        format: EncoderFormat::Tflite,
        precision: best.precision,
    });
    let contents = Contents {
        encoders,
        embeddings: bundle.estimator().bins().embeddings().to_vec(),
        golden: bundle.golden().clone(),
    };
    let mut sha256 = String::new();
    bundle::write(directory, manifest, &contents, |staged| {
        sha256 = Bundle::open(staged)?.sha256().into();
        Ok::<(), BundleError>(())
    })?;
    Ok(Added { bytes, sha256 })
}

/// Converts the ONNX network in `source` and writes it to `out`; returns its
/// size in bytes.
///
/// # Errors
/// [`TfliteError`]; `out` is then as it was.
pub fn convert_file(source: &Path, out: &Path) -> Result<usize, TfliteError> {
    let io = |path: &Path| {
        let file = path.display().to_string();
        move |error| TfliteError::Io { file, error }
    };
    let onnx = std::fs::read(source).map_err(io(source))?;
    let tflite = convert(&onnx).map_err(|error| error.of_file(source.display().to_string()))?;
    write_whole(out, &tflite).map_err(io(out))?;
    Ok(tflite.len())
}
