//! Depthwise convolution, bias and activation, plane by plane.
//!
//! A plane is first copied into zero-padded *phases*: with a step of 2, one phase per combination
//! of even and odd rows and columns; with a step of 1 there is a single phase. In a phase every
//! tap of the kernel reads consecutive values, so that a whole plane is one long loop, however
//! narrow its rows are. The loop also computes a few values between the rows, which are dropped.

use rayon::prelude::*;

use super::dense::Gradients;
use super::simd::{self, Dots, LANES, Mask, Taps, copy_every};

/// Sizes of a depthwise convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Depthwise {
    /// Channels, of input and output.
    pub channels: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Kernel height and width: 1 or 3.
    pub kernel: usize,
    /// Vertical and horizontal step: 1 or 2.
    pub stride: usize,
    /// Zeros at the top and at the left.
    pub padding: [usize; 2],
    /// What the activation clamps to.
    pub bounds: [f32; 2],
}

/// Most taps a kernel has.
const TAPS: usize = 9;

/// Planes that a thread takes at a time, at least.
const MIN_PLANES: usize = 16;

/// What one plane adds to the gradients of its channel.
#[derive(Debug, Clone, Copy)]
struct PlaneSums {
    taps: [f32; TAPS],
    bias: f32,
}

/// A run of a plane's row and where it lies in the phases.
#[derive(Debug, Clone, Copy)]
struct Span {
    plane: usize,
    phase: usize,
    count: usize,
}

/// How planes and phases correspond: the same for all planes.
struct Layout {
    /// Where every row of the input lies in the phases; the rest of the phases is zero.
    spans: Vec<Span>,
    /// The taps that read each phase.
    taps: Vec<Vec<usize>>,
}

/// Scratch memory for one plane.
struct Scratch {
    /// The phases of the input, one after the other.
    phases: Vec<f32>,
    /// Output rows as wide as a phase's, zeros between them and a margin on both ends.
    rows: Vec<f32>,
    /// The output's gradient before the activation.
    masked: Vec<f32>,
    /// The phases of the input's gradient.
    gradients: Vec<f32>,
}

