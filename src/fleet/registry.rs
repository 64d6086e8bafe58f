//! Packages in OCI registries, as any container registry is one.
//!
//! A package becomes an artifact whose layers are its parts: the header, the
//! signature where there is one, then the compressed files. The digest of a
//! layer is the one that the header names for it, so whoever trusts the header
//! can judge every layer, a registry keeps a file that two models share once,
//! and a device fetches only the files that it lacks.
//!
//! Protocol: <https://github.com/opencontainers/distribution-spec>, 1.1.

mod artifact;
mod client;
mod login;
mod pull;
mod push;
mod reference;

use thiserror::Error;

use crate::package::PackageError;
use crate::signature::SignatureError;

pub use artifact::ARTIFACT_TYPE;
pub use client::{Access, Registry};
pub use login::Login;
pub use pull::{Offer, Pulled};
pub use reference::{Pick, Reference};

/// Why a registry is of no help.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// The name of an artifact is not one.
    #[error("{text:?}: {message}")]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        message: String,
    },
    /// How to get in cannot be read, or the connection would not be safe.
    #[error("{0}")]
    Setup(String),
    /// The registry cannot be reached, or the connection broke.
    #[error("{registry}: {message}")]
    Away {
        /// Host and port.
        registry: String,
        /// What happened.
        message: String,
    },
    /// The registry does not let us.
    #[error("{registry}: access denied{message}; log in with --user, or by `docker login`")]
    Denied {
        /// Host and port.
        registry: String,
        /// What it says about it.
        message: String,
    },
    /// There is nothing of this name.
    #[error("{what}: not in the registry")]
    Missing {
        /// Reference or digest.
        what: String,
    },
    /// It answers something else than the protocol allows.
    #[error("{what}: the registry answers {status}{message}")]
    Answer {
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// What it says about it.
        message: String,
    },
    /// What is there is no numclip package.
    #[error("{what}: not a numclip package: {message}")]
    Foreign {
        /// Reference or digest.
        what: String,
        /// How it shows.
        message: String,
    },
    /// What came is not what its digest names.
    #[error("{what}: SHA-256 is {got}; damaged on its way, or altered in the registry")]
    Altered {
        /// The digest that was asked for.
        what: String,
        /// The digest of what came.
        got: String,
    },
    /// The package itself is at fault.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The signature is refused.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

impl RegistryError {
    /// Whether another attempt may succeed with nothing changed.
    pub fn may_be_repeated(&self) -> bool {
        match self {
            Self::Away { .. } | Self::Altered { .. } => true,
            Self::Answer { status, .. } => *status >= 500 || *status == 429,
            _ => false,
        }
    }
}
