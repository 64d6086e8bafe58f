//! NEON with dot products (Cortex-A55, A76 and later): one instruction
//! multiplies and adds 16 pairs of signed bytes.

use std::arch::aarch64::*;
use std::arch::asm;

use super::neon;
use super::store::{LANES, store, store_panel};
use crate::encode::int8::kernels::pack::{Layout, TapLayout, as_they_are};
use crate::encode::int8::kernels::tiles::{Tile, for_each_tile};
use crate::encode::int8::kernels::{Dense, Depthwise, FloatWork, Kernels, Matrix, Taps};
use crate::encode::int8::plan::Conv;

/// Proof that the processor has dot products: only [`Dotprod::detect`] makes one.
pub struct Dotprod(());

static DOTPROD: Dotprod = Dotprod(());

/// Output pixels of a tile: with four vectors each, half of 32 registers.
const PIXELS: usize = 4;
/// Channels of a depthwise block.
const BLOCK: usize = 16;
/// Output pixels of a depthwise tile.
const COLUMNS: usize = 2;
/// Turns an unsigned level into a signed one, 128 less.
const SIGN: u8 = 0x80;

static LAYOUT: Layout = Layout {
    slots: 4 * LANES,
    narrow: 2 * LANES,
    order: |_, slot| slot,
    depth: 4,
    weight_bytes: 1,
    shift: SIGN,
    place: as_they_are,
};

/// Weights of a kernel of 3 by 3: for each column and channel, its three rows
/// and a zero.
static TAPS: TapLayout = TapLayout {
    block: BLOCK,
    block_bytes: |[_, width]| width * 4 * BLOCK,
    place: |_, channel, row, column| 4 * (column * BLOCK + channel) + row,
    weight_bytes: 1,
    shift: SIGN,
    slot: |channel| channel,
};

impl Dotprod {
    /// The token, where the processor has the instructions.
    pub fn detect() -> Option<&'static Self> {
        let has = std::arch::is_aarch64_feature_detected!("neon")
            && std::arch::is_aarch64_feature_detected!("dotprod");
        has.then_some(&DOTPROD)
    }
}

impl Kernels for Dotprod {
    fn name(&self) -> &'static str {
        "neon-dotprod"
    }

    fn pack_dense(&self, conv: &Conv, inputs: usize, zero_point: u8) -> Matrix {
        Matrix::pack(&LAYOUT, conv, inputs, zero_point)
    }

    fn dense(&self, dense: &Dense<'_>, to: &mut [u8]) {
        dense.check(to);
        for_each_tile(dense, to, PIXELS, |tile| {
            // SAFETY: `self` proves the features; `check` has measured the
            // windows of these pixels.
            unsafe { by_size(tile) }
        });
    }

    fn pack_depthwise(&self, conv: &Conv, zero_point: u8) -> Taps {
        pack_depthwise(conv, zero_point)
    }

    fn depthwise(&self, call: &Depthwise<'_>, to: &mut [u8]) {
        call.check(to);
        // SAFETY: `self` proves the features, `check` measures.
        unsafe { depthwise(call, to) }
    }

    fn float(&self, work: FloatWork<'_>) {
        super::float(work);
    }
}

/// # Safety
/// As [`compute`].
#[target_feature(enable = "neon,dotprod")]
unsafe fn by_size(tile: Tile<'_>) {
    // SAFETY: the caller's.
    unsafe {
        match tile.strip.panel.slots / LANES {
            2 => compute::<2>(tile),
            _ => compute::<4>(tile),
        }
    }
}

