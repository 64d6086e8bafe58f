//! Operations on floats against their definitions in double precision, and
//! small transformers.

use std::num::NonZero;
use std::sync::Arc;

use proptest::prelude::*;

use super::Noise;
use super::models::{TRANSFORMERS, image};
use crate::encode::int8::kernels::{self, Attention, FloatWork, Kernels, Product, Strided};
use crate::encode::int8::plan::{LANES, Packed};
use crate::encode::int8::program;
use crate::encode::int8::run::Runner;
use crate::encode::int8::view::contiguous;

impl Noise {
    /// From −2 to 2.
    fn floats(&mut self, count: usize) -> Vec<f32> {
        let float = |_| self.below(1 << 16) as f32 / (1 << 14) as f32 - 2.0;
        (0..count).map(float).collect()
    }
}

/// Has all kernels compute `count` floats, which must be those of `expected` to
/// 10⁻⁵ and the same everywhere.
fn check(
    expected: &[f64],
    work: impl for<'a> Fn(&'static dyn Kernels, &'a mut [f32]),
) -> Result<(), TestCaseError> {
    let mut first = None;
    for kernels in kernels::all() {
        let mut got = vec![f32::NAN; expected.len()];
        work(kernels, &mut got);
        for (got, expected) in got.iter().zip(expected) {
            let error = (f64::from(*got) - expected).abs() / expected.abs().max(1.0);
            prop_assert!(
                error < 1e-5,
                "{}: {got}, expected {expected}",
                kernels.name()
            );
        }
        prop_assert_eq!(first.get_or_insert(got.clone()), &got, "{}", kernels.name());
    }
    Ok(())
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

/// Fills rows up to whole vectors, with what must not matter.
fn fill(values: &[f32], shape: Packed) -> Vec<f32> {
    let mut filled = vec![f32::NAN; shape.values()];
    let rows = filled.chunks_exact_mut(shape.step());
    for (to, from) in rows.zip(values.chunks_exact(shape.columns)) {
        to[..shape.columns].copy_from_slice(from);
    }
    filled
}

/// `[rows, depth]` times `[depth, columns]`.
fn product(a: &[f64], b: &[f64], depth: usize, columns: usize) -> Vec<f64> {
    let entry = |row: &[f64], column: usize| -> f64 {
        (0..depth).map(|k| row[k] * b[k * columns + column]).sum()
    };
    let rows = a.chunks_exact(depth);
    rows.flat_map(|row| (0..columns).map(move |column| entry(row, column)))
        .collect()
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f64::MIN, f64::max);
    let exponentials: Vec<f64> = row.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.iter().map(|e| e / sum).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn products_follow_the_definition(
        count in 1_usize..4, rows in 1_usize..15, depth in 1_usize..40, columns in 1_usize..150, seed in any::<u64>(),
    ) {
        let mut noise = Noise(seed);
        let packed = Packed { count, depth, columns };
        let a = noise.floats(count * rows * depth);
        let b = noise.floats(count * depth * columns);
        let matrices = fill(&b, packed);
        let pairs = a.chunks_exact(rows * depth).zip(b.chunks_exact(depth * columns));
        let expected: Vec<f64> = pairs
            .flat_map(|(a, b)| product(&wide(a), &wide(b), depth, columns))
            .map(|x| 0.5 * x)
            .collect();
        check(&expected, |kernels, to| kernels.float(FloatWork::Product(Product {
            from: &a, steps: [depth, rows * depth], rows, packed, matrices: &matrices, factor: 0.5, to,
        })))?;
    }

    #[test]
    fn attention_follows_the_definition(
        heads in 1_usize..4, rows in 1_usize..15, depth in 1_usize..20, keys in 1_usize..90, columns in 1_usize..20,
        seed in any::<u64>(),
    ) {
        let mut noise = Noise(seed);
        let key_shape = Packed { count: heads, depth, columns: keys };
        let value_shape = Packed { count: heads, depth: keys, columns };
        let q = noise.floats(heads * rows * depth);
        let k = noise.floats(heads * depth * keys);
        let v = noise.floats(heads * keys * columns);
        let mut expected = vec![0.0; rows * heads * columns];
        for head in 0..heads {
            let part = |values: &[f32], each: usize| wide(&values[head * each..][..each]);
            let scores = product(&part(&q, rows * depth), &part(&k, depth * keys), depth, keys);
            let scores: Vec<f64> = scores.iter().map(|x| 0.3 * x).collect();
            let shares: Vec<f64> = scores.chunks_exact(keys).flat_map(softmax).collect();
            let mixed = product(&shares, &part(&v, keys * columns), keys, columns);
            for (row, mixed) in mixed.chunks_exact(columns).enumerate() {
                expected[(row * heads + head) * columns..][..columns].copy_from_slice(mixed);
            }
        }
        let (packed_keys, packed_values) = (fill(&k, key_shape), fill(&v, value_shape));
        check(&expected, |kernels, to| kernels.float(FloatWork::Attention(Attention {
            queries: &q, steps: [depth, rows * depth], rows: 0..rows, key_shape, keys: &packed_keys,
            value_shape, values: &packed_values, factor: 0.3, to,
        })))?;
    }

    #[test]
    fn rows_follow_the_definition(columns in 1_usize..5 * LANES, rows in 1_usize..4, seed in any::<u64>()) {
        let mut noise = Noise(seed);
        let x = noise.floats(rows * columns);
        let (gamma, beta) = (noise.floats(columns), noise.floats(columns));
        let softmaxes: Vec<f64> = wide(&x).chunks_exact(columns).flat_map(softmax).collect();
        check(&softmaxes, |kernels, to| kernels.float(FloatWork::Softmax { from: &x, columns, to }))?;
        let mean = |row: &[f64]| row.iter().sum::<f64>() / columns as f64;
        let means: Vec<f64> = wide(&x).chunks_exact(columns).map(mean).collect();
        check(&means, |kernels, to| kernels.float(FloatWork::Mean { from: &x, columns, to }))?;
        let norm = |row: &[f64]| -> Vec<f64> {
            let centred: Vec<f64> = row.iter().map(|x| x - mean(row)).collect();
            let squares: Vec<f64> = centred.iter().map(|x| x * x).collect();
            let deviation = (mean(&squares) + 1e-3).sqrt();
            let factors = gamma.iter().zip(&beta);
            let scaled = centred.iter().zip(factors);
            scaled.map(|(x, (&gamma, &beta))| x / deviation * f64::from(gamma) + f64::from(beta)).collect()
        };
        let norms: Vec<f64> = wide(&x).chunks_exact(columns).flat_map(norm).collect();
        check(&norms, |kernels, to| kernels.float(FloatWork::Norm {
            from: &x, gamma: &gamma, beta: &beta, epsilon: 1e-3, to,
        }))?;
    }
}

