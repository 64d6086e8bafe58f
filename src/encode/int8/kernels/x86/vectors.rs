//! Sixteen floats in registers. What is named here may run only where the
//! instructions exist: `Avx512::float` and `Avx2::float` alone name it, whose
//! tokens prove that.

use std::arch::x86_64::*;

use crate::encode::int8::kernels::floats::Vector;
use crate::encode::int8::plan::LANES;

/// In one register of AVX-512.
#[derive(Clone, Copy)]
pub struct Zmm(__m512);

impl Vector for Zmm {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: the module's rule.
        unsafe { Self(_mm512_set1_ps(value)) }
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        // SAFETY: the module's rule; the array is read whole.
        unsafe { Self(_mm512_loadu_ps(from.as_ptr())) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: the module's rule; the array is written whole.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: the module's rule.
        unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
    }

    #[inline(always)]
    fn times(self, factor: f32) -> Self {
        // SAFETY: the module's rule.
        unsafe { Self(_mm512_mul_ps(self.0, _mm512_set1_ps(factor))) }
    }
}

/// In two registers of AVX2.
#[derive(Clone, Copy)]
pub struct Ymms(__m256, __m256);

impl Vector for Ymms {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: the module's rule.
        unsafe {
            let all = _mm256_set1_ps(value);
            Self(all, all)
        }
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        // SAFETY: the module's rule; the array is read whole.
        unsafe {
            let from = from.as_ptr();
            Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(LANES / 2)))
        }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: the module's rule; the array is written whole.
        unsafe {
            let to = to.as_mut_ptr();
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(LANES / 2), self.1);
        }
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: the module's rule.
        unsafe {
            Self(
                _mm256_fmadd_ps(self.0, factor.0, addend.0),
                _mm256_fmadd_ps(self.1, factor.1, addend.1),
            )
        }
    }

    #[inline(always)]
    fn times(self, factor: f32) -> Self {
        // SAFETY: the module's rule.
        unsafe {
            let factor = _mm256_set1_ps(factor);
            Self(_mm256_mul_ps(self.0, factor), _mm256_mul_ps(self.1, factor))
        }
    }
}
