//! `numclip push` and `numclip pull`.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use numclip::flash::Progress;
use numclip::fleet::registry::{Reference, Registry};
use numclip::package::Package;
use numclip::signature::Trust;
use serde_json::json;

use super::access::AccessArgs;
use crate::exit::Exit;
use crate::flash::{read_signature, signature_path};
use crate::table::aligned;

/// Store a signed package in an OCI registry, under a tag.
///
/// Any container registry will do. What it has already is not sent again, and
/// the tag moves only when all of the package is there. Prints the digest, by
/// which the package can be had for ever.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  numclip push gauge-1.0.0.numclip registry.local/models/gauge:1.0.0
  numclip push gauge-1.0.0.numclip localhost:5000/gauge:stable --json
  numclip push gauge-1.0.0.numclip ghcr.io/me/gauge:1.0.0 --user me --password-file token")]
pub struct PushArgs {
    /// The package; its signature lies beside it (PACKAGE.minisig).
    package: PathBuf,
    /// REGISTRY/REPOSITORY:TAG.
    #[arg(value_name = "REFERENCE")]
    reference: Reference,
    /// Signature, if it lies elsewhere.
    #[arg(long, value_name = "FILE", conflicts_with = "unsigned")]
    signature: Option<PathBuf>,
    /// Store it without a signature; no device will take it so.
    #[arg(long)]
    unsigned: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: AccessArgs,
}

/// Fetch a package from an OCI registry, with its signature.
///
/// Every part is held against its digest. The file appears whole or not at all.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  numclip pull registry.local/models/gauge:1.0.0 --out gauge.numclip --trust release.pub
  numclip pull registry.local/models/gauge@sha256:… --out gauge.numclip")]
pub struct PullArgs {
    /// REGISTRY/REPOSITORY:TAG, or …@sha256:DIGEST for always the same.
    #[arg(value_name = "REFERENCE")]
    reference: Reference,
    /// The package; its signature is put beside it (FILE.minisig).
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Fetch only what one of these keys signed.
    #[arg(long, value_name = "DIR|FILE")]
    trust: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: AccessArgs,
}

/// Runs `numclip push`.
///
/// # Errors
/// When the package cannot be used or the registry does not take it.
pub fn push(args: &PushArgs) -> Result<Exit> {
    let package = Package::open(&args.package)?;
    let signature = match args.unsigned {
        true => None,
        false => Some(read_signature(&args.package, args.signature.as_deref())?),
    };
    let registry = Registry::new(&args.reference, &args.access.access()?)?;
    let bar = bar(args.json);
    let digest = registry.push(&package, signature.as_ref(), &mut |step| show(&bar, step))?;
    bar.finish_and_clear();
    let pinned = args.reference.with(digest);
    report(args.json, &package, &pinned, signature.is_some(), None)
}

/// Runs `numclip pull`.
///
/// # Errors
/// When the registry has no such package, what came is not it, or its
/// signature is not trusted.
pub fn pull(args: &PullArgs) -> Result<Exit> {
    let now = Some(Timestamp::now());
    let trust = args.trust.as_deref().map(|path| Trust::read(path, now));
    let trust = trust.transpose()?;
    if args.out.is_dir() {
        bail!("{} is a folder; name a file", args.out.display());
    }
    let registry = Registry::new(&args.reference, &args.access.access()?)?;
    let offer = registry.offer()?;
    let beside = signature_path(&args.out);
    let bar = bar(args.json);
    let pulled = offer.fetch(&args.out, &beside, trust.as_ref(), &mut |step| {
        show(&bar, step)
    })?;
    bar.finish_and_clear();
    let pinned = args.reference.with(pulled.digest);
    report(
        args.json,
        &pulled.package,
        &pinned,
        pulled.signed,
        Some(&args.out),
    )
}

fn report(
    as_json: bool,
    package: &Package,
    pinned: &Reference,
    signed: bool,
    out: Option<&Path>,
) -> Result<Exit> {
    let index = package.header().index();
    let sha256 = index.bundle_sha256();
    let text = if as_json {
        let line = json!({"reference": pinned.to_string(), "name": index.name,
            "version": index.version, "sha256": sha256, "signed": signed, "file": out});
        format!("{line}\n")
    } else {
        let mut lines = vec![
            ("model".into(), format!("{} {}", index.name, index.version)),
            ("sha256".into(), sha256.into()),
            ("pinned".into(), pinned.to_string()),
            ("signed".into(), if signed { "yes" } else { "no" }.into()),
        ];
        lines.extend(out.map(|path| ("file".into(), path.display().to_string())));
        aligned(&lines)
    };
    anstream::stdout().lock().write_all(text.as_bytes())?;
    Ok(Exit::Done)
}

fn bar(quiet: bool) -> ProgressBar {
    let template = "{bar:30} {binary_bytes:>10}/{binary_total_bytes:<10} {binary_bytes_per_sec}";
    // The template is constant; a plain bar would do.
    let style = ProgressStyle::with_template(template);
    let bar = ProgressBar::new(0);
    if quiet || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn show(bar: &ProgressBar, step: Progress) {
    match step {
        Progress::Total(bytes) => bar.set_length(bytes),
        Progress::Sent(bytes) => bar.inc(bytes),
        Progress::Stage(_) => {}
    }
}