/// Four pixels by `V` vectors of outputs, from windows to levels. Where there
/// are fewer pixels, the last one stands for those that lack.
///
/// # Safety
/// The windows of the tile's pixels may be read; the panel has `4·V` slots.
#[target_feature(enable = "neon,dotprod")]
unsafe fn compute<const V: usize>(tile: Tile<'_>) {
    let strip = tile.strip;
    let (windows, matrix) = (strip.dense.windows, strip.dense.matrix);
    let offsets = [0, 1, 2, 3].map(|n: usize| n.min(tile.pixels - 1) * windows.column_step);
    let mut sums = [[vdupq_n_s32(0); PIXELS]; V];
    let sign = vdupq_n_u8(SIGN);
    // SAFETY: the panel has 4·V biases and multipliers, and 16·V weights for
    // each group; the reads of levels are those of the windows.
    unsafe {
        for (v, sums) in sums.iter_mut().enumerate() {
            *sums = [vld1q_s32(strip.bias.as_ptr().add(LANES * v)); PIXELS];
        }
        let mut weights: *const i8 = strip.weights.as_ptr().cast();
        for segment in 0..matrix.segments() {
            let mut from = tile.from.as_ptr().add(segment * windows.segment_step);
            let mut levels = [vdupq_n_s8(0); PIXELS];
            for _ in 0..matrix.groups() / 4 {
                for (levels, offset) in levels.iter_mut().zip(&offsets) {
                    let unsigned = vld1q_u8(from.add(*offset));
                    *levels = vreinterpretq_s8_u8(veorq_u8(unsigned, sign));
                }
                for (v, sums) in sums.iter_mut().enumerate() {
                    let first = weights.add(16 * v);
                    let weights = [
                        vld1q_s8(first),
                        vld1q_s8(first.add(16 * V)),
                        vld1q_s8(first.add(32 * V)),
                        vld1q_s8(first.add(48 * V)),
                    ];
                    dot_four(sums, weights, &levels);
                }
                weights = weights.add(64 * V);
                from = from.add(16);
            }
            for _ in 0..matrix.groups() % 4 {
                for (levels, offset) in levels.iter_mut().zip(&offsets) {
                    let quad = vdupq_n_u32(from.add(*offset).cast::<u32>().read_unaligned());
                    *levels = vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_u32(quad), sign));
                }
                for (v, sums) in sums.iter_mut().enumerate() {
                    dot_one(sums, vld1q_s8(weights.add(16 * v)), &levels);
                }
                weights = weights.add(16 * V);
                from = from.add(4);
            }
        }
        let width = strip.dense.width();
        let outputs = strip.panel.outputs * width;
        let mut pixels = tile
            .to
            .chunks_mut(matrix.outputs() * width)
            .take(tile.pixels);
        for n in 0..PIXELS {
            if let Some(to) = pixels.next() {
                let mut of_pixel = [sums[0][n]; V];
                for (of_pixel, sums) in of_pixel.iter_mut().zip(&sums) {
                    *of_pixel = sums[n];
                }
                let to = &mut to[..outputs];
                store_panel(strip, &of_pixel, to);
            }
        }
    }
}

/// Adds to the sums of four pixels the weights of four groups times 16 levels;
/// `vdotq_laneq_s32` where that is stable. In one block, as the compiler
/// spills what it sees in many.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot_four(
    [a, b, c, d]: &mut [int32x4_t; PIXELS],
    weights: [int8x16_t; 4],
    levels: &[int8x16_t; PIXELS],
) {
    // SAFETY: instructions on registers that the features grant.
    unsafe {
        asm!(
            "sdot {a:v}.4s, {w0:v}.16b, {e:v}.4b[0]",
            "sdot {b:v}.4s, {w0:v}.16b, {f:v}.4b[0]",
            "sdot {c:v}.4s, {w0:v}.16b, {g:v}.4b[0]",
            "sdot {d:v}.4s, {w0:v}.16b, {h:v}.4b[0]",
            "sdot {a:v}.4s, {w1:v}.16b, {e:v}.4b[1]",
            "sdot {b:v}.4s, {w1:v}.16b, {f:v}.4b[1]",
            "sdot {c:v}.4s, {w1:v}.16b, {g:v}.4b[1]",
            "sdot {d:v}.4s, {w1:v}.16b, {h:v}.4b[1]",
            "sdot {a:v}.4s, {w2:v}.16b, {e:v}.4b[2]",
            "sdot {b:v}.4s, {w2:v}.16b, {f:v}.4b[2]",
            "sdot {c:v}.4s, {w2:v}.16b, {g:v}.4b[2]",
            "sdot {d:v}.4s, {w2:v}.16b, {h:v}.4b[2]",
            "sdot {a:v}.4s, {w3:v}.16b, {e:v}.4b[3]",
            "sdot {b:v}.4s, {w3:v}.16b, {f:v}.4b[3]",
            "sdot {c:v}.4s, {w3:v}.16b, {g:v}.4b[3]",
            "sdot {d:v}.4s, {w3:v}.16b, {h:v}.4b[3]",
            a = inout(vreg) *a, b = inout(vreg) *b, c = inout(vreg) *c, d = inout(vreg) *d,
            e = in(vreg) levels[0], f = in(vreg) levels[1],
            g = in(vreg) levels[2], h = in(vreg) levels[3],
            w0 = in(vreg) weights[0], w1 = in(vreg) weights[1],
            w2 = in(vreg) weights[2], w3 = in(vreg) weights[3],
            options(pure, nomem, nostack, preserves_flags),
        );
    }
}

