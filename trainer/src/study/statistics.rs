//! Means over repetitions and how sure they are.

use serde::{Deserialize, Serialize};

/// Mean of some repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// Their mean.
    pub mean: f64,
    /// Standard deviation; 0 for a single one.
    pub deviation: f64,
    /// Half the width of the 95 % interval of the mean (Student's t); none
    /// for a single repetition.
    pub half_width: Option<f64>,
    /// How many there are.
    pub count: usize,
}

impl Mean {
    /// The mean of `values`; none without values.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (squares / (count.max(2) - 1) as f64).sqrt();
        let half = || student_975(count - 1) * deviation / (count as f64).sqrt();
        Some(Self {
            mean,
            deviation,
            half_width: (count > 1).then(half),
            count,
        })
    }

    /// `1.051 ± 0.020`, both times `scale`.
    pub fn text(&self, scale: f64, digits: usize) -> String {
        let mean = self.mean * scale;
        match self.half_width {
            Some(half) => format!("{mean:.digits$} ± {:.digits$}", half * scale),
            None => format!("{mean:.digits$}"),
        }
    }
}

/// The 97.5 % quantile of Student's t with `freedom` degrees of freedom, 1 or
/// more: a table up to ten, beyond that Cornish and Fisher's expansion about
/// the normal quantile (Abramowitz and Stegun, 26.7.5).
fn student_975(freedom: usize) -> f64 {
    const TABLE: [f64; 10] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    ];
    if let Some(value) = TABLE.get(freedom.saturating_sub(1)) {
        return *value;
    }
    let (x, v) = (1.959_964_f64, freedom as f64);
    let first = (x.powi(3) + x) / 4.0;
    let second = (5.0 * x.powi(5) + 16.0 * x.powi(3) + 3.0 * x) / 96.0;
    let third = (3.0 * x.powi(7) + 19.0 * x.powi(5) + 17.0 * x.powi(3) - 15.0 * x) / 384.0;
    x + first / v + second / v.powi(2) + third / v.powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_printed_tables() {
        for (freedom, expected) in [
            (4, 2.776),
            (11, 2.201),
            (15, 2.131),
            (30, 2.042),
            (120, 1.980),
        ] {
            let got = student_975(freedom);
            assert!((got - expected).abs() < 6e-4, "{freedom}: {got}");
        }
    }

    #[test]
    fn a_worked_example() {
        let mean = Mean::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!((mean.mean, mean.count), (3.0, 5));
        assert!((mean.deviation - 2.5_f64.sqrt()).abs() < 1e-12);
        // 2.776 · √2.5 / √5
        assert!((mean.half_width.unwrap() - 1.963).abs() < 1e-3);
        assert_eq!(mean.text(1.0, 2), "3.00 ± 1.96");
        assert_eq!(Mean::of(&[2.0]).unwrap().text(1.0, 1), "2.0");
        assert_eq!(Mean::of(&[]), None);
    }
}
