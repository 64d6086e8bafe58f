//! `numclip store`: the device's side, run by hand or over ssh.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use numclip::flash::{Device, STORE, Site, Status, install_runtime, receive, status};
use numclip::signature::PublicKey;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::exit::Exit;
use crate::table::aligned;

/// How long a sender may be silent.
const SILENCE: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// Work on this machine's own models; `flash`, `status`, `rollback` and
/// `prune` run this on devices.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  numclip store status
  numclip run --model /var/lib/numclip --source rpicam://0     serve what is current")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    /// Folder of the models.
    #[arg(long, value_name = "DIR", default_value = STORE, global = true)]
    store: PathBuf,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Take a package from stdin; `numclip flash` talks to this.
    Receive,
    /// Show what serves, what did before, and how this machine is.
    Status {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Let the model serve again that did before.
    Rollback,
    /// Remove what neither serves nor did before.
    Prune,
    /// Install this very program on the system that the store belongs to;
    /// `numclip flash --with-runtime` runs this.
    Runtime {
        /// Public key that a device which trusts nobody yet is to trust.
        #[arg(long, value_name = "KEY")]
        trust: Option<String>,
    },
}

/// Runs the command.
///
/// # Errors
/// When the store refuses.
pub fn run(args: &Args) -> Result<Exit> {
    let text = match args.action {
        Action::Receive => {
            let mut input = BufReader::new(Impatient::stdin()?);
            receive(
                &args.store,
                Timestamp::now(),
                &mut input,
                &mut io::stdout().lock(),
            )?;
            return Ok(Exit::Done);
        }
        Action::Status { json: true } => {
            format!("{}\n", serde_json::to_string(&status(&args.store)?)?)
        }
        Action::Status { json: false } => described(&status(&args.store)?),
        Action::Rollback => {
            Device::open(&args.store)?.rollback(&mut |_| ())?;
            serves(&status(&args.store)?)
        }
        Action::Prune => removed(&Device::open(&args.store)?.prune()?),
        Action::Runtime { ref trust } => {
            let program = fs::read("/proc/self/exe").context("cannot read this program")?;
            let key = trust.as_deref().map(str::parse::<PublicKey>).transpose()?;
            let delivery = install_runtime(&args.store, &program, key.as_ref(), Site::Here)?;
            format!("{}\n", serde_json::to_string(&delivery)?)
        }
    };
    anstream::stdout().lock().write_all(text.as_bytes())?;
    Ok(Exit::Done)
}

/// The sender, who is gone if nothing comes for long: a connection can break
/// without anybody saying so, and the store must not stay held.
struct Impatient(File);

impl Impatient {
    fn stdin() -> io::Result<Self> {
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Self(stdin.into()))
    }
}

impl Read for Impatient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut stdin = [PollFd::new(&self.0, PollFlags::IN)];
        match poll(&mut stdin, Some(&SILENCE))? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => self.0.read(buffer),
        }
    }
}

/// What serves, in a line.
pub fn serves(status: &Status) -> String {
    match &status.serving {
        Some(model) => format!("{} {} serves\n", model.name, model.version),
        None => "nothing serves\n".into(),
    }
}

/// What was removed, in a line.
pub fn removed(paths: &[String]) -> String {
    match paths {
        [] => "nothing to remove\n".into(),
        paths => format!("removed {}\n", paths.join(", ")),
    }
}

fn described(status: &Status) -> String {
    let mut lines = Vec::new();
    for (name, model) in [("serving", &status.serving), ("before", &status.previous)] {
        let words = model.as_ref().map_or("nothing".into(), |model| {
            let fault = model.fault.iter().map(|fault| format!(", {fault}"));
            let fault: String = fault.collect();
            format!("{} {} ({}){fault}", model.name, model.version, model.sha256)
        });
        lines.push((name.into(), words));
    }
    let health = format!("{:?}", status.health).to_lowercase();
    lines.push(("health".into(), health));
    aligned(&lines)
}
