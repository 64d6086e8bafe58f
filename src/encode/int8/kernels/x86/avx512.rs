//! AVX-512 with VNNI: one instruction multiplies and adds 64 pairs of bytes.

mod depthwise;

use std::arch::x86_64::*;

use super::vectors::Zmm;
use crate::encode::int8::kernels::pack::{Layout, as_they_are};
use crate::encode::int8::kernels::tiles::{Tile, for_each_tile};
use crate::encode::int8::kernels::{
    Dense, Depthwise, FloatWork, Kernels, Matrix, Requant, Sum, Taps, elementwise, floats,
};
use crate::encode::int8::plan::{Conv, Target};

/// Proof that the processor has AVX-512 F, BW, VL and VNNI, and FMA: only
/// [`Avx512::detect`] makes one.
pub struct Avx512(());

static AVX512: Avx512 = Avx512(());

/// Output pixels of a tile: with two vectors each, 24 of 32 registers.
const PIXELS: usize = 12;
/// Outputs of a vector of sums.
const LANES: usize = 16;

/// Two vectors of sums are packed lane by lane: the first holds outputs 0–3
/// of every 8, the second outputs 4–7.
fn order(slots: usize, slot: usize) -> usize {
    match slots {
        LANES => slot,
        _ => slot % LANES / 4 * 8 + slot / LANES * 4 + slot % 4,
    }
}

static LAYOUT: Layout = Layout { order, ..IN_ORDER };

/// Reals are stored as they are summed.
const IN_ORDER: Layout = Layout {
    slots: 2 * LANES,
    narrow: LANES,
    order: |_, slot| slot,
    depth: 4,
    weight_bytes: 1,
    shift: 0,
    place: as_they_are,
};

static LAYOUT_OF_REALS: Layout = IN_ORDER;

impl Avx512 {
    /// The token, where the processor has the instructions.
    pub fn detect() -> Option<&'static Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("avx512vnni");
        has.then_some(&AVX512)
    }
}

impl Kernels for Avx512 {
    fn name(&self) -> &'static str {
        "avx512-vnni"
    }

    fn pack_dense(&self, conv: &Conv, inputs: usize, zero_point: u8) -> Matrix {
        let layout = match conv.to {
            Target::Levels(..) => &LAYOUT,
            Target::Reals(_) => &LAYOUT_OF_REALS,
        };
        Matrix::pack(layout, conv, inputs, zero_point)
    }

    fn dense(&self, dense: &Dense<'_>, to: &mut [u8]) {
        dense.check(to);
        for_each_tile(dense, to, PIXELS, |tile| {
            // SAFETY: `self` proves the features; `check` has measured the
            // windows and outputs of these pixels.
            unsafe {
                match tile.strip.panel.slots {
                    LANES => compute_narrow(tile),
                    _ => compute_wide(tile),
                }
            }
        });
    }

    fn pack_depthwise(&self, conv: &Conv, zero_point: u8) -> Taps {
        Taps::pack(&depthwise::TAPS, conv, zero_point)
    }

    fn depthwise(&self, call: &Depthwise<'_>, to: &mut [u8]) {
        call.check(to);
        // SAFETY: `self` proves the features; `check` as above.
        unsafe { depthwise::rows(call, to) }
    }

    fn quantize(&self, from: &[f32], scale: f32, zero_point: u8, to: &mut [u8]) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        fn inner(from: &[f32], scale: f32, zero_point: u8, to: &mut [u8]) {
            elementwise::quantize(from, scale, zero_point, to);
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(from, scale, zero_point, to) }
    }

    fn add(&self, sum: &Sum, from: [&[u8]; 2], to: &mut [u8]) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        fn inner(sum: &Sum, from: [&[u8]; 2], to: &mut [u8]) {
            elementwise::add(sum, from, to);
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(sum, from, to) }
    }

    fn channel_sums(&self, from: &[u8], sums: &mut [u32]) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        fn inner(from: &[u8], sums: &mut [u32]) {
            elementwise::channel_sums(from, sums);
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(from, sums) }
    }

    fn float(&self, work: FloatWork<'_>) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
        fn inner(work: FloatWork<'_>) {
            floats::run::<Zmm, 2>(work);
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(work) }
    }
}

/// A tile of a number of pixels known only now.
macro_rules! by_pixels {
    ($name:ident, $vectors:literal) => {
        /// # Safety
        /// As [`compute`].
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
        unsafe fn $name(tile: Tile<'_>) {
            // SAFETY: the caller's.
            unsafe {
                match tile.pixels {
                    1 => compute::<1, $vectors>(tile),
                    2 => compute::<2, $vectors>(tile),
                    3 => compute::<3, $vectors>(tile),
                    4 => compute::<4, $vectors>(tile),
                    5 => compute::<5, $vectors>(tile),
                    6 => compute::<6, $vectors>(tile),
                    7 => compute::<7, $vectors>(tile),
                    8 => compute::<8, $vectors>(tile),
                    9 => compute::<9, $vectors>(tile),
                    10 => compute::<10, $vectors>(tile),
                    11 => compute::<11, $vectors>(tile),
                    _ => compute::<12, $vectors>(tile),
                }
            }
        }
    };
}

by_pixels!(compute_narrow, 1);
by_pixels!(compute_wide, 2);

