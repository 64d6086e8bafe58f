//! The TensorFlow Lite form of an encoder, made of its ONNX form.
//!
//! ```text
//! encoder.onnx → graph → lower → Model → write → encoder.tflite
//! ```
//!
//! Both files hold the same integers. What differs is the layout (NHWC) and
//! the offset of activations: a level `u` of 0..=255 becomes `u − 128`, and so
//! does its zero point. Input and output stay 32-bit floats: the image
//! `[1, size, size, 3]`, the embedding `[1, D]`.

mod add;
mod graph;
mod lower;
mod model;
mod schema;
mod write;
#[cfg(test)]
mod tests;

use std::io;

use numclip::bundle::BundleError;
use thiserror::Error;

pub use add::{Added, ENCODER, add, convert_file};

/// Why an encoder has no TensorFlow Lite form.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TfliteError {
    /// The bytes are no ONNX network.
    #[error("not an ONNX network: {0}")]
    Onnx(String),
    /// A node has no TensorFlow Lite form.
    #[error("node {node} ({op}): {message}")]
    Node {
        /// Name of the node.
        node: String,
        /// Its operation.
        op: String,
        /// What is the matter with it.
        message: String,
    },
    /// The bundle has nothing to convert.
    #[error("{0}: the bundle has no ONNX encoder to convert")]
    NoOnnx(String),
    /// A file cannot be converted.
    #[error("{file}: {error}")]
    File {
        /// The file.
        file: String,
        /// Why not.
        error: Box<TfliteError>,
    },
    /// A file cannot be read or written.
    #[error("{file}: {error}")]
    Io {
        /// The file.
        file: String,
        /// What the system says.
        error: io::Error,
    },
    /// The bundle cannot be read or written.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

impl TfliteError {
    fn of_file(self, file: String) -> Self {
        Self::File {
            file,
            error: Box::new(self),
        }
    }
}

/// Writes the ONNX network in `onnx` as TensorFlow Lite.
///
/// Takes what this project exports. Of convolutional networks: `QLinearConv`
/// with sums, pooling and float convolutions between `DequantizeLinear` and
/// `QuantizeLinear`, or floats throughout. Of vision transformers: floats, with
/// weights in int8 where `MatMulInteger` multiplies them; the library rounds
/// the other factor by itself.
///
/// # Errors
/// [`TfliteError`] names the node that has no such form.
pub fn convert(onnx: &[u8]) -> Result<Vec<u8>, TfliteError> {
    let graph = graph::Graph::read(onnx)?;
    Ok(write::write(&lower::lower(graph.view()?)?))
}
