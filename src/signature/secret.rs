//! Secret keys, encrypted with a passphrase.

use base64ct::{Base64, Encoding as _};
use blake2::digest::consts::U32;
use blake2::{Blake2b, Digest as _};
use ed25519_dalek::{Signer as _, SigningKey};
use zeroize::Zeroizing;

use super::key::{KeyId, PublicKey, Signature, lines, prehashed};
use super::{Kind, SignatureError};

const ED25519: [u8; 2] = *b"Ed";
const SCRYPT: [u8; 2] = *b"Sc";
const PLAIN: [u8; 2] = [0, 0];
const BLAKE2B: [u8; 2] = *b"B2";
/// Key number, secret and public key, checksum.
const BODY: usize = 8 + 64 + 32;
const LENGTH: usize = 2 + 2 + 2 + 32 + 8 + 8 + BODY;
/// scrypt's block size, which libsodium fixes.
const BLOCK: u32 = 8;
/// Most memory that reading a key may take, in bytes.
const MAX_MEMORY: u64 = 4 << 30;

/// A key to sign with. Its memory is wiped when it is dropped.
pub struct SecretKey {
    id: KeyId,
    key: SigningKey,
}

/// How much work a guess at a passphrase takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strength {
    operations: u64,
    memory: u64,
}

impl Strength {
    /// What minisign takes: 1 GiB of memory, some seconds.
    pub const SENSITIVE: Self = Self {
        operations: 1 << 25,
        memory: 1 << 30,
    };
    /// For machines with little memory, and tests: 16 MiB.
    pub const INTERACTIVE: Self = Self {
        operations: 1 << 19,
        memory: 1 << 24,
    };

    /// scrypt's parameters, as libsodium derives them from the two limits.
    fn params(self) -> Result<scrypt::Params, SignatureError> {
        let kind = Kind::SecretKey;
        let operations = self.operations.max(1 << 15);
        if self.memory > MAX_MEMORY || operations > 1 << 40 {
            return Err(kind.malformed("asks for too much memory or work"));
        }
        let by_operations = operations < self.memory / 32;
        let most = match by_operations {
            true => operations / (u64::from(BLOCK) * 4),
            false => self.memory / (u64::from(BLOCK) * 128),
        };
        let log_n = (1_u8..63).find(|&log| 1 << log > most / 2).unwrap_or(63);
        let lanes = match by_operations {
            true => 1,
            false => ((operations / 4) >> log_n).min(0x3fff_ffff) / u64::from(BLOCK),
        };
        scrypt::Params::new(log_n, BLOCK, lanes as u32)
            .map_err(|_| kind.malformed("has impossible limits for scrypt"))
    }
}

impl SecretKey {
    /// A new key from the system's randomness.
    ///
    /// # Errors
    /// [`SignatureError::Machine`] when there is none.
    pub fn generate() -> Result<Self, SignatureError> {
        let mut seed = Zeroizing::new([0; 32]);
        let mut id = [0; 8];
        random(&mut *seed)?;
        random(&mut id)?;
        let key = SigningKey::from_bytes(&seed);
        Ok(Self { id: KeyId(id), key })
    }

    /// Reads a secret key file.
    ///
    /// # Errors
    /// [`SignatureError`] when it is none, or the passphrase is missing or wrong.
    pub fn parse(text: &str, passphrase: Option<&str>) -> Result<Self, SignatureError> {
        let kind = Kind::SecretKey;
        let line = lines(kind, text)?.nth(1);
        let bytes = Zeroizing::new(kind.decode::<LENGTH>(line)?);
        let (head, body) = bytes.split_at(LENGTH - BODY);
        if head[..2] != ED25519 || head[4..6] != BLAKE2B {
            return Err(kind.malformed("not an ed25519 key of minisign"));
        }
        let mut body = Zeroizing::new(body.to_vec());
        let encrypted = head[2..4] == SCRYPT;
        if encrypted {
            let passphrase = passphrase.ok_or(SignatureError::NoPassphrase)?;
            let strength = Strength {
                operations: number(&head[38..46]),
                memory: number(&head[46..54]),
            };
            encipher(&mut body, passphrase, &head[6..38], strength)?;
        } else if head[2..4] != PLAIN {
            return Err(kind.malformed("encrypted in an unknown way"));
        }
        // minisign leaves the checksum of a plain key empty; the public half
        // that stands beside the secret one proves as much.
        match encrypted && !has_checksum(&body) {
            true => Err(SignatureError::Passphrase),
            false => Self::from_body(&body)
                .ok_or_else(|| kind.malformed("its secret and public halves are no pair")),
        }
    }

