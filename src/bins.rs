//! The common-language bins that a picture is matched against.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A range of the estimated quantity that has a name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bin {
    /// The common-language name, as the text encoder read it.
    pub label: String,
    /// Lowest value of the bin, in the task's unit.
    pub start: f32,
    /// Highest value of the bin, in the task's unit; equal to `start` where
    /// the bin is one class.
    pub end: f32,
}

/// All bins of a task in ascending order, with their text embeddings.
#[derive(Clone, Debug, PartialEq)]
pub struct Bins {
    bins: Vec<Bin>,
    embeddings: Vec<f32>,
    dim: usize,
}

/// Bins or embeddings that do not fit together.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum BinsError {
    /// Fewer than two bins.
    #[error("a task needs at least 2 bins, got {0}")]
    TooFew(usize),
    /// A bin that is not a range of finite numbers.
    #[error(
        "bins[{index}] ({label:?}): start {start} and end {end} must be finite, and start at most end"
    )]
    Range {
        /// Position of the bin.
        index: usize,
        /// Its name.
        label: String,
        /// Its start.
        start: f32,
        /// Its end.
        end: f32,
    },
    /// A bin that begins before the one ahead of it ends.
    #[error("bins[{index}] ({label:?}) starts at {start}, before bins[{}] ends at {previous_end}; list the bins in ascending order", index - 1)]
    Order {
        /// Position of the bin.
        index: usize,
        /// Its name.
        label: String,
        /// Its start.
        start: f32,
        /// End of the bin ahead.
        previous_end: f32,
    },
    /// The embeddings do not have one row of the same width for every bin.
    #[error("bin embeddings: expected {bins} rows of one width, got {values} values")]
    Shape {
        /// Number of bins.
        bins: usize,
        /// Number of values given.
        values: usize,
    },
    /// A row of embeddings that is not a unit vector.
    #[error(
        "bin embeddings: row {row} has norm {norm}, expected 1 (±1e-3); normalise the rows before writing them"
    )]
    Norm {
        /// The row.
        row: usize,
        /// Its Euclidean norm.
        norm: f32,
    },
}

impl Bins {
    /// Bins with their embeddings: `[bins, dim]`, row-major, rows of unit norm.
    ///
    /// # Errors
    /// [`BinsError`] when the bins are not ascending ranges or the embeddings
    /// do not fit them.
    pub fn new(bins: Vec<Bin>, embeddings: Vec<f32>) -> Result<Self, BinsError> {
        check_ranges(&bins)?;
        let dim = embeddings.len() / bins.len();
        if dim == 0 || dim * bins.len() != embeddings.len() {
            return Err(BinsError::Shape {
                bins: bins.len(),
                values: embeddings.len(),
            });
        }
        for (row, values) in embeddings.chunks_exact(dim).enumerate() {
            let norm = values.iter().map(|value| value * value).sum::<f32>().sqrt();
            if norm.is_nan() || (norm - 1.0).abs() > 1e-3 {
                return Err(BinsError::Norm { row, norm });
            }
        }
        Ok(Self {
            bins,
            embeddings,
            dim,
        })
    }

    /// Width of an embedding.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The embeddings: `[bins, dim]`, row-major, unit norm.
    pub fn embeddings(&self) -> &[f32] {
        &self.embeddings
    }

    /// The bins in ascending order.
    pub fn as_slice(&self) -> &[Bin] {
        &self.bins
    }

    /// Cosine of `embedding` (any norm, `dim` values) with every bin.
    pub fn cosines<'a>(&'a self, embedding: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
        let norm = embedding
            .iter()
            .map(|value| value * value)
            .sum::<f32>()
            .sqrt()
            .max(1e-12);
        self.embeddings
            .chunks_exact(self.dim)
            .map(move |row| row.iter().zip(embedding).map(|(a, b)| a * b).sum::<f32>() / norm)
    }
}

