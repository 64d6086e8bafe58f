//! Weights rounded together, so that their errors make up for each other.
//!
//! The nearest level of every single weight is not the best choice for their sum (Nagel et al.,
//! "Up or Down? Adaptive Rounding", ICML 2020). With `H` the second moments of a convolution's
//! inputs, the output error of weights `w` rounded to `ŵ` is `(w − ŵ)ᵀ H (w − ŵ)`. With `H = L Lᵀ`
//! the levels are chosen one after the other, from the last to the first, each making up for the
//! errors of those before it: Babai's nearest plane, which is what GPTQ computes (Frantar et al.,
//! ICLR 2023) without an inverse.

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use super::affine::{QuantizedConv, weight_level};
use crate::graph::Conv;

/// Output positions that the moments are taken from, at most.
const POSITIONS: usize = 4096;
/// Added to the diagonal of the moments, as a share of its mean: inputs that never vary decide
/// nothing.
const DAMPING: f64 = 0.01;

/// The weight levels of `conv` (OIHW) for inputs `x` `[N, C, H, W]` and the scales of `integers`.
/// With `centred` only the inputs' variation counts, since a bias takes up their mean.
pub fn round_together(
    conv: &Conv,
    integers: &QuantizedConv,
    x: Tensor<4>,
    centred: bool,
) -> Vec<i8> {
    let patches = Patches::new(conv, x);
    let per_group = conv.shape[0] / conv.groups;
    let rows = per_group * conv.fan_in();
    let groups = conv.weight.par_chunks_exact(rows).enumerate();
    let levels = groups.flat_map_iter(|(group, weights)| {
        let factor = Factor::of(patches.moments(group, centred), conv.fan_in());
        let scales = &integers.scales[group * per_group..][..per_group];
        let rows: Vec<&[f32]> = weights.chunks_exact(conv.fan_in()).collect();
        let rows = rows.par_iter().zip(scales);
        let levels: Vec<Vec<i8>> = rows.map(|(row, &scale)| factor.round(row, scale)).collect();
        levels.concat()
    });
    levels.collect()
}

/// What a convolution reads at some output positions.
struct Patches<'a> {
    conv: &'a Conv,
    shape: [usize; 4],
    values: Vec<f32>,
}

impl<'a> Patches<'a> {
    fn new(conv: &'a Conv, x: Tensor<4>) -> Self {
        Self {
            conv,
            shape: x.dims(),
            values: x.into_data().iter::<f32>().collect(),
        }
    }

    /// `[d, d]` for the d weights of an output channel of a group.
    fn moments(&self, group: usize, centred: bool) -> Vec<f64> {
        let patches = self.rows(group);
        let width = self.conv.fan_in();
        let shape = [patches.len() / width, width];
        let rows: Tensor<2> = Tensor::from_data(TensorData::new(patches, shape), &Device::flex());
        let rows = match centred {
            true => rows.clone() - rows.mean_dim(0),
            false => rows,
        };
        let moments = rows.clone().transpose().matmul(rows);
        moments.into_data().iter::<f64>().collect()
    }

    /// One row for each of some evenly spaced positions.
    fn rows(&self, group: usize) -> Vec<f32> {
        let [images, _, height, width] = self.shape;
        let [_, rows, columns] = self.conv.output_shape([0, height, width]);
        let positions = images * rows * columns;
        let count = positions.min(POSITIONS);
        let mut values = Vec::with_capacity(count * self.conv.fan_in());
        for position in (0..count).map(|index| index * positions / count) {
            let (image, place) = (position / (rows * columns), position % (rows * columns));
            self.window(
                &mut values,
                group,
                image,
                [place / columns, place % columns],
            );
        }
        values
    }

    /// Appends what the weights of a group meet at one output position.
    fn window(&self, values: &mut Vec<f32>, group: usize, image: usize, [row, column]: [usize; 2]) {
        let [_, channels, height, width] = self.shape;
        let Conv {
            stride, padding, ..
        } = self.conv;
        let [_, depth, kernel_height, kernel_width] = self.conv.shape;
        for channel in group * depth..(group + 1) * depth {
            let plane = &self.values[(image * channels + channel) * height * width..];
            for ky in 0..kernel_height {
                let y = (row * stride[0] + ky).wrapping_sub(padding[0]);
                for kx in 0..kernel_width {
                    let x = (column * stride[1] + kx).wrapping_sub(padding[1]);
                    let inside = y < height && x < width;
                    values.push(if inside { plane[y * width + x] } else { 0.0 });
                }
            }
        }
    }
}

