//! Tables of labelled images.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use numclip::bins::{Bin, index_of};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    digest,
    error::{DataError, DataErrorKind as Kind},
    fingerprint::Fingerprint,
    leak::Leak,
};

/// Names of the columns of a CSV table; further columns are left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Columns {
    /// Path of the image, relative to the table.
    pub path: String,
    /// Label, a number.
    pub label: String,
    /// What must not be torn apart by a split, such as a person. Unless named
    /// here, a column `group` is taken if there is one.
    pub group: Option<String>,
    /// Split or fold. Unless named here, a column `split` is taken if there is
    /// one.
    pub split: Option<String>,
}

/// One labelled image.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Where the image is.
    pub path: PathBuf,
    /// The path as the table gives it.
    pub name: String,
    /// Label in the task's unit; the mean where several were given; not a number for an image
    /// without one.
    pub label: f32,
    /// The single labels where several were given, otherwise empty.
    pub votes: Vec<f32>,
    /// Group, if any; an image without one is a group of its own.
    pub group: Option<String>,
    /// Split or fold, if any.
    pub split: Option<String>,
    /// Line of the table, counted from 1.
    pub line: u64,
}

/// Labelled images in the order of their table, and unlabelled ones behind them.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    table: PathBuf,
    samples: Vec<Sample>,
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            path: "path".into(),
            label: "label".into(),
            group: None,
            split: None,
        }
    }
}

impl Dataset {
    /// Reads a table and checks it: labels are finite and within `range`
    /// (lowest, highest), no path occurs twice, every image exists.
    ///
    /// A file whose name ends in `.csv` has a header that `columns` refers to.
    /// Any other file is a list of `path label [label…]`, separated by blanks.
    ///
    /// # Errors
    ///
    /// The first fault with its line.
    pub fn open(table: &Path, columns: &Columns, range: [f32; 2]) -> Result<Self, DataError> {
        let is_csv = table
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("csv"));
        let samples = if is_csv {
            read_csv(table, columns)?
        } else {
            read_list(table)?
        };
        let dataset = Self {
            table: table.into(),
            samples,
        };
        dataset.check(range)?;
        Ok(dataset)
    }

    /// The table read.
    pub fn table(&self) -> &Path {
        &self.table
    }

    /// All samples, in the table's order.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The same images with other splits, one for each sample.
    pub(super) fn with_splits(&self, splits: Vec<Option<String>>) -> Self {
        let mut dataset = self.clone();
        for (sample, split) in dataset.samples.iter_mut().zip(splits) {
            sample.split = split;
        }
        dataset
    }

    /// The same with images behind the labelled ones that have no label.
    pub fn with_unlabelled(mut self, paths: Vec<PathBuf>) -> Self {
        let sample = |path: PathBuf| Sample {
            name: path.display().to_string(),
            path,
            label: f32::NAN,
            votes: Vec::new(),
            group: None,
            split: None,
            line: 0,
        };
        self.samples.extend(paths.into_iter().map(sample));
        self
    }

    /// Labels of some samples.
    pub fn labels(&self, indices: &[usize]) -> Vec<f32> {
        indices.iter().map(|&i| self.samples[i].label).collect()
    }

    /// How many of some samples fall into each bin.
    pub fn bin_counts(&self, indices: &[usize], bins: &[Bin]) -> Vec<usize> {
        let mut counts = vec![0; bins.len()];
        for label in self.labels(indices) {
            counts[index_of(bins, label)] += 1;
        }
        counts
    }

    /// Counts as [`Dataset::bin_counts`] does, for training.
    ///
    /// # Errors
    ///
    /// If a bin has no image: its place in the order could not be learnt.
    pub fn check_bins(&self, train: &[usize], bins: &[Bin]) -> Result<Vec<usize>, DataError> {
        let counts = self.bin_counts(train, bins);
        match counts.iter().position(|&count| count == 0) {
            None => Ok(counts),
            Some(empty) => Err(self.error(
                None,
                Kind::EmptyBin {
                    label: bins[empty].label.clone(),
                    start: bins[empty].start,
                    end: bins[empty].end,
                },
            )),
        }
    }

    /// SHA-256, in hexadecimal, over paths, labels and image files. The order
    /// of the rows does not matter. `prints` are those of all samples.
    pub fn digest(&self, prints: &[Fingerprint]) -> String {
        digest::digest(&self.samples, prints)
    }

    /// The error about leaks between the splits of these images.
    pub fn leaking(&self, leaks: Vec<Leak>) -> DataError {
        self.error(None, Kind::Leaks(leaks))
    }

    pub(super) fn error(&self, line: impl Into<Option<u64>>, kind: Kind) -> DataError {
        DataError::new(&self.table, line, kind)
    }

    fn check(&self, range: [f32; 2]) -> Result<(), DataError> {
        if self.samples.is_empty() {
            return Err(self.error(None, Kind::Empty));
        }
        let mut seen = HashMap::new();
        for sample in &self.samples {
            self.check_label(sample, range)?;
            if let Some(first) = seen.insert(&sample.path, sample.line) {
                let path = sample.name.clone();
                return Err(self.error(sample.line, Kind::Duplicate { path, first }));
            }
        }
        self.check_files()
    }

    fn check_label(&self, sample: &Sample, [low, high]: [f32; 2]) -> Result<(), DataError> {
        let mut labels = sample.votes.iter().chain([&sample.label]);
        match labels.find(|&&label| label < low || label > high) {
            None => Ok(()),
            Some(&label) => Err(self.error(sample.line, Kind::Range { label, low, high })),
        }
    }

    fn check_files(&self) -> Result<(), DataError> {
        let missing: Vec<&Sample> = self
            .samples
            .par_iter()
            .filter(|s| !s.path.is_file())
            .collect();
        match missing.first() {
            None => Ok(()),
            Some(sample) => {
                let (path, more) = (sample.name.clone(), missing.len() - 1);
                Err(self.error(sample.line, Kind::Missing { path, more }))
            }
        }
    }
}

