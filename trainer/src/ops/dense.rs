//! Dense convolution, bias and activation as matrix products.
//!
//! Per image the product is `[D, C·k·k] · [C·k·k, H'·W']`: the windows of the input, one per
//! column. For a 1×1 kernel the input is that matrix already. Small feature maps are gathered
//! several images at a time, so that the products stay wide enough to be fast.

use std::borrow::Cow;

use rayon::prelude::*;

use super::matmul::{Matrix, multiply};
use super::simd::{self, Mask, Shift, copy_every};

/// Fewest columns worth a matrix product of its own.
const COLUMNS: usize = 128;

/// Parts the batch is divided into for the weight gradient, whatever the number of cores: the
/// order of additions is the same everywhere.
const PARTS: usize = 16;

/// Sizes of a dense convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dense {
    /// Images in the batch.
    pub images: usize,
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Height and width of the input.
    pub size: [usize; 2],
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Kernel height and width.
    pub kernel: usize,
    /// Vertical and horizontal step.
    pub stride: usize,
    /// Zeros at the top and at the left.
    pub padding: [usize; 2],
    /// What the activation clamps to.
    pub bounds: [f32; 2],
}

/// Gradients of a convolution.
#[derive(Debug, Clone)]
pub(super) struct Gradients {
    /// Like the input; empty where it was not asked for.
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

/// A run of values in a row of one image's windows, and where they are in the image.
struct Span {
    window: usize,
    image: usize,
    count: usize,
}

impl Dense {
    /// The output `[N, D, H', W']` for `x` `[N, C, H, W]`, `weight` `[D, C, k, k]` and `bias`
    /// `[D]`.
    pub(super) fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let weight = Matrix::new(weight, self.outputs, self.depth());
        let group = self.group();
        let mut output = vec![0.0; self.images * self.outputs * self.area()];
        output
            .par_chunks_mut(group * self.outputs * self.area())
            .zip(x.par_chunks(group * self.image_len()))
            .for_each(|(y, x)| self.forward_group(x, weight, bias, y));
        output
    }

    /// The gradients for the gradient of the output, of which `y` is the value.
    pub(super) fn backward(
        &self,
        x: &[f32],
        weight: &[f32],
        y: &[f32],
        gradient: &[f32],
        want_input: bool,
    ) -> Gradients {
        let weight = Matrix::new(weight, self.outputs, self.depth());
        let part = self.group() * self.images.div_ceil(self.group() * PARTS);
        let [inputs, outputs] = [part * self.image_len(), part * self.outputs * self.area()];
        let mut input = vec![0.0; if want_input { x.len() } else { 0 }];
        let mut dx: Vec<&mut [f32]> = input.chunks_mut(inputs).collect();
        dx.resize_with(self.images.div_ceil(part), Default::default);
        let sums: Vec<Sums> = x
            .par_chunks(inputs)
            .zip(y.par_chunks(outputs))
            .zip(gradient.par_chunks(outputs))
            .zip(dx)
            .map(|(((x, y), gradient), dx)| self.backward_part(x, weight, y, gradient, dx))
            .collect();
        let Sums { weight, bias } = sums.into_iter().reduce(add).unwrap_or_else(|| self.zeros());
        Gradients {
            input,
            weight,
            bias,
        }
    }

    fn forward_group(&self, x: &[f32], weight: Matrix<'_>, bias: &[f32], y: &mut [f32]) {
        let windows = self.windows(x);
        let columns = windows.len() / self.depth();
        let windows = Matrix::new(&windows, self.depth(), columns);
        if columns == self.area() {
            multiply(weight, windows, y, false);
            self.finish(y, columns, bias);
        } else {
            let mut product = vec![0.0; y.len()];
            multiply(weight, windows, &mut product, false);
            self.finish(&mut product, columns, bias);
            scatter(&product, self.outputs, self.area(), y);
        }
    }

