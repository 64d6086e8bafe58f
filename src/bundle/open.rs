//! Opening a bundle: every byte checked before anything runs.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use safetensors::SafeTensors;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::golden::{Golden, floats};
use super::manifest::{EncoderFile, Manifest, SCHEMA};
use super::slots::serving;
use super::{BINS, GOLDEN, MANIFEST};
use crate::bins::Bins;
use crate::estimate::Estimator;

/// An opened bundle: its files have the digests that the manifest states and
/// its parts fit together.
#[derive(Clone, Debug)]
pub struct Bundle {
    directory: PathBuf,
    manifest: Manifest,
    estimator: Estimator,
    golden: Golden,
    sha256: String,
}

/// Why a bundle cannot be used: which file, what about it.
#[derive(Debug, Error)]
#[error("{file}: {kind}")]
pub struct BundleError {
    file: String,
    kind: BundleErrorKind,
}

/// What is the matter with a file of a bundle.
#[derive(Debug)]
#[non_exhaustive]
pub enum BundleErrorKind {
    /// It cannot be read or written.
    Io(io::Error),
    /// It has a newer schema than this version reads.
    Schema {
        /// The schema it states.
        got: u32,
    },
    /// Its bytes are not those that the manifest names.
    Checksum {
        /// SHA-256 in the manifest.
        expected: String,
        /// SHA-256 of the bytes.
        got: String,
    },
    /// Its contents do not fit.
    Invalid(String),
}

/// One file of a bundle held against its checksum.
#[derive(Debug)]
pub struct FileCheck {
    /// Name within the bundle.
    pub name: String,
    /// What is the matter with it, if anything.
    pub fault: Option<BundleError>,
}

/// Holds every file of the bundle in `directory` against the checksum that
/// its manifest states. Unlike [`Bundle::open`] it goes on after a fault and
/// asks nothing else of the files.
///
/// # Errors
/// [`BundleError`] when the manifest itself cannot be used.
pub fn check_files(directory: &Path) -> Result<Vec<FileCheck>, BundleError> {
    let directory = &serving(directory)?;
    let manifest = parse(&read(directory, MANIFEST)?)?;
    check_manifest(&manifest)?;
    let names = manifest.files.keys();
    Ok(names
        .map(|name| FileCheck {
            name: name.clone(),
            fault: read_checked(directory, &manifest, name).err(),
        })
        .collect())
}

impl Bundle {
    /// Opens the bundle in `directory`, or the one that serves in the store
    /// there, and checks all of it.
    ///
    /// # Errors
    /// [`BundleError`] names the file, and the field where there is one.
    pub fn open(directory: &Path) -> Result<Self, BundleError> {
        let directory = &serving(directory)?;
        let bytes = read(directory, MANIFEST)?;
        let manifest = parse(&bytes)?;
        check_manifest(&manifest)?;
        let bins = Bins::new(
            manifest.bins.bin.clone(),
            read_embeddings(directory, &manifest)?,
        )
        .map_err(|error| BundleError::file(MANIFEST, error.to_string()))?;
        let estimator = Estimator::new(
            bins,
            manifest.regressor.clone(),
            manifest.logit_scale,
            manifest.task.range,
            manifest.interval.clone(),
        )
        .map_err(|error| BundleError::file(MANIFEST, error.to_string()))?;
        let golden = Golden::from_bytes(
            &read_checked(directory, &manifest, GOLDEN)?,
            manifest.preprocess.size as usize,
            manifest.bins.dim,
        )
        .map_err(|message| BundleError::file(GOLDEN, message))?;
        for name in manifest.files.keys() {
            read_checked(directory, &manifest, name)?;
        }
        Ok(Self {
            directory: directory.into(),
            sha256: sha256(&bytes),
            manifest,
            estimator,
            golden,
        })
    }

    /// Where the bundle lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the manifest says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// From embedding to estimate, as the manifest describes it.
    pub fn estimator(&self) -> &Estimator {
        &self.estimator
    }

    /// The golden vectors.
    pub fn golden(&self) -> &Golden {
        &self.golden
    }

    /// SHA-256 of the manifest, which holds the digests of all other files:
    /// it identifies the bundle.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Bytes of one of the bundle's encoders, checked against the manifest.
    ///
    /// # Errors
    /// [`BundleError`] when the file has changed or gone since it was opened.
    pub fn read_encoder(&self, encoder: &EncoderFile) -> Result<Vec<u8>, BundleError> {
        read_checked(&self.directory, &self.manifest, &encoder.path)
    }
}