/// Paths of the images that a CSV table lists; its other columns are not looked at.
pub(super) fn paths_of(table: &Path, columns: &Columns) -> Result<Vec<PathBuf>, DataError> {
    let (header, records) = read_records(table)?;
    let place = find(&header, &columns.path).map_err(|kind| DataError::new(table, 1, kind))?;
    let names = records.iter().map(|record| record.get(place));
    Ok(names.flatten().map(|name| beside(table, name)).collect())
}

fn read_csv(table: &Path, columns: &Columns) -> Result<Vec<Sample>, DataError> {
    let (header, records) = read_records(table)?;
    let places = Places::find(&header, columns).map_err(|kind| DataError::new(table, 1, kind))?;
    let sample = |record: &csv::StringRecord| {
        let line = record.position().map_or(0, csv::Position::line);
        places.sample(table, record, line)
    };
    records.iter().map(sample).collect()
}

fn read_records(table: &Path) -> Result<(csv::StringRecord, Vec<csv::StringRecord>), DataError> {
    let file = fs::File::open(table).map_err(|e| DataError::new(table, None, e))?;
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(file);
    let invalid = |e: csv::Error| {
        let line = e.position().map(csv::Position::line);
        DataError::new(table, line, Kind::Csv(e))
    };
    let header = reader.headers().map_err(invalid)?.clone();
    let records = reader.records().collect::<Result<_, _>>();
    Ok((header, records.map_err(invalid)?))
}

/// Place of a column.
fn find(header: &csv::StringRecord, name: &str) -> Result<usize, Kind> {
    let place = header.iter().position(|h| h == name);
    place.ok_or_else(|| Kind::Column {
        expected: name.into(),
        got: header.iter().map(Into::into).collect(),
    })
}

/// Which column is where.
struct Places {
    path: usize,
    label: usize,
    group: Option<usize>,
    split: Option<usize>,
}

impl Places {
    fn find(header: &csv::StringRecord, columns: &Columns) -> Result<Self, Kind> {
        let place = |name: &str| header.iter().position(|h| h == name);
        let may = |named: &Option<String>, usual| match named {
            Some(name) => find(header, name).map(Some),
            None => Ok(place(usual)),
        };
        Ok(Self {
            path: find(header, &columns.path)?,
            label: find(header, &columns.label)?,
            group: may(&columns.group, "group")?,
            split: may(&columns.split, "split")?,
        })
    }

