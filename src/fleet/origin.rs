//! Where packages come from: a registry, a web server, a folder.

use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use ureq::Agent;
use ureq::http::StatusCode;

use super::message::Order;
use super::registry::{Access, Reference, Registry, RegistryError};
use crate::flash::{Allow, Delivery, Device, DeviceError, Need, Source, StoreError};
use crate::package::{Entry, Header, Package, PackageError};
use crate::signature::{Signature, SignatureError};

/// Name of the file in a folder that says what is to be served.
pub const ORDER_FILE: &str = "order.json";
/// Longest order and longest signature in bytes.
const MAX_TEXT: u64 = 64 << 10;

/// The place of a package, or of a folder with an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An artifact of a registry.
    Registry(Reference),
    /// `http://` or `https://`.
    Web(String),
    /// `file:///`.
    File(PathBuf),
}

/// Why nothing comes from a place.
#[derive(Debug, Error)]
pub enum OriginError {
    /// The registry is of no help.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The web server, or the folder.
    #[error("{place}: {message}")]
    Place {
        /// The address.
        place: String,
        /// What happened.
        message: String,
        /// Whether another attempt may succeed.
        again: bool,
    },
    /// The package is at fault.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The signature is.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The device does not take it.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Another model lies there than was ordered.
    #[error("{place}: the package there is of bundle {got}, ordered is {expected}")]
    Other {
        /// The address.
        place: String,
        /// SHA-256 of the manifest that was ordered.
        expected: String,
        /// SHA-256 of the manifest that is there.
        got: String,
    },
}

/// A package that lies somewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// Name of the model.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the bundle's manifest.
    pub sha256: String,
    /// Where it is; for ever the same where the place allows.
    pub package: String,
}

impl OriginError {
    /// Whether only the way there failed, or a clock that is not set yet.
    pub fn may_be_repeated(&self) -> bool {
        match self {
            Self::Registry(error) => error.may_be_repeated(),
            Self::Place { again, .. } => *again,
            Self::Device(DeviceError::Busy { .. }) => true,
            // A clock that is behind is set before long, once there is a network.
            Self::Device(DeviceError::Signature(SignatureError::Clock { .. })) => true,
            Self::Device(DeviceError::Store(StoreError::Cut { .. })) => true,
            // What fails under this name is the reading of the package.
            Self::Device(DeviceError::Store(StoreError::Disk { path, .. })) => path == "package",
            _ => false,
        }
    }
}

impl FromStr for Place {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, RegistryError> {
        match text.split_once("://") {
            Some(("http" | "https", _)) => Ok(Self::Web(text.into())),
            Some(("file", path)) if path.starts_with('/') => Ok(Self::File(path.into())),
            Some(_) => Err(RegistryError::Reference {
                text: text.into(),
                message: "expected http://, https://, file:///, or a reference of a registry"
                    .into(),
            }),
            None => text.parse().map(Self::Registry),
        }
    }
}

impl Place {
    /// What the device is to serve by this place: the order in a folder (an
    /// address that ends in `/`), else the package that lies there now.
    ///
    /// # Errors
    /// [`OriginError`].
    pub fn order(&self, access: &Access) -> Result<Order, OriginError> {
        if let Some(text) = self.order_file(access)? {
            let order = Order::parse(text.as_bytes()).and_then(|order| self.joined(order));
            return order.map_err(|message| fault(self, format!("{ORDER_FILE}: {message}"), false));
        }
        let found = self.look(access)?;
        Ok(Order {
            rollout: "watch".into(),
            sha256: found.sha256,
            package: Some(found.package),
        })
    }

    /// The package that lies here now.
    ///
    /// # Errors
    /// [`OriginError`].
    pub fn look(&self, access: &Access) -> Result<Found, OriginError> {
        let (header, package) = match self {
            Self::Registry(reference) => {
                let registry = Registry::new(reference, access)?;
                let offer = registry.offer()?;
                let pinned = reference.with(offer.digest.clone());
                (offer.header, pinned.to_string())
            }
            Self::Web(url) => (WebPackage::open(url, access)?.header, url.clone()),
            Self::File(path) => {
                let package = Package::open(path)?;
                (package.header().clone(), self.to_string())
            }
        };
        let index = header.index();
        Ok(Found {
            name: index.name.clone(),
            version: index.version.clone(),
            sha256: index.bundle_sha256().into(),
            package,
        })
    }