    fn finish(&self, y: &mut [f32], columns: usize, bias: &[f32]) {
        for (x, &shift) in y.chunks_exact_mut(columns).zip(bias) {
            simd::run(Shift {
                x,
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
        let inputs = self.group() * self.image_len();
        let outputs = self.group() * self.outputs * self.area();
        let mut dx = dx.chunks_mut(inputs);
        let groups = x
            .chunks(inputs)
            .zip(y.chunks(outputs))
            .zip(gradient.chunks(outputs));
        for ((x, y), gradient) in groups {
            let mut masked = vec![0.0; gradient.len()];
            self.mask(y, gradient, &mut masked, &mut sums.bias);
            self.backward_group(x, weight, masked, dx.next(), &mut sums.weight);
        }
        sums
    }

    fn backward_group(
        &self,
        x: &[f32],
        weight: Matrix<'_>,
        mut gradient: Vec<f32>,
        dx: Option<&mut [f32]>,
        sum: &mut [f32],
    ) {
        let windows = self.windows(x);
        let columns = windows.len() / self.depth();
        if columns != self.area() {
            gradient = gather(&gradient, self.outputs, self.area());
        }
        let gradient = Matrix::new(&gradient, self.outputs, columns);
        let windows = Matrix::new(&windows, self.depth(), columns);
        multiply(gradient, windows.transpose(), sum, true);
        match dx {
            None => {}
            Some(dx) if self.is_pointwise() && columns == self.area() => {
                multiply(weight.transpose(), gradient, dx, false);
            }
            Some(dx) => {
                let mut spread = vec![0.0; self.depth() * columns];
                multiply(weight.transpose(), gradient, &mut spread, false);
                self.add_windows(&spread, dx);
            }
        }
    }

    /// The gradient before the activation; adds its sums to the bias gradient.
    fn mask(&self, y: &[f32], gradient: &[f32], masked: &mut [f32], bias: &mut [f32]) {
        let planes = y
            .chunks_exact(self.area())
            .zip(gradient.chunks_exact(self.area()));
        let planes = planes.zip(masked.chunks_exact_mut(self.area())).enumerate();
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

    /// The windows of some images as `[C·k·k, N·H'·W']`.
    fn windows<'a>(&self, x: &'a [f32]) -> Cow<'a, [f32]> {
        if self.is_pointwise() {
            return match x.len() == self.image_len() {
                true => Cow::Borrowed(x),
                false => Cow::Owned(gather(x, self.inputs, self.area())),
            };
        }
        let columns = x.len() / self.image_len() * self.area();
        let mut windows = vec![0.0; self.depth() * columns];
        let spans = self.spans(columns);
        for (index, image) in x.chunks_exact(self.image_len()).enumerate() {
            for span in &spans {
                let to = &mut windows[span.window + index * self.area()..][..span.count];
                copy_every(self.stride, &image[span.image..], to);
            }
        }
        Cow::Owned(windows)
    }

    /// Adds windows to the places of the images they were read from.
    fn add_windows(&self, windows: &[f32], dx: &mut [f32]) {
        let columns = windows.len() / self.depth();
        if self.is_pointwise() {
            return scatter(windows, self.inputs, self.area(), dx);
        }
        let spans = self.spans(columns);
        for (index, image) in dx.chunks_exact_mut(self.image_len()).enumerate() {
            for span in &spans {
                let from = &windows[span.window + index * self.area()..][..span.count];
                let to = image[span.image..].iter_mut().step_by(self.stride);
                to.zip(from).for_each(|(to, from)| *to += *from);
            }
        }
    }

    /// Where the first image's windows, rows of `columns` values, lie in the image.
    fn spans(&self, columns: usize) -> Vec<Span> {
        let ([height, width], [rows, row_len], [top, left]) =
            (self.size, self.output, self.padding);
        let taps = self.kernel * self.kernel;
        let mut spans = Vec::with_capacity(self.depth() * rows);
        for line in 0..self.depth() {
            let (channel, tap) = (line / taps, line % taps);
            let (tap_row, tap_column) = (tap / self.kernel, tap % self.kernel);
            let first = left.saturating_sub(tap_column).div_ceil(self.stride);
            let column = first * self.stride + tap_column - left;
            for row in 0..rows {
                let y = (row * self.stride + tap_row).wrapping_sub(top);
                if y < height && column < width && first < row_len {
                    spans.push(Span {
                        window: line * columns + row * row_len + first,
                        image: (channel * height + y) * width + column,
                        count: (width - column).div_ceil(self.stride).min(row_len - first),
                    });
                }
            }
        }
        spans
    }

    fn zeros(&self) -> Sums {
        Sums {
            weight: vec![0.0; self.outputs * self.depth()],
            bias: vec![0.0; self.outputs],
        }
    }

    fn is_pointwise(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.size == self.output
    }

    /// Images that are gathered for one product.
    fn group(&self) -> usize {
        COLUMNS.div_ceil(self.area())
    }

    /// Values in one window.
    fn depth(&self) -> usize {
        self.inputs * self.kernel * self.kernel
    }

    fn area(&self) -> usize {
        self.output[0] * self.output[1]
    }

    fn image_len(&self) -> usize {
        self.inputs * self.size[0] * self.size[1]
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
