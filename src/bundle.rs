//! The model bundle: the contract between trainer, runtime and devices.
//!
//! A directory with a manifest (`bundle.toml`), an encoder, bin embeddings and
//! golden vectors. Every file but the manifest stands in it with its SHA-256.
//! A bundle is written beside its final place and renamed into it, so a
//! directory with a manifest is whole.

mod golden;
mod manifest;
mod slots;
mod open;
mod write;

pub(crate) use golden::pooled;
pub use golden::{Golden, GoldenCase};
pub use manifest::{
    BinsSection, EncoderFile, EncoderFormat, Manifest, ModelSection, Precision, Provenance, Report,
    SCHEMA, TaskSection,
};
#[cfg(feature = "flash")]
pub(crate) use open::sha256;
pub use open::{Bundle, BundleError, BundleErrorKind, FileCheck, check_files};
pub use slots::{STATE, State};
#[cfg(feature = "flash")]
pub(crate) use slots::{is_digest, slot};
pub use write::{Contents, write};
#[cfg(feature = "flash")]
pub(crate) use write::{half_bins_file, make_readable, stage, sync_parent, write_synced};

/// Name of the manifest.
pub const MANIFEST: &str = "bundle.toml";
/// Name of the file that holds the bin embeddings.
pub const BINS: &str = "bins.safetensors";
/// Name of the file that holds the golden vectors.
pub const GOLDEN: &str = "golden.safetensors";
