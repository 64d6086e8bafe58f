//! Runs merged by their settings.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;
use toml::{Table, Value};

use super::statistics::Mean;
use crate::config::Config;
use crate::eval::{self, EvalError, Evaluation};
use crate::fit::{FitError, Run};

/// Keys that make repetitions of a setting, not another one.
const REPETITION: [&str; 3] = [
    "train.seed",
    "data.protocol.fold.number",
    "data.protocol.leave_out",
];

/// Keys that say where and how something is computed, and change no number of it but for rounding.
const INDIFFERENT: [&str; 7] = [
    "train.device",
    "train.workers",
    "train.cache_mib",
    "train.checkpoint_steps",
    "train.gradient_checkpointing",
    "data.table",
    "teacher.cache",
];

/// Measures that the table leaves to JSON, for room.
const UNLISTED: [&str; 3] = ["rmse", "bias", "accuracy-argmax"];

/// Runs of a task, by setting.
#[derive(Clone, Debug, Serialize)]
pub struct Study {
    /// Name of the task.
    pub task: String,
    /// Unit of the quantity.
    pub unit: String,
    /// Which images were measured.
    pub images: String,
    /// In the order in which they were named.
    pub settings: Vec<Setting>,
}

/// All repetitions of one setting.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// What sets it apart from the others; `all` for a single setting.
    pub name: String,
    /// Values that set it apart, by dotted key.
    pub differs: BTreeMap<String, String>,
    /// The measures over its repetitions, by key.
    pub measures: BTreeMap<String, Mean>,
    /// Difference of the mean absolute error from the first setting, over the
    /// folds and seeds that both have; none for the first.
    pub difference: Option<Mean>,
    /// Its runs.
    pub runs: Vec<Member>,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct Member {
    /// Its folder.
    pub folder: PathBuf,
    /// Seed.
    pub seed: u64,
    /// Fold or group it was tested on; empty without one.
    pub fold: String,
    /// Number of training images.
    pub train_images: usize,
    /// What was measured.
    #[serde(skip)]
    pub evaluation: Evaluation,
    /// Mean absolute error on the validation images after each epoch.
    #[serde(skip)]
    pub curve: Vec<f64>,
    #[serde(skip)]
    values: BTreeMap<String, String>,
}

/// Why runs cannot be merged.
#[derive(Debug, Error)]
pub enum StudyError {
    /// A run cannot be read.
    #[error(transparent)]
    Run(#[from] FitError),
    /// A run keeps no estimates.
    #[error("{}: nothing measured yet ({error}); run: trainer eval {}", run.display(), run.display())]
    Unmeasured {
        /// The run.
        run: PathBuf,
        /// What is missing.
        error: Box<EvalError>,
    },
    /// Runs of different tasks.
    #[error("{} is a run of task `{got}`, the first run is of `{expected}`; report them apart", run.display())]
    OtherTask {
        /// The run.
        run: PathBuf,
        /// Task of the first run.
        expected: String,
        /// Its task.
        got: String,
    },
    /// Runs measured on different images.
    #[error(
        "{} is measured on {got}, {} on {expected}; report them apart, or measure them on the same \
         images", run.display(), first.display()
    )]
    OtherImages {
        /// The run.
        run: PathBuf,
        /// Its images.
        got: String,
        /// A run before it.
        first: PathBuf,
        /// The images of that one.
        expected: String,
    },
}

/// Reads the runs in `folders` and sorts them by setting.
///
/// # Errors
/// [`StudyError`] names the run.
pub fn collect(folders: &[PathBuf]) -> Result<Study, StudyError> {
    let mut members = Vec::with_capacity(folders.len());
    for folder in folders {
        members.push(member(folder)?);
    }
    let Some(first) = members
        .first()
        .map(|member: &Member| member.evaluation.clone())
    else {
        return Ok(Study {
            task: String::new(),
            unit: String::new(),
            images: String::new(),
            settings: Vec::new(),
        });
    };
    if let Some(other) = members.iter().find(|m| m.evaluation.task != first.task) {
        return Err(StudyError::OtherTask {
            run: other.folder.clone(),
            expected: first.task,
            got: other.evaluation.task.clone(),
        });
    }
    check_images(&members)?;
    Ok(Study {
        task: first.task,
        unit: first.unit,
        images: first.images,
        settings: settings(members),
    })
}

