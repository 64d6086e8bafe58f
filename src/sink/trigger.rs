//! Something happens when the value passes a threshold: a command runs, a
//! server is told.

mod threshold;

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;

use super::{Answer, Sink, SinkError};
use crate::capture::without_password;
use threshold::Threshold;

pub use threshold::{Edge, ThresholdSettings};

/// How often the end of a command is looked for.
const NAP: Duration = Duration::from_millis(5);

/// What happens, and when.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriggerSettings {
    /// A command for the shell. It finds the estimate as JSON on its standard
    /// input and in `NUMCLIP_VALUE`, `NUMCLIP_UNIT`, `NUMCLIP_BIN`,
    /// `NUMCLIP_STATE` (`on` or `off`).
    pub command: Option<String>,
    /// A URL to which the estimate is posted as JSON, with the state in the
    /// header `X-Numclip-State`.
    pub webhook: Option<String>,
    /// It goes on above this value …
    pub above: Option<f32>,
    /// … or below this one; without either, every estimate counts.
    pub below: Option<f32>,
    /// It goes off once the value has come back to this one; without it, to
    /// the threshold itself.
    pub until: Option<f32>,
    /// Seconds for which the value must lie beyond before it goes on.
    #[serde(default)]
    pub hold: f64,
    /// Least seconds between two times that it goes on.
    #[serde(default)]
    pub every: f64,
    /// Seconds that the command or the server may take.
    #[serde(default = "default_timeout")]
    pub timeout: f64,
}

/// Waits for the value to pass a threshold.
pub struct Trigger {
    threshold: Threshold,
    action: Action,
    timeout: Duration,
}

enum Action {
    Command(String),
    Webhook(ureq::Agent, String),
}

fn default_timeout() -> f64 {
    10.0
}

impl TriggerSettings {
    /// Settings for a command that runs at every estimate.
    pub fn command(command: impl Into<String>) -> Self {
        Self {
            command: Some(command.into()),
            webhook: None,
            above: None,
            below: None,
            until: None,
            hold: 0.0,
            every: 0.0,
            timeout: default_timeout(),
        }
    }

    /// Checks that the settings fit together.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        self.threshold().check()?;
        if !(0.1..=3600.0).contains(&self.timeout) {
            return Err("timeout: expected seconds from 0.1 to 3600".into());
        }
        match (&self.command, &self.webhook) {
            (None, None) => Err("nothing to do: set command or webhook".into()),
            (Some(_), Some(_)) => Err("command and webhook: one of them".into()),
            (Some(command), None) if command.trim().is_empty() => Err("command: empty".into()),
            (None, Some(url)) if url.starts_with("https://") && !cfg!(feature = "tls") => Err(
                "webhook: this build cannot encrypt; build numclip with --features tls, or use http"
                    .into(),
            ),
            (None, Some(url)) if !url.starts_with("http://") && !url.starts_with("https://") => {
                let url = without_password(url);
                Err(format!("webhook: {url:?} begins with neither http:// nor https://"))
            }
            _ => Ok(()),
        }
    }

    fn threshold(&self) -> ThresholdSettings {
        ThresholdSettings {
            above: self.above,
            below: self.below,
            until: self.until,
            hold: self.hold,
            every: self.every,
        }
    }
}

impl Trigger {
    /// A trigger that has not gone on yet.
    ///
    /// # Errors
    /// What about the settings does not work, in words.
    pub fn new(settings: &TriggerSettings) -> Result<Self, String> {
        settings.check()?;
        let timeout = Duration::from_secs_f64(settings.timeout);
        let action = match (&settings.command, &settings.webhook) {
            (Some(command), _) => Action::Command(command.clone()),
            (None, url) => Action::Webhook(agent(timeout), url.clone().unwrap_or_default()),
        };
        Ok(Self {
            threshold: Threshold::new(settings.threshold()),
            action,
            timeout,
        })
    }
}

impl Sink for Trigger {
    fn put(&mut self, answer: &Answer) -> Result<(), SinkError> {
        let Some(edge) = self.threshold.step(answer.value(), Instant::now()) else {
            return Ok(());
        };
        match &self.action {
            Action::Command(command) => execute(command, answer, edge, self.timeout),
            Action::Webhook(agent, url) => post(agent, url, answer, edge),
        }
        .map_err(SinkError::Away)
    }
}

fn agent(timeout: Duration) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(timeout))
        .user_agent(concat!("numclip/", env!("CARGO_PKG_VERSION")));
    config.build().new_agent()
}

fn post(agent: &ureq::Agent, url: &str, answer: &Answer, edge: Edge) -> Result<(), String> {
    let request = agent
        .post(url)
        .header("Content-Type", "application/json")
        .header("X-Numclip-State", edge.name());
    match request.send(answer.to_json()) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("webhook: {error}")),
    }
}

