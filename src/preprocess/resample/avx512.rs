//! Kernels for AVX-512 with VBMI and VNNI.

use std::arch::x86_64::*;

use super::{Axis, half, lines_of, put};

/// Pixels that are taken at a time.
const OCTET: usize = 8;
/// Columns of bytes that are summed at a time.
const COLUMNS: usize = 64;
/// Which bytes of eight pixels stand where: a quarter for each two pixels, a
/// pair of 16 bits for each channel.
const PAIRS: [u8; 64] = pairs();
/// The bytes of [`PAIRS`] that hold a level: the lower ones of three channels.
const LEVELS: u64 = 0x0555_0555_0555_0555;

const fn pairs() -> [u8; 64] {
    let mut bytes = [0; 64];
    let mut at = 0;
    while at < 48 {
        let (quarter, channel, second) = (at / 12, at % 12 / 4, at % 4 / 2);
        bytes[16 * quarter + at % 12] = (3 * (2 * quarter + second) + channel) as u8;
        at += 2;
    }
    bytes
}

/// As [`super::stretch_plain`].
///
/// # Safety
/// The sets named must be there, every row must have `3 · axis.width() + SLACK`
/// bytes, and `target` 3 for each row and pixel of the axis.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub unsafe fn stretch<const R: usize>(axis: &Axis, rows: [&[u8]; R], target: &mut [u8]) {
    let mut lines = lines_of::<R>(target);
    // SAFETY: the table has 64 bytes.
    let pairs = unsafe { _mm512_loadu_si512(PAIRS.as_ptr().cast()) };
    let quarters = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    let add = |sum, bytes, weights| {
        let levels = _mm512_maskz_permutexvar_epi8(LEVELS, pairs, bytes);
        let weights = _mm512_permutexvar_epi32(quarters, _mm512_castsi128_si512(weights));
        _mm512_dpwssd_epi32(sum, levels, weights)
    };
    for pixel in 0..axis.starts.len() {
        let (start, weights) = axis.pixel(pixel);
        let (octets, rest) = weights.as_chunks::<OCTET>();
        let mut sums = [_mm512_setzero_si512(); R];
        for (octet, weights) in octets.iter().enumerate() {
            // SAFETY: an octet has eight weights of 16 bits.
            let weights = unsafe { _mm_loadu_si128(weights.as_ptr().cast()) };
            let at = 3 * (start + OCTET * octet);
            for (sum, row) in sums.iter_mut().zip(rows) {
                // SAFETY: the octet ends by `axis.width()`, and 32 bytes are
                // eight more than it has: the row has them.
                let bytes = unsafe { _mm256_loadu_si256(row.as_ptr().add(at).cast()) };
                *sum = add(*sum, _mm512_castsi256_si512(bytes), weights);
            }
        }
        if !rest.is_empty() {
            // SAFETY: what is left is a group: four weights of 16 bits.
            let weights = unsafe { _mm_loadl_epi64(rest.as_ptr().cast()) };
            let at = 3 * (start + OCTET * octets.len());
            for (sum, row) in sums.iter_mut().zip(rows) {
                // SAFETY: as above, with 16 bytes for the group's 12.
                let bytes = unsafe { _mm_loadu_si128(row.as_ptr().add(at).cast()) };
                *sum = add(*sum, _mm512_castsi128_si512(bytes), weights);
            }
        }
        for (line, levels) in lines.iter_mut().zip(to_levels(sums, axis.precision)) {
            put(line, pixel, levels);
        }
    }
}

/// A pixel for each of up to four rows, of which `sums` has four parts.
#[inline]
#[target_feature(enable = "avx512f")]
fn to_levels<const R: usize>(sums: [__m512i; R], precision: u32) -> [[u8; 4]; 4] {
    let row = |row| *sums.get(row).unwrap_or(&sums[0]);
    let halves = |a, b| {
        let (low, high) = (
            _mm512_shuffle_i64x2::<0b01_00_01_00>(a, b),
            _mm512_shuffle_i64x2::<0b11_10_11_10>(a, b),
        );
        _mm512_add_epi32(low, high)
    };
    let (a, b) = (halves(row(0), row(1)), halves(row(2), row(3)));
    let sums = _mm512_add_epi32(
        _mm512_shuffle_i64x2::<0b10_00_10_00>(a, b),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(a, b),
    );
    let sums = _mm512_add_epi32(sums, _mm512_set1_epi32(half(precision)));
    let sums = _mm512_sra_epi32(sums, _mm_cvtsi32_si128(precision as i32));
    let levels = _mm512_cvtusepi32_epi8(_mm512_max_epi32(sums, _mm512_setzero_si512()));
    let (low, high) = (_mm_cvtsi128_si64(levels), _mm_extract_epi64::<1>(levels));
    [low, low >> 32, high, high >> 32].map(|levels| (levels as u32).to_le_bytes())
}

/// As [`super::sum_columns`].
///
/// # Safety
/// The sets named must be there, and `lines` must hold a line for each weight.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn sum_lines(weights: &[i16], precision: u32, lines: &[u8], target: &mut [u8]) {
    let line = target.len();
    let (pairs, _) = weights.as_chunks::<2>();
    let shift = _mm_cvtsi32_si128(precision as i32);
    for (block, target) in target.chunks_mut(COLUMNS).enumerate() {
        let columns = u64::MAX >> (COLUMNS - target.len());
        let mut sums = [_mm512_set1_epi32(half(precision)); 4];
        for (pair, [first, second]) in pairs.iter().enumerate() {
            let both = i32::from(*first) & 0xffff | i32::from(*second) << 16;
            let weights = _mm512_set1_epi32(both);
            let at = 2 * pair * line + block * COLUMNS;
            // SAFETY: the columns that are read lie within their line, and
            // there is a line for each weight.
            let [a, b] = [at, at + line].map(|at| unsafe {
                _mm512_maskz_loadu_epi8(columns, lines.as_ptr().add(at).cast())
            });
            let (zero, low, high) = (
                _mm512_setzero_si512(),
                _mm512_unpacklo_epi8(a, b),
                _mm512_unpackhi_epi8(a, b),
            );
            let levels = [
                _mm512_unpacklo_epi8(low, zero),
                _mm512_unpackhi_epi8(low, zero),
                _mm512_unpacklo_epi8(high, zero),
                _mm512_unpackhi_epi8(high, zero),
            ];
            for (sum, levels) in sums.iter_mut().zip(levels) {
                *sum = _mm512_dpwssd_epi32(*sum, levels, weights);
            }
        }
        let [a, b, c, d] = sums.map(|sum| _mm512_sra_epi32(sum, shift));
        let levels = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
        // SAFETY: only the target's bytes are written.
        unsafe { _mm512_mask_storeu_epi8(target.as_mut_ptr().cast(), columns, levels) };
    }
}
