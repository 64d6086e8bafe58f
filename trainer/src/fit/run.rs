//! The folder of a run: what it was asked, what it measured, what it learned.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use numclip::metrics::Metrics;
use serde::{Deserialize, Serialize};

use super::checkpoint::{Counters, file_error, write};
use super::meter::Speed;
use super::{FitError, Prepared, TeacherSource, WeightsSource};
use crate::config::Config;
use crate::text::TextSource;

const TASK: &str = "task.toml";
const PROVENANCE: &str = "provenance.json";
const METRICS: &str = "metrics.jsonl";
const SPEED: &str = "speed.jsonl";
const CHECKPOINT: &str = "checkpoint.safetensors";
const BEST: &str = "best.safetensors";
/// The bin embeddings of a student, so that it needs its teacher no more.
const BINS: &str = "bins.safetensors";

/// The folder of a run.
pub struct Run {
    folder: PathBuf,
    metrics: RefCell<File>,
}

/// What the run was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Version of the trainer.
    pub trainer: String,
    /// SHA-256 over paths, labels and images.
    pub data_digest: String,
    /// Number of images for training, validation and test.
    pub images: [usize; 3],
    /// What was found wrong with the data and accepted all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Where the bin embeddings come from.
    pub text: TextSource,
    /// How well the bin embeddings follow the order of the bins, 0 to 1.
    pub ordinality: f64,
    /// The weights that the encoder started from; none if it started from random ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<WeightsSource>,
    /// The model that it learned from, if it had a teacher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherSource>,
}

/// One step, as `metrics.jsonl` holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepRecord {
    /// Epoch, from 1.
    pub epoch: usize,
    /// Step within the epoch, from 1.
    pub step: usize,
    /// Loss of the batch.
    pub loss: f64,
    /// Norm of all gradients, before clipping.
    pub gradient_norm: f64,
    /// Learning rate of parameters without a group of their own.
    pub learning_rate: f64,
}

/// One epoch, as `metrics.jsonl` holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochRecord {
    /// Epoch, from 1.
    pub epoch: usize,
    /// Mean loss of the steps.
    pub train_loss: f64,
    /// Mean absolute error on the augmented training images, in the task's unit.
    pub train_mae: f64,
    /// Measures on the validation images.
    pub validation: Option<Metrics>,
}

impl Run {
    /// Starts a run in `folder`, or opens the one that is there to `resume` it.
    ///
    /// # Errors
    /// [`FitError`] when the folder holds a run already (or none, to resume),
    /// or task file or data are not those the run began with.
    pub fn open(
        folder: &Path,
        config: &Config,
        prepared: &Prepared,
        resume: bool,
    ) -> Result<Self, FitError> {
        let begun = Self::is_begun(folder);
        match (resume, begun) {
            (false, true) => return Err(FitError::Exists(folder.into())),
            (true, false) => return Err(FitError::NothingToResume(folder.into())),
            (true, true) => compare(folder, config, prepared)?,
            (false, false) => begin(folder, config, prepared)?,
        }
        let path = folder.join(METRICS);
        let metrics = OpenOptions::new().create(true).append(true).open(&path);
        let metrics = metrics.map_err(|error| file_error(&path, &error))?;
        Ok(Self {
            folder: folder.into(),
            metrics: RefCell::new(metrics),
        })
    }

    /// Whether `folder` holds a run that can be resumed.
    pub fn is_begun(folder: &Path) -> bool {
        folder.join(CHECKPOINT).is_file()
    }

    /// Opens a run to read from it: its task file and what it was made from. The bin embeddings of
    /// a student are those kept with the run.
    ///
    /// # Errors
    /// [`FitError::File`] when a file of the run is missing or damaged.
    pub fn read(folder: &Path) -> Result<(Self, Config, Provenance), FitError> {
        let path = folder.join(METRICS);
        let metrics = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|error| file_error(&path, &error))?;
        let run = Self {
            folder: folder.into(),
            metrics: RefCell::new(metrics),
        };
        let mut config = read_config(folder)?;
        if config.teacher.is_some() {
            config.text.embeddings = Some(folder.join(BINS));
        }
        Ok((run, config, read_provenance(folder)?))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The checkpoint that the run resumes from.
    pub fn checkpoint(&self) -> PathBuf {
        self.folder.join(CHECKPOINT)
    }

    /// The weights of the best epoch.
    pub fn best(&self) -> PathBuf {
        self.folder.join(BEST)
    }

