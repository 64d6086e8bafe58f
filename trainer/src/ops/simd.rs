//! Inner loops, compiled once per instruction set and picked at run time.
//!
//! The loops are plain Rust. Each is a struct whose `call` is always inlined, so that `pulp` can
//! compile it for AVX-512, AVX2 or the baseline and choose by what the processor has.

use pulp::{Arch, NullaryFnOnce};

use crate::graph::Activation;

/// Runs a loop with the best instructions this processor has.
pub(super) fn run<F: NullaryFnOnce>(kernel: F) -> F::Output {
    Arch::new().dispatch(kernel)
}

/// The interval an activation clamps to; values outside it pass no gradient.
pub(super) fn bounds(activation: Activation) -> [f32; 2] {
    match activation {
        Activation::None => [f32::NEG_INFINITY, f32::INFINITY],
        Activation::Relu => [0.0, f32::INFINITY],
        Activation::Relu6 => [0.0, 6.0],
    }
}

/// Clamps, keeping NaN so that a diverged training shows.
#[inline(always)]
pub(super) fn clamp(x: f32, [low, high]: [f32; 2]) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// The gradient before a clamp, given the output after it.
#[inline(always)]
fn inside(gradient: f32, output: f32, [low, high]: [f32; 2]) -> f32 {
    if output <= low || output >= high {
        0.0
    } else {
        gradient
    }
}

/// `x = clamp(x + shift)` in place.
pub(super) struct Shift<'a> {
    pub x: &'a mut [f32],
    pub shift: f32,
    pub bounds: [f32; 2],
}

impl NullaryFnOnce for Shift<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for x in self.x {
            *x = clamp(*x + self.shift, self.bounds);
        }
    }
}

/// Copies a gradient where the output lies strictly inside the bounds, zero elsewhere; returns its
/// sum.
pub(super) struct Mask<'a> {
    pub gradient: &'a [f32],
    pub output: &'a [f32],
    pub bounds: [f32; 2],
    pub masked: &'a mut [f32],
}

impl NullaryFnOnce for Mask<'_> {
    type Output = f32;

    #[inline(always)]
    fn call(self) -> f32 {
        let mut sums = [0.0; LANES];
        let (gradients, last_gradient) = self.gradient.as_chunks::<LANES>();
        let (outputs, last_output) = self.output.as_chunks::<LANES>();
        let (masked, last_masked) = self.masked.as_chunks_mut::<LANES>();
        for ((g, y), m) in gradients.iter().zip(outputs).zip(masked) {
            for lane in 0..LANES {
                m[lane] = inside(g[lane], y[lane], self.bounds);
                sums[lane] += m[lane];
            }
        }
        let mut sum: f32 = sums.iter().sum();
        for ((&g, &y), m) in last_gradient.iter().zip(last_output).zip(last_masked) {
            *m = inside(g, y, self.bounds);
            sum += *m;
        }
        sum
    }
}

/// Independent partial sums of a reduction: one vector register or more.
pub(super) const LANES: usize = 16;

/// `output[i] = clamp(shift + Σ weights[t] · inputs[t][i])`. Inputs are at least as long as the
/// output.
pub(super) struct Taps<'a, const T: usize> {
    pub inputs: [&'a [f32]; T],
    pub weights: [f32; T],
    pub shift: f32,
    pub bounds: [f32; 2],
    pub output: &'a mut [f32],
}

impl<const T: usize> NullaryFnOnce for Taps<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let whole = self.output.len() - self.output.len() % LANES;
        let (vectors, rest) = self.output.as_chunks_mut::<LANES>();
        let inputs = self.inputs.map(|input| &input[..whole + rest.len()]);
        for (index, output) in vectors.iter_mut().enumerate() {
            let mut sums = [self.shift; LANES];
            for (input, weight) in inputs.iter().zip(self.weights) {
                let x = &input[index * LANES..][..LANES];
                for lane in 0..LANES {
                    sums[lane] += weight * x[lane];
                }
            }
            for lane in 0..LANES {
                output[lane] = clamp(sums[lane], self.bounds);
            }
        }
        for (index, output) in (whole..).zip(rest) {
            let products = inputs
                .iter()
                .zip(self.weights)
                .map(|(x, weight)| weight * x[index]);
            *output = clamp(self.shift + products.sum::<f32>(), self.bounds);
        }
    }
}

/// `Σ_i gradient[i] · inputs[t][i]` for every `t`. The gradient is a whole number of [`LANES`]
/// long, inputs at least as long.
pub(super) struct Dots<'a, const T: usize> {
    pub gradient: &'a [f32],
    pub inputs: [&'a [f32]; T],
}