/// The same for one group: the first four levels.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot_one(
    [a, b, c, d]: &mut [int32x4_t; PIXELS],
    weights: int8x16_t,
    levels: &[int8x16_t; PIXELS],
) {
    // SAFETY: instructions on registers that the features grant.
    unsafe {
        asm!(
            "sdot {a:v}.4s, {w:v}.16b, {e:v}.4b[0]",
            "sdot {b:v}.4s, {w:v}.16b, {f:v}.4b[0]",
            "sdot {c:v}.4s, {w:v}.16b, {g:v}.4b[0]",
            "sdot {d:v}.4s, {w:v}.16b, {h:v}.4b[0]",
            a = inout(vreg) *a, b = inout(vreg) *b, c = inout(vreg) *c, d = inout(vreg) *d,
            e = in(vreg) levels[0], f = in(vreg) levels[1],
            g = in(vreg) levels[2], h = in(vreg) levels[3],
            w = in(vreg) weights,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
}

/// Adds to each sum four of `a` times four of `b`; `vdotq_s32` where that is stable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: an instruction on registers that the features grant.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
            sums = inout(vreg) sums, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Packs for [`depthwise`].
pub fn pack_depthwise(conv: &Conv, zero_point: u8) -> Taps {
    match conv.window.kernel {
        [3, 3] => Taps::pack(&TAPS, conv, zero_point),
        _ => neon::pack_depthwise(conv, zero_point),
    }
}

/// A depthwise convolution whose weights [`pack_depthwise`] has packed.
///
/// # Safety
/// `call.check(to)` has passed.
#[target_feature(enable = "neon,dotprod")]
pub unsafe fn depthwise(call: &Depthwise<'_>, to: &mut [u8]) {
    // SAFETY: the caller's.
    unsafe {
        match call.window.kernel {
            [3, 3] => depthwise_of_three(call, to),
            _ => neon::depthwise(call, to),
        }
    }
}

/// 16 channels of a depthwise convolution.
struct Lane<'a> {
    depthwise: &'a Depthwise<'a>,
    /// Channels, fewer than 16 in the last block of some.
    channels: std::ops::Range<usize>,
    /// For each kernel column, four vectors of four channels.
    weights: [[int8x16_t; 4]; 3],
    bias: [int32x4_t; 4],
    multiplier: &'a [f32],
}

/// # Safety
/// `depthwise.check(to)` has passed, and the kernel is 3 by 3.
#[target_feature(enable = "neon,dotprod")]
unsafe fn depthwise_of_three(depthwise: &Depthwise<'_>, to: &mut [u8]) {
    let channels = depthwise.shape.channels;
    for first in (0..channels).step_by(BLOCK) {
        let lane = lane(depthwise, first);
        let rows = to.chunks_exact_mut(depthwise.columns * channels);
        for (y, to) in depthwise.rows.clone().zip(rows) {
            // SAFETY: the lane has a block of multipliers.
            unsafe {
                match (depthwise.columns, depthwise.window.stride[1]) {
                    (COLUMNS.., 1) => row::<COLUMNS, 1>(&lane, y, to),
                    (COLUMNS.., 2) => row::<COLUMNS, 2>(&lane, y, to),
                    _ => row::<1, 0>(&lane, y, to),
                }
            }
        }
    }
}

#[target_feature(enable = "neon")]
fn lane<'a>(depthwise: &'a Depthwise<'a>, first: usize) -> Lane<'a> {
    let (taps, channels) = (depthwise.taps, depthwise.shape.channels);
    let block = &taps.weights.as_slice()[first * 3 * 4..][..3 * 4 * BLOCK];
    // SAFETY: each slice has sixteen bytes, or four values.
    unsafe {
        Lane {
            depthwise,
            channels: first..(first + BLOCK).min(channels),
            weights: [0, 1, 2].map(|kx| {
                [0, 1, 2, 3].map(|q| vld1q_s8(block[64 * kx + 16 * q..][..16].as_ptr().cast()))
            }),
            bias: [0, 1, 2, 3].map(|q| vld1q_s32(taps.bias[first + LANES * q..][..LANES].as_ptr())),
            multiplier: &taps.multiplier[first..][..BLOCK],
        }
    }
}

/// One output row, `N` pixels at a time: a column of the input is interleaved
/// once and multiplied for all that see it. The last pixels overlap those
/// before. A single pixel may have any stride.
///
/// # Safety
/// `lane` is a whole block, and the row has at least `N` pixels.
#[target_feature(enable = "neon,dotprod")]
unsafe fn row<const N: usize, const STRIDE: usize>(lane: &Lane<'_>, y: usize, to: &mut [u8]) {
    let depthwise = lane.depthwise;
    let rows = [
        depthwise.row(y, 0),
        depthwise.row(y, 1),
        depthwise.row(y, 2),
    ];
    let stride = depthwise.window.stride[1];
    for tile in 0..depthwise.columns.div_ceil(N) {
        let first = (tile * N).min(depthwise.columns - N);
        let left = (first * stride).wrapping_sub(depthwise.window.padding[1]);
        let mut sums = [lane.bias; N];
        add_column::<N, STRIDE, 0>(lane, &rows, left, &mut sums);
        add_column::<N, STRIDE, 1>(lane, &rows, left, &mut sums);
        add_column::<N, STRIDE, 2>(lane, &rows, left, &mut sums);
        add_column::<N, STRIDE, 3>(lane, &rows, left, &mut sums);
        add_column::<N, STRIDE, 4>(lane, &rows, left, &mut sums);
        for (n, sums) in sums.iter().enumerate() {
            let to = &mut to[(first + n) * depthwise.shape.channels..][lane.channels.clone()];
            // SAFETY: the lane has a block of multipliers.
            unsafe { store(depthwise.requant, sums, lane.multiplier.as_ptr(), to) };
        }
    }
}

/// Adds column `COLUMN` of those that `N` pixels see, where there is one; a
/// function for each, as what is known early is unrolled.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_column<const N: usize, const STRIDE: usize, const COLUMN: usize>(
    lane: &Lane<'_>,
    rows: &[&[u8]; 3],
    left: usize,
    sums: &mut [[int32x4_t; 4]; N],
) {
    if COLUMN > (N - 1) * STRIDE + 2 {
        return;
    }
    let levels = interleaved(lane, rows, left.wrapping_add(COLUMN));
    for (n, sums) in sums.iter_mut().enumerate() {
        if let Some(weights) = lane.weights.get(COLUMN.wrapping_sub(n * STRIDE)) {
            for q in 0..4 {
                sums[q] = dot(sums[q], levels[q], weights[q]);
            }
        }
    }
}

