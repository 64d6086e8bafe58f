//! From a folded network to ONNX in float and in int8.
//!
//! ```text
//! ConvNet → onnx::float, CLIP tower → towers
//! vision transformer + images → smooth → vit
//! ConvNet + images → calibrate → equalize → range → Quantized → refine (round, biases) → int8
//!                                  recipe says which               simulate runs it in floats
//! ONNX → tflite
//! ```

pub mod affine;
pub mod onnx;
pub mod towers;
pub mod range;
pub mod ends;
pub mod calibrate;
pub mod equalize;
pub mod quantized;
pub mod simulate;
pub mod round;
pub mod refine;
pub mod recipe;
pub mod aware;
pub mod smooth;
pub mod vit;
pub mod int8;
pub mod tflite;
#[cfg(test)]
pub(crate) mod tests;
