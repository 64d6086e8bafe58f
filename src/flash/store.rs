//! What a store holds, and the one step that changes what it serves.

use std::collections::BTreeMap;
use std::io;

use serde::Deserialize;
use thiserror::Error;

use super::disk::Disk;
use crate::bundle::{MANIFEST, ModelSection, STATE, State, sha256, slot};
use crate::package::PackageError;

/// Folder of the slots.
pub(super) const SLOTS: &str = "slots";
/// Folder of files on their way.
pub(super) const STAGING: &str = "staging";
/// The next [`STATE`] before it is renamed.
pub(super) const NEXT: &str = "current.new";

/// Why a store does not do what it was asked. It serves what it did before.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The medium reports an error.
    #[error("{path}: {error}")]
    Disk {
        /// File or folder of the store.
        path: String,
        /// What failed.
        error: io::Error,
    },
    /// The package is at fault.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The file that says what serves is not readable.
    #[error("{STATE}: {0}; restore it or remove it and flash again")]
    State(String),
    /// A bundle of the store is not what it was.
    #[error("bundle {bundle}: {message}")]
    Damaged {
        /// Beginning of its SHA-256.
        bundle: String,
        /// How it shows.
        message: String,
    },
    /// An older version than the one that serves.
    #[error(
        "{name} {installed} serves, {offered} is older; --allow-downgrade takes it nevertheless"
    )]
    Downgrade {
        /// Name of the model.
        name: String,
        /// Version that serves.
        installed: String,
        /// Version of the package.
        offered: String,
    },
    /// The medium is too full.
    #[error(
        "{needed} bytes are needed beside the model that serves, {free} are free; make room, or prune"
    )]
    Space {
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A cartridge came without the model whose encoder it needs.
    #[error(
        "this package is a cartridge and needs {name} (sha256 {sha256}), which is not on this device; flash the whole package"
    )]
    Missing {
        /// The file.
        name: String,
        /// Its SHA-256.
        sha256: String,
    },
    /// The package stopped coming.
    #[error("the connection ended within {name}; run the command again, it goes on from there")]
    Cut {
        /// The file that was on its way.
        name: String,
    },
    /// This machine does not compute what the trainer did.
    #[error("the new model is not right on this device: {0}")]
    Check(String),
    /// It differs from the model that serves, or nobody can tell.
    #[error("the new model was not accepted beside the one that serves: {0}")]
    Shadow(String),
    /// There is no bundle to go back to.
    #[error("nothing to go back to: no bundle served before")]
    NoPrevious,
}

/// What a bundle's manifest says about itself and its files.
#[derive(Clone, Debug, Deserialize)]
pub struct Listing {
    /// Name and version.
    pub model: ModelSection,
    /// SHA-256 of every other file.
    pub files: BTreeMap<String, String>,
}

/// Which bundle serves and which did before; none in a new store.
///
/// # Errors
/// [`StoreError`] when the file that says so cannot be read.
pub fn state(disk: &dyn Disk) -> Result<State, StoreError> {
    match disk.len(STATE).map_err(at(STATE))? {
        None => Ok(State::default()),
        Some(_) => {
            let json = disk.read(STATE).map_err(at(STATE))?;
            State::parse(&json).map_err(StoreError::State)
        }
    }
}

/// The manifest of the bundle `digest`, which has that SHA-256.
///
/// # Errors
/// [`StoreError::Damaged`].
pub fn listing(disk: &dyn Disk, digest: &str) -> Result<Listing, StoreError> {
    let damaged = |message: String| damaged(digest, message);
    let path = format!("{}/{MANIFEST}", slot(digest));
    let bytes = disk
        .read(&path)
        .map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
    if sha256(&bytes) != digest {
        return Err(damaged(format!("{MANIFEST} has changed")));
    }
    let text = String::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
    toml::from_str(&text).map_err(|error| damaged(error.to_string()))
}

/// Holds every file of the bundle `digest` against its SHA-256.
///
/// # Errors
/// [`StoreError::Damaged`] names the first that differs.
pub fn intact(disk: &dyn Disk, digest: &str) -> Result<(), StoreError> {
    let damaged = |message: String| damaged(digest, message);
    for (name, expected) in &listing(disk, digest)?.files {
        let bytes = disk.read(&format!("{}/{name}", slot(digest)));
        let bytes = bytes.map_err(|error| damaged(format!("{name}: {error}")))?;
        if sha256(&bytes) != *expected {
            return Err(damaged(format!("{name} has changed")));
        }
    }
    Ok(())
}

/// Lets `state` hold from now on: the one step of an update that counts.
pub(super) fn switch(disk: &mut dyn Disk, state: &State) -> Result<(), StoreError> {
    let json = serde_json::to_vec(state).map_err(|error| StoreError::State(error.to_string()))?;
    write_file(disk, NEXT, &json)?;
    disk.sync(NEXT).map_err(at(NEXT))?;
    disk.rename(NEXT, STATE).map_err(at(STATE))?;
    disk.sync_folder("").map_err(at(STATE))
}

/// Writes a whole file in place of whatever has the name; not yet synced.
pub(super) fn write_file(disk: &mut dyn Disk, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
    remove(disk, path)?;
    disk.create(path).map_err(at(path))?;
    for chunk in bytes.chunks(disk.chunk()) {
        disk.append(path, chunk).map_err(at(path))?;
    }
    Ok(())
}

/// Removes a file if it is there.
pub(super) fn remove(disk: &mut dyn Disk, path: &str) -> Result<(), StoreError> {
    match disk.len(path).map_err(at(path))? {
        Some(_) => disk.remove(path).map_err(at(path)),
        None => Ok(()),
    }
}

/// Puts the path to an error of the medium.
pub(super) fn at(path: &str) -> impl FnOnce(io::Error) -> StoreError + use<'_> {
    move |error| StoreError::Disk {
        path: path.into(),
        error,
    }
}

fn damaged(digest: &str, message: String) -> StoreError {
    StoreError::Damaged {
        bundle: digest.chars().take(12).collect(),
        message,
    }
}
