//! The last pictures of a running camera, kept so that a new model can be
//! compared with the one that serves before it takes over.
//!
//! Nothing is kept unless it is asked for. What is kept is a ring of JPEG
//! files, readable by their owner alone: so many pictures, the oldest replaced
//! first, in a folder that by default lies in memory and is gone with the
//! power. The worker hands a frame over and makes no copy; the rest happens on
//! a thread of its own.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use crate::live::{Glimpse, Tap};
use crate::preprocess::Preprocessor;
use crate::snapshot::write_jpeg;
use crate::view::RegionError;

/// Longest side of a picture in pixels.
const SIDE: u32 = 1280;
/// Quality of a picture, 1 to 100: what JPEG adds matters less than noise.
const QUALITY: u8 = 95;
/// How long the next frame is waited for.
const WAIT: Duration = Duration::from_secs(1);

/// What is kept, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Keep {
    /// The folder, which is made if need be.
    pub folder: PathBuf,
    /// Pictures at most.
    pub frames: usize,
    /// Time between two pictures.
    pub every: Duration,
}

/// Keeps pictures until it is dropped.
pub struct Keeper {
    // The thread ends when it is gone.
    _alive: Sender<()>,
}

impl Keeper {
    /// Keeps pictures that `tap` hands over. `tell` hears when they can no
    /// longer be written.
    ///
    /// # Errors
    /// When the folder cannot be made or used.
    pub fn start(
        tap: Arc<Tap>,
        keep: Keep,
        tell: impl Fn(String) + Send + 'static,
    ) -> io::Result<Self> {
        prepare(&keep)?;
        let (alive, ended) = channel();
        thread::spawn(move || {
            let mut preprocessor = Preprocessor::default();
            let (mut next, mut failed) = (0, false);
            while ended.recv_timeout(keep.every) == Err(RecvTimeoutError::Timeout) {
                let Some(glimpse) = tap.next(WAIT) else {
                    continue;
                };
                let path = keep.folder.join(name(next));
                let written = write(&path, &glimpse, &mut preprocessor);
                match &written {
                    Ok(()) => next = (next + 1) % keep.frames,
                    Err(error) if !failed => tell(format!("{}: {error}", path.display())),
                    Err(_) => {}
                }
                failed = written.is_err();
            }
        });
        Ok(Self { _alive: alive })
    }
}

/// Makes the folder, and room: what an earlier run kept beyond this one's
/// number goes.
fn prepare(keep: &Keep) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(&keep.folder)?;
    let kept: Vec<String> = (0..keep.frames).map(name).collect();
    for entry in fs::read_dir(&keep.folder)? {
        let entry = entry?;
        let file = entry.file_name();
        let file = file.to_string_lossy();
        if is_ours(&file) && !kept.iter().any(|name| *name == file) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

const PREFIX: &str = "picture-";

fn name(index: usize) -> String {
    format!("{PREFIX}{index:04}.jpg")
}

/// Whether `file` has the name of a kept picture, or of one half written.
/// Nobody else's file may go.
fn is_ours(file: &str) -> bool {
    let parts = file
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split_once('.'));
    parts.is_some_and(|(number, kind)| {
        number.len() == 4
            && number.bytes().all(|byte| byte.is_ascii_digit())
            && matches!(kind, "jpg" | "new")
    })
}

/// Writes what the model looks at, whole or not at all.
fn write(path: &Path, glimpse: &Glimpse, preprocessor: &mut Preprocessor) -> io::Result<()> {
    let invalid = |error: RegionError| io::Error::new(io::ErrorKind::InvalidData, error);
    let view = glimpse.framing.view(&glimpse.frame).map_err(invalid)?;
    let next = path.with_extension("new");
    let mut file = BufWriter::new(private(&next)?);
    write_jpeg(preprocessor, &view, (SIDE, QUALITY), &mut file).map_err(io::Error::other)?;
    file.flush()?;
    fs::rename(&next, path)
}

fn private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kept_pictures_make_room() {
        let place = tempfile::tempdir().unwrap();
        let theirs = ["picture-holiday.jpg", "picture-12.jpg", "picture-0009.png"];
        let ours = ["picture-0001.jpg", "picture-0009.jpg", "picture-0002.new"];
        for file in theirs.iter().chain(&ours) {
            fs::write(place.path().join(file), "").unwrap();
        }
        fs::create_dir(place.path().join("picture-folder")).unwrap();
        let keep = Keep {
            folder: place.path().into(),
            frames: 2,
            every: Duration::ZERO,
        };
        prepare(&keep).unwrap();
        let is_there = |file: &&str| place.path().join(file).exists();
        assert!(theirs.iter().all(is_there));
        assert_eq!(ours.map(|file| is_there(&file)), [true, false, false]);
    }
}
