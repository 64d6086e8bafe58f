//! `numclip flash`: a package onto devices.

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Error, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use numclip::flash::{
    Allow, Comparison, Delivery, Progress, Reach, SendError, Stage, Target, place, send,
};
use numclip::package::Package;
use numclip::signature::{PublicKey, Signature, Trust};
use serde_json::json;

use super::packages::read_signature;
use super::reach::{ReachArgs, Session};
use super::runtime::Program;
use crate::exit::Exit;
use crate::table::padded;

/// Attempts at a device whose connection breaks.
const ATTEMPTS: u32 = 4;

/// Bring a signed package to devices.
///
/// A device checks the signature, has only the files sent that it lacks,
/// replays the golden vectors on its own engine, and then switches in one
/// step. It tells its service, watches it, and goes back by itself if that
/// is not well. Interrupted anywhere, it serves the old model or the new one;
/// run again, it goes on where it was.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The package; its signature lies beside it (PACKAGE.minisig).
    package: PathBuf,
    /// Where to: [user@]host[:port], or dir:///FOLDER for a mounted card.
    #[arg(value_name = "TARGET", required = true)]
    targets: Vec<Target>,
    /// Take a package that is older than what serves.
    #[arg(long)]
    allow_downgrade: bool,
    /// Hold no signature and no key against the device's clock: for devices
    /// that have none.
    #[arg(long)]
    allow_any_clock: bool,
    /// Signature, if it lies elsewhere.
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// For dir:// targets: trusted key or folder of them, rather than the
    /// folder's own trust.d. With --with-runtime: the key that a new device is
    /// to trust.
    #[arg(long, value_name = "DIR|FILE")]
    trust: Option<PathBuf>,
    /// Install or update numclip itself first: this binary, a systemd unit, the
    /// user it runs as, settings. On dir:// targets in the system whose
    /// /var/lib/numclip the folder is.
    #[arg(long, value_name = "BINARY")]
    with_runtime: Option<PathBuf>,
    /// Devices at a time.
    #[arg(short, long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Print one JSON object for each target.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

const EXAMPLES: &str = "Examples:
  numclip flash gauge-0.1.0.numclip pi@kitchen pi@cellar:2222
  numclip flash gauge-0.1.0.numclip dir:///media/card --trust release.pub
  numclip flash gauge-0.1.0.numclip $(cat devices.txt) --remote 'sudo numclip' --json
  numclip flash gauge-0.1.0.numclip pi@new --remote 'sudo numclip' \\
      --with-runtime target/aarch64-unknown-linux-gnu/release/numclip --trust release.pub

On the device: numclip in the PATH, and the public key in /var/lib/numclip/trust.d/.
/var/lib/numclip/device.toml (optional) says how the service is told and watched:
  reload = \"systemctl reload numclip\"
  health = \"systemctl is-active --quiet numclip\"
  watch_seconds = 10
  pictures = \"/run/numclip/pictures\"     where `run` keeps some ([keep]), for `pack --shadow`";

/// Runs the command.
///
/// # Errors
/// When the package or its signature cannot be used at all; a target that
/// fails is told and the others go on.
pub fn run(args: &Args) -> Result<Exit> {
    let runtime = args.with_runtime.as_deref();
    let now = (!args.allow_any_clock).then(Timestamp::now);
    let trust = args.trust.as_deref().map(|path| Trust::read(path, now));
    let cargo = Cargo {
        runtime: runtime.map(|path| program(path, args)).transpose()?,
        package: Package::open(&args.package)?,
        signature: read_signature(&args.package, args.signature.as_deref())?,
        trust: trust.transpose()?,
        allow: Allow {
            downgrade: args.allow_downgrade,
            any_clock: args.allow_any_clock,
        },
        reach: args.reach.reach(),
    };
    let bars = bars(args);
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let stdout = Mutex::new(());
    thread::scope(|scope| {
        for _ in 0..args.targets.len().min(args.jobs.into()) {
            scope.spawn(|| {
                while let Some(target) = args.targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let bar = bars.add(bar(args, target));
                    let result = cargo.deliver(target, &bar);
                    bar.finish_and_clear();
                    if result.is_err() {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                    let _one_at_a_time = stdout.lock();
                    // Whoever reads may have gone; the devices matter more.
                    let _ = bars.suspend(|| tell(args, target, &result));
                }
            });
        }
    });
    Ok(match failed.into_inner() {
        0 => Exit::Done,
        _ => Exit::Failed,
    })
}

fn program(path: &Path, args: &Args) -> Result<Program> {
    let key = args.trust.as_deref().map(|path| {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let key = text.parse::<PublicKey>();
        key.with_context(|| format!("{}: expected one key", path.display()))
    });
    Program::read(path, key.transpose()?)
}

/// How things arrived.
struct Arrival {
    program: Option<Delivery>,
    model: Delivery,
}

/// What is delivered, and how.
struct Cargo {
    runtime: Option<Program>,
    package: Package,
    signature: Signature,
    trust: Option<Trust>,
    allow: Allow,
    reach: Reach,
}

