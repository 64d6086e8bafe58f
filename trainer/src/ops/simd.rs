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
fn clamp(x: f32, [low, high]: [f32; 2]) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// `x = clamp(x · scale + shift)` in place.
pub(super) struct Affine<'a> {
    pub x: &'a mut [f32],
    pub scale: f32,
    pub shift: f32,
    pub bounds: [f32; 2],
}

impl NullaryFnOnce for Affine<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for x in self.x {
            *x = clamp(*x * self.scale + self.shift, self.bounds);
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
        let [low, high] = self.bounds;
        let mut sums = [0.0; LANES];
        let inside = |g: f32, y: f32| if y > low && y < high { g } else { 0.0 };
        let (gradients, last_gradient) = self.gradient.as_chunks::<LANES>();
        let (outputs, last_output) = self.output.as_chunks::<LANES>();
        let (masked, last_masked) = self.masked.as_chunks_mut::<LANES>();
        for ((g, y), m) in gradients.iter().zip(outputs).zip(masked) {
            for lane in 0..LANES {
                m[lane] = inside(g[lane], y[lane]);
                sums[lane] += m[lane];
            }
        }
        let mut sum: f32 = sums.iter().sum();
        for ((&g, &y), m) in last_gradient.iter().zip(last_output).zip(last_masked) {
            *m = inside(g, y);
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
        let n = self.output.len();
        let inputs = self.inputs.map(|input| &input[..n]);
        for i in 0..n {
            let mut sum = self.shift;
            for t in 0..T {
                sum += self.weights[t] * inputs[t][i];
            }
            self.output[i] = clamp(sum, self.bounds);
        }
    }
}

/// `Σ_i gradient[i] · inputs[t][i]` for every `t`. Inputs are at least as long as the gradient.
pub(super) struct Dots<'a, const T: usize> {
    pub gradient: &'a [f32],
    pub inputs: [&'a [f32]; T],
}

impl<const T: usize> NullaryFnOnce for Dots<'_, T> {
    type Output = [f32; T];

    #[inline(always)]
    fn call(self) -> [f32; T] {
        let n = self.gradient.len();
        let inputs = self.inputs.map(|input| &input[..n]);
        let mut sums = [[0.0; LANES]; T];
        let whole = n - n % LANES;
        for start in (0..whole).step_by(LANES) {
            let g = &self.gradient[start..start + LANES];
            for t in 0..T {
                let x = &inputs[t][start..start + LANES];
                for lane in 0..LANES {
                    sums[t][lane] += g[lane] * x[lane];
                }
            }
        }
        let mut totals = sums.map(|lanes| lanes.iter().sum());
        for i in whole..n {
            for t in 0..T {
                totals[t] += self.gradient[i] * inputs[t][i];
            }
        }
        totals
    }
}
