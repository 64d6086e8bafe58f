//! Signatures in the format of minisign: ed25519 over BLAKE2b-512.
//!
//! A signature file has two lines of its own: the *signature* proves a file,
//! the *global signature* proves the first one together with the trusted
//! comment. What this project signs says in the trusted comment which package
//! it is ([`Statement`]), so a device can trust a package's header before the
//! rest has travelled; and when it was signed and until when that holds
//! ([`Term`]). Format: <https://jedisct1.github.io/minisign/>.

mod key;
mod secret;
mod term;
mod trust;
mod seal;

use std::fmt;
use std::io;

use base64ct::{Base64, Encoding as _};
use jiff::Timestamp;
use thiserror::Error;

pub use key::{KeyId, PublicKey, Signature};
pub use seal::{Statement, check_header, check_package, sign_package};
pub use secret::{SecretKey, Strength};
pub use term::{TOLERANCE, Term, time};
pub use trust::{REVOKED, Trust};

use crate::package::PackageError;

/// Why a signature is refused, or none could be made.
#[derive(Debug, Error)]
pub enum SignatureError {
    /// A file cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// What failed.
        error: io::Error,
    },
    /// Some text is not what it should be.
    #[error("{kind}: {message}")]
    Malformed {
        /// Which text.
        kind: Kind,
        /// What is wrong with it.
        message: String,
    },
    /// A file among the trusted keys is none.
    #[error("{path}: {error}")]
    Key {
        /// The file.
        path: String,
        /// What is wrong with it.
        error: Box<SignatureError>,
    },
    /// There is nothing to trust.
    #[error("{path}: no trusted keys; put public keys (NAME.pub) there")]
    NoKeys {
        /// The folder.
        path: String,
    },
    /// A key that nobody here trusts.
    #[error(
        "signed by key {id}, which is not trusted here; add its .pub file to the trusted keys if it should be"
    )]
    Foreign {
        /// The key that signed.
        id: KeyId,
    },
    /// A key that is no longer trusted.
    #[error("signed by key {id}, which is revoked; sign the package with another key")]
    Revoked {
        /// The key that signed.
        id: KeyId,
    },
    /// A key that is too old.
    #[error(
        "key {id} expired on {expired:.0}, the clock here says {now:.0}; sign the package with a newer key, or set the clock if it is wrong"
    )]
    KeyExpired {
        /// The key that signed.
        id: KeyId,
        /// Its end.
        expired: Timestamp,
        /// The clock.
        now: Timestamp,
    },
    /// A key was used after its end.
    #[error(
        "signed on {signed:.0} by key {id}, which had expired on {expired:.0}; sign the package with a newer key"
    )]
    SignedLate {
        /// The key that signed.
        id: KeyId,
        /// When it did.
        signed: Timestamp,
        /// Its end.
        expired: Timestamp,
    },
    /// A signature that is too old.
    #[error(
        "the package's signature expired on {expired:.0}, the clock here says {now:.0}; sign the package again, or set the clock if it is wrong"
    )]
    Expired {
        /// Its end.
        expired: Timestamp,
        /// The clock.
        now: Timestamp,
    },
    /// The package comes from the future.
    #[error(
        "the clock here says {now:.0}, but the package was signed on {signed:.0}; set the clock (`timedatectl set-ntp true`, or `date -s`); for a device that has none, `flash` and `agent` take --allow-any-clock"
    )]
    Clock {
        /// The clock.
        now: Timestamp,
        /// When it was signed.
        signed: Timestamp,
    },
    /// The numbers do not add up.
    #[error("the signature by key {id} does not fit; the package or its signature was altered")]
    Wrong {
        /// The key that is said to have signed.
        id: KeyId,
    },
    /// A good signature of another package.
    #[error("the signature is of {signed}, not of this package ({got})")]
    OtherPackage {
        /// What was signed.
        signed: String,
        /// What was to be checked.
        got: String,
    },
    /// The passphrase opens nothing.
    #[error("wrong passphrase")]
    Passphrase,
    /// The key needs a passphrase and none was given.
    #[error("the secret key is encrypted; give its passphrase")]
    NoPassphrase,
    /// The machine cannot do what it takes.
    #[error("{0}")]
    Machine(String),
    /// The package itself is at fault.
    #[error(transparent)]
    Package(#[from] PackageError),
}

/// The texts of minisign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A public key.
    PublicKey,
    /// A secret key.
    SecretKey,
    /// A signature.
    Signature,
    /// The list of revoked keys.
    Revoked,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PublicKey => "public key",
            Self::SecretKey => "secret key",
            Self::Signature => "signature",
            Self::Revoked => "list of revoked keys",
        })
    }
}

impl Kind {
    fn malformed(self, message: impl Into<String>) -> SignatureError {
        SignatureError::Malformed {
            kind: self,
            message: message.into(),
        }
    }

    /// The `N` bytes that a line of base64 stands for.
    fn decode<const N: usize>(self, line: Option<&str>) -> Result<[u8; N], SignatureError> {
        let line = line.ok_or_else(|| self.malformed("a line is missing"))?;
        let mut bytes = [0; N];
        match Base64::decode(line, &mut bytes).map(<[u8]>::len) {
            Ok(length) if length == N => Ok(bytes),
            Ok(length) => Err(self.malformed(format!("expected {N} bytes, got {length}"))),
            Err(_) => Err(self.malformed(format!("expected base64 of {N} bytes"))),
        }
    }
}