impl Cargo {
    fn deliver(&self, target: &Target, bar: &ProgressBar) -> Result<Arrival> {
        let (host, port) = match target {
            Target::Folder(root) => {
                let program = self.runtime.as_ref();
                let program = program.map(|program| program.place(root)).transpose()?;
                let trust = self.trust.as_ref();
                let model = place(
                    root,
                    &self.package,
                    &self.signature,
                    trust,
                    self.allow,
                    &mut |progress| show(bar, progress),
                )?;
                return Ok(Arrival { program, model });
            }
            Target::Device { host, port } => (host, *port),
        };
        let program = match &self.runtime {
            None => None,
            Some(program) => {
                let mut show = |progress| show(bar, progress);
                let mut send = || program.send(&self.reach, host, port, &mut show);
                Some(patiently(bar, &mut send)?)
            }
        };
        let model = patiently(bar, &mut || self.send(host, port, bar))?;
        Ok(Arrival { program, model })
    }

    fn send(&self, host: &str, port: Option<u16>, bar: &ProgressBar) -> Result<Delivery> {
        let mut session = Session::open(&self.reach, host, port, "receive")?;
        let mut input = session.input.take().context("ssh does not listen")?;
        let sent = send(
            &self.package,
            &self.signature,
            self.allow,
            &mut session.output,
            &mut input,
            &mut |progress| show(bar, progress),
        );
        drop(input);
        match (sent, session.close()) {
            // ssh or the far shell knows better why nobody answers.
            (Err(SendError::Connection { begun, .. }), Err(words)) => {
                let message = words.to_string();
                Err(SendError::Connection { message, begun }.into())
            }
            (sent, _) => Ok(sent?),
        }
    }
}

/// Tries again what broke off.
fn patiently(bar: &ProgressBar, send: &mut dyn FnMut() -> Result<Delivery>) -> Result<Delivery> {
    let mut attempt = 1;
    loop {
        match send() {
            Err(error) if attempt < ATTEMPTS && may_be_repeated(&error) => {
                bar.set_message(format!("again: {error}"));
                thread::sleep(Duration::from_secs(1 << attempt));
                attempt += 1;
            }
            result => return result,
        }
    }
}

/// A connection that was there and broke; not a host that refuses.
fn may_be_repeated(error: &Error) -> bool {
    let told = error.downcast_ref::<SendError>();
    told.is_some_and(SendError::may_be_repeated)
}

fn show(bar: &ProgressBar, progress: Progress) {
    match progress {
        Progress::Total(bytes) => {
            bar.set_position(0);
            bar.set_length(bytes);
            bar.set_message("sending");
        }
        Progress::Sent(bytes) => bar.inc(bytes),
        Progress::Stage(Stage::Proving) => bar.set_message("replaying golden vectors"),
        Progress::Stage(Stage::Comparing) => bar.set_message("beside the model that serves"),
        Progress::Stage(Stage::Compared(comparison)) => {
            let Comparison {
                frames,
                mean,
                largest,
            } = comparison;
            let target = bar.prefix();
            bar.suspend(|| {
                anstream::eprintln!(
                    "{target}  {frames} pictures: {mean} apart on average, {largest} at most"
                );
            });
        }
        Progress::Stage(Stage::Switched | Stage::Watching) => {
            bar.set_message("switched, watching the service")
        }
    }
}

fn bars(args: &Args) -> MultiProgress {
    let visible = std::io::stderr().is_terminal() && !args.json;
    MultiProgress::with_draw_target(match visible {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    })
}

fn bar(args: &Args, target: &Target) -> ProgressBar {
    let template = "{prefix}  {bar:24} {binary_bytes:>10}/{binary_total_bytes:<10} {msg}";
    // The template is constant; a plain bar would do.
    let style = ProgressStyle::with_template(template);
    let bar = ProgressBar::new(0).with_message("connecting");
    bar.set_prefix(name(args, target));
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// The target, as wide as the longest.
fn name(args: &Args, target: &Target) -> String {
    let longest = args
        .targets
        .iter()
        .map(|target| target.to_string().chars().count());
    padded(&target.to_string(), longest.max().unwrap_or(0))
}

fn tell(args: &Args, target: &Target, result: &Result<Arrival>) -> std::io::Result<()> {
    let mut stdout = anstream::stdout().lock();
    if args.json {
        let line = match result {
            Ok(Arrival { program, model }) => {
                json!({"target": target.to_string(), "runtime": program, "delivery": model, "error": null})
            }
            Err(error) => {
                let error = format!("{error:#}");
                json!({"target": target.to_string(), "runtime": null, "delivery": null, "error": error})
            }
        };
        return writeln!(stdout, "{line}");
    }
    let words = match result {
        Ok(Arrival { program, model }) => {
            let program = program.map(|program| format!("; program: {}", described(program)));
            described(*model).to_owned() + &program.unwrap_or_default()
        }
        Err(error) => format!("\x1b[1;31mfailed\x1b[0m  {error:#}"),
    };
    writeln!(stdout, "{}  {words}", name(args, target))
}

fn described(delivery: Delivery) -> &'static str {
    match delivery {
        Delivery::Installed => "\x1b[32minstalled\x1b[0m",
        Delivery::AlreadyThere => "skipped, already there",
    }
}
