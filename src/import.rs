//! A bundle of somebody else's encoder, or one measured on pictures of one's
//! own.
//!
//! ```text
//! ONNX + task file + bin embeddings → what fits together → golden vectors → bundle
//! ```
//!
//! Nothing is known of such an encoder but what its file says: its input and
//! output are held against the task file and the bin embeddings, its golden
//! vectors are what the general engine makes of drawn patterns, and every
//! engine is held against those.

mod embeddings;
mod network;
mod task;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use thiserror::Error;

use crate::bins::BinsError;
use crate::bundle::{
    self, BinsSection, Bundle, BundleError, Contents, EncoderFile, EncoderFormat, Golden,
    GoldenCase, Manifest, ModelSection, Provenance, Report, SCHEMA,
};
use crate::encode::{EncodeError, Engine};
use crate::estimate::{Calibration, Estimate, Labelled, calibrate};
use crate::frame::FrameError;
use crate::metrics;
use crate::pipeline::Pipeline;
use crate::verify::{ReplayError, pattern, prove, record};
use network::Network;
use task::TaskFile;

/// What is imported.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// The encoder: one ONNX file.
    pub onnx: &'a Path,
    /// Task file: `[task]`, `[[bin]]`, `[preprocess]`; the trainer's will do.
    pub task: &'a Path,
    /// Bin embeddings: safetensors, `[bins, dim]`.
    pub bins: &'a Path,
    /// Which of the encoder's outputs is the embedding, where it has several.
    pub output: Option<&'a str>,
}

/// A bundle that has not got its place yet.
pub struct Draft {
    manifest: Manifest,
    contents: Contents,
    thresholds: Vec<f32>,
    coverage: f32,
    notes: Vec<String>,
    bundle: Arc<Bundle>,
    /// Holds the bundle's files, if it has no place of its own.
    _folder: Option<TempDir>,
}

/// A labelled picture as the encoder sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `[dim]`, any norm.
    pub embedding: Vec<f32>,
    /// True value, in the task's unit.
    pub label: f32,
    /// Whom or what it shows, where other pictures show the same.
    pub group: Option<String>,
}

/// Why an encoder cannot be imported.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImportError {
    /// A file cannot be read.
    #[error("{file}: {message}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        message: String,
    },
    /// Two things do not fit together.
    #[error("{file}: {place}: expected {expected}, got {got}")]
    Mismatch {
        /// The file.
        file: String,
        /// The field, input, output or node.
        place: String,
        /// What may stand there.
        expected: String,
        /// What stands there.
        got: String,
    },
    /// No engine of this build runs the network.
    #[error("no engine of this build runs {file}: {}", refusals.join("; "))]
    NoEngine {
        /// The network.
        file: String,
        /// What each engine says.
        refusals: Vec<String>,
    },
    /// The bundle cannot be written or read back.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// An engine failed on a pattern.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The engine that would serve disagrees with the one that made the golden vectors.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// A pattern cannot be drawn.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Golden pictures.
const PATTERNS: u32 = 3;
/// Longest side of a pattern, as a multiple of the encoder's input.
const OVERSIZE: f32 = 1.5;
const ENCODER: &str = "encoder.onnx";
/// Share of labels within the interval, unless another is asked for.
const COVERAGE: f32 = 0.9;
/// Name of the measured half of labelled pictures in the report.
const SPLIT: &str = "labels";

impl Draft {
    /// The bundle in `directory`, to be measured again and written anew.
    ///
    /// # Errors
    /// [`ImportError::Bundle`] when it cannot be used.
    pub fn of_bundle(directory: &Path, coverage: Option<f32>) -> Result<Self, ImportError> {
        let bundle = Arc::new(Bundle::open(directory)?);
        let manifest = bundle.manifest().clone();
        let encoders = manifest.encoder.iter();
        let encoders: Result<_, BundleError> = encoders
            .map(|encoder| Ok((encoder.path.clone(), bundle.read_encoder(encoder)?)))
            .collect();
        let known = manifest.report.first();
        let known = known.map(|report| report.metrics.cumulative_score.iter().map(|s| s.k));
        let stated = manifest.interval.as_ref().map(|interval| interval.coverage);
        Ok(Self {
            contents: Contents {
                encoders: encoders?,
                embeddings: bundle.estimator().bins().embeddings().to_vec(),
                golden: bundle.golden().clone(),
            },
            thresholds: known.map_or_else(|| thresholds(manifest.task.range), Iterator::collect),
            coverage: coverage.or(stated).unwrap_or(COVERAGE),
            notes: Vec::new(),
            manifest,
            bundle,
            _folder: None,
        })
    }

