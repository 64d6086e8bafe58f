//! The task file of an import: what the trainer's says, as far as it is used.

use std::path::Path;

use serde::Deserialize;

use super::{ImportError, name_of};
use crate::bins::{Bin, check_ranges};
use crate::bundle::TaskSection;
use crate::estimate::Regressor;
use crate::preprocess::Plan;

/// A task file. The trainer's sections on training are passed over.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskFile {
    pub task: Task,
    pub bin: Vec<Bin>,
    pub preprocess: Plan,
    /// As in a bundle; the mean of the bins' middles if absent.
    regressor: Option<Regressor>,
    #[serde(default)]
    model: Model,
    #[serde(default)]
    export: Export,
    #[serde(default)]
    data: Data,
    #[serde(default, rename = "text")]
    _text: toml::Table,
    #[serde(default, rename = "clip")]
    _clip: toml::Table,
    #[serde(default, rename = "augment")]
    _augment: toml::Table,
    #[serde(default, rename = "train")]
    _train: toml::Table,
    #[serde(default, rename = "teacher")]
    _teacher: toml::Table,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    pub name: String,
    #[serde(default = "first_version")]
    pub version: String,
    #[serde(default)]
    unit: String,
    range: [f32; 2],
    #[serde(default)]
    thresholds: Vec<f32>,
}

/// Of the trainer's section only the head is of use.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Model {
    head: Head,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Head {
    logit_scale: f32,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Export {
    coverage: f32,
    licence: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Data {
    description: String,
}

impl Default for Head {
    /// CLIP's own.
    fn default() -> Self {
        Self { logit_scale: 100.0 }
    }
}

impl Default for Export {
    fn default() -> Self {
        Self {
            coverage: super::COVERAGE,
            licence: String::new(),
        }
    }
}

impl TaskFile {
    /// Reads the file; `size` is the side that the network asks for, if it does.
    pub fn read(path: &Path, size: Option<u32>) -> Result<Self, ImportError> {
        let bytes = super::read(path)?;
        let at = |error: &dyn std::fmt::Display| ImportError::file(path, error.to_string());
        let text = str::from_utf8(&bytes).map_err(|error| at(&error))?;
        let mut table: toml::Table = toml::from_str(text).map_err(|error| at(&error))?;
        let file = name_of(path);
        let Some(toml::Value::Table(plan)) = table.get_mut("preprocess") else {
            return Err(ImportError::mismatch(
                &file,
                "[preprocess]",
                "how the encoder's pictures were prepared (mean, std, resize, filter, channels)",
                "nothing",
            ));
        };
        if let (false, Some(size)) = (plan.contains_key("size"), size) {
            plan.insert("size".into(), i64::from(size).into());
        }
        let task: Self = table.try_into().map_err(|error| at(&error))?;
        check_ranges(&task.bin).map_err(|error| ImportError::of_bins(path, &error))?;
        task.preprocess.check().map_err(|error| at(&error))?;
        match size {
            Some(size) if size != task.preprocess.size => Err(ImportError::mismatch(
                &file,
                "preprocess.size",
                format!("{size}, the side of the network's input"),
                task.preprocess.size.to_string(),
            )),
            _ => Ok(task),
        }
    }

    pub fn section(&self) -> TaskSection {
        TaskSection {
            name: self.task.name.clone(),
            unit: self.task.unit.clone(),
            range: self.task.range,
        }
    }

    pub fn regressor(&self) -> Regressor {
        let values = || self.bin.iter().map(Bin::center).collect();
        let regressor = self.regressor.clone();
        regressor.unwrap_or_else(|| Regressor::Expectation { values: values() })
    }

    pub fn logit_scale(&self) -> f32 {
        self.model.head.logit_scale
    }

    /// Share of labels within the interval.
    pub fn coverage(&self) -> f32 {
        self.export.coverage
    }

    pub fn licence(&self) -> String {
        self.export.licence.clone()
    }

    pub fn description(&self) -> String {
        self.data.description.clone()
    }

    /// Errors counted as right: those of the file, or 1, 2, 5 and 10 % of the range.
    pub fn thresholds(&self) -> Vec<f32> {
        match self.task.thresholds.is_empty() {
            true => super::thresholds(self.task.range),
            false => self.task.thresholds.clone(),
        }
    }
}

fn first_version() -> String {
    "0.1.0".into()
}
