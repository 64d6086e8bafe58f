//! From sums to levels.

use std::arch::aarch64::*;

use crate::encode::int8::kernels::tiles::Strip;
use crate::encode::int8::kernels::{Requant, put_reals};

/// Sums of a vector.
pub const LANES: usize = 4;

/// The levels of up to `4·V` sums of a panel, in order, or their real values:
/// `to` says how many bytes.
///
/// # Safety
/// The panel has `4·V` slots, `V` is even.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn store_panel<const V: usize>(strip: &Strip<'_>, sums: &[int32x4_t; V], to: &mut [u8]) {
    let (multiplier, offset) = (strip.multiplier.as_ptr(), strip.offset.as_ptr());
    // SAFETY: there is a multiplier and an offset for each slot.
    unsafe {
        match strip.dense.requant {
            Some(requant) => store(requant, sums, multiplier, to),
            None => store_reals(sums, multiplier, offset, to),
        }
    }
}

/// The levels of up to `4·V` sums, in order: `to` says how many.
///
/// # Safety
/// `4·V` multipliers may be read, `V` is even.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn store<const V: usize>(
    requant: Requant,
    sums: &[int32x4_t; V],
    multiplier: *const f32,
    to: &mut [u8],
) {
    for (pair, to) in to.chunks_mut(2 * LANES).enumerate().take(V / 2) {
        // SAFETY: the caller's.
        let (first, second) = unsafe {
            let multiplier = multiplier.add(2 * LANES * pair);
            (vld1q_f32(multiplier), vld1q_f32(multiplier.add(LANES)))
        };
        let low = rounded(sums[2 * pair], first);
        let levels = levels(requant, [low, rounded(sums[2 * pair + 1], second)]);
        match <&mut [u8; 2 * LANES]>::try_from(&mut *to) {
            // SAFETY: eight bytes.
            Ok(to) => unsafe { vst1_u8(to.as_mut_ptr(), levels) },
            Err(_) => store_some(levels, to),
        }
    }
}

/// `round(multiplier · sum)`, halves to even.
#[inline]
#[target_feature(enable = "neon")]
fn rounded(sums: int32x4_t, multiplier: float32x4_t) -> int32x4_t {
    vcvtnq_s32_f32(vmulq_f32(vcvtq_f32_s32(sums), multiplier))
}

/// The real values of up to `4·V` sums.
///
/// # Safety
/// `4·V` multipliers and offsets may be read.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store_reals<const V: usize>(
    sums: &[int32x4_t; V],
    multiplier: *const f32,
    offset: *const f32,
    to: &mut [u8],
) {
    for (v, to) in to.chunks_mut(4 * LANES).enumerate().take(V) {
        let mut reals = [0.0; LANES];
        // SAFETY: the caller's, and the array has four floats.
        unsafe {
            let multiplier = vld1q_f32(multiplier.add(LANES * v));
            let offset = vld1q_f32(offset.add(LANES * v));
            let scaled = vmulq_f32(vcvtq_f32_s32(sums[v]), multiplier);
            vst1q_f32(reals.as_mut_ptr(), vaddq_f32(scaled, offset));
        }
        put_reals(to, &reals);
    }
}

/// Zero point added and range applied, on saturated values of 16 bits.
#[inline]
#[target_feature(enable = "neon")]
fn levels(requant: Requant, [low, high]: [int32x4_t; 2]) -> uint8x8_t {
    let values = vcombine_s16(vqmovn_s32(low), vqmovn_s32(high));
    let levels = vqaddq_s16(values, vdupq_n_s16(requant.zero_point.into()));
    let [low, high] = requant.range;
    let levels = vmaxq_s16(levels, vdupq_n_s16(low.into()));
    vqmovun_s16(vminq_s16(levels, vdupq_n_s16(high.into())))
}

/// The first levels, fewer than eight.
#[target_feature(enable = "neon")]
fn store_some(levels: uint8x8_t, to: &mut [u8]) {
    let mut eight = [0; 2 * LANES];
    // SAFETY: the array has eight bytes.
    unsafe { vst1_u8(eight.as_mut_ptr(), levels) };
    to.copy_from_slice(&eight[..to.len()]);
}
