//! AVX2 with FMA, and with AVX-VNNI where the processor has it.
//!
//! Plain AVX2 has no exact product of unsigned with signed bytes: weights are
//! widened to 16 bits when they are packed, levels as they are read.

use std::arch::x86_64::*;

use super::vectors::Ymms;
use crate::encode::int8::kernels::pack::{Layout, TapLayout, as_they_are};
use crate::encode::int8::kernels::tiles::{Strip, Tile, for_each_tile};
use crate::encode::int8::kernels::{
    Dense, Depthwise, FloatWork, Kernels, Matrix, Requant, Sum, Taps, elementwise, floats,
    put_reals,
};
use crate::encode::int8::plan::{Conv, Target};

/// Proof that the processor has AVX2 and FMA, and AVX-VNNI where `vnni` is set: only
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

/// Reals are stored as they are summed.
const fn in_order(_: usize, slot: usize) -> usize {
    slot
}

static LAYOUTS: [Layout; 2] = [layout(order), layout(in_order)];
static LAYOUTS_VNNI: [Layout; 2] = [layout_vnni(order), layout_vnni(in_order)];

/// Weights as they are.
const fn layout_vnni(order: fn(usize, usize) -> usize) -> Layout {
    Layout {
        slots: BLOCK,
        narrow: 0,
        order,
        depth: 4,
        weight_bytes: 1,
        shift: 0,
        place: as_they_are,
    }
}

/// Weights of 16 bits: those of bytes 0 and 2 for all slots, then 1 and 3.
const fn layout(order: fn(usize, usize) -> usize) -> Layout {
    Layout {
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
    }
}

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
        let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        has.then_some(&AVX2)
    }

    /// The token for AVX2 with AVX-VNNI.
    pub fn detect_vnni() -> Option<&'static Self> {
        let plain = Self::detect().is_some();
        (plain && is_x86_feature_detected!("avxvnni")).then_some(&AVX_VNNI)
    }

    fn layout(&self, to: Target) -> &'static Layout {
        let layouts = if self.vnni { &LAYOUTS_VNNI } else { &LAYOUTS };
        match to {
            Target::Levels(..) => &layouts[0],
            Target::Reals(_) => &layouts[1],
        }
    }
}

impl Kernels for Avx2 {
    fn name(&self) -> &'static str {
        if self.vnni { "avx-vnni" } else { "avx2" }
    }

    fn pack_dense(&self, conv: &Conv, inputs: usize, zero_point: u8) -> Matrix {
        Matrix::pack(self.layout(conv.to), conv, inputs, zero_point)
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

    fn float(&self, work: FloatWork<'_>) {
        #[target_feature(enable = "avx2,fma")]
        fn inner(work: FloatWork<'_>) {
            floats::run::<Ymms, 1>(work);
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(work) }
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
                offset,
                panel,
            } = *tile.strip;
            let (windows, matrix) = (dense.windows, dense.matrix);
            let offsets: [usize; $pixels] =
                std::array::from_fn(|n| n.min(tile.pixels - 1) * windows.column_step);
            let mut sums = [[_mm256_setzero_si256(); 2]; $pixels];
            // SAFETY: a panel has 16 biases, and `16 · $slot_bytes` bytes of
            // weights for each group; levels are those of the windows.
            unsafe {
                sums.fill(two_of(&bias[..BLOCK]));
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
            let multiplier = two_of_floats(&multiplier[..BLOCK]);
            // Small enough to be unrolled at once: else the sums live in memory.
            let (pixels, width) = (tile.pixels, dense.width());
            let (step, outputs) = (matrix.outputs() * width, panel.outputs * width);
            let results = tile.to.chunks_mut(step).zip(&sums).take(pixels);
            match dense.requant {
                Some(requant) => {
                    for (to, sums) in results {
                        store(requant, sums, multiplier, &mut to[..outputs]);
                    }
                }
                None => {
                    for (to, sums) in results {
                        store_reals(sums, multiplier, offset, &mut to[..outputs]);
                    }
                }
            }
        }
    };
}

define_tile!(compute, PIXELS, "avx2", 8, multiply);
define_tile!(compute_vnni, PIXELS_VNNI, "avx2,avxvnni", 4, multiply_vnni);

/// Sixteen integers.
#[inline]
#[target_feature(enable = "avx2")]
fn two_of(values: &[i32]) -> [__m256i; 2] {
    let (first, second) = values.split_at(LANES);
    let (first, second) = (first[..LANES].as_ptr(), second[..LANES].as_ptr());
    // SAFETY: both slices have 8 integers.
    unsafe {
        [
            _mm256_loadu_si256(first.cast()),
            _mm256_loadu_si256(second.cast()),
        ]
    }
}

/// Sixteen floats.
#[inline]
#[target_feature(enable = "avx2")]
fn two_of_floats(values: &[f32]) -> [__m256; 2] {
    let (first, second) = values.split_at(LANES);
    let (first, second) = (first[..LANES].as_ptr(), second[..LANES].as_ptr());
    // SAFETY: both slices have 8 floats.
    unsafe { [_mm256_loadu_ps(first), _mm256_loadu_ps(second)] }
}

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
        let (first, second) = unsafe {
            let weights = weights.add(32 * v);
            (
                _mm256_load_si256(weights.cast()),
                _mm256_load_si256(weights.add(64).cast()),
            )
        };
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
    let first = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[0]), multiplier[0]);
    let second = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[1]), multiplier[1]);
    let [low, high] = requant.range;
    let (low, high) = (
        _mm256_set1_epi16(low.into()),
        _mm256_set1_epi16(high.into()),
    );
    let levels = _mm256_packs_epi32(_mm256_cvtps_epi32(first), _mm256_cvtps_epi32(second));
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

