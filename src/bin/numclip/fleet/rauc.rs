//! `numclip export-rauc`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use numclip::flash::STORE;
use numclip::fleet::rauc::{RaucKeys, RaucSettings, Way, lay_out, seal};
use numclip::package::Package;

use crate::exit::Exit;
use crate::flash::read_signature;

/// Make a RAUC bundle of a signed package, for devices that RAUC updates.
///
/// RAUC brings the package, and the device's numclip installs it with all of
/// its checks. With --slot, RAUC writes an image of the model into a slot
/// instead. Needs RAUC's own tool and squashfs-tools (Debian: apt install rauc
/// squashfs-tools).
#[derive(clap::Args)]
#[command(after_help = "Examples:
  numclip export-rauc gauge-1.0.0.numclip --compatible my-board --cert cert.pem --key key.pem
  numclip export-rauc gauge-1.0.0.numclip --compatible my-board --cert cert.pem --key key.pem --slot model
  numclip export-rauc gauge-1.0.0.numclip --compatible my-board --folder gauge.rauc   for a build system

The slot of an image is mounted read-only: numclip run --model /run/media/model")]
pub struct Args {
    /// The package; its signature lies beside it (PACKAGE.minisig).
    package: PathBuf,
    /// The bundle; PACKAGE.raucb unless given.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The system that it is for, as in its system.conf.
    #[arg(long, value_name = "NAME")]
    compatible: String,
    /// Certificate that RAUC on the device trusts.
    #[arg(
        long,
        value_name = "FILE",
        requires = "key",
        required_unless_present = "folder"
    )]
    cert: Option<PathBuf>,
    /// Secret key of the certificate.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Write an image into a slot of this class, rather than install the package.
    #[arg(long, value_name = "CLASS", conflicts_with = "store")]
    slot: Option<String>,
    /// Folder of the models on the device.
    #[arg(long, value_name = "DIR", default_value = STORE)]
    store: String,
    /// Only write the files that RAUC makes a bundle of into this new folder.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["cert", "output"])]
    folder: Option<PathBuf>,
    /// Signature, if it lies elsewhere.
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// When the package cannot be used, a tool is missing or fails.
pub fn run(args: &Args) -> Result<Exit> {
    let package = Package::open(&args.package)?;
    let signature = read_signature(&args.package, args.signature.as_deref())?;
    let settings = RaucSettings {
        compatible: args.compatible.clone(),
        way: match &args.slot {
            Some(class) => Way::Slot(class.clone()),
            None => Way::Handler {
                store: args.store.clone(),
            },
        },
    };
    if let Some(folder) = &args.folder {
        if folder.exists() {
            bail!("{} exists; name a new folder", folder.display());
        }
        lay_out(&package, &signature, &settings, folder)?;
        writeln!(anstream::stdout(), "{}", folder.display())?;
        return Ok(Exit::Done);
    }
    let (Some(certificate), Some(key)) = (args.cert.clone(), args.key.clone()) else {
        bail!("give --cert and --key, or --folder");
    };
    let out = args.output.clone();
    let out = out.unwrap_or_else(|| args.package.with_extension("raucb"));
    let place = tempfile::tempdir().context("temporary folder")?;
    let folder = place.path().join("bundle");
    lay_out(&package, &signature, &settings, &folder)?;
    seal(&folder, &RaucKeys { certificate, key }, &out)?;
    writeln!(anstream::stdout(), "{}", out.display())?;
    Ok(Exit::Done)
}
