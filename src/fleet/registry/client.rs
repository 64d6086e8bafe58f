//! Requests to a registry, let in as it wants.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::login::Login;
use super::{Reference, RegistryError};
use crate::fleet::Transport;

/// Most bytes of an answer that is read only for its message or token.
const MAX_WORDS: u64 = 64 << 10;

/// How registries are reached and entered.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The way there.
    pub transport: Transport,
    /// User and password; what `docker login` left, without them.
    pub login: Option<Login>,
    /// Another `config.json` than docker's own.
    pub docker_config: Option<PathBuf>,
}

/// A repository of a registry.
pub struct Registry {
    pub(super) reference: Reference,
    base: String,
    pub(super) agent: Agent,
    login: Option<Login>,
    /// The header that let us in the last time.
    pass: Mutex<Option<String>>,
}

/// What one wants to do in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    Pull,
    Push,
}

/// What a server of tokens says.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// How a registry says no.
#[derive(Deserialize)]
struct Refusal {
    errors: Vec<Reason>,
}

#[derive(Deserialize)]
struct Reason {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Registry {
    /// The repository of `reference`. Nothing is sent yet.
    ///
    /// # Errors
    /// [`RegistryError::Setup`] when the login cannot be read, or the
    /// connection would need encryption that this build does not have.
    pub fn new(reference: &Reference, access: &Access) -> Result<Self, RegistryError> {
        let host = &reference.registry;
        let scheme = access.transport.scheme(host);
        let agent = access.transport.agent(scheme);
        let agent = agent.map_err(|error| RegistryError::Setup(format!("{host}: {error}")))?;
        let login = match (&access.login, &access.docker_config) {
            (Some(login), _) => Ok(Some(login.clone())),
            (None, Some(path)) => Login::read(path, host),
            (None, None) => Login::find(host),
        };
        Ok(Self {
            reference: reference.clone(),
            base: format!("{scheme}://{host}"),
            agent,
            login: login.map_err(RegistryError::Setup)?,
            pass: Mutex::default(),
        })
    }

    /// The repository it is about.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Address of something in the repository.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/v2/{}/{path}", self.base, self.reference.repository)
    }

    /// Sends a request, and once more with a pass if it takes one. The answer
    /// may be anything but a refusal to let us in.
    pub(super) fn ask(
        &self,
        right: Right,
        request: impl Fn(Option<&str>) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, RegistryError> {
        let pass = self.held_pass().clone();
        let mut answer = request(pass.as_deref()).map_err(|error| self.away(error))?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            let pass = self.enter(&answer, right)?;
            answer = request(Some(&pass)).map_err(|error| self.away(error))?;
            *self.held_pass() = Some(pass);
        }
        match answer.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.denied(&mut answer)),
            _ => Ok(answer),
        }
    }

    fn held_pass(&self) -> MutexGuard<'_, Option<String>> {
        self.pass.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where an upload goes on, and the pass to show there: none on another
    /// machine.
    pub(super) fn onward(&self, location: &str) -> (String, bool) {
        match location.starts_with('/') {
            true => (format!("{}{location}", self.base), true),
            false => {
                let ours = format!("{}/", self.base);
                (location.into(), location.starts_with(&ours))
            }
        }
    }

    pub(super) fn away(&self, error: impl ToString) -> RegistryError {
        RegistryError::Away {
            registry: self.reference.registry.clone(),
            message: error.to_string(),
        }
    }

    /// Does what an answer with status 401 asks for.
    fn enter(&self, answer: &Response<Body>, right: Right) -> Result<String, RegistryError> {
        let wanted = answer.headers().get("www-authenticate");
        let wanted = wanted.and_then(|value| value.to_str().ok()).unwrap_or("");
        let challenges = http_auth::parse_challenges(wanted).unwrap_or_default();
        for challenge in &challenges {
            let parameter = |name: &str| {
                let mut all = challenge.params.iter();
                let found = all.find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            match (challenge.scheme.to_ascii_lowercase().as_str(), &self.login) {
                ("basic", Some(login)) => return Ok(login.basic()),
                ("bearer", _) => {
                    let realm = parameter("realm").unwrap_or_default();
                    let token = self.token(&realm, parameter("service"), right)?;
                    return Ok(format!("Bearer {token}"));
                }
                _ => {}
            }
        }
        Err(RegistryError::Denied {
            registry: self.reference.registry.clone(),
            message: String::new(),
        })
    }

    /// A token of the server at `realm`, which the registry trusts.
    fn token(
        &self,
        realm: &str,
        service: Option<String>,
        right: Right,
    ) -> Result<String, RegistryError> {
        let actions = match right {
            Right::Pull => "pull",
            Right::Push => "pull,push",
        };
        let scope = format!("repository:{}:{actions}", self.reference.repository);
        let mut request = self.agent.get(realm).query("scope", scope);
        if let Some(service) = service {
            request = request.query("service", service);
        }
        if let Some(login) = &self.login {
            request = request.header("Authorization", login.basic());
        }
        let mut answer = request.call().map_err(|error| self.away(error))?;
        if answer.status() != StatusCode::OK {
            return Err(self.denied(&mut answer));
        }
        let token: Option<Token> = serde_json::from_str(&words(&mut answer)).ok();
        token
            .and_then(|token| token.token.or(token.access_token))
            .ok_or_else(|| self.away(format!("{realm} gives no token")))
    }

    fn denied(&self, answer: &mut Response<Body>) -> RegistryError {
        RegistryError::Denied {
            registry: self.reference.registry.clone(),
            message: reason(answer),
        }
    }
}

/// The answer if it is a good one.
pub(super) fn good(
    mut answer: Response<Body>,
    what: &str,
) -> Result<Response<Body>, RegistryError> {
    let what = what.to_owned();
    match answer.status() {
        status if status.is_success() => Ok(answer),
        StatusCode::NOT_FOUND => Err(RegistryError::Missing { what }),
        status => Err(RegistryError::Answer {
            what,
            status: status.as_u16(),
            message: reason(&mut answer),
        }),
    }
}

/// What the registry says about its refusal, behind a colon.
fn reason(answer: &mut Response<Body>) -> String {
    let refusal: Option<Refusal> = serde_json::from_str(&words(answer)).ok();
    let first = refusal.and_then(|refusal| refusal.errors.into_iter().next());
    first.map_or_else(String::new, |reason| {
        let code = reason.code.to_ascii_lowercase().replace('_', " ");
        match reason.message.is_empty() {
            true => format!(": {code}"),
            false => format!(": {}", reason.message),
        }
    })
}

fn words(answer: &mut Response<Body>) -> String {
    let body = answer.body_mut().with_config().limit(MAX_WORDS);
    body.read_to_string().unwrap_or_default()
}
