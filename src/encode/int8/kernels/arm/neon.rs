//! NEON as every 64-bit ARM has it (Cortex-A53, A72).
//!
//! Dense: two products of bytes are summed in 16 bits, which holds them as
//! long as no weight is −128; then neighbours are added into 32 bits.
//! Depthwise: everything in 16 bits, summed in 32.

use std::arch::aarch64::*;

use super::store::{LANES, store, store_panel};
use crate::encode::int8::kernels::pack::{Layout, TapLayout};
use crate::encode::int8::kernels::tiles::{Tile, for_each_tile};
use crate::encode::int8::kernels::{Dense, Depthwise, FloatWork, Kernels, Matrix, Taps};
use crate::encode::int8::plan::Conv;

/// Proof that the processor has NEON: only [`Neon::detect`] makes one.
pub struct Neon(());

static NEON: Neon = Neon(());

/// Output pixels of a tile: with four vectors each, half of 32 registers.
const PIXELS: usize = 4;
/// Channels of a depthwise block.
const BLOCK: usize = 8;
/// Output pixels of a depthwise tile.
const COLUMNS: usize = 2;
/// Turns an unsigned level into a signed one, 128 less.
const SIGN: u8 = 0x80;

/// A vector of weights: inputs 0 and 1 of four outputs, then inputs 2 and 3.
static LAYOUT: Layout = Layout {
    slots: 4 * LANES,
    narrow: 2 * LANES,
    order: |_, slot| slot,
    depth: 4,
    weight_bytes: 1,
    shift: SIGN,
    place: |group, _, slot, weights| {
        for (index, weight) in weights.iter().enumerate() {
            let at = slot / LANES * 16 + index / 2 * 8 + slot % LANES * 2 + index % 2;
            group[at] = weight.cast_unsigned();
        }
    },
};

static TAPS: TapLayout = TapLayout {
    block: BLOCK,
    block_bytes: |[height, width]| height * width * 2 * BLOCK,
    place: |[_, width], channel, row, column| 2 * ((row * width + column) * BLOCK + channel),
    weight_bytes: 2,
    shift: 0,
    slot: |channel| channel,
};

impl Neon {
    /// The token, where the processor has the instructions.
    pub fn detect() -> Option<&'static Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(&NEON)
    }
}

