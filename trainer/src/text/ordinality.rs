//! How well bin embeddings follow the order of the bins.

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
    /// Measures embeddings `[M, D]` of `labels` as OrdinalCLIP does (Li et
    /// al., NeurIPS 2022): over all i ≤ j < M − 1, the share with
    /// S(i, j) > S(i, j + 1). A single bin gives 1.
    pub fn of(labels: Vec<String>, embeddings: &[f32]) -> Self {
        let dim = (embeddings.len() / labels.len().max(1)).max(1);
        let rows: Vec<&[f32]> = embeddings.chunks_exact(dim).collect();
        let similarities: Vec<Vec<f32>> = rows
            .iter()
            .map(|a| rows.iter().map(|b| cosine(a, b)).collect())
            .collect();
        Self {
            labels,
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

    #[test]
    fn bins_along_an_arc() {
        let arc = |degrees: &[f32]| {
            let points = degrees.iter().map(|d| d.to_radians());
            let rows: Vec<f32> = points.flat_map(|r| [r.cos(), r.sin()]).collect();
            let labels = degrees.iter().map(ToString::to_string).collect();
            Ordinality::of(labels, &rows).score
        };
        assert_eq!(arc(&[0.0, 10.0, 30.0, 35.0, 80.0]), 1.0);
        assert_eq!(arc(&[80.0, 35.0, 30.0, 10.0, 0.0]), 1.0);
        // The middle bin lies outside, near the last: one step of three rises.
        assert!((arc(&[0.0, 15.0, 10.0]) - 2.0 / 3.0).abs() < 1e-9);
        // Of four bins the last two are swapped: two steps of six rise.
        assert!((arc(&[0.0, 10.0, 30.0, 25.0]) - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!(arc(&[0.0, 90.0]), 1.0);
    }
}
