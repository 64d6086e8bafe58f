//! How to get into a registry.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64ct::{Base64, Encoding as _};
use serde::Deserialize;

/// User and password of a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// Name of the user.
    pub user: String,
    /// Password or access token.
    pub password: String,
}

/// The part of docker's `config.json` (podman's `auth.json`) that matters.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct DockerAuth {
    auth: Option<String>,
}

/// What a credential helper says.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

impl Login {
    /// The login for `registry` that `docker login` or `podman login` left on
    /// this machine, if there is one.
    ///
    /// # Errors
    /// Which file or helper is of no use, and why.
    pub fn find(registry: &str) -> Result<Option<Self>, String> {
        for path in config_files().iter().filter(|path| path.exists()) {
            if let Some(login) = Self::read(path, registry)? {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }

    /// The login for `registry` in a `config.json` of docker, if it has one.
    ///
    /// # Errors
    /// What is wrong with the file, or the credential helper it names.
    pub fn read(path: &Path, registry: &str) -> Result<Option<Self>, String> {
        let at = |message: String| format!("{}: {message}", path.display());
        let text = fs::read_to_string(path).map_err(|error| at(error.to_string()))?;
        let config: DockerConfig =
            serde_json::from_str(&text).map_err(|error| at(error.to_string()))?;
        let is_ours = |key: &str| host(key) == registry;
        let mut helpers = config.cred_helpers.iter();
        if let Some((key, helper)) = helpers.find(|(key, _)| is_ours(key)) {
            return ask(helper, key).map_err(at).map(Some);
        }
        let mut auths = config.auths.iter();
        match (auths.find(|(key, _)| is_ours(key)), &config.creds_store) {
            (Some((_, DockerAuth { auth: Some(auth) })), _) => {
                let login = Self::decode(auth);
                let message = || {
                    at(format!(
                        "auths.{registry}: expected base64 of user:password"
                    ))
                };
                login.map(Some).ok_or_else(message)
            }
            (Some((key, _)), Some(helper)) => ask(helper, key).map_err(at).map(Some),
            _ => Ok(None),
        }
    }

    fn decode(auth: &str) -> Option<Self> {
        let text = String::from_utf8(Base64::decode_vec(auth).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        Some(Self {
            user: user.into(),
            password: password.into(),
        })
    }

    /// The value of the header `Authorization`, scheme Basic.
    pub(super) fn basic(&self) -> String {
        let text = format!("{}:{}", self.user, self.password);
        format!("Basic {}", Base64::encode_string(text.as_bytes()))
    }
}

/// The password stays unsaid.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.user)
    }
}

fn config_files() -> Vec<PathBuf> {
    let folder = |name: &str| env::var_os(name).map(PathBuf::from);
    let docker = folder("DOCKER_CONFIG").or_else(|| Some(folder("HOME")?.join(".docker")));
    let podman = folder("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json"));
    let docker = docker.map(|folder| folder.join("config.json"));
    docker.into_iter().chain(podman).collect()
}

/// The host in a key, which may be an URL.
fn host(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// Asks docker's credential helper.
fn ask(helper: &str, key: &str) -> Result<Login, String> {
    let program = format!("docker-credential-{helper}");
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !helper.chars().all(plain) {
        return Err(format!("{helper:?} is no name of a credential helper"));
    }
    let failed = |error: std::io::Error| format!("{program}: {error}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(key.as_bytes()).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    let helped = serde_json::from_slice::<Helped>(&output.stdout);
    match helped {
        Ok(helped) if output.status.success() => Ok(Login {
            user: helped.username,
            password: helped.secret,
        }),
        _ => Err(format!("{program} gives no login for {key}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &str, registry: &str) -> Result<Option<Login>, String> {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("config.json");
        fs::write(&path, config).unwrap();
        Login::read(&path, registry)
    }

    #[test]
    fn dockers_file_is_read() {
        let config =
            r#"{"auths": {"https://r.local:5000/v1/": {"auth": "bWU6c2U6Y3JldA=="}}, "x": 1}"#;
        let login = read(config, "r.local:5000").unwrap().unwrap();
        assert_eq!((&*login.user, &*login.password), ("me", "se:cret"));
        assert_eq!(login.basic(), "Basic bWU6c2U6Y3JldA==");
        assert_eq!(format!("{login:?}"), "Login(me)");
        assert_eq!(read(config, "r.local"), Ok(None));
        assert_eq!(read("{}", "r.local"), Ok(None));
    }

    #[test]
    fn what_is_of_no_use_is_named_and_no_secret_is() {
        for (config, reason) in [
            ("{", "EOF"),
            (
                r#"{"auths": {"r.local": {"auth": "c2VjcmV0"}}}"#,
                "base64 of user",
            ),
            (r#"{"credHelpers": {"r.local": "no/such"}}"#, "no name"),
            (
                r#"{"credHelpers": {"r.local": "numclip-none"}}"#,
                "docker-credential-numclip-none",
            ),
            (
                r#"{"auths": {"r.local": {}}, "credsStore": "numclip-none"}"#,
                "docker-credential-numclip-none",
            ),
        ] {
            let error = read(config, "r.local").unwrap_err();
            assert!(
                error.contains(reason) && !error.contains("secret"),
                "{error}"
            );
        }
    }
}
