//! Operations on floats at work.

use std::ops::Range;

use super::{Runner, VALUE_COST};
use crate::encode::int8::kernels::{Attention, FloatWork, Kernels, Product, Strided};
use crate::encode::int8::memory::{Around, reals, reals_mut};
use crate::encode::int8::plan::{FloatOp, Packed, Unary};
use crate::encode::int8::program::{FloatReady, Operand, Place, Program};
use crate::encode::int8::shares::Shares;
use crate::encode::int8::view::Axis;

impl Runner {
    pub(super) fn float(&mut self, program: &Program, float: &FloatReady, threads: usize) {
        let (to, around) = Around::split(self.arena.as_mut_slice(), float.to.clone());
        let operand = |index: usize| {
            let Operand { place, start, axes } = &float.from[index];
            let values = match place {
                Place::Arena(place) => reals(around.get(place.clone())),
                Place::Constant(index) => &program.constants[*index],
            };
            Strided {
                values: &values[*start..],
                axes,
            }
        };
        let kernels = program.kernels;
        let rows_of = |columns| Rows {
            kernels,
            threads,
            columns,
        };
        let from = operand(0);
        match &float.op {
            FloatOp::Copy(start, places) => {
                let pitch = pitch(*start, places, reals(to).len());
                // Where rows lie apart from one another, threads can share them.
                let threads = if pitch.is_some() { threads } else { 1 };
                let shares = Shares::new(threads, VALUE_COST * last(from));
                shares.run(0..from.count(), to, &|rows, to| {
                    kernels.float(FloatWork::Copy {
                        from,
                        to: reals_mut(to),
                        start: *start,
                        places,
                        before: pitch.map_or(0, |pitch| rows.start * pitch),
                        rows,
                    });
                });
            }
            FloatOp::Binary(op) => {
                let from = [from, operand(1)];
                let shares = Shares::new(threads, VALUE_COST * last(from[0]));
                shares.run(0..from[0].count(), to, &|rows, to| {
                    kernels.float(FloatWork::Binary {
                        op: *op,
                        from,
                        first: rows.start,
                        to: reals_mut(to),
                    });
                });
            }
            FloatOp::Unary(op) => rows_of(last(from)).unary(*op, from.values, to),
            FloatOp::Mean(columns) => kernels.float(FloatWork::Mean {
                from: &from.values[..reals(to).len() * columns],
                columns: *columns,
                to: reals_mut(to),
            }),
            FloatOp::Softmax(columns) => rows_of(*columns).softmax(from.values, to),
            FloatOp::Norm(epsilon) => {
                let [gamma, beta] = [1, 2].map(|index| &operand(index).values[..last(from)]);
                rows_of(last(from)).norm(from.values, [gamma, beta], *epsilon, to);
            }
            FloatOp::Product(packed, factor) => {
                kernels.float(FloatWork::Product(Product {
                    from: from.values,
                    steps: steps(from),
                    rows: from.axes[1].len,
                    packed: *packed,
                    matrices: operand(1).values,
                    factor: *factor,
                    to: reals_mut(to),
                }));
            }
            FloatOp::Attention(keys, values, factor) => {
                let heads = Heads {
                    queries: from,
                    keys: (*keys, operand(1).values),
                    values: (*values, operand(2).values),
                    factor: *factor,
                };
                heads.run(kernels, to, threads);
            }
        }
    }
}

/// From a row of these places to the next, where `values` are nothing but such
/// rows, one after the other.
fn pitch(start: usize, places: &[Axis], values: usize) -> Option<usize> {
    let (_, outer) = places.split_last()?;
    let mut several = outer.iter().rev().filter(|axis| axis.len > 1);
    let pitch = several.next()?;
    let mut whole = pitch.len * pitch.step;
    for axis in several {
        (axis.step == whole).then_some(())?;
        whole *= axis.len;
    }
    (start == 0 && whole == values).then_some(pitch.step)
}

/// Length of the last dimension.
fn last(of: Strided<'_>) -> usize {
    of.axes.last().map_or(1, |axis| axis.len)
}

/// From a row to the next, and from a matrix to the next, of `[matrices, rows, depth]`.
fn steps(of: Strided<'_>) -> [usize; 2] {
    [of.axes[1].step, of.axes[0].step]
}

/// Rows that are computed apart, shared between threads.
struct Rows {
    kernels: &'static dyn Kernels,
    threads: usize,
    columns: usize,
}

impl Rows {
    fn unary(&self, op: Unary, from: &[f32], to: &mut [u8]) {
        self.each(from, to, &|from, to| {
            self.kernels.float(FloatWork::Unary { op, from, to });
        });
    }

    fn softmax(&self, from: &[f32], to: &mut [u8]) {
        let columns = self.columns;
        self.each(from, to, &|from, to| {
            self.kernels.float(FloatWork::Softmax { from, columns, to });
        });
    }

    fn norm(&self, from: &[f32], [gamma, beta]: [&[f32]; 2], epsilon: f32, to: &mut [u8]) {
        self.each(from, to, &|from, to| {
            self.kernels.float(FloatWork::Norm {
                from,
                gamma,
                beta,
                epsilon,
                to,
            });
        });
    }

    fn each(&self, from: &[f32], to: &mut [u8], work: &(impl Fn(&[f32], &mut [f32]) + Sync)) {
        let rows = 0..to.len() / (self.columns * size_of::<f32>());
        let shares = Shares::new(self.threads, VALUE_COST * self.columns);
        shares.run(rows, to, &|rows: Range<usize>, to: &mut [u8]| {
            let from = &from[rows.start * self.columns..rows.end * self.columns];
            work(from, reals_mut(to));
        });
    }
}

/// Attention, whose rows are shared between threads.
struct Heads<'a> {
    queries: Strided<'a>,
    keys: (Packed, &'a [f32]),
    values: (Packed, &'a [f32]),
    factor: f32,
}

impl Heads<'_> {
    fn run(&self, kernels: &'static dyn Kernels, to: &mut [u8], threads: usize) {
        let (keys, values) = (self.keys.0, self.values.0);
        let work = keys.count * keys.columns * (keys.depth + values.columns);
        let rows = self.queries.axes[1].len;
        Shares::new(threads, work).run(0..rows, to, &|rows, to| {
            kernels.float(FloatWork::Attention(Attention {
                queries: self.queries.values,
                steps: steps(self.queries),
                rows,
                key_shape: keys,
                keys: self.keys.1,
                value_shape: values,
                values: self.values.1,
                factor: self.factor,
                to: reals_mut(to),
            }));
        });
    }
}