/// The lower triangle `L` of `H = L Lᵀ`.
struct Factor {
    size: usize,
    rows: Vec<f32>,
}

impl Factor {
    /// Decomposes symmetric `moments` `[size, size]`, damped.
    fn of(mut moments: Vec<f64>, size: usize) -> Self {
        let trace: f64 = moments.iter().step_by(size + 1).sum();
        let damping = (DAMPING * trace / size as f64).max(f64::MIN_POSITIVE);
        moments
            .iter_mut()
            .step_by(size + 1)
            .for_each(|d| *d += damping);
        for column in 0..size {
            let (above, below) = moments.split_at_mut((column + 1) * size);
            let pivot = &mut above[column * size..];
            let diagonal = (pivot[column] - dot(&pivot[..column], &pivot[..column]))
                .max(damping)
                .sqrt();
            pivot[column] = diagonal;
            let pivot = &pivot[..column];
            below
                .par_chunks_exact_mut(size)
                .with_min_len(64)
                .for_each(|row| {
                    row[column] = (row[column] - dot(&row[..column], pivot)) / diagonal;
                });
        }
        Self {
            size,
            rows: moments.iter().map(|&value| value as f32).collect(),
        }
    }

    /// The levels of one output channel.
    fn round(&self, weights: &[f32], scale: f32) -> Vec<i8> {
        let mut levels = vec![0; self.size];
        let mut owed = vec![0.0_f32; self.size];
        for place in (0..self.size).rev() {
            let row = &self.rows[place * self.size..][..=place];
            let wanted = weights[place] + owed[place] / row[place];
            levels[place] = weight_level(wanted / scale);
            let error = weights[place] - f32::from(levels[place]) * scale;
            let before = owed.iter_mut().zip(&row[..place]);
            before.for_each(|(owed, factor)| *owed += factor * error);
        }
        levels
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        sums.iter_mut()
            .zip(a.iter().zip(b))
            .for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 6;

    /// `(w − ŵ)ᵀ H (w − ŵ)`, the sum of squares of the errors over the rows.
    fn energy(rows: &[Vec<f64>], weights: &[f32], levels: &[i8], scale: f32) -> f64 {
        let errors: Vec<f64> = weights
            .iter()
            .zip(levels)
            .map(|(w, &l)| f64::from(w - f32::from(l) * scale))
            .collect();
        let sum = |row: &Vec<f64>| {
            row.iter()
                .zip(&errors)
                .map(|(x, e)| x * e)
                .sum::<f64>()
                .powi(2)
        };
        rows.iter().map(sum).sum()
    }

    fn moments(rows: &[Vec<f64>]) -> Vec<f64> {
        let entry = |i: usize, j: usize| rows.iter().map(|row| row[i] * row[j]).sum();
        (0..SIZE * SIZE)
            .map(|at| entry(at / SIZE, at % SIZE))
            .collect()
    }

    proptest! {
        /// Inputs that share most of what they do: together the errors are far smaller.
        #[test]
        fn correlated_inputs_have_their_errors_cancelled(
            weights in prop::collection::vec(-1.0_f32..1.0, SIZE * 20),
            inputs in prop::collection::vec(-1.0_f64..1.0, SIZE * 50),
        ) {
            let rows: Vec<Vec<f64>> = inputs
                .chunks(SIZE)
                .map(|row| row.iter().map(|x| 5.0 * row[0] + x).collect())
                .collect();
            let factor = Factor::of(moments(&rows), SIZE);
            let (mut together, mut alone) = (0.0, 0.0);
            for weights in weights.chunks(SIZE) {
                let nearest: Vec<i8> = weights.iter().map(|w| weight_level(w / 0.1)).collect();
                together += energy(&rows, weights, &factor.round(weights, 0.1), 0.1);
                alone += energy(&rows, weights, &nearest, 0.1);
            }
            prop_assert!(together < alone, "{together} {alone}");
        }

        #[test]
        fn independent_inputs_leave_the_nearest_levels(weights in prop::collection::vec(-3.0_f32..3.0, SIZE)) {
            let identity = (0..SIZE * SIZE).map(|at| f64::from(u8::from(at % (SIZE + 1) == 0)));
            let nearest: Vec<i8> = weights.iter().map(|w| weight_level(w / 0.02)).collect();
            prop_assert_eq!(Factor::of(identity.collect(), SIZE).round(&weights, 0.02), nearest);
        }
    }
}
