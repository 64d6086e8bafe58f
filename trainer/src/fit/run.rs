//! The folder of a run: what it was asked, what it measured, what it learned.

use std::cell::OnceCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use numclip::metrics::Metrics;
use serde::{Deserialize, Serialize};

use super::checkpoint::{Counters, file_error, write};
use super::meter::Speed;
use super::prepare::digest_of_all;
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
    /// Opened when something is measured: to read a run takes no right to write.
    metrics: OnceCell<File>,
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
    /// SHA-256 over these images in their order; empty in a run of an older trainer.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub splits: String,
    /// The same over the images without labels; empty without any.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unlabelled: String,
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

impl Provenance {
    /// The split that a run is measured on: test, else validation; none without images in either.
    pub fn measured_split(&self) -> Option<&'static str> {
        match self.images {
            [_, 0, 0] => None,
            [_, _, 0] => Some("val"),
            _ => Some("test"),
        }
    }

    /// The digest of the images that the run was made from, and that of `prepared`, which was made
    /// for reading it. They are over the labelled images and their splits; for a run of an older
    /// trainer, over all images and no splits.
    ///
    /// # Errors
    /// [`FitError`] when images of an older run are gone.
    pub fn digests(&self, config: &Config, prepared: &Prepared) -> Result<[String; 2], FitError> {
        Ok(match self.splits.is_empty() {
            true => [self.data_digest.clone(), digest_of_all(config)?],
            false => [self.splits.clone(), prepared.splits_digest()],
        })
    }
}

/// What a folder holds of a run.
enum Found {
    /// What it resumes from.
    Checkpoint,
    /// Weights alone.
    Weights,
    /// A beginning, of which nothing was learned yet.
    Beginning,
    /// A task file that no run wrote.
    Foreign,
    Nothing,
}

impl Run {
    /// Starts a run in `folder`, or opens the one that is there to `resume` it. A run that ended
    /// ahead of its first checkpoint is started anew.
    ///
    /// # Errors
    /// [`FitError`] when the folder holds a run already (or none, to resume) or a task file of
    /// another's, or task file or data are not those the run began with.
    pub fn open(
        folder: &Path,
        config: &Config,
        prepared: &Prepared,
        resume: bool,
    ) -> Result<Self, FitError> {
        match (found(folder), resume) {
            (Found::Checkpoint, true) => compare(folder, config, prepared)?,
            (Found::Checkpoint, false) => return Err(FitError::Exists(folder.into())),
            (Found::Weights, _) => return Err(FitError::NoCheckpoint(folder.into())),
            (Found::Foreign, _) => return Err(FitError::Foreign(folder.into())),
            (Found::Nothing, true) => return Err(FitError::NothingToResume(folder.into())),
            (Found::Beginning, _) | (Found::Nothing, false) => begin(folder, config, prepared)?,
        }
        Ok(Self::at(folder))
    }

