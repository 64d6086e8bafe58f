//! AVX2, with AVX-VNNI where the processor has it.
//!
//! Plain AVX2 has no exact product of unsigned with signed bytes: weights are
//! widened to 16 bits when they are packed, levels as they are read.

use std::arch::x86_64::*;

use crate::encode::int8::kernels::pack::{Layout, TapLayout, as_they_are};
use crate::encode::int8::kernels::tiles::{Strip, Tile, for_each_tile};
use crate::encode::int8::kernels::{
    Dense, Depthwise, Kernels, Matrix, Requant, Sum, Taps, elementwise,
};
use crate::encode::int8::plan::Conv;

/// Proof that the processor has AVX2, and AVX-VNNI where `vnni` is set: only
/// [`Avx2::detect`] and [`Avx2::detect_vnni`] make one.
pub struct Avx2 {
    vnni: bool,
}

static AVX2: Avx2 = Avx2 { vnni: false };
static AVX_VNNI: Avx2 = Avx2 { vnni: true };

/// Sums of a vector.
const LANES: usize = 8;
/// Outputs of a panel, channels of a depthwise block.
const BLOCK: usize = 16;
/// Output pixels of a tile: as many as the 16 registers hold.
const PIXELS: usize = 4;
const PIXELS_VNNI: usize = 6;

/// Two vectors of sums are packed lane by lane: the first holds outputs 0–3
/// and 8–11, the second 4–7 and 12–15.
fn order(_: usize, slot: usize) -> usize {
    slot % LANES / 4 * 8 + slot / LANES * 4 + slot % 4
}

/// The slot of an output: [`order`] the other way.
fn slot(output: usize) -> usize {
    output % 8 / 4 * LANES + output / 8 * 4 + output % 4
}

/// Weights as they are.
static LAYOUT_VNNI: Layout = Layout {
    slots: BLOCK,
    narrow: 0,
    order,
    depth: 4,
    weight_bytes: 1,
    shift: 0,
    place: as_they_are,
};

/// Weights of 16 bits: those of bytes 0 and 2 for all slots, then 1 and 3.
static LAYOUT: Layout = Layout {
    slots: BLOCK,
    narrow: 0,
    order,
    depth: 4,
    weight_bytes: 2,
    shift: 0,
    place: |group, slots, slot, weights| {
        for (index, &weight) in weights.iter().enumerate() {
            let at = 4 * (index % 2 * slots + slot) + index / 2 * 2;
            group[at..at + 2].copy_from_slice(&i16::from(weight).to_le_bytes());
        }
    },
};

/// Weights of 16 bits, those of two taps beside each other.
static TAPS: TapLayout = TapLayout {
    block: BLOCK,
    block_bytes: |[height, width]| (height * width).div_ceil(2) * 4 * BLOCK,
    place: |[_, width], channel, row, column| {
        let tap = row * width + column;
        4 * (tap / 2 * BLOCK + slot(channel)) + tap % 2 * 2
    },
    weight_bytes: 2,
    shift: 0,
    slot,
};

impl Avx2 {
    /// The token for plain AVX2.
    pub fn detect() -> Option<&'static Self> {
        is_x86_feature_detected!("avx2").then_some(&AVX2)
    }

    /// The token for AVX2 with AVX-VNNI.
    pub fn detect_vnni() -> Option<&'static Self> {
        let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni");
        has.then_some(&AVX_VNNI)
    }

    fn layout(&self) -> &'static Layout {
        if self.vnni { &LAYOUT_VNNI } else { &LAYOUT }
    }
}

