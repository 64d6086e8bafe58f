//! Names of artifacts.

use std::fmt;
use std::str::FromStr;

use super::RegistryError;
use crate::bundle::is_digest;

const EXPECTED: &str = "expected REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@sha256:DIGEST, as in registry.local:5000/models/gauge:1.0.0";

/// An artifact of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Host, and port where it is not the usual one.
    pub registry: String,
    /// Repository: lower-case words, separated by `/`.
    pub repository: String,
    /// Which of its artifacts.
    pub pick: Pick,
}

/// Which artifact of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pick {
    /// The one that has this tag now.
    Tag(String),
    /// This one for ever: the SHA-256 of its manifest in hexadecimal.
    Digest(String),
}

impl Reference {
    /// The same repository, another artifact.
    pub fn with(&self, pick: Pick) -> Self {
        Self {
            pick,
            ..self.clone()
        }
    }
}

impl FromStr for Reference {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, RegistryError> {
        let invalid = |message: &str| RegistryError::Reference {
            text: text.into(),
            message: message.into(),
        };
        let expected = || invalid(EXPECTED);
        let (registry, rest) = text.split_once('/').ok_or_else(expected)?;
        if !is_host(registry) {
            return Err(invalid(
                "names no registry; begin with its host, as in registry.local/…",
            ));
        }
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (rest, None),
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if !repository.split('/').all(is_component) {
            return Err(invalid("the repository is lower-case words between /"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid("the tag holds only letters, digits, _ . and -"));
        }
        let pick = match (digest, tag) {
            (Some(digest), _) => {
                let digest = digest.strip_prefix("sha256:").unwrap_or_default();
                let digest = is_digest(digest).then(|| digest.to_owned());
                Pick::Digest(digest.ok_or_else(|| invalid("the digest is sha256: and 64 digits"))?)
            }
            (None, Some(tag)) => Pick::Tag(tag.into()),
            (None, None) => return Err(expected()),
        };
        Ok(Self {
            registry: registry.into(),
            repository: repository.into(),
            pick,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = match self.pick {
            Pick::Tag(_) => ":",
            Pick::Digest(_) => "@",
        };
        let (registry, repository) = (&self.registry, &self.repository);
        write!(f, "{registry}/{repository}{separator}{}", self.pick)
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => write!(f, "sha256:{digest}"),
        }
    }
}

/// A first word without dot and port would be a repository of some default
/// registry elsewhere; here there is none.
fn is_host(text: &str) -> bool {
    let letters = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
    text.chars().all(letters) && (text == "localhost" || text.contains(['.', ':']))
}

fn is_component(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inner = |c: char| plain(c) || "._-".contains(c);
    text.starts_with(plain) && text.ends_with(plain) && text.chars().all(inner)
}

fn is_tag(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let inner = |c: char| plain(c) || ".-".contains(c);
    text.len() <= 128 && text.starts_with(plain) && text.chars().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_what_they_print() {
        let digest = "0123456789abcdef".repeat(4);
        for (text, pick) in [
            ("localhost:5000/gauge:1.0.0", Pick::Tag("1.0.0".into())),
            ("ghcr.io/a/b-c/d_e:latest", Pick::Tag("latest".into())),
            (
                &format!("[::1]:5000/gauge@sha256:{digest}"),
                Pick::Digest(digest.clone()),
            ),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.pick, pick);
            assert_eq!(reference.to_string(), text);
        }
        let both = format!("r.local/a:1@sha256:{digest}");
        let reference: Reference = both.parse().unwrap();
        assert_eq!(reference.pick, Pick::Digest(digest));
    }

    #[test]
    fn anything_else_says_what_is_wrong() {
        for (text, reason) in [
            ("gauge", "expected"),
            ("gauge:1.0.0", "expected"),
            ("models/gauge:1", "names no registry"),
            ("r.local/gauge", "expected"),
            ("r.local/Gauge:1", "lower-case"),
            ("r.local/a/../b:1", "lower-case"),
            ("r.local/gauge:a b", "the tag"),
            ("r.local/gauge@sha256:12", "the digest"),
            ("r.local/gauge@md5:12", "the digest"),
            ("us er@r.local/gauge:1", "names no registry"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