impl Kernels for Neon {
    fn name(&self) -> &'static str {
        "neon"
    }

    fn pack_dense(&self, conv: &Conv, inputs: usize, zero_point: u8) -> Matrix {
        Matrix::pack(&LAYOUT, conv, inputs, zero_point)
    }

    fn dense(&self, dense: &Dense<'_>, to: &mut [u8]) {
        dense.check(to);
        let in_pairs = dense.matrix.least() > i8::MIN;
        for_each_tile(dense, to, PIXELS, |tile| {
            // SAFETY: `self` proves the features; `check` has measured the
            // windows of these pixels.
            unsafe {
                match in_pairs {
                    true => by_size::<true>(tile),
                    false => by_size::<false>(tile),
                }
            }
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
#[target_feature(enable = "neon")]
unsafe fn by_size<const PAIRS: bool>(tile: Tile<'_>) {
    // SAFETY: the caller's.
    unsafe {
        match (tile.strip.panel.slots / LANES, tile.pixels) {
            (2, 1) => compute::<1, 2, PAIRS>(tile),
            (2, 2) => compute::<2, 2, PAIRS>(tile),
            (2, 3) => compute::<3, 2, PAIRS>(tile),
            (2, _) => compute::<4, 2, PAIRS>(tile),
            (_, 1) => compute::<1, 4, PAIRS>(tile),
            (_, 2) => compute::<2, 4, PAIRS>(tile),
            (_, 3) => compute::<3, 4, PAIRS>(tile),
            _ => compute::<4, 4, PAIRS>(tile),
        }
    }
}

/// `N` pixels by `V` vectors of outputs, from windows to levels; `PAIRS` says
/// that two products fit 16 bits.
///
/// # Safety
/// The tile has `N` pixels, whose windows may be read; the panel has `4·V`
/// slots, and no weight of −128 with `PAIRS`.
#[target_feature(enable = "neon")]
unsafe fn compute<const N: usize, const V: usize, const PAIRS: bool>(tile: Tile<'_>) {
    let strip = tile.strip;
    let (windows, matrix) = (strip.dense.windows, strip.dense.matrix);
    let mut sums = [[vdupq_n_s32(0); V]; N];
    let sign = vdupq_n_u8(SIGN);
    // SAFETY: the panel has 4·V biases and multipliers, and 16·V bytes of
    // weights for each group; the reads of levels are those of the windows.
    unsafe {
        for v in 0..V {
            let bias = vld1q_s32(strip.bias.as_ptr().add(LANES * v));
            sums.iter_mut().for_each(|sums| sums[v] = bias);
        }
        // Four bytes, each pair of them four times.
        let spread = vld1q_u8([0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3].as_ptr());
        let spreads = [0, 4, 8, 12].map(|first| vaddq_u8(spread, vdupq_n_u8(first)));
        let mut weights = strip.weights.as_ptr().cast();
        for segment in 0..matrix.segments() {
            let mut from = tile.from.as_ptr().add(segment * windows.segment_step);
            let mut levels = [sign; N];
            for _ in 0..matrix.groups() / 4 {
                for (n, levels) in levels.iter_mut().enumerate() {
                    *levels = veorq_u8(vld1q_u8(from.add(n * windows.column_step)), sign);
                }
                for spread in spreads {
                    multiply::<N, V, PAIRS>(&mut sums, &levels, spread, weights);
                    weights = weights.add(16 * V);
                }
                from = from.add(16);
            }
            for _ in 0..matrix.groups() % 4 {
                for (n, levels) in levels.iter_mut().enumerate() {
                    let quad = from.add(n * windows.column_step).cast::<u32>();
                    let quad = vdupq_n_u32(quad.read_unaligned());
                    *levels = veorq_u8(vreinterpretq_u8_u32(quad), sign);
                }
                multiply::<N, V, PAIRS>(&mut sums, &levels, spread, weights);
                weights = weights.add(16 * V);
                from = from.add(4);
            }
        }
        let width = strip.dense.width();
        let pixels = tile.to.chunks_mut(matrix.outputs() * width).zip(&sums);
        for (to, sums) in pixels {
            let to = &mut to[..strip.panel.outputs * width];
            store_panel(strip, sums, to);
        }
    }
}

/// Adds four levels of each pixel, those that `spread` points at, times the
/// weights of a group.
///
/// # Safety
/// `16·V` weights may be read.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn multiply<const N: usize, const V: usize, const PAIRS: bool>(
    sums: &mut [[int32x4_t; V]; N],
    levels: &[uint8x16_t; N],
    spread: uint8x16_t,
    weights: *const i8,
) {
    let mut pairs = [vdupq_n_s8(0); N];
    for (pairs, levels) in pairs.iter_mut().zip(levels) {
        *pairs = vreinterpretq_s8_u8(vqtbl1q_u8(*levels, spread));
    }
    for v in 0..V {
        // SAFETY: the caller's.
        let weights = unsafe { vld1q_s8(weights.add(16 * v)) };
        for (sums, pairs) in sums.iter_mut().zip(&pairs) {
            let first = vmull_s8(vget_low_s8(weights), vget_low_s8(*pairs));
            sums[v] = match PAIRS {
                true => vpadalq_s16(sums[v], vmlal_high_s8(first, weights, *pairs)),
                false => vpadalq_s16(vpadalq_s16(sums[v], first), vmull_high_s8(weights, *pairs)),
            };
        }
    }
}

/// Packs for [`depthwise`].
pub fn pack_depthwise(conv: &Conv, zero_point: u8) -> Taps {
    Taps::pack(&TAPS, conv, zero_point)
}

/// Eight channels of a depthwise convolution.
struct Lane<'a> {
    depthwise: &'a Depthwise<'a>,
    /// Channels, fewer than eight in the last block of some.
    channels: std::ops::Range<usize>,
    weights: &'a [u8],
    bias: &'a [i32],
    multiplier: &'a [f32],
}

/// A depthwise convolution whose weights [`pack_depthwise`] has packed.
///
/// # Safety
/// `depthwise.check(to)` has passed.
#[target_feature(enable = "neon")]
pub unsafe fn depthwise(depthwise: &Depthwise<'_>, to: &mut [u8]) {
    let (channels, taps) = (depthwise.shape.channels, depthwise.taps);
    let block_bytes = (TAPS.block_bytes)(depthwise.window.kernel);
    let rows = to.chunks_exact_mut(depthwise.columns * channels);
    for (y, to) in depthwise.rows.clone().zip(rows) {
        for first in (0..channels).step_by(BLOCK) {
            let lane = Lane {
                depthwise,
                channels: first..(first + BLOCK).min(channels),
                weights: &taps.weights.as_slice()[first / BLOCK * block_bytes..][..block_bytes],
                bias: &taps.bias[first..][..BLOCK],
                multiplier: &taps.multiplier[first..][..BLOCK],
            };
            // SAFETY: a block of weights, biases and multipliers each.
            unsafe {
                match (depthwise.window.kernel, depthwise.window.stride[1]) {
                    ([3, 3], 1) if depthwise.columns >= COLUMNS => row_of_three::<1>(&lane, y, to),
                    ([3, 3], 2) if depthwise.columns >= COLUMNS => row_of_three::<2>(&lane, y, to),
                    _ => row(&lane, y, to),
                }
            }
        }
    }
}

/// One output row with a kernel of 3 by 3, two pixels at a time: a column of
/// the input is widened once and multiplied for both that see it. The last two
/// overlap those before.
///
/// # Safety
/// `lane` is a whole block.
#[target_feature(enable = "neon")]
unsafe fn row_of_three<const STRIDE: usize>(lane: &Lane<'_>, y: usize, to: &mut [u8]) {
    let depthwise = lane.depthwise;
    let rows = [
        depthwise.row(y, 0),
        depthwise.row(y, 1),
        depthwise.row(y, 2),
    ];
    let mut taps = [vdupq_n_s16(0); 9];
    for (index, tap) in taps.iter_mut().enumerate() {
        *tap = weights(lane, index);
    }
    let bias = biases(lane);
    for tile in 0..depthwise.columns.div_ceil(COLUMNS) {
        let first = (tile * COLUMNS).min(depthwise.columns - COLUMNS);
        let left = (first * STRIDE).wrapping_sub(depthwise.window.padding[1]);
        let mut sums = [bias; COLUMNS];
        add_column::<STRIDE, 0>(lane, &rows, &taps, left, &mut sums);
        add_column::<STRIDE, 1>(lane, &rows, &taps, left, &mut sums);
        add_column::<STRIDE, 2>(lane, &rows, &taps, left, &mut sums);
        add_column::<STRIDE, 3>(lane, &rows, &taps, left, &mut sums);
        add_column::<STRIDE, 4>(lane, &rows, &taps, left, &mut sums);
        for (n, sums) in sums.iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { store_channels(lane, sums, first + n, to) };
        }
    }
}

