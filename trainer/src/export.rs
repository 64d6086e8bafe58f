//! From a folded network to a bundle: float ONNX, calibration, int8 ONNX,
//! golden vectors, metrics of both precisions.

pub mod onnx;
pub mod quantize;
pub mod calibrate;
pub mod int8;
