//! Packages for RAUC, an update system of its own: <https://rauc.io>.
//!
//! A RAUC bundle is a signed squashfs with `manifest.raucm` and files. Two
//! kinds are made. With a *handler*, RAUC brings the package and the device's
//! numclip installs it in its store, with all of its checks. With a *slot*,
//! RAUC writes a read-only image of the model into a partition of its own and
//! knows nothing more about it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use thiserror::Error;

use crate::bundle::write_synced;
use crate::package::{self, Package, PackageError};
use crate::signature::Signature;

/// Name of RAUC's manifest.
const MANIFEST: &str = "manifest.raucm";
/// Name of the script that RAUC runs.
const HANDLER: &str = "install.sh";

/// What goes into a RAUC bundle beside the package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaucSettings {
    /// The system that it is for, as its `system.conf` says.
    pub compatible: String,
    /// How the package gets onto the device.
    pub way: Way,
}

/// How a package gets onto the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// The device's numclip installs it in this store.
    Handler {
        /// Folder of the models on the device.
        store: String,
    },
    /// RAUC writes an image into a slot of this class.
    Slot(String),
}

/// With what RAUC signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaucKeys {
    /// Certificate (PEM).
    pub certificate: PathBuf,
    /// Its secret key (PEM), or a PKCS#11 address.
    pub key: PathBuf,
}

/// Why no RAUC bundle is made.
#[derive(Debug, Error)]
pub enum RaucError {
    /// A setting that RAUC's manifest cannot hold.
    #[error("{field}: {text:?} has control characters or is empty")]
    Setting {
        /// Which.
        field: &'static str,
        /// What was given.
        text: String,
    },
    /// A program is not there.
    #[error("{program} is not installed ({hint})")]
    Missing {
        /// Its name.
        program: &'static str,
        /// Where it comes from.
        hint: &'static str,
    },
    /// A program failed.
    #[error("{program}: {message}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// Its last words.
        message: String,
    },
    /// A file cannot be written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// What failed.
        error: io::Error,
    },
    /// The package is at fault.
    #[error(transparent)]
    Package(#[from] PackageError),
}

/// Writes what RAUC makes a bundle of into the new folder `directory`.
///
/// # Errors
/// [`RaucError`].
pub fn lay_out(
    package: &Package,
    signature: &Signature,
    settings: &RaucSettings,
    directory: &Path,
) -> Result<(), RaucError> {
    let index = package.header().index();
    let name = format!("{}-{}", index.name, index.version);
    let contents = match &settings.way {
        Way::Handler { store } => {
            checked("store", store)?;
            format!("[handler]\nfilename={HANDLER}\n")
        }
        Way::Slot(class) => {
            let class = checked("slot", class)?;
            format!("[image.{class}]\nfilename={name}.squashfs\n")
        }
    };
    let compatible = checked("compatible", &settings.compatible)?;
    let manifest = format!(
        "[update]\ncompatible={compatible}\nversion={}\ndescription={} {}\n\n[bundle]\nformat=verity\n\n{contents}",
        index.version, index.name, index.version
    );
    fs::create_dir(directory).map_err(at(directory))?;
    put(&directory.join(MANIFEST), manifest.as_bytes())?;
    match &settings.way {
        Way::Handler { store } => {
            let copy = directory.join(format!("{name}.numclip"));
            fs::copy(package.path(), &copy).map_err(at(&copy))?;
            Package::open(&copy)?
                .files()
                .try_for_each(|(_, file)| file.map(drop))?;
            let beside = directory.join(format!("{name}.numclip.minisig"));
            put(&beside, signature.to_string().as_bytes())?;
            script(&directory.join(HANDLER), &name, store)
        }
        Way::Slot(_) => image(package, directory, &name),
    }
}

/// Makes the signed RAUC bundle `out` of a folder that was [laid out](lay_out).
/// It appears whole or not at all.
///
/// # Errors
/// [`RaucError`].
pub fn seal(directory: &Path, keys: &RaucKeys, out: &Path) -> Result<(), RaucError> {
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let staged = tempfile::tempdir_in(folder).map_err(at(folder))?;
    let made = staged.path().join("bundle.raucb");
    let mut command = Command::new("rauc");
    command.arg("bundle");
    command.arg(joined("--cert=", &keys.certificate));
    command.arg(joined("--key=", &keys.key));
    command.arg(directory).arg(&made);
    run("rauc", "Debian: apt install rauc squashfs-tools", command)?;
    fs::File::open(&made)
        .and_then(|file| file.sync_all())
        .map_err(at(&made))?;
    fs::rename(&made, out).map_err(at(out))
}

/// The script that RAUC runs on the device: the package is on the mounted
/// bundle.
fn script(path: &Path, name: &str, store: &str) -> Result<(), RaucError> {
    let store = store.replace('\'', r"'\''");
    let text = format!(
        "#!/bin/sh\nset -e\nexec numclip flash \"$RAUC_BUNDLE_MOUNT_POINT/{name}.numclip\" 'dir://{store}'\n"
    );
    put(path, text.as_bytes())?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(at(path))?;
    }
    Ok(())
}

/// A squashfs of the bundle: the same bytes every time.
fn image(package: &Package, directory: &Path, name: &str) -> Result<(), RaucError> {
    let place = tempfile::tempdir().map_err(at(directory))?;
    let unpacked = place.path().join("model");
    package::unpack(package, &unpacked)?;
    let mut command = Command::new("mksquashfs");
    command
        .arg(&unpacked)
        .arg(directory.join(format!("{name}.squashfs")));
    command.args(["-all-root", "-noappend", "-no-progress"]);
    command.args(["-mkfs-time", "0", "-all-time", "0"]);
    run("mksquashfs", "Debian: apt install squashfs-tools", command)
}

fn run(program: &'static str, hint: &'static str, mut command: Command) -> Result<(), RaucError> {
    let failed = |message: String| RaucError::Failed { program, message };
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => RaucError::Missing { program, hint },
        _ => failed(error.to_string()),
    })?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let words = String::from_utf8_lossy(&output.stderr);
            Err(failed(words.trim().replace('\n', "; ")))
        }
    }
}

/// A manifest has a line for each value, and so has a shell script.
fn checked<'a>(field: &'static str, text: &'a str) -> Result<&'a str, RaucError> {
    match text.is_empty() || text.contains(|c: char| c.is_control() || "[]".contains(c)) {
        false => Ok(text),
        true => Err(RaucError::Setting {
            field,
            text: text.into(),
        }),
    }
}

fn joined(option: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(option);
    text.push(path);
    text
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), RaucError> {
    write_synced(path, bytes).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> RaucError + use<> {
    let path = path.display().to_string();
    move |error| RaucError::Io { path, error }
}
