//! What one run of a task changes in its task file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::{Table, Value};

use crate::config::{Config, ConfigError};
use crate::data::protocol::{Class, FewShot, Fold, FoldSource, Shift};
use crate::data::{DataError, Dataset, LeakPolicy};

/// Changes to a task file; none by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Variant {
    /// One fold of a cross-validation.
    pub fold: Option<Fold>,
    /// The group to test on.
    pub leave_out: Option<String>,
    /// Training images of each class.
    pub few_shot: Option<FewShot>,
    /// Thinned classes.
    pub shift: Option<Shift>,
    /// Seed of the run.
    pub seed: Option<u64>,
    /// What to do about leaks.
    pub leaks: Option<LeakPolicy>,
    /// Any other values.
    pub set: Vec<Set>,
}

/// A value of the task file by its dotted key.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// Such as `train.epochs`.
    pub key: String,
    /// As TOML.
    pub value: Value,
}

/// What the runs of a study have in turn: every combination is a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What all runs share.
    pub base: Variant,
    /// Number of folds; 0 for no cross-validation.
    pub folds: usize,
    /// Where the folds come from.
    pub folds_from: FoldSource,
    /// Groups to leave out, one after the other.
    pub groups: Vec<String>,
    /// Training images of each class; none for all images.
    pub few_shot: Vec<usize>,
    /// What a class is.
    pub per: Class,
    /// Seeds; none for that of the task file.
    pub seeds: Vec<u64>,
    /// Alternatives, each a list of values to set; none for the task file as it is.
    pub variants: Vec<Vec<Set>>,
}

impl Variant {
    /// The task file with these changes.
    ///
    /// # Errors
    /// [`ConfigError`] when the file or the changed values cannot be used.
    pub fn read(&self, task: &Path) -> Result<Config, ConfigError> {
        Config::read_with(task, |table| {
            let typed = self.values();
            let set = self.set.iter().map(|set| (set.key.as_str(), &set.value));
            let typed = typed.iter().map(|(key, value)| (*key, value));
            for (key, value) in typed.chain(set) {
                insert(table, key, value.clone());
            }
        })
    }

    /// Folder of the run under `runs`: the task's name and what is changed.
    pub fn folder(&self, runs: &Path, task: &str) -> PathBuf {
        let mut name = task.to_owned();
        let parts = self.parts();
        for part in &parts {
            name += "-";
            name += &plain(part);
        }
        runs.join(name)
    }

    /// What is changed, a word for each: `fold2of5`, `shots4`, `seed3`.
    fn parts(&self) -> Vec<String> {
        let mut parts = Vec::new();
        if let Some(Fold { number, of, from }) = self.fold {
            let groups = if from == FoldSource::Groups {
                "groups"
            } else {
                ""
            };
            parts.push(format!("fold{number}of{of}{groups}"));
        }
        if let Some(group) = &self.leave_out {
            parts.push(format!("without-{group}"));
        }
        if let Some(few) = &self.few_shot {
            parts.push(format!("shots{}{}", few.images, per(few.per, "per-")));
        }
        if let Some(shift) = &self.shift {
            let per = per(shift.per, "per-");
            parts.push(format!("shift{}x{}{per}", shift.classes, shift.keep));
        }
        parts.extend(
            self.set
                .iter()
                .map(|set| format!("{}={}", set.key, text(&set.value))),
        );
        parts.extend(self.seed.map(|seed| format!("seed{seed}")));
        parts
    }

