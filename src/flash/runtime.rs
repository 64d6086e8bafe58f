//! The program itself onto a device: binary, unit, user, settings.
//!
//! ```text
//! /usr/local/bin/numclip           the program; numclip.before is the one before
//! /etc/systemd/system/             the units, hardened: the camera's, the agent's
//! /etc/sysusers.d/numclip.conf     the user it runs as
//! /etc/numclip/numclip.toml        settings, written once and then the owner's
//! /etc/numclip/agent               options of the agent; likewise
//! /var/lib/numclip/device.toml     how the service is told and watched; likewise
//! ```

mod program;
mod swap;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use thiserror::Error;

use super::device::{Device, DeviceError, SERVICE, STORE, Site, TRUST, root_around};
use super::disk::{Disk as _, Folder};
use super::store::{StoreError, state, write_file};
use super::wire::Delivery;
use crate::bundle::sha256;
use crate::signature::PublicKey;
use swap::{CURRENT, NEXT, replace, restore};

pub use program::Processor;

const UNITS: [&str; 2] = [
    include_str!("runtime/numclip.service"),
    include_str!("runtime/numclip-agent.service"),
];
const USER: &str = include_str!("runtime/numclip.conf");
const SETTINGS: &str = include_str!("runtime/numclip.toml");
const AGENT: &str = include_str!("runtime/agent");
const WATCHED: &str = include_str!("runtime/device.toml");

/// Where the program lies, from the root of the system.
const BIN: &str = "usr/local/bin";
/// Where a package manager puts it.
const PACKAGED: &str = "usr/bin/numclip";
const UNIT_PATHS: [&str; 2] = [
    "etc/systemd/system/numclip.service",
    "etc/systemd/system/numclip-agent.service",
];
const ENABLED_PATH: &str = "etc/systemd/system/multi-user.target.wants/numclip.service";
const USER_PATH: &str = "etc/sysusers.d/numclip.conf";
const SETTINGS_PATH: &str = "etc/numclip/numclip.toml";
const AGENT_PATH: &str = "etc/numclip/agent";

/// Why a program is not installed. The one that was there still runs.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// Something else than a program.
    #[error("not a program for Linux; `cargo build --release` makes one")]
    Foreign,
    /// It is for another processor.
    #[error("the program is for {program}, the device is {device}; build it for that")]
    Processor {
        /// What the program is for.
        program: Processor,
        /// What the device has.
        device: String,
    },
    /// The store lies where no system is.
    #[error(
        "{path}: no system around this store; a program belongs to one, as in dir:///MOUNT{STORE}"
    )]
    NoSystem {
        /// The store.
        path: String,
    },
    /// A package manager looks after the program.
    #[error("/{PACKAGED} is there already, from a package; update that package instead")]
    Packaged,
    /// It does not run there.
    #[error("the program does not run there: {0}")]
    Broken(String),
    /// The service is not well with it.
    #[error("{message}; {way_back}")]
    Unhealthy {
        /// What failed.
        message: String,
        /// What was done about it.
        way_back: &'static str,
    },
    /// The store cannot be had, or a file not be written.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl From<StoreError> for RuntimeError {
    fn from(error: StoreError) -> Self {
        Self::Device(error.into())
    }
}

/// Installs `program` on the system to which the store at `store` belongs: the
/// machine's own, or one that is mounted. The new program is run once before
/// it takes the place of the old one; then the service starts again and is
/// watched, if `site` says that it runs here. If it is not well, the old
/// program comes back. A device that trusts nobody yet trusts `key` from then
/// on.
///
/// # Errors
/// [`RuntimeError`].
pub fn install_runtime(
    store: &Path,
    program: &[u8],
    key: Option<&PublicKey>,
    site: Site,
) -> Result<Delivery, RuntimeError> {
    let processor = Processor::of(program).ok_or(RuntimeError::Foreign)?;
    let system = System::around(store)?;
    system.refuse_other(processor)?;
    if system.at(PACKAGED).exists() {
        return Err(RuntimeError::Packaged);
    }
    make_folder(store)?;
    system.write_once(SETTINGS_PATH, SETTINGS)?;
    system.write_once(AGENT_PATH, AGENT)?;
    if system.has_systemd() && !store.join(SERVICE).exists() {
        put(&store.join(SERVICE), WATCHED)?;
    }
    if let Some(key) = key {
        trust(store, key)?;
    }
    let device = Device::open_on(store, site)?;
    let units_before = UNIT_PATHS.map(|path| fs::read_to_string(system.at(path)).ok());
    let is_new = system.exchange(program)?;
    let is_other = system.place_units()?;
    if !is_new && !is_other {
        return Ok(Delivery::AlreadyThere);
    }
    // With no model there is no service that could be well.
    if state(&Folder::new(store))?.serving.is_none() {
        return Ok(Delivery::Installed);
    }
    let Err(message) = device.service().start_again() else {
        return Ok(Delivery::Installed);
    };
    let way_back = system.go_back(is_new, &units_before, &device)?;
    Err(RuntimeError::Unhealthy { message, way_back })
}

/// Has a new device trust its first key; one that trusts any is left alone.
fn trust(store: &Path, key: &PublicKey) -> Result<(), RuntimeError> {
    let folder = store.join(TRUST);
    let keys = fs::read_dir(&folder).into_iter().flatten().flatten();
    match keys
        .map(|key| key.path())
        .any(|path| path.extension().is_some())
    {
        true => Ok(()),
        false => put(&folder.join(format!("{}.pub", key.id())), &key.to_string()),
    }
}

/// The system that a store belongs to.
struct System {
    root: PathBuf,
}

