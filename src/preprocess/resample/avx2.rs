//! Kernels for AVX2.

use std::arch::x86_64::*;

use super::{Axis, GROUP, half, lines_of, put};

/// Columns of bytes that are summed at a time.
const COLUMNS: usize = 32;

/// As [`super::stretch_plain`].
///
/// # Safety
/// AVX2 must be there, every row must have `3 · axis.width() + SLACK` bytes,
/// and `target` 3 bytes for each row and pixel of the axis.
#[target_feature(enable = "avx2")]
pub unsafe fn stretch<const R: usize>(axis: &Axis, rows: [&[u8]; R], target: &mut [u8]) {
    let mut lines = lines_of::<R>(target);
    // Bytes of two pixels as pairs of 16 bits, channel by channel: pixels 0
    // and 1 in the lower half, 2 and 3 in the upper.
    #[rustfmt::skip]
    let pairs = _mm256_setr_epi8(
        0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,
        6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1,
    );
    let halves = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    let rounding = _mm_set1_epi32(half(axis.precision));
    let shift = _mm_cvtsi32_si128(axis.precision as i32);
    for pixel in 0..axis.starts.len() {
        let (start, weights) = axis.pixel(pixel);
        let mut sums = [_mm256_setzero_si256(); R];
        for (group, weights) in weights.chunks_exact(GROUP).enumerate() {
            // SAFETY: a group has four weights of 16 bits.
            let weights = unsafe { _mm_loadl_epi64(weights.as_ptr().cast()) };
            let weights = _mm256_permutevar8x32_epi32(_mm256_broadcastq_epi64(weights), halves);
            let at = 3 * (start + GROUP * group);
            for (sum, row) in sums.iter_mut().zip(rows) {
                // SAFETY: the group ends by `axis.width()`, and 16 bytes are
                // four more than it has: the row has them.
                let bytes = unsafe { _mm_loadu_si128(row.as_ptr().add(at).cast()) };
                let levels = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), pairs);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(levels, weights));
            }
        }
        for (line, sum) in lines.iter_mut().zip(sums) {
            let (low, high) = (
                _mm256_castsi256_si128(sum),
                _mm256_extracti128_si256::<1>(sum),
            );
            let sum = _mm_add_epi32(_mm_add_epi32(low, high), rounding);
            let levels = _mm_packs_epi32(_mm_sra_epi32(sum, shift), _mm_setzero_si128());
            let levels = _mm_cvtsi128_si32(_mm_packus_epi16(levels, levels)).to_le_bytes();
            put(line, pixel, levels);
        }
    }
}

/// As [`super::sum_columns`].
///
/// # Safety
/// AVX2 must be there, and `lines` must hold a line for each weight.
#[target_feature(enable = "avx2")]
pub unsafe fn sum_lines(weights: &[i16], precision: u32, lines: &[u8], target: &mut [u8]) {
    let line = target.len();
    let (pairs, _) = weights.as_chunks::<2>();
    let shift = _mm_cvtsi32_si128(precision as i32);
    let blocks = target.as_chunks_mut::<COLUMNS>().0.iter_mut();
    for (block, target) in blocks.enumerate() {
        let mut sums = [_mm256_set1_epi32(half(precision)); 4];
        for (pair, [first, second]) in pairs.iter().enumerate() {
            let both = i32::from(*first) & 0xffff | i32::from(*second) << 16;
            let weights = _mm256_set1_epi32(both);
            let at = 2 * pair * line + block * COLUMNS;
            // SAFETY: the block lies within its line, and there is a line for
            // each weight.
            let [a, b] = [at, at + line]
                .map(|at| unsafe { _mm256_loadu_si256(lines.as_ptr().add(at).cast()) });
            let (zero, low, high) = (
                _mm256_setzero_si256(),
                _mm256_unpacklo_epi8(a, b),
                _mm256_unpackhi_epi8(a, b),
            );
            let levels = [
                _mm256_unpacklo_epi8(low, zero),
                _mm256_unpackhi_epi8(low, zero),
                _mm256_unpacklo_epi8(high, zero),
                _mm256_unpackhi_epi8(high, zero),
            ];
            for (sum, levels) in sums.iter_mut().zip(levels) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(levels, weights));
            }
        }
        let [a, b, c, d] = sums.map(|sum| _mm256_sra_epi32(sum, shift));
        let levels = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        // SAFETY: the block of the target has as many bytes.
        unsafe { _mm256_storeu_si256(target.as_mut_ptr().cast(), levels) };
    }
    let done = line - line % COLUMNS;
    super::sum_columns(weights, precision, lines, target, done);
}