    /// The key file, encrypted unless there is no passphrase.
    ///
    /// # Errors
    /// [`SignatureError::Machine`] when there is no randomness.
    pub fn to_text(
        &self,
        passphrase: Option<&str>,
        strength: Strength,
    ) -> Result<Zeroizing<String>, SignatureError> {
        let mut body = self.body();
        let mut salt = [0; 32];
        let (algorithm, limits) = match passphrase {
            Some(passphrase) => {
                random(&mut salt)?;
                encipher(&mut body, passphrase, &salt, strength)?;
                (SCRYPT, [strength.operations, strength.memory])
            }
            None => (PLAIN, [0, 0]),
        };
        let limits = limits.map(u64::to_le_bytes).concat();
        let head = [&ED25519[..], &algorithm, &BLAKE2B, &salt, &limits].concat();
        let bytes = Zeroizing::new([&head[..], &body].concat());
        let line = Zeroizing::new(Base64::encode_string(&bytes));
        let kind = match passphrase {
            Some(_) => "minisign encrypted secret key",
            None => "minisign secret key, not encrypted",
        };
        Ok(Zeroizing::new(format!(
            "untrusted comment: {kind}\n{}\n",
            *line
        )))
    }

    /// Whether a key file needs a passphrase; no for anything but a key.
    pub fn is_encrypted(text: &str) -> bool {
        let bytes = Kind::SecretKey.decode::<LENGTH>(text.lines().nth(1));
        bytes.is_ok_and(|bytes| bytes[2..4] == SCRYPT)
    }

    /// The key that verifies what this one signs.
    pub fn public(&self) -> PublicKey {
        PublicKey::new(self.id, self.key.verifying_key())
    }

    /// Signs `bytes` and says `comment` about them.
    ///
    /// # Errors
    /// [`SignatureError::Malformed`] when the comment has several lines.
    pub fn sign(&self, bytes: &[u8], comment: &str) -> Result<Signature, SignatureError> {
        if comment.is_empty() || comment.contains(['\n', '\r']) {
            return Err(Kind::Signature.malformed("the trusted comment must be one line"));
        }
        let mut signature = Signature {
            id: self.id,
            signature: self.key.sign(&prehashed(bytes)).to_bytes(),
            comment: comment.into(),
            global: [0; 64],
        };
        signature.global = self.key.sign(&signature.statement()).to_bytes();
        Ok(signature)
    }

    fn body(&self) -> Zeroizing<Vec<u8>> {
        let key = Zeroizing::new(self.key.to_keypair_bytes());
        let checksum = checksum(&self.id.0, &key[..]);
        Zeroizing::new([&self.id.0[..], &key[..], &checksum].concat())
    }

    fn from_body(body: &[u8]) -> Option<Self> {
        let (id, rest) = body.split_first_chunk::<8>()?;
        let (key, _) = rest.split_first_chunk::<64>()?;
        let key = SigningKey::from_keypair_bytes(key).ok()?;
        Some(Self {
            id: KeyId(*id),
            key,
        })
    }
}

fn has_checksum(body: &[u8]) -> bool {
    let (id, rest) = body.split_at(8);
    let (key, stated) = rest.split_at(64);
    checksum(id, key) == *stated
}

fn checksum(id: &[u8], key: &[u8]) -> [u8; 32] {
    let hash = Blake2b::<U32>::new().chain_update(ED25519);
    hash.chain_update(id).chain_update(key).finalize().into()
}

/// XORs the body with the passphrase's stream: encrypts and decrypts.
fn encipher(
    body: &mut [u8],
    passphrase: &str,
    salt: &[u8],
    strength: Strength,
) -> Result<(), SignatureError> {
    let mut stream = Zeroizing::new([0; BODY]);
    scrypt::scrypt(
        passphrase.as_bytes(),
        salt,
        &strength.params()?,
        &mut *stream,
    )
    .map_err(|error| SignatureError::Machine(error.to_string()))?;
    for (byte, mask) in body.iter_mut().zip(stream.iter()) {
        *byte ^= mask;
    }
    Ok(())
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn random(bytes: &mut [u8]) -> Result<(), SignatureError> {
    getrandom::fill(bytes)
        .map_err(|error| SignatureError::Machine(format!("no randomness: {error}")))
}
