//! The head of a package, and every rule about it.

use std::io::{self, Read};

use miniz_oxide::inflate::decompress_to_vec_with_limit;
use serde::{Deserialize, Serialize};

use super::PackageError;
use crate::bundle::{MANIFEST, is_digest, sha256};

/// Largest index in bytes.
pub const MAX_INDEX: usize = 64 << 10;
/// Most files in a package.
pub const MAX_FILES: usize = 64;
/// Largest file in bytes, packed or not.
pub const MAX_FILE: u64 = 1 << 30;

const MAGIC: &[u8; 7] = b"NUMCLIP";
const FORMAT: u8 = 1;
const PREAMBLE: usize = 12;

/// What a package holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// Name of the model.
    pub name: String,
    /// Semantic version of the model.
    pub version: String,
    /// Its files in ascending order of names.
    pub files: Vec<Entry>,
    /// Files of the bundle that do not travel: the device must have them, in
    /// ascending order of names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<Required>,
    /// How near the model must come to the one that serves, on the device's
    /// own pictures; anything goes without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowBudget>,
}

/// A file that a device must have already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Required {
    /// Plain name, as that of an [`Entry`].
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
}

/// What the comparison with the serving model may show at most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShadowBudget {
    /// Mean absolute difference of the two models' values, in the task's unit.
    pub difference: f32,
    /// Pictures that must be compared at least.
    pub frames: usize,
}

/// One file of a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Plain name: letters, digits, `-`, `_` and `.`, the first no dot.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
    /// Length of its DEFLATE stream in bytes.
    pub packed_size: u64,
    /// SHA-256 of its DEFLATE stream.
    pub packed_sha256: String,
}

/// An index that keeps every rule, with its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    index: Index,
    bytes: Vec<u8>,
}

impl Header {
    /// A header for `index`.
    ///
    /// # Errors
    /// [`PackageError::Index`] names the file and the rule that is broken.
    pub fn new(index: Index) -> Result<Self, PackageError> {
        check(&index)?;
        let json = spelled(&index)?;
        if json.len() > MAX_INDEX {
            return Err(oversized(json.len()));
        }
        let mut bytes = MAGIC.to_vec();
        bytes.push(FORMAT);
        bytes.extend((json.len() as u32).to_le_bytes());
        bytes.extend(json);
        Ok(Self { index, bytes })
    }

    /// Reads a header and nothing beyond it.
    ///
    /// # Errors
    /// [`PackageError`] for anything but a header that keeps every rule.
    pub fn read(reader: &mut impl Read) -> Result<Self, PackageError> {
        let mut bytes = vec![0; PREAMBLE];
        reader.read_exact(&mut bytes).map_err(cut)?;
        if &bytes[..7] != MAGIC {
            return Err(PackageError::Foreign);
        }
        if bytes[7] != FORMAT {
            return Err(PackageError::Format { got: bytes[7] });
        }
        let length = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
        if length > MAX_INDEX {
            return Err(oversized(length));
        }
        bytes.resize(PREAMBLE + length, 0);
        reader.read_exact(&mut bytes[PREAMBLE..]).map_err(cut)?;
        let index = parse(&bytes[PREAMBLE..])?;
        Ok(Self { index, bytes })
    }

    /// What it says.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The header as it stands at the start of a package.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of the header: through the digests in it, of everything.
    pub fn sha256(&self) -> String {
        sha256(&self.bytes)
    }

    /// Length of the whole package in bytes.
    pub fn package_len(&self) -> u64 {
        let packed: u64 = self.index.files.iter().map(|file| file.packed_size).sum();
        self.bytes.len() as u64 + packed
    }

    /// Where the blob of the file at `position` begins, in bytes.
    pub fn offset(&self, position: usize) -> u64 {
        let before = &self.index.files[..position];
        self.bytes.len() as u64 + before.iter().map(|file| file.packed_size).sum::<u64>()
    }
}

impl Index {
    /// SHA-256 of the bundle's manifest, which identifies the bundle.
    pub fn bundle_sha256(&self) -> &str {
        let manifest = self.files.iter().find(|file| file.name == MANIFEST);
        manifest.map_or("", |file| &file.sha256)
    }
}