#[test]
fn copies_go_where_they_are_told() {
    // [2, 3] turned, into the middle of rows of four.
    let from: Vec<f32> = (0..6).map(|i| i as f32).collect();
    let mut turned = contiguous(&[2, 3]);
    turned.reverse();
    let places = contiguous(&[3, 4]);
    for kernels in kernels::all() {
        let mut to = vec![9.0; 12];
        let from = Strided {
            values: &from,
            axes: &turned,
        };
        kernels.float(FloatWork::Copy {
            rows: 0..from.count(),
            from,
            to: &mut to,
            start: 1,
            places: &places,
            before: 0,
        });
        assert_eq!(
            to,
            [9.0, 0.0, 3.0, 9.0, 9.0, 1.0, 4.0, 9.0, 9.0, 2.0, 5.0, 9.0]
        );
    }
}

#[test]
fn threads_change_nothing() {
    for (name, model, _) in TRANSFORMERS {
        let program = Arc::new(program(model, 16, kernels::all()[0]).unwrap());
        let expected = Runner::new(Arc::clone(&program)).run(&image());
        for threads in 2..5 {
            let runner = Runner::new(Arc::clone(&program));
            let mut runner = runner.with_threads(NonZero::new(threads).unwrap()).unwrap();
            assert_eq!(runner.run(&image()), expected, "{name}, {threads} threads");
        }
    }
}
