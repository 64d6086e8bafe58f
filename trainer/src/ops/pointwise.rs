//! 1×1 convolution, bias and activation as matrix products.
//!
//! Per image the product is `[D, C] · [C, H·W]`. Small feature maps are gathered several images
//! at a time, so that the products stay wide enough to be fast.

use rayon::prelude::*;

use super::matmul::{Matrix, multiply};
use super::simd::{self, Affine, Mask};

/// Fewest columns worth a matrix product of its own.
const COLUMNS: usize = 128;

/// Parts the batch is divided into for the weight gradient, whatever the number of cores: the
/// order of additions is the same everywhere.
const PARTS: usize = 16;

/// Sizes of a pointwise convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pointwise {
    /// Images in the batch.
    pub images: usize,
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Height × width.
    pub area: usize,
    /// What the activation clamps to.
    pub bounds: [f32; 2],
}

/// Gradients of a convolution.
#[derive(Debug, Clone)]
pub(super) struct Gradients {
    /// Like the input.
    pub input: Vec<f32>,
    /// Like the kernel.
    pub weight: Vec<f32>,
    /// One value per output channel.
    pub bias: Vec<f32>,
}

/// What some of the images add to the gradients of the parameters.
struct Sums {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Pointwise {
    /// The output `[N, D, H, W]` for `x` `[N, C, H, W]`, `weight` `[D, C]` and `bias` `[D]`.
    pub(super) fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let weight = Matrix::new(weight, self.outputs, self.inputs);
        let group = self.group();
        let mut output = vec![0.0; self.images * self.outputs * self.area];
        output
            .par_chunks_mut(group * self.outputs * self.area)
            .zip(x.par_chunks(group * self.inputs * self.area))
            .for_each(|(y, x)| self.forward_group(x, weight, bias, y));
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
        let weight = Matrix::new(weight, self.outputs, self.inputs);
        let part = self.group() * self.images.div_ceil(self.group() * PARTS);
        let [inputs, outputs] = [self.inputs, self.outputs].map(|c| part * c * self.area);
        let mut input = vec![0.0; x.len()];
        let parts: Vec<Sums> = input
            .par_chunks_mut(inputs)
            .zip(x.par_chunks(inputs))
            .zip(y.par_chunks(outputs))
            .zip(gradient.par_chunks(outputs))
            .map(|(((dx, x), y), gradient)| self.backward_part(x, weight, y, gradient, dx))
            .collect();
        let Sums { weight, bias } = parts
            .into_iter()
            .reduce(add)
            .unwrap_or_else(|| self.zeros());
        Gradients {
            input,
            weight,
            bias,
        }
    }

    /// Images that are gathered for one product.
    fn group(&self) -> usize {
        COLUMNS.div_ceil(self.area)
    }

    fn zeros(&self) -> Sums {
        Sums {
            weight: vec![0.0; self.outputs * self.inputs],
            bias: vec![0.0; self.outputs],
        }
    }

    fn forward_group(&self, x: &[f32], weight: Matrix<'_>, bias: &[f32], y: &mut [f32]) {
        let columns = x.len() / self.inputs;
        if columns == self.area {
            multiply(weight, Matrix::new(x, self.inputs, columns), y, false);
            self.finish(y, columns, bias);
        } else {
            let gathered = gather(x, self.inputs, self.area);
            let mut product = vec![0.0; self.outputs * columns];
            multiply(
                weight,
                Matrix::new(&gathered, self.inputs, columns),
                &mut product,
                false,
            );
            self.finish(&mut product, columns, bias);
            scatter(&product, self.outputs, self.area, y);
        }
    }

    fn finish(&self, y: &mut [f32], columns: usize, bias: &[f32]) {
        for (x, &shift) in y.chunks_exact_mut(columns).zip(bias) {
            simd::run(Affine {
                x,
                scale: 1.0,
                shift,
                bounds: self.bounds,
            });
        }
    }

    fn backward_part(
        &self,
        x: &[f32],
        weight: Matrix<'_>,
        y: &[f32],
        gradient: &[f32],
        dx: &mut [f32],
    ) -> Sums {
        let mut sums = self.zeros();
        let [inputs, outputs] = [self.inputs, self.outputs].map(|c| self.group() * c * self.area);
        let values = x.chunks(inputs).zip(y.chunks(outputs));
        let gradients = gradient.chunks(outputs).zip(dx.chunks_mut(inputs));
        for ((x, y), (gradient, dx)) in values.zip(gradients) {
            let mut masked = vec![0.0; gradient.len()];
            self.mask(y, gradient, &mut masked, &mut sums.bias);
            self.backward_group(x, weight, &masked, dx, &mut sums.weight);
        }
        sums
    }

    fn backward_group(
        &self,
        x: &[f32],
        weight: Matrix<'_>,
        gradient: &[f32],
        dx: &mut [f32],
        sum: &mut [f32],
    ) {
        let columns = x.len() / self.inputs;
        let products = |x: &[f32], gradient: &[f32], dx: &mut [f32], sum: &mut [f32]| {
            let gradient = Matrix::new(gradient, self.outputs, columns);
            let x = Matrix::new(x, self.inputs, columns);
            multiply(gradient, x.transpose(), sum, true);
            multiply(weight.transpose(), gradient, dx, false);
        };
        if columns == self.area {
            products(x, gradient, dx, sum);
        } else {
            let mut gathered = vec![0.0; dx.len()];
            let x = gather(x, self.inputs, self.area);
            products(
                &x,
                &gather(gradient, self.outputs, self.area),
                &mut gathered,
                sum,
            );
            scatter(&gathered, self.inputs, self.area, dx);
        }
    }

    /// The gradient before the activation; adds its sums to the bias gradient.
    fn mask(&self, y: &[f32], gradient: &[f32], masked: &mut [f32], bias: &mut [f32]) {
        let planes = y
            .chunks_exact(self.area)
            .zip(gradient.chunks_exact(self.area));
        let planes = planes.zip(masked.chunks_exact_mut(self.area)).enumerate();
        for (plane, ((output, gradient), masked)) in planes {
            let sum = simd::run(Mask {
                gradient,
                output,
                bounds: self.bounds,
                masked,
            });
            bias[plane % self.outputs] += sum;
        }
    }
}

/// `[N, C, area]` → `[C, N·area]`.
fn gather(x: &[f32], channels: usize, area: usize) -> Vec<f32> {
    let columns = x.len() / channels;
    let mut gathered = vec![0.0; x.len()];
    for (plane, values) in x.chunks_exact(area).enumerate() {
        let (image, channel) = (plane / channels, plane % channels);
        gathered[channel * columns + image * area..][..area].copy_from_slice(values);
    }
    gathered
}

/// `[C, N·area]` → `[N, C, area]`.
fn scatter(x: &[f32], channels: usize, area: usize, output: &mut [f32]) {
    let columns = x.len() / channels;
    for (plane, values) in output.chunks_exact_mut(area).enumerate() {
        let (image, channel) = (plane / channels, plane % channels);
        values.copy_from_slice(&x[channel * columns + image * area..][..area]);
    }
}

/// Adds the second sums to the first.
fn add(mut sum: Sums, part: Sums) -> Sums {
    sum.weight
        .iter_mut()
        .zip(&part.weight)
        .for_each(|(s, p)| *s += p);
    sum.bias
        .iter_mut()
        .zip(&part.bias)
        .for_each(|(s, p)| *s += p);
    sum
}
