//! Which keys are trusted.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::term::{self, Term};
use super::{KeyId, PublicKey, SignatureError};

/// Name of the list of revoked keys in a folder of trusted ones: a key's
/// number (16 hexadecimal digits) a line; `#` begins a remark.
pub const REVOKED: &str = "revoked";

/// Keys that are trusted at a moment, and keys that no longer are.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    keys: Vec<PublicKey>,
    revoked: BTreeSet<KeyId>,
    now: Option<Timestamp>,
}

impl Trust {
    /// Trusts these keys at the time `now`; without it no expiry is checked.
    pub fn new(keys: Vec<PublicKey>, revoked: BTreeSet<KeyId>, now: Option<Timestamp>) -> Self {
        Self { keys, revoked, now }
    }

    /// Reads one public key, or a folder: every `*.pub` in it, and the list of
    /// revoked keys; to be trusted at the time `now`.
    ///
    /// # Errors
    /// [`SignatureError`] names the file. One bad key spoils the folder: to
    /// leave it out in silence could be to leave out a revocation.
    pub fn read(path: &Path, now: Option<Timestamp>) -> Result<Self, SignatureError> {
        if path.is_file() {
            return Ok(Self::new(vec![read_key(path)?], BTreeSet::new(), now));
        }
        let paths = key_files(path)?;
        let keys = paths.iter().map(|path| read_key(path));
        let trust = Self {
            keys: keys.collect::<Result<_, _>>()?,
            revoked: read_revoked(&path.join(REVOKED))?,
            now,
        };
        match trust.keys.is_empty() {
            true => Err(SignatureError::NoKeys {
                path: path.display().to_string(),
            }),
            false => Ok(trust),
        }
    }

    /// The trusted key `id`.
    ///
    /// # Errors
    /// [`SignatureError::Revoked`] or [`SignatureError::Foreign`].
    pub fn key(&self, id: KeyId) -> Result<&PublicKey, SignatureError> {
        if self.revoked.contains(&id) {
            return Err(SignatureError::Revoked { id });
        }
        let key = self.keys.iter().find(|key| key.id() == id);
        key.ok_or(SignatureError::Foreign { id })
    }

    /// Holds the times of a trusted key and of its signature against the clock.
    pub(super) fn check_term(
        &self,
        key: &PublicKey,
        term: Option<Term>,
    ) -> Result<(), SignatureError> {
        term::check(key, term, self.now)
    }
}

fn key_files(folder: &Path) -> Result<Vec<PathBuf>, SignatureError> {
    let io = |error| SignatureError::Io {
        path: folder.display().to_string(),
        error,
    };
    let mut paths = Vec::new();
    if !folder.exists() {
        return Ok(paths);
    }
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "pub") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_key(path: &Path) -> Result<PublicKey, SignatureError> {
    read_text(path)?
        .parse()
        .map_err(|error| in_file(path, error))
}

fn read_revoked(path: &Path) -> Result<BTreeSet<KeyId>, SignatureError> {
    if !path.exists() {
        return Ok(BTreeSet::new());
    }
    let text = read_text(path)?;
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or("").trim());
    lines
        .filter(|line| !line.is_empty())
        .map(|line| line.parse().map_err(|error| in_file(path, error)))
        .collect()
}

fn read_text(path: &Path) -> Result<String, SignatureError> {
    fs::read_to_string(path).map_err(|error| SignatureError::Io {
        path: path.display().to_string(),
        error,
    })
}

fn in_file(path: &Path, error: SignatureError) -> SignatureError {
    SignatureError::Key {
        path: path.display().to_string(),
        error: Box::new(error),
    }
}