    fn sample(
        &self,
        table: &Path,
        record: &csv::StringRecord,
        line: u64,
    ) -> Result<Sample, DataError> {
        let field = |place: usize| record.get(place).unwrap_or_default();
        let optional =
            |place: Option<usize>| place.map(field).filter(|f| !f.is_empty()).map(String::from);
        let name = field(self.path);
        if name.is_empty() {
            let row = record.iter().collect::<Vec<_>>().join(",");
            return Err(DataError::new(table, line, Kind::Row(row)));
        }
        let label =
            parse_label(field(self.label)).map_err(|kind| DataError::new(table, line, kind))?;
        Ok(Sample {
            path: beside(table, name),
            name: name.into(),
            label,
            votes: Vec::new(),
            group: optional(self.group),
            split: optional(self.split),
            line,
        })
    }
}

fn read_list(table: &Path) -> Result<Vec<Sample>, DataError> {
    let text = fs::read_to_string(table).map_err(|e| DataError::new(table, None, e))?;
    (1..)
        .zip(text.lines())
        .filter(|(_, row)| !row.trim().is_empty())
        .map(|(line, row)| {
            parse_row(table, row, line).map_err(|kind| DataError::new(table, line, kind))
        })
        .collect()
}

/// `path label [label…]`: labels are the trailing numbers, so that a path may
/// contain blanks.
fn parse_row(table: &Path, row: &str, line: u64) -> Result<Sample, Kind> {
    let mut name = row.trim();
    let mut votes = Vec::new();
    while let Some((rest, last)) = name.rsplit_once(char::is_whitespace) {
        if last.parse::<f32>().is_err() {
            break;
        }
        votes.push(parse_label(last)?);
        name = rest.trim_end();
    }
    if votes.is_empty() {
        return Err(Kind::Row(row.into()));
    }
    votes.reverse();
    let mean = votes.iter().sum::<f32>() / votes.len() as f32;
    Ok(Sample {
        path: beside(table, name),
        name: name.into(),
        label: mean,
        votes: if votes.len() > 1 { votes } else { Vec::new() },
        group: None,
        split: None,
        line,
    })
}

fn parse_label(text: &str) -> Result<f32, Kind> {
    match text.parse::<f32>() {
        Ok(label) if label.is_finite() => Ok(label),
        _ => Err(Kind::Label(text.into())),
    }
}

