//! What one run of a task changes in its task file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::{Table, Value};

use crate::config::{Config, ConfigError};
use crate::data::protocol::{Class, FoldSource};
use crate::data::{DataError, Dataset, LeakPolicy};

/// Changes to a task file; none by default. What is none here stays as the file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Variant {
    /// One fold of a cross-validation, from 1, and the number of folds.
    pub fold: Option<(usize, usize)>,
    /// Where the folds come from; only beside `fold`.
    pub folds_from: Option<FoldSource>,
    /// The group to test on.
    pub leave_out: Option<String>,
    /// Training images of each class.
    pub few_shot: Option<usize>,
    /// How many of the largest classes are thinned, and the share of their images that stays.
    pub shift: Option<(usize, f32)>,
    /// What a class is; only beside `few_shot` or `shift`.
    pub per: Option<Class>,
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
    /// Groups to leave out, one after the other.
    pub groups: Vec<String>,
    /// Training images of each class; none for all images.
    pub few_shot: Vec<usize>,
    /// Seeds; none for that of the task file.
    pub seeds: Vec<u64>,
    /// Alternatives, each a list of values to set; none for the task file as it is.
    pub variants: Vec<Vec<Set>>,
}

impl Set {
    /// Sets the value in a task file.
    pub fn apply(&self, table: &mut Table) {
        insert(table, &self.key, self.value.clone());
    }
}

