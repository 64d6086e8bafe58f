//! Where packages go: folders, and devices behind the system's own ssh.

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::str::FromStr;

/// A place that takes packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `dir:///media/card`: a store in a folder of this machine.
    Folder(PathBuf),
    /// `[user@]host[:port]`: a device that runs `numclip store receive`.
    Device {
        /// `[user@]host`, as ssh takes it; may be a name of its configuration.
        host: String,
        /// Port, unless ssh's configuration says.
        port: Option<u16>,
    },
}

/// How devices are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The ssh program and options of its own.
    pub ssh: Vec<String>,
    /// The command that numclip is on the device.
    pub numclip: String,
    /// The store on the device.
    pub store: String,
}

impl Reach {
    /// The command that runs `numclip store ACTION …` on a device, its streams
    /// piped. Names cannot become options: they are checked and stand behind
    /// `--`; ssh never asks for a password.
    pub fn command(&self, host: &str, port: Option<u16>, action: &str) -> Command {
        let (numclip, store) = (&self.numclip, quoted(&self.store));
        self.ssh(
            host,
            port,
            format!("{numclip} store {action} --store {store}"),
        )
    }

    /// The command that runs `script` by the device's shell, with the rights
    /// that numclip is given there. In the script `$1` is the store.
    pub fn shell(&self, host: &str, port: Option<u16>, script: &str) -> Command {
        let words: Vec<&str> = self.numclip.split_whitespace().collect();
        let rights = words[..words.len().saturating_sub(1)].join(" ");
        let (script, store) = (quoted(script), quoted(&self.store));
        self.ssh(
            host,
            port,
            format!("{rights} sh -c {script} numclip {store}"),
        )
    }

    fn ssh(&self, host: &str, port: Option<u16>, words: String) -> Command {
        let (program, options) = match self.ssh.split_first() {
            Some((program, options)) => (program.as_str(), options),
            None => ("ssh", &[][..]),
        };
        let mut command = Command::new(program);
        command.args(options);
        for option in [
            "BatchMode=yes",
            "ConnectTimeout=15",
            "ServerAliveInterval=10",
        ] {
            command.args(["-o", option]);
        }
        if let Some(port) = port {
            command.args(["-p", &port.to_string()]);
        }
        command
            .arg("-T")
            .arg("--")
            .arg(host)
            .arg(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("dir://") {
            return match path.starts_with('/') {
                true => Ok(Self::Folder(path.into())),
                false => Err("expected an absolute path, as in dir:///media/card".into()),
            };
        }
        let (host, port) = split_port(text)?;
        let letters = |c: char| c.is_ascii_alphanumeric() || "@._-:%".contains(c);
        if host.is_empty() || host.starts_with('-') || !host.chars().all(letters) {
            return Err("expected dir:///FOLDER or [user@]host[:port]".into());
        }
        Ok(Self::Device { host, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "dir://{}", path.display()),
            Self::Device { host, port: None } => f.write_str(host),
            Self::Device {
                host,
                port: Some(port),
            } => write!(f, "{host}:{port}"),
        }
    }
}

/// Host and port of `host`, `host:port`, `[v6]`, `[v6]:port` or a bare `v6`.
fn split_port(text: &str) -> Result<(String, Option<u16>), String> {
    let port = |text: &str| match text.parse() {
        Ok(port @ 1..) => Ok(Some(port)),
        _ => Err(format!("expected a port from 1 to 65535, got {text:?}")),
    };
    if let Some((user, rest)) = text.split_once('[') {
        let (host, rest) = rest.split_once(']').ok_or("']' is missing")?;
        let host = format!("{user}{host}");
        return match rest.strip_prefix(':') {
            Some(number) => Ok((host, port(number)?)),
            None if rest.is_empty() => Ok((host, None)),
            None => Err("expected ':' and a port after ']'".into()),
        };
    }
    match text.split_once(':') {
        Some((host, number)) if !number.contains(':') => Ok((host.into(), port(number)?)),
        _ => Ok((text.into(), None)),
    }
}

/// `text` as one word for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