impl Kernels for Avx2 {
    fn name(&self) -> &'static str {
        if self.vnni { "avx-vnni" } else { "avx2" }
    }

    fn pack_dense(&self, conv: &Conv, inputs: usize, zero_point: u8) -> Matrix {
        Matrix::pack(self.layout(), conv, inputs, zero_point)
    }

    fn dense(&self, dense: &Dense<'_>, to: &mut [u8]) {
        dense.check(to);
        let pixels = if self.vnni { PIXELS_VNNI } else { PIXELS };
        for_each_tile(dense, to, pixels, |tile| {
            // SAFETY: `self` proves the features; `check` has measured the
            // windows of these pixels.
            unsafe {
                match self.vnni {
                    true => compute_vnni(tile),
                    false => compute(tile),
                }
            }
        });
    }

    fn pack_depthwise(&self, conv: &Conv, zero_point: u8) -> Taps {
        Taps::pack(&TAPS, conv, zero_point)
    }

    fn depthwise(&self, depthwise: &Depthwise<'_>, to: &mut [u8]) {
        depthwise.check(to);
        let rows = to.chunks_exact_mut(depthwise.columns * depthwise.shape.channels);
        for (y, to) in depthwise.rows.clone().zip(rows) {
            // SAFETY: `self` proves the features.
            unsafe { depthwise_row(depthwise, y, to) }
        }
    }

    fn quantize(&self, from: &[f32], scale: f32, zero_point: u8, to: &mut [u8]) {
        #[target_feature(enable = "avx2")]
        fn inner(from: &[f32], scale: f32, zero_point: u8, to: &mut [u8]) {
            elementwise::quantize(from, scale, zero_point, to);
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(from, scale, zero_point, to) }
    }

    fn add(&self, sum: &Sum, from: [&[u8]; 2], to: &mut [u8]) {
        #[target_feature(enable = "avx2")]
        fn inner(sum: &Sum, from: [&[u8]; 2], to: &mut [u8]) {
            elementwise::add(sum, from, to);
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(sum, from, to) }
    }
}

/// Defines a tile of up to `$pixels` pixels by 16 outputs. Windows beyond the
/// last pixel are read as the last one and thrown away.
macro_rules! define_tile {
    ($name:ident, $pixels:ident, $features:literal, $slot_bytes:literal, $multiply:ident) => {
        /// # Safety
        /// The windows of the tile's pixels may be read.
        #[target_feature(enable = $features)]
        unsafe fn $name(tile: Tile<'_>) {
            let Strip {
                dense,
                weights,
                bias,
                multiplier,
                panel,
            } = *tile.strip;
            let (windows, matrix) = (dense.windows, dense.matrix);
            let offsets: [usize; $pixels] =
                std::array::from_fn(|n| n.min(tile.pixels - 1) * windows.column_step);
            let mut sums = [[_mm256_setzero_si256(); 2]; $pixels];
            // SAFETY: a panel has 16 biases, and `16 · $slot_bytes` bytes of
            // weights for each group; levels are those of the windows.
            unsafe {
                let bias =
                    [0, LANES].map(|at| _mm256_loadu_si256(bias[at..][..LANES].as_ptr().cast()));
                sums.fill(bias);
                let mut weights = weights.as_ptr();
                for segment in 0..matrix.segments() {
                    let mut levels = tile.from.as_ptr().add(segment * windows.segment_step);
                    for _ in 0..matrix.groups() {
                        for (sums, offset) in sums.iter_mut().zip(offsets) {
                            let quad = levels.add(offset).cast::<i32>().read_unaligned();
                            $multiply(sums, _mm256_set1_epi32(quad), weights);
                        }
                        levels = levels.add(4);
                        weights = weights.add(BLOCK * $slot_bytes);
                    }
                }
            }
            let multiplier = [0, LANES].map(|at| {
                // SAFETY: a panel has 16 multipliers.
                unsafe { _mm256_loadu_ps(multiplier[at..][..LANES].as_ptr()) }
            });
            // Small enough to be unrolled at once: else the sums live in memory.
            let (requant, outputs) = (dense.requant, panel.outputs);
            let (pixels, step) = (tile.pixels, matrix.outputs());
            for (to, sums) in tile.to.chunks_mut(step).zip(&sums).take(pixels) {
                store(requant, sums, multiplier, &mut to[..outputs]);
            }
        }
    };
}

define_tile!(compute, PIXELS, "avx2", 8, multiply);
define_tile!(compute_vnni, PIXELS_VNNI, "avx2,avxvnni", 4, multiply_vnni);

/// Adds a quad of levels times 16 outputs' weights.
///
/// # Safety
/// 128 bytes of weights may be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn multiply(sums: &mut [__m256i; 2], quad: __m256i, weights: *const u8) {
    let even = _mm256_and_si256(quad, _mm256_set1_epi32(0x00FF_00FF));
    let odd = _mm256_srli_epi16::<8>(quad);
    for (v, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's.
        let [first, second] =
            [0, 64].map(|at| unsafe { _mm256_load_si256(weights.add(at + 32 * v).cast()) });
        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(even, first));
        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(odd, second));
    }
}

/// The same in one instruction for each 8 outputs.
///
/// # Safety
/// 64 bytes of weights may be read.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn multiply_vnni(sums: &mut [__m256i; 2], quad: __m256i, weights: *const u8) {
    for (v, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's.
        let weights = unsafe { _mm256_load_si256(weights.add(32 * v).cast()) };
        *sum = _mm256_dpbusd_avx_epi32(*sum, quad, weights);
    }
}

