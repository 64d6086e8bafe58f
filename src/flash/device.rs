//! A store on this machine: trust, proof, switch, service, way back.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::disk::Folder;
use super::install::{self, Outcome, Source};
use super::service::{Health, Service};
use super::shadow::{Comparison, compare};
use super::store::{StoreError, intact, listing, state};
use crate::bundle::{Bundle, STATE, State, slot};
use crate::package::Header;
use crate::pipeline::Pipeline;
use crate::signature::{Signature, SignatureError, Trust, check_header};
use crate::verify;

/// Where a device keeps its models unless told otherwise.
pub const STORE: &str = "/var/lib/numclip";
/// Folder of trusted keys in a store.
pub const TRUST: &str = "trust.d";
/// The file that says how the service is told and watched.
pub const SERVICE: &str = "device.toml";

const LOCK: &str = "lock";
/// How long another update is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// The store of this machine, held for one change at a time.
pub struct Device {
    root: PathBuf,
    folder: Folder,
    service: Service,
    // Unlocked when it is closed.
    _lock: File,
}

/// Why a device does not do what it was asked.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// A file of the store cannot be used.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// Another update is under way.
    #[error("{path}: another update is under way; wait for it")]
    Busy {
        /// The store.
        path: String,
    },
    /// The package is not trusted.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The store refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The service is not well with the new model.
    #[error("{message}; {way_back}")]
    Unhealthy {
        /// What failed.
        message: String,
        /// What was done about it.
        way_back: String,
    },
}

/// A step of an update that is worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Golden vectors are replayed on the device's own engine.
    Proving,
    /// The new model runs beside the one that serves, on kept pictures.
    Comparing,
    /// They agree well enough.
    Compared(Comparison),
    /// The new model serves.
    Switched,
    /// The service is looked at, to see whether it is well.
    Watching,
}

/// What a device takes only when it is told to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    /// A package that is older than what serves.
    pub downgrade: bool,
    /// Signatures of any time: the device's clock is not to be trusted.
    pub any_clock: bool,
}

impl Allow {
    /// The time by which signatures are judged, where the clock says `now`.
    pub(crate) fn clock(self, now: Timestamp) -> Option<Timestamp> {
        (!self.any_clock).then_some(now)
    }
}

/// Whose a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// This machine's: its service is told and watched.
    Here,
    /// That of a system which is mounted: its service does not run here.
    Mounted,
}

/// What a store holds and how the device is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What serves.
    pub serving: Option<Model>,
    /// What served before.
    pub previous: Option<Model>,
    /// How the service is.
    pub health: Health,
    /// Seconds since the machine started, where it says so.
    pub uptime_s: Option<u64>,
    /// Temperature in degrees Celsius, where it says so.
    pub temperature_c: Option<f32>,
    /// Version of numclip on the device.
    pub numclip: String,
}

