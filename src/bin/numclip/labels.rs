//! Labelled pictures from a CSV file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use csv::{ReaderBuilder, StringRecord, Trim};
use thiserror::Error;

use crate::inputs::Input;

/// Which rows and columns of a CSV file to read.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Labelled pictures")]
pub struct LabelsArgs {
    /// Take the pictures from this CSV file (with a header; paths relative to
    /// the file) and compare the estimates with its labels.
    #[arg(long, visible_alias = "labels", value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Column with the paths.
    #[arg(long, value_name = "NAME", default_value = "path", requires = "csv")]
    path_column: String,
    /// Column with the true values.
    #[arg(long, value_name = "NAME", default_value = "label", requires = "csv")]
    label_column: String,
    /// Column that says which pictures show the same person or thing
    /// [default: group, where there is one].
    #[arg(long, value_name = "NAME", requires = "csv")]
    group_column: Option<String>,
    /// Only rows whose column has this value (or one of several: fold=3,4);
    /// given more than once, all must hold.
    #[arg(long = "where", value_name = "COLUMN=VALUE", requires = "csv")]
    conditions: Vec<Condition>,
}

/// A CSV file that cannot be used: which, where, why.
#[derive(Debug, Error)]
pub enum LabelsError {
    /// It cannot be read.
    #[error("{}: {error}", file.display())]
    Csv {
        /// The file.
        file: PathBuf,
        /// What is wrong; names the line where there is one.
        error: csv::Error,
    },
    /// A column that is asked for is not there.
    #[error("{}: no column {column:?} (--{option}); the header has: {found}", file.display())]
    Column {
        /// The file.
        file: PathBuf,
        /// The column that was asked for.
        column: String,
        /// The option that names it.
        option: &'static str,
        /// The columns there are.
        found: String,
    },
    /// A label that is no value of the task.
    #[error("{}:{line}: label {label:?}, expected a number from {} to {}", file.display(), range[0], range[1])]
    Label {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What stands there.
        label: String,
        /// The task's range.
        range: [f32; 2],
    },
    /// No row is left.
    #[error("{}: none of its {rows} rows is selected; check --where", file.display())]
    NoRows {
        /// The file.
        file: PathBuf,
        /// Rows it has.
        rows: usize,
    },
}

/// `column=value[,value…]`.
#[derive(Clone, Debug, PartialEq)]
struct Condition {
    column: String,
    values: Vec<String>,
}

/// Positions of the columns that are read.
struct Columns {
    path: usize,
    label: usize,
    group: Option<usize>,
    conditions: Vec<usize>,
}

impl LabelsArgs {
    /// The selected rows of `file`; labels lie within `range`.
    ///
    /// # Errors
    /// [`LabelsError`] names the file, and the line or column at fault.
    pub fn read(&self, file: &Path, range: [f32; 2]) -> Result<Vec<Input>, LabelsError> {
        let failed = |error| LabelsError::Csv {
            file: file.into(),
            error,
        };
        let reader = File::open(file).map_err(|error| failed(error.into()))?;
        let mut reader = ReaderBuilder::new().trim(Trim::All).from_reader(reader);
        let columns = self.columns(file, reader.headers().map_err(failed)?)?;
        let (mut inputs, mut rows) = (Vec::new(), 0);
        for row in reader.records() {
            let row = row.map_err(failed)?;
            rows += 1;
            if self.selects(&columns, &row) {
                inputs.push(input(file, &columns, &row, range)?);
            }
        }
        match inputs.is_empty() {
            true => Err(LabelsError::NoRows {
                file: file.into(),
                rows,
            }),
            false => Ok(inputs),
        }
    }

    fn columns(&self, file: &Path, header: &StringRecord) -> Result<Columns, LabelsError> {
        let position = |name: &str, option| {
            // A byte order mark, as spreadsheets write it, is no part of the name.
            let is_it = |column: &str| column.trim_start_matches('\u{feff}') == name;
            header
                .iter()
                .position(is_it)
                .ok_or_else(|| LabelsError::Column {
                    file: file.into(),
                    column: name.into(),
                    option,
                    found: header.iter().collect::<Vec<_>>().join(", "),
                })
        };
        let conditions = self.conditions.iter();
        let group = match &self.group_column {
            Some(name) => Some(position(name, "group-column")?),
            None => position("group", "group-column").ok(),
        };
        Ok(Columns {
            group,
            path: position(&self.path_column, "path-column")?,
            label: position(&self.label_column, "label-column")?,
            conditions: conditions
                .map(|condition| position(&condition.column, "where"))
                .collect::<Result<_, _>>()?,
        })
    }

    fn selects(&self, columns: &Columns, row: &StringRecord) -> bool {
        let mut conditions = self.conditions.iter().zip(&columns.conditions);
        conditions
            .all(|(condition, &column)| condition.values.iter().any(|value| value == &row[column]))
    }
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (column, values) = text
            .split_once('=')
            .ok_or("expected COLUMN=VALUE, as in fold=3")?;
        Ok(Self {
            column: column.trim().into(),
            values: values.split(',').map(|value| value.trim().into()).collect(),
        })
    }
}

fn input(
    file: &Path,
    columns: &Columns,
    row: &StringRecord,
    range: [f32; 2],
) -> Result<Input, LabelsError> {
    let text = &row[columns.label];
    let label = text
        .parse()
        .ok()
        .filter(|label: &f32| (range[0]..=range[1]).contains(label))
        .ok_or_else(|| LabelsError::Label {
            file: file.into(),
            line: row.position().map_or(0, csv::Position::line),
            label: text.into(),
            range,
        })?;
    let folder = file.parent().unwrap_or(Path::new(""));
    Ok(Input {
        path: folder.join(&row[columns.path]),
        label: Some(label),
        group: columns
            .group
            .map(|column| row[column].to_owned())
            .filter(|name| !name.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_lists_the_values_it_accepts() {
        let condition: Condition = "fold=3, 4".parse().unwrap();
        assert_eq!(condition.column, "fold");
        assert_eq!(condition.values, ["3", "4"]);
        assert!("fold".parse::<Condition>().is_err());
    }
}