fn beside(table: &Path, name: &str) -> PathBuf {
    table.parent().unwrap_or(Path::new("")).join(name)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::data::fingerprint::fingerprints;

    /// A folder with a table and an empty file for every image named.
    pub(in crate::data) fn folder(
        table: &str,
        text: &str,
        images: &[&str],
    ) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        for image in images {
            fs::write(folder.path().join(image), image).unwrap();
        }
        let path = folder.path().join(table);
        fs::write(&path, text).unwrap();
        (folder, path)
    }

    fn open(table: &str, text: &str) -> Result<Dataset, DataError> {
        let (_folder, path) = folder(table, text, &["a.png", "b.png", "c d.png"]);
        Dataset::open(&path, &Columns::default(), [0.0, 10.0])
    }

    #[test]
    fn csv_with_group_and_split() {
        // Spreadsheets like to begin a file with a byte-order mark.
        let text = "\u{feff}label,path,split,note,group\n1,a.png,train,x,g1\n2.5, b.png ,test,y,\n";
        let samples = open("t.csv", text).unwrap().samples;
        assert_eq!((samples[0].label, samples[1].label), (1.0, 2.5));
        assert_eq!(samples[0].group.as_deref(), Some("g1"));
        assert_eq!(samples[1].group, None);
        assert_eq!(samples[1].split.as_deref(), Some("test"));
        assert_eq!((samples[1].name.as_str(), samples[1].line), ("b.png", 3));
    }

    #[test]
    fn columns_by_other_names() {
        let text = "file,grade,plant\na.png,3,p1\n";
        let (_folder, path) = folder("t.csv", text, &["a.png"]);
        let columns = Columns {
            path: "file".into(),
            label: "grade".into(),
            group: Some("plant".into()),
            split: None,
        };
        let dataset = Dataset::open(&path, &columns, [0.0, 9.0]).unwrap();
        assert_eq!(dataset.samples()[0].group.as_deref(), Some("p1"));
        let columns = Columns {
            split: Some("fold".into()),
            ..columns
        };
        let error = Dataset::open(&path, &columns, [0.0, 9.0]).unwrap_err();
        assert!(
            error.to_string().contains("expected a column `fold`"),
            "{error}"
        );
    }

    #[test]
    fn list_with_votes_and_blanks_in_a_path() {
        let samples = open("t.txt", "a.png 4\n\nc d.png 1 2 6\n").unwrap().samples;
        assert_eq!((samples[0].label, samples[0].votes.len()), (4.0, 0));
        assert_eq!(samples[1].name, "c d.png");
        assert_eq!((samples[1].label, samples[1].line), (3.0, 3));
        assert_eq!(samples[1].votes, [1.0, 2.0, 6.0]);
    }

    #[test]
    fn faults_are_named_with_their_line() {
        let faults = [
            (
                "t.csv",
                "path,label\na.png,11\n",
                "line 2: label 11 is outside the task's range 0..=10",
            ),
            (
                "t.csv",
                "path,label\na.png,NaN\n",
                "line 2: expected a finite number as label, got `NaN`",
            ),
            (
                "t.csv",
                "path,label\na.png,inf\n",
                "line 2: expected a finite number",
            ),
            (
                "t.csv",
                "path,label\na.png,old\n",
                "line 2: expected a finite number as label, got `old`",
            ),
            (
                "t.csv",
                "path,label\na.png,1\nb.png,1\na.png,1\n",
                "line 4: `a.png` was listed on line 2",
            ),
            (
                "t.csv",
                "path,label\na.png,1\nx.png,1\ny.png,1\n",
                "line 3: `x.png` does not exist, nor do 1 others",
            ),
            ("t.csv", "path,label\na.png,1,2\n", "not a valid table"),
            ("t.csv", "path,label\n,1\n", "line 2: expected `path label`"),
            (
                "t.csv",
                "path;label\na.png;1\n",
                "line 1: expected a column `path`",
            ),
            ("t.csv", "path,label\n", "no images listed"),
            ("t.csv", "", "expected a column `path`"),
            ("t.txt", "", "no images listed"),
            ("t.txt", "a.png 1\nb.png\n", "line 2: expected `path label`"),
            ("t.txt", "a.png 1 nan\n", "line 1: expected a finite number"),
            ("t.txt", "a.png 5 12\n", "line 1: label 12 is outside"),
        ];
        for (table, text, expected) in faults {
            let error = open(table, text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?} gave: {error}");
        }
        let error = Dataset::open(Path::new("no/such.csv"), &Columns::default(), [0.0, 1.0]);
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("no/such.csv: cannot be read")
        );
    }

    #[test]
    fn an_empty_training_bin_is_refused() {
        let dataset = open("t.csv", "path,label\na.png,1\nb.png,9\n").unwrap();
        let bin = |label: &str, start, end| Bin {
            label: label.into(),
            start,
            end,
        };
        let bins = [
            bin("low", 0.0, 3.0),
            bin("mid", 4.0, 6.0),
            bin("high", 7.0, 10.0),
        ];
        assert_eq!(dataset.bin_counts(&[0, 1], &bins), [1, 0, 1]);
        let error = dataset.check_bins(&[0, 1], &bins).unwrap_err();
        assert!(error.to_string().contains("bin `mid` (4 to 6)"), "{error}");
    }

    #[test]
    fn digest_sees_labels_and_contents_but_not_the_order() {
        let texts = [
            "path,label\na.png,1\nb.png,2\n",
            "path,label\nb.png,2\na.png,1\n",
        ];
        let digest = |dataset: &Dataset| dataset.digest(&fingerprints(dataset).unwrap());
        let digests = texts.map(|text| {
            let (_folder, path) = folder("t.csv", text, &["a.png", "b.png"]);
            digest(&Dataset::open(&path, &Columns::default(), [0.0, 9.0]).unwrap())
        });
        assert_eq!(digests[0], digests[1]);
        assert_eq!(digests[0].len(), 64);

        let (folder, path) = folder(
            "t.csv",
            "path,label\na.png,1\nb.png,3\n",
            &["a.png", "b.png"],
        );
        let dataset = Dataset::open(&path, &Columns::default(), [0.0, 9.0]).unwrap();
        let relabelled = digest(&dataset);
        assert_ne!(relabelled, digests[0]);
        fs::write(folder.path().join("a.png"), "other").unwrap();
        assert_ne!(digest(&dataset), relabelled);
    }
}