/// Runs `command` to its end, or kills it with all that it started.
fn execute(command: &str, answer: &Answer, edge: Edge, timeout: Duration) -> Result<(), String> {
    let manifest = answer.reading.bundle.manifest();
    let bin = &manifest.bins.bin[answer.reading.timed.estimate.bin];
    let child = Command::new("sh")
        .args(["-c", command])
        .env("NUMCLIP_VALUE", answer.value().to_string())
        .env("NUMCLIP_UNIT", &manifest.task.unit)
        .env("NUMCLIP_BIN", &bin.label)
        .env("NUMCLIP_STATE", edge.name())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn();
    let mut child = child.map_err(|error| format!("sh: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // Less than a pipe holds; a command that does not read it may leave.
        let _ = stdin.write_all(answer.to_json().as_bytes());
    }
    match finished(&mut child, timeout) {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => Err(format!("command ended with {status}")),
        Ok(None) => Err(format!("command killed after {} s", timeout.as_secs_f32())),
        Err(error) => Err(format!("command: {error}")),
    }
}

fn finished(child: &mut Child, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(NAP);
    }
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        // It may have ended just now.
        let _ = kill_process_group(group, Signal::KILL);
    }
    child.wait()?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{BufRead as _, BufReader, Read as _};
    use std::net::TcpListener;

    use super::super::samples::answer;
    use super::*;

    #[test]
    fn a_command_finds_the_estimate_in_both_places() {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out");
        let out = out.display();
        let mut settings = TriggerSettings::command(format!(
            "(cat; echo \" $NUMCLIP_VALUE $NUMCLIP_UNIT $NUMCLIP_STATE $NUMCLIP_BIN\") >> {out}"
        ));
        settings.above = Some(50.0);
        let mut trigger = Trigger::new(&settings).unwrap();
        for (frame, value) in [10.0, 60.5, 70.0, 20.0].into_iter().enumerate() {
            trigger.put(&answer(frame as u64, value)).unwrap();
        }
        let text = fs::read_to_string(out.to_string()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].contains("\"frame\":1,") && lines[0].ends_with(" 60.5 % on empty"));
        assert!(lines[1].contains("\"frame\":3,") && lines[1].ends_with(" 20 % off empty"));
    }

    #[test]
    fn a_command_that_fails_or_hangs_is_told() {
        let run = |command: &str, timeout| {
            let mut settings = TriggerSettings::command(command);
            settings.timeout = timeout;
            let mut trigger = Trigger::new(&settings).unwrap();
            trigger.put(&answer(0, 1.0)).unwrap_err().to_string()
        };
        assert_eq!(run("exit 3", 5.0), "command ended with exit status: 3");
        let start = Instant::now();
        assert_eq!(
            run("sleep 60 & sleep 60", 0.2),
            "command killed after 0.2 s"
        );
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_server_is_told() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut settings = TriggerSettings::command("");
        settings.command = None;
        settings.webhook = Some(format!("http://{}/hook?a=b", server.local_addr().unwrap()));
        let heard = thread::spawn(move || {
            let (stream, _) = server.accept().unwrap();
            let mut reader = BufReader::new(&stream);
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                let from = head.len();
                reader.read_line(&mut head).unwrap();
                if let Some(number) = head[from..].to_lowercase().strip_prefix("content-length:") {
                    length = number.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            (&stream)
                .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                .unwrap();
            (head.to_lowercase(), String::from_utf8(body).unwrap())
        });
        Trigger::new(&settings)
            .unwrap()
            .put(&answer(5, 1.0))
            .unwrap();
        let (head, body) = heard.join().unwrap();
        assert!(head.starts_with("post /hook?a=b "), "{head}");
        assert!(head.contains("x-numclip-state: on"), "{head}");
        assert!(body.contains("\"frame\":5,"), "{body}");
    }

    #[test]
    fn settings_that_do_nothing_say_so() {
        let with = |change: fn(&mut TriggerSettings)| {
            let mut settings = TriggerSettings::command("x");
            change(&mut settings);
            settings.check().unwrap_err()
        };
        for (error, reason) in [
            (with(|s| s.command = None), "nothing to do"),
            (with(|s| s.webhook = Some("http://x".into())), "one of them"),
            (
                with(|s| (s.command, s.webhook) = (None, Some("ftp://x".into()))),
                "neither http",
            ),
            (
                with(|s| (s.above, s.below) = (Some(1.0), Some(0.0))),
                "one of them",
            ),
            (
                with(|s| (s.above, s.until) = (Some(1.0), Some(2.0))),
                "until",
            ),
            (with(|s| s.until = Some(2.0)), "until"),
            (with(|s| s.timeout = 0.0), "timeout"),
            (with(|s| s.hold = f64::NAN), "hold"),
        ] {
            assert!(error.contains(reason), "{error}");
        }
    }
}
