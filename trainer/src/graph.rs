//! The folded network: plain values between the model and the export.
