//! `trainer tflite`

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use numclip_trainer::quantize::tflite;

/// Add a TensorFlow Lite encoder to a bundle.
///
/// The file holds the same integers as the bundle's ONNX encoder; the bundle
/// keeps both. An ONNX file instead of a bundle is converted to --out.
#[derive(Args)]
#[command(after_help = "\
Examples:
  trainer tflite models/gauge
  trainer tflite encoder.onnx --out encoder.tflite")]
pub struct Tflite {
    /// Folder of a bundle, or an ONNX file
    #[arg(value_name = "BUNDLE|ONNX")]
    source: PathBuf,
    /// File to write; for an ONNX file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Tflite {
    pub fn run(self) -> Result<()> {
        match (self.source.is_dir(), &self.out) {
            (true, None) => add(&self.source),
            (false, Some(out)) => convert(&self.source, out),
            (true, Some(_)) => bail!("--out is for an ONNX file; a bundle gets its encoder inside"),
            (false, None) => bail!(
                "{}: expected the folder of a bundle, or an ONNX file with --out FILE",
                self.source.display()
            ),
        }
    }
}

/// Adds the encoder to the bundle in `directory` and says so.
pub fn add(directory: &Path) -> Result<()> {
    let added = tflite::add(directory)?;
    // Not on stdout, which export may fill with JSON.
    eprintln!(
        "{}: {:.2} MB, bundle {}",
        directory.join(tflite::ENCODER).display(),
        added.bytes as f64 / 1e6,
        added.sha256
    );
    Ok(())
}

fn convert(source: &Path, out: &Path) -> Result<()> {
    let bytes = tflite::convert_file(source, out)?;
    println!("{}: {:.2} MB", out.display(), bytes as f64 / 1e6);
    Ok(())
}