    fn at(folder: &Path) -> Self {
        Self {
            folder: folder.into(),
            metrics: OnceCell::new(),
        }
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
        let mut config = read_config(folder)?;
        if config.teacher.is_some() {
            config.text.embeddings = Some(folder.join(BINS));
        }
        Ok((Self::at(folder), config, read_provenance(folder)?))
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

    /// All measurements so far: steps and epochs. A last line that was not written to its end is
    /// none.
    ///
    /// # Errors
    /// [`FitError::File`] when the file is missing or a line is damaged.
    pub fn history(&self) -> Result<(Vec<StepRecord>, Vec<EpochRecord>), FitError> {
        let path = self.folder.join(METRICS);
        let text = fs::read_to_string(&path).map_err(|error| file_error(&path, &error))?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let (mut steps, mut epochs) = (Vec::new(), Vec::new());
        for (number, line) in whole.lines().enumerate() {
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
        let written = self.metrics().and_then(|mut file| file.write_all(&line));
        written.map_err(|error| file_error(&path, &error))
    }

    fn metrics(&self) -> io::Result<&File> {
        if let Some(file) = self.metrics.get() {
            return Ok(file);
        }
        let path = self.folder.join(METRICS);
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(self.metrics.get_or_init(|| file))
    }

    /// Notes how fast an epoch was.
    pub(super) fn append_speed(&self, speed: &Speed) -> Result<(), FitError> {
        let path = self.folder.join(SPEED);
        let append = || -> io::Result<()> {
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            writeln!(file, "{}", serde_json::to_string(speed)?)
        };
        append().map_err(|error| file_error(&path, &error))
    }

    /// Length of the measurements once they are on disk.
    pub(super) fn flush(&self) -> Result<u64, FitError> {
        let length = || -> io::Result<u64> {
            let file = self.metrics()?;
            file.sync_all()?;
            Ok(file.metadata()?.len())
        };
        length().map_err(|error| file_error(&self.folder.join(METRICS), &error))
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

fn found(folder: &Path) -> Found {
    let has = |name: &str| folder.join(name).is_file();
    match () {
        () if has(CHECKPOINT) => Found::Checkpoint,
        () if has(BEST) => Found::Weights,
        () if has(PROVENANCE) => Found::Beginning,
        () if has(TASK) => Found::Foreign,
        () => Found::Nothing,
    }
}

/// The provenance comes first: by it a beginning is told from a task file of the user's.
fn begin(folder: &Path, config: &Config, prepared: &Prepared) -> Result<(), FitError> {
    fs::create_dir_all(folder).map_err(|error| file_error(folder, &error))?;
    let path = folder.join(PROVENANCE);
    let json = serde_json::to_vec_pretty(&provenance(prepared));
    write(&path, &json.map_err(|error| file_error(&path, &error))?)?;
    for name in [METRICS, SPEED] {
        let path = folder.join(name);
        File::create(&path).map_err(|error| file_error(&path, &error))?;
    }
    if prepared.teacher.is_some() {
        let path = folder.join(BINS);
        let bins = prepared.embeddings.to_bytes();
        write(&path, &bins.map_err(|error| file_error(&path, &error))?)?;
    }
    let text = toml::to_string(config).map_err(|error| file_error(&folder.join(TASK), &error))?;
    write(&folder.join(TASK), text.as_bytes())
}

fn compare(folder: &Path, config: &Config, prepared: &Prepared) -> Result<(), FitError> {
    let mut begun = read_config(folder)?;
    begun.train.device = config.train.device.clone();
    if begun != *config {
        return Err(FitError::Changed {
            what: format!("the task file (see {})", folder.join(TASK).display()),
        });
    }
    let changed = changes(&read_provenance(folder)?, &provenance(prepared));
    match changed.is_empty() {
        true => Ok(()),
        false => Err(FitError::Changed {
            what: changed.join(", "),
        }),
    }
}

/// What differs, in words. A run of an older trainer has no digest of its splits.
pub(super) fn changes(begun: &Provenance, now: &Provenance) -> Vec<&'static str> {
    let has_splits = !begun.splits.is_empty();
    let splits = begun.images != now.images || (has_splits && begun.splits != now.splits);
    let bins = begun.text != now.text || begun.ordinality != now.ordinality;
    let all = [
        (begun.data_digest != now.data_digest, "images or labels"),
        (
            splits,
            "the splits, for which the order of the table's rows counts",
        ),
        (
            has_splits && begun.unlabelled != now.unlabelled,
            "the images without labels",
        ),
        (bins, "the bin embeddings"),
        (begun.init != now.init, "the weights of model.init"),
        (begun.teacher != now.teacher, "the teacher"),
        (begun.trainer != now.trainer, "the trainer's version"),
    ];
    let changed = all.into_iter().filter(|(changed, _)| *changed);
    changed.map(|(_, what)| what).collect()
}

pub(super) fn provenance(prepared: &Prepared) -> Provenance {
    let splits = &prepared.splits;
    Provenance {
        trainer: env!("CARGO_PKG_VERSION").into(),
        data_digest: prepared.digest.clone(),
        images: [splits.train.len(), splits.val.len(), splits.test.len()],
        splits: prepared.splits_digest(),
        unlabelled: prepared.unlabelled_digest(),
        warnings: prepared.warnings.clone(),
        text: prepared.embeddings.source.clone(),
        ordinality: prepared.ordinality,
        init: prepared.init.clone(),
        teacher: prepared.teacher.clone(),
    }
}

fn read_config(folder: &Path) -> Result<Config, FitError> {
    let path = folder.join(TASK);
    Config::read_resolved(&path).map_err(|error| file_error(&path, &error))
}

fn read_provenance(folder: &Path) -> Result<Provenance, FitError> {
    let path = folder.join(PROVENANCE);
    let bytes = fs::read(&path).map_err(|error| file_error(&path, &error))?;
    serde_json::from_slice(&bytes).map_err(|error| file_error(&path, &error))
}
