//! How well bin embeddings follow the order of the bins.

use numclip::bins::Bins;
use numclip::verify::cosine;
use serde::{Deserialize, Serialize};

/// Similarities of the bin embeddings and their ordinality score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ordinality {
    /// Names of the bins.
    pub labels: Vec<String>,
    /// `[M][M]` cosine similarities.
    pub similarities: Vec<Vec<f32>>,
    /// Share of steps away from the diagonal at which the similarity falls, 0 to 1.
    pub score: f64,
}

impl Ordinality {
    /// Measures `bins` as OrdinalCLIP does (Li et al., NeurIPS 2022, §4.4):
    /// over all i ≤ j < M, the share with S(i, j) > S(i, j + 1).
    pub fn of(bins: &Bins) -> Self {
        let rows: Vec<&[f32]> = bins.embeddings().chunks_exact(bins.dim()).collect();
        let similarities: Vec<Vec<f32>> = rows
            .iter()
            .map(|a| rows.iter().map(|b| cosine(a, b)).collect())
            .collect();
        Self {
            labels: bins
                .as_slice()
                .iter()
                .map(|bin| bin.label.clone())
                .collect(),
            score: score(&similarities),
            similarities,
        }
    }
}

fn score(similarities: &[Vec<f32>]) -> f64 {
    let rows = similarities.iter().enumerate();
    let steps = rows.flat_map(|(i, row)| row[i..].windows(2));
    let (mut falls, mut all) = (0.0, 0.0);
    for step in steps {
        falls += if step[0] > step[1] { 1.0 } else { 0.0 };
        all += 1.0;
    }
    if all > 0.0 { falls / all } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn falls_away_from_the_diagonal_are_counted() {
        let ordered = vec![
            vec![1.0, 0.8, 0.2],
            vec![0.8, 1.0, 0.7],
            vec![0.2, 0.7, 1.0],
        ];
        assert_eq!(score(&ordered), 1.0);
        // Of the three steps 00→01, 01→02 and 11→12 the second rises.
        let swapped = vec![
            vec![1.0, 0.2, 0.8],
            vec![0.2, 1.0, 0.7],
            vec![0.8, 0.7, 1.0],
        ];
        assert!((score(&swapped) - 2.0 / 3.0).abs() < 1e-9);
    }
}
