//! Lists of images: the owner's fold files of Adience, and `path label [label…]`.

use std::fs;
use std::path::{Path, PathBuf};

use super::layout::{Found, LayoutError, Row, at, entries, missing};
use super::paper::Paper;

/// The age groups of Adience, first and last year.
const GROUPS: [[u32; 2]; 8] = [
    [0, 2],
    [4, 6],
    [8, 12],
    [15, 20],
    [25, 32],
    [38, 43],
    [48, 53],
    [60, 100],
];

/// A line of a list: what stands on it, and its number from 1.
struct Entry<'a> {
    list: &'a Path,
    line: usize,
    text: &'a str,
}

/// The owner's five folds: tab-separated, a header first.
pub fn adience(paper: &Paper, folder: &Path) -> Result<Found, LayoutError> {
    let all: Vec<Vec<PathBuf>> = ["fold_", "fold_frontal_"]
        .map(|prefix| {
            (0..paper.folds)
                .map(|n| folder.join(format!("{prefix}{n}_data.txt")))
                .collect()
        })
        .to_vec();
    let whole = all
        .iter()
        .find(|lists: &&Vec<PathBuf>| lists.iter().all(|list| list.is_file()));
    let Some(lists) = whole else {
        let absent = all[0].iter().filter(|list| !list.is_file());
        let names: Vec<_> = absent
            .filter_map(|list| list.file_name()?.to_str())
            .collect();
        return Err(missing(paper, folder, &names.join(", ")));
    };
    let places = [
        ("aligned", "landmark_aligned_face"),
        ("faces", "coarse_tilt_aligned_face"),
    ];
    let place = places.iter().find(|(name, _)| folder.join(name).is_dir());
    let Some(&(images, prefix)) = place else {
        return Err(missing(
            paper,
            folder,
            "aligned or faces (unpack aligned.tar.gz)",
        ));
    };
    let mut found = Found::default();
    for (fold, list) in lists.iter().enumerate() {
        let text = read(list)?;
        for entry in lines(list, &text).skip(1) {
            let columns: Vec<&str> = entry.text.split('\t').collect();
            let [user, image, face, age, ..] = columns[..] else {
                return Err(entry.wrong("expected user, image, face and age, separated by tabs"));
            };
            match group(age) {
                Some(group) => found.rows.push(Row {
                    path: folder
                        .join(images)
                        .join(user)
                        .join(format!("{prefix}.{face}.{image}")),
                    label: group as f32,
                    group: Some(user.into()),
                    split: Some(fold.to_string()),
                }),
                None => found.leave_out(format!("age {age}")),
            }
        }
    }
    Ok(found)
}

/// The group that an age such as `(25, 32)` or `29` lies in.
fn group(age: &str) -> Option<usize> {
    let plain = age.trim().trim_matches(['(', ')']);
    let (first, last) = plain.split_once(',').unwrap_or((plain, plain));
    let years = [first, last].map(|year| year.trim().parse::<u32>().ok());
    let [Some(first), Some(last)] = years else {
        return None;
    };
    let holds = |group: &[u32; 2]| group[0] <= first && first <= last && last <= group[1];
    GROUPS.iter().position(holds)
}

/// Lists of `path label [label…]`: a single one, one for each fold, or train, val and test.
pub fn votes(paper: &Paper, folder: &Path) -> Result<Found, LayoutError> {
    let lists = in_folder(folder)?;
    if lists.is_empty() {
        return Err(missing(paper, folder, "a list (*.txt)"));
    }
    let splits = splits(&lists);
    if splits.is_none() && lists.len() > 1 && lists.len() != paper.folds {
        let what = format!(
            "a list for each of {} folds, or train and test, or one list",
            paper.folds
        );
        return Err(missing(paper, folder, &what));
    }
    let mut found = Found::default();
    for (number, list) in lists.iter().enumerate() {
        let split = match &splits {
            Some(names) => Some(names[number].to_owned()),
            None => (lists.len() > 1).then(|| number.to_string()),
        };
        let text = read(list)?;
        for entry in lines(list, &text) {
            let (path, label) = entry.vote()?;
            found.rows.push(Row {
                path: folder.join(path),
                label,
                group: None,
                split: split.clone(),
            });
        }
    }
    Ok(found)
}

/// Lists in a folder, in the order of their names.
pub fn in_folder(folder: &Path) -> Result<Vec<PathBuf>, LayoutError> {
    let is_list = |path: &PathBuf| {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_lowercase();
        name.ends_with(".txt") && !name.contains("readme") && !name.contains("licen")
    };
    Ok(entries(folder)?.into_iter().filter(is_list).collect())
}

/// `train`, `val` or `test` for each list, if every name holds one of these words and one is the
/// test.
fn splits(lists: &[PathBuf]) -> Option<Vec<&'static str>> {
    let split = |list: &PathBuf| {
        let name = list.file_stem()?.to_str()?.to_lowercase();
        ["train", "val", "test"]
            .into_iter()
            .find(|word| name.contains(word))
    };
    let splits: Vec<&str> = lists.iter().map(split).collect::<Option<_>>()?;
    splits.contains(&"test").then_some(splits)
}

impl Entry<'_> {
    /// Path and median label; a path may hold blanks.
    fn vote(&self) -> Result<(&str, f32), LayoutError> {
        let words: Vec<&str> = self.text.split_whitespace().collect();
        let is_number = |word: &&&str| word.parse::<f32>().is_ok_and(f32::is_finite);
        let count = words.iter().skip(1).rev().take_while(is_number).count();
        if count == 0 {
            return Err(self.wrong("expected a path and one label or more"));
        }
        let labels = &words[words.len() - count..];
        let mut values: Vec<f32> = labels.iter().filter_map(|word| word.parse().ok()).collect();
        values.sort_by(f32::total_cmp);
        let mut path = self.text;
        for label in labels.iter().rev() {
            path = path.trim_end().strip_suffix(label).unwrap_or(path);
        }
        Ok((path.trim(), values[count / 2]))
    }

    fn wrong(&self, problem: &str) -> LayoutError {
        LayoutError::Line {
            path: self.list.into(),
            line: self.line,
            problem: problem.into(),
        }
    }
}

fn read(list: &Path) -> Result<String, LayoutError> {
    fs::read_to_string(list).map_err(at(list))
}

/// Lines that are not blank.
fn lines<'a>(list: &'a Path, text: &'a str) -> impl Iterator<Item = Entry<'a>> {
    let numbered = text.lines().enumerate();
    let entries = numbered.map(move |(number, text)| Entry {
        list,
        line: number + 1,
        text,
    });
    entries.filter(|entry| !entry.text.trim().is_empty())
}