    /// Installs the package that lies here, if it is of the bundle `expected`.
    /// `alive` hears of everything that moves on, be it a few bytes.
    ///
    /// # Errors
    /// [`OriginError`]; the device then serves what it did before.
    pub fn install(
        &self,
        expected: &str,
        device: &mut Device,
        access: &Access,
        allow: Allow,
        alive: &dyn Fn(),
    ) -> Result<Delivery, OriginError> {
        let trust = device.trust(allow.clock(Timestamp::now()))?;
        let mut bring = |header: &Header, signature: &Signature, source: &mut dyn Source| {
            let got = header.index().bundle_sha256();
            if got != expected {
                return Err(OriginError::Other {
                    place: self.to_string(),
                    expected: expected.into(),
                    got: got.into(),
                });
            }
            let outcome = device.install(
                header,
                signature,
                &trust,
                allow.downgrade,
                &mut Audible { source, alive },
                &mut |_| alive(),
            )?;
            Ok(Delivery::from(&outcome))
        };
        match self {
            Self::Registry(reference) => {
                let registry = Registry::new(reference, access)?;
                let offer = registry.offer()?;
                bring(&offer.header, offer.signature()?, &mut &offer)
            }
            Self::Web(url) => {
                let mut package = WebPackage::open(url, access)?;
                let signature = package.signature()?;
                let header = package.header.clone();
                bring(&header, &signature, &mut package)
            }
            Self::File(path) => {
                let package = Package::open(path)?;
                let name = format!("{}.minisig", path.display());
                let text = fs::read_to_string(&name);
                let text = text.map_err(|error| fault(self, format!("{name}: {error}"), false))?;
                bring(package.header(), &text.parse()?, &mut FilePackage(&package))
            }
        }
    }

    fn order_file(&self, access: &Access) -> Result<Option<String>, OriginError> {
        match self {
            Self::Web(url) if url.ends_with('/') => {
                let agent = agent(url, access)?;
                text(&agent, &format!("{url}{ORDER_FILE}")).map(Some)
            }
            Self::File(path) if path.is_dir() => {
                let text = fs::read_to_string(path.join(ORDER_FILE));
                let text =
                    text.map_err(|error| fault(self, format!("{ORDER_FILE}: {error}"), true));
                text.map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The order with the whole address of a package that lies beside it.
    fn joined(&self, order: Order) -> Result<Order, String> {
        let Some(package) = order.package.as_deref() else {
            return Ok(order);
        };
        if package.contains(['/', ':']) {
            package.parse::<Self>().map_err(|error| error.to_string())?;
            return Ok(order);
        }
        let package = match self {
            Self::File(folder) => format!("file://{}", folder.join(package).display()),
            place => format!("{place}{package}"),
        };
        Ok(Order {
            package: Some(package),
            ..order
        })
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Web(url) => f.write_str(url),
            Self::File(path) => write!(f, "file://{}", path.display()),
        }
    }
}

/// A package behind `http://` or `https://`; its signature lies beside it.
struct WebPackage {
    agent: Agent,
    url: String,
    header: Header,
}

impl WebPackage {
    fn open(url: &str, access: &Access) -> Result<Self, OriginError> {
        let agent = agent(url, access)?;
        let mut body = get(&agent, url, 0)?;
        Ok(Self {
            agent,
            url: url.into(),
            header: Header::read(&mut body)?,
        })
    }

    fn signature(&self) -> Result<Signature, OriginError> {
        Ok(text(&self.agent, &format!("{}.minisig", self.url))?.parse()?)
    }
}

impl Source for WebPackage {
    fn announce(&mut self, _: &[Need]) -> io::Result<()> {
        Ok(())
    }

    fn blob(&mut self, need: Need, _: &Entry) -> io::Result<Box<dyn Read + '_>> {
        let start = self.header.offset(need.position) + need.offset;
        let body = get(&self.agent, &self.url, start).map_err(io::Error::other)?;
        Ok(Box::new(body))
    }
}

/// A package on this machine.
struct FilePackage<'a>(&'a Package);

impl Source for FilePackage<'_> {
    fn announce(&mut self, _: &[Need]) -> io::Result<()> {
        Ok(())
    }

    fn blob(&mut self, need: Need, _: &Entry) -> io::Result<Box<dyn Read + '_>> {
        let blob = self.0.blob(need.position, need.offset);
        Ok(Box::new(blob.map_err(io::Error::other)?))
    }
}

/// A source of which it is heard that something comes.
struct Audible<'a, 'b> {
    source: &'a mut (dyn Source + 'b),
    alive: &'a dyn Fn(),
}

impl Source for Audible<'_, '_> {
    fn announce(&mut self, needs: &[Need]) -> io::Result<()> {
        self.source.announce(needs)
    }

