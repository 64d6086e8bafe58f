//! The service on a device: told of a new model, then watched.

use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How long the service may take to answer, in seconds.
const ANSWER: Duration = Duration::from_secs(20);
/// Time between two looks at the service.
const PAUSE: Duration = Duration::from_millis(500);
/// Looks in a row that may fail while it loads the model.
const PATIENCE: usize = 6;

/// Where a running camera keeps pictures unless told otherwise.
pub const PICTURES: &str = "/run/numclip/pictures";

/// `device.toml`: how the service is told and watched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Service {
    /// Shell command that makes the service load the model that serves now.
    pub reload: Option<String>,
    /// Shell command that starts the service again with a new program.
    pub restart: Option<String>,
    /// Shell command that succeeds while the service is well.
    pub health: Option<String>,
    /// How long the service is watched after a switch, in seconds.
    pub watch_seconds: f32,
    /// Folder of pictures on which a new model is compared with the one that
    /// serves, where a package asks for it.
    pub pictures: PathBuf,
}

/// How the service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Its health command succeeds.
    Well,
    /// Its health command fails.
    Failing,
    /// There is no health command.
    Unwatched,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            reload: None,
            restart: None,
            health: None,
            watch_seconds: 10.0,
            pictures: PICTURES.into(),
        }
    }
}

impl Service {
    /// Tells the service of a new model and watches it for a while; `looks`
    /// hears of each look.
    ///
    /// # Errors
    /// Says what failed, with the command.
    pub(super) fn take_over(&self, looks: &mut dyn FnMut()) -> Result<(), String> {
        self.after(self.reload.as_deref(), looks)
    }

    /// Starts the service again, with a new program, and watches it for a
    /// while.
    ///
    /// # Errors
    /// Says what failed, with the command.
    pub(super) fn start_again(&self) -> Result<(), String> {
        self.after(self.restart.as_deref(), &mut || ())
    }

    fn after(&self, command: Option<&str>, looks: &mut dyn FnMut()) -> Result<(), String> {
        if let Some(command) = command {
            run(command)?;
        }
        let Some(health) = &self.health else {
            return Ok(());
        };
        let end = Instant::now() + Duration::from_secs_f32(self.watch_seconds.clamp(0.0, 3600.0));
        let mut failed = 0;
        loop {
            looks();
            let result = run(health);
            failed = if result.is_ok() { 0 } else { failed + 1 };
            let over = Instant::now() >= end;
            match result {
                Err(message) if over || failed > PATIENCE => return Err(message),
                Ok(()) if over => return Ok(()),
                _ => thread::sleep(PAUSE),
            }
        }
    }

    /// How the service is at this moment.
    pub fn health(&self) -> Health {
        match self.health.as_deref().map(run) {
            None => Health::Unwatched,
            Some(Ok(())) => Health::Well,
            Some(Err(_)) => Health::Failing,
        }
    }
}

/// Runs a shell command that must succeed before long. Its output is dropped:
/// stdout belongs to the conversation with the sender.
fn run(command: &str) -> Result<(), String> {
    match status(command) {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => Err(format!("`{command}` failed ({status})")),
        Ok(None) => Err(format!("`{command}` did not end in {} s", ANSWER.as_secs())),
        Err(error) => Err(format!("`{command}`: {error}")),
    }
}

/// How the command ended, if it did in time.
fn status(command: &str) -> io::Result<Option<ExitStatus>> {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > ANSWER {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(10));
    }
}
