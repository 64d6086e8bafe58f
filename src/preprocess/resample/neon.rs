//! The kernel for NEON.

use std::arch::aarch64::*;

use super::{Axis, GROUP, half, lines_of, put};

/// Bytes of two pixels as four 16-bit channels each, the last of them zero;
/// beyond 15 a table gives zero.
const PIXELS_0_1: [u8; 16] = [0, 99, 1, 99, 2, 99, 99, 99, 3, 99, 4, 99, 5, 99, 99, 99];
const PIXELS_2_3: [u8; 16] = [6, 99, 7, 99, 8, 99, 99, 99, 9, 99, 10, 99, 11, 99, 99, 99];

/// As [`super::stretch_plain`].
///
/// # Safety
/// NEON must be there, every row must have `3 · axis.width() + SLACK` bytes,
/// and `target` 3 bytes for each row and pixel of the axis.
#[target_feature(enable = "neon")]
pub unsafe fn stretch<const R: usize>(axis: &Axis, rows: [&[u8]; R], target: &mut [u8]) {
    let mut lines = lines_of::<R>(target);
    // SAFETY: each table has 16 bytes.
    let tables = unsafe { [vld1q_u8(PIXELS_0_1.as_ptr()), vld1q_u8(PIXELS_2_3.as_ptr())] };
    let rounding = vdupq_n_s32(half(axis.precision));
    let shift = vdupq_n_s32(-(axis.precision as i32));
    for pixel in 0..axis.starts.len() {
        let (start, weights) = axis.pixel(pixel);
        let mut sums = [rounding; R];
        for (group, weights) in weights.chunks_exact(GROUP).enumerate() {
            // SAFETY: a group has four weights of 16 bits.
            let weights = unsafe { vld1_s16(weights.as_ptr()) };
            let at = 3 * (start + GROUP * group);
            for (sum, row) in sums.iter_mut().zip(rows) {
                // SAFETY: the group ends by `axis.width()`, and 16 bytes are
                // four more than it has: the row has them.
                let bytes = unsafe { vld1q_u8(row.as_ptr().add(at)) };
                let [first, second] =
                    tables.map(|table| vreinterpretq_s16_u8(vqtbl1q_u8(bytes, table)));
                *sum = vmlal_lane_s16::<0>(*sum, vget_low_s16(first), weights);
                *sum = vmlal_lane_s16::<1>(*sum, vget_high_s16(first), weights);
                *sum = vmlal_lane_s16::<2>(*sum, vget_low_s16(second), weights);
                *sum = vmlal_lane_s16::<3>(*sum, vget_high_s16(second), weights);
            }
        }
        for (line, sum) in lines.iter_mut().zip(sums) {
            let levels = vqmovun_s32(vshlq_s32(sum, shift));
            let levels = vqmovn_u16(vcombine_u16(levels, levels));
            let levels = vget_lane_u32::<0>(vreinterpret_u32_u8(levels)).to_le_bytes();
            put(line, pixel, levels);
        }
    }
}