    fn blob(&mut self, need: Need, entry: &Entry) -> io::Result<Box<dyn Read + '_>> {
        let source = self.source.blob(need, entry)?;
        Ok(Box::new(AudibleBlob {
            source,
            alive: self.alive,
        }))
    }
}

struct AudibleBlob<'a> {
    source: Box<dyn Read + 'a>,
    alive: &'a dyn Fn(),
}

impl Read for AudibleBlob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        (self.alive)();
        Ok(length)
    }
}

fn agent(url: &str, access: &Access) -> Result<Agent, OriginError> {
    let refused = |message: String| OriginError::Place {
        place: url.into(),
        message,
        again: false,
    };
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let host = rest.split('/').next().unwrap_or(rest);
    if scheme == "http" && access.transport.scheme(host) == "https" {
        let message = "not encrypted; use https, or give --plain-http on a network you trust";
        return Err(refused(message.into()));
    }
    access.transport.agent(scheme).map_err(refused)
}

/// The contents behind an address, from byte `start` on.
fn get(agent: &Agent, url: &str, start: u64) -> Result<impl Read + use<>, OriginError> {
    let failed = |message: String, again: bool| OriginError::Place {
        place: url.into(),
        message,
        again,
    };
    let mut request = agent.get(url);
    if start > 0 {
        request = request.header("Range", format!("bytes={start}-"));
    }
    let answer = request.call();
    let answer = answer.map_err(|error| failed(error.to_string(), true))?;
    let status = answer.status();
    let skipped = match status {
        StatusCode::PARTIAL_CONTENT => 0,
        StatusCode::OK => start,
        _ => {
            let again = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
            return Err(failed(format!("the server answers {status}"), again));
        }
    };
    let mut body = answer.into_body().into_reader();
    let skip = io::copy(&mut (&mut body).take(skipped), &mut io::sink());
    skip.map_err(|error| failed(error.to_string(), true))?;
    Ok(body)
}

fn text(agent: &Agent, url: &str) -> Result<String, OriginError> {
    let mut text = String::new();
    let read = get(agent, url, 0)?.take(MAX_TEXT).read_to_string(&mut text);
    read.map_err(|error| OriginError::Place {
        place: url.into(),
        message: error.to_string(),
        again: true,
    })?;
    Ok(text)
}

fn fault(place: &Place, message: String, again: bool) -> OriginError {
    OriginError::Place {
        place: place.to_string(),
        message,
        again,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_what_they_print() {
        for text in [
            "https://host/models/",
            "file:///srv/gauge.numclip",
            "r.local/gauge:1",
        ] {
            let place: Place = text.parse().unwrap();
            assert_eq!(place.to_string(), text);
        }
        for text in ["ftp://host/x", "file://relative", "gauge"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_package_beside_its_order_needs_no_address() {
        let order = |package: &str| Order {
            rollout: "r".into(),
            sha256: "0".repeat(64),
            package: Some(package.into()),
        };
        let web: Place = "https://host/models/".parse().unwrap();
        let joined =
            |place: &Place, package| place.joined(order(package)).map(|order| order.package);
        let beside = joined(&web, "gauge-1.numclip").unwrap();
        assert_eq!(
            beside.as_deref(),
            Some("https://host/models/gauge-1.numclip")
        );
        let file: Place = "file:///srv/models".parse().unwrap();
        let beside = joined(&file, "gauge-1.numclip").unwrap();
        assert_eq!(
            beside.as_deref(),
            Some("file:///srv/models/gauge-1.numclip")
        );
        let elsewhere = joined(&web, "r.local/gauge:1").unwrap();
        assert_eq!(elsewhere.as_deref(), Some("r.local/gauge:1"));
        assert!(joined(&web, "../gauge.numclip").is_err());
    }

    #[test]
    fn a_clock_that_is_not_set_yet_is_waited_for() {
        let refused = |error: SignatureError| OriginError::from(DeviceError::from(error));
        let (now, signed) = (Timestamp::UNIX_EPOCH, Timestamp::MAX);
        assert!(refused(SignatureError::Clock { now, signed }).may_be_repeated());
        let (now, expired) = (Timestamp::MAX, Timestamp::UNIX_EPOCH);
        assert!(!refused(SignatureError::Expired { now, expired }).may_be_repeated());
    }

    #[test]
    fn plain_http_stays_on_this_machine() {
        let place: Place = "http://192.0.2.1/gauge.numclip".parse().unwrap();
        let error = place.look(&Access::default()).unwrap_err();
        assert!(error.to_string().contains("--plain-http") && !error.may_be_repeated());
    }
}
