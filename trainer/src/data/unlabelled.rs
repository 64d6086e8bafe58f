//! Images without labels: a folder, a pattern, or the paths of a table.

use std::path::{Component, Path, PathBuf};

use globset::GlobBuilder;
use numclip::decode::is_picture;
use walkdir::{DirEntry, WalkDir};

use super::dataset::{Columns, paths_of};
use super::error::{DataError, DataErrorKind as Kind};

/// The images that `place` stands for, in the order of their names or of their table: those below
/// a folder, those that a pattern such as `photos/**/*.jpg` matches, or the column of paths of a
/// CSV table, whose labels are not looked at.
///
/// # Errors
/// There are none, the pattern is no pattern, or the table cannot be read.
pub fn images(place: &Path, columns: &Columns) -> Result<Vec<PathBuf>, DataError> {
    let is_csv = place
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let paths = if place.is_dir() {
        files(place, &is_picture)
    } else if is_csv {
        return paths_of(place, columns);
    } else {
        matches(place)?
    };
    match paths.is_empty() {
        true => Err(DataError::new(place, None, Kind::NoImages)),
        false => Ok(paths),
    }
}

fn matches(pattern: &Path) -> Result<Vec<PathBuf>, DataError> {
    let glob = GlobBuilder::new(&pattern.to_string_lossy())
        .literal_separator(true)
        .build()
        .map_err(|error| DataError::new(pattern, None, Kind::Pattern(error.to_string())))?;
    let matcher = glob.compile_matcher();
    let is_fixed = |part: &Component<'_>| {
        let part = part.as_os_str().to_string_lossy();
        !part.contains(|character| "*?[{".contains(character))
    };
    let root: PathBuf = pattern.components().take_while(is_fixed).collect();
    Ok(files(&root, &|path| matcher.is_match(path)))
}

/// Files below `root` in the order of names, hidden ones left out.
fn files(root: &Path, wanted: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let is_hidden = |entry: &DirEntry| {
        entry.depth() > 0 && entry.file_name().to_string_lossy().starts_with('.')
    };
    WalkDir::new(root)
        .follow_links(true)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(|entry| !is_hidden(entry))
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_file() && wanted(entry.path()))
        .map(DirEntry::into_path)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn folders_patterns_and_tables_name_images() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("b/.hidden")).unwrap();
        for name in ["c.JPG", "b/a.png", "b/notes.txt", "b/.hidden/x.png"] {
            fs::write(root.join(name), name).unwrap();
        }
        fs::write(root.join("t.csv"), "id,path\n1,c.JPG\n2,b/a.png\n").unwrap();
        let names = |place: &str| -> Vec<String> {
            let paths = images(&root.join(place), &Columns::default()).unwrap();
            let name = |path: &PathBuf| path.strip_prefix(root).unwrap().display().to_string();
            paths.iter().map(name).collect()
        };
        assert_eq!(names("."), ["b/a.png", "c.JPG"]);
        assert_eq!(names("**/*.png"), ["b/a.png"]);
        assert_eq!(names("*.{JPG,png}"), ["c.JPG"]);
        assert_eq!(names("t.csv"), ["c.JPG", "b/a.png"]);
        for (place, expected) in [
            ("d*", "no image"),
            ("[", "no pattern"),
            ("none", "no image"),
            ("none.csv", "cannot be read"),
        ] {
            let error = images(&root.join(place), &Columns::default()).unwrap_err();
            assert!(error.to_string().contains(expected), "{place}: {error}");
        }
    }
}
