//! A model measured on labelled images: a run's weights or a bundle.
//!
//! ```text
//! Subject + images → rows → measures with bootstrap intervals, parts → page
//! ```

mod bootstrap;
mod page;
mod parts;
mod subject;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use numclip::bins::Bin;
use numclip::metrics::{CumulativeScore, Metrics};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::data::DataError;
use crate::file::write_whole;
use crate::fit::{FitError, Provenance, Run};
use crate::report::{self, EstimatePoint, Measured, NamedMetrics};
use crate::text::Ordinality;
pub use bootstrap::{RESAMPLES, measures};
pub use parts::parts;
pub use subject::{Images, Subject, evaluate};

/// Folder of the evaluations in that of a run.
pub const FOLDER: &str = "eval";

/// Whether the run in `folder` is trained to its end, measured and reported. An exported run has a
/// report too, and need not be at its end.
pub fn is_complete(folder: &Path) -> bool {
    let is_measured = |provenance: &Provenance| match provenance.measured_split() {
        Some(split) => Evaluation::files(&folder.join(FOLDER), split)
            .iter()
            .all(|file| file.is_file()),
        None => true,
    };
    Run::is_trained(folder)
        && folder.join(report::FILE_NAME).is_file()
        && Run::read(folder).is_ok_and(|(_, _, provenance)| is_measured(&provenance))
}

/// One image: what is true and what was estimated, in the task's unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Path of the image.
    pub path: PathBuf,
    /// Label.
    pub label: f32,
    /// Estimate.
    pub value: f32,
    /// Most probable bin, from 0.
    pub bin: usize,
    /// Probability of that bin.
    pub probability: f32,
    /// Lower end of the interval.
    pub low: Option<f32>,
    /// Upper end of the interval.
    pub high: Option<f32>,
    /// Group of the image.
    pub group: Option<String>,
}

/// A measure with its bootstrap interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// `mae`, `rmse`, `bias`, `accuracy`, `accuracy-argmax`, `cs@K`, `coverage`.
    pub key: String,
    /// Its value: in the task's unit, or a share of 0 to 1.
    pub value: f64,
    /// Ends of the 95 % interval; none where there is too little to resample.
    pub interval: Option<[f64; 2]>,
}

/// Some of the images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Bin, group or range of labels.
    pub name: String,
    /// Number of images.
    pub count: usize,
    /// Mean absolute error, in the task's unit.
    pub mae: f64,
    /// Mean of estimate − label, in the task's unit.
    pub bias: f64,
    /// Share of images whose estimate falls into the bin of the label.
    pub accuracy: f64,
    /// Share of labels within the interval.
    pub coverage: Option<f64>,
}

/// Everything that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// What was measured, for a person to read.
    pub subject: String,
    /// Name of the task.
    pub task: String,
    /// Unit of the quantity.
    pub unit: String,
    /// Which images.
    pub images: String,
    /// Bins in ascending order.
    pub bins: Vec<Bin>,
    /// Number of images measured.
    pub count: usize,
    /// What a reader of the figures should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Images that could not be read.
    pub skipped: Vec<String>,
    /// Share of labels that the intervals are meant to hold.
    pub meant_coverage: Option<f32>,
    /// What the bootstrap draws: `group` or `image`.
    pub resampled: String,
    /// Seed of the bootstrap.
    pub seed: u64,
    /// Over all images.
    pub measures: Vec<Measure>,
    /// By bin of the label.
    pub by_bin: Vec<Part>,
    /// By tenth of the task's range.
    pub by_range: Vec<Part>,
    /// By group, the largest error first.
    pub by_group: Vec<Part>,
    /// How well the bin embeddings follow the order of the bins.
    pub ordinality: Ordinality,
    /// Single estimates; kept apart, as CSV.
    #[serde(skip)]
    pub rows: Vec<Row>,
}

/// Why nothing was measured.
#[derive(Debug, Error)]
pub enum EvalError {
    /// The run cannot be read, or its images.
    #[error(transparent)]
    Run(#[from] FitError),
    /// The images' table cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The bundle cannot be opened.
    #[error(transparent)]
    Bundle(#[from] numclip::bundle::BundleError),
    /// The bundle's encoder cannot be run.
    #[error(transparent)]
    Encode(#[from] numclip::encode::EncodeError),
    /// Neither a run nor a bundle.
    #[error(
        "{}: expected the folder of a run (task.toml), its weights (best.safetensors, checkpoint.safetensors) or a bundle (bundle.toml)", .0.display()
    )]
    Subject(PathBuf),
    /// A bundle does not know its images.
    #[error("a bundle does not hold the place of its images; name a table with --data")]
    NoData,
    /// There is nothing to measure on.
    #[error("no images in {0}; name another split with --split, or a table with --data")]
    NoImages(String),
    /// Not one image could be read.
    #[error("none of {0} images can be read; the first: {1}")]
    Unreadable(usize, String),
    /// Results cannot be written or read.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
}

impl Evaluation {
    /// Files of an evaluation in a folder: page, measures, single estimates.
    pub fn files(folder: &Path, stem: &str) -> [PathBuf; 3] {
        ["html", "json", "csv"].map(|extension| folder.join(format!("{stem}.{extension}")))
    }