impl Status {
    /// Of a device that nothing is known of but that this program runs on it.
    pub fn unknown() -> Self {
        Self {
            serving: None,
            previous: None,
            health: Health::Unwatched,
            uptime_s: None,
            temperature_c: None,
            numclip: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// A model of a store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Its name; empty when its manifest cannot be read.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of its manifest.
    pub sha256: String,
    /// What is wrong with its files, if anything.
    pub fault: Option<String>,
}

impl Site {
    /// A store in the place that it has in a system is that system's; one that
    /// lies elsewhere is this machine's.
    pub fn of(store: &Path) -> Self {
        match root_around(store) {
            Some(root) if root != Path::new("/") => Self::Mounted,
            _ => Self::Here,
        }
    }
}

/// The root of the system in which `store` has the place of [`STORE`].
pub(super) fn root_around(store: &Path) -> Option<PathBuf> {
    let below = STORE.trim_start_matches('/');
    let root = store.to_str()?.trim_end_matches('/').strip_suffix(below)?;
    root.ends_with('/').then(|| root.into())
}

impl Device {
    /// Takes hold of this machine's store at `root`, which is made if it does
    /// not exist.
    ///
    /// # Errors
    /// [`DeviceError`] when it cannot be made, is in use or ill configured.
    pub fn open(root: &Path) -> Result<Self, DeviceError> {
        Self::open_on(root, Site::Here)
    }

    /// The same for a store that may be another system's.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn open_on(root: &Path, site: Site) -> Result<Self, DeviceError> {
        fs::create_dir_all(root).map_err(file(root))?;
        let path = root.join(LOCK);
        let lock = File::options().create(true).append(true).open(&path);
        let lock = lock.map_err(file(&path))?;
        match held(&lock) {
            Ok(true) => {}
            Ok(false) => {
                let path = root.display().to_string();
                return Err(DeviceError::Busy { path });
            }
            Err(error) => return Err(file(&path)(error)),
        }
        Ok(Self {
            root: root.into(),
            folder: Folder::new(root),
            service: service(root, site)?,
            _lock: lock,
        })
    }

    /// How its service is told and watched.
    pub(super) fn service(&self) -> &Service {
        &self.service
    }

    /// The keys that this device trusts at the time `now`; without it no
    /// expiry is checked.
    ///
    /// # Errors
    /// [`DeviceError::Signature`] when they cannot be read, or there are none.
    pub fn trust(&self, now: Option<Timestamp>) -> Result<Trust, DeviceError> {
        Ok(Trust::read(&self.root.join(TRUST), now)?)
    }

    /// Installs a package: signature against `trust`, files from `source`,
    /// golden vectors, the comparison that the package asks for, switch, then the service is told and watched. If it is
    /// not well with the new model, the one before serves again.
    ///
    /// # Errors
    /// [`DeviceError`]; then what served before still does, or does again.
    pub fn install(
        &mut self,
        header: &Header,
        signature: &Signature,
        trust: &Trust,
        allow_downgrade: bool,
        source: &mut dyn Source,
        tell: &mut dyn FnMut(Stage),
    ) -> Result<Outcome, DeviceError> {
        check_header(header, signature, trust)?;
        let (root, pictures) = (&self.root, &self.service.pictures);
        let shadow = header.index().shadow.zip(state(&self.folder)?.serving);
        let mut check = |digest: &str| {
            tell(Stage::Proving);
            let candidate = proved(root, digest)?;
            let Some((budget, serving)) = &shadow else {
                return Ok(());
            };
            // A model that can no longer be used is no measure for another.
            let Ok(serves) = loaded(root, serving) else {
                return Ok(());
            };
            let mut each = || tell(Stage::Comparing);
            if let Some(comparison) = compare(&serves, &candidate, pictures, *budget, &mut each)? {
                tell(Stage::Compared(comparison));
            }
            Ok(())
        };
        let folder = &mut self.folder;
        let outcome = install::install(folder, header, source, allow_downgrade, &mut check)?;
        if let Outcome::Installed { before } = &outcome {
            tell(Stage::Switched);
            self.hand_over(before, tell)?;
        }
        // The model serves; what cannot be cleared now is by the next update.
        let _ = install::prune(&mut self.folder);
        Ok(outcome)
    }

    /// Lets the model serve again that did before; `tell` hears of each step.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn rollback(&mut self, tell: &mut dyn FnMut(Stage)) -> Result<(), DeviceError> {
        let before = state(&self.folder)?;
        let root = &self.root;
        install::rollback(&mut self.folder, &mut |digest| {
            tell(Stage::Proving);
            proved(root, digest).map(drop)
        })?;
        tell(Stage::Switched);
        self.hand_over(&before, tell)
    }

