//! A bundle as one file, to be carried to devices.
//!
//! ```text
//! 8 bytes   "NUMCLIP" and the format, 1
//! 4 bytes   length of the index, little-endian
//! index     JSON: model name, version, then every file in order of names
//! blobs     one raw DEFLATE stream for each file, in that order
//! ```
//!
//! Nothing lies between the parts and nothing follows. The index names the
//! length and SHA-256 of every file, packed and unpacked, so whoever trusts
//! the *header* (all that precedes the blobs) can judge every byte of the rest,
//! one file at a time. The same bundle gives the same bytes: no times, owners
//! or modes are kept, and an index has one spelling.
//!
//! A [`cartridge`] leaves out the encoder and names it in its index instead:
//! it is for devices that have it.

mod index;
mod read;
mod write;
mod cartridge;

use std::io;
use std::path::Path;

use thiserror::Error;

use crate::bundle::BundleError;

pub use cartridge::{Cartridge, cartridge};
pub use index::{Entry, Header, Index, MAX_FILE, MAX_FILES, MAX_INDEX, Required, ShadowBudget};
pub use read::{Package, unpack};
pub(crate) use write::packed;
pub use write::{limit, pack, write};
#[cfg(feature = "fleet")]
pub(crate) use write::{settle, stage};

/// Why a package cannot be used.
#[derive(Debug, Error)]
pub enum PackageError {
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// What failed.
        error: io::Error,
    },
    /// A package is at fault.
    #[error("{path}: {error}")]
    At {
        /// The package.
        path: String,
        /// What is wrong with it.
        error: Box<Self>,
    },
    /// The bundle inside, or to be packed, is at fault.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// It does not begin as packages do.
    #[error("not a numclip package; `numclip pack` makes one from a bundle")]
    Foreign,
    /// A format that a later version writes.
    #[error("package format {got} is newer than 1, the newest this version reads; update numclip")]
    Format {
        /// The format it states.
        got: u8,
    },
    /// The index breaks a rule.
    #[error("index: {0}")]
    Index(String),
    /// It is longer or shorter than its index says.
    #[error(
        "{got} bytes, its index says {expected}; the file was cut or lengthened, copy it again"
    )]
    Length {
        /// Bytes by the index.
        expected: u64,
        /// Bytes of the file.
        got: u64,
    },
    /// A file inside is not the one that the index names.
    #[error("{name}: {message}; the package was damaged or altered, copy it again")]
    Damaged {
        /// The file.
        name: String,
        /// How it shows.
        message: String,
    },
    /// No cartridge can be made of a bundle.
    #[error("no cartridge: {0}")]
    Cartridge(String),
    /// Only a device that has a file can make a bundle of it.
    #[error(
        "a cartridge: it needs {name} (sha256 {sha256}), which it does not carry; flash it to a device that has it"
    )]
    Incomplete {
        /// The file.
        name: String,
        /// Its SHA-256.
        sha256: String,
    },
}

impl PackageError {
    pub(crate) fn io(path: &Path, error: io::Error) -> Self {
        Self::Io {
            path: path.display().to_string(),
            error,
        }
    }
}