    /// Reads the sources, holds them against each other, and makes golden
    /// vectors by the first engine that runs the network, the general one
    /// before the others.
    ///
    /// # Errors
    /// [`ImportError`] names file and field, what was expected and what it got.
    pub fn read(sources: &Sources<'_>) -> Result<Self, ImportError> {
        let onnx = name_of(sources.onnx);
        let network = Network::read(&onnx, read(sources.onnx)?, sources.output)?;
        let task = TaskFile::read(sources.task, network.size)?;
        let (values, dim) = embeddings::read(sources.bins, task.bin.len())?;
        let size = task.preprocess.size;
        let manifest = manifest(&task, &network, dim, (&onnx, sources.bins));
        let mut contents = Contents {
            encoders: BTreeMap::from([(ENCODER.into(), network.sized(size))]),
            embeddings: values,
            golden: unmade(size as usize, dim),
        };
        let (folder, bundle) = staged(&manifest, &contents)?;
        contents.golden = golden(&onnx, &bundle)?;
        drop(folder);
        let (folder, bundle) = staged(&manifest, &contents)?;
        Ok(Self {
            manifest,
            contents,
            thresholds: task.thresholds(),
            coverage: task.coverage(),
            notes: network.notes,
            bundle,
            _folder: Some(folder),
        })
    }

    /// The bundle as it is so far.
    pub fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }

    /// The interval so far.
    pub fn interval(&self) -> Option<&Calibration> {
        self.manifest.interval.as_ref()
    }

    /// What was done to the network, for a person to read.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Measures the encoder on labelled pictures. Every second group fits the
    /// interval, the others are measured with it and give the report.
    pub fn measure(&mut self, pictures: &[Seen]) -> Option<&Report> {
        let (fitting, measured) = halves(pictures);
        let labelled = fitting.iter().map(|picture| Labelled {
            embedding: &picture.embedding,
            label: picture.label,
            group: picture.group.as_deref(),
        });
        let labelled: Vec<Labelled<'_>> = labelled.collect();
        let plain = self.bundle.estimator();
        let calibration = calibrate(plain, &labelled, self.coverage);
        let estimator = plain.clone().calibrated(calibration.clone()).ok()?;
        let estimates: Vec<Estimate> = measured
            .iter()
            .map(|picture| estimator.estimate(&picture.embedding))
            .collect();
        let labels: Vec<f32> = measured.iter().map(|picture| picture.label).collect();
        let bins = &self.manifest.bins.bin;
        let metrics = metrics::measure(bins, &estimates, &labels, &self.thresholds)?;
        self.manifest.interval = calibration;
        self.manifest.report.retain(|report| report.split != SPLIT);
        for report in &mut self.manifest.report {
            // Measured with the interval that was.
            report.metrics.interval_coverage = None;
        }
        self.manifest.report.push(Report {
            split: SPLIT.into(),
            precision: self.manifest.encoder[0].precision,
            metrics,
        });
        self.manifest.report.last()
    }

    /// Writes the bundle; the engine that would serve it must give the golden
    /// vectors.
    ///
    /// # Errors
    /// [`ImportError`]; nothing is written then.
    pub fn write(&self, directory: &Path) -> Result<(), ImportError> {
        let check = |folder: &Path| -> Result<(), ImportError> {
            Ok(prove(&Pipeline::new(Bundle::open(folder)?, None)?)?)
        };
        bundle::write(directory, self.manifest.clone(), &self.contents, check)
    }
}