    /// All measurements so far: steps and epochs.
    ///
    /// # Errors
    /// [`FitError::File`] when the file is missing or a line is damaged.
    pub fn history(&self) -> Result<(Vec<StepRecord>, Vec<EpochRecord>), FitError> {
        let path = self.folder.join(METRICS);
        let text = fs::read_to_string(&path).map_err(|error| file_error(&path, &error))?;
        let (mut steps, mut epochs) = (Vec::new(), Vec::new());
        for (number, line) in text.lines().enumerate() {
            match (serde_json::from_str(line), serde_json::from_str(line)) {
                (Ok(step), _) => steps.push(step),
                (_, Ok(epoch)) => epochs.push(epoch),
                (Err(error), _) => {
                    return Err(file_error(&path, &format!("line {}: {error}", number + 1)));
                }
            }
        }
        Ok((steps, epochs))
    }

    pub(super) fn append(&self, record: &impl Serialize) -> Result<(), FitError> {
        let path = self.folder.join(METRICS);
        let mut line = serde_json::to_vec(record).map_err(|error| file_error(&path, &error))?;
        line.push(b'\n');
        self.metrics
            .borrow_mut()
            .write_all(&line)
            .map_err(|error| file_error(&path, &error))
    }

    /// Notes how fast an epoch was.
    pub(super) fn append_speed(&self, speed: &Speed) -> Result<(), FitError> {
        let path = self.folder.join(SPEED);
        let append = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            writeln!(file, "{}", serde_json::to_string(speed)?)
        };
        append().map_err(|error| file_error(&path, &error))
    }

    /// Length of the measurements once they are on disk.
    pub(super) fn flush(&self) -> Result<u64, FitError> {
        let file = self.metrics.borrow();
        let length = file
            .sync_all()
            .and_then(|()| file.metadata())
            .map(|metadata| metadata.len());
        length.map_err(|error| file_error(&self.folder.join(METRICS), &error))
    }

    /// Drops measurements of steps that will be done again.
    pub(super) fn truncate_metrics(&self, counters: &Counters) -> Result<(), FitError> {
        let path = self.folder.join(METRICS);
        let truncated = OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(counters.metrics_bytes));
        truncated.map_err(|error| file_error(&path, &error))
    }
}

fn begin(folder: &Path, config: &Config, prepared: &Prepared) -> Result<(), FitError> {
    fs::create_dir_all(folder).map_err(|error| file_error(folder, &error))?;
    let metrics = folder.join(METRICS);
    File::create(&metrics).map_err(|error| file_error(&metrics, &error))?;
    let text = toml::to_string(config).map_err(|error| file_error(&folder.join(TASK), &error))?;
    write(&folder.join(TASK), text.as_bytes())?;
    if prepared.teacher.is_some() {
        let path = folder.join(BINS);
        let bins = prepared.embeddings.to_bytes();
        write(&path, &bins.map_err(|error| file_error(&path, &error))?)?;
    }
    let provenance = provenance(prepared);
    let json = serde_json::to_vec_pretty(&provenance)
        .map_err(|error| file_error(&folder.join(PROVENANCE), &error))?;
    write(&folder.join(PROVENANCE), &json)
}

fn compare(folder: &Path, config: &Config, prepared: &Prepared) -> Result<(), FitError> {
    let mut begun = read_config(folder)?;
    begun.train.device = config.train.device.clone();
    if begun != *config {
        return Err(FitError::Changed {
            what: format!("the task file (see {})", folder.join(TASK).display()),
        });
    }
    match read_provenance(folder)? == provenance(prepared) {
        true => Ok(()),
        false => Err(FitError::Changed {
            what: "the data set, a weight file, the teacher or the trainer".into(),
        }),
    }
}

fn provenance(prepared: &Prepared) -> Provenance {
    let splits = &prepared.splits;
    Provenance {
        trainer: env!("CARGO_PKG_VERSION").into(),
        data_digest: prepared.digest.clone(),
        images: [splits.train.len(), splits.val.len(), splits.test.len()],
        warnings: prepared.warnings.clone(),
        text: prepared.embeddings.source.clone(),
        ordinality: prepared.ordinality,
        init: prepared.init.clone(),
        teacher: prepared.teacher.clone(),
    }
}

fn read_config(folder: &Path) -> Result<Config, FitError> {
    let path = folder.join(TASK);
    Config::read(&path).map_err(|error| file_error(&path, &error))
}

fn read_provenance(folder: &Path) -> Result<Provenance, FitError> {
    let path = folder.join(PROVENANCE);
    let bytes = fs::read(&path).map_err(|error| file_error(&path, &error))?;
    serde_json::from_slice(&bytes).map_err(|error| file_error(&path, &error))
}
