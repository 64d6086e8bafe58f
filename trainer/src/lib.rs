//! Fine-tunes a NumCLIP image encoder and exports it as a quantised bundle.
//!
//! Modules are declared in flow order; a module uses only those above it.

pub mod config;
pub mod data;
pub mod graph;
pub mod ops;
pub mod synth;

pub mod export;
pub mod fit;
pub mod loss;
pub mod model;
pub mod optim;
pub mod report;
pub mod text;