    /// The flags of `trainer fit` that ask for these changes.
    pub fn flags(&self) -> Vec<String> {
        let mut flags: Vec<String> = Vec::new();
        let mut flag = |name: &str, value: String| flags.extend([name.to_owned(), value]);
        if let Some(Fold { number, of, from }) = self.fold {
            flag("--fold", format!("{number}/{of}"));
            if from != FoldSource::Auto {
                flag("--folds-from", keyword(&from));
            }
        }
        if let Some(group) = &self.leave_out {
            flag("--leave-out", group.clone());
        }
        if let Some(few) = &self.few_shot {
            flag("--few-shot", few.images.to_string());
        }
        if let Some(shift) = &self.shift {
            flag("--shift", format!("{}:{}", shift.classes, shift.keep));
        }
        let classes = [self.few_shot.map(|f| f.per), self.shift.map(|s| s.per)];
        if classes.contains(&Some(Class::Bin)) {
            flag("--per", keyword(&Class::Bin));
        }
        if let Some(seed) = self.seed {
            flag("--seed", seed.to_string());
        }
        if let Some(leaks) = &self.leaks {
            flag("--leaks", keyword(leaks));
        }
        for set in &self.set {
            flag("--set", set.to_string());
        }
        flags
    }

    fn values(&self) -> Vec<(&'static str, Value)> {
        let mut values = Vec::new();
        let mut add = |key, value: Result<Value, toml::ser::Error>| {
            values.extend(value.ok().map(|value| (key, value)));
        };
        if let Some(fold) = &self.fold {
            add("data.protocol.fold", Value::try_from(fold));
        }
        if let Some(group) = &self.leave_out {
            add("data.protocol.leave_out", Value::try_from(group));
        }
        if let Some(few) = &self.few_shot {
            add("data.protocol.few_shot", Value::try_from(few));
        }
        if let Some(shift) = &self.shift {
            add("data.protocol.shift", Value::try_from(shift));
        }
        if let Some(seed) = &self.seed {
            add("train.seed", Value::try_from(seed));
        }
        if let Some(leaks) = &self.leaks {
            add("data.leaks", Value::try_from(leaks));
        }
        values
    }
}

impl Plan {
    /// Every run, in an order that gives first results for all alternatives early.
    pub fn variants(&self) -> Vec<Variant> {
        let mut variants = vec![self.base.clone()];
        variants = spread(variants, &self.seeds, |v, &seed| v.seed = Some(seed));
        let folds: Vec<usize> = (1..=self.folds).collect();
        variants = spread(variants, &folds, |v, &number| {
            v.fold = Some(Fold {
                number,
                of: self.folds,
                from: self.folds_from,
            });
        });
        variants = spread(variants, &self.groups, |v, group| {
            v.leave_out = Some(group.clone());
        });
        variants = spread(variants, &self.few_shot, |v, &images| {
            v.few_shot = Some(FewShot {
                images,
                val_images: None,
                per: self.per,
            });
        });
        spread(variants, &self.variants, |v, set| {
            v.set.extend_from_slice(set)
        })
    }
}

/// The groups of a task's images, in ascending order.
///
/// # Errors
/// If the table cannot be used.
pub fn groups(config: &Config) -> Result<Vec<String>, DataError> {
    let data = &config.data;
    let dataset = Dataset::open(&data.table, &data.columns, config.task.range)?;
    let groups = dataset.samples().iter().filter_map(|s| s.group.clone());
    let groups: std::collections::BTreeSet<String> = groups.collect();
    Ok(groups.into_iter().collect())
}

impl FromStr for Set {
    type Err = String;

    /// Reads `key=value`; a value that is not TOML is taken as text.
    fn from_str(pair: &str) -> Result<Self, String> {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(format!("expected KEY=VALUE, got `{pair}`"));
        };
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() || key.split('.').any(str::is_empty) {
            return Err(format!(
                "expected a dotted key such as train.epochs, got `{key}`"
            ));
        }
        let parsed = format!("v = {value}").parse::<Table>().ok();
        let parsed = parsed.and_then(|mut table| table.remove("v"));
        Ok(Self {
            key: key.into(),
            value: parsed.unwrap_or_else(|| Value::String(value.into())),
        })
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, text(&self.value))
    }
}