impl ImportError {
    fn mismatch(
        file: &str,
        place: impl Into<String>,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Self {
        Self::Mismatch {
            file: file.into(),
            place: place.into(),
            expected: expected.into(),
            got: got.into(),
        }
    }

    fn file(path: &Path, message: impl ToString) -> Self {
        Self::File {
            file: path.display().to_string(),
            message: message.to_string(),
        }
    }

    fn of_bins(path: &Path, error: &BinsError) -> Self {
        Self::file(path, error)
    }
}

/// Errors counted as right where nobody says: 1, 2, 5 and 10 % of the range.
fn thresholds([low, high]: [f32; 2]) -> Vec<f32> {
    [0.01, 0.02, 0.05, 0.1]
        .map(|share| share * (high - low))
        .to_vec()
}

fn read(path: &Path) -> Result<Vec<u8>, ImportError> {
    fs::read(path).map_err(|error| ImportError::file(path, error))
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

fn manifest(
    task: &TaskFile,
    network: &Network,
    dim: usize,
    (onnx, bins): (&str, &Path),
) -> Manifest {
    Manifest {
        schema: SCHEMA,
        logit_scale: task.logit_scale(),
        model: ModelSection {
            name: task.task.name.clone(),
            version: task.task.version.clone(),
        },
        task: task.section(),
        preprocess: task.preprocess.clone(),
        regressor: task.regressor(),
        interval: None,
        encoder: vec![EncoderFile {
            path: ENCODER.into(),
            format: EncoderFormat::Onnx,
            precision: network.precision,
        }],
        bins: BinsSection {
            dim,
            bin: task.bin.clone(),
        },
        report: Vec::new(),
        provenance: Provenance {
            data: task.description(),
            text_tower: format!("embeddings of {}", name_of(bins)),
            weights: format!("imported from {onnx}"),
            architecture: format!("{} nodes, {} px", network.nodes, task.preprocess.size),
            trainer: concat!("none, numclip import ", env!("CARGO_PKG_VERSION")).into(),
            licence: task.licence(),
            ..Provenance::default()
        },
        files: BTreeMap::new(),
    }
}

/// A golden case that fits and says nothing, for a bundle to be opened with.
fn unmade(size: usize, dim: usize) -> Golden {
    let case = GoldenCase {
        width: 1,
        height: 1,
        pixels: vec![0; 3],
        tensor: vec![0.0; 3 * size * size],
        embedding: vec![0.0; dim],
        value: 0.0,
    };
    Golden { cases: vec![case] }
}

fn staged(manifest: &Manifest, contents: &Contents) -> Result<(TempDir, Arc<Bundle>), ImportError> {
    let folder = TempDir::new().map_err(|error| ImportError::file(Path::new("bundle"), error))?;
    let place = folder.path().join("bundle");
    bundle::write(&place, manifest.clone(), contents, |_| {
        Ok::<(), BundleError>(())
    })?;
    let bundle = Arc::new(Bundle::open(&place)?);
    Ok((folder, bundle))
}

/// Golden vectors by the first engine that loads the network: the last of the
/// list is the most general.
fn golden(file: &str, bundle: &Arc<Bundle>) -> Result<Golden, ImportError> {
    let mut refusals = Vec::new();
    for &engine in Engine::ALL.iter().rev() {
        match Pipeline::new(Arc::clone(bundle), Some(engine)) {
            Ok(pipeline) => return golden_by(&pipeline),
            Err(error) => refusals.push(format!("{engine}: {error}")),
        }
    }
    Err(ImportError::NoEngine {
        file: file.into(),
        refusals,
    })
}

fn golden_by(pipeline: &Pipeline) -> Result<Golden, ImportError> {
    let plan = &pipeline.bundle().manifest().preprocess;
    let longest = (plan.size as f32 * OVERSIZE) as u32;
    let mut worker = pipeline.worker()?;
    let mut cases = Vec::new();
    for index in 0..PATTERNS {
        let frame = pattern(index, longest.max(1))?;
        let encode = |tensor: &[f32]| worker.encode_tensor(tensor);
        cases.push(record(frame, plan, pipeline.bundle().estimator(), encode)?);
    }
    Ok(Golden { cases })
}

/// Every second group, and the others; pictures without a group are groups of
/// their own.
fn halves(pictures: &[Seen]) -> (Vec<&Seen>, Vec<&Seen>) {
    let mut groups: BTreeMap<&str, bool> = BTreeMap::new();
    let mut next = false;
    pictures.iter().partition(|picture| {
        let mut turn = || {
            next = !next;
            next
        };
        match &picture.group {
            Some(name) => *groups.entry(name).or_insert_with(turn),
            None => turn(),
        }
    })
}