impl Variant {
    /// The task file with these changes.
    ///
    /// # Errors
    /// [`ConfigError`] when the file or the changed values cannot be used.
    pub fn read(&self, task: &Path) -> Result<Config, ConfigError> {
        Config::read_with(task, |table| {
            for (key, value) in self.values() {
                insert(table, key, value);
            }
            self.set.iter().for_each(|set| set.apply(table));
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
        let by_bin = match self.per {
            Some(Class::Bin) => "per-bin",
            _ => "",
        };
        if let Some((number, of)) = self.fold {
            let groups = match self.folds_from {
                Some(FoldSource::Groups) => "groups",
                _ => "",
            };
            parts.push(format!("fold{number}of{of}{groups}"));
        }
        if let Some(group) = &self.leave_out {
            parts.push(format!("without-{group}"));
        }
        if let Some(images) = self.few_shot {
            parts.push(format!("shots{images}{by_bin}"));
        }
        if let Some((classes, keep)) = self.shift {
            parts.push(format!("shift{classes}x{keep}{by_bin}"));
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
        if let Some((number, of)) = self.fold {
            flag("--fold", format!("{number}/{of}"));
        }
        if let (Some(_), Some(from)) = (self.fold, &self.folds_from) {
            flag("--folds-from", keyword(from));
        }
        if let Some(group) = &self.leave_out {
            flag("--leave-out", group.clone());
        }
        if let Some(images) = self.few_shot {
            flag("--few-shot", images.to_string());
        }
        if let Some((classes, keep)) = self.shift {
            flag("--shift", format!("{classes}:{keep}"));
        }
        if let (true, Some(per)) = (self.few_shot.is_some() || self.shift.is_some(), &self.per) {
            flag("--per", keyword(per));
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

    /// Single values, so that what stands beside them in the task file stays.
    fn values(&self) -> Vec<(&'static str, Value)> {
        let mut values = Vec::new();
        let mut add = |key, value: Value| values.push((key, value));
        if let Some((fold, of)) = self.fold {
            add("data.protocol.fold.number", number(fold as u64));
            add("data.protocol.fold.of", number(of as u64));
        }
        if let (Some(_), Some(from)) = (self.fold, &self.folds_from) {
            add("data.protocol.fold.from", keyword(from).into());
        }
        if let Some(group) = &self.leave_out {
            add("data.protocol.leave_out", group.clone().into());
        }
        if let Some(images) = self.few_shot {
            add("data.protocol.few_shot.images", number(images as u64));
        }
        if let (Some(_), Some(per)) = (self.few_shot, &self.per) {
            add("data.protocol.few_shot.per", keyword(per).into());
        }
        if let Some((classes, keep)) = self.shift {
            add("data.protocol.shift.classes", number(classes as u64));
            add("data.protocol.shift.keep", f64::from(keep).into());
        }
        if let (Some(_), Some(per)) = (self.shift, &self.per) {
            add("data.protocol.shift.per", keyword(per).into());
        }
        if let Some(seed) = self.seed {
            add("train.seed", number(seed));
        }
        if let Some(leaks) = &self.leaks {
            add("data.leaks", keyword(leaks).into());
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
            v.fold = Some((number, self.folds));
        });
        variants = spread(variants, &self.groups, |v, group| {
            v.leave_out = Some(group.clone());
        });
        variants = spread(variants, &self.few_shot, |v, &images| {
            v.few_shot = Some(images);
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
        Ok(Self {
            key: key.into(),
            value: parse(value),
        })
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = text(&self.value);
        match parse(plain.trim()) == self.value {
            true => write!(f, "{}={plain}", self.key),
            // Text that would be read as something else needs its quotes.
            false => write!(f, "{}={}", self.key, self.value),
        }
    }
}

/// A value as TOML, or as text where it is none.
fn parse(value: &str) -> Value {
    let parsed = format!("v = {value}").parse::<Table>().ok();
    let alone = parsed.filter(|table| table.len() == 1);
    let parsed = alone.and_then(|mut table| table.remove("v"));
    parsed.unwrap_or_else(|| Value::String(value.into()))
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

/// TOML has no numbers above `i64::MAX`; as text they are refused by the check of the file.
fn number(value: u64) -> Value {
    i64::try_from(value).map_or_else(|_| value.to_string().into(), Value::Integer)
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
            fold: Some((2, 5)),
            seed: Some(7),
            set: vec!["train.optimizer.lr=0.5".parse().unwrap()],
            ..Variant::default()
        };
        let config = variant.read(task).unwrap();
        assert_eq!((config.train.seed, config.train.optimizer.lr), (7, 0.5));
        let fold = config.data.protocol.fold.unwrap();
        assert_eq!((fold.number, fold.of), (2, 5));
        let wrong = Variant {
            set: vec!["train.epocs=3".parse().unwrap()],
            ..Variant::default()
        };
        let message = wrong.read(task).unwrap_err().to_string();
        assert!(message.contains("epocs"), "{message}");
        let beyond = Variant {
            seed: Some(u64::MAX),
            ..Variant::default()
        };
        assert!(beyond.read(task).is_err());
    }

    #[test]
    fn flags_leave_what_stands_beside_their_values() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("task.toml");
        let task = r#"
            task = { name = "t", range = [0, 10] }
            bin = [{ label = "a", start = 0, end = 5 }, { label = "b", start = 5, end = 10 }]
            [data]
            table = "labels.csv"
            protocol.fold = { number = 1, of = 5, from = "groups" }
            protocol.few_shot = { images = 8, val_images = 3, per = "bin" }
            protocol.shift = { classes = 2, keep = 0.5, per = "bin" }
        "#;
        std::fs::write(&path, task).unwrap();
        let variant = Variant {
            fold: Some((2, 4)),
            few_shot: Some(1),
            shift: Some((1, 0.25)),
            ..Variant::default()
        };
        let got = variant.read(&path).unwrap().data.protocol;
        let (fold, few, shift) = (got.fold.unwrap(), got.few_shot.unwrap(), got.shift.unwrap());
        assert_eq!(
            (fold.number, fold.of, fold.from),
            (2, 4, FoldSource::Groups)
        );
        assert_eq!(
            (few.images, few.val_images, few.per),
            (1, Some(3), Class::Bin)
        );
        assert_eq!(
            (shift.classes, shift.keep, shift.per),
            (1, 0.25, Class::Bin)
        );
        let all = Variant {
            folds_from: Some(FoldSource::Auto),
            per: Some(Class::Label),
            ..variant
        };
        let got = all.read(&path).unwrap().data.protocol;
        assert_eq!(got.fold.unwrap().from, FoldSource::Auto);
        assert_eq!(got.few_shot.unwrap().per, Class::Label);
        assert_eq!(got.shift.unwrap().per, Class::Label);
        assert!(all.flags().join(" ").contains("--per label"));
    }

    proptest::proptest! {
        #[test]
        fn what_a_plan_prints_is_read_back(text in "[ -~\\n]{0,12}", number: i64, float in -1e9f64..1e9) {
            for value in [
                Value::String(text),
                Value::String(number.to_string()),
                Value::String("1.0".into()),
                Value::Integer(number),
                Value::Float(float),
                Value::Array(vec!["a b".into(), number.into()]),
            ] {
                let set = Set { key: "data.columns.split".into(), value };
                assert_eq!(set.to_string().parse::<Set>().unwrap(), set);
            }
        }
    }
}
