//! Everything a store does to its medium, one call a step.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

/// A folder on a medium. Paths are relative to it, with `/`, and "" is the
/// folder itself.
///
/// What is written is only certain to outlast a power cut once the file was
/// [synced](Disk::sync) and, where a name was made, changed or removed, the
/// folder that holds the name [was too](Disk::sync_folder).
pub trait Disk {
    /// Contents of a file.
    ///
    /// # Errors
    /// Whatever the medium reports, as in all that follow.
    fn read(&self, path: &str) -> io::Result<Vec<u8>>;

    /// Names in a folder, sorted; none if it does not exist.
    ///
    /// # Errors
    /// As reported.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;

    /// Length of a file in bytes; `None` if it does not exist.
    ///
    /// # Errors
    /// As reported.
    fn len(&self, path: &str) -> io::Result<Option<u64>>;

    /// Bytes that can still be written.
    ///
    /// # Errors
    /// As reported.
    fn free(&self) -> io::Result<u64>;

    /// Most bytes that are written in one step.
    fn chunk(&self) -> usize {
        1 << 18
    }

    /// Makes an empty file, which must not exist.
    ///
    /// # Errors
    /// As reported.
    fn create(&mut self, path: &str) -> io::Result<()>;

    /// Adds to the end of a file.
    ///
    /// # Errors
    /// As reported.
    fn append(&mut self, path: &str, bytes: &[u8]) -> io::Result<()>;

    /// Lets a file be run as a program.
    ///
    /// # Errors
    /// As reported.
    fn allow_execution(&mut self, path: &str) -> io::Result<()>;

    /// Waits until the medium has the contents of a file.
    ///
    /// # Errors
    /// As reported.
    fn sync(&mut self, path: &str) -> io::Result<()>;

    /// Waits until the medium has the names in a folder.
    ///
    /// # Errors
    /// As reported.
    fn sync_folder(&mut self, path: &str) -> io::Result<()>;

    /// Gives a file another name in the same folder, replacing what has it.
    ///
    /// # Errors
    /// As reported.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Gives a file a second name, which must not exist.
    ///
    /// # Errors
    /// As reported; media without hard links refuse.
    fn link(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// As reported.
    fn remove(&mut self, path: &str) -> io::Result<()>;

    /// Makes a folder, which must not exist.
    ///
    /// # Errors
    /// As reported.
    fn create_folder(&mut self, path: &str) -> io::Result<()>;

    /// Removes an empty folder.
    ///
    /// # Errors
    /// As reported.
    fn remove_folder(&mut self, path: &str) -> io::Result<()>;
}

/// A folder of the machine.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
    steps_left: Option<usize>,
}

impl Folder {
    /// The folder at `root`, which must exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            steps_left: None,
        }
    }

    /// The same, but the process is killed at step `step`, counted from 0.
    #[must_use]
    pub fn dying_at(self, step: usize) -> Self {
        Self {
            steps_left: Some(step),
            ..self
        }
    }

    fn step(&mut self) {
        match &mut self.steps_left {
            None => {}
            Some(0) => {
                let me = rustix::process::getpid();
                // Nothing follows a signal that no process can catch.
                let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
            }
            Some(left) => *left -= 1,
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        match path {
            "" => self.root.clone(),
            path => self.root.join(path),
        }
    }
}

impl Disk for Folder {
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.at(path))?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.at(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let name = |entry: io::Result<fs::DirEntry>| {
            entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
        };
        let mut names = entries.map(name).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn len(&self, path: &str) -> io::Result<Option<u64>> {
        match fs::metadata(self.at(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            metadata => Ok(Some(metadata?.len())),
        }
    }

    fn free(&self) -> io::Result<u64> {
        let status = rustix::fs::statvfs(&self.root)?;
        Ok(status.f_bavail.saturating_mul(status.f_frsize))
    }

    fn create(&mut self, path: &str) -> io::Result<()> {
        self.step();
        File::create_new(self.at(path)).map(drop)
    }

    fn append(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.step();
        let mut options = OpenOptions::new();
        options.append(true).open(self.at(path))?.write_all(bytes)
    }

    fn allow_execution(&mut self, path: &str) -> io::Result<()> {
        self.step();
        fs::set_permissions(self.at(path), Permissions::from_mode(0o755))
    }

    fn sync(&mut self, path: &str) -> io::Result<()> {
        self.step();
        File::open(self.at(path))?.sync_all()
    }

    fn sync_folder(&mut self, path: &str) -> io::Result<()> {
        self.step();
        File::open(self.at(path))?.sync_all()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.step();
        fs::rename(self.at(from), self.at(to))
    }

    fn link(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.step();
        fs::hard_link(self.at(from), self.at(to))
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        self.step();
        fs::remove_file(self.at(path))
    }

    fn create_folder(&mut self, path: &str) -> io::Result<()> {
        self.step();
        fs::create_dir(self.at(path))
    }

    fn remove_folder(&mut self, path: &str) -> io::Result<()> {
        self.step();
        fs::remove_dir(self.at(path))
    }
}
