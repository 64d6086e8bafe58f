//! From paths, folders and patterns to a list of pictures.

use std::io::{self, BufRead};
use std::path::{Component, Path, PathBuf};

use fast_glob::glob_match;
use numclip::decode::{EXTENSIONS, is_picture};
use thiserror::Error;
use walkdir::{DirEntry, WalkDir};

/// A picture to look at.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Where it lies, as the user would write it.
    pub path: PathBuf,
    /// The true value, where it is known.
    pub label: Option<f32>,
    /// Whom or what it shows, where other pictures show the same.
    pub group: Option<String>,
}

/// An argument that gives no pictures.
#[derive(Debug, Error)]
pub enum InputError {
    /// A folder without pictures.
    #[error("{}: no pictures in this folder (looked for {})", .0.display(), EXTENSIONS.join(", "))]
    EmptyFolder(PathBuf),
    /// A pattern that nothing matches.
    #[error("{0}: no file matches this pattern")]
    NoMatch(String),
    /// A pattern that is none.
    #[error("{pattern}: {error}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        error: fast_glob::Error,
    },
    /// A folder that cannot be listed.
    #[error(transparent)]
    Walk(#[from] walkdir::Error),
    /// The list on stdin cannot be read.
    #[error("stdin: {0}")]
    Stdin(io::Error),
    /// No argument gave a picture.
    #[error("no picture to look at")]
    Nothing,
}

impl Input {
    /// A picture without a known value.
    pub fn unlabelled(path: PathBuf) -> Self {
        Self {
            path,
            label: None,
            group: None,
        }
    }
}

/// The pictures that `argument` stands for: a file, the pictures of a folder
/// and its subfolders, the matches of a pattern, or (`-`) the paths on stdin.
///
/// # Errors
/// [`InputError`] when there are none.
pub fn expand(argument: &Path) -> Result<Vec<Input>, InputError> {
    let text = argument.to_string_lossy();
    let paths = if text == "-" {
        read_paths(io::stdin().lock())?
    } else if argument.is_dir() {
        walk(argument)?
    } else if !argument.exists() && text.contains(is_special) {
        matches(&text)?
    } else {
        vec![argument.into()]
    };
    Ok(paths.into_iter().map(Input::unlabelled).collect())
}

fn read_paths(lines: impl BufRead) -> Result<Vec<PathBuf>, InputError> {
    let mut paths = Vec::new();
    for line in lines.lines() {
        let line = line.map_err(InputError::Stdin)?;
        if !line.trim().is_empty() {
            paths.push(line.into());
        }
    }
    Ok(paths)
}

fn walk(folder: &Path) -> Result<Vec<PathBuf>, InputError> {
    let mut pictures = files(folder)?;
    pictures.retain(|path| is_picture(path));
    match pictures.is_empty() {
        true => Err(InputError::EmptyFolder(folder.into())),
        false => Ok(pictures),
    }
}

fn matches(pattern: &str) -> Result<Vec<PathBuf>, InputError> {
    fast_glob::validate(pattern).map_err(|error| InputError::Pattern {
        pattern: pattern.into(),
        error,
    })?;
    let base = fixed_part(pattern);
    let root = match base.as_os_str().is_empty() {
        true => Path::new("."),
        false => &base,
    };
    let mut found = files(root).map_err(|_| InputError::NoMatch(pattern.into()))?;
    if base.as_os_str().is_empty() {
        for path in &mut found {
            *path = path.strip_prefix(".").unwrap_or(path).into();
        }
    }
    found.retain(|path| glob_match(pattern, path.as_os_str().as_encoded_bytes()));
    match found.is_empty() {
        true => Err(InputError::NoMatch(pattern.into())),
        false => Ok(found),
    }
}

/// The folders of `pattern` ahead of its first special character.
fn fixed_part(pattern: &str) -> PathBuf {
    let is_fixed = |part: &Component<'_>| !part.as_os_str().to_string_lossy().contains(is_special);
    Path::new(pattern)
        .components()
        .take_while(is_fixed)
        .collect()
}

fn is_special(character: char) -> bool {
    "*?[{".contains(character)
}

/// Every file below `root` in the order of names, hidden ones left out.
fn files(root: &Path) -> Result<Vec<PathBuf>, InputError> {
    let mut paths = Vec::new();
    let entries = WalkDir::new(root).follow_links(true).sort_by_file_name();
    for entry in entries.into_iter().filter_entry(|entry| !is_hidden(entry)) {
        let entry = entry?;
        if entry.file_type().is_file() {
            paths.push(entry.into_path());
        }
    }
    Ok(paths)
}

fn is_hidden(entry: &DirEntry) -> bool {
    entry.depth() > 0 && entry.file_name().to_string_lossy().starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_part_of_a_pattern_ends_before_its_first_wildcard() {
        for (pattern, fixed) in [
            ("photos/*.jpg", "photos"),
            ("*.jpg", ""),
            ("/data/20??/a.png", "/data"),
            ("a/b/{c,d}.png", "a/b"),
            ("../x/**/y.png", "../x"),
        ] {
            assert_eq!(fixed_part(pattern), Path::new(fixed), "{pattern}");
        }
    }

    #[test]
    fn stdin_lists_one_path_a_line() {
        let paths = read_paths(&b"a b.jpg\n\n/c.png\n"[..]).unwrap();
        assert_eq!(paths, [Path::new("a b.jpg"), Path::new("/c.png")]);
    }

    #[test]
    fn pictures_are_known_by_extension_in_any_case() {
        assert!(is_picture(Path::new("a.JPG")) && is_picture(Path::new("b/c.tiff")));
        assert!(!is_picture(Path::new("labels.csv")) && !is_picture(Path::new("jpg")));
    }
}
