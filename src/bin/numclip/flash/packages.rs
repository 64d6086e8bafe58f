//! `numclip pack`, `numclip unpack`, and `numclip verify` of a package.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use numclip::package::{self, Package};
use numclip::signature::{Signature, Trust, check_package};
use serde_json::json;

use crate::exit::Exit;
use crate::table::{aligned, columns};

/// Make one file of a bundle: compressed, and the same bytes every time.
///
/// Holds the manifest and the files it lists, nothing that lies beside them.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  numclip pack models/gauge                 writes gauge-0.1.0.numclip
  numclip pack models/gauge -o gauge.numclip && numclip sign gauge.numclip --key release.key")]
pub struct PackArgs {
    /// Folder of the model bundle.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// The package; NAME-VERSION.numclip unless given.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Unpack a package into a new folder, whole or not at all.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  numclip unpack gauge-0.1.0.numclip -o gauge")]
pub struct UnpackArgs {
    /// The package.
    package: PathBuf,
    /// The new folder.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

/// Runs `numclip pack`.
///
/// # Errors
/// When the bundle cannot be used or the package cannot be written.
pub fn pack(args: &PackArgs) -> Result<Exit> {
    let bytes = package::pack(&args.model)?;
    let path = match &args.output {
        Some(path) => path.clone(),
        None => {
            let header = package::Header::read(&mut bytes.as_slice())?;
            let index = header.index();
            format!("{}-{}.numclip", index.name, index.version).into()
        }
    };
    let package = package::write(&path, &bytes)?;
    let unpacked: u64 = package
        .header()
        .index()
        .files
        .iter()
        .map(|file| file.size)
        .sum();
    writeln!(
        anstream::stdout(),
        "{}: {} of {}",
        path.display(),
        size(bytes.len() as u64),
        size(unpacked)
    )?;
    Ok(Exit::Done)
}

/// Runs `numclip unpack`.
///
/// # Errors
/// When the package is at fault or the folder cannot be made.
pub fn unpack(args: &UnpackArgs) -> Result<Exit> {
    let bundle = package::unpack(&Package::open(&args.package)?, &args.output)?;
    let model = &bundle.manifest().model;
    let folder = args.output.display();
    writeln!(
        anstream::stdout(),
        "{folder}: {} {}",
        model.name,
        model.version
    )?;
    Ok(Exit::Done)
}

/// `numclip verify` of a package: its files, and its signature if there are
/// keys to trust.
///
/// # Errors
/// When anything differs.
pub fn verify_package(path: &Path, trust: Option<&Path>, as_json: bool) -> Result<Exit> {
    let package = Package::open(path)?;
    let mut rows = Vec::new();
    for (entry, bytes) in package.files() {
        bytes?;
        rows.push(
            [&entry.name, &size(entry.size), &entry.sha256]
                .map(String::clone)
                .to_vec(),
        );
    }
    let signed = match trust {
        None => None,
        Some(trust) => {
            let signature = read_signature(path, None)?;
            let trust = Trust::read(trust)?;
            Some(
                check_package(&package, &signature, &trust)?
                    .id()
                    .to_string(),
            )
        }
    };
    let index = package.header().index();
    let text = if as_json {
        let report = json!({"passed": true, "signed_by": signed, "header_sha256": package.header().sha256(), "index": index});
        format!("{report}\n")
    } else {
        let signed = signed.map_or("not checked; --trust does".into(), |key| {
            format!("key {key}")
        });
        let about = aligned(&[
            ("model".into(), format!("{} {}", index.name, index.version)),
            ("sha256".into(), index.bundle_sha256().into()),
            ("signed by".into(), signed),
        ]);
        format!("{}\n{about}", columns(&rows))
    };
    anstream::stdout().lock().write_all(text.as_bytes())?;
    Ok(Exit::Done)
}

/// Where a package's signature lies unless told otherwise: beside it.
pub fn signature_path(package: &Path) -> PathBuf {
    let mut name = package.as_os_str().to_owned();
    name.push(".minisig");
    name.into()
}

/// Reads a package's signature.
///
/// # Errors
/// When there is none, or it is not one.
pub fn read_signature(package: &Path, path: Option<&Path>) -> Result<Signature> {
    let path = path.map_or_else(|| signature_path(package), Path::to_path_buf);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{}; `numclip sign` makes it", path.display()))?;
    text.parse::<Signature>()
        .with_context(|| path.display().to_string())
}

/// Bytes for a person to read.
fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