/// Adds column `COLUMN` of those that two pixels see, where there is one; a
/// function for each, as what is known early is unrolled.
#[inline]
#[target_feature(enable = "neon")]
fn add_column<const STRIDE: usize, const COLUMN: usize>(
    lane: &Lane<'_>,
    rows: &[&[u8]; 3],
    weights: &[int16x8_t; 9],
    left: usize,
    sums: &mut [[int32x4_t; 2]; COLUMNS],
) {
    if COLUMN > (COLUMNS - 1) * STRIDE + 2 {
        return;
    }
    let x = left.wrapping_add(COLUMN);
    let (a, b, c) = (
        widened(lane, rows[0], x),
        widened(lane, rows[1], x),
        widened(lane, rows[2], x),
    );
    for (n, sums) in sums.iter_mut().enumerate() {
        let kx = COLUMN.wrapping_sub(n * STRIDE);
        if kx < 3 {
            accumulate(sums, a, weights[kx]);
            accumulate(sums, b, weights[3 + kx]);
            accumulate(sums, c, weights[6 + kx]);
        }
    }
}

/// One output row with any kernel.
///
/// # Safety
/// `lane` is a whole block.
#[target_feature(enable = "neon")]
unsafe fn row(lane: &Lane<'_>, y: usize, to: &mut [u8]) {
    let depthwise = lane.depthwise;
    let [height, width] = depthwise.window.kernel;
    for x in 0..depthwise.columns {
        let left = (x * depthwise.window.stride[1]).wrapping_sub(depthwise.window.padding[1]);
        let mut sums = biases(lane);
        for ky in 0..height {
            let row = depthwise.row(y, ky);
            for kx in 0..width {
                let levels = widened(lane, row, left.wrapping_add(kx));
                accumulate(&mut sums, levels, weights(lane, ky * width + kx));
            }
        }
        // SAFETY: the caller's.
        unsafe { store_channels(lane, &sums, x, to) };
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn accumulate(sums: &mut [int32x4_t; 2], levels: int16x8_t, weights: int16x8_t) {
    sums[0] = vmlal_s16(sums[0], vget_low_s16(levels), vget_low_s16(weights));
    sums[1] = vmlal_high_s16(sums[1], levels, weights);
}

#[inline]
#[target_feature(enable = "neon")]
fn weights(lane: &Lane<'_>, tap: usize) -> int16x8_t {
    // SAFETY: the slice has sixteen bytes.
    unsafe { vld1q_s16(lane.weights[2 * BLOCK * tap..][..2 * BLOCK].as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn biases(lane: &Lane<'_>) -> [int32x4_t; 2] {
    let (first, second) = (&lane.bias[..LANES], &lane.bias[LANES..][..LANES]);
    // SAFETY: each slice has four values.
    unsafe { [vld1q_s32(first.as_ptr()), vld1q_s32(second.as_ptr())] }
}

/// The lane's channels of one input pixel in 16 bits each; outside the input,
/// the zero point.
#[inline]
#[target_feature(enable = "neon")]
fn widened(lane: &Lane<'_>, row: &[u8], x: usize) -> int16x8_t {
    let depthwise = lane.depthwise;
    if x >= depthwise.shape.width {
        return vdupq_n_s16(depthwise.outside[0].into());
    }
    let at = x * depthwise.shape.channels + lane.channels.start;
    let mut few = [0; BLOCK];
    let from = match lane.channels.len() {
        BLOCK => &row[at..at + BLOCK],
        count => {
            few[..count].copy_from_slice(&row[at..at + count]);
            &few
        }
    };
    // SAFETY: eight bytes in either case.
    vreinterpretq_s16_u16(vmovl_u8(unsafe { vld1_u8(from.as_ptr()) }))
}

/// The levels of output pixel `x`.
///
/// # Safety
/// `lane` is a whole block.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store_channels(lane: &Lane<'_>, sums: &[int32x4_t; 2], x: usize, to: &mut [u8]) {
    let to = &mut to[x * lane.depthwise.shape.channels..][lane.channels.clone()];
    // SAFETY: a block has eight multipliers.
    unsafe { store(lane.depthwise.requant, sums, lane.multiplier.as_ptr(), to) };
}
