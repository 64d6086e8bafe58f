//! Writing a bundle so that it is whole or absent.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use safetensors::serialize;
use safetensors::tensor::{Dtype, TensorView};

use super::golden::{Golden, bytes_of};
use super::manifest::Manifest;
use super::open::{BundleError, sha256};
use super::{BINS, GOLDEN, MANIFEST};

/// What goes into a bundle beside the manifest.
pub struct Contents {
    /// Encoder files by name; the manifest lists each of them.
    pub encoders: BTreeMap<String, Vec<u8>>,
    /// Bin embeddings: `[bins, dim]`, row-major, rows of unit norm.
    pub embeddings: Vec<f32>,
    /// Golden vectors.
    pub golden: Golden,
}

/// Writes a bundle to `directory`, which must not exist or be an older
/// bundle; that one is replaced in the last step, and what lay beside its own
/// files stays. Fills in
/// [`Manifest::files`]. `check` sees the whole bundle under a temporary name and
/// may refuse it.
///
/// # Errors
/// [`BundleError`] when `directory` holds something else, or a file cannot be
/// written; what `check` returns. Nothing is left under the final name then
/// that was not there before.
pub fn write<E: From<BundleError>>(
    directory: &Path,
    manifest: Manifest,
    contents: &Contents,
    check: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    refuse_foreign(directory)?;
    let staged = stage(directory).map_err(|error| BundleError::io(directory, error))?;
    for (name, bytes) in &files(manifest, contents)? {
        let path = staged.path().join(name);
        write_synced(&path, bytes).map_err(|error| BundleError::io(&path, error))?;
    }
    check(staged.path())?;
    Ok(replace(staged, directory).map_err(|error| BundleError::io(directory, error))?)
}

/// Every file of the bundle by name, the manifest among them.
fn files(
    mut manifest: Manifest,
    contents: &Contents,
) -> Result<BTreeMap<String, Vec<u8>>, BundleError> {
    let mut files = contents.encoders.clone();
    files.insert(BINS.into(), bins_file(&manifest, &contents.embeddings)?);
    let golden = contents.golden.to_bytes();
    let golden = golden.map_err(|error| BundleError::file(GOLDEN, error.to_string()))?;
    files.insert(GOLDEN.into(), golden);
    manifest.files = files
        .iter()
        .map(|(name, bytes)| (name.clone(), sha256(bytes)))
        .collect();
    let text = toml::to_string(&manifest);
    let text = text.map_err(|error| BundleError::file(MANIFEST, error.to_string()))?;
    files.insert(MANIFEST.into(), text.into_bytes());
    Ok(files)
}

fn refuse_foreign(directory: &Path) -> Result<(), BundleError> {
    let occupied = directory.exists() && !directory.join(MANIFEST).is_file();
    if occupied && fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
        let message = "the folder is not empty and holds no bundle; name a new folder";
        return Err(BundleError::file(
            &directory.display().to_string(),
            message.into(),
        ));
    }
    Ok(())
}

/// A new folder beside `directory`, gone again when dropped.
pub(crate) fn stage(directory: &Path) -> io::Result<tempfile::TempDir> {
    let parent = match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent)?;
    tempfile::Builder::new()
        .prefix(".bundle-")
        .tempdir_in(parent)
}

fn bins_file(manifest: &Manifest, embeddings: &[f32]) -> Result<Vec<u8>, BundleError> {
    bins_file_of(manifest, Dtype::F32, &bytes_of(embeddings))
}

/// The file of bin embeddings in half precision.
#[cfg(feature = "flash")]
pub(crate) fn half_bins_file(
    manifest: &Manifest,
    embeddings: &[half::f16],
) -> Result<Vec<u8>, BundleError> {
    let bytes: Vec<u8> = embeddings
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    bins_file_of(manifest, Dtype::F16, &bytes)
}

fn bins_file_of(manifest: &Manifest, dtype: Dtype, bytes: &[u8]) -> Result<Vec<u8>, BundleError> {
    let shape = vec![manifest.bins.bin.len(), manifest.bins.dim];
    TensorView::new(dtype, shape, bytes)
        .and_then(|view| serialize([("embeddings", view)], None::<HashMap<String, String>>))
        .map_err(|error| BundleError::file(BINS, error.to_string()))
}

/// Writes a file and waits until the medium has it.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Moves the staged folder into place. An older bundle is dropped afterwards.
fn replace(staged: tempfile::TempDir, directory: &Path) -> io::Result<()> {
    File::open(staged.path())?.sync_all()?;
    make_readable(staged.path())?;
    let old = match directory.exists() {
        true => Some(exchange(staged, directory)?),
        false => {
            fs::rename(staged.path(), directory)?;
            // The folder has its final name now; there is nothing left to clean up.
            let _ = staged.keep();
            None
        }
    };
    sync_parent(directory)?;
    if let Some(old) = old {
        carry_over(&old, directory)?;
        fs::remove_dir_all(&old)?;
    }
    Ok(())
}

/// Puts the staged folder in place of `directory`, in one step where the system
/// has one for that. Gives where the older one is now.
fn exchange(staged: tempfile::TempDir, directory: &Path) -> io::Result<PathBuf> {
    #[cfg(all(target_os = "linux", any(feature = "flash", feature = "live")))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let both = RenameFlags::EXCHANGE;
        if renameat_with(CWD, staged.path(), CWD, directory, both).is_ok() {
            return Ok(staged.keep());
        }
    }
    let old = staged.path().with_extension("old");
    fs::rename(directory, &old)?;
    if let Err(error) = fs::rename(staged.path(), directory) {
        fs::rename(&old, directory)?;
        return Err(error);
    }
    let _ = staged.keep();
    Ok(old)
}

/// Waits until the medium knows the name of what lies at `path`.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// Moves what was beside the old bundle's own files (samples, notes) to the
/// new one.
fn carry_over(old: &Path, new: &Path) -> io::Result<()> {
    let manifest = fs::read_to_string(old.join(MANIFEST))?;
    let table: toml::Table = manifest.parse().unwrap_or_default();
    let listed = |name: &str| {
        name == MANIFEST
            || table
                .get("files")
                .and_then(|files| files.get(name))
                .is_some()
    };
    for entry in fs::read_dir(old)? {
        let name = entry?.file_name();
        let target = new.join(&name);
        if !name.to_str().is_some_and(listed) && !target.exists() {
            fs::rename(old.join(&name), target)?;
        }
    }
    Ok(())
}

/// A temporary folder is private; a bundle is for every reader.
#[cfg(unix)]
pub(crate) fn make_readable(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
pub(crate) fn make_readable(_: &Path) -> io::Result<()> {
    Ok(())
}
