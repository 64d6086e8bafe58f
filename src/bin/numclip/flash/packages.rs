//! `numclip pack`, `numclip unpack`, and `numclip verify` of a package.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use numclip::package::{self, Index, Package, ShadowBudget};
use numclip::signature::{Signature, Statement, Trust, check_package};
use serde_json::json;

use crate::exit::Exit;
use crate::table::{aligned, columns};

/// Make one file of a bundle: compressed, and the same bytes every time.
///
/// Holds the manifest and the files it lists, nothing that lies beside them.
#[derive(clap::Args)]
#[command(after_help = PACK_EXAMPLES)]
pub struct PackArgs {
    /// Folder of the model bundle.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// The package; NAME-VERSION.numclip unless given.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Leave the encoder out, for devices that have the same one already:
    /// kilobytes. Bins are kept in half precision, and one small golden
    /// picture is computed here.
    #[arg(long)]
    cartridge: bool,
    /// Have devices replay the pictures that they keep (`[keep]` in the
    /// settings of `run`) beside the model that serves, and refuse this one if
    /// its values differ by more than this on average, in the task's unit.
    #[arg(long, value_name = "DIFFERENCE")]
    shadow: Option<f32>,
    /// Pictures that must be compared at least.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 8,
        requires = "shadow",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    shadow_frames: u16,
}

const PACK_EXAMPLES: &str = "Examples:
  numclip pack models/gauge                 writes gauge-0.1.0.numclip
  numclip pack models/gauge --cartridge     writes gauge-0.1.0.cartridge.numclip
  numclip pack models/gauge --shadow 1.5    no more than 1.5 away from the model before it
  numclip pack models/gauge -o gauge.numclip && numclip sign gauge.numclip --key release.key";

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
    let (mut bytes, shift) = match args.cartridge {
        true => {
            let cartridge = package::cartridge(&args.model)?;
            (cartridge.bytes, Some(cartridge.shift))
        }
        false => (package::pack(&args.model)?, None),
    };
    if let Some(difference) = args.shadow {
        let frames = args.shadow_frames.into();
        bytes = package::limit(&bytes, ShadowBudget { difference, frames })?;
    }
    let header = package::Header::read(&mut bytes.as_slice())?;
    let index = header.index();
    let path = args.output.clone().unwrap_or_else(|| name(index).into());
    package::write(&path, &bytes)?;
    let unpacked: u64 = index.files.iter().map(|file| file.size).sum();
    let (packed, unpacked) = (size(bytes.len() as u64), size(unpacked));
    let mut text = format!("{}: {packed} of {unpacked}\n", path.display());
    for file in &index.requires {
        text += &format!("needs {} ({}) on the device\n", file.name, file.sha256);
    }
    if let Some(shift) = shift {
        text += &format!("half precision moves the golden values by {shift:.2e} at most\n");
    }
    anstream::stdout().write_all(text.as_bytes())?;
    Ok(Exit::Done)
}

/// What a package is called unless told otherwise.
fn name(index: &Index) -> String {
    let kind = match index.requires.is_empty() {
        true => "",
        false => ".cartridge",
    };
    format!("{}-{}{kind}.numclip", index.name, index.version)
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
            let trust = Trust::read(trust, Some(Timestamp::now()))?;
            let key = check_package(&package, &signature, &trust)?.id();
            let statement: Statement = signature.trusted_comment().parse()?;
            Some((key, statement.term))
        }
    };
    let index = package.header().index();
    let text = if as_json {
        let key = signed.map(|(key, _)| key.to_string());
        let report = json!({"passed": true, "signed_by": key, "header_sha256": package.header().sha256(), "index": index});
        format!("{report}\n")
    } else {
        let signed = match signed {
            None => "not checked; --trust does".into(),
            Some((key, None)) => format!("key {key}"),
            Some((key, Some(term))) => format!("key {key}, {term}"),
        };
        let mut about = vec![
            ("model".into(), format!("{} {}", index.name, index.version)),
            ("sha256".into(), index.bundle_sha256().into()),
            ("signed by".into(), signed),
        ];
        for file in &index.requires {
            about.push(("needs".into(), format!("{} ({})", file.name, file.sha256)));
        }
        if let Some(ShadowBudget { difference, frames }) = index.shadow {
            let words = format!("within {difference} of the model before, on {frames} pictures");
            about.push(("shadow".into(), words));
        }
        format!("{}\n{}", columns(&rows), aligned(&about))
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
