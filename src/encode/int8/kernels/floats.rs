//! What transformers do in floats between their linear layers, in a form that
//! compilers vectorise: every instruction set inlines the same code. Sums are
//! taken in [`LANES`] lanes whatever the registers hold and products are fused
//! with sums everywhere, so that all give the same bytes.

mod functions;
mod product;

pub use product::{Attention, MAX_COLUMNS, MAX_KEYS, Product};

use std::ops::Range;

use super::super::plan::{Binary, LANES, Unary};
use super::super::view::Axis;

/// An operation on floats with its operands.
pub enum FloatWork<'a> {
    /// These rows to places: the first one of all goes to `start`, the others
    /// are found by these dimensions; `to` begins `before` values later.
    Copy {
        from: Strided<'a>,
        rows: Range<usize>,
        to: &'a mut [f32],
        start: usize,
        places: &'a [Axis],
        before: usize,
    },
    /// Value by value, the rows from this one on.
    Binary {
        op: Binary,
        from: [Strided<'a>; 2],
        first: usize,
        to: &'a mut [f32],
    },
    /// Value by value.
    Unary {
        op: Unary,
        from: &'a [f32],
        to: &'a mut [f32],
    },
    /// The mean of each row.
    Mean {
        from: &'a [f32],
        columns: usize,
        to: &'a mut [f32],
    },
    /// See [`FloatOp::Softmax`](super::super::plan::FloatOp::Softmax).
    Softmax {
        from: &'a [f32],
        columns: usize,
        to: &'a mut [f32],
    },
    /// See [`FloatOp::Norm`](super::super::plan::FloatOp::Norm).
    Norm {
        from: &'a [f32],
        gamma: &'a [f32],
        beta: &'a [f32],
        epsilon: f32,
        to: &'a mut [f32],
    },
    /// A product of matrices.
    Product(Product<'a>),
    /// Attention of a few rows.
    Attention(Attention<'a>),
}

/// Floats seen through dimensions.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    /// The floats, from the first one on.
    pub values: &'a [f32],
    /// The dimensions.
    pub axes: &'a [Axis],
}

/// [`LANES`] floats, in registers where there are any.
pub trait Vector: Copy {
    /// All lanes of this value.
    fn splat(value: f32) -> Self;
    /// These values.
    fn load(from: &[f32; LANES]) -> Self;
    /// Its values.
    fn store(self, to: &mut [f32; LANES]);
    /// `self · factor + addend`, rounded once.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// Each lane times `factor`.
    fn times(self, factor: f32) -> Self;
}

impl Vector for [f32; LANES] {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        [value; LANES]
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        *from
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self;
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        std::array::from_fn(|lane| self[lane].mul_add(factor[lane], addend[lane]))
    }

    #[inline(always)]
    fn times(self, factor: f32) -> Self {
        self.map(|x| x * factor)
    }
}

/// Does `work`, products in tiles of `V` times [`LANES`] columns, which is a
/// question of registers: results do not depend on it.
#[inline(always)]
pub fn run<L: Vector, const V: usize>(work: FloatWork<'_>) {
    match work {
        FloatWork::Copy {
            from,
            rows,
            to,
            start,
            places,
            before,
        } => copy(from, rows, to, start, places, before),
        FloatWork::Binary {
            op,
            from,
            first,
            to,
        } => match op {
            Binary::Add => binary(from, first, to, |a, b| a + b),
            Binary::Sub => binary(from, first, to, |a, b| a - b),
            Binary::Mul => binary(from, first, to, |a, b| a * b),
            Binary::Div => binary(from, first, to, |a, b| a / b),
        },
        FloatWork::Unary { op, from, to } => match op {
            Unary::Clamp([low, high]) => unary(from, to, |x| x.max(low).min(high)),
            Unary::Gelu => unary(from, to, functions::gelu),
            Unary::QuickGelu => unary(from, to, |x| x * functions::sigmoid(1.702 * x)),
            Unary::Erf => unary(from, to, functions::erf),
            Unary::Sigmoid => unary(from, to, functions::sigmoid),
            Unary::Sqrt => unary(from, to, f32::sqrt),
        },
        FloatWork::Mean { from, columns, to } => {
            for (row, to) in from.chunks_exact(columns).zip(to) {
                *to = sum(row, |x| x) / columns as f32;
            }
        }
        FloatWork::Softmax { from, columns, to } => {
            to.copy_from_slice(from);
            for row in to.chunks_exact_mut(columns) {
                let scale = 1.0 / exponentials(row, 1.0);
                row.iter_mut().for_each(|x| *x *= scale);
            }
        }
        FloatWork::Norm {
            from,
            gamma,
            beta,
            epsilon,
            to,
        } => {
            let columns = gamma.len();
            let rows = from.chunks_exact(columns).zip(to.chunks_exact_mut(columns));
            for (row, to) in rows {
                norm(row, gamma, beta, epsilon, to);
            }
        }
        FloatWork::Product(work) => work.run::<L, V>(),
        FloatWork::Attention(work) => work.run::<L, V>(),
    }
}