impl BundleError {
    /// The file that is at fault.
    pub fn name(&self) -> &str {
        &self.file
    }

    /// What is the matter with it.
    pub fn kind(&self) -> &BundleErrorKind {
        &self.kind
    }

    pub(super) fn io(path: &Path, error: io::Error) -> Self {
        Self {
            file: path.display().to_string(),
            kind: BundleErrorKind::Io(error),
        }
    }

    pub(crate) fn file(name: &str, message: String) -> Self {
        Self {
            file: name.into(),
            kind: BundleErrorKind::Invalid(message),
        }
    }
}

impl fmt::Display for BundleErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                write!(
                    f,
                    "no such file; a bundle is a folder with {MANIFEST}, an encoder, {BINS} and {GOLDEN}"
                )
            }
            Self::Io(error) => error.fmt(f),
            Self::Schema { got } => {
                write!(
                    f,
                    "schema {got} is newer than {SCHEMA}, the newest this version reads; update numclip"
                )
            }
            Self::Checksum { expected, got } => write!(
                f,
                "SHA-256 is {got}, the manifest says {expected}; the file was damaged or exchanged, copy the bundle again"
            ),
            Self::Invalid(message) => message.fmt(f),
        }
    }
}

/// Lower-case hexadecimal SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn parse(bytes: &[u8]) -> Result<Manifest, BundleError> {
    let invalid = |message: String| BundleError::file(MANIFEST, message);
    let text = std::str::from_utf8(bytes).map_err(|error| invalid(error.to_string()))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| invalid(error.to_string()))?;
    match table.get("schema").and_then(toml::Value::as_integer) {
        Some(schema) if schema > i64::from(SCHEMA) => {
            let got = u32::try_from(schema).unwrap_or(u32::MAX);
            Err(BundleError {
                file: MANIFEST.into(),
                kind: BundleErrorKind::Schema { got },
            })
        }
        Some(_) => toml::from_str(text).map_err(|error| invalid(error.to_string())),
        None => Err(invalid(
            "schema: expected a number; is this a numclip bundle?".into(),
        )),
    }
}

fn check_manifest(manifest: &Manifest) -> Result<(), BundleError> {
    let invalid = |message: String| Err(BundleError::file(MANIFEST, message));
    manifest
        .preprocess
        .check()
        .map_err(|error| BundleError::file(MANIFEST, error.to_string()))?;
    if manifest.encoder.is_empty() {
        return invalid("encoder: expected at least one [[encoder]]".into());
    }
    let name = &manifest.model.name;
    if name.is_empty()
        || !name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    {
        return invalid(format!(
            "model.name: expected letters, digits, '-', '_' and '.', got {name:?}"
        ));
    }
    for name in manifest.files.keys() {
        if !is_plain(name) {
            return invalid(format!("files: {name:?} is not a plain file name"));
        }
    }
    let needed = [BINS, GOLDEN]
        .into_iter()
        .chain(manifest.encoder.iter().map(|encoder| encoder.path.as_str()));
    for name in needed {
        if !manifest.files.contains_key(name) {
            return invalid(format!("files: {name} is used but has no SHA-256"));
        }
    }
    Ok(())
}

fn is_plain(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(
        (components.next(), components.next()),
        (Some(Component::Normal(_)), None)
    ) && !name.contains(['/', '\\'])
}

fn read_embeddings(directory: &Path, manifest: &Manifest) -> Result<Vec<f32>, BundleError> {
    let bytes = read_checked(directory, manifest, BINS)?;
    let invalid = |message: String| BundleError::file(BINS, message);
    let file = SafeTensors::deserialize(&bytes).map_err(|error| invalid(error.to_string()))?;
    floats(
        &file,
        "embeddings",
        &[manifest.bins.bin.len(), manifest.bins.dim],
    )
    .map_err(invalid)
}

fn read_checked(directory: &Path, manifest: &Manifest, name: &str) -> Result<Vec<u8>, BundleError> {
    let bytes = read(directory, name)?;
    let got = sha256(&bytes);
    match manifest.files.get(name) {
        Some(expected) if *expected == got => Ok(bytes),
        expected => {
            let expected = expected.cloned().unwrap_or_default();
            Err(BundleError {
                file: name.into(),
                kind: BundleErrorKind::Checksum { expected, got },
            })
        }
    }
}

fn read(directory: &Path, name: &str) -> Result<Vec<u8>, BundleError> {
    let path = directory.join(name);
    fs::read(&path).map_err(|error| BundleError::io(&path, error))
}
