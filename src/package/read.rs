//! Reading a package.

use std::fs::{self, File};
use std::io::{Read, Seek as _, SeekFrom, Take};
use std::path::{Path, PathBuf};

use super::index::Header;
use super::{Entry, PackageError};
use crate::bundle::{self, Bundle, BundleError};

/// A package on disk whose header keeps every rule and whose length fits.
#[derive(Debug)]
pub struct Package {
    path: PathBuf,
    header: Header,
}

impl Package {
    /// Opens the package at `path`. Its files are checked as they are read.
    ///
    /// # Errors
    /// [`PackageError`] says what is wrong with it.
    pub fn open(path: &Path) -> Result<Self, PackageError> {
        Self::checked(path).map_err(|error| match error {
            PackageError::Io { .. } => error,
            error => PackageError::At {
                path: path.display().to_string(),
                error: Box::new(error),
            },
        })
    }

    fn checked(path: &Path) -> Result<Self, PackageError> {
        let mut file = File::open(path).map_err(|error| PackageError::io(path, error))?;
        let header = Header::read(&mut file)?;
        let metadata = file.metadata();
        let got = metadata
            .map_err(|error| PackageError::io(path, error))?
            .len();
        let expected = header.package_len();
        match got == expected {
            true => Ok(Self {
                path: path.into(),
                header,
            }),
            false => Err(PackageError::Length { expected, got }),
        }
    }

    /// Its header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The blob of the file at `position` from byte `from` on, unchecked.
    ///
    /// # Errors
    /// [`PackageError::Io`].
    pub fn blob(&self, position: usize, from: u64) -> Result<Take<File>, PackageError> {
        let io = |error| PackageError::io(&self.path, error);
        let length = self.header.index().files[position].packed_size;
        let mut file = File::open(&self.path).map_err(io)?;
        let start = self.header.offset(position) + from;
        file.seek(SeekFrom::Start(start)).map_err(io)?;
        Ok(file.take(length.saturating_sub(from)))
    }

    /// Reads on in a blob: how many bytes were read, 0 at its end.
    ///
    /// # Errors
    /// [`PackageError::Io`].
    pub fn read_some(
        &self,
        blob: &mut impl Read,
        buffer: &mut [u8],
    ) -> Result<usize, PackageError> {
        let read = blob.read(buffer);
        read.map_err(|error| PackageError::io(&self.path, error))
    }

    /// The file at `position`, unpacked and checked.
    ///
    /// # Errors
    /// [`PackageError`] when it is damaged or cannot be read.
    pub fn read(&self, position: usize) -> Result<Vec<u8>, PackageError> {
        let mut packed = Vec::new();
        self.blob(position, 0)?
            .read_to_end(&mut packed)
            .map_err(|error| PackageError::io(&self.path, error))?;
        self.header.index().files[position].unpacked(&packed)
    }

    /// Every file of the package, unpacked and checked one after the other.
    pub fn files(&self) -> impl Iterator<Item = (&Entry, Result<Vec<u8>, PackageError>)> {
        let entries = self.header.index().files.iter().enumerate();
        entries.map(|(position, entry)| (entry, self.read(position)))
    }
}

/// Unpacks `package` into the new folder `directory`, whole or not at all,
/// and opens the bundle in it.
///
/// # Errors
/// [`PackageError`] when the package or the bundle in it is at fault, the
/// folder exists, or it cannot be written.
pub fn unpack(package: &Package, directory: &Path) -> Result<Bundle, PackageError> {
    if let Some(file) = package.header.index().requires.first() {
        return Err(PackageError::Incomplete {
            name: file.name.clone(),
            sha256: file.sha256.clone(),
        });
    }
    let io = |error| PackageError::io(directory, error);
    let staged = bundle::stage(directory).map_err(io)?;
    for (entry, bytes) in package.files() {
        let path = staged.path().join(&entry.name);
        bundle::write_synced(&path, &bytes?).map_err(|error| PackageError::io(&path, error))?;
    }
    let bundle = Bundle::open(staged.path())?;
    header_fits(package.header(), &bundle)?;
    bundle::make_readable(staged.path()).map_err(io)?;
    if directory.exists() {
        let message = "the folder exists; name a new one";
        return Err(BundleError::file(&directory.display().to_string(), message.into()).into());
    }
    fs::rename(staged.path(), directory).map_err(io)?;
    // The folder has its final name now; there is nothing left to clean up.
    let _ = staged.keep();
    Ok(Bundle::open(directory)?)
}

/// Name and version stand in the manifest and in the index.
fn header_fits(header: &Header, bundle: &Bundle) -> Result<(), PackageError> {
    let (index, model) = (header.index(), &bundle.manifest().model);
    match (&index.name, &index.version) == (&model.name, &model.version) {
        true => Ok(()),
        false => Err(PackageError::Index(format!(
            "{} {}, but the manifest says {} {}",
            index.name, index.version, model.name, model.version
        ))),
    }
}
