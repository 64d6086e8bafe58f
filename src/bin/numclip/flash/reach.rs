//! Devices behind ssh: one process, its streams, its last words.

use std::io::{BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow, bail};
use numclip::flash::{Reach, STORE};

/// How devices are reached.
#[derive(clap::Args)]
pub struct ReachArgs {
    /// Folder of models on the device.
    #[arg(long, value_name = "DIR", default_value = STORE)]
    store: String,
    /// The ssh program with options of its own, in words.
    #[arg(long, value_name = "COMMAND", default_value = "ssh")]
    ssh: String,
    /// What numclip is called on the device, as in 'sudo numclip'.
    #[arg(long, value_name = "COMMAND", default_value = "numclip")]
    remote: String,
}

impl ReachArgs {
    /// The checked values.
    pub fn reach(&self) -> Reach {
        Reach {
            ssh: self.ssh.split_whitespace().map(String::from).collect(),
            numclip: self.remote.clone(),
            store: self.store.clone(),
        }
    }
}

/// A command that runs on a device.
pub struct Session {
    child: Child,
    stderr: JoinHandle<String>,
    /// What it hears; dropped when it has heard all.
    pub input: Option<ChildStdin>,
    /// What it says.
    pub output: BufReader<ChildStdout>,
}

impl Session {
    /// Runs `numclip store ACTION` on a device.
    ///
    /// # Errors
    /// When ssh cannot be started.
    pub fn open(reach: &Reach, host: &str, port: Option<u16>, action: &str) -> Result<Self> {
        Self::start(reach.command(host, port, action))
    }

    /// Runs a command that [`Reach`] made.
    ///
    /// # Errors
    /// When ssh cannot be started.
    pub fn start(mut command: Command) -> Result<Self> {
        let program = PathBuf::from(command.get_program());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let missing = || anyhow!("no pipe to {}", program.display());
        let mut stderr = child.stderr.take().ok_or_else(missing)?;
        Ok(Self {
            input: child.stdin.take(),
            output: BufReader::new(child.stdout.take().ok_or_else(missing)?),
            stderr: thread::spawn(move || {
                let mut text = Vec::new();
                // What cannot be read adds nothing to the message.
                let _ = stderr.read_to_end(&mut text);
                String::from_utf8_lossy(&text).into_owned()
            }),
            child,
        })
    }

    /// Waits for its end. What it wrote to stderr is the error if it failed.
    ///
    /// # Errors
    /// When it did not end well.
    pub fn close(mut self) -> Result<()> {
        drop(self.input.take());
        let status = self.child.wait()?;
        if status.success() {
            return Ok(());
        }
        let text = self.stderr.join().unwrap_or_default();
        bail!("{}", last_words(&text, status.code()))
    }

    /// Everything it says, if it ends well.
    ///
    /// # Errors
    /// When it does not.
    pub fn said(mut self) -> Result<String> {
        drop(self.input.take());
        let mut text = String::new();
        self.output.read_to_string(&mut text)?;
        self.close()?;
        Ok(text)
    }
}

/// One line for what went wrong at the far end.
fn last_words(stderr: &str, code: Option<i32>) -> String {
    let lines: Vec<&str> = stderr
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let last = lines.last().copied().unwrap_or("it said nothing");
    match code {
        Some(127) => format!("numclip is not installed there, or --remote is needed ({last})"),
        Some(255) => format!("ssh: {}", lines.join(" / ").trim_start_matches("ssh: ")),
        _ => last.strip_prefix("error: ").unwrap_or(last).to_owned(),
    }
}
