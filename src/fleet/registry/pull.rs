//! A package out of a registry.

use std::io::{self, Read, Write as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};
use ureq::http::StatusCode;

use super::artifact::{Artifact, Descriptor, MANIFEST_TYPE};
use super::client::{Right, good};
use super::{Pick, Registry, RegistryError};
use crate::bundle::sha256;
use crate::flash::{Need, Progress, Source};
use crate::package::{self, Entry, Header, MAX_INDEX, Package, PackageError};
use crate::signature::{Signature, Trust, check_header};

/// Longest manifest and longest signature in bytes.
const MAX_MANIFEST: u64 = 1 << 20;
const MAX_SIGNATURE: u64 = 4 << 10;
/// Room for a header: its index and what stands before it.
const MAX_HEADER: u64 = MAX_INDEX as u64 + 64;

/// A package that a registry has: its header, its signature, and the way to
/// its files.
pub struct Offer<'a> {
    registry: &'a Registry,
    /// Which artifact it is, for ever.
    pub digest: Pick,
    /// The package's header.
    pub header: Header,
    /// Its signature, if it was pushed with one.
    pub signature: Option<Signature>,
}

/// A package that was fetched.
#[derive(Debug)]
pub struct Pulled {
    /// Which artifact it was.
    pub digest: Pick,
    /// The package.
    pub package: Package,
    /// Whether a signature came with it.
    pub signed: bool,
}

impl Registry {
    /// What the reference points at now, or for ever if it is a digest. Header
    /// and manifest are held against their digests and against each other.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn offer(&self) -> Result<Offer<'_>, RegistryError> {
        let what = self.reference.to_string();
        let (digest, artifact) = self.manifest()?;
        let foreign = |message: &str| RegistryError::Foreign {
            what: what.clone(),
            message: message.into(),
        };
        let parts = artifact.parts();
        let parts = parts.ok_or_else(|| foreign("its layers are not those of a package"))?;
        let bytes = self.small(parts.header, MAX_HEADER)?;
        let header = Header::read(&mut &bytes[..])?;
        if header.bytes() != bytes || !parts.fit(&header) {
            return Err(foreign(
                "its layers are not the files that its header names",
            ));
        }
        let signature = parts.signature.map(|layer| {
            let text = String::from_utf8(self.small(layer, MAX_SIGNATURE)?);
            let text = text.map_err(|_| foreign("its signature is no text"))?;
            Ok::<Signature, RegistryError>(text.parse()?)
        });
        Ok(Offer {
            registry: self,
            digest,
            signature: signature.transpose()?,
            header,
        })
    }

    fn manifest(&self) -> Result<(Pick, Artifact), RegistryError> {
        let what = self.reference.to_string();
        let url = self.url(&format!("manifests/{}", self.reference.pick));
        let answer = self.get(&url, &[("Accept", MANIFEST_TYPE.into())])?;
        let json = self.read(good(answer, &what)?, MAX_MANIFEST)?;
        let digest = Pick::Digest(sha256(&json));
        if matches!(&self.reference.pick, Pick::Digest(_)) && self.reference.pick != digest {
            let got = digest.to_string();
            return Err(RegistryError::Altered { what, got });
        }
        Ok((digest, Artifact::parse(&json, &what)?))
    }

    /// A small blob, held against its digest.
    fn small(&self, layer: &Descriptor, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let wanted = layer.sha256().unwrap_or_default();
        let mut bytes = Vec::new();
        let mut blob = self.blob(wanted, 0)?.take(limit);
        blob.read_to_end(&mut bytes)
            .map_err(|error| self.away(error))?;
        match sha256(&bytes) {
            got if got == wanted => Ok(bytes),
            got => Err(altered(wanted, got)),
        }
    }

    /// The blob of this digest from byte `offset` on, unchecked.
    fn blob(&self, sha256: &str, offset: u64) -> Result<impl Read + use<>, RegistryError> {
        let what = format!("sha256:{sha256}");
        let url = self.url(&format!("blobs/{what}"));
        let range = ("Range", format!("bytes={offset}-"));
        let headers = if offset > 0 { &[range][..] } else { &[] };
        let answer = good(self.get(&url, headers)?, &what)?;
        let skipped = match answer.status() {
            StatusCode::PARTIAL_CONTENT => 0,
            _ => offset,
        };
        let mut body = answer.into_body().into_reader();
        let skip = io::copy(&mut (&mut body).take(skipped), &mut io::sink());
        skip.map_err(|error| self.away(error))?;
        Ok(body)
    }

    fn get(
        &self,
        url: &str,
        headers: &[(&str, String)],
    ) -> Result<ureq::http::Response<ureq::Body>, RegistryError> {
        self.ask(Right::Pull, |pass| {
            let mut request = self.agent.get(url);
            if let Some(pass) = pass {
                request = request.header("Authorization", pass);
            }
            for (name, value) in headers {
                request = request.header(*name, value);
            }
            request.call()
        })
    }

    fn read(
        &self,
        mut answer: ureq::http::Response<ureq::Body>,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let body = answer.body_mut().with_config().limit(limit);
        body.read_to_vec().map_err(|error| self.away(error))
    }
}

