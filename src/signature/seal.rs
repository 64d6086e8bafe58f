//! The signature of a package.

use std::fmt;
use std::fs;
use std::str::FromStr;

use super::{Kind, PublicKey, SecretKey, Signature, SignatureError, Term, Trust};
use crate::package::{Header, Package, PackageError};

/// What the trusted comment of a package's signature says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Name of the model.
    pub name: String,
    /// Version of the model.
    pub version: String,
    /// SHA-256 of the package's header.
    pub header: String,
    /// When it was signed; not in signatures that minisign made by hand.
    pub term: Option<Term>,
}

impl Statement {
    /// The statement about the package with this header.
    pub fn of(header: &Header, term: Option<Term>) -> Self {
        Self {
            name: header.index().name.clone(),
            version: header.index().version.clone(),
            header: header.sha256(),
            term,
        }
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, version, header) = (&self.name, &self.version, &self.header);
        write!(f, "numclip package {name} {version} header sha256:{header}")?;
        match self.term {
            Some(term) => write!(f, " {term}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Statement {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let words: Vec<&str> = text.split(' ').collect();
        let foreign = || {
            Kind::Signature.malformed(format!("not of a package; its trusted comment is {text:?}"))
        };
        let [
            "numclip",
            "package",
            name,
            version,
            "header",
            header,
            ref term @ ..,
        ] = words[..]
        else {
            return Err(foreign());
        };
        Ok(Self {
            name: name.into(),
            version: version.into(),
            header: header.strip_prefix("sha256:").unwrap_or_default().into(),
            term: match term {
                [] => None,
                words => Some(Term::parse(words).ok_or_else(foreign)?),
            },
        })
    }
}

/// Signs a package, after its files were held against their digests.
///
/// # Errors
/// [`SignatureError::Package`] when the package is damaged.
pub fn sign_package(
    package: &Package,
    key: &SecretKey,
    term: Term,
) -> Result<Signature, SignatureError> {
    check_files(package)?;
    let statement = Statement::of(package.header(), Some(term)).to_string();
    key.sign(&read(package)?, &statement)
}

/// Holds a package's header against its signature: enough to trust every
/// file that has the digest which the header names.
///
/// # Errors
/// [`SignatureError`] says why it is refused.
pub fn check_header<'a>(
    header: &Header,
    signature: &Signature,
    trust: &'a Trust,
) -> Result<&'a PublicKey, SignatureError> {
    let key = trust.key(signature.id())?;
    key.verify_comment(signature)?;
    let signed: Statement = signature.trusted_comment().parse()?;
    let got = Statement::of(header, signed.term);
    if signed != got {
        return Err(SignatureError::OtherPackage {
            signed: format!("{} {} ({})", signed.name, signed.version, signed.header),
            got: format!("{} {} ({})", got.name, got.version, got.header),
        });
    }
    trust.check_term(key, signed.term)?;
    Ok(key)
}

/// Holds all of a package against its signature.
///
/// # Errors
/// [`SignatureError`] says why it is refused.
pub fn check_package<'a>(
    package: &Package,
    signature: &Signature,
    trust: &'a Trust,
) -> Result<&'a PublicKey, SignatureError> {
    let key = check_header(package.header(), signature, trust)?;
    check_files(package)?;
    key.verify(&read(package)?, signature)?;
    Ok(key)
}

fn check_files(package: &Package) -> Result<(), PackageError> {
    package.files().try_for_each(|(_, bytes)| bytes.map(drop))
}

fn read(package: &Package) -> Result<Vec<u8>, SignatureError> {
    fs::read(package.path()).map_err(|error| SignatureError::Io {
        path: package.path().display().to_string(),
        error,
    })
}