    /// Writes page, measures and single estimates and returns the page's path.
    ///
    /// # Errors
    /// [`EvalError::File`].
    pub fn write(&self, folder: &Path, stem: &str) -> Result<PathBuf, EvalError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| EvalError::File { path, error }
        };
        fs::create_dir_all(folder).map_err(at(folder))?;
        let [page, json, csv] = Self::files(folder, stem);
        let measures = serde_json::to_vec_pretty(self).map_err(io::Error::other);
        write_whole(&csv, &self.csv().map_err(at(&csv))?).map_err(at(&csv))?;
        write_whole(&json, &measures.map_err(at(&json))?).map_err(at(&json))?;
        write_whole(&page, page::render(self).as_bytes()).map_err(at(&page))?;
        Ok(page)
    }

    /// Reads what [`Evaluation::write`] wrote.
    ///
    /// # Errors
    /// [`EvalError::File`] when a file is missing or damaged.
    pub fn read(folder: &Path, stem: &str) -> Result<Self, EvalError> {
        let [_, json, csv] = Self::files(folder, stem);
        let parse = || -> io::Result<Self> { Ok(serde_json::from_slice(&fs::read(&json)?)?) };
        let mut evaluation = parse().map_err(|error| EvalError::File {
            path: json.clone(),
            error,
        })?;
        let rows = || -> io::Result<Vec<Row>> {
            let mut reader = csv::Reader::from_path(&csv)?;
            let rows = reader.deserialize();
            rows.map(|row| row.map_err(io::Error::from)).collect()
        };
        evaluation.rows = rows().map_err(|error| EvalError::File {
            path: csv.clone(),
            error,
        })?;
        Ok(evaluation)
    }

    /// A measure by its key.
    pub fn measure(&self, key: &str) -> Option<&Measure> {
        self.measures.iter().find(|measure| measure.key == key)
    }

    /// The single estimates as the charts take them.
    pub fn points(&self) -> Vec<EstimatePoint> {
        let point = |row: &Row| EstimatePoint {
            name: row.path.display().to_string(),
            label: row.label,
            value: row.value,
            interval: row.low.zip(row.high).map(|(low, high)| [low, high]),
        };
        self.rows.iter().map(point).collect()
    }

    /// What the report of a run shows of it.
    pub fn measured(&self) -> Measured {
        let value = |key: &str| self.measure(key).map_or(0.0, |measure| measure.value);
        let scores = self.measures.iter().filter_map(|measure| {
            let k = measure.key.strip_prefix("cs@")?.parse().ok()?;
            Some(CumulativeScore {
                k,
                score: measure.value,
            })
        });
        let name = format!("{}, f32", self.images);
        let metrics = Metrics {
            count: self.count,
            mae: value("mae"),
            rmse: value("rmse"),
            accuracy_expectation: value("accuracy"),
            accuracy_argmax: value("accuracy-argmax"),
            cumulative_score: scores.collect(),
            interval_coverage: self.measure("coverage").map(|measure| measure.value),
        };
        Measured {
            results: vec![NamedMetrics {
                name: name.clone(),
                metrics,
            }],
            estimates_of: name,
            estimates: self.points(),
        }
    }

    fn csv(&self) -> io::Result<Vec<u8>> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        for row in &self.rows {
            writer.serialize(row)?;
        }
        writer
            .into_inner()
            .map_err(|error| io::Error::other(error.to_string()))
    }
}

impl Measure {
    /// Whether the value is a share rather than in the task's unit.
    pub fn is_share(&self) -> bool {
        !["mae", "rmse", "bias"].contains(&self.key.as_str())
    }

    /// Name for a person to read.
    pub fn name(&self, unit: &str) -> String {
        let name = match self.key.as_str() {
            "mae" => "Mean absolute error",
            "rmse" => "Root mean square error",
            "bias" => "Mean of estimate − label",
            "accuracy" => "Bin of the value right",
            "accuracy-argmax" => "Most probable bin right",
            "coverage" => "Label inside the interval",
            key => {
                let k = key.trim_start_matches("cs@");
                return format!("Error at most {k} {unit}").trim_end().to_owned();
            }
        };
        name.into()
    }

    /// Value (or an end of the interval) as text.
    pub fn text(&self, value: f64) -> String {
        match self.is_share() {
            true => format!("{:.1} %", value * 100.0),
            false => format!("{value:.3}"),
        }
    }
}
