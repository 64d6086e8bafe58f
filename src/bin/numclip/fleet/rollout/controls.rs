//! The files beside a plan: how far it is, what is wished, who is at it.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use numclip::fleet::rollout::{Rollout, Wish};
use tempfile::NamedTempFile;

/// Where a roll-out is kept.
pub struct Controls {
    state: PathBuf,
    wish: PathBuf,
    lock: PathBuf,
}

impl Controls {
    /// The files of the plan at `plan`.
    pub fn new(plan: &Path, state: Option<&Path>) -> Self {
        let state = state.map_or_else(|| with(plan, ".state.json"), Path::to_path_buf);
        Self {
            wish: with(&state, ".wish"),
            lock: with(&state, ".lock"),
            state,
        }
    }

    /// Takes hold of it, so that it is carried out once at a time.
    pub fn hold(&self) -> Result<File> {
        let file = File::options().create(true).append(true).open(&self.lock);
        let file = file.with_context(|| self.lock.display().to_string())?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                bail!("{}: this roll-out is running already", self.state.display())
            }
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    /// Whether somebody carries it out at this moment.
    pub fn is_running(&self) -> bool {
        self.lock.exists() && self.hold().is_err()
    }

    /// How far it is; `None` if it has not begun.
    pub fn find(&self) -> Result<Option<Rollout>> {
        let name = || self.state.display().to_string();
        match fs::read(&self.state) {
            Ok(json) => serde_json::from_slice(&json).map(Some).with_context(name),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(name),
        }
    }

    /// How far it is.
    pub fn read(&self) -> Result<Rollout> {
        let found = self.find()?;
        found.with_context(|| format!("{}: it has not begun", self.state.display()))
    }

    /// Keeps how far it is, whole or as before.
    pub fn keep(&self, rollout: &Rollout) -> Result<()> {
        replace(&self.state, &serde_json::to_vec(rollout)?)
    }

    /// What is wished.
    pub fn wished(&self) -> Result<Wish> {
        match fs::read(&self.wish) {
            Ok(json) => serde_json::from_slice(&json).context(self.wish.display().to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Wish::Go),
            Err(error) => Err(error).context(self.wish.display().to_string()),
        }
    }

    /// Wishes something, for whoever carries it out now or later.
    pub fn wish(&self, wish: Wish) -> Result<()> {
        self.read()?;
        replace(&self.wish, &serde_json::to_vec(&wish)?)
    }
}

fn with(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let write = || {
        let mut file = NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        io::Result::Ok(())
    };
    write().with_context(|| path.display().to_string())
}