/// All runs must be measured on the same split, and those of one fold on as many of its images.
fn check_images(members: &[Member]) -> Result<(), StudyError> {
    let split = |member: &Member| member.evaluation.images.clone();
    let count = |member: &Member| format!("{} {} images", member.evaluation.count, split(member));
    for (place, member) in members.iter().enumerate() {
        let differs = |other: &&Member| {
            split(other) != split(member)
                || (other.fold == member.fold && count(other) != count(member))
        };
        if let Some(other) = members[..place].iter().find(differs) {
            return Err(StudyError::OtherImages {
                run: member.folder.clone(),
                got: count(member),
                first: other.folder.clone(),
                expected: count(other),
            });
        }
    }
    Ok(())
}

fn member(folder: &Path) -> Result<Member, StudyError> {
    let (run, config, provenance) = Run::read(folder)?;
    let (_, epochs) = run.history()?;
    let stem = provenance.measured_split().unwrap_or("val");
    let evaluation = Evaluation::read(&folder.join(eval::FOLDER), stem).map_err(|error| {
        let (run, error) = (folder.to_owned(), Box::new(error));
        StudyError::Unmeasured { run, error }
    })?;
    let protocol = &config.data.protocol;
    let fold = protocol
        .fold
        .map(|fold| format!("{}/{}", fold.number, fold.of));
    Ok(Member {
        folder: folder.into(),
        seed: config.train.seed,
        fold: fold.or(protocol.leave_out.clone()).unwrap_or_default(),
        train_images: provenance.images[0],
        curve: epochs
            .iter()
            .filter_map(|epoch| Some(epoch.validation.as_ref()?.mae))
            .collect(),
        values: values(&config, &provenance.data_digest),
        evaluation,
    })
}

/// Everything that a result hangs on but what makes repetitions, by dotted key. Data is known by
/// its digest, wherever it lies.
fn values(config: &Config, digest: &str) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    if let Ok(table) = Table::try_from(config) {
        flatten("", &Value::Table(table), &mut values);
    }
    let apart = |key: &str| !REPETITION.contains(&key) && !INDIFFERENT.contains(&key);
    values.retain(|key, _| apart(key));
    let digest: String = digest.chars().take(8).collect();
    values.insert("data.digest".into(), digest);
    values
}

fn flatten(key: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    let Value::Table(table) = value else {
        into.insert(key.into(), value.to_string());
        return;
    };
    for (name, value) in table {
        let key = if key.is_empty() {
            name.clone()
        } else {
            format!("{key}.{name}")
        };
        flatten(&key, value, into);
    }
}

fn settings(members: Vec<Member>) -> Vec<Setting> {
    let keys: BTreeSet<&String> = members.iter().flat_map(|m| m.values.keys()).collect();
    let differing: Vec<String> = keys
        .into_iter()
        .filter(|key| {
            members
                .iter()
                .any(|m| m.values.get(*key) != members[0].values.get(*key))
        })
        .cloned()
        .collect();
    let mut settings: Vec<Setting> = Vec::new();
    for member in members {
        let differs: BTreeMap<String, String> = differing
            .iter()
            .filter_map(|key| Some((key.clone(), member.values.get(key)?.clone())))
            .collect();
        match settings
            .iter_mut()
            .find(|setting| setting.differs == differs)
        {
            Some(setting) => setting.runs.push(member),
            None => settings.push(Setting {
                name: name(&differs),
                differs,
                measures: BTreeMap::new(),
                difference: None,
                runs: vec![member],
            }),
        }
    }
    for setting in &mut settings {
        setting.measures = means(&setting.runs);
    }
    let first = settings
        .first()
        .map(|setting| setting.runs.clone())
        .unwrap_or_default();
    for setting in settings.iter_mut().skip(1) {
        setting.difference = difference(&first, &setting.runs);
    }
    settings
}

/// `few_shot.images 4, regressor.kind ssr`: the last two words of each key.
fn name(differs: &BTreeMap<String, String>) -> String {
    if differs.is_empty() {
        return "all".into();
    }
    let part = |(key, value): (&String, &String)| {
        let words: Vec<&str> = key.split('.').collect();
        let short = words[words.len().saturating_sub(2)..].join(".");
        format!("{short} {}", value.trim_matches('"'))
    };
    differs.iter().map(part).collect::<Vec<_>>().join(", ")
}

/// Mean of each measure. Seeds of a fold are averaged first, so that the
/// interval is over folds where there are several, and over seeds otherwise.
fn means(runs: &[Member]) -> BTreeMap<String, Mean> {
    let keys = runs[0].evaluation.measures.iter().map(|m| m.key.clone());
    keys.filter_map(|key| {
        let of = |run: &Member| Some(run.evaluation.measure(&key)?.value);
        let values = repetitions(runs.iter().filter_map(|run| Some((run, of(run)?))));
        Some((key.clone(), Mean::of(&values)?))
    })
    .collect()
}

