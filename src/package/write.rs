//! Making a package.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use miniz_oxide::deflate::compress_to_vec;
use tempfile::NamedTempFile;

use super::index::{Entry, Header, Index, Required, ShadowBudget};
use super::{Package, PackageError};
use crate::bundle::{Bundle, MANIFEST, ModelSection, sha256, sync_parent};

/// DEFLATE level: weights hardly shrink, so more effort gains nothing.
const LEVEL: u8 = 6;

/// The package of the bundle in `directory`: its manifest and the files that
/// the manifest lists, nothing that lies beside them.
///
/// # Errors
/// [`PackageError`] when the bundle cannot be used or breaks a limit.
pub fn pack(directory: &Path) -> Result<Vec<u8>, PackageError> {
    let bundle = Bundle::open(directory)?;
    let mut files = BTreeMap::new();
    for name in bundle.manifest().files.keys().map(String::as_str) {
        files.insert(name, read(&bundle, name)?);
    }
    files.insert(MANIFEST, read(&bundle, MANIFEST)?);
    assemble(&bundle.manifest().model, &files, Vec::new())
}

/// The same package, which devices take only if the model in it comes as near
/// to the one that serves as `shadow` says.
///
/// # Errors
/// [`PackageError`] when `package` is none, or the budget makes no sense.
pub fn limit(package: &[u8], shadow: ShadowBudget) -> Result<Vec<u8>, PackageError> {
    let mut blobs = package;
    let mut index = Header::read(&mut blobs)?.index().clone();
    index.shadow = Some(shadow);
    Ok([Header::new(index)?.bytes(), blobs].concat())
}

/// A package of these files by name.
pub(super) fn assemble(
    model: &ModelSection,
    files: &BTreeMap<&str, Vec<u8>>,
    mut requires: Vec<Required>,
) -> Result<Vec<u8>, PackageError> {
    let parts = files.iter().map(|(name, bytes)| packed(name, bytes));
    let mut parts: Vec<_> = parts.collect();
    parts.sort_by_key(|(entry, _)| entry.name.to_ascii_lowercase());
    requires.sort_by_key(|file| file.name.to_ascii_lowercase());
    let (files, blobs): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let header = Header::new(Index {
        name: model.name.clone(),
        version: model.version.clone(),
        files,
        requires,
        shadow: None,
    })?;
    Ok([header.bytes(), &blobs.concat()].concat())
}

/// A file of the bundle as it lies there.
pub(super) fn read(bundle: &Bundle, name: &str) -> Result<Vec<u8>, PackageError> {
    let path = bundle.directory().join(name);
    fs::read(&path).map_err(|error| PackageError::io(&path, error))
}

/// Writes the package `bytes` to `path`, whole or not at all, and opens it.
///
/// # Errors
/// [`PackageError`] when it cannot be written, or `bytes` are none.
pub fn write(path: &Path, bytes: &[u8]) -> Result<Package, PackageError> {
    let io = |error| PackageError::io(path, error);
    let mut file = stage(path).map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    settle(file, path)?;
    Package::open(path)
}

/// A nameless beginning of the file at `path`, to be [settled](settle).
pub(crate) fn stage(path: &Path) -> io::Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(fs::Permissions::from_mode(0o644));
    }
    builder.tempfile_in(folder)
}

/// Gives a staged file its name, once the medium has all of it.
pub(crate) fn settle(file: NamedTempFile, path: &Path) -> Result<(), PackageError> {
    let io = |error| PackageError::io(path, error);
    file.as_file().sync_all().map_err(io)?;
    file.persist(path).map_err(|error| io(error.error))?;
    sync_parent(path).map_err(io)
}

/// The entry of a file, and its blob.
pub(crate) fn packed(name: &str, bytes: &[u8]) -> (Entry, Vec<u8>) {
    let packed = compress_to_vec(bytes, LEVEL);
    let entry = Entry {
        name: name.into(),
        size: bytes.len() as u64,
        sha256: sha256(bytes),
        packed_size: packed.len() as u64,
        packed_sha256: sha256(&packed),
    };
    (entry, packed)
}