impl Offer<'_> {
    /// Fetches the package to `path` and its signature to `signature_path`:
    /// every layer is held against the header, and the header's signature
    /// against `trust` if given. The files appear whole or not at all.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn fetch(
        &self,
        path: &Path,
        signature_path: &Path,
        trust: Option<&Trust>,
        show: &mut dyn FnMut(Progress),
    ) -> Result<Pulled, RegistryError> {
        if let Some(trust) = trust {
            check_header(&self.header, self.signature()?, trust)?;
        }
        let files = &self.header.index().files;
        let sizes = files.iter().map(|entry| entry.packed_size);
        show(Progress::Total(sizes.sum()));
        let io = |error| PackageError::io(path, error);
        let mut staged = package::stage(path).map_err(io)?;
        staged.write_all(self.header.bytes()).map_err(io)?;
        for entry in files {
            let blob = self.registry.blob(&entry.packed_sha256, 0)?;
            self.copy(
                entry,
                &mut blob.take(entry.packed_size),
                &mut staged,
                path,
                show,
            )?;
        }
        if let Some(signature) = &self.signature {
            let text = signature.to_string();
            let io = |error| PackageError::io(signature_path, error);
            let mut staged = package::stage(signature_path).map_err(io)?;
            staged.write_all(text.as_bytes()).map_err(io)?;
            package::settle(staged, signature_path)?;
        }
        package::settle(staged, path)?;
        Ok(Pulled {
            digest: self.digest.clone(),
            package: Package::open(path)?,
            signed: self.signature.is_some(),
        })
    }

    /// The signature, without which no device takes the package.
    ///
    /// # Errors
    /// [`RegistryError::Foreign`] when there is none.
    pub fn signature(&self) -> Result<&Signature, RegistryError> {
        let signature = self.signature.as_ref();
        signature.ok_or_else(|| RegistryError::Foreign {
            what: self.registry.reference.to_string(),
            message: "it has no signature; `numclip sign` it and push it again".into(),
        })
    }

    fn copy(
        &self,
        entry: &Entry,
        blob: &mut impl Read,
        staged: &mut impl io::Write,
        path: &Path,
        show: &mut dyn FnMut(Progress),
    ) -> Result<(), RegistryError> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = blob.read(&mut buffer);
            let length = length.map_err(|error| self.registry.away(error))?;
            if length == 0 {
                break;
            }
            hasher.update(&buffer[..length]);
            let written = staged.write_all(&buffer[..length]);
            written.map_err(|error| PackageError::io(path, error))?;
            show(Progress::Sent(length as u64));
        }
        let got: String = hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        match got == entry.packed_sha256 {
            true => Ok(()),
            false => Err(altered(&entry.packed_sha256, got)),
        }
    }
}

/// A device asks only for the files that it lacks, and goes on in the middle
/// of one. It checks them itself.
impl Source for &Offer<'_> {
    fn announce(&mut self, _: &[Need]) -> io::Result<()> {
        Ok(())
    }

    fn blob(&mut self, need: Need, entry: &Entry) -> io::Result<Box<dyn Read + '_>> {
        let blob = self.registry.blob(&entry.packed_sha256, need.offset);
        Ok(Box::new(blob.map_err(io::Error::other)?))
    }
}

fn altered(wanted: &str, got: String) -> RegistryError {
    RegistryError::Altered {
        what: format!("sha256:{wanted}"),
        got,
    }
}
