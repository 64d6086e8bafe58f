//! Sixteen floats in four registers of NEON, which every 64-bit ARM processor has:
//! its instructions are granted wherever this module exists.

use std::arch::aarch64::*;

use crate::encode::int8::kernels::floats::Vector;
use crate::encode::int8::plan::LANES;

/// In four registers of NEON.
#[derive(Clone, Copy)]
pub struct Quads(float32x4_t, float32x4_t, float32x4_t, float32x4_t);

impl Vector for Quads {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see above.
        let all = unsafe { vdupq_n_f32(value) };
        Self(all, all, all, all)
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        let from = from.as_ptr();
        // SAFETY: the array is read whole.
        unsafe {
            Self(
                vld1q_f32(from),
                vld1q_f32(from.add(4)),
                vld1q_f32(from.add(8)),
                vld1q_f32(from.add(12)),
            )
        }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        let to = to.as_mut_ptr();
        // SAFETY: the array is written whole.
        unsafe {
            vst1q_f32(to, self.0);
            vst1q_f32(to.add(4), self.1);
            vst1q_f32(to.add(8), self.2);
            vst1q_f32(to.add(12), self.3);
        }
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            Self(
                vfmaq_f32(addend.0, self.0, factor.0),
                vfmaq_f32(addend.1, self.1, factor.1),
                vfmaq_f32(addend.2, self.2, factor.2),
                vfmaq_f32(addend.3, self.3, factor.3),
            )
        }
    }

    #[inline(always)]
    fn times(self, factor: f32) -> Self {
        // SAFETY: see above.
        unsafe {
            Self(
                vmulq_n_f32(self.0, factor),
                vmulq_n_f32(self.1, factor),
                vmulq_n_f32(self.2, factor),
                vmulq_n_f32(self.3, factor),
            )
        }
    }
}