impl System {
    fn around(store: &Path) -> Result<Self, RuntimeError> {
        match root_around(store) {
            Some(root) => Ok(Self { root }),
            None => Err(RuntimeError::NoSystem {
                path: store.display().to_string(),
            }),
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn is_this(&self) -> bool {
        self.root == Path::new("/")
    }

    fn has_systemd(&self) -> bool {
        match self.is_this() {
            true => Path::new("/run/systemd/system").exists(),
            false => self.at("etc/systemd").exists(),
        }
    }

    /// The shell of a mounted system tells what it runs on.
    fn refuse_other(&self, program: Processor) -> Result<(), RuntimeError> {
        let shell = fs::read(self.at("bin/sh")).ok();
        let device = match self.is_this() {
            true => Processor::here(),
            false => shell.as_deref().and_then(Processor::of),
        };
        match device {
            Some(device) if !program.may_run_on(device) => Err(RuntimeError::Processor {
                program,
                device: device.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Puts the program in place; `false` when it is there already.
    fn exchange(&self, program: &[u8]) -> Result<bool, RuntimeError> {
        let bin = self.at(BIN);
        make_folder(&bin)?;
        let mut folder = Folder::new(&bin);
        let old = folder.read(CURRENT).ok();
        if old.is_some_and(|old| sha256(&old) == sha256(program)) {
            return Ok(false);
        }
        let next = bin.join(NEXT);
        let runs_here = Processor::of(program) == Processor::here();
        let mut failure = None;
        let mut check = || match runs_here.then(|| runs(&next)) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(message)) => {
                failure = Some(message.clone());
                Err(StoreError::Check(message))
            }
        };
        let replaced = replace(&mut folder, program, &mut check);
        match failure {
            Some(message) => Err(RuntimeError::Broken(message)),
            None => Ok(replaced.map(|()| true)?),
        }
    }

    /// Writes the units and makes them known; `false` when nothing changed.
    fn place_units(&self) -> Result<bool, RuntimeError> {
        if !self.has_systemd() {
            return Ok(false);
        }
        let mut changed = self.write(USER_PATH, USER)?;
        for (path, unit) in UNIT_PATHS.iter().zip(UNITS) {
            let unit = unit.replace("/usr/bin/numclip", &format!("/{BIN}/{CURRENT}"));
            changed |= self.write(path, &unit)?;
        }
        self.make_known()?;
        Ok(changed)
    }

    fn make_known(&self) -> Result<(), RuntimeError> {
        if self.is_this() {
            run("systemd-sysusers", &[&format!("/{USER_PATH}")])?;
            run("systemctl", &["daemon-reload"])?;
            return run("systemctl", &["enable", "--quiet", "numclip"]);
        }
        let link = self.at(ENABLED_PATH);
        if link.symlink_metadata().is_ok() {
            return Ok(());
        }
        make_folder(link.parent().unwrap_or(&self.root))?;
        let linked = std::os::unix::fs::symlink("../numclip.service", &link);
        Ok(linked.map_err(|error| file_error(&link, &error))?)
    }

    fn go_back(
        &self,
        is_new: bool,
        units: &[Option<String>; 2],
        device: &Device,
    ) -> Result<&'static str, RuntimeError> {
        for (path, unit) in UNIT_PATHS.iter().zip(units) {
            if let Some(unit) = unit {
                self.write(path, unit)?;
                self.make_known()?;
            }
        }
        if is_new && !restore(&mut Folder::new(self.at(BIN)))? {
            return Ok("no other program is there to go back to");
        }
        Ok(match device.service().start_again() {
            Ok(()) => "the program before it runs again",
            Err(_) => "the program before it is back, but the service is not well with it either",
        })
    }

    /// Writes a file; `false` when it says that already.
    fn write(&self, path: &str, text: &str) -> Result<bool, RuntimeError> {
        let path = self.at(path);
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(false);
        }
        put(&path, text)?;
        Ok(true)
    }

    fn write_once(&self, path: &str, text: &str) -> Result<(), RuntimeError> {
        match self.at(path).exists() {
            true => Ok(()),
            false => put(&self.at(path), text),
        }
    }
}

/// Writes a file by one rename.
fn put(path: &Path, text: &str) -> Result<(), RuntimeError> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(file_error(path, &"not a file").into());
    };
    make_folder(folder)?;
    let name = name.to_string_lossy();
    let (mut disk, next) = (Folder::new(folder), format!(".{name}.new"));
    write_file(&mut disk, &next, text.as_bytes())?;
    let written = disk
        .sync(&next)
        .and_then(|()| disk.rename(&next, &name))
        .and_then(|()| disk.sync_folder(""));
    Ok(written.map_err(|error| file_error(path, &error))?)
}

fn make_folder(path: &Path) -> Result<(), RuntimeError> {
    Ok(fs::create_dir_all(path).map_err(|error| file_error(path, &error))?)
}

/// Whether a program starts and says that it is numclip.
fn runs(program: &Path) -> Result<(), String> {
    let output = output_of(program).map_err(|error| error.to_string())?;
    let words = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    match output.status.success() && words.starts_with("numclip ") {
        true => Ok(()),
        false => Err(format!("{} ({})", words.trim(), output.status)),
    }
}

/// A process that another thread starts right now may still hold the file as
/// it was written: that passes.
fn output_of(program: &Path) -> io::Result<Output> {
    for _ in 0..100 {
        match Command::new(program).arg("--version").output() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
    Err(io::ErrorKind::ExecutableFileBusy.into())
}

fn run(program: &str, arguments: &[&str]) -> Result<(), RuntimeError> {
    let words = format!("{program} {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).output();
    let message = match output {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    Err(file_error(Path::new(&words), &message).into())
}

fn file_error(path: &Path, message: &dyn std::fmt::Display) -> DeviceError {
    DeviceError::File {
        path: path.display().to_string(),
        message: message.to_string(),
    }
}
