//! How registries are entered, as flags.

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};
use numclip::fleet::Transport;
use numclip::fleet::registry::{Access, Login};

use crate::exit::UsageError;

const USER: &str = "NUMCLIP_REGISTRY_USER";
const PASSWORD: &str = "NUMCLIP_REGISTRY_PASSWORD";

/// How registries and servers are reached.
#[derive(Clone, clap::Args)]
pub struct AccessArgs {
    /// User of the registry; NUMCLIP_REGISTRY_USER, or what `docker login`
    /// left, without it.
    #[arg(long, value_name = "NAME", requires = "password_file")]
    user: Option<String>,
    /// File that holds the user's password or token;
    /// NUMCLIP_REGISTRY_PASSWORD without it.
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// Docker's config.json, if it lies elsewhere.
    #[arg(long, value_name = "FILE")]
    docker_config: Option<PathBuf>,
    /// Certificates to trust, rather than the system's (PEM).
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Speak to other machines without encryption too, as to this one.
    #[arg(long)]
    plain_http: bool,
}

impl AccessArgs {
    /// The checked values.
    ///
    /// # Errors
    /// When a password cannot be read.
    pub fn access(&self) -> Result<Access> {
        Ok(Access {
            transport: Transport {
                plain_http: self.plain_http,
                ca: self.ca.clone(),
            },
            login: self.login()?,
            docker_config: self.docker_config.clone(),
        })
    }

    fn login(&self) -> Result<Option<Login>> {
        if let (Some(user), Some(path)) = (&self.user, &self.password_file) {
            let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
            return Ok(Some(Login {
                user: user.clone(),
                password: text.trim_end_matches(['\r', '\n']).into(),
            }));
        }
        match (env::var(USER), env::var(PASSWORD)) {
            (Ok(user), Ok(password)) => Ok(Some(Login { user, password })),
            (Ok(_), Err(_)) => Err(anyhow!(UsageError(format!(
                "{USER} is set, but {PASSWORD} is not"
            )))),
            _ => Ok(None),
        }
    }
}