/// One column of three rows, channel by channel, less 128; the fourth row has
/// weights of zero. Outside the input, the zero point.
#[inline]
#[target_feature(enable = "neon")]
fn interleaved(lane: &Lane<'_>, rows: &[&[u8]; 3], x: usize) -> [int8x16_t; 4] {
    let shape = lane.depthwise.shape;
    if x >= shape.width {
        return [vdupq_n_s8((lane.depthwise.outside[0] ^ SIGN).cast_signed()); 4];
    }
    let (at, count) = (
        x * shape.channels + lane.channels.start,
        lane.channels.len(),
    );
    let a = shifted(rows[0], at, count);
    let b = shifted(rows[1], at, count);
    let c = shifted(rows[2], at, count);
    let upper = (
        vreinterpretq_u16_u8(vzip1q_u8(a, b)),
        vreinterpretq_u16_u8(vzip2q_u8(a, b)),
    );
    let lower = (
        vreinterpretq_u16_u8(vzip1q_u8(c, c)),
        vreinterpretq_u16_u8(vzip2q_u8(c, c)),
    );
    [
        vreinterpretq_s8_u16(vzip1q_u16(upper.0, lower.0)),
        vreinterpretq_s8_u16(vzip2q_u16(upper.0, lower.0)),
        vreinterpretq_s8_u16(vzip1q_u16(upper.1, lower.1)),
        vreinterpretq_s8_u16(vzip2q_u16(upper.1, lower.1)),
    ]
}

/// `count` levels from `at` on, at most 16, less 128; the rest are of no matter.
#[inline]
#[target_feature(enable = "neon")]
fn shifted(row: &[u8], at: usize, count: usize) -> uint8x16_t {
    let mut few = [0; BLOCK];
    let from = match count {
        BLOCK => &row[at..at + BLOCK],
        _ => {
            few[..count].copy_from_slice(&row[at..at + count]);
            &few
        }
    };
    // SAFETY: sixteen bytes in either case.
    veorq_u8(unsafe { vld1q_u8(from.as_ptr()) }, vdupq_n_u8(SIGN))
}
