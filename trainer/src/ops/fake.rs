//! Rounding to the multiples of a step, with gradients for what is rounded and for the step.
//!
//! `y = s · round(clamp(x / s, low, high))`. Rounding passes the gradient on (straight-through), so
//! that `∂y/∂x` is 1 inside the grid and 0 outside; `∂y/∂s` is `round(x / s) − x / s` inside and the
//! end of the grid outside (Esser et al., "Learned Step Size Quantization", ICLR 2020, eq. 1–3).

use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::{Grid, simd};

/// Values that a thread takes at a time; sums do not depend on the number of threads.
const PART: usize = 1 << 14;

/// Rounds each of `steps.len()` equal rows of `x` to multiples of its step.
pub(super) fn forward(x: &[f32], steps: &[f32], grid: Grid) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let row = row_length(x, steps);
    let rows = y.par_chunks_mut(row).zip(x.par_chunks(row)).zip(steps);
    rows.for_each(|((y, x), &step)| {
        let parts = y.par_chunks_mut(PART).zip(x.par_chunks(PART));
        parts.for_each(|(y, x)| simd::run(Round { x, step, grid, y }));
    });
    y
}

/// The gradients of `x` and of the steps.
pub(super) fn backward(
    x: &[f32],
    steps: &[f32],
    gradient: &[f32],
    grid: Grid,
) -> (Vec<f32>, Vec<f32>) {
    let mut input = vec![0.0; x.len()];
    let row = row_length(x, steps);
    let rows = input
        .par_chunks_mut(row)
        .zip(x.par_chunks(row))
        .zip(gradient.par_chunks(row))
        .zip(steps);
    let sums = rows.map(|(((input, x), gradient), &step)| {
        let parts = input
            .par_chunks_mut(PART)
            .zip(x.par_chunks(PART))
            .zip(gradient.par_chunks(PART));
        let sums: Vec<f32> = parts
            .map(|((input, x), gradient)| {
                simd::run(Gradient {
                    x,
                    gradient,
                    step,
                    grid,
                    input,
                })
            })
            .collect();
        sums.iter().map(|&sum| f64::from(sum)).sum::<f64>() as f32
    });
    let sums = sums.collect();
    (input, sums)
}

fn row_length(x: &[f32], steps: &[f32]) -> usize {
    (x.len() / steps.len().max(1)).max(1)
}

struct Round<'a> {
    x: &'a [f32],
    step: f32,
    grid: Grid,
    y: &'a mut [f32],
}

impl NullaryFnOnce for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let ends = [self.grid.low, self.grid.high];
        for (y, x) in self.y.iter_mut().zip(self.x) {
            *y = simd::clamp(x / self.step, ends).round_ties_even() * self.step;
        }
    }
}

struct Gradient<'a> {
    x: &'a [f32],
    gradient: &'a [f32],
    step: f32,
    grid: Grid,
    input: &'a mut [f32],
}

impl NullaryFnOnce for Gradient<'_> {
    type Output = f32;

    /// Writes the gradient of the values and returns that of the step.
    #[inline(always)]
    fn call(self) -> f32 {
        const LANES: usize = 16;
        let ends = [self.grid.low, self.grid.high];
        let mut sums = [0.0; LANES];
        let parts = self.x.chunks(LANES).zip(self.gradient.chunks(LANES));
        for ((x, gradient), input) in parts.zip(self.input.chunks_mut(LANES)) {
            let lanes = sums.iter_mut().zip(x).zip(gradient).zip(input);
            for (((sum, x), gradient), input) in lanes {
                let level = x / self.step;
                let clamped = simd::clamp(level, ends);
                let inside = level == clamped;
                let slope = clamped.round_ties_even() - if inside { level } else { 0.0 };
                *input = if inside { *gradient } else { 0.0 };
                *sum += gradient * slope;
            }
        }
        sums.iter().sum()
    }
}
