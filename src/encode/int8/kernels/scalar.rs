//! Plain loops: the definition of what kernels compute, and what runs where
//! nothing better is to be had.

use super::pack::{Layout, TapLayout, as_they_are};
use super::{Dense, Depthwise, Kernels, Matrix, Requant, Taps, put_reals};
use crate::encode::int8::plan::Conv;

/// Kernels for any machine.
pub struct Scalar;

const SLOTS: usize = 8;
const DEPTH: usize = 4;

static LAYOUT: Layout = Layout {
    slots: SLOTS,
    narrow: 0,
    order: |_, slot| slot,
    depth: DEPTH,
    weight_bytes: 1,
    shift: 0,
    place: as_they_are,
};

static TAPS: TapLayout = TapLayout {
    block: 1,
    block_bytes: |[height, width]| height * width,
    place: |[_, width], _, row, column| row * width + column,
    weight_bytes: 1,
    shift: 0,
    slot: |channel| channel,
};

impl Kernels for Scalar {
    fn name(&self) -> &'static str {
        "scalar"
    }

    fn pack_dense(&self, conv: &Conv, inputs: usize, zero_point: u8) -> Matrix {
        Matrix::pack(&LAYOUT, conv, inputs, zero_point)
    }

    fn dense(&self, dense: &Dense<'_>, to: &mut [u8]) {
        dense.check(to);
        let (windows, matrix) = (dense.windows, dense.matrix);
        let width = dense.width();
        for (pixel, to) in to.chunks_exact_mut(matrix.outputs() * width).enumerate() {
            let (row, column) = (pixel / windows.columns, pixel % windows.columns);
            let window = &dense.from[row * windows.row_step + column * windows.column_step..];
            for panel in matrix.panels() {
                let (weights, bias, multiplier, offset) = matrix.panel(panel);
                let sums = products(window, windows.segment_step, matrix, weights, bias);
                let to = &mut to[panel.first * width..][..panel.outputs * width];
                store(dense.requant, &sums, [multiplier, offset], to);
            }
        }
    }

    fn pack_depthwise(&self, conv: &Conv, zero_point: u8) -> Taps {
        Taps::pack(&TAPS, conv, zero_point)
    }

    fn depthwise(&self, depthwise: &Depthwise<'_>, to: &mut [u8]) {
        depthwise.check(to);
        let channels = depthwise.shape.channels;
        let pixels = to.chunks_exact_mut(channels).enumerate();
        for (pixel, to) in pixels {
            let y = depthwise.rows.start + pixel / depthwise.columns;
            let x = pixel % depthwise.columns;
            for (channel, to) in to.iter_mut().enumerate() {
                let sum = depthwise_sum(depthwise, [y, x], channel);
                *to = depthwise
                    .requant
                    .level(sum, depthwise.taps.multiplier[channel]);
            }
        }
    }
}

/// The levels of as many sums as `to` holds, or their reals.
fn store(
    requant: Option<Requant>,
    sums: &[i32; SLOTS],
    [multiplier, offset]: [&[f32]; 2],
    to: &mut [u8],
) {
    let Some(requant) = requant else {
        let real = |slot: usize| sums[slot] as f32 * multiplier[slot] + offset[slot];
        let reals: [f32; SLOTS] = std::array::from_fn(real);
        return put_reals(to, &reals);
    };
    for ((to, sum), multiplier) in to.iter_mut().zip(sums).zip(multiplier) {
        *to = requant.level(*sum, *multiplier);
    }
}

/// The sums of a panel for one window.
fn products(
    window: &[u8],
    segment_step: usize,
    matrix: &Matrix,
    weights: &[u8],
    bias: &[i32],
) -> [i32; SLOTS] {
    let mut sums = [0; SLOTS];
    sums.copy_from_slice(bias);
    let groups = weights.chunks_exact(DEPTH * SLOTS).enumerate();
    for (index, group) in groups {
        let (segment, at) = (index / matrix.groups(), index % matrix.groups());
        let levels = &window[segment * segment_step + DEPTH * at..][..DEPTH];
        for (sum, weights) in sums.iter_mut().zip(group.chunks_exact(DEPTH)) {
            for (level, weight) in levels.iter().zip(weights) {
                *sum += i32::from(*level) * i32::from(weight.cast_signed());
            }
        }
    }
    sums
}

/// The sum of one channel at one output pixel.
fn depthwise_sum(depthwise: &Depthwise<'_>, [y, x]: [usize; 2], channel: usize) -> i32 {
    let [height, width] = depthwise.window.kernel;
    let weights = &depthwise.taps.weights.as_slice()[channel * height * width..];
    let mut sum = depthwise.taps.bias[channel];
    for ky in 0..height {
        let row = depthwise.row(y, ky);
        for kx in 0..width {
            let at =
                (x * depthwise.window.stride[1] + kx).wrapping_sub(depthwise.window.padding[1]);
            let level = match at < depthwise.shape.width {
                true => row[at * depthwise.shape.channels + channel],
                false => depthwise.outside[0],
            };
            sum += i32::from(level) * i32::from(weights[ky * width + kx].cast_signed());
        }
    }
    sum
}
