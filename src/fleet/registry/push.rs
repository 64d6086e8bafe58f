//! A package into a registry.

use std::io::{Cursor, Read};

use ureq::SendBody;
use ureq::http::StatusCode;

use super::artifact::{Artifact, EMPTY, MANIFEST_TYPE};
use super::client::{Right, good};
use super::{Pick, Registry, RegistryError};
use crate::bundle::sha256;
use crate::flash::Progress;
use crate::package::Package;
use crate::signature::Signature;

/// Something to be stored under its digest.
struct Blob<'a> {
    sha256: String,
    size: u64,
    open: Box<dyn Fn() -> Result<Box<dyn Read>, RegistryError> + 'a>,
}

impl<'a> Blob<'a> {
    fn small(bytes: &[u8]) -> Self {
        let bytes = bytes.to_vec();
        Self {
            sha256: sha256(&bytes),
            size: bytes.len() as u64,
            open: Box::new(move || Ok(Box::new(Cursor::new(bytes.clone())))),
        }
    }

    fn file(package: &'a Package, position: usize) -> Self {
        let entry = &package.header().index().files[position];
        Self {
            sha256: entry.packed_sha256.clone(),
            size: entry.packed_size,
            open: Box::new(move || Ok(Box::new(package.blob(position, 0)?))),
        }
    }
}

impl Registry {
    /// Stores a package and gives its digest: what the registry has already is
    /// not sent again, and the tag points at it only when all of it is there.
    /// Every file is checked before anything is sent.
    ///
    /// # Errors
    /// [`RegistryError`]; the tag then points where it did before.
    pub fn push(
        &self,
        package: &Package,
        signature: Option<&Signature>,
        show: &mut dyn FnMut(Progress),
    ) -> Result<Pick, RegistryError> {
        for (_, bytes) in package.files() {
            bytes?;
        }
        let header = package.header();
        let signature = signature.map(ToString::to_string);
        let mut blobs = vec![Blob::small(EMPTY), Blob::small(header.bytes())];
        blobs.extend(signature.as_ref().map(|text| Blob::small(text.as_bytes())));
        let files = 0..header.index().files.len();
        blobs.extend(files.map(|position| Blob::file(package, position)));
        let mut missing = Vec::new();
        for blob in blobs {
            if !self.has(&blob)? {
                missing.push(blob);
            }
        }
        show(Progress::Total(missing.iter().map(|blob| blob.size).sum()));
        for blob in &missing {
            self.upload(blob)?;
            show(Progress::Sent(blob.size));
        }
        self.name(&Artifact::new(header, signature.as_deref()))
    }

    fn has(&self, blob: &Blob<'_>) -> Result<bool, RegistryError> {
        let url = self.url(&format!("blobs/sha256:{}", blob.sha256));
        let answer = self.ask(Right::Push, |pass| {
            let request = self.agent.head(&url);
            with(request, pass).call()
        })?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(false),
            _ => good(answer, &blob.sha256).map(|_| true),
        }
    }

    fn upload(&self, blob: &Blob<'_>) -> Result<(), RegistryError> {
        let url = self.url("blobs/uploads/");
        let answer = self.ask(Right::Push, |pass| {
            with(self.agent.post(&url), pass).send_empty()
        })?;
        let answer = good(answer, &url)?;
        let location = answer.headers().get("location");
        let location = location.and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| self.away("it says not where to upload"))?;
        let (place, ours) = self.onward(location);
        let joint = if place.contains('?') { '&' } else { '?' };
        let url = format!("{place}{joint}digest=sha256:{}", blob.sha256);
        let answer = self.ask(Right::Push, |pass| {
            let mut reader = (blob.open)()
                .map_err(|error| ureq::Error::Io(std::io::Error::other(error.to_string())))?;
            with(self.agent.put(&url), pass.filter(|_| ours))
                .header("Content-Type", "application/octet-stream")
                .header("Content-Length", blob.size.to_string())
                .send(SendBody::from_reader(&mut reader))
        })?;
        good(answer, &format!("sha256:{}", blob.sha256)).map(drop)
    }

    /// Stores the manifest under the tag, or under its digest.
    fn name(&self, artifact: &Artifact) -> Result<Pick, RegistryError> {
        let json = serde_json::to_vec(artifact).map_err(|error| self.away(error))?;
        let digest = Pick::Digest(sha256(&json));
        let what = self.reference.to_string();
        if matches!(&self.reference.pick, Pick::Digest(_)) && self.reference.pick != digest {
            let got = digest.to_string();
            return Err(RegistryError::Altered { what, got });
        }
        let url = self.url(&format!("manifests/{}", self.reference.pick));
        let answer = self.ask(Right::Push, |pass| {
            with(self.agent.put(&url), pass)
                .header("Content-Type", MANIFEST_TYPE)
                .send(&json[..])
        })?;
        good(answer, &what).map(|_| digest)
    }
}

fn with<B>(request: ureq::RequestBuilder<B>, pass: Option<&str>) -> ureq::RequestBuilder<B> {
    match pass {
        Some(pass) => request.header("Authorization", pass),
        None => request,
    }
}