    /// Removes what neither serves nor did before; says what was removed.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn prune(&mut self) -> Result<Vec<String>, DeviceError> {
        Ok(install::prune(&mut self.folder)?)
    }

    /// Tells the service, and goes back to `before` if it is not well.
    fn hand_over(
        &mut self,
        before: &State,
        tell: &mut dyn FnMut(Stage),
    ) -> Result<(), DeviceError> {
        let mut looks = || tell(Stage::Watching);
        let Err(message) = self.service.take_over(&mut looks) else {
            return Ok(());
        };
        let way_back = match &before.serving {
            None => "no other model is there to go back to".into(),
            Some(_) => {
                install::restore(&mut self.folder, before)?;
                match self.service.take_over(&mut looks) {
                    Ok(()) => "the model before it serves again".into(),
                    Err(again) => format!("the model before it is back, but {again}"),
                }
            }
        };
        Err(DeviceError::Unhealthy { message, way_back })
    }
}

/// What this machine's store at `root` holds, read without holding it.
///
/// # Errors
/// [`DeviceError`] when there is no store, or its state cannot be read.
pub fn status(root: &Path) -> Result<Status, DeviceError> {
    status_on(root, Site::Here)
}

/// The same for a store that may be another system's.
///
/// # Errors
/// As [`status`].
pub fn status_on(root: &Path, site: Site) -> Result<Status, DeviceError> {
    if !root.join(STATE).exists() {
        let message = "no store; flash a package to make one".into();
        let path = root.display().to_string();
        return Err(DeviceError::File { path, message });
    }
    let folder = Folder::new(root);
    let state = state(&folder)?;
    let model = |digest: Option<String>| digest.map(|digest| model(&folder, digest));
    Ok(Status {
        serving: model(state.serving),
        previous: model(state.previous),
        health: service(root, site)?.health(),
        uptime_s: uptime(),
        temperature_c: temperature(),
        numclip: env!("CARGO_PKG_VERSION").into(),
    })
}

fn model(folder: &Folder, sha256: String) -> Model {
    let listing = listing(folder, &sha256);
    let fault = intact(folder, &sha256).err().map(|fault| fault.to_string());
    let (name, version) = match listing {
        Ok(listing) => (listing.model.name, listing.model.version),
        Err(_) => Default::default(),
    };
    Model {
        name,
        version,
        sha256,
        fault,
    }
}

/// A bundle of the store that gives its golden vectors on this machine.
fn proved(root: &Path, digest: &str) -> Result<Pipeline, StoreError> {
    let pipeline = loaded(root, digest)?;
    verify::prove(&pipeline).map_err(|error| StoreError::Check(error.to_string()))?;
    Ok(pipeline)
}

fn loaded(root: &Path, digest: &str) -> Result<Pipeline, StoreError> {
    let refused = |message: String| StoreError::Check(message);
    let bundle =
        Bundle::open(&root.join(slot(digest))).map_err(|error| refused(error.to_string()))?;
    Pipeline::new(bundle, None).map_err(|error| refused(error.to_string()))
}

/// Whether the lock could be had in time.
fn held(lock: &File) -> io::Result<bool> {
    let start = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if start.elapsed() > PATIENCE => return Ok(false),
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn service(root: &Path, site: Site) -> Result<Service, DeviceError> {
    let path = root.join(SERVICE);
    match fs::read_to_string(&path) {
        Ok(text) => match toml::from_str(&text) {
            Ok(service) if site == Site::Here => Ok(service),
            // Commands of a mounted system are none of this machine's.
            Ok(_) => Ok(Service::default()),
            Err(error) => Err(DeviceError::File {
                path: path.display().to_string(),
                message: error.to_string(),
            }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Service::default()),
        Err(error) => Err(file(&path)(error)),
    }
}

fn uptime() -> Option<u64> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    Some(seconds as u64)
}

fn temperature() -> Option<f32> {
    let text = fs::read_to_string("/sys/class/thermal/thermal_zone0/temp").ok()?;
    let thousandths: f32 = text.trim().parse().ok()?;
    Some(thousandths / 1000.0)
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> DeviceError + use<'_> {
    move |error| DeviceError::File {
        path: path.display().to_string(),
        message: error.to_string(),
    }
}
