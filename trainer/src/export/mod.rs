//! Folded network to ONNX to int8 bundle.
