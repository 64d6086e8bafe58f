//! Tables of the literature, run again on a person's own copy of the data.
//!
//! ```text
//! folder as its owner publishes it → rows → labels.csv ─┐
//! task file of the paper ───────────────────────────────┴→ runs → Study → Comparison
//! ```

mod layout;
mod lists;
mod paper;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::data::LeakPolicy;
use crate::file::write_whole;
use crate::study::{Set, Study, Variant};
pub use layout::{Found, LayoutError, Row, read};
pub use paper::{Figure, PAPERS, Paper};

/// The part of a table that is asked for.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Folds from 1; all if empty.
    pub folds: Vec<usize>,
    /// Seeds; 0 alone if empty.
    pub seeds: Vec<u64>,
    /// The CLIP checkpoint to start from, as published; the task file's small encoder if none.
    pub clip: Option<PathBuf>,
    /// Values of the task file that all runs change.
    pub set: Vec<Set>,
    /// What to do about images that splits share.
    pub leaks: LeakPolicy,
}

/// One figure: as published and as obtained. Shares are in percent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// `mae` or `accuracy`.
    pub measure: &'static str,
    /// Unit.
    pub unit: &'static str,
    /// As published; none where no source is at hand.
    pub reported: Option<f64>,
    /// Mean over the runs.
    pub obtained: Option<f64>,
    /// Half the width of its 95 % interval.
    pub half_width: Option<f64>,
    /// Obtained less reported.
    pub difference: Option<f64>,
}

/// A table of the literature beside what was obtained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Name of the table.
    pub name: &'static str,
    /// Where the published figures are from.
    pub source: &'static str,
    /// Runs that were measured, of those of the whole table.
    pub runs: [usize; 2],
    /// Whether the runs start from CLIP, as the published ones do.
    pub from_clip: bool,
    /// Its figures.
    pub lines: Vec<Line>,
}

impl Paper {
    /// Writes task file and table into `folder` and returns the task file's path.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, found: &Found, folder: &Path) -> io::Result<PathBuf> {
        let mut table = csv::Writer::from_writer(Vec::new());
        for row in &found.rows {
            table.serialize(row)?;
        }
        let table = table
            .into_inner()
            .map_err(|error| io::Error::other(error.to_string()))?;
        write_whole(&folder.join("labels.csv"), &table)?;
        let task = folder.join("task.toml");
        write_whole(&task, self.task.as_bytes())?;
        Ok(task)
    }

    /// Every run that `part` asks for with its folder under `folder`, seed by seed.
    ///
    /// # Errors
    /// In words, for a fold that the table does not have.
    pub fn runs(
        &self,
        found: &Found,
        part: &Part,
        folder: &Path,
    ) -> Result<Vec<(PathBuf, Variant)>, String> {
        let of = self.folds;
        if let Some(fold) = part.folds.iter().find(|fold| !(1..=of).contains(*fold)) {
            return Err(format!("{} has folds 1 to {of}, got {fold}", self.name));
        }
        let folds: Vec<Option<usize>> = match (found.has_test(), part.folds.is_empty()) {
            (true, _) => vec![None],
            (false, true) => (1..=of).map(Some).collect(),
            (false, false) => part.folds.iter().copied().map(Some).collect(),
        };
        let seeds: &[u64] = if part.seeds.is_empty() {
            &[0]
        } else {
            &part.seeds
        };
        let name = match part.clip {
            Some(_) => format!("{}-clip", self.name),
            None => self.name.to_owned(),
        };
        let each = seeds
            .iter()
            .flat_map(|seed| folds.iter().map(move |fold| (seed, fold)));
        let runs = each.map(|(&seed, &fold)| {
            // The folder's name holds what tells the runs of this table apart.
            let mut run = Variant {
                seed: Some(seed),
                fold: fold.map(|number| (number, of)),
                set: part.set.clone(),
                ..Variant::default()
            };
            let folder = run.folder(folder, &name);
            run.leaks = Some(part.leaks);
            run.set = [self.sets(part.clip.as_deref()), part.set.clone()].concat();
            (folder, run)
        });
        Ok(runs.collect())
    }

    /// What is set over the task file: its table, and CLIP where a checkpoint is given.
    fn sets(&self, clip: Option<&Path>) -> Vec<Set> {
        let set = |key: &str, value: toml::Value| Set {
            key: key.into(),
            value,
        };
        let mut sets = vec![set("data.table", "labels.csv".into())];
        if let Some(path) = clip {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
            sets.push(set("model.architecture", "clip".into()));
            sets.push(set("model.init", path.display().to_string().into()));
            let published: Result<toml::Table, _> = self.tuning.parse();
            sets.extend(
                published
                    .into_iter()
                    .flatten()
                    .map(|(key, value)| set(&key, value)),
            );
        }
        sets
    }

    /// The published figures beside those of `study`, the measured runs.
    pub fn compare(&self, study: &Study, found: &Found, from_clip: bool) -> Comparison {
        let setting = study.settings.first();
        let line = |figure: &Figure| {
            let scale = if figure.unit == "%" { 100.0 } else { 1.0 };
            let mean = setting.and_then(|setting| setting.measures.get(figure.measure));
            let obtained = mean.map(|mean| mean.mean * scale);
            Line {
                measure: figure.measure,
                unit: figure.unit,
                reported: figure.reported,
                obtained,
                half_width: mean.and_then(|mean| Some(mean.half_width? * scale)),
                difference: obtained.zip(figure.reported).map(|(got, said)| got - said),
            }
        };
        let runs = setting.map_or(0, |setting| setting.runs.len());
        let seeds: BTreeSet<u64> = setting
            .iter()
            .flat_map(|setting| setting.runs.iter().map(|run| run.seed))
            .collect();
        let folds = if found.has_test() { 1 } else { self.folds };
        Comparison {
            name: self.name,
            source: self.source,
            runs: [runs, folds * seeds.len().max(1)],
            from_clip,
            lines: self.figures.iter().map(line).collect(),
        }
    }
}

impl Comparison {
    /// The table for a terminal.
    pub fn text(&self) -> String {
        let [measured, all] = self.runs;
        let mut text = format!("{}: {measured} of {all} runs, {}\n", self.name, self.source);
        let cells = ["", "reported", "obtained", "difference"].map(str::to_owned);
        let rows: Vec<[String; 4]> = std::iter::once(cells)
            .chain(self.lines.iter().map(Line::cells))
            .collect();
        let width = |place: usize| {
            let lengths = rows.iter().map(|row| row[place].chars().count());
            lengths.max().unwrap_or(0)
        };
        for row in &rows {
            let [name, rest @ ..] = row;
            text += &format!("  {name:<0$}", width(0));
            for (place, cell) in rest.iter().enumerate() {
                text += &format!("  {cell:>0$}", width(place + 1));
            }
            text += "\n";
        }
        if !self.from_clip {
            text += "  The published runs start from CLIP; these do not (see --clip).\n";
        }
        text
    }
}

impl Line {
    fn cells(&self) -> [String; 4] {
        let number = |value: f64| format!("{value:.2}");
        let obtained = self.obtained.map(|value| match self.half_width {
            Some(half) => format!("{value:.2} ± {half:.2}"),
            None => number(value),
        });
        let name = match self.measure {
            "mae" => format!("MAE, {}", self.unit),
            measure => format!("{measure}, {}", self.unit),
        };
        [
            name,
            self.reported.map_or("not given".into(), number),
            obtained.unwrap_or_else(|| "-".into()),
            self.difference
                .map_or("-".into(), |value| format!("{value:+.2}")),
        ]
    }
}

#[cfg(test)]
mod tests;
