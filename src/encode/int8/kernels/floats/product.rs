//! Products of float matrices in tiles that stay in registers, and attention
//! made of them: a few rows of scores at a time, so that they stay near.

use std::ops::Range;

use super::super::super::plan::{LANES, Packed};
use super::exponentials;

/// Rows of a tile.
const ROWS: usize = 6;
/// The most keys of an attention.
pub const MAX_KEYS: usize = 2048;
/// The most columns of a packed matrix.
pub const MAX_COLUMNS: usize = 1 << 16;

/// Rows times packed matrices.
pub struct Product<'a> {
    /// For each matrix, `rows` times `packed.depth` values.
    pub from: &'a [f32],
    /// From a row to the next, and from the rows of a matrix to those of the next.
    pub steps: [usize; 2],
    /// Rows for each matrix.
    pub rows: usize,
    /// Shape of the matrices.
    pub packed: Packed,
    /// The matrices.
    pub matrices: &'a [f32],
    /// Multiplies the result.
    pub factor: f32,
    /// `[count, rows, columns]`.
    pub to: &'a mut [f32],
}

/// Attention of a few rows to all keys.
pub struct Attention<'a> {
    /// Queries, from the first head's first row on.
    pub queries: &'a [f32],
    /// From a row to the next, and from a head to the next.
    pub steps: [usize; 2],
    /// Rows to compute.
    pub rows: Range<usize>,
    /// Shape of the keys: `[heads, depth, keys]`.
    pub key_shape: Packed,
    /// The keys.
    pub keys: &'a [f32],
    /// Shape of the values: `[heads, keys, columns]`.
    pub value_shape: Packed,
    /// The values.
    pub values: &'a [f32],
    /// Multiplies the scores.
    pub factor: f32,
    /// `[rows, heads, columns]`, only those of `rows`.
    pub to: &'a mut [f32],
}

impl Product<'_> {
    #[inline(always)]
    pub(super) fn run(self) {
        let (packed, each) = (self.packed, self.packed.depth * self.packed.step());
        let factors = [self.factor; ROWS];
        let results = self.to.chunks_exact_mut(self.rows * packed.columns);
        let matrices = self.matrices.chunks_exact(each);
        for (index, (matrix, to)) in matrices.zip(results).enumerate() {
            for first in (0..self.rows).step_by(ROWS) {
                let at = index * self.steps[1] + first * self.steps[0];
                let block = Block {
                    rows: ROWS.min(self.rows - first),
                    from: &self.from[at..],
                    step: self.steps[0],
                    matrix,
                    packed,
                };
                let to = &mut to[first * packed.columns..];
                block.run(&factors, to, packed.columns);
            }
        }
    }
}

impl Attention<'_> {
    #[inline(always)]
    pub(super) fn run(self) {
        let (keys, mixed) = (self.key_shape, self.value_shape);
        let mut room = [0.0; ROWS * MAX_KEYS];
        let scores = &mut room[..ROWS * keys.step()];
        let row_len = mixed.count * mixed.columns;
        for first in self.rows.clone().step_by(ROWS) {
            let rows = ROWS.min(self.rows.end - first);
            let to = &mut self.to[(first - self.rows.start) * row_len..];
            for head in 0..keys.count {
                let at = first * self.steps[0] + head * self.steps[1];
                let block = Block {
                    rows,
                    from: &self.queries[at..],
                    step: self.steps[0],
                    matrix: part(self.keys, keys, head),
                    packed: keys,
                };
                block.run(&[1.0; ROWS], scores, keys.step());
                let mut factors = [0.0; ROWS];
                for (row, factor) in scores.chunks_exact_mut(keys.step()).zip(&mut factors) {
                    *factor = 1.0 / exponentials(&mut row[..keys.columns], self.factor);
                }
                let block = Block {
                    rows,
                    from: scores,
                    step: keys.step(),
                    matrix: part(self.values, mixed, head),
                    packed: mixed,
                };
                block.run(&factors, &mut to[head * mixed.columns..], row_len);
            }
        }
    }
}

/// The matrix of this index.
#[inline(always)]
fn part(matrices: &[f32], shape: Packed, index: usize) -> &[f32] {
    let each = shape.depth * shape.step();
    &matrices[index * each..][..each]
}

/// A few rows times one matrix.
#[derive(Clone, Copy)]
struct Block<'a> {
    /// Rows, at most [`ROWS`].
    rows: usize,
    /// Their values.
    from: &'a [f32],
    /// From a row to the next.
    step: usize,
    matrix: &'a [f32],
    packed: Packed,
}

impl Block<'_> {
    /// Row `r` of the result, times `factors[r]`, goes to `to[r · step..]`.
    #[inline(always)]
    fn run(self, factors: &[f32; ROWS], to: &mut [f32], step: usize) {
        match self.rows {
            1 => self.strips::<1>(factors, to, step),
            2 => self.strips::<2>(factors, to, step),
            3 => self.strips::<3>(factors, to, step),
            4 => self.strips::<4>(factors, to, step),
            5 => self.strips::<5>(factors, to, step),
            _ => self.strips::<ROWS>(factors, to, step),
        }
    }

    #[inline(always)]
    fn strips<const R: usize>(self, factors: &[f32; ROWS], to: &mut [f32], step: usize) {
        let columns = self.packed.columns;
        let mut column = 0;
        while column + LANES <= columns {
            self.tile::<R>(column, factors, &mut to[column..], step);
            column += LANES;
        }
        if column < columns {
            let mut whole = [0.0; ROWS * LANES];
            self.tile::<R>(column, factors, &mut whole, LANES);
            for (row, whole) in whole.chunks_exact(LANES).enumerate().take(R) {
                let left = columns - column;
                to[row * step + column..][..left].copy_from_slice(&whole[..left]);
            }
        }
    }

    /// `R` rows by a vector of columns from `column` on. Counted loops, as the
    /// compiler then unrolls them and keeps the sums in registers.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "see above")]
    fn tile<const R: usize>(
        self,
        column: usize,
        factors: &[f32; ROWS],
        to: &mut [f32],
        step: usize,
    ) {
        let depth = self.packed.depth;
        let rows: [&[f32]; R] = std::array::from_fn(|r| &self.from[r * self.step..][..depth]);
        let mut sums = [[0.0_f32; LANES]; R];
        for index in 0..depth {
            let vector = &self.matrix[index * self.packed.step() + column..][..LANES];
            for r in 0..R {
                let x = rows[r][index];
                for lane in 0..LANES {
                    sums[r][lane] = x.mul_add(vector[lane], sums[r][lane]);
                }
            }
        }
        for r in 0..R {
            let to = &mut to[r * step..][..LANES];
            for lane in 0..LANES {
                to[lane] = sums[r][lane] * factors[r];
            }
        }
    }
}