impl Entry {
    /// The file that `packed` holds, both held against their digests. Never
    /// makes more bytes than the entry says.
    ///
    /// # Errors
    /// [`PackageError::Damaged`] when anything differs.
    pub fn unpacked(&self, packed: &[u8]) -> Result<Vec<u8>, PackageError> {
        let damaged = |message: String| PackageError::Damaged {
            name: self.name.clone(),
            message,
        };
        let got = sha256(packed);
        if got != self.packed_sha256 {
            let expected = &self.packed_sha256;
            return Err(damaged(format!(
                "packed SHA-256 is {got}, the index says {expected}"
            )));
        }
        let limit = usize::try_from(self.size).unwrap_or(usize::MAX);
        let bytes = decompress_to_vec_with_limit(packed, limit)
            .map_err(|error| damaged(format!("not {} bytes of DEFLATE: {error}", self.size)))?;
        match sha256(&bytes) {
            got if got == self.sha256 && bytes.len() as u64 == self.size => Ok(bytes),
            got => Err(damaged(format!(
                "SHA-256 is {got}, the index says {}",
                self.sha256
            ))),
        }
    }
}

fn parse(json: &[u8]) -> Result<Index, PackageError> {
    let index = serde_json::from_slice(json);
    let index: Index = index.map_err(|error| PackageError::Index(error.to_string()))?;
    check(&index)?;
    match spelled(&index)? == json {
        true => Ok(index),
        false => Err(PackageError::Index(
            "not spelled as `numclip pack` does".into(),
        )),
    }
}

fn spelled(index: &Index) -> Result<Vec<u8>, PackageError> {
    serde_json::to_vec(index).map_err(|error| PackageError::Index(error.to_string()))
}

fn check(index: &Index) -> Result<(), PackageError> {
    let invalid = |message: String| Err(PackageError::Index(message));
    if !is_plain(&index.name) {
        return invalid(format!("name: {:?} is not a plain name", index.name));
    }
    if let Err(error) = semver::Version::parse(&index.version) {
        let version = &index.version;
        return invalid(format!(
            "version: {version:?} is not a semantic version: {error}"
        ));
    }
    let count = index.files.len() + index.requires.len();
    if count > MAX_FILES {
        return invalid(format!("{count} files, accepted are {MAX_FILES}"));
    }
    if index.bundle_sha256().is_empty() {
        return invalid(format!("no {MANIFEST} among the files"));
    }
    for entry in &index.files {
        let size = entry.size.max(entry.packed_size);
        check_file(&entry.name, size, &[&entry.sha256, &entry.packed_sha256])?;
    }
    for file in &index.requires {
        check_file(&file.name, file.size, &[&file.sha256])?;
    }
    let carried: Vec<&str> = index.files.iter().map(|file| &*file.name).collect();
    let required: Vec<&str> = index.requires.iter().map(|file| &*file.name).collect();
    check_order(&carried)?;
    check_order(&required)?;
    if let Some(name) = required.iter().find(|name| collides(name, &carried)) {
        return invalid(format!("{name:?} is both carried and required"));
    }
    match index.shadow {
        Some(ShadowBudget { difference, frames })
            if !difference.is_finite() || difference < 0.0 || frames == 0 =>
        {
            invalid("shadow: expected a finite difference and at least one picture".into())
        }
        _ => Ok(()),
    }
}

fn check_file(name: &str, size: u64, digests: &[&str]) -> Result<(), PackageError> {
    let message = if !is_plain(name) {
        "is not a plain file name".into()
    } else if size > MAX_FILE {
        format!("is larger than {MAX_FILE} bytes")
    } else if !digests.iter().all(|digest| is_digest(digest)) {
        "has something else than a SHA-256 for a digest".into()
    } else {
        return Ok(());
    };
    Err(PackageError::Index(format!("{name:?} {message}")))
}

/// Cards ignore case, so names that differ in nothing else collide.
fn check_order(names: &[&str]) -> Result<(), PackageError> {
    for pair in names.windows(2) {
        if pair[0].to_ascii_lowercase() >= pair[1].to_ascii_lowercase() {
            let [first, second] = [pair[0], pair[1]];
            let message = format!("{second:?} after {first:?}: twice or out of order");
            return Err(PackageError::Index(message));
        }
    }
    Ok(())
}

fn collides(name: &str, others: &[&str]) -> bool {
    others.iter().any(|other| other.eq_ignore_ascii_case(name))
}

/// A name that is one file in one folder on every system, and no option.
fn is_plain(name: &str) -> bool {
    let letters = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=128).contains(&name.len()) && name.chars().all(letters) && !name.starts_with(['.', '-'])
}

fn oversized(length: usize) -> PackageError {
    PackageError::Index(format!("{length} bytes, accepted are {MAX_INDEX}"))
}

fn cut(error: io::Error) -> PackageError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => PackageError::Foreign,
        _ => PackageError::Io {
            path: "package".into(),
            error,
        },
    }
}
