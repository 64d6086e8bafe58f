//! Convolutions of each channel on its own.
//!
//! Vectors are handed over in arrays that are written out: closures and loops over
//! them are not always inlined, and then every pixel travels through memory.

use std::arch::x86_64::*;

use super::{LANES, rounded};
use crate::encode::int8::kernels::pack::TapLayout;
use crate::encode::int8::kernels::{Depthwise, Requant};

/// Channels of a vector of levels.
const BLOCK: usize = 64;

/// Four rows of a column are interleaved byte by byte within lanes of 16
/// channels; vector `q` then holds channels `4q` to `4q + 3` of each lane.
fn interleaved(channel: usize) -> usize {
    channel % 16 / 4 * LANES + channel / 16 * 4 + channel % 4
}

/// How weights lie.
pub static TAPS: TapLayout = TapLayout {
    block: BLOCK,
    block_bytes: |[height, width]| height.div_ceil(4) * width * 4 * BLOCK,
    place: |[_, width], channel, row, column| {
        ((row / 4 * width + column) * BLOCK + interleaved(channel)) * 4 + row % 4
    },
    weight_bytes: 1,
    shift: 0,
    slot: interleaved,
};

/// A convolution whose weights lie as [`TAPS`] says.
///
/// # Safety
/// `depthwise.check(to)` has passed.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub unsafe fn rows(depthwise: &Depthwise<'_>, to: &mut [u8]) {
    let channels = depthwise.shape.channels;
    let block_bytes = (TAPS.block_bytes)(depthwise.window.kernel);
    let rows = to.chunks_exact_mut(depthwise.columns * channels);
    for (y, to) in depthwise.rows.clone().zip(rows) {
        for block in 0..channels.div_ceil(BLOCK) {
            let lane = Lane {
                first: block * BLOCK,
                mask: u64::MAX >> (BLOCK - (channels - block * BLOCK).min(BLOCK)),
                weights: &depthwise.taps.weights.as_slice()[block * block_bytes..][..block_bytes],
                bias: &depthwise.taps.bias[block * BLOCK..][..BLOCK],
                multiplier: &depthwise.taps.multiplier[block * BLOCK..][..BLOCK],
            };
            // SAFETY: the caller's; the block lies within the channels.
            unsafe {
                let whole = lane.mask == u64::MAX;
                match (depthwise.window.kernel, depthwise.window.stride[1], whole) {
                    ([3, 3], 1, true) => row_of_three::<1, true>(depthwise, &lane, y, to),
                    ([3, 3], 1, false) => row_of_three::<1, false>(depthwise, &lane, y, to),
                    ([3, 3], 2, true) => row_of_three::<2, true>(depthwise, &lane, y, to),
                    ([3, 3], 2, false) => row_of_three::<2, false>(depthwise, &lane, y, to),
                    _ => row(depthwise, &lane, y, to),
                }
            }
        }
    }
}

/// 64 channels of a depthwise convolution.
struct Lane<'a> {
    first: usize,
    /// A bit for each channel that exists.
    mask: u64,
    weights: &'a [u8],
    bias: &'a [i32],
    multiplier: &'a [f32],
}

