//! `numclip keygen` and `numclip sign`.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use numclip::package::Package;
use numclip::signature::{SecretKey, Strength, Term, sign_package, time};

use super::packages::signature_path;
use crate::exit::{Exit, UsageError};

const PASSPHRASE: &str = "NUMCLIP_PASSPHRASE";

/// Make a pair of keys: NAME.key to sign with, NAME.pub for the devices.
///
/// The files are minisign's. The secret key is encrypted with a passphrase,
/// and never overwritten.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  numclip keygen release
  numclip keygen release --expires 2y
  scp release.pub device:/var/lib/numclip/trust.d/

Rotation: put the new .pub beside the old one on every device, sign with the new
key, and write the old key's number into trust.d/revoked when it must go.")]
pub struct KeygenArgs {
    /// Path of the keys, without extension.
    name: PathBuf,
    #[command(flatten)]
    passphrase: PassphraseArgs,
    /// Leave the secret key unencrypted.
    #[arg(long, conflicts_with = "passphrase_file")]
    no_passphrase: bool,
    /// Until when devices trust the key: a day (2027-01-31), a time
    /// (2027-01-31T12:00:00Z), or a span from now (90d, 2y). It stands in the
    /// comment of NAME.pub.
    #[arg(long, value_name = "WHEN", value_parser = until)]
    expires: Option<Timestamp>,
}

/// Sign a package; writes PACKAGE.minisig, which `minisign -V` verifies too.
///
/// The time is signed as well: a device whose clock is more than a day behind it
/// refuses the package until the clock is set.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  numclip sign gauge-0.1.0.numclip --key release.key
  NUMCLIP_PASSPHRASE=… numclip sign gauge-0.1.0.numclip --key release.key
  numclip sign gauge-0.1.0.numclip --key release.key --expires 90d
  minisign -Vm gauge-0.1.0.numclip -p release.pub")]
pub struct SignArgs {
    /// The package.
    package: PathBuf,
    /// Secret key.
    #[arg(short, long, value_name = "FILE")]
    key: PathBuf,
    /// Until when devices take the package: a day (2027-01-31), a time
    /// (2027-01-31T12:00:00Z), or a span from now (90d, 2y). What they serve
    /// already they go on to serve.
    #[arg(long, value_name = "WHEN", value_parser = until)]
    expires: Option<Timestamp>,
    #[command(flatten)]
    passphrase: PassphraseArgs,
}

#[derive(clap::Args)]
struct PassphraseArgs {
    /// Read the passphrase from the first line of this file rather than from
    /// NUMCLIP_PASSPHRASE or the terminal.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// Runs `numclip keygen`.
///
/// # Errors
/// When a file exists or cannot be written, or there is no passphrase.
pub fn keygen(args: &KeygenArgs) -> Result<Exit> {
    let [secret, public] = ["key", "pub"].map(|extension| with_extension(&args.name, extension));
    for path in [&secret, &public] {
        if path.symlink_metadata().is_ok() {
            bail!("{} exists; keys are never overwritten", path.display());
        }
    }
    let passphrase = match args.no_passphrase {
        true => None,
        false => Some(args.passphrase.read(true)?),
    };
    let key = SecretKey::generate()?;
    let text = key.to_text(passphrase.as_deref(), Strength::SENSITIVE)?;
    write_new(&secret, &text, 0o600)?;
    let public_key = key.public().until(args.expires);
    write_new(&public, &public_key.to_string(), 0o644)?;
    let id = public_key.id();
    writeln!(
        anstream::stdout(),
        "{id}: {}, {}",
        secret.display(),
        public.display()
    )?;
    Ok(Exit::Done)
}

/// Runs `numclip sign`.
///
/// # Errors
/// When the package is damaged or the key cannot be opened.
pub fn sign(args: &SignArgs) -> Result<Exit> {
    let package = Package::open(&args.package)?;
    let text = fs::read_to_string(&args.key).with_context(|| args.key.display().to_string())?;
    let passphrase = match SecretKey::is_encrypted(&text) {
        true => Some(args.passphrase.read(false)?),
        false => None,
    };
    let key = SecretKey::parse(&text, passphrase.as_deref())
        .with_context(|| args.key.display().to_string())?;
    let term = Term {
        signed: Timestamp::now(),
        expires: args.expires,
    };
    let signature = sign_package(&package, &key, term)?;
    let path = signature_path(&args.package);
    fs::write(&path, signature.to_string()).with_context(|| path.display().to_string())?;
    writeln!(
        anstream::stdout(),
        "{}: {}",
        path.display(),
        signature.trusted_comment()
    )?;
    Ok(Exit::Done)
}

/// A time to come.
fn until(text: &str) -> Result<Timestamp, String> {
    let now = Timestamp::now();
    let after = || {
        let span: Span = text.parse().ok()?;
        let end = now.to_zoned(TimeZone::UTC).checked_add(span);
        end.ok().map(|end| end.timestamp())
    };
    match time(text).or_else(after) {
        Some(end) if end > now => Ok(end),
        Some(_) => Err("is over already".into()),
        None => Err("expected a day (2027-01-31), a time or a span (90d, 2y)".into()),
    }
}

impl PassphraseArgs {
    fn read(&self, is_new: bool) -> Result<String> {
        let passphrase = match (&self.passphrase_file, std::env::var(PASSPHRASE)) {
            (Some(path), _) => {
                let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
                text.lines().next().unwrap_or("").to_owned()
            }
            (None, Ok(passphrase)) => passphrase,
            (None, Err(_)) => ask(is_new)?,
        };
        match passphrase.is_empty() && is_new {
            true => bail!("an empty passphrase protects nothing; --no-passphrase says so"),
            false => Ok(passphrase),
        }
    }
}

fn ask(is_new: bool) -> Result<String> {
    let terminal = console::Term::stderr();
    if !console::user_attended_stderr() {
        let message =
            format!("no terminal to ask for the passphrase; use --passphrase-file or {PASSPHRASE}");
        return Err(UsageError(message).into());
    }
    let ask = |prompt: &str| -> io::Result<String> {
        terminal.write_str(prompt)?;
        terminal.read_secure_line()
    };
    let passphrase = ask("Passphrase: ")?;
    if is_new && ask("The same again: ")? != passphrase {
        bail!("the two passphrases differ");
    }
    Ok(passphrase)
}

/// `path.extension`, dots in the name kept.
fn with_extension(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

/// Writes a file that must not exist, whole or not at all.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(mode);
    }
    #[cfg(not(unix))]
    let _ = mode;
    let context = || path.display().to_string();
    let mut file = options.open(path).with_context(context)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all());
    if written.is_err() {
        // Half a key is worse than none.
        let _ = fs::remove_file(path);
    }
    written.with_context(context)
}
