//! Image files of a folder, as they lie there and as they come.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use super::{Encoding, Shot, Source, SourceError, Stopper};
use crate::decode::{self, MAX_BYTES};

/// How often a watched folder is looked at; a file is read once it has not
/// changed from one look to the next.
const LOOK: Duration = Duration::from_millis(200);

/// Size and time of last change: what tells whether a file is still written.
type Stamp = (u64, Option<SystemTime>);

/// A folder of pictures, or one picture.
pub struct Folder {
    path: PathBuf,
    watch: bool,
    waiting: Vec<PathBuf>,
    /// Files that were given out, and as what.
    seen: HashMap<PathBuf, Stamp>,
    /// Files as they were at the last look.
    last: HashMap<PathBuf, Stamp>,
    /// The last look found no folder.
    is_away: bool,
    is_stopped: Arc<AtomicBool>,
}

impl Folder {
    /// Lists the folder at `path`, or takes the one picture there.
    ///
    /// # Errors
    /// [`SourceError::Setup`] when there is nothing to look at.
    pub fn open(path: &Path, watch: bool) -> Result<Self, SourceError> {
        let mut folder = Self {
            path: path.into(),
            watch,
            waiting: Vec::new(),
            seen: HashMap::new(),
            last: HashMap::new(),
            is_away: false,
            is_stopped: Arc::default(),
        };
        if path.is_file() {
            folder.waiting.push(path.into());
            return Ok(folder);
        }
        let setup = |error| SourceError::Setup(format!("{}: {error}", path.display()));
        let files = list(path).map_err(|error| setup(error.to_string()))?;
        if !watch {
            folder.waiting = files.into_iter().map(|(path, _)| path).rev().collect();
            if folder.waiting.is_empty() {
                return Err(setup("no pictures in this folder".into()));
            }
        }
        Ok(folder)
    }

    /// Looks for files that are new or have changed, and are whole. A folder
    /// that is away (a medium, a share) is named once and looked for again;
    /// what was given out before is remembered.
    fn look(&mut self) -> Result<(), SourceError> {
        let files = match list(&self.path) {
            Ok(files) => files,
            Err(_) if self.is_away => return Ok(()),
            Err(error) => {
                self.is_away = true;
                let path = self.path.display();
                return Err(SourceError::Picture(format!("{path}: {error}")));
            }
        };
        self.is_away = false;
        for (path, stamp) in files.iter().rev() {
            let whole = self.last.get(path) == Some(stamp);
            if whole && self.seen.get(path) != Some(stamp) {
                self.seen.insert(path.clone(), *stamp);
                self.waiting.push(path.clone());
            }
        }
        self.last = files.into_iter().collect();
        let there = &self.last;
        // An empty folder may be the place of a medium that is away.
        if !there.is_empty() {
            self.seen.retain(|path, _| there.contains_key(path));
        }
        Ok(())
    }
}

impl Source for Folder {
    fn next(&mut self, mut buffer: Vec<u8>) -> Result<Shot, SourceError> {
        let path = loop {
            if self.is_stopped.load(Ordering::SeqCst) {
                return Err(SourceError::Lost("the folder is watched no more".into()));
            }
            match self.waiting.pop() {
                Some(path) => break path,
                None if !self.watch => return Err(SourceError::End),
                None => self.look()?,
            }
            if self.waiting.is_empty() {
                thread::sleep(LOOK);
            }
        };
        buffer.clear();
        let read =
            fs::File::open(&path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut buffer));
        let name = path.display().to_string();
        read.map_err(|error| SourceError::Picture(format!("{name}: {error}")))?;
        let mut shot = Shot::now(buffer, Encoding::File);
        shot.name = Some(name.into());
        Ok(shot)
    }

    fn stopper(&self) -> Option<Stopper> {
        let flag = Arc::clone(&self.is_stopped);
        Some(Box::new(move || flag.store(true, Ordering::SeqCst)))
    }
}

/// The pictures directly in `folder` by name, hidden ones left out.
fn list(folder: &Path) -> std::io::Result<Vec<(PathBuf, Stamp)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // A file may go between the listing and this.
        if let Ok(metadata) = fs::metadata(&path)
            && metadata.is_file()
            && is_picture(&path)
        {
            files.push((path, stamp(&metadata)));
        }
    }
    files.sort();
    Ok(files)
}

fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.len(), metadata.modified().ok())
}

fn is_picture(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.to_string_lossy().starts_with('.'));
    !hidden && decode::is_picture(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(source: &mut Folder, count: usize) -> Vec<String> {
        let name = |shot: Shot| {
            Path::new(&*shot.name.unwrap())
                .file_name()
                .unwrap()
                .to_owned()
        };
        (0..count)
            .map(|_| {
                name(source.next(Vec::new()).unwrap())
                    .into_string()
                    .unwrap()
            })
            .collect()
    }

    #[test]
    fn a_folder_is_read_in_order_and_ends() {
        let place = tempfile::tempdir().unwrap();
        for name in ["b.png", "a.JPG", ".c.png", "notes.txt"] {
            fs::write(place.path().join(name), name).unwrap();
        }
        let mut source = Folder::open(place.path(), false).unwrap();
        assert_eq!(names(&mut source, 2), ["a.JPG", "b.png"]);
        assert_eq!(source.next(Vec::new()).unwrap_err(), SourceError::End);
        assert!(Folder::open(&place.path().join("none"), false).is_err());
    }

    #[test]
    fn a_folder_that_goes_away_and_comes_back_gives_nothing_twice() {
        let place = tempfile::tempdir().unwrap();
        let [folder, away] = ["in", "away"].map(|name| place.path().join(name));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a.png"), "1").unwrap();
        let mut source = Folder::open(&folder, true).unwrap();
        assert_eq!(names(&mut source, 1), ["a.png"]);
        fs::rename(&folder, &away).unwrap();
        let error = source.next(Vec::new()).unwrap_err();
        assert!(matches!(error, SourceError::Picture(_)), "{error}");
        source.look().unwrap();
        fs::rename(&away, &folder).unwrap();
        fs::write(folder.join("b.png"), "1").unwrap();
        assert_eq!(names(&mut source, 1), ["b.png"]);
        // The place where a medium was mounted is there, and empty.
        fs::rename(&folder, &away).unwrap();
        fs::create_dir(&folder).unwrap();
        source.look().unwrap();
        fs::remove_dir(&folder).unwrap();
        fs::rename(&away, &folder).unwrap();
        fs::write(folder.join("c.png"), "1").unwrap();
        assert_eq!(names(&mut source, 1), ["c.png"]);
    }

    #[test]
    fn a_watch_is_ended_from_another_thread() {
        let place = tempfile::tempdir().unwrap();
        let mut source = Folder::open(place.path(), true).unwrap();
        let stop = source.stopper().unwrap();
        let stopper = thread::spawn(move || {
            thread::sleep(LOOK / 2);
            stop();
        });
        assert!(source.next(Vec::new()).is_err());
        stopper.join().unwrap();
    }

    #[test]
    fn a_watched_folder_gives_what_is_new_or_changed_once() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(place.path().join(name), text).unwrap();
        write("a.png", "1");
        let mut source = Folder::open(place.path(), true).unwrap();
        assert_eq!(names(&mut source, 1), ["a.png"]);
        write("b.png", "1");
        assert_eq!(names(&mut source, 1), ["b.png"]);
        write("a.png", "longer");
        assert_eq!(names(&mut source, 1), ["a.png"]);
        assert!(source.waiting.is_empty());
    }
}