/// One output row with a kernel of 3 by 3. A column of the input is
/// interleaved once and multiplied for up to three outputs; the weights stay
/// in registers.
///
/// # Safety
/// `check` has passed for `depthwise`, `to` is one output row, and all channels
/// of the lane exist where it is `WHOLE`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn row_of_three<const STRIDE: usize, const WHOLE: bool>(
    depthwise: &Depthwise<'_>,
    lane: &Lane<'_>,
    y: usize,
    to: &mut [u8],
) {
    let rows = [
        depthwise.row(y, 0),
        depthwise.row(y, 1),
        depthwise.row(y, 2),
    ];
    // SAFETY: the block has 12 vectors of weights.
    let weights = unsafe { [lane.weights(0), lane.weights(1), lane.weights(2)] };
    let left = depthwise.window.padding[1];
    let place = Place { depthwise, lane };
    // SAFETY: `column` checks its position; the output pixel lies in the row.
    unsafe {
        let mut columns = [
            place.column::<3, WHOLE>(&rows, 0_usize.wrapping_sub(left)),
            place.column::<3, WHOLE>(&rows, 1_usize.wrapping_sub(left)),
            [_mm512_setzero_si512(); 4],
        ];
        for x in 0..depthwise.columns {
            let first = (STRIDE * x).wrapping_sub(left);
            if x > 0 {
                columns = match STRIDE {
                    1 => [columns[1], columns[2], columns[0]],
                    _ => [
                        columns[2],
                        place.column::<3, WHOLE>(&rows, first.wrapping_add(1)),
                        columns[0],
                    ],
                };
            }
            columns[2] = place.column::<3, WHOLE>(&rows, first.wrapping_add(2));
            let sums = multiplied(lane.biases(), columns[0], weights[0]);
            let sums = multiplied(sums, columns[1], weights[1]);
            let sums = multiplied(sums, columns[2], weights[2]);
            let at = x * depthwise.shape.channels + lane.first;
            lane.store::<WHOLE>(depthwise.requant, sums, to.as_mut_ptr().add(at));
        }
    }
}

/// One output row with any kernel.
///
/// # Safety
/// As [`row_of_three`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn row(depthwise: &Depthwise<'_>, lane: &Lane<'_>, y: usize, to: &mut [u8]) {
    let [height, width] = depthwise.window.kernel;
    for x in 0..depthwise.columns {
        let mut sums = lane.biases();
        for top in (0..height).step_by(4) {
            // Rows beyond the kernel have weights of zero.
            let row = |ky: usize| depthwise.row(y, (top + ky).min(height - 1));
            let rows = [row(0), row(1), row(2), row(3)];
            for kx in 0..width {
                let at =
                    (x * depthwise.window.stride[1] + kx).wrapping_sub(depthwise.window.padding[1]);
                // SAFETY: `column` checks its position; four vectors of
                // weights belong to each column of four rows.
                unsafe {
                    let column = Place { depthwise, lane }.column::<4, false>(&rows, at);
                    sums = multiplied(sums, column, lane.weights(top / 4 * width + kx));
                }
            }
        }
        let at = x * depthwise.shape.channels + lane.first;
        // SAFETY: the output pixel lies in the row.
        unsafe {
            lane.store::<false>(depthwise.requant, sums, to.as_mut_ptr().add(at));
        };
    }
}

/// Adds a column of four rows times its weights.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn multiplied(sums: [__m512i; 4], column: [__m512i; 4], weights: [__m512i; 4]) -> [__m512i; 4] {
    [
        _mm512_dpbusd_epi32(sums[0], column[0], weights[0]),
        _mm512_dpbusd_epi32(sums[1], column[1], weights[1]),
        _mm512_dpbusd_epi32(sums[2], column[2], weights[2]),
        _mm512_dpbusd_epi32(sums[3], column[3], weights[3]),
    ]
}

/// Where a lane reads.
struct Place<'a> {
    depthwise: &'a Depthwise<'a>,
    lane: &'a Lane<'a>,
}

impl Place<'_> {
    /// One column of up to four rows, interleaved: vector `q` holds the rows of
    /// channels `4q` to `4q + 3` of each lane. Outside the input, the zero point.
    ///
    /// # Safety
    /// `rows` are whole input rows; `WHOLE` as for [`row_of_three`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn column<const R: usize, const WHOLE: bool>(
        &self,
        rows: &[&[u8]; R],
        x: usize,
    ) -> [__m512i; 4] {
        let Self { depthwise, lane } = self;
        if x >= depthwise.shape.width {
            return [_mm512_set1_epi8(depthwise.outside[0].cast_signed()); 4];
        }
        let at = x * depthwise.shape.channels + lane.first;
        // SAFETY: the pixel lies in each row.
        let (first, second) = unsafe {
            (
                [
                    lane.load::<WHOLE>(rows[0], at),
                    lane.load::<WHOLE>(rows[1], at),
                ],
                [
                    lane.load::<WHOLE>(rows[2], at),
                    lane.load::<WHOLE>(rows[R - 1], at),
                ],
            )
        };
        let upper = [
            _mm512_unpacklo_epi8(first[0], first[1]),
            _mm512_unpackhi_epi8(first[0], first[1]),
        ];
        let lower = [
            _mm512_unpacklo_epi8(second[0], second[1]),
            _mm512_unpackhi_epi8(second[0], second[1]),
        ];
        [
            _mm512_unpacklo_epi16(upper[0], lower[0]),
            _mm512_unpackhi_epi16(upper[0], lower[0]),
            _mm512_unpacklo_epi16(upper[1], lower[1]),
            _mm512_unpackhi_epi16(upper[1], lower[1]),
        ]
    }
}

