//! Floats as the graph names them: a block of values, seen through dimensions.
//!
//! Transposing, slicing and most reshaping change how values are seen and
//! move none.

use super::plan::RealId;

/// Where floats lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An activation.
    Real(RealId),
    /// A constant of the plan.
    Constant(usize),
}

/// Floats seen through dimensions, the outermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Where they lie.
    pub source: Source,
    /// The first one.
    pub start: usize,
    /// The dimensions.
    pub axes: Vec<Axis>,
}

/// A dimension: how many, and how far apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Indices, at least 1.
    pub len: usize,
    /// Values from an index to the next; 0 where all share one.
    pub step: usize,
}

impl View {
    /// All values of `source`, one after the other.
    pub fn whole(source: Source, dims: &[usize]) -> Self {
        Self {
            source,
            start: 0,
            axes: contiguous(dims),
        }
    }

    /// Lengths of the dimensions.
    pub fn dims(&self) -> Vec<usize> {
        self.axes.iter().map(|axis| axis.len).collect()
    }

    /// Number of values.
    pub fn count(&self) -> usize {
        self.axes.iter().map(|axis| axis.len).product()
    }

    /// Whether its values lie one after the other.
    pub fn is_contiguous(&self) -> bool {
        let expected = contiguous(&self.dims());
        let mut pairs = self.axes.iter().zip(expected);
        pairs.all(|(axis, expected)| axis.len == 1 || axis.step == expected.step)
    }

    /// The same with its dimensions in this order; `None` unless it names each once.
    pub fn permuted(&self, order: &[usize]) -> Option<Self> {
        let mut seen = order.to_vec();
        seen.sort_unstable();
        (seen.iter().copied().eq(0..self.axes.len())).then(|| Self {
            axes: order.iter().map(|&axis| self.axes[axis]).collect(),
            ..*self
        })
    }

    /// The same values in other dimensions; `None` where they would have to move.
    pub fn reshaped(&self, dims: &[usize]) -> Option<Self> {
        if dims.iter().product::<usize>() != self.count() {
            return None;
        }
        let runs = self.runs();
        let mut left = dims.iter().rev().copied().peekable();
        let mut axes = Vec::with_capacity(dims.len());
        for run in runs.iter().rev() {
            let mut covered = 1;
            while covered < run.len {
                let len = left.next()?;
                axes.push(Axis {
                    len,
                    step: covered * run.step,
                });
                covered *= len;
            }
            if covered != run.len {
                return None;
            }
        }
        axes.extend(left.map(|len| Axis { len, step: 0 }));
        axes.reverse();
        Some(Self { axes, ..*self })
    }

    /// Indices `start..start + len` of a dimension, which must have them.
    pub fn sliced(&self, axis: usize, start: usize, len: usize) -> Self {
        let mut view = self.clone();
        view.start += start * view.axes[axis].step;
        view.axes[axis].len = len;
        view
    }

    /// The same without this dimension, which has one index.
    pub fn without(&self, axis: usize) -> Self {
        let mut view = self.clone();
        view.axes.remove(axis);
        view
    }

    /// Repeated to these dimensions as ONNX broadcasts; `None` where it cannot.
    pub fn broadcast(&self, dims: &[usize]) -> Option<Self> {
        let missing = dims.len().checked_sub(self.axes.len())?;
        let repeated = |(index, &len): (usize, &usize)| match index
            .checked_sub(missing)
            .map(|index| self.axes[index])
        {
            Some(axis) if axis.len == len => Some(axis),
            Some(axis) if axis.len != 1 => None,
            _ => Some(Axis { len, step: 0 }),
        };
        let axes = dims.iter().enumerate().map(repeated).collect::<Option<_>>();
        Some(Self {
            axes: axes?,
            ..*self
        })
    }

    /// Dimensions merged where their values continue one another.
    fn runs(&self) -> Vec<Axis> {
        let mut runs: Vec<Axis> = Vec::new();
        for &axis in self.axes.iter().filter(|axis| axis.len > 1) {
            match runs.last_mut() {
                Some(run) if run.step == axis.len * axis.step => {
                    run.len *= axis.len;
                    run.step = axis.step;
                }
                _ => runs.push(axis),
            }
        }
        runs
    }
}

/// Dimensions of values that lie one after the other.
pub fn contiguous(dims: &[usize]) -> Vec<Axis> {
    let mut step = 1;
    let mut axes: Vec<Axis> = dims
        .iter()
        .rev()
        .map(|&len| {
            let axis = Axis { len, step };
            step *= len;
            axis
        })
        .collect();
    axes.reverse();
    axes
}

/// The dimensions to which ONNX broadcasts two tensors; `None` where they do
/// not fit.
pub fn common(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], index: usize| match (index + dims.len()).checked_sub(rank) {
        Some(index) => dims[index],
        None => 1,
    };
    let joint = |index| match (at(a, index), at(b, index)) {
        (a, b) if a == b || b == 1 => Some(a),
        (1, b) => Some(b),
        _ => None,
    };
    (0..rank).map(joint).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(dims: &[usize]) -> View {
        View::whole(Source::Real(RealId(0)), dims)
    }

    /// Positions of all values in order.
    fn positions(view: &View) -> Vec<usize> {
        view.axes.iter().fold(vec![view.start], |from, axis| {
            let steps = |at: usize| (0..axis.len).map(move |index| at + index * axis.step);
            from.into_iter().flat_map(steps).collect()
        })
    }

    #[test]
    fn transposed_heads_are_seen_in_place() {
        // [rows, heads · width] → [heads, rows, width], and back.
        let rows = view(&[1, 5, 6]).reshaped(&[1, 5, 3, 2]).unwrap();
        let heads = rows.permuted(&[0, 2, 1, 3]).unwrap();
        assert_eq!(positions(&heads)[..6], [0, 1, 6, 7, 12, 13]);
        assert_eq!(heads.reshaped(&[1, 15, 2]), None);
        let back = heads.permuted(&[0, 2, 1, 3]).unwrap();
        assert!(back.is_contiguous() && !heads.is_contiguous());
        assert_eq!(back.reshaped(&[5, 6]).unwrap(), view(&[5, 6]));
    }

    #[test]
    fn a_picture_becomes_a_sequence_in_place() {
        // [height, width, channels] seen as [1, channels, height, width].
        let picture = view(&[1, 4, 4, 3]).permuted(&[0, 3, 1, 2]).unwrap();
        let rows = picture.reshaped(&[1, 3, 16]).unwrap();
        let rows = rows.permuted(&[0, 2, 1]).unwrap();
        assert!(rows.is_contiguous());
        assert_eq!(rows.dims(), [1, 16, 3]);
    }

    #[test]
    fn broadcasting_is_that_of_onnx() {
        assert_eq!(common(&[1, 5, 3], &[3]), Some(vec![1, 5, 3]));
        assert_eq!(common(&[5, 1], &[1, 4]), Some(vec![5, 4]));
        assert_eq!(common(&[5, 2], &[3]), None);
        let row = view(&[3]).broadcast(&[2, 3]).unwrap();
        assert_eq!(positions(&row), [0, 1, 2, 0, 1, 2]);
        assert_eq!(view(&[3]).broadcast(&[3, 2]), None);
    }

    #[test]
    fn orders_that_are_none_are_refused() {
        assert_eq!(view(&[2, 3]).permuted(&[0, 0]), None);
        assert_eq!(view(&[2, 3]).permuted(&[0, 2]), None);
        assert_eq!(view(&[2, 3]).permuted(&[0]), None);
    }
}
