//! Fine-tunes a NumCLIP image encoder and exports it as a quantised bundle.
//!
//! Modules are declared in flow order; a module uses only those above it.

mod file;
pub mod device;
pub mod synth;
pub mod data;
pub mod graph;
pub mod ops;
pub mod checkpoint;
pub mod clip;
pub mod text;
pub mod model;
pub mod loss;
pub mod optim;
pub mod quantize;
pub mod config;
pub mod fit;
pub mod report;
pub mod export;
pub mod inspect;
pub mod eval;
pub mod study;
pub mod repro;