impl Lane<'_> {
    /// The levels of a row's pixel at `at`.
    ///
    /// # Safety
    /// The pixel lies in the row; `WHOLE` as for [`row_of_three`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn load<const WHOLE: bool>(&self, row: &[u8], at: usize) -> __m512i {
        // SAFETY: the mask keeps the read within the pixel.
        unsafe {
            let from = row.as_ptr().add(at).cast::<i8>();
            match WHOLE {
                true => _mm512_loadu_si512(from.cast()),
                false => _mm512_maskz_loadu_epi8(self.mask, from),
            }
        }
    }

    /// Weights of a column of four rows.
    ///
    /// # Safety
    /// The block has that many columns.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn weights(&self, column: usize) -> [__m512i; 4] {
        // SAFETY: four vectors belong to each column of four rows.
        unsafe {
            let from = self.weights.as_ptr().add(256 * column);
            [
                _mm512_load_si512(from.cast()),
                _mm512_load_si512(from.add(64).cast()),
                _mm512_load_si512(from.add(128).cast()),
                _mm512_load_si512(from.add(192).cast()),
            ]
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn biases(&self) -> [__m512i; 4] {
        let from = self.bias[..BLOCK].as_ptr();
        // SAFETY: a block has 64 biases.
        unsafe {
            [
                _mm512_loadu_si512(from.cast()),
                _mm512_loadu_si512(from.add(LANES).cast()),
                _mm512_loadu_si512(from.add(2 * LANES).cast()),
                _mm512_loadu_si512(from.add(3 * LANES).cast()),
            ]
        }
    }

    /// `sums` of vector `q` as [`rounded`] does it.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn rounded(&self, sums: __m512i, q: usize) -> __m512i {
        let multiplier = self.multiplier[LANES * q..][..LANES].as_ptr();
        // SAFETY: sixteen multipliers.
        rounded(sums, unsafe { _mm512_loadu_ps(multiplier) })
    }

    /// The levels of one pixel's 64 channels: packing twice puts them in order.
    ///
    /// # Safety
    /// The channels that exist may be written from `to` on; `WHOLE` as for
    /// [`row_of_three`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn store<const WHOLE: bool>(&self, requant: Requant, sums: [__m512i; 4], to: *mut u8) {
        let zero_point = _mm512_set1_epi16(requant.zero_point.into());
        let first = _mm512_packs_epi32(self.rounded(sums[0], 0), self.rounded(sums[1], 1));
        let second = _mm512_packs_epi32(self.rounded(sums[2], 2), self.rounded(sums[3], 3));
        let levels = _mm512_packus_epi16(
            _mm512_adds_epi16(first, zero_point),
            _mm512_adds_epi16(second, zero_point),
        );
        let [low, high] = requant.range;
        let levels = _mm512_max_epu8(levels, _mm512_set1_epi8(low.cast_signed()));
        let levels = _mm512_min_epu8(levels, _mm512_set1_epi8(high.cast_signed()));
        // SAFETY: the mask keeps the write within the pixel.
        unsafe {
            match WHOLE {
                true => _mm512_storeu_si512(to.cast(), levels),
                false => _mm512_mask_storeu_epi8(to.cast(), self.mask, levels),
            }
        }
    }
}
