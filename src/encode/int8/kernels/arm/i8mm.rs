//! NEON with matrix products of bytes (Cortex-A710, Neoverse V1, Apple M2 and
//! later): one instruction multiplies and adds 32 pairs of an unsigned and a
//! signed byte, two pixels by two outputs by eight inputs.

use std::arch::aarch64::*;
use std::arch::asm;

use super::dotprod;
use super::store::{LANES, store_panel};
use crate::encode::int8::kernels::pack::{Layout, as_they_are};
use crate::encode::int8::kernels::tiles::{Tile, for_each_tile};
use crate::encode::int8::kernels::{Dense, Depthwise, FloatWork, Kernels, Matrix, Taps};
use crate::encode::int8::plan::Conv;

/// Proof that the processor has matrix products of bytes, and dot products:
/// only [`I8mm::detect`] makes one.
pub struct I8mm(());

static I8MM: I8mm = I8mm(());

/// Pairs of output pixels of a tile: with eight vectors each, half of 32 registers.
const PAIRS: usize = 2;

static LAYOUT: Layout = Layout {
    slots: 4 * LANES,
    narrow: 2 * LANES,
    order: |_, slot| slot,
    depth: 8,
    weight_bytes: 1,
    shift: 0,
    place: as_they_are,
};

impl I8mm {
    /// The token, where the processor has the instructions.
    pub fn detect() -> Option<&'static Self> {
        let has = std::arch::is_aarch64_feature_detected!("neon")
            && std::arch::is_aarch64_feature_detected!("dotprod")
            && std::arch::is_aarch64_feature_detected!("i8mm");
        has.then_some(&I8MM)
    }
}

impl Kernels for I8mm {
    fn name(&self) -> &'static str {
        "neon-i8mm"
    }

    fn pack_dense(&self, conv: &Conv, inputs: usize, zero_point: u8) -> Matrix {
        Matrix::pack(&LAYOUT, conv, inputs, zero_point)
    }

    fn dense(&self, dense: &Dense<'_>, to: &mut [u8]) {
        dense.check(to);
        for_each_tile(dense, to, 2 * PAIRS, |tile| {
            // SAFETY: `self` proves the features; `check` has measured the
            // windows of these pixels.
            unsafe { by_size(tile) }
        });
    }

    fn pack_depthwise(&self, conv: &Conv, zero_point: u8) -> Taps {
        dotprod::pack_depthwise(conv, zero_point)
    }

    fn depthwise(&self, depthwise: &Depthwise<'_>, to: &mut [u8]) {
        depthwise.check(to);
        // SAFETY: `self` proves the features, `check` measures.
        unsafe { dotprod::depthwise(depthwise, to) }
    }

    fn float(&self, work: FloatWork<'_>) {
        super::float(work);
    }
}

/// # Safety
/// As [`compute`].
#[target_feature(enable = "neon,i8mm")]
unsafe fn by_size(tile: Tile<'_>) {
    // SAFETY: the caller's.
    unsafe {
        match (tile.strip.panel.slots / LANES, tile.pixels.div_ceil(2)) {
            (2, 1) => compute::<1, 2, 4>(tile),
            (2, _) => compute::<2, 2, 4>(tile),
            (_, 1) => compute::<1, 4, 8>(tile),
            _ => compute::<2, 4, 8>(tile),
        }
    }
}

