//! Products of row-major matrices on the calling thread.

use gemm::Parallelism;

/// A row-major matrix, or the transpose of one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl<'a> Matrix<'a> {
    /// A matrix whose values lie row by row.
    pub(super) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a {rows}×{columns} matrix");
        Self {
            values,
            rows,
            columns,
            transposed: false,
        }
    }

    /// The transpose, without moving values.
    pub(super) fn transpose(self) -> Self {
        let Self {
            values,
            rows,
            columns,
            transposed,
        } = self;
        Self {
            values,
            rows: columns,
            columns: rows,
            transposed: !transposed,
        }
    }

    /// Distance in memory between neighbours in a column and in a row.
    fn strides(&self) -> (isize, isize) {
        match self.transposed {
            false => (self.columns as isize, 1),
            true => (1, self.rows as isize),
        }
    }
}

/// Writes `a · b` to `output`, row-major, or adds it to what is there.
///
/// One thread, so that the order of additions does not depend on the number of cores.
pub(super) fn multiply(a: Matrix<'_>, b: Matrix<'_>, output: &mut [f32], accumulate: bool) {
    assert_eq!(a.columns, b.rows, "inner dimensions of a matrix product");
    assert_eq!(
        output.len(),
        a.rows * b.columns,
        "output of a matrix product"
    );
    let (a_row, a_column) = a.strides();
    let (b_row, b_column) = b.strides();
    // SAFETY: `Matrix::new` and the assertions above make every element that the dimensions and
    // strides address lie within the three slices, and `output` is borrowed exclusively.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            output.as_mut_ptr(),
            1,
            b.columns as isize,
            accumulate,
            a.values.as_ptr(),
            a_column,
            a_row,
            b.values.as_ptr(),
            b_column,
            b_row,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposes_and_accumulation_match_hand_arithmetic() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let (wide, tall) = (Matrix::new(&a, 2, 3), Matrix::new(&a, 3, 2));
        let mut y = [1.0; 4];
        multiply(wide, tall, &mut y, true);
        assert_eq!(y, [23.0, 29.0, 50.0, 65.0]);
        multiply(wide, wide.transpose(), &mut y, false);
        assert_eq!(y, [14.0, 32.0, 32.0, 77.0]);
        let mut y = [0.0; 9];
        multiply(wide.transpose(), wide, &mut y, false);
        assert_eq!(y, [17.0, 22.0, 27.0, 22.0, 29.0, 36.0, 27.0, 36.0, 45.0]);
    }
}
