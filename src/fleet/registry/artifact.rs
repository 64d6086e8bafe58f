//! The manifest that makes one artifact of a package's parts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::RegistryError;
use crate::bundle::{is_digest, sha256};
use crate::package::{Header, MAX_FILES};

/// Type of the artifact.
pub const ARTIFACT_TYPE: &str = "application/vnd.numclip.package.v1";

pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const EMPTY: &[u8] = b"{}";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const HEADER_TYPE: &str = "application/vnd.numclip.header.v1";
const SIGNATURE_TYPE: &str = "application/vnd.numclip.signature.v1+minisign";
const FILE_TYPE: &str = "application/vnd.numclip.file.v1+deflate";
const TITLE: &str = "org.opencontainers.image.title";
const VERSION: &str = "org.opencontainers.image.version";

/// An OCI image manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Artifact {
    schema_version: u32,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// A blob of a registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    media_type: String,
    digest: String,
    /// Length in bytes.
    pub size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// The layers of an artifact, by what they are.
pub(super) struct Parts<'a> {
    pub header: &'a Descriptor,
    pub signature: Option<&'a Descriptor>,
    pub files: &'a [Descriptor],
}

impl Artifact {
    /// The artifact of a package with this header and signature.
    pub fn new(header: &Header, signature: Option<&str>) -> Self {
        let index = header.index();
        let mut layers = vec![Descriptor::of(HEADER_TYPE, header.bytes())];
        layers.extend(signature.map(|text| Descriptor::of(SIGNATURE_TYPE, text.as_bytes())));
        layers.extend(index.files.iter().map(|file| Descriptor {
            media_type: FILE_TYPE.into(),
            digest: format!("sha256:{}", file.packed_sha256),
            size: file.packed_size,
            annotations: [(TITLE.into(), file.name.clone())].into(),
        }));
        let about = [(TITLE, &index.name), (VERSION, &index.version)];
        Self {
            schema_version: 2,
            media_type: Some(MANIFEST_TYPE.into()),
            artifact_type: Some(ARTIFACT_TYPE.into()),
            config: Descriptor::of(EMPTY_TYPE, EMPTY),
            layers,
            annotations: about.map(|(key, value)| (key.into(), value.clone())).into(),
        }
    }

    /// Reads the manifest of the artifact `what`, which must be a package.
    pub fn parse(json: &[u8], what: &str) -> Result<Self, RegistryError> {
        let foreign = |message: String| RegistryError::Foreign {
            what: what.into(),
            message,
        };
        let artifact: Self =
            serde_json::from_slice(json).map_err(|error| foreign(error.to_string()))?;
        if artifact.artifact_type.as_deref() != Some(ARTIFACT_TYPE) {
            let kind = artifact.artifact_type.as_deref();
            let kind = kind.unwrap_or(&artifact.config.media_type);
            return Err(foreign(format!("its type is {kind}")));
        }
        let is_whole = |layer: &Descriptor| layer.sha256().is_some();
        match artifact.layers.len() <= MAX_FILES + 2 && artifact.layers.iter().all(is_whole) {
            true => Ok(artifact),
            false => Err(foreign("its layers have no SHA-256".into())),
        }
    }

    /// Its layers; `None` where they are others than a package has.
    pub fn parts(&self) -> Option<Parts<'_>> {
        let (header, rest) = self.layers.split_first()?;
        let (signature, files) = match rest.split_first() {
            Some((first, files)) if first.media_type == SIGNATURE_TYPE => (Some(first), files),
            _ => (None, rest),
        };
        let known = header.media_type == HEADER_TYPE
            && files.iter().all(|file| file.media_type == FILE_TYPE);
        known.then_some(Parts {
            header,
            signature,
            files,
        })
    }
}

impl Parts<'_> {
    /// Whether the files are those that `header` names, in its order.
    pub fn fit(&self, header: &Header) -> bool {
        let index = &header.index().files;
        self.files.len() == index.len()
            && self.files.iter().zip(index).all(|(layer, file)| {
                layer.size == file.packed_size && layer.sha256() == Some(&file.packed_sha256)
            })
    }
}

impl Descriptor {
    fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.into(),
            digest: format!("sha256:{}", sha256(bytes)),
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
        }
    }

    /// SHA-256 in hexadecimal, if it has one.
    pub fn sha256(&self) -> Option<&str> {
        let digest = self.digest.strip_prefix("sha256:")?;
        is_digest(digest).then_some(digest)
    }
}
