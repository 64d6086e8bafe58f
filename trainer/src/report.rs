//! A run as one page: curves, confusion, errors, metrics, where it came from.
//!
//! The page is a single HTML file without scripts or outside resources; it
//! follows the reader's light or dark theme.

pub(crate) mod figures;
pub(crate) mod page;
pub(crate) mod plot;
mod run;

pub use run::{Measured, of_run, points};

use std::{
    io,
    path::{Path, PathBuf},
};

use numclip::{bins::Bin, metrics::Metrics};
use serde::{Deserialize, Serialize};

use crate::file::write_whole;

/// Name of the page in its folder.
pub const FILE_NAME: &str = "report.html";

/// Everything the page shows. Empty parts are left out of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// Name of the task or model.
    pub title: String,
    /// One sentence below the title; may be empty.
    pub subtitle: String,
    /// Unit of the quantity; may be empty.
    pub unit: String,
    /// Bins in ascending order.
    pub bins: Vec<Bin>,
    /// Training step by step.
    pub steps: Vec<StepPoint>,
    /// Training epoch by epoch.
    pub epochs: Vec<EpochPoint>,
    /// Measures of one or more models, such as f32 and int8.
    pub results: Vec<NamedMetrics>,
    /// Which images the single estimates are of, such as "test, int8".
    pub estimates_of: String,
    /// Single estimates.
    pub estimates: Vec<EstimatePoint>,
    /// Share of labels the intervals are meant to hold, 0 to 1.
    pub coverage: Option<f32>,
    /// Data digest, weights, versions: name and value.
    pub provenance: Vec<(String, String)>,
    /// Resolved task file.
    pub config: String,
}

/// One training step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepPoint {
    /// Epochs gone by, with the part of the running one.
    pub epoch: f64,
    /// Loss of the batch.
    pub loss: f64,
    /// Learning rate.
    pub learning_rate: f64,
}

/// One epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochPoint {
    /// Number of the epoch, from 1.
    pub epoch: usize,
    /// Mean loss on the training images.
    pub train_loss: f64,
    /// Mean loss on the validation images.
    pub val_loss: Option<f64>,
    /// Mean absolute error on the training images, in the unit.
    pub train_mae: f64,
    /// Mean absolute error on the validation images, in the unit.
    pub val_mae: Option<f64>,
}

/// Measures with the name of what was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamedMetrics {
    /// Such as "test, int8".
    pub name: String,
    /// Measures.
    pub metrics: Metrics,
}

/// One image: what is true and what was estimated, in the unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EstimatePoint {
    /// Name of the image, shown when pointed at.
    pub name: String,
    /// Label.
    pub label: f32,
    /// Estimate.
    pub value: f32,
    /// Interval around the estimate.
    pub interval: Option<[f32; 2]>,
}

/// Writes the page into `folder` under [`FILE_NAME`] and returns its path. An
/// older page is replaced in one step.
///
/// # Errors
///
/// If the folder cannot be written to.
pub fn write_html(folder: &Path, report: &RunReport) -> io::Result<PathBuf> {
    let path = folder.join(FILE_NAME);
    write_whole(&path, page::render(report).as_bytes())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A run with every part filled in.
    pub(super) fn example() -> RunReport {
        let bin = |label: &str, start, end| Bin {
            label: label.into(),
            start,
            end,
        };
        RunReport {
            title: "gauge <1.0>".into(),
            unit: "%".into(),
            bins: vec![bin("low", 0.0, 50.0), bin("high", 50.0, 100.0)],
            epochs: (1..=3)
                .map(|epoch| EpochPoint {
                    epoch,
                    train_loss: 3.0 / epoch as f64,
                    val_loss: None,
                    train_mae: 9.0 / epoch as f64,
                    val_mae: Some(10.0 / epoch as f64),
                })
                .collect(),
            steps: (0..30)
                .map(|i| StepPoint {
                    epoch: f64::from(i) / 10.0,
                    loss: 4.0 - f64::from(i) * 0.125,
                    learning_rate: 1e-3,
                })
                .collect(),
            estimates: (0..50)
                .map(|i| EstimatePoint {
                    name: format!("{i}.jpg"),
                    label: i as f32 * 2.0,
                    value: i as f32 * 2.0 + 1.0,
                    interval: Some([i as f32 * 2.0 - 3.0, i as f32 * 2.0 + 5.0]),
                })
                .collect(),
            estimates_of: "test".into(),
            coverage: Some(0.9),
            config: "[task]\nname = \"a & b\"\n".into(),
            ..RunReport::default()
        }
    }

    #[test]
    fn the_page_stands_alone_and_is_escaped() {
        let folder = tempfile::tempdir().unwrap();
        let path = write_html(folder.path(), &example()).unwrap();
        let page = fs::read_to_string(path).unwrap();
        assert!(page.contains("gauge &lt;1.0&gt;") && page.contains("a &amp; b"));
        for outside in ["http://", "https://", "src=", "<script", "NaN"] {
            assert!(!page.contains(outside), "{outside} in the page");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn odd_runs_still_make_a_page() {
        let nothing = page::render(&RunReport::default());
        assert!(!nothing.contains("<svg"));
        let mut odd = example();
        odd.epochs.truncate(1);
        odd.epochs[0].train_loss = f64::NAN;
        odd.steps[3].loss = f64::INFINITY;
        odd.estimates.truncate(1);
        odd.bins.clear();
        let page = page::render(&odd);
        assert!(
            !page.contains("NaN") && !page.contains("inf\""),
            "numbers that no browser draws"
        );
    }

    #[test]
    fn reports_survive_json() {
        let json = serde_json::to_string(&example()).unwrap();
        assert_eq!(serde_json::from_str::<RunReport>(&json).unwrap(), example());
    }
}
