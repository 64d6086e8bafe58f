//! Kernels for x86-64.

mod avx2;
mod avx512;
mod vectors;

use super::Kernels;

/// Those that this machine can run, the fastest first.
pub fn detected() -> Vec<&'static dyn Kernels> {
    let mut detected: Vec<&'static dyn Kernels> = Vec::new();
    detected.extend(avx512::Avx512::detect().map(|kernels| kernels as &dyn Kernels));
    detected.extend(avx2::Avx2::detect_vnni().map(|kernels| kernels as &dyn Kernels));
    detected.extend(avx2::Avx2::detect().map(|kernels| kernels as &dyn Kernels));
    detected
}
