//! Products of float matrices in tiles that stay in registers, and attention
//! made of them: a few rows of scores at a time, so that they stay near.

use std::ops::Range;

use super::super::super::plan::{LANES, Packed};
use super::{Vector, exponentials};

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
    pub(super) fn run<L: Vector, const V: usize>(self) {
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
                block.run::<L, V>(&factors, to, packed.columns);
            }
        }
    }
}

impl Attention<'_> {
    #[inline(always)]
    pub(super) fn run<L: Vector, const V: usize>(self) {
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
                    packed: Packed {
                        columns: keys.step(),
                        ..keys
                    },
                };
                block.run::<L, V>(&[1.0; ROWS], scores, keys.step());
                let mut factors = [0.0; ROWS];
                for (row, factor) in scores.chunks_exact_mut(keys.step()).zip(&mut factors) {
                    // What fills the row up has no share.
                    row[keys.columns..].fill(f32::MIN);
                    *factor = 1.0 / exponentials(row, self.factor);
                }
                let block = Block {
                    rows,
                    from: scores,
                    step: keys.step(),
                    matrix: part(self.values, mixed, head),
                    packed: mixed,
                };
                block.run::<L, V>(&factors, &mut to[head * mixed.columns..], row_len);
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
    fn run<L: Vector, const V: usize>(self, factors: &[f32; ROWS], to: &mut [f32], step: usize) {
        match self.rows {
            1 => self.strips::<L, 1, V>(factors, to, step),
            2 => self.strips::<L, 2, V>(factors, to, step),
            3 => self.strips::<L, 3, V>(factors, to, step),
            4 => self.strips::<L, 4, V>(factors, to, step),
            5 => self.strips::<L, 5, V>(factors, to, step),
            _ => self.strips::<L, ROWS, V>(factors, to, step),
        }
    }

    #[inline(always)]
    fn strips<L: Vector, const R: usize, const V: usize>(
        self,
        factors: &[f32; ROWS],
        to: &mut [f32],
        step: usize,
    ) {
        let columns = self.packed.columns;
        let mut column = 0;
        while column + V * LANES <= columns {
            self.tile::<L, R, V>(column, factors, &mut to[column..], step);
            column += V * LANES;
        }
        while column + LANES <= columns {
            self.tile::<L, R, 1>(column, factors, &mut to[column..], step);
            column += LANES;
        }
        if column < columns {
            let mut whole = [0.0; ROWS * LANES];
            self.tile::<L, R, 1>(column, factors, &mut whole, LANES);
            for (row, whole) in whole.chunks_exact(LANES).enumerate().take(R) {
                let left = columns - column;
                to[row * step + column..][..left].copy_from_slice(&whole[..left]);
            }
        }
    }

    /// `R` rows by `V` vectors of columns from `column` on. Counted loops, as the
    /// compiler then unrolls them and keeps the sums in registers.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "see above")]
    fn tile<L: Vector, const R: usize, const V: usize>(
        self,
        column: usize,
        factors: &[f32; ROWS],
        to: &mut [f32],
        step: usize,
    ) {
        let depth = self.packed.depth;
        let rows: [&[f32]; R] = std::array::from_fn(|r| &self.from[r * self.step..][..depth]);
        let mut sums = [[L::splat(0.0); V]; R];
        for index in 0..depth {
            let at = index * self.packed.step() + column;
            let (chunks, _) = self.matrix[at..][..V * LANES].as_chunks();
            let mut vectors = [L::splat(0.0); V];
            for v in 0..V {
                vectors[v] = L::load(&chunks[v]);
            }
            for r in 0..R {
                let x = L::splat(rows[r][index]);
                for v in 0..V {
                    sums[r][v] = x.mul_add(vectors[v], sums[r][v]);
                }
            }
        }
        for r in 0..R {
            let (to, _) = to[r * step..][..V * LANES].as_chunks_mut();
            for v in 0..V {
                sums[r][v].times(factors[r]).store(&mut to[v]);
            }
        }
    }
}
