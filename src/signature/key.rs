//! Public keys and signatures.

use std::fmt;
use std::str::FromStr;

use base64ct::{Base64, Encoding as _};
use blake2::{Blake2b512, Digest as _};
use ed25519_dalek::VerifyingKey;
use jiff::Timestamp;

use super::term::time;
use super::{Kind, SignatureError};

/// Longest text that is taken for a key or a signature, in bytes.
pub(super) const MAX_TEXT: usize = 4096;
const UNTRUSTED: &str = "untrusted comment: ";
const TRUSTED: &str = "trusted comment: ";
/// What stands before the end of a key in its comment.
const EXPIRES: &str = " expires ";
const KEY_ALGORITHM: [u8; 2] = *b"Ed";
const HASHED: [u8; 2] = *b"ED";

/// Which key: eight bytes drawn with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub(super) [u8; 8]);

/// A key to verify with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    id: KeyId,
    key: VerifyingKey,
    expires: Option<Timestamp>,
}

/// A signature with its trusted comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    pub(super) id: KeyId,
    pub(super) signature: [u8; 64],
    pub(super) comment: String,
    pub(super) global: [u8; 64],
}

impl PublicKey {
    pub(super) fn new(id: KeyId, key: VerifyingKey) -> Self {
        Self {
            id,
            key,
            expires: None,
        }
    }

    /// The same key, trusted no longer than until `expires`.
    pub fn until(self, expires: Option<Timestamp>) -> Self {
        Self { expires, ..self }
    }

    /// Which key it is.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Until when it is trusted, if that ends.
    pub fn expires(&self) -> Option<Timestamp> {
        self.expires
    }

    /// Holds the trusted comment of `signature` against its global signature.
    ///
    /// # Errors
    /// [`SignatureError::Wrong`], also for another key's signature.
    pub fn verify_comment(&self, signature: &Signature) -> Result<(), SignatureError> {
        self.verify_bytes(signature, &signature.statement(), &signature.global)
    }

    /// Holds `bytes` against `signature`, and its trusted comment too.
    ///
    /// # Errors
    /// [`SignatureError::Wrong`], also for another key's signature.
    pub fn verify(&self, bytes: &[u8], signature: &Signature) -> Result<(), SignatureError> {
        self.verify_comment(signature)?;
        self.verify_bytes(signature, &prehashed(bytes), &signature.signature)
    }

    fn verify_bytes(
        &self,
        signature: &Signature,
        message: &[u8],
        numbers: &[u8; 64],
    ) -> Result<(), SignatureError> {
        let id = signature.id;
        let numbers = ed25519_dalek::Signature::from_bytes(numbers);
        match self.key.verify_strict(message, &numbers) {
            Ok(()) if id == self.id => Ok(()),
            _ => Err(SignatureError::Wrong { id }),
        }
    }
}

impl FromStr for PublicKey {
    type Err = SignatureError;

    /// Reads a public key file: a comment, then the key; or the key alone. A
    /// comment that ends in `expires TIME` limits the key: nobody signs it, but
    /// nobody signs the key either, and both are trusted for where they lie.
    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let kind = Kind::PublicKey;
        let mut lines = lines(kind, text)?;
        let mut line = lines.next();
        let mut expires = None;
        if let Some(comment) = line.filter(|line| line.starts_with(UNTRUSTED)) {
            expires = expiry(comment)?;
            line = lines.next();
        }
        let bytes: [u8; 42] = kind.decode(line)?;
        if bytes[..2] != KEY_ALGORITHM {
            return Err(kind.malformed("not an ed25519 key"));
        }
        let key =
            VerifyingKey::from_bytes(&tail(&bytes)).map_err(|_| kind.malformed("not a point"))?;
        if key.is_weak() {
            return Err(kind.malformed("a weak key, which anybody can sign for"));
        }
        Ok(Self::new(id_at(&bytes), key).until(expires))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&KEY_ALGORITHM[..], &self.id.0, self.key.as_bytes()].concat();
        let line = Base64::encode_string(&bytes);
        write!(f, "{UNTRUSTED}minisign public key {}", self.id)?;
        if let Some(expires) = self.expires {
            write!(f, "{EXPIRES}{expires:.0}")?;
        }
        write!(f, "\n{line}\n")
    }
}

impl Signature {
    /// Which key made it.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// What the signer says about the file; to be trusted once verified.
    pub fn trusted_comment(&self) -> &str {
        &self.comment
    }

    /// What the global signature signs.
    pub(super) fn statement(&self) -> Vec<u8> {
        [&self.signature[..], self.comment.as_bytes()].concat()
    }
}

impl FromStr for Signature {
    type Err = SignatureError;

    /// Reads a signature file: four lines.
    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let kind = Kind::Signature;
        let mut lines = lines(kind, text)?;
        if !lines.next().is_some_and(|line| line.starts_with(UNTRUSTED)) {
            return Err(kind.malformed(format!("expected {UNTRUSTED:?} in line 1")));
        }
        let bytes: [u8; 74] = kind.decode(lines.next())?;
        if bytes[..2] != HASHED {
            return Err(kind.malformed("an old signature of the whole file; sign it again with `numclip sign` or `minisign -S`"));
        }
        let comment = lines.next().and_then(|line| line.strip_prefix(TRUSTED));
        let comment =
            comment.ok_or_else(|| kind.malformed(format!("expected {TRUSTED:?} in line 3")))?;
        Ok(Self {
            id: id_at(&bytes),
            signature: tail(&bytes),
            comment: comment.into(),
            global: kind.decode(lines.next())?,
        })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = Base64::encode_string(&[&HASHED[..], &self.id.0, &self.signature].concat());
        let global = Base64::encode_string(&self.global);
        let comment = &self.comment;
        write!(
            f,
            "{UNTRUSTED}signature by key {}\n{line}\n{TRUSTED}{comment}\n{global}\n",
            self.id
        )
    }
}

impl fmt::Display for KeyId {
    /// As minisign prints it: a little-endian number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

impl FromStr for KeyId {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match u64::from_str_radix(text, 16) {
            Ok(number) if digits => Ok(Self(number.to_le_bytes())),
            _ => Err(Kind::Revoked.malformed(format!(
                "expected the 16 hexadecimal digits of a key, got {text:?}"
            ))),
        }
    }
}

/// BLAKE2b-512, which is what a signature signs of a file.
pub(super) fn prehashed(bytes: &[u8]) -> [u8; 64] {
    Blake2b512::digest(bytes).into()
}

/// The lines of a short text.
pub(super) fn lines(kind: Kind, text: &str) -> Result<std::str::Lines<'_>, SignatureError> {
    match text.len() <= MAX_TEXT {
        true => Ok(text.lines()),
        false => Err(kind.malformed(format!("longer than {MAX_TEXT} bytes"))),
    }
}

/// The end of a key, by its comment.
fn expiry(comment: &str) -> Result<Option<Timestamp>, SignatureError> {
    let Some((_, text)) = comment.split_once(EXPIRES) else {
        return Ok(None);
    };
    let message = format!("expected a time such as 2027-01-31T12:00:00Z, got {text:?}");
    let expires = time(text).ok_or_else(|| Kind::PublicKey.malformed(message))?;
    Ok(Some(expires))
}

/// The key's number, which follows two bytes for the algorithm.
fn id_at(bytes: &[u8]) -> KeyId {
    let mut id = [0; 8];
    id.copy_from_slice(&bytes[2..10]);
    KeyId(id)
}

/// What follows the key's number.
fn tail<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut tail = [0; N];
    tail.copy_from_slice(&bytes[10..10 + N]);
    tail
}