fn difference(first: &[Member], runs: &[Member]) -> Option<Mean> {
    let mae = |run: &Member| Some(run.evaluation.measure("mae")?.value);
    let pair = |run: &&Member| {
        first
            .iter()
            .find(|r| r.seed == run.seed && r.fold == run.fold)
    };
    let pairs = runs
        .iter()
        .filter_map(|run| Some((run, mae(run)? - mae(pair(&run)?)?)));
    Mean::of(&repetitions(pairs))
}

/// One value for each fold, or for each seed where there is but one fold.
fn repetitions<'a>(values: impl Iterator<Item = (&'a Member, f64)>) -> Vec<f64> {
    let mut by_fold: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (run, value) in values {
        by_fold.entry(&run.fold).or_default().push(value);
    }
    match by_fold.len() {
        1 => by_fold.into_values().flatten().collect(),
        _ => by_fold
            .into_values()
            .map(|seeds| seeds.iter().sum::<f64>() / seeds.len() as f64)
            .collect(),
    }
}

impl Study {
    /// What the intervals are over, for a person to read.
    pub fn repeated(&self) -> String {
        let runs = || self.settings.iter().flat_map(|setting| &setting.runs);
        let folds: BTreeSet<&str> = runs().map(|run| run.fold.as_str()).collect();
        let seeds: BTreeSet<u64> = runs().map(|run| run.seed).collect();
        match (folds.len(), seeds.len()) {
            (0 | 1, 0 | 1) => "one run each".into(),
            (0 | 1, seeds) => format!("± 95 % interval over {seeds} seeds"),
            (folds, 1) => format!("± 95 % interval over {folds} folds"),
            (folds, seeds) => {
                format!("± 95 % interval over {folds} folds, each the mean of {seeds} seeds")
            }
        }
    }

    /// The table's columns and rows, a row for each setting.
    pub fn table(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let first = self
            .settings
            .first()
            .map(|setting| &setting.runs[0].evaluation);
        let measures = first.iter().flat_map(|evaluation| &evaluation.measures);
        let keys: Vec<&String> = measures
            .map(|measure| &measure.key)
            .filter(|key| !UNLISTED.contains(&key.as_str()))
            .collect();
        let mut columns = vec!["setting".to_owned(), "runs".into()];
        columns.extend(keys.iter().map(|key| match key.as_str() {
            "mae" => format!("MAE {}", self.unit).trim_end().to_owned(),
            _ => format!("{key}, %"),
        }));
        columns.extend((self.settings.len() > 1).then(|| "MAE against the first".to_owned()));
        let row = |setting: &Setting| {
            let mut row = vec![setting.name.clone(), setting.runs.len().to_string()];
            row.extend(keys.iter().map(|key| {
                let (scale, digits) = if key.as_str() == "mae" {
                    (1.0, 3)
                } else {
                    (100.0, 1)
                };
                setting
                    .measures
                    .get(*key)
                    .map_or(String::new(), |mean| mean.text(scale, digits))
            }));
            if self.settings.len() > 1 {
                row.push(setting.difference.map_or(String::new(), |mean| {
                    let sign = if mean.mean >= 0.0 { "+" } else { "" };
                    format!("{sign}{}", mean.text(1.0, 3))
                }));
            }
            row
        };
        (columns, self.settings.iter().map(row).collect())
    }

    /// The table for a terminal.
    pub fn text(&self) -> String {
        let (columns, rows) = self.table();
        let all: Vec<&Vec<String>> = [&columns].into_iter().chain(&rows).collect();
        let width = |place: usize| {
            all.iter()
                .map(|row| row[place].chars().count())
                .max()
                .unwrap_or(0)
        };
        let mut text = format!(
            "{}, {} images, {}\n",
            self.task,
            self.images,
            self.repeated()
        );
        for row in &all {
            let cells = row.iter().enumerate().map(|(place, cell)| {
                let width = width(place);
                if place == 0 {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
            text += "\n";
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::Variant;

    #[test]
    fn places_and_threads_make_no_other_setting_but_other_data_does() {
        let task = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tasks/age.toml"));
        let with = |pairs: &[&str], digest: &str| {
            let variant = Variant {
                set: pairs.iter().map(|pair| pair.parse().unwrap()).collect(),
                ..Variant::default()
            };
            values(&variant.read(task).unwrap(), digest)
        };
        let plain = with(&[], "00");
        let elsewhere = [
            "train.workers=3",
            "train.cache_mib=7",
            "train.checkpoint_steps=9",
            "train.device=cpu",
            "data.table=elsewhere/labels.csv",
        ];
        assert_eq!(with(&elsewhere, "00"), plain);
        assert_ne!(with(&[], "01"), plain);
        assert_ne!(with(&["train.epochs=3"], "00"), plain);
    }
}
