//! Several bundles in one folder, one of which serves: a device's store.
//!
//! ```text
//! current            which bundle serves, which one did before (JSON)
//! slots/<sha256>/    a bundle, named by the SHA-256 of its manifest
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::MANIFEST;
use super::open::BundleError;

/// Name of the file that says which bundle serves.
pub const STATE: &str = "current";

/// Which bundles of a store serve.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// SHA-256 of the bundle that serves.
    pub serving: Option<String>,
    /// SHA-256 of the bundle that served before, kept to go back to.
    pub previous: Option<String>,
}

impl State {
    /// Reads the contents of a store's [`STATE`] file.
    ///
    /// # Errors
    /// A message when they are anything but two digests.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let state: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        for digest in [&state.serving, &state.previous].into_iter().flatten() {
            if !is_digest(digest) {
                return Err(format!("expected a SHA-256, got {digest:?}"));
            }
        }
        Ok(state)
    }
}

/// Folder of the bundle `sha256`, from the root of the store.
pub(crate) fn slot(sha256: &str) -> String {
    format!("slots/{sha256}")
}

/// Whether `text` is a SHA-256 in lower-case hexadecimal.
pub(crate) fn is_digest(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The bundle in `directory`: the one that serves if that is a store, else
/// `directory` itself.
pub(super) fn serving(directory: &Path) -> Result<PathBuf, BundleError> {
    let path = directory.join(STATE);
    let json = match fs::read(&path) {
        Ok(json) if !directory.join(MANIFEST).exists() => json,
        Ok(_) => return Ok(directory.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(directory.into()),
        Err(error) => return Err(BundleError::io(&path, error)),
    };
    let invalid = |message: String| BundleError::file(&path.display().to_string(), message);
    match State::parse(&json).map_err(invalid)?.serving {
        Some(digest) => Ok(directory.join(slot(&digest))),
        None => Err(invalid("no bundle serves yet; flash one".into())),
    }
}
