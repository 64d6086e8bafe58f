//! Data sets as their owners publish them → rows of a table.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

use super::lists;
use super::paper::Paper;

/// What a folder holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// One for each image, in the order of lists and names.
    pub rows: Vec<Row>,
    /// Why images are left out, and how many.
    pub left_out: BTreeMap<String, usize>,
}

/// An image of a data set, as a line of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Where it is, absolute.
    pub path: PathBuf,
    /// Its label, in the unit of the task.
    pub label: f32,
    /// The person, where one is known.
    pub group: Option<String>,
    /// Its fold, or `train`, `val` or `test`, where the lists say.
    pub split: Option<String>,
}

/// Why a folder cannot be used.
#[derive(Debug, Error)]
pub enum LayoutError {
    /// Files are missing.
    #[error("{}: {missing} not found; expected there: {expected}", folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// What is missing.
        missing: String,
        /// What the folder should hold.
        expected: &'static str,
    },
    /// Images that lists name are missing.
    #[error(
        "{count} of {of} images are missing, the first: {}; expected: {expected}", first.display()
    )]
    Images {
        /// How many.
        count: usize,
        /// How many the lists name.
        of: usize,
        /// The first of them.
        first: PathBuf,
        /// What the folder should hold.
        expected: &'static str,
    },
    /// A line of a list cannot be used.
    #[error("{}, line {line}: {problem}", path.display())]
    Line {
        /// The list.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A file or folder cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: std::io::Error,
    },
}

/// Endings of image files.
const IMAGES: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "tif"];

const DECADES: [&str; 5] = ["1930s", "1940s", "1950s", "1960s", "1970s"];

impl Found {
    /// Whether the lists say what to test on, so that there are no folds.
    pub fn has_test(&self) -> bool {
        self.rows
            .iter()
            .any(|row| row.split.as_deref() == Some("test"))
    }

    pub(super) fn leave_out(&mut self, why: impl Into<String>) {
        *self.left_out.entry(why.into()).or_default() += 1;
    }
}

/// Reads the owner's folder of a table's data set; every image that is listed is there.
///
/// # Errors
/// [`LayoutError`] names what is missing, or the line at fault.
pub fn read(paper: &Paper, folder: &Path) -> Result<Found, LayoutError> {
    let folder = std::path::absolute(folder).map_err(at(folder))?;
    if !folder.is_dir() {
        return Err(missing(paper, &folder, "the folder"));
    }
    let found = match paper.name {
        "adience" => lists::adience(paper, &folder)?,
        "hci" => decades(paper, &folder)?,
        "morph" => morph(paper, &folder)?,
        _ => lists::votes(paper, &folder)?,
    };
    let absent: Vec<&Row> = found
        .rows
        .iter()
        .filter(|row| !row.path.is_file())
        .collect();
    match absent.first() {
        None if found.rows.is_empty() => Err(missing(paper, &folder, "a single image")),
        None => Ok(found),
        Some(first) => Err(LayoutError::Images {
            count: absent.len(),
            of: found.rows.len(),
            first: first.path.clone(),
            expected: paper.files,
        }),
    }
}

/// A folder for each decade, at most three levels down.
fn decades(paper: &Paper, folder: &Path) -> Result<Found, LayoutError> {
    let mut found = Found::default();
    let mut absent: Vec<&str> = Vec::new();
    for (label, decade) in DECADES.iter().enumerate() {
        let Some(folder) = below(folder, decade, 3)? else {
            absent.push(decade);
            continue;
        };
        for path in images(&folder)? {
            found.rows.push(Row {
                path,
                label: label as f32,
                group: None,
                split: None,
            });
        }
    }
    match absent.is_empty() {
        true => Ok(found),
        false => Err(missing(paper, folder, &absent.join(", "))),
    }
}

/// Lists, or an album whose names say everything.
fn morph(paper: &Paper, folder: &Path) -> Result<Found, LayoutError> {
    if !lists::in_folder(folder)?.is_empty() {
        let mut found = lists::votes(paper, folder)?;
        for row in &mut found.rows {
            row.group = subject(&row.path).map(|(person, _)| person);
        }
        return Ok(found);
    }
    let mut found = Found::default();
    for path in images(folder)? {
        match subject(&path) {
            Some((person, age)) => found.rows.push(Row {
                path,
                label: age,
                group: Some(person),
                split: None,
            }),
            None => found.leave_out("not named PERSON_NxAGE"),
        }
    }
    Ok(found)
}

/// Person and age of `009055_1M54.JPG`.
fn subject(path: &Path) -> Option<(String, f32)> {
    let stem = path.file_stem()?.to_str()?;
    let (person, rest) = stem.split_once('_')?;
    let (picture, age) = rest.split_once(['M', 'F', 'm', 'f'])?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let age_digits = age.get(..2).filter(|age| digits(age))?;
    let named = digits(person) && digits(picture);
    named.then(|| Some((person.to_owned(), age_digits.parse().ok()?)))?
}

/// The folder of this name, `depth` levels down at most; the nearest one.
fn below(folder: &Path, name: &str, depth: usize) -> Result<Option<PathBuf>, LayoutError> {
    let mut level = vec![folder.to_owned()];
    for _ in 0..depth {
        let mut next = Vec::new();
        for folder in &level {
            let entries = entries(folder)?;
            next.extend(entries.into_iter().filter(|path| path.is_dir()));
        }
        let named = |path: &&PathBuf| path.file_name().is_some_and(|file| file == name);
        if let Some(path) = next.iter().find(named) {
            return Ok(Some(path.clone()));
        }
        level = next;
    }
    Ok(None)
}

/// Images in a folder and all below it, in the order of their names.
fn images(folder: &Path) -> Result<Vec<PathBuf>, LayoutError> {
    let mut images = Vec::new();
    for path in entries(folder)? {
        let ending = path.extension().and_then(|ending| ending.to_str());
        let ending = ending.unwrap_or_default().to_ascii_lowercase();
        if path.is_dir() {
            images.extend(self::images(&path)?);
        } else if IMAGES.contains(&ending.as_str()) {
            images.push(path);
        }
    }
    Ok(images)
}

/// What a folder holds, in the order of names, without hidden files and links to folders.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, LayoutError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let entry = entry.map_err(at(folder))?;
        let link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        let foreign = link && path.is_dir();
        if !(hidden || foreign) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

pub(super) fn missing(paper: &Paper, folder: &Path, missing: &str) -> LayoutError {
    LayoutError::Missing {
        folder: folder.into(),
        missing: missing.into(),
        expected: paper.files,
    }
}

pub(super) fn at(path: &Path) -> impl FnOnce(std::io::Error) -> LayoutError {
    let path = path.to_owned();
    move |error| LayoutError::Io { path, error }
}