/// The levels of up to 16 outputs or channels.
#[inline]
#[target_feature(enable = "avx2")]
fn store(requant: Requant, sums: &[__m256i; 2], multiplier: [__m256; 2], to: &mut [u8]) {
    let rounded = [0, 1]
        .map(|v| _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(sums[v]), multiplier[v])));
    let [low, high] = requant.range.map(|level| _mm256_set1_epi16(level.into()));
    let levels = _mm256_packs_epi32(rounded[0], rounded[1]);
    let levels = _mm256_adds_epi16(levels, _mm256_set1_epi16(requant.zero_point.into()));
    let levels = _mm256_min_epi16(_mm256_max_epi16(levels, low), high);
    let bytes = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi16(levels, levels));
    let mut sixteen = [0; BLOCK];
    // SAFETY: the array has 16 bytes.
    unsafe { _mm_storeu_si128(sixteen.as_mut_ptr().cast(), _mm256_castsi256_si128(bytes)) };
    match <&mut [u8; BLOCK]>::try_from(&mut *to) {
        Ok(to) => *to = sixteen,
        Err(_) => to.copy_from_slice(&sixteen[..to.len()]),
    }
}

/// One output row, 16 channels at a time.
#[target_feature(enable = "avx2")]
fn depthwise_row(depthwise: &Depthwise<'_>, y: usize, to: &mut [u8]) {
    let channels = depthwise.shape.channels;
    let block_bytes = (TAPS.block_bytes)(depthwise.window.kernel);
    for first in (0..channels).step_by(BLOCK) {
        let block =
            &depthwise.taps.weights.as_slice()[first / BLOCK * block_bytes..][..block_bytes];
        let here = first..(first + BLOCK).min(channels);
        let multiplier = [0, LANES].map(|at| {
            // SAFETY: whole blocks of multipliers are stored.
            unsafe { _mm256_loadu_ps(depthwise.taps.multiplier[first + at..][..LANES].as_ptr()) }
        });
        for (x, to) in to.chunks_exact_mut(channels).enumerate() {
            let sums = depthwise_sums(depthwise, block, here.clone(), [y, x]);
            store(depthwise.requant, &sums, multiplier, &mut to[here.clone()]);
        }
    }
}

/// The sums of one pixel's channels `here`.
#[inline]
#[target_feature(enable = "avx2")]
fn depthwise_sums(
    depthwise: &Depthwise<'_>,
    weights: &[u8],
    here: std::ops::Range<usize>,
    [y, x]: [usize; 2],
) -> [__m256i; 2] {
    let [height, width] = depthwise.window.kernel;
    let left = (x * depthwise.window.stride[1]).wrapping_sub(depthwise.window.padding[1]);
    let level = |tap: usize| match tap < height * width {
        true => widened(
            depthwise,
            depthwise.row(y, tap / width),
            left.wrapping_add(tap % width),
            here.clone(),
        ),
        false => _mm256_setzero_si256(),
    };
    let mut sums = [0, LANES].map(|at| {
        // SAFETY: whole blocks of biases are stored.
        unsafe {
            _mm256_loadu_si256(
                depthwise.taps.bias[here.start + at..][..LANES]
                    .as_ptr()
                    .cast(),
            )
        }
    });
    for (pair, weights) in weights.chunks_exact(4 * BLOCK).enumerate() {
        let (a, b) = (level(2 * pair), level(2 * pair + 1));
        let pairs = [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)];
        for (v, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the weights of a pair of taps are 64 bytes.
            let weights = unsafe { _mm256_loadu_si256(weights[32 * v..][..32].as_ptr().cast()) };
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs[v], weights));
        }
    }
    sums
}

/// Channels `here` of one input pixel in 16 bits each; outside the input, the
/// zero point.
#[inline]
#[target_feature(enable = "avx2")]
fn widened(
    depthwise: &Depthwise<'_>,
    row: &[u8],
    x: usize,
    here: std::ops::Range<usize>,
) -> __m256i {
    if x >= depthwise.shape.width {
        return _mm256_set1_epi16(depthwise.outside[0].into());
    }
    let pixel = &row[x * depthwise.shape.channels..][here];
    let mut few = [0; BLOCK];
    let levels = <&[u8; BLOCK]>::try_from(pixel).unwrap_or_else(|_| {
        few[..pixel.len()].copy_from_slice(pixel);
        &few
    });
    // SAFETY: the array has 16 bytes.
    _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(levels.as_ptr().cast()) })
}