impl Depthwise {
    /// The output `[N, C, H', W']` for `x` `[N, C, H, W]`, `weight` `[C, k, k]` and `bias` `[C]`.
    pub(super) fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let planes = x.len() / self.input_area();
        let layout = self.layout();
        let mut output = vec![0.0; planes * self.output_area()];
        output
            .par_chunks_mut(self.output_area())
            .zip(x.par_chunks(self.input_area()))
            .enumerate()
            .with_min_len(MIN_PLANES)
            .for_each_init(
                || self.scratch(),
                |scratch, (plane, (y, x))| {
                    let channel = plane % self.channels;
                    let weight = &weight[channel * self.taps()..][..self.taps()];
                    self.forward_plane(x, weight, bias[channel], &layout, scratch, y);
                },
            );
        output
    }

    /// All gradients for the gradient of the output, of which `y` is the value.
    pub(super) fn backward(
        &self,
        x: &[f32],
        weight: &[f32],
        y: &[f32],
        gradient: &[f32],
    ) -> Gradients {
        let layout = self.layout();
        let mut input = vec![0.0; x.len()];
        let sums: Vec<PlaneSums> = input
            .par_chunks_mut(self.input_area())
            .zip(x.par_chunks(self.input_area()))
            .zip(y.par_chunks(self.output_area()))
            .zip(gradient.par_chunks(self.output_area()))
            .enumerate()
            .with_min_len(MIN_PLANES)
            .map_init(
                || self.scratch(),
                |scratch, (plane, (((dx, x), y), gradient))| {
                    let channel = plane % self.channels;
                    let weight = &weight[channel * self.taps()..][..self.taps()];
                    let bias = self.mask(y, gradient, scratch);
                    let taps = self.weight_plane(x, &layout, scratch);
                    self.input_plane(weight, &layout, scratch, dx);
                    PlaneSums { taps, bias }
                },
            )
            .collect();
        let (weight, bias) = self.sum_images(&sums);
        Gradients {
            input,
            weight,
            bias,
        }
    }

    fn forward_plane(
        &self,
        x: &[f32],
        weight: &[f32],
        bias: f32,
        layout: &Layout,
        scratch: &mut Scratch,
        y: &mut [f32],
    ) {
        self.split(x, &layout.spans, &mut scratch.phases);
        let Scratch { phases, rows, .. } = scratch;
        match self.taps() {
            TAPS => self.filter::<TAPS>(phases, weight, bias, rows),
            _ => self.filter::<1>(phases, weight, bias, rows),
        }
        let rows = rows[self.margin()..].chunks(self.phase_width());
        for (y, row) in y.chunks_exact_mut(self.output[1]).zip(rows) {
            y.copy_from_slice(&row[..y.len()]);
        }
    }

    fn filter<const T: usize>(&self, phases: &[f32], weight: &[f32], shift: f32, rows: &mut [f32]) {
        simd::run(Taps::<T> {
            inputs: self.tap_inputs(phases),
            weights: std::array::from_fn(|tap| weight[tap]),
            shift,
            bounds: self.bounds,
            output: &mut rows[self.margin()..][..self.flat()],
        });
    }

    /// Fills the rows with the gradient before the activation; returns its sum.
    fn mask(&self, y: &[f32], gradient: &[f32], scratch: &mut Scratch) -> f32 {
        let Scratch { masked, rows, .. } = scratch;
        let sum = simd::run(Mask {
            gradient,
            output: y,
            bounds: self.bounds,
            masked,
        });
        let rows = rows[self.margin()..].chunks_mut(self.phase_width());
        for (row, masked) in rows.zip(masked.chunks_exact(self.output[1])) {
            row[..masked.len()].copy_from_slice(masked);
        }
        sum
    }

    fn weight_plane(&self, x: &[f32], layout: &Layout, scratch: &mut Scratch) -> [f32; TAPS] {
        self.split(x, &layout.spans, &mut scratch.phases);
        let gradient = &scratch.rows[self.margin()..][..self.flat()];
        let mut taps = [0.0; TAPS];
        if self.taps() == TAPS {
            taps = simd::run(Dots {
                gradient,
                inputs: self.tap_inputs(&scratch.phases),
            });
        } else {
            [taps[0]] = simd::run(Dots {
                gradient,
                inputs: self.tap_inputs(&scratch.phases),
            });
        }
        taps
    }

    fn input_plane(&self, weight: &[f32], layout: &Layout, scratch: &mut Scratch, dx: &mut [f32]) {
        let Scratch {
            rows, gradients, ..
        } = scratch;
        let phases = gradients.chunks_exact_mut(self.phase_len());
        for (gradients, taps) in phases.zip(&layout.taps) {
            match taps.len() {
                9 => self.spread::<9>(taps, rows, weight, gradients),
                4 => self.spread::<4>(taps, rows, weight, gradients),
                2 => self.spread::<2>(taps, rows, weight, gradients),
                1 => self.spread::<1>(taps, rows, weight, gradients),
                _ => {}
            }
        }
        for &Span {
            plane,
            phase,
            count,
        } in &layout.spans
        {
            copy_to_every(self.stride, &gradients[phase..][..count], &mut dx[plane..]);
        }
    }

    /// The gradient of one phase: every tap carries the output's gradient back to where it read.
    fn spread<const T: usize>(
        &self,
        taps: &[usize],
        rows: &[f32],
        weight: &[f32],
        gradients: &mut [f32],
    ) {
        simd::run(Taps::<T> {
            inputs: std::array::from_fn(|i| &rows[self.margin() - self.tap(taps[i]).1..]),
            weights: std::array::from_fn(|i| weight[taps[i]]),
            shift: 0.0,
            bounds: [f32::NEG_INFINITY, f32::INFINITY],
            output: gradients,
        });
    }

    /// Adds the planes of all images, in their order.
    fn sum_images(&self, sums: &[PlaneSums]) -> (Vec<f32>, Vec<f32>) {
        let mut weight = vec![0.0; self.channels * self.taps()];
        let mut bias = vec![0.0; self.channels];
        for image in sums.chunks_exact(self.channels) {
            for (channel, plane) in image.iter().enumerate() {
                let weight = &mut weight[channel * self.taps()..][..self.taps()];
                weight.iter_mut().zip(plane.taps).for_each(|(w, t)| *w += t);
                bias[channel] += plane.bias;
            }
        }
        (weight, bias)
    }

    fn split(&self, x: &[f32], spans: &[Span], phases: &mut [f32]) {
        for &Span {
            plane,
            phase,
            count,
        } in spans
        {
            copy_every(self.stride, &x[plane..], &mut phases[phase..][..count]);
        }
    }

    fn layout(&self) -> Layout {
        let taps = |phase| {
            (0..self.taps())
                .filter(|&tap| self.tap(tap).0 == phase)
                .collect()
        };
        Layout {
            spans: self.spans(),
            taps: (0..self.stride * self.stride).map(taps).collect(),
        }
    }

    fn spans(&self) -> Vec<Span> {
        let ([height, width], [top, left], stride) = (self.input, self.padding, self.stride);
        let mut spans = Vec::new();
        for phase in 0..stride * stride {
            let first = left.saturating_sub(phase % stride).div_ceil(stride);
            let column = first * stride + phase % stride - left;
            for row in 0..self.output[0] + self.reach() {
                let y = (row * stride + phase / stride).wrapping_sub(top);
                if y < height && column < width && first < self.phase_width() {
                    let count = (width - column)
                        .div_ceil(stride)
                        .min(self.phase_width() - first);
                    let phase = phase * self.phase_len() + row * self.phase_width() + first;
                    spans.push(Span {
                        plane: y * width + column,
                        phase,
                        count,
                    });
                }
            }
        }
        spans
    }

    fn scratch(&self) -> Scratch {
        let phases = self.stride * self.stride * self.phase_len();
        Scratch {
            phases: vec![0.0; phases],
            rows: vec![0.0; self.phase_len() + 2 * self.margin()],
            masked: vec![0.0; self.output_area()],
            gradients: vec![0.0; phases],
        }
    }

    fn tap_inputs<'a, const T: usize>(&self, phases: &'a [f32]) -> [&'a [f32]; T] {
        std::array::from_fn(|tap| {
            let (phase, offset) = self.tap(tap);
            &phases[phase * self.phase_len() + offset..]
        })
    }

    /// The phase a tap reads and how far it is from the phase's start for the first output.
    fn tap(&self, tap: usize) -> (usize, usize) {
        let (row, column) = (tap / self.kernel, tap % self.kernel);
        let phase = row % self.stride * self.stride + column % self.stride;
        (
            phase,
            row / self.stride * self.phase_width() + column / self.stride,
        )
    }

    fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// How many rows or columns of a phase a window extends beyond its first.
    fn reach(&self) -> usize {
        (self.kernel - 1) / self.stride
    }

    fn phase_width(&self) -> usize {
        self.output[1] + self.reach()
    }

    /// Values in a phase, with room for what a rounded-up output reads.
    fn phase_len(&self) -> usize {
        (self.flat() + self.margin()).next_multiple_of(LANES)
    }

    /// Length of the output with rows as wide as a phase's, in whole vectors.
    fn flat(&self) -> usize {
        (self.output[0] * self.phase_width()).next_multiple_of(LANES)
    }

    /// The largest distance of a tap from the phase's start.
    fn margin(&self) -> usize {
        self.reach() * (self.phase_width() + 1)
    }

    fn input_area(&self) -> usize {
        self.input[0] * self.input[1]
    }

    fn output_area(&self) -> usize {
        self.output[0] * self.output[1]
    }
}

/// Copies `from` to every `stride`-th place, 1 or 2, of `to`.
fn copy_to_every(stride: usize, from: &[f32], to: &mut [f32]) {
    if stride == 1 {
        return to[..from.len()].copy_from_slice(from);
    }
    let (pairs, last) = to.as_chunks_mut::<2>();
    let firsts = pairs
        .iter_mut()
        .map(|pair| &mut pair[0])
        .chain(last.first_mut());
    firsts.zip(from).for_each(|(to, from)| *to = *from);
}