impl Bin {
    /// The value that stands for the whole bin: its middle.
    pub fn center(&self) -> f32 {
        f32::midpoint(self.start, self.end)
    }

    fn distance(&self, value: f32) -> f32 {
        (self.start - value).max(value - self.end).max(0.0)
    }
}

/// Position of the bin that holds `value`, or of the nearest one; on a tie the
/// higher, so that a shared boundary belongs to the bin it starts.
pub fn index_of(bins: &[Bin], value: f32) -> usize {
    let mut best = 0;
    for (index, bin) in bins.iter().enumerate() {
        if bin.distance(value) <= bins[best].distance(value) {
            best = index;
        }
    }
    best
}

/// Checks that `bins` are at least two ascending ranges.
///
/// # Errors
/// [`BinsError`] names the first bin that does not fit.
pub fn check_ranges(bins: &[Bin]) -> Result<(), BinsError> {
    if bins.len() < 2 {
        return Err(BinsError::TooFew(bins.len()));
    }
    for (index, bin) in bins.iter().enumerate() {
        let (label, start, end) = (bin.label.clone(), bin.start, bin.end);
        if !start.is_finite() || !end.is_finite() || start > end {
            return Err(BinsError::Range {
                index,
                label,
                start,
                end,
            });
        }
        if index > 0 && start < bins[index - 1].end {
            return Err(BinsError::Order {
                index,
                label,
                start,
                previous_end: bins[index - 1].end,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ages() -> Vec<Bin> {
        [
            ("child", 0, 12),
            ("teenager", 13, 18),
            ("young adult", 19, 34),
            ("middle adult", 35, 64),
            ("older adult", 65, 99),
        ]
        .map(|(label, start, end)| Bin {
            label: label.into(),
            start: start as f32,
            end: end as f32,
        })
        .to_vec()
    }

    #[test]
    fn a_value_falls_into_its_bin_or_the_nearest() {
        let bins = ages();
        let expected = [
            (-3.0, 0),
            (0.0, 0),
            (12.0, 0),
            (12.4, 0),
            (12.6, 1),
            (18.0, 1),
            (19.0, 2),
            (64.0, 3),
            (65.0, 4),
            (120.0, 4),
        ];
        for (value, index) in expected {
            assert_eq!(index_of(&bins, value), index, "{value}");
        }
    }

    #[test]
    fn a_shared_boundary_belongs_to_the_bin_it_starts() {
        let bins: Vec<Bin> = (0..3)
            .map(|i| Bin {
                label: String::new(),
                start: i as f32,
                end: i as f32 + 1.0,
            })
            .collect();
        assert_eq!(index_of(&bins, 1.0), 1);
        assert_eq!(index_of(&bins, 3.0), 2);
    }

    #[test]
    fn bins_that_do_not_fit_are_named() {
        let mut bins = ages();
        bins.swap(1, 2);
        assert!(matches!(
            check_ranges(&bins),
            Err(BinsError::Order { index: 2, .. })
        ));
        let error = Bins::new(ages(), vec![1.0; 11]).unwrap_err();
        assert!(matches!(
            error,
            BinsError::Shape {
                bins: 5,
                values: 11
            }
        ));
        assert!(matches!(
            Bins::new(ages(), vec![1.0; 10]),
            Err(BinsError::Norm { row: 0, .. })
        ));
    }

    #[test]
    fn cosines_do_not_depend_on_the_norm_of_the_picture() {
        let bins = Bins::new(ages()[..2].to_vec(), vec![1.0, 0.0, 0.6, 0.8]).unwrap();
        for scale in [1e-3, 1.0, 1e3] {
            let picture = [3.0 * scale, 4.0 * scale];
            let cosines: Vec<f32> = bins.cosines(&picture).collect();
            assert!(
                (cosines[0] - 0.6).abs() < 1e-6 && (cosines[1] - 1.0).abs() < 1e-6,
                "{cosines:?}"
            );
        }
    }
}