impl<const T: usize> NullaryFnOnce for Dots<'_, T> {
    type Output = [f32; T];

    #[inline(always)]
    fn call(self) -> [f32; T] {
        let n = self.gradient.len();
        debug_assert_eq!(n % LANES, 0);
        let inputs = self.inputs.map(|input| &input[..n]);
        let mut sums = [[0.0; LANES]; T];
        for start in (0..n).step_by(LANES) {
            let g = &self.gradient[start..start + LANES];
            for t in 0..T {
                let x = &inputs[t][start..start + LANES];
                for lane in 0..LANES {
                    sums[t][lane] += g[lane] * x[lane];
                }
            }
        }
        sums.map(|lanes| lanes.iter().sum())
    }
}

/// `Σ (x − center)` and `Σ (x − center)²`.
pub(super) struct Moments<'a> {
    pub x: &'a [f32],
    pub center: f32,
}

impl NullaryFnOnce for Moments<'_> {
    type Output = [f32; 2];

    #[inline(always)]
    fn call(self) -> [f32; 2] {
        let mut sums = [[0.0; LANES]; 2];
        let (vectors, rest) = self.x.as_chunks::<LANES>();
        for x in vectors {
            for lane in 0..LANES {
                let d = x[lane] - self.center;
                sums[0][lane] += d;
                sums[1][lane] += d * d;
            }
        }
        let mut totals = sums.map(|lanes| lanes.iter().sum());
        for x in rest {
            let d = x - self.center;
            totals[0] += d;
            totals[1] += d * d;
        }
        totals
    }
}

/// `Σ m` and `Σ m · (x − center)`, where `m` is the gradient inside the bounds.
pub(super) struct MaskedMoments<'a> {
    pub gradient: &'a [f32],
    pub output: &'a [f32],
    pub x: &'a [f32],
    pub center: f32,
    pub bounds: [f32; 2],
}

impl NullaryFnOnce for MaskedMoments<'_> {
    type Output = [f32; 2];

    #[inline(always)]
    fn call(self) -> [f32; 2] {
        let mut sums = [[0.0; LANES]; 2];
        let (gradients, last_gradient) = self.gradient.as_chunks::<LANES>();
        let (outputs, last_output) = self.output.as_chunks::<LANES>();
        let (vectors, rest) = self.x.as_chunks::<LANES>();
        for ((g, y), x) in gradients.iter().zip(outputs).zip(vectors) {
            for lane in 0..LANES {
                let m = inside(g[lane], y[lane], self.bounds);
                sums[0][lane] += m;
                sums[1][lane] += m * (x[lane] - self.center);
            }
        }
        let mut totals = sums.map(|lanes| lanes.iter().sum());
        for ((&g, &y), &x) in last_gradient.iter().zip(last_output).zip(rest) {
            let m = inside(g, y, self.bounds);
            totals[0] += m;
            totals[1] += m * (x - self.center);
        }
        totals
    }
}

/// `result = scale · m + slope · (x − center) + shift`, where `m` is the gradient inside the
/// bounds.
pub(super) struct MaskedAffine<'a> {
    pub gradient: &'a [f32],
    pub output: &'a [f32],
    pub x: &'a [f32],
    pub bounds: [f32; 2],
    pub center: f32,
    pub scale: f32,
    pub slope: f32,
    pub shift: f32,
    pub result: &'a mut [f32],
}

impl NullaryFnOnce for MaskedAffine<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let values = self.gradient.iter().zip(self.output).zip(self.x);
        for (result, ((&g, &y), &x)) in self.result.iter_mut().zip(values) {
            let m = inside(g, y, self.bounds);
            *result = self.scale * m + self.slope * (x - self.center) + self.shift;
        }
    }
}

/// `result = clamp(x · scale + shift)`.
pub(super) struct Scaled<'a> {
    pub x: &'a [f32],
    pub scale: f32,
    pub shift: f32,
    pub bounds: [f32; 2],
    pub result: &'a mut [f32],
}

impl NullaryFnOnce for Scaled<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (result, x) in self.result.iter_mut().zip(self.x) {
            *result = clamp(x * self.scale + self.shift, self.bounds);
        }
    }
}

/// Fills `to` with every `stride`-th value of `from`.
pub(super) fn copy_every(stride: usize, from: &[f32], to: &mut [f32]) {
    match stride {
        1 => to.copy_from_slice(&from[..to.len()]),
        2 => {
            let (pairs, last) = from.as_chunks::<2>();
            to.iter_mut()
                .zip(pairs)
                .for_each(|(to, pair)| *to = pair[0]);
            if let (Some(to), Some(from)) = (to.get_mut(pairs.len()), last.first()) {
                *to = *from;
            }
        }
        _ => to
            .iter_mut()
            .zip(from.iter().step_by(stride))
            .for_each(|(to, from)| *to = *from),
    }
}