impl<'a> Strided<'a> {
    /// Rows of the last dimension.
    pub fn count(&self) -> usize {
        let (outer, _, _) = self.rows();
        outer.iter().map(|axis| axis.len).product()
    }

    /// The dimensions but the last, and the step of the last.
    #[inline(always)]
    fn rows(&self) -> (&'a [Axis], usize, usize) {
        match self.axes.split_last() {
            Some((last, outer)) => (outer, last.len, last.step),
            None => (&[], 1, 1),
        }
    }
}

/// Where the row of this index begins.
#[inline(always)]
fn offset(outer: &[Axis], mut row: usize) -> usize {
    let mut at = 0;
    for axis in outer.iter().rev() {
        at += row % axis.len * axis.step;
        row /= axis.len;
    }
    at
}

#[inline(always)]
fn copy(
    from: Strided<'_>,
    rows: Range<usize>,
    to: &mut [f32],
    start: usize,
    places: &[Axis],
    before: usize,
) {
    let (outer, columns, step) = from.rows();
    let (outer_places, _, _) = Strided {
        values: &[],
        axes: places,
    }
    .rows();
    for row in rows {
        let to = &mut to[start + offset(outer_places, row) - before..][..columns];
        let from = &from.values[offset(outer, row)..];
        match step {
            0 => to.fill(from[0]),
            1 => to.copy_from_slice(&from[..columns]),
            step => {
                for (to, from) in to.iter_mut().zip(from.iter().step_by(step)) {
                    *to = *from;
                }
            }
        }
    }
}

#[inline(always)]
fn binary([a, b]: [Strided<'_>; 2], first: usize, to: &mut [f32], of: impl Fn(f32, f32) -> f32) {
    let (a_outer, columns, a_step) = a.rows();
    let (b_outer, _, b_step) = b.rows();
    for (row, to) in (first..).zip(to.chunks_exact_mut(columns)) {
        let a = &a.values[offset(a_outer, row)..];
        let b = &b.values[offset(b_outer, row)..];
        match (a_step, b_step) {
            (0, 0) => to.fill(of(a[0], b[0])),
            (0, _) => unary(&b[..columns], to, |b| of(a[0], b)),
            (_, 0) => unary(&a[..columns], to, |a| of(a, b[0])),
            _ => {
                for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
                    *to = of(*a, *b);
                }
            }
        }
    }
}

#[inline(always)]
fn unary(from: &[f32], to: &mut [f32], of: impl Fn(f32) -> f32) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = of(*from);
    }
}

#[inline(always)]
fn norm(row: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32, to: &mut [f32]) {
    let count = row.len() as f32;
    let mean = sum(row, |x| x) / count;
    let variance = sum(row, |x| (x - mean) * (x - mean)) / count;
    let scale = 1.0 / (variance + epsilon).sqrt();
    for (((to, x), gamma), beta) in to.iter_mut().zip(row).zip(gamma).zip(beta) {
        *to = ((x - mean) * scale).mul_add(*gamma, *beta);
    }
}

/// `Σ of(x)`, lane by lane, then over the lanes.
#[inline(always)]
fn sum(row: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [0.0_f32; LANES];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += of(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += of(*x);
    }
    folded(lanes, |a, b| a + b)
}

/// `row[i] = e^(scale · (row[i] − max))`; the sum of the results.
#[inline(always)]
fn exponentials(row: &mut [f32], scale: f32) -> f32 {
    let largest = largest(row);
    for x in row.iter_mut() {
        *x = functions::exp(scale * (*x - largest));
    }
    sum(row, |x| x)
}

#[inline(always)]
fn largest(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [f32::MIN; LANES];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = if *x > *lane { *x } else { *lane };
    }
    folded(lanes, |a, b| if b > a { b } else { a })
}

/// The lanes in pairs, those in pairs, and so on.
#[inline(always)]
fn folded(mut lanes: [f32; LANES], of: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = of(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}
