//! Work on rows, shared between the threads of a pool.

use std::ops::Range;

/// How a step's work is cut.
#[derive(Clone, Copy)]
pub struct Shares {
    /// Threads that take part; 1 keeps the work where it is.
    pub threads: usize,
    /// Rows below which a share is not worth another thread.
    pub least_rows: usize,
}

/// Multiply-accumulates, or bytes, below which a share takes less time than
/// it takes to wake a thread.
const WORTHWHILE: usize = 1 << 18;

impl Shares {
    /// For rows of this much work each.
    pub fn new(threads: usize, work_of_row: usize) -> Self {
        Self {
            threads,
            least_rows: (WORTHWHILE / work_of_row.max(1)).max(1),
        }
    }

    /// Has `work` do all `rows`, each of which fills as many bytes of `to`:
    /// here, or in halves of halves on several threads of the current pool.
    /// What is written does not depend on where it is cut.
    pub fn run(
        self,
        rows: Range<usize>,
        to: &mut [u8],
        work: &(impl Fn(Range<usize>, &mut [u8]) + Sync),
    ) {
        if self.threads < 2 || rows.len() < 2 * self.least_rows {
            return work(rows, to);
        }
        let [left, right] = [self.threads / 2, self.threads.div_ceil(2)];
        let first = rows.len() * left / self.threads;
        let (head, tail) = to.split_at_mut(to.len() / rows.len() * first);
        let middle = rows.start + first;
        let of = |threads| Self { threads, ..self };
        rayon::join(
            || of(left).run(rows.start..middle, head, work),
            || of(right).run(middle..rows.end, tail, work),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_done_once_whatever_the_threads() {
        for threads in 1..9 {
            for rows in 1..30 {
                let mut to = vec![0; 3 * rows];
                let shares = Shares {
                    threads,
                    least_rows: 2,
                };
                shares.run(5..5 + rows, &mut to, &|rows, to| {
                    assert_eq!(to.len(), 3 * rows.len());
                    for (row, to) in rows.zip(to.chunks_exact_mut(3)) {
                        to.iter_mut().for_each(|byte| *byte += row as u8);
                    }
                });
                let expected: Vec<u8> = (5..5 + rows).flat_map(|row| [row as u8; 3]).collect();
                assert_eq!(to, expected, "{threads} threads, {rows} rows");
            }
        }
    }
}
