//! What can be wrong with a data set.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::leak::{self, Leak};

/// A fault in a data set: where it is and what to do about it.
#[derive(Debug)]
pub struct DataError {
    /// The table or image at fault.
    pub file: PathBuf,
    /// Line of the table, counted from 1.
    pub line: Option<u64>,
    /// The fault.
    pub kind: DataErrorKind,
}

/// Kinds of [`DataError`].
#[derive(Debug, Error)]
pub enum DataErrorKind {
    /// A file could not be read.
    #[error("cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// The table is not valid CSV.
    #[error("not a valid table: {0}")]
    Csv(csv::Error),
    /// A column is missing.
    #[error(
        "expected a column `{expected}`, got {got:?}; rename it or map it under [data.columns]"
    )]
    Column {
        /// Name looked for.
        expected: String,
        /// Names in the header.
        got: Vec<String>,
    },
    /// A row lacks a field.
    #[error("expected `path label`, got `{0}`; give every image at least one label")]
    Row(String),
    /// A label is not a finite number.
    #[error("expected a finite number as label, got `{0}`; correct the row or remove it")]
    Label(String),
    /// A label lies outside the task's range.
    #[error(
        "label {label} is outside the task's range {low}..={high}; correct it or widen task.range"
    )]
    Range {
        /// Label read.
        label: f32,
        /// Lowest label allowed.
        low: f32,
        /// Highest label allowed.
        high: f32,
    },
    /// The same image occurs twice.
    #[error("`{path}` was listed on line {first} already; keep one of the two rows")]
    Duplicate {
        /// Path in the table.
        path: String,
        /// Line of the first occurrence.
        first: u64,
    },
    /// An image is not there.
    #[error("`{path}` does not exist{}; paths count from the table's folder", others(*.more))]
    Missing {
        /// Path in the table.
        path: String,
        /// How many more images are missing.
        more: usize,
    },
    /// A folder or pattern of unlabelled images without any.
    #[error("no image here; expected a folder, a pattern such as photos/**/*.jpg, or a CSV table")]
    NoImages,
    /// A pattern that is none.
    #[error("no pattern: {0}")]
    Pattern(String),
    /// No rows.
    #[error("no images listed; expected a header and at least one row")]
    Empty,
    /// A split value that the plan does not know.
    #[error(
        "split `{0}` is in none of train, val, test and ignore; add it to one of them under [data.split]"
    )]
    UnknownSplit(String),
    /// A split has no images.
    #[error("the {0} split has no images; see [data.split]")]
    EmptySplit(&'static str),
    /// A fraction is not usable.
    #[error("{name} is {got}, expected 0 or more and less than 1 (together as well)")]
    Fraction {
        /// Field of the plan.
        name: &'static str,
        /// Value.
        got: f32,
    },
    /// Too few groups to hold some back.
    #[error(
        "the {split} split cannot be taken from {groups} group(s); list its images in the table or add groups"
    )]
    TooFewGroups {
        /// Split wanted.
        split: &'static str,
        /// Groups there are.
        groups: usize,
    },
    /// There are not enough groups for the folds.
    #[error("{folds} folds cannot be made from {groups} group(s); ask for fewer folds")]
    TooFewForFolds {
        /// Folds wanted.
        folds: usize,
        /// Groups there are; an image without one is a group of its own.
        groups: usize,
    },
    /// The table's folds are not those asked for.
    #[error(
        "the split column holds {} folds ({}), expected {of}; ask for that many, or make folds from the groups (data.protocol.fold.from, --folds-from groups)", values.len(), listed(values)
    )]
    FoldCount {
        /// Values in the column.
        values: Vec<String>,
        /// Folds wanted.
        of: usize,
    },
    /// No image belongs to the group to leave out.
    #[error("no image belongs to group `{group}`; there are: {}", listed(known))]
    UnknownGroup {
        /// Group asked for.
        group: String,
        /// Groups in the table.
        known: Vec<String>,
    },
    /// Nearly every image has a label of its own, so that labels are no classes.
    #[error(
        "{labels} different labels in {images} training images are no classes; count images by bin instead (per = \"bin\", --per bin)"
    )]
    NoClasses {
        /// Different labels.
        labels: usize,
        /// Training images.
        images: usize,
    },
    /// Images for testing were, or are nearly, trained on.
    #[error("{}", leaks_message(.0))]
    Leaks(Vec<Leak>),
    /// A bin that no training image falls into.
    #[error(
        "no training image falls into bin `{label}` ({start} to {end}); add images or merge the bin with a neighbour"
    )]
    EmptyBin {
        /// Label of the bin.
        label: String,
        /// Lowest value.
        start: f32,
        /// Highest value.
        end: f32,
    },
}

impl DataError {
    pub(super) fn new(
        file: &Path,
        line: impl Into<Option<u64>>,
        kind: impl Into<DataErrorKind>,
    ) -> Self {
        Self {
            file: file.into(),
            line: line.into(),
            kind: kind.into(),
        }
    }
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        write!(f, ": {}", self.kind)
    }
}

impl std::error::Error for DataError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.kind)
    }
}

fn others(more: usize) -> String {
    if more == 0 {
        String::new()
    } else {
        format!(", nor do {more} others")
    }
}

/// The first few of `names`, and how many more there are.
fn listed(names: &[String]) -> String {
    const MOST: usize = 12;
    let shown = names[..names.len().min(MOST)].join(", ");
    match names.len().saturating_sub(MOST) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn leaks_message(leaks: &[Leak]) -> String {
    let drop = match leaks.iter().all(Leak::is_copy) {
        true => "leave the copies out (data.leaks = \"drop\", --leaks drop), ",
        false => "",
    };
    format!(
        "the splits share what they must not:\n{}\ncorrect the table or [data.split], {drop}or accept them (data.leaks = \"allow\", --leaks allow): the run then carries the warning",
        leak::summary(leaks).join("\n")
    )
}