/// `P` pairs of pixels by `V` vectors of outputs, from windows to levels; `W`,
/// twice `V`, counts pairs of outputs. Where the pixels are odd in number, the
/// last one is computed twice.
///
/// # Safety
/// The tile has `2·P` pixels or one less, whose windows may be read; the panel
/// has `4·V` slots.
#[target_feature(enable = "neon,i8mm")]
unsafe fn compute<const P: usize, const V: usize, const W: usize>(tile: Tile<'_>) {
    let strip = tile.strip;
    let (windows, matrix) = (strip.dense.windows, strip.dense.matrix);
    let mut offsets = [[0; 2]; P];
    for (n, offset) in offsets.as_flattened_mut().iter_mut().enumerate() {
        *offset = n.min(tile.pixels - 1) * windows.column_step;
    }
    let mut sums = [[vdupq_n_s32(0); W]; P];
    // SAFETY: the panel has 4·V biases and multipliers, and 32·V weights for
    // each group; the reads of levels are those of the windows.
    unsafe {
        for w in 0..W {
            let bias = vld1q_dup_s64(strip.bias.as_ptr().add(2 * w).cast());
            for sums in &mut sums {
                sums[w] = vreinterpretq_s32_s64(bias);
            }
        }
        let mut weights: *const i8 = strip.weights.as_ptr().cast();
        for segment in 0..matrix.segments() {
            let mut from = tile.from.as_ptr().add(segment * windows.segment_step);
            let (mut first, mut second) = ([vdupq_n_u64(0); P], [vdupq_n_u64(0); P]);
            for _ in 0..matrix.groups() / 2 {
                for (pair, [a, b]) in offsets.iter().enumerate() {
                    let a = vld1q_u64(from.add(*a).cast());
                    let b = vld1q_u64(from.add(*b).cast());
                    first[pair] = vzip1q_u64(a, b);
                    second[pair] = vzip2q_u64(a, b);
                }
                multiply::<P, W>(&mut sums, &first, weights);
                multiply::<P, W>(&mut sums, &second, weights.add(16 * W));
                weights = weights.add(32 * W);
                from = from.add(16);
            }
            if matrix.groups() % 2 == 1 {
                for (levels, [a, b]) in first.iter_mut().zip(&offsets) {
                    let a = vld1_u64(from.add(*a).cast());
                    *levels = vcombine_u64(a, vld1_u64(from.add(*b).cast()));
                }
                multiply::<P, W>(&mut sums, &first, weights);
                weights = weights.add(16 * W);
            }
        }
        let width = strip.dense.width();
        let step = matrix.outputs() * width;
        for (pair, to) in tile.to.chunks_mut(2 * step).enumerate().take(P) {
            let pixels = rows::<V, W>(&sums[pair]);
            let count = tile.pixels - 2 * pair;
            for (sums, to) in pixels.iter().zip(to.chunks_mut(step)).take(count) {
                let to = &mut to[..strip.panel.outputs * width];
                store_panel(strip, sums, to);
            }
        }
    }
}

/// Adds eight levels of each pixel times the weights of a group.
///
/// # Safety
/// `16·W` weights may be read.
#[inline]
#[target_feature(enable = "neon,i8mm")]
unsafe fn multiply<const P: usize, const W: usize>(
    sums: &mut [[int32x4_t; W]; P],
    levels: &[uint64x2_t; P],
    weights: *const i8,
) {
    for w in 0..W {
        // SAFETY: the caller's.
        let weights = unsafe { vld1q_s8(weights.add(16 * w)) };
        for (sums, levels) in sums.iter_mut().zip(levels) {
            sums[w] = product(sums[w], vreinterpretq_u8_u64(*levels), weights);
        }
    }
}

/// Adds to the sums of two pixels by two outputs; `vusmmlaq_s32` where that is
/// stable.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn product(mut sums: int32x4_t, levels: uint8x16_t, weights: int8x16_t) -> int32x4_t {
    // SAFETY: an instruction on registers that the features grant.
    unsafe {
        asm!(
            "usmmla {sums:v}.4s, {levels:v}.16b, {weights:v}.16b",
            sums = inout(vreg) sums, levels = in(vreg) levels, weights = in(vreg) weights,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// The sums of a pair of pixels, one after the other.
#[inline]
#[target_feature(enable = "neon")]
fn rows<const V: usize, const W: usize>(sums: &[int32x4_t; W]) -> [[int32x4_t; V]; 2] {
    let mut pixels = [[vdupq_n_s32(0); V]; 2];
    for v in 0..V {
        let first = vreinterpretq_s64_s32(sums[2 * v]);
        let second = vreinterpretq_s64_s32(sums[2 * v + 1]);
        pixels[0][v] = vreinterpretq_s32_s64(vzip1q_s64(first, second));
        pixels[1][v] = vreinterpretq_s32_s64(vzip2q_s64(first, second));
    }
    pixels
}