/// The real values of up to 16 outputs.
#[inline]
#[target_feature(enable = "avx2")]
fn store_reals(sums: &[__m256i; 2], multiplier: [__m256; 2], offset: &[f32], to: &mut [u8]) {
    let mut reals = [0.0; BLOCK];
    for v in 0..2 {
        let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[v]), multiplier[v]);
        let offset = &offset[LANES * v..][..LANES];
        let lanes = &mut reals[LANES * v..][..LANES];
        // SAFETY: both slices have 8 floats.
        unsafe {
            let offset = _mm256_loadu_ps(offset.as_ptr());
            _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_add_ps(scaled, offset));
        }
    }
    put_reals(to, &reals);
}

/// 16 channels of a depthwise convolution.
struct Lane<'a> {
    depthwise: &'a Depthwise<'a>,
    first: usize,
    /// Channels, fewer than 16 in the last block of some.
    channels: usize,
    /// Pairs of taps, 64 bytes each.
    weights: &'a [u8],
    bias: [__m256i; 2],
}

/// One output row, 16 channels at a time.
#[target_feature(enable = "avx2")]
fn depthwise_row(depthwise: &Depthwise<'_>, y: usize, to: &mut [u8]) {
    let (channels, taps) = (depthwise.shape.channels, depthwise.taps);
    let block_bytes = (TAPS.block_bytes)(depthwise.window.kernel);
    let rows = [
        depthwise.row(y, 0),
        depthwise.row(y, 1),
        depthwise.row(y, 2),
    ];
    for first in (0..channels).step_by(BLOCK) {
        let (bias, multiplier) = (&taps.bias[first..], &taps.multiplier[first..]);
        let (bias, multiplier) = (two_of(&bias[..BLOCK]), two_of_floats(&multiplier[..BLOCK]));
        let lane = Lane {
            depthwise,
            first,
            channels: BLOCK.min(channels - first),
            weights: &taps.weights.as_slice()[first / BLOCK * block_bytes..][..block_bytes],
            bias,
        };
        for (x, to) in to.chunks_exact_mut(channels).enumerate() {
            let left = (x * depthwise.window.stride[1]).wrapping_sub(depthwise.window.padding[1]);
            let sums = match depthwise.window.kernel {
                [3, 3] => sums_of_three(&lane, &rows, left),
                _ => sums(&lane, y, left),
            };
            let to = &mut to[first..first + lane.channels];
            store(depthwise.requant, &sums, multiplier, to);
        }
    }
}

/// The sums of one pixel with a kernel of 3 by 3.
#[inline]
#[target_feature(enable = "avx2")]
fn sums_of_three(lane: &Lane<'_>, rows: &[&[u8]; 3], left: usize) -> [__m256i; 2] {
    let mut levels = [_mm256_setzero_si256(); 10];
    for (row, levels) in rows.iter().zip(levels.chunks_exact_mut(3)) {
        for (kx, level) in levels.iter_mut().enumerate() {
            *level = widened(lane, row, left.wrapping_add(kx));
        }
    }
    let mut sums = lane.bias;
    for (pair, levels) in levels.chunks_exact(2).enumerate() {
        add_pair(lane, &mut sums, pair, levels[0], levels[1]);
    }
    sums
}

/// The sums of one pixel with any kernel.
#[target_feature(enable = "avx2")]
fn sums(lane: &Lane<'_>, y: usize, left: usize) -> [__m256i; 2] {
    let [height, width] = lane.depthwise.window.kernel;
    let mut sums = lane.bias;
    let mut before = _mm256_setzero_si256();
    for tap in 0..height * width {
        let row = lane.depthwise.row(y, tap / width);
        let level = widened(lane, row, left.wrapping_add(tap % width));
        match tap % 2 {
            0 => before = level,
            _ => add_pair(lane, &mut sums, tap / 2, before, level),
        }
    }
    if height * width % 2 == 1 {
        let none = _mm256_setzero_si256();
        add_pair(lane, &mut sums, height * width / 2, before, none);
    }
    sums
}

/// Adds the levels of two taps times their weights.
#[inline]
#[target_feature(enable = "avx2")]
fn add_pair(lane: &Lane<'_>, sums: &mut [__m256i; 2], pair: usize, a: __m256i, b: __m256i) {
    let weights = &lane.weights[4 * BLOCK * pair..][..4 * BLOCK];
    // SAFETY: the slice has 64 bytes.
    let (first, second) = unsafe {
        let weights = weights.as_ptr();
        (
            _mm256_loadu_si256(weights.cast()),
            _mm256_loadu_si256(weights.add(32).cast()),
        )
    };
    let (low, high) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
    sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(low, first));
    sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(high, second));
}

/// The lane's channels of one input pixel in 16 bits each; outside the input,
/// the zero point.
#[inline]
#[target_feature(enable = "avx2")]
fn widened(lane: &Lane<'_>, row: &[u8], x: usize) -> __m256i {
    let shape = lane.depthwise.shape;
    if x >= shape.width {
        return _mm256_set1_epi16(lane.depthwise.outside[0].into());
    }
    let at = x * shape.channels + lane.first;
    let mut few = [0; BLOCK];
    let from = match lane.channels {
        BLOCK => &row[at..at + BLOCK],
        count => {
            few[..count].copy_from_slice(&row[at..at + count]);
            &few
        }
    };
    // SAFETY: sixteen bytes in either case.
    _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(from.as_ptr().cast()) })
}
