//! Kernels for 64-bit ARM.
//!
//! Levels are unsigned and weights signed. Before i8mm no instruction
//! multiplies the two, so kernels take 128 off each level by flipping its top
//! bit, and the biases make up for it.

mod dotprod;
mod i8mm;
mod neon;
mod store;
mod vectors;

use super::floats::FloatWork;
use super::{Kernels, floats};
use vectors::Quads;

/// What all of them do in floats.
fn float(work: FloatWork<'_>) {
    floats::run::<Quads, 1>(work);
}

/// Those that this machine can run, the fastest first.
pub fn detected() -> Vec<&'static dyn Kernels> {
    let mut detected: Vec<&'static dyn Kernels> = Vec::new();
    detected.extend(i8mm::I8mm::detect().map(|kernels| kernels as &dyn Kernels));
    detected.extend(dotprod::Dotprod::detect().map(|kernels| kernels as &dyn Kernels));
    detected.extend(neon::Neon::detect().map(|kernels| kernels as &dyn Kernels));
    detected
}