/// `N` pixels by `V` vectors of outputs, from windows to levels.
///
/// # Safety
/// The tile has `N` pixels, whose windows may be read and whose outputs
/// written; the panel has `16·V` slots.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn compute<const N: usize, const V: usize>(tile: Tile<'_>) {
    let strip = tile.strip;
    let (windows, matrix) = (strip.dense.windows, strip.dense.matrix);
    let mut sums = [[_mm512_setzero_si512(); V]; N];
    // SAFETY: the panel has 16·V biases, and 64·V weights for each group; the
    // reads of levels are those of the windows.
    unsafe {
        for v in 0..V {
            let bias = _mm512_loadu_si512(strip.bias.as_ptr().add(LANES * v).cast());
            for sums in &mut sums {
                sums[v] = bias;
            }
        }
        let mut weights = strip.weights.as_ptr();
        for segment in 0..matrix.segments() {
            let mut levels = tile.from.as_ptr().add(segment * windows.segment_step);
            for _ in 0..matrix.groups() {
                let mut w = [_mm512_setzero_si512(); V];
                for (v, w) in w.iter_mut().enumerate() {
                    *w = _mm512_load_si512(weights.add(64 * v).cast());
                }
                for (n, sums) in sums.iter_mut().enumerate() {
                    let quad = levels
                        .add(n * windows.column_step)
                        .cast::<i32>()
                        .read_unaligned();
                    let quad = _mm512_set1_epi32(quad);
                    for v in 0..V {
                        sums[v] = _mm512_dpbusd_epi32(sums[v], quad, w[v]);
                    }
                }
                levels = levels.add(4);
                weights = weights.add(64 * V);
            }
        }
        let mut multiplier = [_mm512_setzero_ps(); V];
        for (v, multiplier) in multiplier.iter_mut().enumerate() {
            *multiplier = _mm512_loadu_ps(strip.multiplier.as_ptr().add(LANES * v));
        }
        let step = matrix.outputs() * strip.dense.width();
        let outputs = u32::MAX >> (32 - strip.panel.outputs);
        let to = tile.to.as_mut_ptr();
        // Small enough to be unrolled at once: else the sums live in memory.
        match strip.dense.requant {
            Some(requant) => {
                for (n, sums) in sums.iter().enumerate() {
                    store_pixel(requant, outputs, sums, &multiplier, to.add(n * step));
                }
            }
            None => {
                let mut offset = [_mm512_setzero_ps(); V];
                for (v, offset) in offset.iter_mut().enumerate() {
                    *offset = _mm512_loadu_ps(strip.offset.as_ptr().add(LANES * v));
                }
                for (n, sums) in sums.iter().enumerate() {
                    let to = to.add(n * step).cast();
                    store_reals(outputs, sums, [&multiplier, &offset], to);
                }
            }
        }
    }
}

/// The levels of one pixel.
///
/// # Safety
/// Where `outputs` has a bit, levels may be written from `to` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn store_pixel<const V: usize>(
    requant: Requant,
    outputs: u32,
    sums: &[__m512i; V],
    multiplier: &[__m512; V],
    to: *mut u8,
) {
    let first = rounded(sums[0], multiplier[0]);
    let second = if V == 2 {
        rounded(sums[V - 1], multiplier[V - 1])
    } else {
        first
    };
    // Sixteen bits of each: in order for two vectors, twice the same for one.
    let levels = saturated(_mm512_packs_epi32(first, second), requant);
    // SAFETY: the mask has a bit for each of the panel's outputs and no other.
    unsafe {
        if V == 2 {
            let bytes = _mm512_cvtepi16_epi8(levels);
            match outputs {
                u32::MAX => _mm256_storeu_si256(to.cast(), bytes),
                outputs => _mm256_mask_storeu_epi8(to.cast(), outputs, bytes),
            }
        } else {
            let in_order =
                _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6), levels);
            let bytes = _mm256_cvtepi16_epi8(_mm512_castsi512_si256(in_order));
            match outputs {
                0xFFFF => _mm_storeu_si128(to.cast(), bytes),
                outputs => _mm_mask_storeu_epi8(to.cast(), outputs as u16, bytes),
            }
        }
    }
}

/// The real values of one pixel.
///
/// # Safety
/// Where `outputs` has a bit, floats may be written from `to` on.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_reals<const V: usize>(
    outputs: u32,
    sums: &[__m512i; V],
    [multiplier, offset]: [&[__m512; V]; 2],
    to: *mut f32,
) {
    for v in 0..V {
        let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[v]), multiplier[v]);
        let reals = _mm512_add_ps(scaled, offset[v]);
        let mask = (outputs >> (LANES * v)) as u16;
        // SAFETY: the mask has a bit for each of the panel's outputs and no other.
        unsafe { _mm512_mask_storeu_ps(to.add(LANES * v), mask, reals) };
    }
}

/// `round(multiplier · sum)`, halves to even.
#[inline]
#[target_feature(enable = "avx512f")]
fn rounded(sums: __m512i, multiplier: __m512) -> __m512i {
    _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(sums), multiplier))
}

/// Zero point added and range applied, on saturated values of 16 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn saturated(values: __m512i, requant: Requant) -> __m512i {
    let [low, high] = requant.range;
    let levels = _mm512_adds_epi16(values, _mm512_set1_epi16(requant.zero_point.into()));
    let levels = _mm512_max_epi16(levels, _mm512_set1_epi16(low.into()));
    _mm512_min_epi16(levels, _mm512_set1_epi16(high.into()))
}
