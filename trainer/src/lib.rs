//! Fine-tunes a NumCLIP image encoder and exports it as a quantised bundle.
//!
//! Modules are declared in flow order; a module uses only those above it.

pub mod config;
pub mod data;
pub mod export;
pub mod fit;
pub mod graph;
pub mod loss;
pub mod model;
pub mod ops;
pub mod optim;
pub mod report;
pub mod synth;
pub mod text;
