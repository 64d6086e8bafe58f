//! From a folded network to ONNX in float and in int8.
//!
//! ```text
//! ConvNet → onnx::float, CLIP tower → towers
//! ConvNet + images → calibrate → taps → int8
//! ONNX → tflite
//! ```

pub mod affine;
pub mod onnx;
pub mod towers;
pub mod calibrate;
pub mod int8;
pub mod tflite;