/// Every one of `variants` with each of `values`; as they are without values.
fn spread<T>(variants: Vec<Variant>, values: &[T], set: impl Fn(&mut Variant, &T)) -> Vec<Variant> {
    if values.is_empty() {
        return variants;
    }
    let each = |variant: Variant| {
        values
            .iter()
            .map(move |value| (variant.clone(), value))
            .collect::<Vec<_>>()
    };
    variants
        .into_iter()
        .flat_map(each)
        .map(|(mut variant, value)| {
            set(&mut variant, value);
            variant
        })
        .collect()
}

/// Puts `value` at the dotted `key`, through tables that are made as needed.
fn insert(table: &mut Table, key: &str, value: Value) {
    let Some((head, rest)) = key.split_once('.') else {
        table.insert(key.into(), value);
        return;
    };
    let inner = table
        .entry(head)
        .or_insert_with(|| Value::Table(Table::new()));
    match inner {
        Value::Table(inner) => insert(inner, rest, value),
        // A plain value with keys below it: the check of the file says so.
        other => *other = Value::Table(Table::from_iter([(rest.to_owned(), value)])),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn keyword(value: &impl serde::Serialize) -> String {
    Value::try_from(value)
        .map(|value| text(&value))
        .unwrap_or_default()
}

fn per(class: Class, before: &str) -> String {
    match class {
        Class::Label => String::new(),
        Class::Bin => format!("{before}bin"),
    }
}

/// Letters, digits, `.` and `_` stay, everything else becomes `-`.
fn plain(part: &str) -> String {
    let fit = |c: char| {
        if c.is_alphanumeric() || "._".contains(c) {
            c
        } else {
            '-'
        }
    };
    part.chars().map(fit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            folds: 2,
            few_shot: vec![1, 4],
            seeds: vec![0, 1, 2],
            variants: vec![
                vec!["model.head.regressor.kind=ssr".parse().unwrap()],
                vec!["train.loss.value=0".parse().unwrap()],
            ],
            ..Plan::default()
        }
    }

    #[test]
    fn a_plan_is_every_combination_in_a_folder_of_its_own() {
        let variants = plan().variants();
        assert_eq!(variants.len(), 2 * 2 * 3 * 2);
        let folders: std::collections::BTreeSet<PathBuf> = variants
            .iter()
            .map(|v| v.folder(Path::new("runs"), "age"))
            .collect();
        assert_eq!(folders.len(), variants.len());
        assert!(folders.contains(Path::new(
            "runs/age-fold2of2-shots4-train.loss.value-0-seed1"
        )));
        assert_eq!(
            variants[0].flags().join(" "),
            "--fold 1/2 --few-shot 1 --seed 0 --set model.head.regressor.kind=ssr"
        );
        assert_eq!(
            Variant::default().folder(Path::new("runs"), "age"),
            Path::new("runs/age")
        );
    }

    #[test]
    fn values_are_toml_or_text() {
        let value = |pair: &str| pair.parse::<Set>().unwrap().value;
        assert_eq!(value("a.b=3"), Value::Integer(3));
        assert_eq!(value("a=[1, 2]").as_array().unwrap().len(), 2);
        assert_eq!(value("a=ssr"), Value::String("ssr".into()));
        for wrong in ["a", "=3", "a..b=1"] {
            assert!(wrong.parse::<Set>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn changes_reach_the_configuration_and_wrong_keys_are_named() {
        let task = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tasks/age.toml"));
        let variant = Variant {
            fold: Some(Fold {
                number: 2,
                of: 5,
                from: FoldSource::Auto,
            }),
            seed: Some(7),
            set: vec!["train.optimizer.lr=0.5".parse().unwrap()],
            ..Variant::default()
        };
        let config = variant.read(task).unwrap();
        assert_eq!((config.train.seed, config.train.optimizer.lr), (7, 0.5));
        assert_eq!(config.data.protocol.fold, variant.fold);
        let wrong = Variant {
            set: vec!["train.epocs=3".parse().unwrap()],
            ..Variant::default()
        };
        let message = wrong.read(task).unwrap_err().to_string();
        assert!(message.contains("epocs"), "{message}");
    }
}
